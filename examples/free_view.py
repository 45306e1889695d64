"""Turn a still picture's head every way: a grid of views, yaw from left to right, pitch from top to bottom.

    python examples/free_view.py free_view.png

Without --picture it is the portrait of the demo (Eileen Collins, NASA, public domain). The sender sends one picture, a
frame a second and nothing about views: the receiver makes them. Requests beyond the pack's range are clamped.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

import neuralcodec as nc
from neuralcodec.demo import moving_portrait
from neuralcodec.face import resize
from neuralcodec.media import check_output, output_path, read_frames

YAWS, PITCHES = (-30, -20, -10, 0, 10, 20, 30), (-20, -10, 0, 10, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a grid of views of one head.")
    parser.add_argument("output", metavar="OUT.png")
    parser.add_argument("--picture", help="another picture with one face, of somebody who agreed")
    parser.add_argument("--kbps", type=float, default=24.0, help="rate that pays for the one picture (default: 24)")
    parser.add_argument("--side", type=int, default=256, help="pixels of each view (default: 256)")
    parser.add_argument("-f", "--force", action="store_true", help="replace the output if it exists")
    options = parser.parse_args()
    if options.side < 1:
        parser.error(f"--side is {options.side}; expected pixels, at least 1")
    check_output(options.output, overwrite=options.force)  # before the work

    _, picture = next(read_frames(options.picture)) if options.picture else (0, next(moving_portrait()))
    encoder, decoder = nc.Encoder(options.kbps, time_base=1), nc.Decoder()
    rows = []
    for pitch in PITCHES:
        row = []
        for yaw in YAWS:
            decoder.view = nc.View(yaw, pitch)  # the head turns there smoothly: a second later it has arrived
            packets = encoder.encode(picture, encoder.stats.frames)
            frames = [frame for packet in packets for frame in decoder.decode(bytes(packet))]
            row += [resize(frame.image, options.side, options.side) for frame in frames]
        if len(row) < len(YAWS):
            raise nc.NoFaceError("No face was found in the picture; use one that shows head and shoulders.")
        rows.append(np.concatenate(row, axis=1))
    with output_path(options.output, overwrite=options.force) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
    print(f"{options.output}: {decoder.stats.frames} views of one picture of {encoder.stats.bytes_reference} bytes")
    if decoder.stats.clamped_frames:
        print(f"{decoder.stats.clamped_frames} of them are clamped to the pack's range: {decoder.pack.view_range}")


if __name__ == "__main__":
    try:
        main()
    except (nc.NeuralCodecError, ValueError) as error:  # the latter: a rate or size that there is not
        raise SystemExit(str(error)) from None

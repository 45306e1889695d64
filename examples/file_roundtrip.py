"""A film through the codec, packet by packet, as a call would send it: what `neuralcodec encode` and `decode` do.

    python examples/file_roundtrip.py talk.mp4 back.mp4 --kbps 4
"""

from __future__ import annotations

import argparse
import contextlib

import neuralcodec as nc
from neuralcodec.media import VideoReader, VideoWriter


def main() -> None:
    parser = argparse.ArgumentParser(description="Send a film through the codec and write what arrives.")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--kbps", type=float, default=4.0)
    options = parser.parse_args()
    try:
        roundtrip(options.source, options.target, options.kbps)
    except (nc.NeuralCodecError, ValueError) as error:  # the latter: a rate or size that there is not
        raise SystemExit(str(error)) from None


def roundtrip(source: str, target: str, kbps: float) -> None:
    with VideoReader(source) as film, contextlib.ExitStack() as stack:  # which leaves no half of a film behind
        encoder = nc.Encoder(kbps, time_base=film.time_base, frame_duration=film.frame_duration)
        decoder = nc.Decoder()
        writer: VideoWriter | None = None
        for pts, image in film:
            for packet in encoder.encode(image, pts):
                datagram = bytes(packet)  # this is what a network would carry
                for frame in decoder.decode(datagram):
                    if writer is None:
                        height, width = frame.image.shape[:2]
                        writer = VideoWriter(
                            target, width, height, film.time_base, frame_duration=film.frame_duration
                        )
                        stack.enter_context(writer)
                    writer.write(frame.image, frame.pts)
        if writer is None:
            raise nc.NoFaceError(f"No face was found in {source}.")

    seconds = encoder.stats.frames * film.frame_duration * film.time_base
    print(f"{encoder.stats.frames} frames, {float(encoder.stats.bytes_total * 8 / seconds) / 1000:.2f} kbit/s")


if __name__ == "__main__":
    main()

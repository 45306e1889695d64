"""Motion tracks of real clips as the encoder would code them: what export.fit_tables fits the bitstream's tables to.

    python -m export.motion_tracks data/train/256 --onnx build/onnx --out build/tracks

Writes one NAME.npz a clip: ``flat`` float64 (N, 7 + 3K + 2M), ``fresh`` bool (N,) and ``canonical`` float32 (K, 3). The
scene is told from references renewed every LIVES frames, as an encoder renews them: ``fresh`` frames are such pictures.
Clips must be square head and shoulders at the network's size, as neuralcodec.training.prepare makes them.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from rich.progress import track

from export.files import reason
from neuralcodec.errors import MediaError, NeuralCodecError, PackError
from neuralcodec.face import HEAD_SCALE, HEAD_Y
from neuralcodec.inference import LOOKS, MotionEstimate, as_tensor
from neuralcodec.motion import Array
from neuralcodec.quantizer import SCENE_MAX
from neuralcodec.runtime.engine import write_whole
from neuralcodec.runtime.session import Session, open_session
from neuralcodec.scene import Pyramid, register

SURE = 0.5
LIVES = (6, 40)  # frames that a reference serves


def follow(session: Session, path: Path, nodes: int) -> dict[str, Array] | None:
    """What is written of one clip; motion is relative to the first frame's canonical keypoints. None without a face."""
    rows: list[Array] = []
    fresh: list[bool] = []
    lives = random.Random(path.stem)
    left, reference, scene = 0, None, np.zeros((nodes**2, 2), np.float32)
    canonical = None
    box = np.array([0, HEAD_Y, HEAD_SCALE], np.float32)
    with av.open(str(path)) as film:
        for frame in film.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            looks = LOOKS if canonical is None else 1
            for _ in range(looks):
                seen = MotionEstimate.from_outputs(session.run({"image": as_tensor(picture), "box": box[None]}))
                box = seen.box
            if seen.confidence < SURE:
                canonical, box = None if not rows else canonical, np.array([0, HEAD_Y, HEAD_SCALE], np.float32)
                continue
            canonical = seen.canonical if canonical is None else canonical
            fresh.append(left == 0)
            if nodes:
                grey, left = Pyramid(picture), left - 1
                if fresh[-1]:
                    reference, left, scene = grey, lives.randint(*LIVES), np.zeros_like(scene)
                else:
                    assert reference is not None
                    scene = register(reference, grey, seen.box.tolist(), scene, nodes)
            rows.append(replace(seen.relative_to(canonical), scene=scene).flat())
    if canonical is None or len(rows) < 8:
        return None
    return {"flat": np.stack(rows), "fresh": np.array(fresh), "canonical": canonical}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.motion_tracks", description="Motion tracks of clips, for the tables.")
    parser.add_argument("clips", type=Path, help="folder of .mp4 clips")
    parser.add_argument("--onnx", type=Path, required=True, help="folder with motion.onnx")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scene", type=int, default=4, help="nodes a side of the scene's mesh; 0: the pack has none")
    options = parser.parse_args(arguments)
    try:
        write_tracks(options.clips, options.onnx, options.out, options.scene)
    except (NeuralCodecError, OSError) as error:
        print(f"export.motion_tracks: {reason(error)}", file=sys.stderr)
        return 1
    return 0


def write_tracks(clips: Path, graphs: Path, out: Path, nodes: int) -> None:
    """Follow every .mp4 of a folder; each track appears whole or not at all."""
    if nodes and not 2 <= nodes <= SCENE_MAX:
        raise PackError(f"--scene is {nodes}; a mesh has 2 to {SCENE_MAX} nodes a side, 0 stands for none.")
    paths = sorted(clips.glob("*.mp4"))
    if not paths:
        raise MediaError(f"{clips} holds no .mp4 clip.")
    session = open_session(graphs / "motion.onnx", device="cpu", threads=1)
    for path in track(paths, "tracks"):
        try:
            found = follow(session, path, nodes)
        except (av.FFmpegError, IndexError) as error:  # IndexError: it has no video
            raise MediaError(f"{path} is not a video that can be read: {error}.") from error
        if found is None:
            print(f"{path.name}: no face, left out", file=sys.stderr)
            continue
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **found)
        write_whole(out / f"{path.stem}.npz", data.getvalue())


if __name__ == "__main__":
    sys.exit(main())

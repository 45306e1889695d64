"""Motion tracks of real clips as the encoder would code them: what export.fit_tables fits the bitstream's tables to.

    python -m export.motion_tracks data/train/256 --onnx build/onnx --out build/tracks

Writes one NAME.npz a clip: ``flat`` float64 (N, 7 + 3K) and ``canonical`` float32 (K, 3). Clips must be square head and
shoulders at the network's size, as neuralcodec.training.prepare makes them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import av
import numpy as np
from rich.progress import track

from neuralcodec.face import HEAD_SCALE, HEAD_Y
from neuralcodec.inference import LOOKS, MotionEstimate, as_tensor
from neuralcodec.motion import Array
from neuralcodec.runtime.session import Session, open_session

SURE = 0.5


def follow(session: Session, path: Path) -> tuple[Array, Array] | None:
    """Flat motion (N, 7 + 3K) relative to the first frame's canonical keypoints (K, 3); None without a face."""
    rows: list[Array] = []
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
            rows.append(seen.relative_to(canonical).flat())
    return (np.stack(rows), canonical) if canonical is not None and len(rows) >= 8 else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="export.motion_tracks", description="Motion tracks of clips, for the tables.")
    parser.add_argument("clips", type=Path, help="folder of .mp4 clips")
    parser.add_argument("--onnx", type=Path, required=True, help="folder with motion.onnx")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    session = open_session((options.onnx / "motion.onnx").read_bytes(), device="cpu", threads=1)
    options.out.mkdir(parents=True, exist_ok=True)
    paths = sorted(options.clips.glob("*.mp4"))
    if not paths:
        print(f"{options.clips} holds no .mp4 clip.", file=sys.stderr)
        return 1
    for path in track(paths, "tracks"):
        found = follow(session, path)
        if found is None:
            print(f"{path.name}: no face, left out", file=sys.stderr)
            continue
        np.savez(options.out / f"{path.stem}.npz", flat=found[0], canonical=found[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())

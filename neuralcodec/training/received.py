"""What receivers hold in place of a frame: the codec's own pictures of training footage, for renderers to learn from.

    python -m neuralcodec.training.received DATA --out RECEIVED --kbps 2 4 8

Runs the encoder over the training clips, six seconds at a time at one of the rates in turn, and keeps every picture
that a receiver has by then, coarse keys and long chains of updates alike, with the number of the frame it stands for.
Of a photograph (DATA/stills*) it keeps the first key at one of the rates. ``neuralcodec.training.train --received``
reads them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from neuralcodec.chain import start_chain
from neuralcodec.encoder import Encoder
from neuralcodec.errors import MediaError, NeuralCodecError
from neuralcodec.focus import soften
from neuralcodec.inference import Inference
from neuralcodec.pack import load_pack
from neuralcodec.rate import RateControl
from neuralcodec.training.data import decode, squares

STRETCH = 150  # frames


def received(frames: Sequence[Any], kbps: float, pack: str | None = None) -> tuple[list[int], list[Any]]:
    """Numbers of the frames that the encoder sends as pictures at this rate, and those pictures as decoded."""
    encoder = Encoder(kbps, pack=pack, device="cpu", crop="none", threads=1)
    numbers, pictures = [], []
    for number, frame in enumerate(frames):
        encoder.encode(frame, number)
        held = encoder._pictures.held.get(encoder._pictures.active)
        if held and held.of == float(number * encoder.time_base):  # a key that came in parts is of an earlier frame
            numbers.append(number)
            pictures.append(held.features.picture)
    return numbers, pictures


def photographed(picture: Any, kbps: float, networks: Inference) -> Any:
    """The first picture that a receiver of this photograph would have, uint8 (S, S, 3)."""
    rate = RateControl(kbps)
    soft = soften(picture, networks.estimate(picture).box.tolist(), rate.softness)
    _, _, shown = start_chain(soft, max_bytes=rate.key_bytes, preset=rate.preset, coarser=rate.updates_coarser)
    return shown


def store(path: Path, numbers: Sequence[int], pictures: Sequence[Any]) -> None:
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, frames=np.array(numbers), pictures=np.stack(pictures))
    partial.replace(path)


def code(data: Path, out: Path, rates: Sequence[float], pack: str | None = None) -> None:
    """Every clip and photograph of ``data`` that ``out`` does not hold yet."""
    clips, photographs = sorted((data / "train" / "256").glob("*.mp4")), sorted(data.glob("stills*/*.jpg"))
    if not clips:
        raise MediaError(f"{data / 'train' / '256'} holds no .mp4; neuralcodec.training.prepare makes some.")
    named: dict[str, Path] = {}
    for path in (*clips, *photographs):
        if (other := named.setdefault(path.stem, path)) != path:  # training would take one person's for the other's
            raise MediaError(f"{other} and {path} would both be stored as {path.stem}.npz; rename one of them.")
    networks = Inference(load_pack(pack), device="cpu", threads=1)
    out.mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(track(clips, "received")):
        stored = out / f"{path.stem}.npz"
        if stored.exists():
            continue
        frames, numbers, held = decode(path), [], []
        for turn, start in enumerate(range(0, len(frames), STRETCH), i):
            kbps = rates[turn % len(rates)]
            try:
                found, shown = received(frames[start : start + STRETCH], kbps, pack)
            except NeuralCodecError as error:
                raise MediaError(f"{path}: {error}") from error
            numbers += [start + number for number in found]
            held += shown
        if numbers:  # a clip without a face leaves nothing
            store(stored, numbers, held)
    for i, path in enumerate(track(photographs, "photographs")):
        stored = out / f"{path.stem}.npz"
        if not stored.exists():
            picture = squares(path, networks.pack.size)[0]
            store(stored, [0], [photographed(picture, rates[i % len(rates)], networks)])


def main() -> int:
    p = argparse.ArgumentParser(prog="neuralcodec.training.received", description="Code training footage as calls do.")
    p.add_argument("data", type=Path, help="folder with train/ as neuralcodec.training.prepare writes it, and stills*/")
    p.add_argument("--out", type=Path, required=True, help="folder for one .npz a clip or photograph")
    p.add_argument("--kbps", type=float, nargs="+", default=[4.0], help="rates, taken in turn")
    p.add_argument("--pack", help="pack that codes; the bundled one by default")
    options = p.parse_args()
    try:
        for kbps in options.kbps:
            RateControl(kbps)
    except ValueError as error:
        p.error(f"--kbps: {error}")
    try:
        code(options.data, options.out, options.kbps, options.pack)
    except (NeuralCodecError, OSError) as error:
        print(f"neuralcodec.training.received: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("neuralcodec.training.received: stopped; the same command goes on from there.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

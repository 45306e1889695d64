"""What smaller graphs cost on real clips: PSNR against the camera, beside the float32 graphs' (see export.verify)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from export.build_pack import check_graphs
from neuralcodec.errors import MediaError, PackError
from neuralcodec.inference import Inference
from neuralcodec.media import read_frames
from neuralcodec.motion import Array
from neuralcodec.pack import Pack, load_pack

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
FLAT = 0.25  # standard deviation, of 255 levels, under which a picture shows nothing


@dataclass(frozen=True)
class ClipLoss:
    """One variant against float32 over all clips. ``fault``: "" or what no bound excuses."""

    variant: str
    frames: int
    psnr: float  # dB against the camera, mean over frames
    loss: float  # dB below the float32 graphs'
    worst: float  # dB lost by the frame that loses most
    bound: float
    fault: str

    @property
    def passed(self) -> bool:
        return not self.fault and self.loss <= self.bound


def clip_losses(
    base: Path, variants: Sequence[tuple[str, Path]], clips: Path, *, bounds: Mapping[str, float], device: str = "cpu",
    frames: int = 4,
) -> list[ClipLoss]:  # fmt: skip
    """``variants``: (kind of graph, folder with one or more of the three); what a folder lacks is taken from ``base``.

    The first frame of each clip is the reference; ``frames`` others, spread over its first ten seconds, are rendered.
    """
    paths = sorted(p for p in clips.iterdir() if p.suffix in SUFFIXES) if clips.is_dir() else []
    if not paths:
        raise MediaError(f"{clips} is no folder with clips ({', '.join(SUFFIXES)}).")
    plain = Inference(_pack(base), device=device)
    others = [Inference(_pack(folder, base), device=device) for _, folder in variants]
    wanted: list[float] = []
    found: list[list[float]] = [[] for _ in variants]
    faults = [""] * len(variants)
    for path in track(paths, "clips", console=Console(stderr=True)):
        pictures = [image for _, image in islice(read_frames(path), 250)]
        if len(pictures) < 2 or pictures[0].shape[:2] != (plain.pack.size, plain.pack.size):
            raise MediaError(f"{path} is not a clip of {plain.pack.size}x{plain.pack.size}; use training.prepare.")
        chosen = [pictures[i] for i in np.linspace(0, len(pictures) - 1, frames + 1).astype(int)[1:]]
        seen = _rendered(plain, pictures[0], chosen)
        wanted += [psnr(p, c) for p, c in zip(seen, chosen, strict=True)]
        for index, network in enumerate(others):
            shown = _rendered(network, pictures[0], chosen)
            found[index] += [psnr(p, c) for p, c in zip(shown, chosen, strict=True)]
            if any(p.std() < FLAT <= q.std() for p, q in zip(shown, seen, strict=True)):
                faults[index] = f"black or flat picture in {path.name}"
    losses = []
    for (kind, folder), values, fault in zip(variants, found, faults, strict=True):
        lost = np.array(wanted) - np.array(values)
        losses.append(
            ClipLoss(str(folder), len(lost), float(np.mean(values)), float(lost.mean()), float(lost.max()),
                     bounds.get(kind, 0.0), fault)
        )  # fmt: skip
    return losses


def psnr(found: Array, wanted: Array) -> float:
    """dB of uint8 pictures."""
    error = float(np.mean((found.astype(np.float64) - wanted) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def _rendered(networks: Inference, first: Array, frames: Sequence[Array]) -> list[Array]:
    reference, pictures = networks.reference(first), []
    for frame in frames:
        estimate = networks.motion(frame, reference.estimate.box)
        scene = networks.scene(reference, frame, estimate)
        pictures.append(networks.render(reference, replace(estimate.relative_to(reference.canonical), scene=scene)))
    return pictures


@dataclass(frozen=True)
class _Graphs(Pack):
    """Graphs of some folders, each name from the first that has it, and the bundled detector."""

    folders: tuple[Path, ...] = ()
    nodes: int = 0

    @property
    def scene(self) -> int:
        return self.nodes

    def graph(self, name: str) -> bytes:
        for folder in self.folders:
            if (folder / f"{name}.onnx").is_file():
                return (folder / f"{name}.onnx").read_bytes()
        if name == "detector":
            return load_pack().graph(name)
        raise PackError(f"{name}.onnx is in none of {', '.join(map(str, self.folders))}; write it with export.to_onnx.")


def _pack(*folders: Path) -> Pack:
    shape = check_graphs(folders[-1])
    return _Graphs(
        folders[0], folders[0].name, "0", shape.size, shape.keypoints, bytes(8), {}, folders=folders, nodes=shape.scene
    )

"""Turns other people's checkpoints into a pack that Encoder and Decoder run: face-vid2vid, SadTalker, LivePortrait.

    python -m export.import_checkpoint FILE... --out my-pack [--clips DIR] [--family NAME] [--size 512]

The family is told from names and shapes (families.py); files are read without running anything in them
(checkpoints.py). Three things a pack needs are in no checkpoint and are made here: the face detector is the bundled
pack's, and it also says in the motion graph whether a face is seen; a constant shift and scale puts translation and
scale where the codec looks for the face (keypoints do not change); and the bitstream's tables are fitted to the motion
of ``--clips``, square head-and-shoulders clips, or to the demo's portrait without them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from export.build_pack import build_pack, check_out
from export.checkpoints import read_checkpoints
from export.families import FAMILIES, configure, detect, rename
from export.files import reason
from export.fit_tables import SHORTEST, Track, fit_tables
from export.to_onnx import export_graphs
from neuralcodec.errors import MediaError, NeuralCodecError, PackError
from neuralcodec.face import HEAD_SCALE, HEAD_Y, FaceDetector, Square, resize
from neuralcodec.inference import MotionEstimate, as_tensor
from neuralcodec.models import MotionOutput, Networks, build
from neuralcodec.motion import Array
from neuralcodec.pack import Pack, load_pack
from neuralcodec.runtime.session import open_session

SIZES = (128, 1024)  # sides that are multiples of the first, up to the second
CLIP_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
DETECTOR_PREFIX = "seen/"


@dataclass(frozen=True)
class Gauge:
    """Moves the coded translation and scale without moving a keypoint: t + shift, s * factor, the rest in canonical
    keypoints and expression."""

    shift: tuple[float, float] = (0.0, HEAD_Y)
    factor: float = HEAD_SCALE

    @classmethod
    def fitted(cls, faces: Sequence[Array], poses: Sequence[Array]) -> Gauge:
        """From boxes (x, y, half side) of found faces, and (tx, ty, scale) as the network says of the same pictures."""
        if not faces:
            return cls()
        face, pose = np.array(faces, np.float64), np.array(poses, np.float64)
        shift = np.median(face[:, :2] - pose[:, :2], axis=0)
        return cls((float(shift[0]), float(shift[1])), float(np.median(face[:, 2] / pose[:, 2])))


class Regauged(nn.Module):
    """A motion network whose translation and scale are a face's place and size: (B, 3, S, S) -> MotionOutput."""

    shift: Tensor

    def __init__(self, inner: nn.Module, gauge: Gauge) -> None:
        super().__init__()
        self.inner, self.factor = inner, gauge.factor
        self.register_buffer("shift", torch.tensor([*gauge.shift, 0.0]))

    def forward(self, image: Tensor, box: Tensor | None = None) -> MotionOutput:
        m: MotionOutput = self.inner(image, box)
        still = self.shift / self.factor  # where the shift goes when the head faces the camera at scale 1 ...
        turned = (still / m.scale)[:, None] @ m.rotation.transpose(1, 2)  # ... and where it belongs in this frame
        confidence = m.confidence if box is None else m.confidence + 0 * box[:, :1]  # keeps the input in the graph
        return MotionOutput(
            m.rotation, m.translation + self.shift, m.scale * self.factor, m.canonical / self.factor - still,
            m.delta / self.factor + still - turned, confidence,
        )  # fmt: skip


def load_family(files: Sequence[Path], family: str | None = None, size: int = 256) -> tuple[str, Networks, list[str]]:
    """The family of checkpoint files, its networks with their weights, and the names of tensors that were not used."""
    if size % SIZES[0] or not SIZES[0] <= size <= SIZES[1]:
        raise PackError(f"--size is {size}; it must be a multiple of {SIZES[0]} up to {SIZES[1]}.")
    tensors = read_checkpoints(files)
    name = detect(tensors, family)
    config = configure(name, tensors, size)
    state, unused = rename(name, tensors, config)
    networks = build(config)
    networks.load_state_dict(state)
    return name, networks.eval(), unused


def import_checkpoint(
    files: Sequence[Path],
    out: Path,
    *,
    family: str | None = None,
    size: int = 256,
    clips: Path | None = None,
    seconds: float = 8.0,
    name: str | None = None,
    fp16_storage: bool = False,
    force: bool = False,
) -> Pack:
    """Write a pack with the networks of ``files`` to ``out``; an existing one is replaced only with ``force``."""
    check_out(out, force)
    if not 0.12 <= seconds <= 3600:
        raise PackError(f"--seconds is {seconds}; it must lie between 0.12, which are {SHORTEST} frames, and 3600.")
    found, networks, unused = load_family(files, family, size)
    bundled = load_pack()
    detector = FaceDetector(open_session(bundled.graph("detector"), threads=1))
    gauge, tracks = observe(networks, detector, clips, seconds)
    networks.motion = Regauged(networks.motion, gauge)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch)
        export_graphs(networks, folder, fp16_storage=fp16_storage)
        see_faces(folder / "motion.onnx", bundled.graph("detector"))
        (folder / "detector.onnx").write_bytes(bundled.graph("detector"))
        (folder / "tables.json").write_text(json.dumps(fit_tables(tracks), separators=(",", ":")) + "\n", "utf-8")
        (folder / "MODEL_CARD.md").write_text(card(found, files, networks, gauge, tracks, clips, unused), "utf-8")
        return build_pack(
            folder, folder / "tables.json", folder / "detector.onnx", folder / "MODEL_CARD.md", out,
            name=name or out.name, version="0.1.0", force=force,
        )  # fmt: skip


def observe(
    networks: Networks, detector: FaceDetector, clips: Path | None, seconds: float
) -> tuple[Gauge, list[Track]]:
    """Look at clips through the motion network: where faces are against what it says, and its motion as tracks."""
    size, watched = networks.config.size, []
    faces, poses = [], []
    frames = round(25 * seconds)
    for label, pictures in _footage(clips, size):
        seen = []
        for index, picture in enumerate(track(islice(pictures, frames), f"motion of {label}", frames, console=_STDERR)):
            with torch.inference_mode():
                seen.append(MotionOutput(*(t.numpy() for t in networks.motion(torch.from_numpy(as_tensor(picture))))))
            if index % 10 == 0:
                found = detector.detect(picture)
                if found:
                    faces.append(found[0].box_in(Square(0, 0, size)))
                    poses.append(np.array([*seen[-1].translation[0, :2], seen[-1].scale[0, 0]]))
        watched.append(seen)
    gauge = Gauge.fitted(faces, poses)
    tracks = [_track(seen, gauge) for seen in watched if len(seen) >= SHORTEST]
    if not tracks:
        raise MediaError(f"{clips} holds no clip of {SHORTEST} frames; give head-and-shoulders clips, or no --clips.")
    return gauge, tracks


def _footage(clips: Path | None, size: int) -> Iterator[tuple[str, Iterator[Array]]]:
    if clips is None:
        from neuralcodec.demo import moving_portrait

        yield "the demo's portrait", (resize(p, size, size) for p in moving_portrait(60.0))
        return
    from neuralcodec.media import read_frames

    paths = sorted(p for p in clips.iterdir() if p.suffix in CLIP_SUFFIXES) if clips.is_dir() else []
    if not paths:
        raise MediaError(f"{clips} is no folder with clips ({', '.join(CLIP_SUFFIXES)}).")
    for path in paths:
        yield path.name, (_square(image, path, size) for _, image in read_frames(path))


def _square(image: Array, path: Path, size: int) -> Array:
    if image.shape[0] != image.shape[1]:
        raise MediaError(f"{path} is {image.shape[1]}x{image.shape[0]}; clips must be square: use training.prepare.")
    return resize(image, size, size)


def _track(seen: Sequence[MotionOutput], gauge: Gauge) -> Track:
    regauged = [Regauged(_Said(m), gauge)(torch.empty(0)) for m in seen]
    names = MotionOutput._fields
    estimates = [MotionEstimate.from_outputs(dict(zip(names, (t.numpy() for t in m), strict=True))) for m in regauged]
    canonical = estimates[0].canonical
    flat = np.stack([e.relative_to(canonical).flat() for e in estimates])
    return Track(flat, np.asarray(canonical, np.float64), np.zeros(len(flat), bool))


class _Said(nn.Module):
    """A motion network that repeats one answer."""

    def __init__(self, answer: MotionOutput) -> None:
        super().__init__()
        self.answer = MotionOutput(*(torch.from_numpy(np.asarray(a)) for a in answer))

    def forward(self, image: Tensor, box: Tensor | None = None) -> MotionOutput:  # noqa: ARG002
        return self.answer


def see_faces(motion: Path, detector: bytes) -> None:
    """Make the motion graph's confidence the detector's best score on the same picture; these families have none."""
    graph, eye = onnx.load(motion), onnx.load_model_from_string(detector)
    side = eye.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    taken = eye.graph.input[0].name
    names = {taken: DETECTOR_PREFIX + taken}

    def renamed(name: str) -> str:
        return name and names.setdefault(name, DETECTOR_PREFIX + name)

    for tensor in eye.graph.initializer:
        tensor.name = renamed(tensor.name)
    for node in eye.graph.node:
        node.name = DETECTOR_PREFIX + node.name
        node.input[:] = [renamed(n) for n in node.input]
        node.output[:] = [renamed(n) for n in node.output]
    for node in graph.graph.node:
        node.output[:] = [DETECTOR_PREFIX + "constant" if n == "confidence" else n for n in node.output]
    scales = numpy_helper.from_array(
        np.array([1, 1, side / _side(graph), side / _side(graph)], np.float32), DETECTOR_PREFIX + "scales"
    )
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), DETECTOR_PREFIX + "axes")
    unit = numpy_helper.from_array(np.array([0], np.float32), DETECTOR_PREFIX + "zero")
    best, used = DETECTOR_PREFIX + "best", DETECTOR_PREFIX + "used"
    graph.graph.initializer.extend([*eye.graph.initializer, scales, axes, unit])
    graph.graph.node.insert(
        0, helper.make_node("Resize", ["image", "", scales.name], [names[taken]], name=DETECTOR_PREFIX + "Resize",
                            mode="linear")
    )  # fmt: skip
    graph.graph.node.extend(eye.graph.node)
    graph.graph.node.extend([
        helper.make_node("ReduceMax", [names["heatmap"], axes.name], [best], name=best, keepdims=0),
        # ``box`` stays an input of every pack's motion graph; nothing of it counts here
        helper.make_node("Mul", [DETECTOR_PREFIX + "constant", unit.name], [used], name=used),
        helper.make_node("Add", [best, used], ["confidence"], name=DETECTOR_PREFIX + "confidence"),
    ])  # fmt: skip
    onnx.checker.check_model(graph, full_check=True)
    motion.write_bytes(graph.SerializeToString())


def _side(graph: onnx.ModelProto) -> int:
    image = next(value for value in graph.graph.input if value.name == "image")
    return int(image.type.tensor_type.shape.dim[3].dim_value)


def card(
    family: str,
    files: Sequence[Path],
    networks: Networks,
    gauge: Gauge,
    tracks: Sequence[Track],
    clips: Path | None,
    unused: Sequence[str],
) -> str:
    """The pack's model card: where it comes from, what was added, where it will not do."""
    kind, config = FAMILIES[family], networks.config
    sources = "\n".join(f"- `{path.name}`, SHA-256 `{_sha256(path)}`" for path in files)
    frames = sum(len(t.flat) for t in tracks)
    footage = "the demo's generated portrait: fit them to real clips with `--clips` before you measure a rate"
    if clips is not None:
        footage = f"{len(tracks)} clips"
    return f"""# Imported: {kind.title}

Weights that others trained, in this project's graphs: family `{family}`, {config.keypoints} keypoints, {config.size} x
{config.size} pixels in. Licence of the published weights: {kind.licence}.

{sources}

- {kind.crop}
- Face detector and confidence: the bundled pack's detector.
- Tables of the bitstream: fitted to {frames} frames of {footage}.
- Translation is shifted by ({gauge.shift[0]:.3f}, {gauge.shift[1]:.3f}) and scale multiplied by {gauge.factor:.3f},
  so that they say where the face is; keypoints are the original network's.
- Not imported: {len(unused)} tensors that no part of this pipeline uses (discriminators, stitching, audio).

These networks were made for GPUs: on two CPU cores a frame takes seconds. Nobody here has judged their pictures.
"""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_STDERR = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="export.import_checkpoint", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="checkpoint files; LivePortrait has four")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--family", choices=(*FAMILIES, "gfvc"), help="instead of what names and shapes say")
    parser.add_argument("--size", type=int, default=256, help="side of the coded picture; 512 for SadTalker's 512 file")
    parser.add_argument("--clips", type=Path, help="folder of square head-and-shoulders clips to fit the tables to")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each clip")
    parser.add_argument("--name", help="default: the folder's name")
    parser.add_argument("--fp16-storage", action="store_true", help="half the size, pixels off by up to a few levels")
    parser.add_argument("--force", action="store_true", help="replace an existing pack")
    o = parser.parse_args(arguments)
    try:
        pack = import_checkpoint(
            o.files, o.out, family=o.family, size=o.size, clips=o.clips, seconds=o.seconds, name=o.name,
            fp16_storage=o.fp16_storage, force=o.force,
        )  # fmt: skip
    except (NeuralCodecError, OSError) as error:
        print(f"export.import_checkpoint: {reason(error)}", file=sys.stderr)
        return 1
    total = sum(path.stat().st_size for path in pack.folder.iterdir())
    print(f"{pack.folder}  id {pack.id.hex()}  {total:,} bytes; what it is: {pack.folder / 'MODEL_CARD.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

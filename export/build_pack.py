"""Puts graphs, motion tables, face detector and model card together as a model pack. Checks that they fit.

    python -m export.build_pack --onnx build/onnx --tables build/tables.json --detector build/detector.onnx \\
        --card MODEL_CARD.md --out neuralcodec/packs/portrait

The pack is assembled beside its destination, opened once like any user's pack, and only then moved into place.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from export.files import reason
from export.to_onnx import SCENE, strip_traces
from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.pack import Pack, load_pack, write_manifest
from neuralcodec.runtime.session import Session, open_session
from neuralcodec.view import ViewRange

GRAPHS = ("motion", "reference", "render")
CARD = "MODEL_CARD.md"
INPUTS = {
    "motion": {"image", "box"},
    "reference": {"image"},
    "render": {"source_keypoints", "source_rotation", "driving_keypoints", "driving_rotation"},  # and the features
}
OUTPUTS = {
    "motion": {"rotation", "translation", "scale", "canonical", "delta", "confidence"},
    "reference": {"volume"},
    "render": {"picture"},
}


@dataclass(frozen=True)
class Shape:
    """What the graphs of a pack agree on."""

    size: int  # side of the coded square, pixels
    keypoints: int
    scene: int  # nodes a side of the scene's mesh, 0 for a renderer that takes none


def build_pack(
    graphs: Path, tables: Path, detector: Path, card: Path, out: Path, *, name: str, version: str, force: bool = False,
    view: ViewRange | None = None,
) -> Pack:  # fmt: skip
    """Write a verified pack to ``out``; an existing one is replaced only with ``force``, when all went well.

    view: how far its heads may be turned, as benchmarks.free_view measures it; None says nothing about it.
    """
    check_out(out, force)
    sources = {f"{graph}.onnx": graphs / f"{graph}.onnx" for graph in GRAPHS}
    sources |= {"detector.onnx": detector, "tables.json": tables, CARD: card}
    missing = [str(path) for path in sources.values() if not path.is_file()]
    if missing:
        raise PackError(f"{', '.join(missing)} cannot be found; a pack needs {', '.join(sources)}.")
    shape = check_graphs(graphs)
    fitted, nodes = _table_shape(tables)
    if fitted != shape.keypoints:
        raise PackError(
            f"{tables} was fitted to {fitted} keypoints and the graphs have {shape.keypoints}; run export.fit_tables."
        )
    if nodes != shape.scene:
        raise PackError(
            f"{tables} was fitted to a scene of {nodes} x {nodes} nodes and render.onnx takes {shape.scene} x "
            f"{shape.scene}; run export.motion_tracks with --scene {shape.scene} and export.fit_tables on its tracks."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / "new"
        folder.mkdir()
        for file, path in sources.items():
            shutil.copyfile(path, folder / file)
            if file.endswith(".onnx"):
                graph = _load(path)
                strip_traces(graph)
                onnx.save(graph, folder / file)
        pack = write_manifest(folder, name=name, version=version, size=shape.size, keypoints=shape.keypoints, view=view)
        _open(pack, tables, detector)
        move_into_place(folder, out, Path(scratch) / "old")
    return load_pack(out)


def check_out(out: Path, force: bool) -> None:
    """Raise PackError unless a pack may be written to ``out``: nothing is there, or with ``force`` another pack."""
    if out.exists() and not force:
        raise PackError(f"{out} exists; --force replaces it.")
    if out.exists() and not (out / "manifest.json").is_file():
        raise PackError(f"{out} is no model pack, and --force replaces nothing else; give --out another name.")


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except DecodeError as error:
        raise PackError(f"{path} is not an ONNX file ({error}); a pack's networks are .onnx files.") from error


def _open(pack: Pack, tables: Path, detector: Path) -> None:
    """Read what load_pack only hashes. Raises PackError that names the source of an unusable file."""
    try:
        assert pack.tables
    except PackError as error:
        raise PackError(f"{tables} is not a table file of export.fit_tables: {error}.") from error
    session = open_session(pack.graph("detector"), threads=1)
    if session.input_shapes.keys() != {"image"} or set(session.output_names) != {"heatmap", "box"}:
        raise PackError(
            f"{detector} takes {', '.join(session.input_shapes)} and gives {', '.join(session.output_names)}; a face "
            "detector takes image and gives heatmap and box: the bundled pack's detector.onnx is one."
        )


def move_into_place(folder: Path, out: Path, old: Path) -> None:
    """Rename ``folder`` to ``out``; what is there goes to ``old`` first, and back when the rename fails."""
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise


def check_graphs(folder: Path) -> Shape:
    """The shape of three graphs that have a pack's tensors and fit together."""
    sessions = {name: open_session(folder / f"{name}.onnx", threads=1) for name in GRAPHS}
    for name, session in sessions.items():
        lacking = (INPUTS[name] - session.input_shapes.keys()) | (OUTPUTS[name] - set(session.output_names))
        if lacking:
            raise PackError(f"{folder / name}.onnx lacks the tensors {', '.join(sorted(lacking))}; use export.to_onnx.")
    render = sessions["render"].input_shapes
    offered = {*sessions["reference"].output_names, "image", *INPUTS["render"], SCENE}
    if not render.keys() <= offered:
        raise PackError(f"render.onnx wants {', '.join(sorted(render.keys() - offered))}, which nothing else gives.")
    size, keypoints = _fixed(sessions["reference"], "image", 3), _fixed(sessions["render"], "source_keypoints", 1)
    if _fixed(sessions["motion"], "image", 3) != size:
        raise PackError(f"motion.onnx takes another picture size than reference.onnx ({size}); export them together.")
    nodes = _fixed(sessions["render"], SCENE, 1) if SCENE in render else 0
    if math.isqrt(nodes) ** 2 != nodes or nodes == 1:
        raise PackError(f"{SCENE} of render.onnx has {nodes} nodes, which are no square mesh; use export.to_onnx.")
    return Shape(size, keypoints, math.isqrt(nodes))


def _fixed(session: Session, name: str, axis: int) -> int:
    size = session.input_shapes[name][axis]
    if not isinstance(size, int):
        raise PackError(f"Axis {axis} of the input {name!r} is {size!r}; only the batch may vary. Use export.to_onnx.")
    return size


def _table_shape(tables: Path) -> tuple[int, int]:
    """Keypoints, and nodes a side of the scene."""
    try:
        data = json.loads(tables.read_text("utf-8"))
        return int(data["keypoints"]), int(data.get("scene", 0))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise PackError(
            f"{tables} is not a table file of export.fit_tables ({type(error).__name__}: {error})."
        ) from error


def _view(text: str) -> ViewRange:
    try:
        return ViewRange.parse(json.loads(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="export.build_pack", description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="folder with motion.onnx, reference.onnx, render.onnx")
    parser.add_argument("--tables", type=Path, required=True, help="tables.json of export.fit_tables")
    parser.add_argument("--detector", type=Path, required=True, help="detector.onnx")
    parser.add_argument("--card", type=Path, required=True, help="the model card, Markdown")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="default: the folder's name")
    parser.add_argument("--version", default="0.1.0")
    parser.add_argument("--view", type=_view, metavar="JSON", help="how far heads may be turned: a manifest's 'view'")
    parser.add_argument("--force", action="store_true", help="replace an existing pack")
    o = parser.parse_args(arguments)
    try:
        pack = build_pack(
            o.onnx, o.tables, o.detector, o.card, o.out, name=o.name or o.out.name, version=o.version, force=o.force,
            view=o.view,
        )  # fmt: skip
    except (NeuralCodecError, OSError) as error:
        print(f"export.build_pack: {reason(error)}", file=sys.stderr)
        return 1
    total = sum(path.stat().st_size for path in pack.folder.iterdir())
    print(f"{pack.folder}  id {pack.id.hex()}  {total:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A model pack: the folder of graphs, tables and manifest that both ends must share. Safe files only; opens no network
but to check that the manifest fits.

The manifest names every file with its SHA-256; the pack's id, the first 8 bytes of a hash over those hashes, travels
in the stream header, so a stream can never be shown by the wrong networks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import PackError
from .packet import SIZE_MAX, SIZE_MIN, SIZE_STEP
from .quantizer import MotionTables
from .runtime.engine import write_whole
from .view import ViewRange

MANIFEST_FORMAT = 1
GRAPHS = ("motion.onnx", "reference.onnx", "render.onnx", "detector.onnx")
TABLES = "tables.json"
BUNDLED = Path(__file__).parent / "packs"
DEFAULT = "portrait"


@dataclass(frozen=True)
class Pack:
    """A verified pack. ``id``: 8 bytes, equal only for equal files."""

    folder: Path
    name: str
    version: str
    size: int  # side of the coded square, pixels
    keypoints: int
    id: bytes
    files: Mapping[str, str]
    view_range: ViewRange = field(default_factory=ViewRange)  # how far heads may be turned; no part of the id

    def graph(self, name: str) -> bytes:
        """The ONNX graph "motion", "reference", "render" or "detector"."""
        return self.file(f"{name}.onnx")

    def file(self, name: str) -> bytes:
        """What a file of the manifest holds. PackError where it is not that of the id any more: files are read when
        they are first needed."""
        return _verified(self.folder, name, self.files[name])

    @cached_property
    def tables(self) -> MotionTables:
        return MotionTables.load(self.file(TABLES), str(self.folder / TABLES))

    @property
    def scene(self) -> int:
        """Nodes a side of the scene's mesh (neuralcodec.scene), 0 for a pack that knows no scene."""
        return self.tables.scene


def load_pack(source: str | Path | None = None) -> Pack:
    """Open and verify a pack: a folder, the name of a bundled pack, or None for the default one.

    Raises PackError when a file is missing or differs from the manifest.
    """
    if source is not None and not isinstance(source, str | os.PathLike):
        raise ValueError(f"pack is {source!r:.40}; expected a folder, the name of a bundled pack, or None.")
    folder = Path(source) if source is not None else BUNDLED / DEFAULT
    if not os.path.isdir(folder) and os.path.isdir(BUNDLED / folder.name) and len(folder.parts) == 1:
        folder = BUNDLED / folder.name
    manifest = _read_manifest(folder)
    files: dict[str, str] = manifest["files"]
    for name, wanted in files.items():
        _verified(folder, name, wanted)
    view_range = ViewRange.parse(manifest["view"]) if "view" in manifest else ViewRange()
    return Pack(
        folder.absolute(), str(manifest["name"]), str(manifest["version"]), int(manifest["size"]),
        int(manifest["keypoints"]), pack_id(files), files, view_range,
    )  # fmt: skip


def check_graphs(pack: Pack) -> None:
    """Open a pack's graphs on the CPU, which :func:`load_pack` only hashes; PackError where the manifest or the tables
    say another size or number of keypoints. Both are no part of the hashes."""
    from .runtime.session import open_session

    said = {"size": pack.size, "keypoints": pack.keypoints}
    for graph, tensor, axis, key in (
        ("motion", "image", 3, "size"),
        ("reference", "image", 3, "size"),
        ("render", "source_keypoints", 1, "keypoints"),
    ):
        shape = open_session(pack.graph(graph), threads=1).input_shapes.get(tensor, ())
        found = shape[axis] if len(shape) > axis else "nothing of the kind"
        if found != said[key]:
            raise PackError(
                f"The manifest of {pack.folder} says {key} {said[key]}, {graph}.onnx takes {found}: install the pack "
                "again, or build it with export.build_pack."
            )
    if pack.tables.keypoints != pack.keypoints:
        raise PackError(
            f"The manifest of {pack.folder} says keypoints {pack.keypoints}, {TABLES} was fitted to "
            f"{pack.tables.keypoints}: install the pack again, or build it with export.build_pack."
        )


def bundled_packs() -> Iterator[str]:
    """Names of the packs inside this installation."""
    return (path.parent.name for path in sorted(BUNDLED.glob("*/manifest.json")))


def pack_id(files: Mapping[str, str]) -> bytes:
    """First 8 bytes of the SHA-256 over the canonical JSON of the file hashes, without those of texts."""
    coding = {name: digest for name, digest in files.items() if not name.endswith(".md")}
    return hashlib.sha256(json.dumps(coding, sort_keys=True, separators=(",", ":")).encode()).digest()[:8]


def write_manifest(
    folder: Path, *, name: str, version: str, size: int, keypoints: int, view: ViewRange | None = None
) -> Pack:
    """Hash the graphs, tables and texts of ``folder`` into its manifest.json (atomically) and return the pack.

    view: how far its heads may be turned, as ``benchmarks.free_view`` measures it; None keeps what it said before.
    """
    missing = [file for file in (*GRAPHS, TABLES) if not (folder / file).is_file()]
    if missing:
        raise PackError(f"{folder} lacks {', '.join(missing)}; a pack needs them all.")
    files = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if p.name in (*GRAPHS, TABLES) or (p.suffix == ".md" and p.is_file())  # what else lies there changes no id
    }
    manifest = {
        "format": MANIFEST_FORMAT,
        "name": name,
        "version": version,
        "size": size,
        "keypoints": keypoints,
        "files": files,
    }
    if view is None and (folder / "manifest.json").is_file():
        before = _read_manifest(folder).get("view")
        view = None if before is None else ViewRange.parse(before)
    if view is not None:
        manifest["view"] = view.as_dict()
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=2).encode())
    return load_pack(folder)


def _verified(folder: Path, name: str, wanted: str) -> bytes:
    """A file of a pack, whose SHA-256 is to be ``wanted``."""
    path = folder / name
    if not path.is_file():
        raise PackError(f"The pack {folder} has no {name}, which its manifest names; install the pack again.")
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise PackError(f"{path} cannot be read ({problem.strerror}).") from problem
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise PackError(
            f"{path} has SHA-256 {found[:12]}.., its manifest says {wanted[:12]}..: install the pack again."
        )
    return data


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError as problem:
        raise PackError(
            f"{folder} is not a model pack: manifest.json cannot be read ({problem.strerror})."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise PackError(f"{path} is not JSON ({problem}); install the pack again.") from problem
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise PackError(f"{path} is not a manifest of format {MANIFEST_FORMAT}; this release reads no other.")
    files = manifest.get("files")
    needed = {*GRAPHS, TABLES}
    if not isinstance(files, dict) or not needed <= files.keys() or any(Path(name).name != name for name in files):
        raise PackError(f"{path} must list {', '.join(sorted(needed))} as plain file names; install the pack again.")
    if not all(isinstance(digest, str) for digest in files.values()):
        raise PackError(f"{path} must give every file's SHA-256 as text; install the pack again.")
    if not all(
        isinstance(manifest.get(key), kind)
        for key, kind in (("name", str), ("version", str), ("size", int), ("keypoints", int))
    ):
        raise PackError(f"{path} lacks name, version, size or keypoints; install the pack again.")
    if manifest["size"] not in range(SIZE_MIN, SIZE_MAX + 1, SIZE_STEP) or manifest["keypoints"] < 1:
        raise PackError(
            f"{path} says size {manifest['size']} and keypoints {manifest['keypoints']}; a size is a multiple of "
            f"{SIZE_STEP} from {SIZE_MIN} to {SIZE_MAX}, and there is at least one keypoint: install the pack again."
        )
    if "view" in manifest:
        try:
            ViewRange.parse(manifest["view"])
        except ValueError as problem:
            raise PackError(f"{path}: {problem}; install the pack again.") from problem
    return manifest

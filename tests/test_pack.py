import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuralcodec.cli import main
from neuralcodec.errors import PackError
from neuralcodec.pack import BUNDLED, GRAPHS, TABLES, bundled_packs, check_graphs, load_pack, pack_id, write_manifest
from neuralcodec.view import ViewRange

MANIFEST = "manifest.json"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUNDLED / "portrait", tmp_path / "pack"))


def test_the_bundled_pack_is_whole_and_small() -> None:
    pack = load_pack()
    assert "portrait" in bundled_packs() and pack.name == "portrait"
    assert (pack.size, pack.keypoints, pack.tables.keypoints) == (256, 30, 30)
    assert load_pack("portrait").id == pack.id and len(pack.id) == 8
    assert sum(p.stat().st_size for p in pack.folder.iterdir()) <= 15_000_000
    assert not any(p.suffix in {".pt", ".pth", ".pkl"} for p in pack.folder.iterdir())
    assert "Misuse" in (pack.folder / "MODEL_CARD.md").read_text("utf-8")


@pytest.mark.parametrize(("file", "coding"), [("tables.json", True), ("MODEL_CARD.md", False)])
def test_the_id_depends_on_every_byte_that_codes(copy: Path, file: str, coding: bool) -> None:
    """A correction in the card is another file, which is noticed, but breaks no stream."""
    before = load_pack(copy).id
    (copy / file).write_text((copy / file).read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(PackError, match=rf"{file} has SHA-256 .* manifest says"):
        load_pack(copy)
    assert (write_manifest(copy, name="portrait", version="0.1.0", size=256, keypoints=30).id != before) == coding


def test_a_manifest_says_how_far_heads_turn_and_it_is_no_part_of_the_id(copy: Path) -> None:
    before = load_pack(copy)
    sized = {"name": "portrait", "version": "0.1.0", "size": 256, "keypoints": 30}
    narrow = ViewRange(5, 5, 5, 0.1, 0.1, 0.5)
    assert write_manifest(copy, **sized, view=narrow).view_range == narrow  # type: ignore[arg-type]
    assert write_manifest(copy, **sized).view_range == narrow  # type: ignore[arg-type]  # kept
    assert load_pack(copy).id == before.id
    manifest = json.loads((copy / MANIFEST).read_text("utf-8"))
    del manifest["view"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert load_pack(copy).view_range == ViewRange()
    (copy / MANIFEST).write_text(json.dumps(manifest | {"view": {"yaw": "wide"}}))
    with pytest.raises(PackError, match="'view' must be an object of"):
        load_pack(copy)


def test_what_lies_in_the_folder_of_a_pack_is_no_part_of_it(copy: Path) -> None:
    before = load_pack(copy)
    (copy / ".DS_Store").write_bytes(b"a folder was opened")
    (copy / "render.onnx.bak").write_bytes(b"an older one")
    (copy / "notes.md").mkdir()
    after = write_manifest(copy, name=before.name, version=before.version, size=before.size, keypoints=before.keypoints)
    assert (after.id, after.files) == (before.id, before.files)


def test_a_manifest_that_cannot_be_written_leaves_the_pack_as_it_was(copy: Path) -> None:
    """What was left of it would have been part of the pack, and of its id, from the next manifest on."""
    resource = pytest.importorskip("resource")
    sized = {"name": "portrait", "version": "0.1.0", "size": 256, "keypoints": 30}
    before, there = load_pack(copy), sorted(copy.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError):
            write_manifest(copy, **sized)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(copy.iterdir()) == there and load_pack(copy) == before
    (copy / ".manifest.json.1.part").write_text("{")  # a writer was killed
    assert write_manifest(copy, **sized).id == before.id  # type: ignore[arg-type]


def test_the_id_does_not_depend_on_the_order_of_files() -> None:
    assert pack_id({"a": "1", "b": "2"}) == pack_id({"b": "2", "a": "1"}) != pack_id({"a": "2", "b": "1"})


@pytest.mark.parametrize("name", ["motion.onnx", "render.onnx", "tables.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(PackError, match=f"has no {name}"):
        load_pack(copy)
    with pytest.raises(PackError, match=f"lacks {name}"):
        write_manifest(copy, name="x", version="1", size=256, keypoints=30)


def test_a_pack_that_changes_while_it_is_open_is_one_sentence(copy: Path) -> None:
    """Graphs are read when they are first needed: those of another pack would come under the id of this one."""
    pack = load_pack(copy)
    assert pack.graph("motion") == (copy / "motion.onnx").read_bytes()
    (copy / "motion.onnx").write_bytes((copy / "detector.onnx").read_bytes())
    with pytest.raises(PackError, match=r"motion.onnx has SHA-256 .* manifest says"):
        pack.graph("motion")
    (copy / TABLES).write_text((copy / TABLES).read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(PackError, match=r"tables.json has SHA-256 .* manifest says"):
        assert pack.tables
    shutil.rmtree(copy)
    with pytest.raises(PackError, match="has no render.onnx"):
        pack.graph("render")


def test_a_pack_stays_where_it_was_opened(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    pack = load_pack(copy.name)
    monkeypatch.chdir("/")
    assert pack.graph("motion") == (copy / "motion.onnx").read_bytes()


def test_a_file_that_cannot_be_read_is_one_sentence(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)  # those who run tests may be allowed everything
    with pytest.raises(PackError, match=r"cannot be read \(Permission denied\)"):
        load_pack(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "not a manifest of format 1"),
        ({"files": {}}, "must list"),
        ({"files": dict.fromkeys((*GRAPHS, TABLES), 0)}, "SHA-256 as text"),
        ({"size": "256"}, "lacks name, version, size"),
        ({"size": True}, "says size True and keypoints 30; a size is a multiple of 16 from 64 to 1024"),
        ({"size": 0}, "says size 0 "),
        ({"size": 10**9}, "says size 1000000000 "),
        ({"size": 250}, "says size 250 "),
        ({"keypoints": 0}, "and keypoints 0; .* there is at least one keypoint"),
        ({"files": {"../motion.onnx": "0"}}, "must list"),
    ],
)
def test_a_bad_manifest_is_one_sentence(copy: Path, change: dict[str, object], words: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text("utf-8"))
    (copy / MANIFEST).write_text(json.dumps({**manifest, **change}), "utf-8")
    with pytest.raises(PackError, match=words):
        load_pack(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 512}, "says size 512, motion.onnx takes 256"),
        ({"keypoints": 20}, "says keypoints 20, render.onnx takes 30"),
    ],
)
def test_a_manifest_that_its_graphs_do_not_fit_is_no_verified_pack(
    copy: Path, change: dict[str, int], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", "verify", str(copy)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("files match the manifest")
    manifest = json.loads((copy / MANIFEST).read_text("utf-8"))
    (copy / MANIFEST).write_text(json.dumps({**manifest, **change}), "utf-8")
    assert main(["pack", "verify", str(copy)]) == 1
    assert sentence in capsys.readouterr().err
    with pytest.raises(PackError, match=sentence):
        check_graphs(load_pack(copy))


def test_tables_of_other_keypoints_are_no_verified_pack(copy: Path) -> None:
    pack = load_pack(copy)
    pack.__dict__["tables"] = SimpleNamespace(keypoints=20)  # the property's cache
    with pytest.raises(PackError, match="says keypoints 30, tables.json was fitted to 20"):
        check_graphs(pack)


def test_files_cannot_be_named_outside_the_pack(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text("utf-8"))
    manifest["files"]["../outside"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(PackError, match="plain file names"):
        load_pack(copy)


def test_no_pack_there(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="is not a model pack"):
        load_pack(tmp_path)
    with pytest.raises(PackError, match="File name too long"):  # nor can it be looked for where others may not look
        load_pack("a" * 300)
    (tmp_path / MANIFEST).write_text("{", "utf-8")
    with pytest.raises(PackError, match="is not JSON"):
        load_pack(tmp_path)
    (tmp_path / MANIFEST).write_text("[" * 200_000, "utf-8")
    with pytest.raises(PackError, match="is not JSON"):
        load_pack(tmp_path)


def test_no_shipped_graph_tells_whose_machine_wrote_it() -> None:
    for path in (BUNDLED / "portrait").glob("*.onnx"):
        content = path.read_bytes()
        assert b'.py", line' not in content and b"site-packages" not in content, path.name

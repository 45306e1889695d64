"""The commands that fit tables to clips and streams: bad input is one sentence, and nothing half written is left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import fit_frame_header, fit_tables, motion_tracks
from neuralcodec.container import ContainerWriter
from neuralcodec.errors import PackError
from neuralcodec.pack import load_pack
from neuralcodec.packet import StreamHeader, Update
from neuralcodec.quantizer import MotionTables

VECTORS = Path(__file__).parent / "vectors"


def test_tables_of_a_track(tmp_path: Path) -> None:
    with np.load(VECTORS / "track_a.npz") as stored:
        np.savez(tmp_path / "a.npz", flat=stored["flat"][:60], canonical=stored["canonical"])
    out = tmp_path / "new" / "tables.json"
    assert fit_tables.main([str(tmp_path / "a.npz"), "--out", str(out)]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["tables.json"]
    assert MotionTables.load(out).keypoints == len(np.load(VECTORS / "track_a.npz")["canonical"])


FLAT, CANONICAL = np.zeros((20, 16)), np.zeros((3, 3))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "No such file"),
        (b"junk", "is not a track of export.motion_tracks, or it is cut short"),
        (b"", "is not a track"),
        ({"flat": FLAT}, "is not a track"),
        ({"flat": np.zeros(()), "canonical": CANONICAL}, "is not a track"),
        ({"flat": FLAT, "canonical": np.zeros((4, 3))}, "K and M as in the other tracks"),
        ({"flat": np.zeros((20, 20)), "canonical": CANONICAL}, "K and M as in the other tracks"),
        ({"flat": np.zeros((20, 19)), "canonical": np.zeros((4, 3))}, "K and M as in the other tracks"),
        ({"flat": FLAT, "canonical": CANONICAL, "fresh": np.zeros(21, bool)}, "fresh .21,."),
    ],
)
def test_a_track_that_is_none_is_named(arrays: Any, words: str, tmp_path: Path, capsys: Any) -> None:
    good, bad, out = tmp_path / "good.npz", tmp_path / "bad.npz", tmp_path / "tables.json"
    np.savez(good, flat=FLAT, canonical=CANONICAL)
    if isinstance(arrays, bytes):
        bad.write_bytes(arrays)
    elif arrays is not None:
        np.savez(bad, **arrays)
    for command in ([str(good), str(bad)], [str(good), "--validate", str(bad)]):
        assert fit_tables.main([*command, "--out", str(out)]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "bad.npz" in message
        assert re.search(words, message) and not out.exists()


def test_a_compressed_track_that_is_damaged_is_one_sentence(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bad.npz", flat=np.sin(np.arange(640)).reshape(40, 16), canonical=CANONICAL)
    whole = (tmp_path / "bad.npz").read_bytes()
    for at, wrong in ((60, bytes(20)), (whole.index(b"PK\1\2") + 10, b"\x63\0")):  # numbers; how they are compressed
        (tmp_path / "bad.npz").write_bytes(whole[:at] + wrong + whole[at + len(wrong) :])
        with pytest.raises(PackError, match="bad.npz is not a track of export.motion_tracks, or it is .* damaged"):
            fit_tables.load_tracks([tmp_path])


def test_no_tracks_and_no_streams(tmp_path: Path, capsys: Any) -> None:
    assert fit_tables.main([str(tmp_path), "--out", str(tmp_path / "t.json")]) == 1
    assert "No usable motion track" in capsys.readouterr().err
    np.savez(tmp_path / "short.npz", flat=FLAT[:2], canonical=CANONICAL)
    assert fit_tables.main([str(tmp_path / "short.npz"), "--out", str(tmp_path / "t.json")]) == 1
    assert "short.npz: not finite, or fewer than 3 frames\n" in capsys.readouterr().err
    assert fit_frame_header.main([str(tmp_path), "--out", str(tmp_path / "t.json")]) == 1
    assert "holds no .ncv file" in capsys.readouterr().err


def test_a_stream_that_begins_inside_a_chain_is_one_sentence(tmp_path: Path, capsys: Any) -> None:
    with (tmp_path / "late.ncv").open("wb") as file:
        writer = ContainerWriter(file, StreamHeader(bytes(8), 256, 256, (1, 25), 1, 256))
        writer.write(Update(3, 0, 1, b"hash", b"frame"))
    assert fit_frame_header.main([str(tmp_path / "late.ncv"), "--out", str(tmp_path / "table.json")]) == 1
    assert "late.ncv begins inside a chain; give streams of which nothing is missing." in capsys.readouterr().err
    assert not (tmp_path / "table.json").exists()


def test_motion_tracks_names_what_it_cannot_read(tmp_path: Path, capsys: Any) -> None:
    graphs, clips, out = str(load_pack().folder), tmp_path / "clips", tmp_path / "out"
    clips.mkdir()

    def refused(onnx: str, *more: str) -> str:
        assert motion_tracks.main([str(clips), "--onnx", onnx, "--out", str(out), *more]) == 1
        message: str = capsys.readouterr().err
        assert message.count("\n") == 1 and not out.exists()
        return message

    assert "holds no .mp4 clip" in refused(graphs)
    (clips / "a.mp4").write_bytes(b"junk")
    assert "motion.onnx is not there" in refused(str(clips))
    assert "a.mp4 is not a video that can be read" in refused(graphs)
    assert "--scene is 1;" in refused(graphs, "--scene", "1")

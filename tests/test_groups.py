"""Figures by group of clips: the right clips in each group, plain words where they are too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich")

from benchmarks import clips, faces, groups, regions
from benchmarks.groups import Labels

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "validation.json"


def measured(clip: str, psnr: float = 25.0, **more: Any) -> dict[str, Any]:
    face = {
        "landmark_px": 1.0, "mouth_error": 0.01, "mouth_range": 0.1, "closed": 10, "closed_shown": 5, "opened": 90,
        "opened_shown": 90, "identity": 0.8,
    }  # fmt: skip
    return {"clip": clip, "sha256": "0", "psnr": psnr, "ms_ssim": 0.9, "face": face, **more}


def named(*glasses: str, others: tuple[str, ...] = ()) -> Labels:
    return Labels({"glasses": "glasses"}, {**dict.fromkeys(glasses, ["glasses"]), **dict.fromkeys(others, ())}, {})


def lines(results: list[dict[str, Any]], given: Labels) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in groups.table(results, given).split("\n")[2:]]
    return {row[0]: row[1:] for row in rows}


def test_every_validation_clip_is_labelled_and_every_hand_has_its_frames() -> None:
    given = groups.labels()
    frames = {r["clip"]: r["frames"] for r in json.loads(RECORD.read_text("utf-8"))["clips"]}
    assert set(given.clips) == set(frames)
    assert {name for name, labels in given.clips.items() if "hand" in labels} == set(given.hands)
    assert all(0 <= first < end <= frames[name] for name, spans in given.hands.items() for first, end in spans)


def test_the_record_in_the_repository_gives_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    groups.main([str(RECORD)])
    shown = capsys.readouterr().out
    clip_count = len(json.loads(RECORD.read_text("utf-8"))["clips"])
    assert f"| all clips | {clip_count} |" in shown
    assert all(f"| {meaning} | " in shown for meaning in groups.labels().names.values())


def test_a_group_stands_beside_all_other_labelled_clips() -> None:
    results = [measured(name, psnr) for name, psnr in (("a", 20.0), ("b", 22.0), ("c", 30.0), ("unknown", 99.0))]
    rows = lines(results, named("a", "b", others=("c",)))
    assert rows["all clips"][:2] == ["4", "42.75"]
    assert rows["glasses"][:2] == ["2", "21.00"] and rows["all others"][:2] == ["1", "30.00"]


def test_fewer_than_three_clips_on_either_side_give_no_conclusion() -> None:
    low, high = [measured(n, 20.0) for n in "abc"], [measured(n, 30.0) for n in "def"]
    few = "no conclusion: fewer than 3 clips"
    assert groups.verdict(low[:2], high) == groups.verdict(low, high[:2]) == groups.verdict([], high) == few
    assert groups.verdict(low, high) == "-10.0 (-10.0 to -10.0)" and groups.verdict(high, low).startswith("+10.0")
    mixed = [measured(n, psnr) for n, psnr in zip("abcd", (20.0, 40.0, 20.0, 40.0), strict=True)]
    low_edge, high_edge = groups.verdict(mixed, high)[6:-1].split(" to ")
    assert -10 <= float(low_edge) < 0 < float(high_edge) <= 10


def test_figures_of_a_group_are_those_of_its_clips() -> None:
    rows = [measured("a"), measured("b", spots={"mouth": {"frames": 3, "psnr": 21.5, "freeze_psnr": 9.0}})]
    assert groups.row("x", rows) == ["x", "2", "25.00", "0.900", "1.00", "10.0%", "75.0% (20)", "0.80", "21.50"]
    staring = measured("c")
    staring["face"] = {**staring["face"], "closed": 0, "closed_shown": 0}
    assert groups.row("x", [staring])[6] == "none closed"
    assert groups.row("x", []) == ["x", "0", *[""] * 7]
    faceless = {k: v for k, v in measured("d").items() if k != "face"}
    assert groups.row("x", [faceless])[2:] == ["25.00", "0.900", "", "", "", "", ""]


def test_skin_and_turns_are_split_at_the_published_and_named_limits() -> None:
    angles = {"very light": 56.0, "light": 42.0, "intermediate": 41.0, "tan": 11.0, "brown": 10.0, "dark": -40.0}
    results = [measured(name, look={"ita": angle, "yaw": 20.5}) for name, angle in angles.items()]
    found = {name: {r["clip"] for r in inside} for name, inside, _ in groups.groups(results, named())}
    light, middle, dark = (next(v for k, v in found.items() if word in k) for word in ("light or", "tan", "dark"))
    assert light == {"very light", "light"} and middle == {"intermediate", "tan"} and dark == {"brown", "dark"}
    turned = [len(inside) for name, inside, _ in groups.groups(results, named()) if "turns" in name]
    assert turned == [6, 0]
    assert not [name for name, *_ in groups.groups([measured("a")], named()) if "skin" in name or "turns" in name]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "no record"), ('{"clips": [{"clip": "a"}]}', "no record")],
)
def test_what_is_no_record_is_one_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=sentence):
        groups.main([str(path)])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{}", "no file of labels"), ('{"labels": {}, "clips": {"a": ["hat"]}, "hands": {}}', "hat without saying")],
)
def test_what_are_no_labels_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=sentence):
        groups.main([str(RECORD), "--labels", str(path)])


@pytest.mark.skipif(bool(faces.unavailable()), reason=faces.unavailable() or "installed")
def test_looks_come_from_the_clips_that_were_measured_and_no_others(tmp_path: Path) -> None:
    skimage = pytest.importorskip("skimage")
    path = tmp_path / "a.mkv"
    _write_film(path, [skimage.data.astronaut()[:256, 96:352]] * 6)
    result = measured("a", sha256="other")
    with pytest.raises(SystemExit, match="not the file that was measured"):
        groups.add_looks([result], tmp_path)
    result["sha256"] = clips.read(path).sha256
    known = measured("b", look={"yaw": 1.0})
    groups.add_looks([result, known], tmp_path)
    assert set(result["look"]) == {"yaw", "ita"} and result["look"]["ita"] > regions.SKIN["tan"]
    assert known["look"] == {"yaw": 1.0}


def _write_film(path: Path, frames: list[Any]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=clips.FPS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))

"""Raw video to training footage: cuts, segments, clips, label files. A drawn disc and mesh stand in for people."""

from __future__ import annotations

import csv
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.face import Face, Square
from neuralcodec.media import VideoReader, VideoWriter
from neuralcodec.motion import rotation_matrix
from neuralcodec.training.prepare import (
    CutFinder,
    Mesh,
    Row,
    fit_pose,
    label_all,
    main,
    make_labels,
    parser,
    prepare,
    split_segments,
    write_manifest,
)

MESH = Mesh.load()


# -- labels


@settings(max_examples=50, deadline=None)
@given(
    st.floats(-60, 60), st.floats(-40, 40), st.floats(-40, 40), st.floats(0.05, 3), st.floats(-2, 2), st.floats(-2, 2)
)
def test_fit_pose_recovers_any_pose(yaw, pitch, roll, scale, tx, ty):
    rotation, translation = rotation_matrix(yaw, pitch, roll).astype(float), np.array([tx, ty, -0.9])
    got, size, place = fit_pose(scale * MESH.reference @ rotation + translation, MESH.reference)
    assert np.allclose(got, rotation, atol=1e-5) and np.allclose(place, translation, atol=1e-5)
    assert size == pytest.approx(scale, rel=1e-5)


def test_fit_pose_never_mirrors():
    rotation, _, _ = fit_pose(MESH.reference * [-1, 1, 1], MESH.reference)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_fit_pose_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    points = MESH.reference + rng.normal(0, 0.05, MESH.reference.shape)
    rotation, scale, place = fit_pose(points, MESH.reference)
    best = ((scale * MESH.reference @ rotation + place - points) ** 2).sum()
    for _ in range(200):
        other = rotation @ rotation_matrix(*rng.normal(0, 2, 3)).astype(float)
        error = (scale * rng.normal(1, 0.02) * MESH.reference @ other + place + rng.normal(0, 0.01, 3) - points) ** 2
        assert error.sum() > best


def drawn_mesh(scale: float, rotation: np.ndarray, translation: list[float]) -> np.ndarray:
    points = np.full((478, 3), 0.25)
    points[MESH.rigid] = (scale * MESH.reference @ rotation + translation + 1) / 2
    return points


def test_label_arrays_have_the_format_of_the_footage():
    rotation = rotation_matrix(20, -5, 3).astype(float)
    labels = make_labels([drawn_mesh(0.7, rotation, [0.1, -0.13, -0.95]), None], MESH)
    assert {name: (array.dtype.name, array.shape) for name, array in labels.items()} == {
        "landmarks": ("float16", (2, 152, 3)),
        "found": ("bool", (2,)),
        "rotation": ("float32", (2, 3, 3)),
        "scale": ("float32", (2,)),
        "translation": ("float32", (2, 3)),
    }
    assert labels["found"].tolist() == [True, False]
    assert labels["scale"][0] == pytest.approx(0.7) and np.allclose(labels["translation"][0], [0.1, -0.13, -0.95])
    assert np.allclose(labels["rotation"][0], rotation, atol=1e-6)
    assert not any(array[1].any() for array in labels.values())
    shared = [(MESH.kept.index(point), row) for row, point in enumerate(MESH.rigid) if point in MESH.kept]
    placed = 0.7 * MESH.reference @ rotation + [0.1, -0.13, -0.95]
    assert np.allclose(labels["landmarks"][0][[k for k, _ in shared]], placed[[r for _, r in shared]], atol=2e-3)
    assert np.allclose(np.delete(labels["landmarks"][0], [k for k, _ in shared], 0), -0.5)


def test_clips_and_photographs_without_labels_get_some(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "neuralcodec.training.prepare.label_clip", lambda clip, target: asked.append((clip, target)) or 1.0
    )
    for name in ("train/256/film.mp4", "train/labels/film.npz", "stills/she.jpg", "stills_cutout/he.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    label_all(parser().parse_args(["--labels-only", "--out", str(tmp_path)]))
    wanted = [(tmp_path / "stills/she.jpg", tmp_path / "stills/labels/she.npz"),
              (tmp_path / "stills_cutout/he.jpg", tmp_path / "stills_cutout/labels/he.npz")]  # fmt: skip
    assert sorted(asked) == wanted


def test_without_mediapipe_one_sentence_names_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    video = draw(tmp_path / "a.mp4", [(200, 150)] * 3)
    assert main([str(video), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("prepare: ") and "mediapipe==0.10.21" in said and "numpy<2" in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


# -- cuts and segments


def shot(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((20, 20, 1), np.uint8))


def test_cuts_are_found_and_movement_is_not():
    rng = np.random.default_rng(5)
    frames = []
    for n in range(60):
        image = np.roll(shot(n // 20), 2 * n, axis=1).astype(int) + rng.integers(-8, 8, (120, 160, 3))
        frames.append(image.clip(0, 255).astype(np.uint8))
    finder = CutFinder()
    assert [n for n, frame in enumerate(frames) if finder.is_cut(frame)] == [20, 40]


def looks(*spans: tuple[int, int, Face | None]) -> list[tuple[int, Face | None]]:
    return [(n, face) for start, stop, face in spans for n in range(start, stop, 5)]


HERE, THERE = Face(600, 300, 100), Face(900, 300, 100)
SIZE = (1280, 720)


def spans(seen, cuts=(0, 100), least=20, most=600):
    return [(s.start, s.stop) for s in split_segments(list(cuts), seen, SIZE, least, most)]


def test_one_steady_shot_is_one_segment_framed_as_in_training():
    segment = split_segments([0, 100], looks((0, 100, HERE)), SIZE, 20, 600)[0]
    assert (segment.start, segment.stop, segment.face_side) == (0, 100, 200)
    assert np.allclose(HERE.box_in(segment.square), [0, -0.126, 0.7], atol=0.01)


def test_segments_end_where_the_face_goes():
    assert spans(looks((0, 100, HERE)), cuts=(0, 40, 100)) == [(0, 40), (40, 100)]
    assert spans(looks((0, 50, HERE), (50, 100, THERE))) == [(0, 50), (50, 100)]
    assert spans(looks((0, 50, HERE), (50, 70, None), (70, 100, HERE))) == [(0, 46), (70, 100)]
    assert spans(looks((0, 50, HERE), (50, 55, None), (55, 100, HERE))) == [(0, 100)]
    assert spans(looks((0, 15, HERE), (15, 100, None))) == []
    assert spans(looks((0, 100, None))) == []


def test_long_shots_are_split():
    got = spans(looks((0, 100, HERE)), most=40)
    assert got[0][0] == 0 and got[-1][1] == 100 and all(stop - start <= 40 for start, stop in got)


def test_a_face_that_wanders_off_its_square_starts_another():
    seen: list[tuple[int, Face | None]] = [(n, Face(300 + 4 * n, 300, 100)) for n in range(0, 100, 5)]
    for segment in split_segments([0, 100], seen, SIZE, 5, 600):
        for number, face in seen:
            if face and segment.start <= number < segment.stop:
                assert abs(face.box_in(segment.square)[:2] - [0, -0.126]).max() < 0.6


def test_a_head_that_does_not_fit_into_the_picture_is_left_out():
    assert spans([(n, Face(640, 360, 370)) for n in range(0, 100, 5)]) == []


# -- the command, with a white disc for a face


class DiscFinder:
    """Finds a white disc of radius 40."""

    def detect(self, image: np.ndarray, near: Square | None = None) -> list[Face]:
        ys, xs = np.nonzero(image.min(-1) > 230)
        return [Face(float(xs.mean()), float(ys.mean()), 40.0, 1.0)] if len(xs) > 2000 else []


def draw(path: Path, places: list[tuple[int, int] | None], fps: int = 25) -> Path:
    y, x = np.mgrid[0:240, 0:400]
    with VideoWriter(path, 400, 240, Fraction(1, fps)) as writer:
        for number, place in enumerate(places):
            image = np.stack([x // 2, y // 2, np.full_like(x, 60)], -1).astype(np.uint8)
            if place:
                image[(x - place[0]) ** 2 + (y - place[1]) ** 2 < 1600] = 255
            writer.write(image, number)
    return path


def options(out: Path, *more: str):
    return parser().parse_args(["x", "--out", str(out), "--min-seconds", "0.4", *more])


def cut(video: Path, opts) -> list[Row]:
    return prepare(video, video.stem, opts, DiscFinder())  # type: ignore[arg-type]


def test_a_video_becomes_a_clip_with_the_face_in_its_place(tmp_path):
    video = draw(tmp_path / "talk.mp4", [(200 + n % 3, 120) for n in range(30)])
    rows = cut(video, options(tmp_path / "out"))
    assert [(row.file, row.frames, row.start, row.has_512) for row in rows] == [("talk_0.mp4", 30, 0, "false")]
    with VideoReader(tmp_path / "out/train/256/talk_0.mp4") as clip:
        frames = [image for _, image in clip]
        assert 1 / (clip.time_base * clip.frame_duration) == 25
    assert len(frames) == 30 and frames[0].shape == (256, 256, 3)
    ys, xs = np.nonzero(frames[0].min(-1) > 200)
    assert abs(xs.mean() - 127.5) < 4 and abs(ys.mean() - (127.5 - 0.126 * 128)) < 4
    assert not (tmp_path / "out/train/512").exists()


def test_parts_are_separate_clips_with_the_right_frames(tmp_path):
    places = [(150, 120)] * 20 + [None] * 15 + [(260, 120)] * 20
    rows = cut(draw(tmp_path / "two.mp4", places), options(tmp_path / "out", "--split", "val"))
    assert [row.start for row in rows] == [0, 35] and rows[1].frames == 20
    with VideoReader(tmp_path / "out/val/256/two_1.mp4") as clip:
        assert all((image.min(-1) > 200).sum() > 500 for _, image in clip)


def test_fast_video_is_thinned(tmp_path):
    rows = cut(draw(tmp_path / "fast.mp4", [(200, 120)] * 60, fps=60), options(tmp_path / "out"))
    assert (rows[0].frames, rows[0].fps) == (30, 30.0)


def test_clips_are_not_replaced_without_force(tmp_path):
    video = draw(tmp_path / "talk.mp4", [(200, 120)] * 15)
    cut(video, options(tmp_path / "out"))
    before = (tmp_path / "out/train/256/talk_0.mp4").stat().st_mtime_ns
    with pytest.raises(Exception, match="exists"):
        cut(video, options(tmp_path / "out"))
    assert (tmp_path / "out/train/256/talk_0.mp4").stat().st_mtime_ns == before
    cut(video, options(tmp_path / "out", "-f"))
    assert not list((tmp_path / "out").rglob("*.part"))


def test_clips_stay_until_there_is_something_to_take_their_place(tmp_path, capsys):
    old = [tmp_path / "out/train" / name for name in ("256/talk_0.mp4", "256/talk_1.mp4", "labels/talk_0.npz")]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"kept")
    video = draw(tmp_path / "talk.mp4", [None] * 15)
    command = [str(video), "--no-labels", "-f", "--out", str(tmp_path / "out")]
    assert main([*command, "--detector", str(tmp_path / "none.onnx")]) == 1
    assert main(command) == 1
    assert "shows no face" in capsys.readouterr().err and all(path.read_bytes() == b"kept" for path in old)
    video.unlink()
    cut(draw(video, [(200, 120)] * 15), options(tmp_path / "out", "-f"))
    assert old[0].read_bytes() != b"kept" and not old[1].exists() and not old[2].exists()


def test_no_face_and_no_video_are_sentences(tmp_path, capsys):
    with pytest.raises(Exception, match="no face"):
        cut(draw(tmp_path / "empty.mp4", [None] * 15), options(tmp_path / "out"))
    with pytest.raises(Exception, match="--min-seconds 0.4 are 10 frames of .*empty.mp4, more than --max-frames 9"):
        cut(tmp_path / "empty.mp4", options(tmp_path / "out", "--max-frames", "9"))
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(Exception, match="not a video"):
        cut(tmp_path / "text.mp4", options(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("*.mp4"))
    for bad in (tmp_path / "missing.mp4", tmp_path / "out"):
        bad.with_suffix("").mkdir(exist_ok=True)
        assert main([str(bad), "--no-labels", "--out", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_same_names_are_refused(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw(tmp_path / folder / "talk.mp4", [None])
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--no-labels", "--out", str(tmp_path / "out")]) == 1
    assert "rename" in capsys.readouterr().err


def test_usage_errors_exit_with_two(tmp_path):
    numbers = [["a.mp4", "--min-seconds", seconds] for seconds in ("nan", "inf", "0")]
    for words in ([], ["a.mp4", "--labels-only"], ["--labels-only", "--no-labels"], *numbers):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--out", str(tmp_path)])
        assert stop.value.code == 2


def test_manifest_rows_are_added_and_replaced(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(path, [Row("train", "a_0.mp4", "a", 0, 10, 25.0, "0 0 256", 100, "false")])
    write_manifest(path, [Row("train", "a_0.mp4", "a", 0, 20, 25.0, "0 0 256", 100, "false"),
                          Row("val", "b_0.mp4", "b", 0, 30, 25.0, "0 0 256", 100, "true")])  # fmt: skip
    with path.open(newline="") as file:
        assert [(row["file"], row["frames"]) for row in csv.DictReader(file)] == [("a_0.mp4", "20"), ("b_0.mp4", "30")]

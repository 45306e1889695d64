"""Cropping, pasting, detector maps, the policy of the following crop; the real detector where the pack is there."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.face import (
    CropFollower,
    Face,
    FaceDetector,
    Square,
    away,
    crop,
    decode_faces,
    followed,
    frames_head,
    head_square,
    paste,
    place_of,
    resize,
    square_at,
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted as Linux shows them")
def test_scaling_starts_no_threads() -> None:
    """A program that forks would lose them, and one of many sizes would keep some for each."""
    resize(noise(480, 480), 256, 256)
    before = len(os.listdir("/proc/self/task"))
    for side in range(300, 340, 4):
        resize(noise(side, side), 256, 256)
    assert len(os.listdir("/proc/self/task")) == before
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(resize, (noise(480, 480), 256, 256)).get(timeout=60).shape == (256, 256, 3)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 37.0 + y / 53.0 + c) * 90 + 128 for c in range(3)]
    return np.stack(waves, axis=-1).astype(np.uint8)


# -- crop ----------------------------------------------------------------------------------------------------


def test_whole_square_at_its_own_size_is_exact_and_a_copy():
    image = noise(256, 256)
    out = crop(image, Square.covering((256, 256)), 256)
    assert np.array_equal(out, image)
    out[:] = 0
    assert image.any()


def test_inner_square_of_the_asked_size_is_exact():
    image = noise(300, 400)
    assert np.array_equal(crop(image, Square(31, 17, 128), 128), image[17:145, 31:159])


def test_outside_repeats_the_edge():
    image = noise(40, 60)
    out = crop(image, Square(-10, -20, 80), 80)
    assert np.array_equal(out[20:60, 10:70], image)
    assert np.array_equal(out[:20, 10:70], np.broadcast_to(image[0], (20, 60, 3)))
    assert np.array_equal(out[20:60, :10], np.broadcast_to(image[:, :1], (40, 10, 3)))


@settings(deadline=None)
@given(st.integers(-70, 70), st.integers(-70, 70), st.integers(1, 90))
def test_every_pixel_outside_is_the_nearest_inside(x, y, side):
    image = noise(30, 40)
    rows, columns = np.arange(y, y + side).clip(0, 29), np.arange(x, x + side).clip(0, 39)
    assert np.array_equal(crop(image, Square(x, y, side), side), image[rows[:, None], columns])


@pytest.mark.parametrize("color", [(200, 30, 77), (0, 0, 0), (255, 255, 255), (255, 0, 0), (3, 250, 128)])
def test_flat_colors_survive_resampling_exactly(color):
    image = np.empty((719, 1279, 3), np.uint8)
    image[:] = color
    for size in (128, 256, 512):
        assert np.array_equal(np.unique(crop(image, Square(101, 0, 719), size).reshape(-1, 3), axis=0), [color])


def test_channels_do_not_mix():
    image = np.zeros((500, 500, 3), np.uint8)
    image[..., 0] = noise(500, 500)[..., 0]
    out = crop(image, Square(0, 0, 500), 256)
    assert out[..., 0].std() > 5 and not out[..., 1:].any()


def test_shrinking_does_not_alias():
    image = np.zeros((1024, 1024, 3), np.uint8)
    image[::2] = 255  # lines one pixel high must become even grey
    out = crop(image, Square(0, 0, 1024), 256)[4:-4].astype(int)
    assert abs(out - 128).max() <= 2


def test_resampling_keeps_geometry():
    y, x = np.mgrid[0:600, 0:600] / 599 * 255
    image = np.stack([x, y, x], axis=-1).astype(np.uint8)
    out = crop(image, Square(0, 0, 600), 150).astype(float)
    centers = (np.arange(150) + 0.5) * 4 - 0.5
    assert abs(out[75, :, 0] - centers / 599 * 255)[3:-3].max() < 1.5
    assert abs(out[:, 75, 1] - centers / 599 * 255)[3:-3].max() < 1.5


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(-90, 90), st.integers(-90, 90), st.integers(1, 140),
    st.sampled_from([1, 5, 8, 16, 31, 64]),
)  # fmt: skip
def test_any_square_of_any_picture_gives_a_picture(width, height, x, y, side, size):
    image = noise(height, width)
    out = crop(image, Square(x, y, side), size)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8
    assert paste(image, Square(x, y, side), out).shape == image.shape


def test_four_k_and_views_with_strides():
    image = np.broadcast_to(smooth(1, 3840), (2160, 3840, 3))  # zero strides: nothing may assume contiguity
    out = crop(image, Square(840, 0, 2160), 256)
    assert out.shape == (256, 256, 3) and out.std() > 10


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)),
                                 np.zeros((0, 4, 3), np.uint8)])  # fmt: skip
def test_wrong_pictures_say_what_was_expected(bad):
    with pytest.raises(ValueError, match="expected uint8 RGB"):
        crop(bad, Square(0, 0, 4), 4)


# -- paste ---------------------------------------------------------------------------------------------------


def test_paste_of_the_whole_picture_is_exact():
    image = noise(120, 90)
    square = Square.covering((90, 120))
    assert np.array_equal(paste(np.zeros_like(image), square, crop(image, square, 120)), image)


def test_paste_fades_at_inner_edges_only():
    canvas = np.zeros((200, 300, 3), np.uint8)
    white = np.full((64, 64, 3), 255, np.uint8)
    out = paste(canvas, Square(0, 40, 100), white, feather=0.1)
    assert (out[60:120, 0:80] == 255).all()  # touches the left border: no fade there
    assert not out[:40].any() and not out[140:].any() and not out[:, 100:].any()
    column = out[40:60, 50, 0].astype(int)
    assert 0 < column[0] < 40 and (np.diff(column) >= 0).all() and column[-1] == 255
    assert not canvas.any()


def test_paste_outside_the_canvas_changes_nothing():
    canvas = noise(50, 50)
    assert np.array_equal(paste(canvas, Square(60, 0, 20), noise(20, 20)), canvas)


def test_crop_then_paste_returns_nearly_the_same_picture():
    image = smooth(480, 640)
    square = Square(100, 50, 384)
    out = paste(image, square, crop(image, square, 256))
    assert abs(out.astype(int) - image).max() <= 3


def test_resize_never_returns_its_input():
    image = noise(16, 16)
    assert not np.shares_memory(resize(image, 16, 16), image)


# -- squares and boxes ---------------------------------------------------------------------------------------


@given(st.floats(-500, 2000), st.floats(-500, 2000), st.floats(4, 900), st.integers(8, 3000))
def test_box_units_round_trip(x, y, half, side):
    square = Square(13, -7, side)
    back = Face.from_box(square, Face(x, y, half).box_in(square))
    assert math.isclose(back.center_x, x, abs_tol=1e-3 * side) and math.isclose(back.half_side, half, rel_tol=1e-4)


def test_head_square_puts_the_face_where_training_had_it():
    face = Face(640, 360, 100)
    square = head_square(face, (1280, 720))
    assert np.allclose(face.box_in(square), [0, -0.126, 0.70], atol=0.01)


@given(st.floats(0, 1280), st.floats(0, 720), st.floats(4, 340))
def test_head_square_stays_inside_when_it_fits(x, y, half):
    square = head_square(Face(x, y, half), (1280, 720))
    assert 0 <= square.x <= 1280 - square.side and 0 <= square.y <= 720 - square.side


def test_head_square_of_a_huge_face_keeps_the_head():
    square = head_square(Face(300, 200, 260), (640, 400))
    assert square.side == 520 and square.y == -60


# -- detector maps -------------------------------------------------------------------------------------------


def maps(*faces: tuple[int, int, float, float]) -> tuple[np.ndarray, np.ndarray]:
    heat = np.zeros((20, 20), np.float32)
    box = np.zeros((3, 20, 20), np.float32)
    for row, column, half_cells, score in faces:
        heat[row, column] = score
        box[:, row, column] = 0.25, -0.25, math.log(half_cells)
    return heat, box


def test_decode_reads_center_and_size():
    x, y, half, score = decode_faces(*maps((5, 12, 4.0, 0.9)), 0.5)[0]
    assert (x, y, half) == pytest.approx((12.75 / 10 - 1, 5.25 / 10 - 1, 0.4))
    assert score == pytest.approx(0.9)


def test_decode_keeps_one_face_per_place_and_drops_the_weak():
    heat, box = maps((5, 12, 4.0, 0.9), (7, 12, 4.0, 0.8), (15, 3, 2.0, 0.7), (18, 18, 2.0, 0.4))
    assert decode_faces(heat, box, 0.5)[:, 3] == pytest.approx([0.9, 0.7])


class Script:
    """A session that answers one prepared list of faces after the other and remembers what it was fed."""

    input_shapes: Mapping[str, tuple[int | str, ...]] = {"image": ("B", 3, 160, 160)}
    output_names = ("heatmap", "box")
    provider = "script"

    def __init__(self, *answers: list[tuple[int, int, float, float]]) -> None:
        self._answers = list(answers)
        self.fed: list[np.ndarray] = []

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.fed.append(feeds["image"])
        heat, box = maps(*self._answers[min(len(self.fed), len(self._answers)) - 1])
        return {"heatmap": heat[None, None], "box": box[None]}

    def place(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        return dict(arrays)


CLOSER = (9, 9, 6.0, 0.9)  # how the second look sees a face that the first saw right


@pytest.mark.parametrize("size", [(16, 16), (720, 1280), (1281, 721), (2160, 3840), (5, 300), (1, 1)])
def test_detector_letterboxes_any_size(size):
    session = Script([(9, 9, 4.0, 0.9)], [CLOSER])
    height, width = size
    faces = FaceDetector(session).detect(np.full((height, width, 3), 255, np.uint8))
    assert all(fed.shape == (1, 3, 160, 160) and fed.dtype == np.float32 for fed in session.fed)
    assert session.fed[0][0, :, 80, 80] == pytest.approx(1.0)
    shown = (session.fed[0][0, 0] > 0.9).sum(axis=(0, 1)) / 160**2
    assert shown == pytest.approx(min(size) / max(size), abs=0.01)
    if max(size) > 8:
        assert faces[0].half_side == pytest.approx(0.4 * max(size) / 2, rel=0.1)
        assert faces[0].center_x == pytest.approx(width / 2, abs=max(size) * 0.05)


def test_the_second_look_is_zoomed_on_the_first():
    image = np.zeros((720, 1280, 3), np.uint8)
    image[300:340, 700:740] = 255
    session = Script([(10, 11, 0.5, 0.4)], [CLOSER])
    face = FaceDetector(session).detect(image)[0]
    assert (session.fed[1][0, 0] > 0.9).sum() > 1000 > (session.fed[0][0, 0] > 0.9).sum()
    assert face.score == pytest.approx(0.9)


def test_a_face_that_the_second_look_denies_is_none():
    assert FaceDetector(Script([(9, 9, 4.0, 0.9)], [])).detect(noise(160, 160)) == []
    assert FaceDetector(Script([(9, 9, 4.0, 0.9)], [(2, 2, 6.0, 0.9)])).detect(noise(160, 160)) == []
    assert FaceDetector(Script([(9, 9, 4.0, 0.9)], [(9, 9, 1.5, 0.9)])).detect(noise(160, 160)) == []


def test_detector_sorts_by_score_times_size():
    session = Script([(3, 3, 1.0, 0.95), (14, 14, 4.0, 0.6)], [(9, 9, 6.0, 0.55)], [(9, 9, 6.0, 0.99)])
    assert [round(face.score, 2) for face in FaceDetector(session).detect(noise(320, 320))] == [0.55, 0.99]


def test_detector_near_looks_once_and_only_there():
    session = Script([(9, 9, 5.0, 0.9)])
    face = FaceDetector(session).detect(noise(720, 1280), near=Square(200, 100, 320))[0]
    assert face.half_side == pytest.approx(80) and face.center_x == pytest.approx(200 + 9.75 / 20 * 320)
    assert len(session.fed) == 1


# -- the following crop --------------------------------------------------------------------------------------

SIZE = (1280, 720)


def run(follower: CropFollower, faces: list[Face | None], fps: float = 25.0) -> list[tuple[Square, bool]]:
    return [(follower.update(SIZE, face, n / fps), follower.moved) for n, face in enumerate(faces)]


def test_the_square_stands_still_in_the_dead_zone():
    def sway(n: int) -> Face:
        return Face(640 + 25 * math.sin(n), 300 + 20 * math.cos(n * 0.7), 100 + 8 * math.sin(n * 0.3))

    seen = run(CropFollower(), [sway(n) for n in range(100)])
    assert len({square for square, _ in seen}) == 1
    assert [moved for _, moved in seen].count(True) == 1 and seen[0][1]


def test_it_jumps_after_the_face_once_it_stays_away_and_reports():
    seen = run(CropFollower(), [Face(500, 300, 90)] * 20 + [Face(560, 300, 90)] * 100)
    moves = [n for n, (_, moved) in enumerate(seen) if moved]
    assert moves == [0, 27]  # a quarter of a second of patience
    assert len({square for square, _ in seen[:27]}) == len({square for square, _ in seen[27:]}) == 1
    assert seen[27][0].x - seen[0][0].x == 60


@pytest.mark.parametrize(
    ("face", "x", "y", "side"),
    [
        (Face(560, 310, 90), 60, 0, 0),  # up and down it is still near its place
        (Face(505, 360, 90), 0, 60, 0),
        (Face(560, 360, 90), 60, 60, 0),
        (Face(505, 305, 120), -38, -33, 86),  # another size: all of it
        (Face(520, 320, 95), 0, 0, 0),
    ],
)
def test_a_square_follows_only_where_the_head_has_strayed(face: Face, x: int, y: int, side: int) -> None:
    stands = head_square(Face(500, 300, 90), SIZE)
    there = followed(head_square(face, SIZE), stands, SIZE)
    assert (there.x - stands.x, there.y - stands.y, there.side - stands.side) == (x, y, side)


def test_a_square_that_follows_stays_in_the_picture() -> None:
    stands = Square(900, 300, 300)
    there = followed(head_square(Face(1250, 460, 100), SIZE), stands, SIZE)
    assert there == Square(980, 300, 300)


def test_a_place_is_that_of_its_square():
    square = Square(-3, 17, 250)
    assert square_at(place_of(square)) == square
    assert away(place_of(Square(22, 17, 250)), place_of(square)) == pytest.approx((0.2, 0.0))


def test_a_single_wild_box_moves_nothing():
    faces: list[Face | None] = [Face(500, 300, 90)] * 30
    faces[10] = Face(560, 330, 120)
    assert len({square for square, _ in run(CropFollower(), faces)}) == 1


def test_a_cut_jumps_and_reports():
    seen = run(CropFollower(), [Face(300, 300, 90)] * 5 + [Face(900, 300, 90)] * 5)
    assert seen[5][1] and seen[5][0].x - seen[4][0].x == 600
    assert not seen[6][1] and seen[6][0] == seen[5][0]


def test_a_lost_face_holds_the_square():
    seen = run(CropFollower(), [Face(500, 300, 90)] * 5 + [None] * 25 + [Face(500, 300, 90)])
    assert len({square for square, _ in seen}) == 1
    assert [moved for _, moved in seen].count(True) == 1 and seen[0][1]


def test_without_any_face_the_middle_is_coded():
    assert CropFollower().update(SIZE, None, 0.0) == Square(280, 0, 720)


def test_a_square_head_and_shoulders_picture_is_coded_whole_for_good():
    follower = CropFollower()
    assert follower.update((256, 256), Face(128, 112, 90), 0.0) == Square(0, 0, 256) and follower.whole
    assert follower.update((256, 256), Face(60, 60, 40), 1.0) == Square(0, 0, 256)
    assert follower.update((256, 256), None, 2.0) == Square(0, 0, 256) and not follower.moved


@pytest.mark.parametrize(
    ("size", "face", "whole"),
    [((512, 512), Face(256, 224, 180), True), ((512, 512), Face(256, 224, 80), False),
     ((512, 512), Face(100, 224, 150), False), ((640, 480), Face(320, 200, 180), False)],
)  # fmt: skip
def test_frames_head(size, face, whole):
    assert frames_head(face, size) is whole


def test_a_small_face_in_a_square_picture_is_followed():
    follower = CropFollower()
    square = follower.update((1000, 1000), Face(300, 300, 80), 0.0)
    assert not follower.whole and square.side == round(160 / 0.7)


def test_none_and_fixed_never_look_at_the_face():
    face = Face(100, 100, 50)
    assert CropFollower("none").update(SIZE, face, 0.0) == Square(0, -280, 1280)
    assert CropFollower.parse("10,20,300").update(SIZE, face, 0.0) == Square(10, 20, 300)


@pytest.mark.parametrize("text", ["left", "1,2", "1,2,3,4", "1,2,x", "0,0,2", ""])
def test_unknown_crops_are_one_sentence(text):
    with pytest.raises(ValueError, match="expected"):
        CropFollower.parse(text)


def test_a_new_picture_size_starts_over():
    follower = CropFollower()
    follower.update(SIZE, Face(500, 300, 90), 0.0)
    square = follower.update((640, 360), Face(250, 150, 45), 0.04)
    assert follower.moved and square.x + square.side <= 640


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | st.tuples(st.floats(-50, 1330), st.floats(-50, 770), st.floats(2, 500)), max_size=60))
def test_every_walk_gives_usable_squares(path):
    follower = CropFollower()
    for n, step in enumerate(path):
        square = follower.update(SIZE, None if step is None else Face(*step), n / 25)
        assert 8 <= square.side <= 1280
        if square.side <= 720:
            assert 0 <= square.x <= 1280 - square.side and 0 <= square.y <= 720 - square.side


# -- the real network ----------------------------------------------------------------------------------------

PACK = Path(__file__).parents[1] / "neuralcodec" / "packs" / "portrait" / "detector.onnx"


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    pytest.importorskip("onnxruntime")
    runtime = pytest.importorskip("neuralcodec.runtime.session")
    return FaceDetector(runtime.open_session(PACK, device="cpu", threads=1))


@pytest.mark.parametrize(("top", "left", "side"), [(0, 0, 0), (100, 300, 400), (300, 850, 400)])
def test_finds_the_astronaut_wherever_it_is(detector, top, left, side):
    data = pytest.importorskip("skimage.data")
    astronaut = data.astronaut()
    image = astronaut
    scale, x, y = 1.0, 0.0, 0.0
    if side:
        image = np.full((720, 1280, 3), 90, np.uint8)
        image[top : top + side, left : left + side] = resize(astronaut, side, side)
        scale, x, y = side / 512, left, top
    face = detector.detect(image)[0]
    assert abs(face.center_x - (x + 222 * scale)) < 25 * scale  # her nose bridge, by eye
    assert abs(face.center_y - (y + 120 * scale)) < 30 * scale
    assert 40 * scale < face.half_side < 100 * scale


@pytest.mark.parametrize("name", ["coffee", "chelsea", "brick", "grass", "gravel", "page", "clock", "coins", "rocket"])
def test_finds_no_face_where_there_is_none(detector, name):
    data = pytest.importorskip("skimage.data")
    image = getattr(data, name)()
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=-1)
    assert detector.detect(image) == []


def test_finds_no_face_in_noise_black_or_white(detector):
    for image in (noise(360, 640), np.zeros((360, 640, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)):
        assert detector.detect(image) == []

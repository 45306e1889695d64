"""Figures of the places where talking heads go wrong, on pictures whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_faces import face

pytest.importorskip("rich")

from benchmarks import clips, faces, pose, regions, validation
from benchmarks.faces import Track

SIZE = 128
SHAPE = (SIZE, SIZE)


def grey(value: int = 100) -> Any:
    return np.full((*SHAPE, 3), value, np.uint8)


def painted(picture: Any, mask: Any, by: int) -> Any:
    result = picture.copy()
    result[mask] += np.uint8(by)
    return result


def decibels(error: float) -> float:
    return float(20 * np.log10(255 / error))


def turned(yaw: float, size: float = 30.0) -> Any:
    """68 landmarks of a mean head that turns by so many degrees towards the right, in the middle of the picture."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    points = np.zeros((68, 3))
    points[list(pose.HEAD)] = list(pose.HEAD.values())
    for cheek, side in zip(regions.CHEEKS, (-1, 1), strict=True):  # corners that the mean head lacks
        for number, place in zip(cheek, ((0.6, -0.2, 0), (0.5, -0.2, -0.1), (0.2, 0.5, -0.4), (0.4, 0.9, -0.2),
                                         (1.1, 0.8, 0.6), (1.2, 0.5, 0.7), (1.25, 0.2, 0.7), (1.3, -0.1, 0.8)),
                                 strict=True):  # fmt: skip
            if number not in pose.HEAD:
                points[number] = (side * place[0], *place[1:])
    return SIZE / 2 + size * (points @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]))[:, :2]


def film(points: list[Any]) -> Track:
    return Track(np.array(points, float), SIZE)


# --- places ---


def test_a_polygon_holds_the_pixels_inside_it() -> None:
    square = np.array([(2, 1), (6, 1), (6, 4), (2, 4)], float)
    mask = regions.polygon(square, (10, 12))
    assert mask.shape == (10, 12) and mask.sum() == 12 and mask[1:4, 2:6].all()
    assert (regions.polygon(square[::-1], (10, 12)) == mask).all()
    circle = 40 + 30 * np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 200, endpoint=False)])
    assert regions.polygon(circle, (80, 80)).sum() == pytest.approx(np.pi * 900, rel=0.01)
    assert regions.polygon(square - (4, 0), (10, 12)).sum() == 6  # half of it outside the picture
    assert not regions.polygon(square + 100, (10, 12)).any() and not regions.polygon(square[:1], (10, 12)).any()


@pytest.mark.parametrize("yaw", [-40.0, -10.0, 0.0, 25.0, 45.0])
def test_turns_are_measured_with_their_side(yaw: float) -> None:
    points = turned(yaw)
    assert regions.yaws(film([points])) == pytest.approx([yaw], abs=0.01)
    assert (points[30, 0] - SIZE / 2) * yaw >= 0  # the tip of the nose goes there


def test_an_open_mouth_is_compared_inside_the_lips_alone() -> None:
    points = face(mouth=0.1)
    points[list(regions.INNER_LIPS)] = [(40, 70), (45, 65), (50, 65), (55, 65), (60, 70), (55, 75), (50, 75), (45, 75)]
    inside = regions.polygon(points[list(regions.INNER_LIPS)], SHAPE)
    wrong_inside, wrong_outside = painted(grey(), inside, 10), painted(grey(), ~inside, 10)
    track = film([points, points, face(mouth=0.0)])
    spot = regions.spots([grey()] * 3, [wrong_inside, wrong_outside, wrong_inside], wrong_inside, track)["mouth"]
    assert list(spot.frames) == [0, 1]
    assert spot.psnr == pytest.approx([decibels(10), 100]) and spot.frozen == pytest.approx([decibels(10)] * 2)
    assert spot.figures() == pytest.approx({"frames": 2, "psnr": (decibels(10) + 100) / 2, "freeze_psnr": decibels(10)})


def test_closed_eyes_are_compared_around_the_eyes() -> None:
    track = film([face(eyes=0.3), face(eyes=0.3), face(eyes=0.05)])
    lids = np.zeros(SHAPE, bool)
    lids[18:23, 22:38] = lids[18:23, 62:78] = True  # eyes of 20 pixels at height 20
    found = regions.spots([grey()] * 3, [painted(grey(), lids, 40)] * 3, grey(), track)
    spot = found["eyes"]
    assert list(spot.frames) == [2] and decibels(40) < spot.psnr[0] < decibels(40) + 10 and spot.frozen[0] == 100
    elsewhere = np.zeros(SHAPE, bool)
    elsewhere[40:] = True
    assert regions.spots([grey()] * 3, [painted(grey(), elsewhere, 40)] * 3, grey(), track)["eyes"].psnr[0] == 100


@pytest.mark.parametrize(("yaw", "far"), [(30.0, "right"), (-30.0, "left")])
def test_the_far_cheek_is_the_one_that_turned_away(yaw: float, far: str) -> None:
    right = np.zeros(SHAPE, bool)
    right[:, int(turned(yaw)[30, 0]) :] = True  # beyond the tip of the nose
    wrong = painted(grey(), right if far == "right" else ~right, 20)
    track = film([turned(yaw), turned(10.0)])
    spot = regions.spots([grey()] * 2, [wrong] * 2, grey(), track)["far cheek"]
    assert list(spot.frames) == [0] and spot.psnr == pytest.approx([decibels(20)]) and spot.frozen[0] == 100
    near = painted(grey(), ~right if far == "right" else right, 20)
    assert regions.spots([grey()], [near], grey(), film([turned(yaw)]))["far cheek"].psnr[0] == 100


def test_frames_with_hands_are_whole_pictures_and_need_no_face() -> None:
    found = regions.spots([grey()] * 6, [grey(105)] * 6, grey(110), None, [(1, 3), (5, 99)])
    assert list(found) == ["hands"] and list(found["hands"].frames) == [1, 2, 5]
    assert found["hands"].figures() == pytest.approx({"frames": 3, "psnr": decibels(5), "freeze_psnr": decibels(10)})
    assert regions.spots([grey()] * 6, [grey()] * 6, grey(), None) == {}


# --- what stands still ---


def ramp(shift: float = 0.0, slope: float = 2.0) -> Any:
    columns = np.clip(20 + slope * (np.arange(SIZE // 2) + shift), 0, 255).astype(np.uint8)
    return np.tile(np.concatenate([columns, np.full(SIZE // 2, 40, np.uint8)])[None, :, None], (SIZE, 1, 3))


def test_a_background_that_swims_by_a_pixel_changes_by_its_slope() -> None:
    still, swimming = [grey()] * 30, [grey(100 + 3 * (i % 2)) for i in range(30)]
    found = regions.still(still, swimming, None)
    assert found == pytest.approx(
        {"share": 1.0, "change_original": 0, "change": 3, "jump_original": 0, "jump": 3}, abs=1e-3
    )
    textured = [ramp() for _ in range(30)]
    found = regions.still(textured, [ramp(shift=i % 2) for i in range(30)], None)
    assert 1.3 < found["change"] < 1.5 and found["change_original"] == 0  # 2 steps in the left half: 2 / sqrt(2)


def test_what_moves_in_the_original_is_no_background() -> None:
    moving = [grey() for _ in range(26)]
    for index, frame in enumerate(moving):
        frame[: SIZE // 2] = 60 + 4 * index
    wrong = [np.where(np.arange(SIZE)[:, None, None] < SIZE // 2, grey(3 * (i % 2)), grey()) for i in range(26)]
    found = regions.still(moving, wrong, None)
    assert found["change"] == 0 and found["share"] == pytest.approx(0.5, abs=0.02)
    flicker = [grey(50 + 40 * (i % 2)) for i in range(26)]
    assert regions.still(flicker, flicker, None) == {}


def test_the_face_itself_is_no_background() -> None:
    points = face()
    box = np.zeros(SHAPE, bool)
    box[: int(points[:, 1].max()) + 1, : int(points[:, 0].max()) + 1] = True
    swimming = [painted(grey(), box, 30 * (i % 2)) for i in range(26)]
    assert regions.still([grey()] * 26, swimming, None)["change"] > 5
    edge = regions.BLUR // 2  # the blur carries the box's rim so far out
    inner = box & np.roll(box, -edge, 0) & np.roll(box, -edge, 1)
    swimming = [painted(grey(), inner, 30 * (i % 2)) for i in range(26)]
    assert regions.still([grey()] * 26, swimming, film([points] * 26))["change"] == pytest.approx(0, abs=1e-3)


def test_one_jump_in_two_seconds_is_not_in_the_median() -> None:
    jumping = [grey(100 + 20 * (i >= 25)) for i in range(51)]
    found = regions.still([grey()] * 51, jumping, None)
    assert found["change"] == 0 and found["jump"] > 5


# --- how a clip looks ---


@pytest.mark.parametrize(
    ("colour", "angle"),  # from the CIELAB values of sRGB's primaries, as published everywhere: L*, b*
    [
        ((255, 0, 0), np.degrees(np.arctan2(53.24 - 50, 67.20))),
        ((0, 0, 255), np.degrees(np.arctan2(32.30 - 50, -107.86))),
        ((255, 255, 0), np.degrees(np.arctan2(97.14 - 50, 94.48))),
    ],
)
def test_typology_angles_of_known_colours(colour: tuple[int, int, int], angle: float) -> None:
    pixels = np.array([colour] * 5 + [(0, 0, 0)], np.uint8)  # one odd pixel does not move a median
    assert regions.typology_angle(pixels) == pytest.approx(angle, abs=0.05)


def test_darker_skin_has_a_lower_angle_and_its_class() -> None:
    light, tan, dark = (regions.typology_angle(np.array([c], np.uint8)) for c in ((240, 210, 190), (190, 140, 105),
                                                                                 (85, 55, 40)))  # fmt: skip
    assert light > regions.SKIN["light"] > tan > regions.SKIN["tan"] > regions.SKIN["brown"] > dark


def test_a_look_takes_the_cheeks_and_the_widest_turn() -> None:
    points = turned(0.0)
    frame = grey(20)
    for cheek in regions.CHEEKS:
        frame[regions.polygon(points[list(cheek)], SHAPE)] = (190, 140, 105)
    found = regions.look([frame] * 3, film([points, points, turned(-35.0)]))
    assert found["ita"] == pytest.approx(regions.typology_angle(np.array([(190, 140, 105)], np.uint8)))
    assert found["yaw"] == pytest.approx(35, abs=1)
    assert set(regions.look([frame], film([turned(35.0)]))) == {"yaw"}


# --- in the validation ---


def test_the_sheets_of_failures_hold_the_worst_frame_of_the_worst_clips(tmp_path: Path) -> None:
    pictures = validation.Pictures(tmp_path)
    shown = {}
    for number in range(validation.WORST + 1):
        frames = [grey(10 * number), grey(10 * number + 1), grey(10 * number + 2)]
        clip = clips.from_frames(str(number), [grey(), grey(), grey()])
        scores = {"far cheek": ([30.0 - number, 20.0 - number], [0, 2]), "mouth": ([40.0], [1])}
        pictures.failures(clip, frames, grey(), scores)
        shown[number] = frames
    rows = pictures.worst["far cheek"]
    assert [score for score, _ in rows] == [14.0, 15.0, 16.0, 17.0, 18.0, 19.0]
    freeze, before, after, difference = rows[0][1]
    assert (after == shown[6][2]).all() and (before == grey()).all() and (difference == grey(76)).all()
    pictures.save_failures()
    (sheet,) = clips.read(tmp_path / "worst-far-cheek.png").frames
    assert sheet.shape == (6 * (SIZE + 4) - 4, 4 * (SIZE + 4) - 4, 3)
    assert (tmp_path / "worst-mouth.png").exists()


def test_places_are_rows_of_the_table_over_the_clips_that_show_them() -> None:
    spot = {"frames": 10, "psnr": 20.0, "freeze_psnr": 12.0}
    results = [
        {"spots": {"mouth": spot}, "still": {"change": 1.0, "change_original": 0.2, "jump": 3.0, "jump_original": 0.4}},
        {"spots": {"mouth": {**spot, "psnr": 24.0}, "hands": spot}, "still": {}},
        {},
    ]
    rows = {figure: (measured, verdict) for figure, _, measured, verdict in validation.spot_rows(results)}
    assert rows["inside open mouths, dB; freeze (2 clips, 20 frames)"] == ("22.00; 12.00", "")
    assert rows["whole picture while a hand shows, dB; freeze (1 clips, 10 frames)"] == ("20.00; 12.00", "")
    assert [measured for figure, (measured, _) in rows.items() if figure.startswith("still")] == [
        "1.00; 0.20", "3.00; 0.40"
    ]  # fmt: skip
    assert len(rows) == 4 and validation.spot_rows([{}]) == []


@pytest.mark.skipif(bool(faces.unavailable()), reason=faces.unavailable() or "installed")
def test_a_real_face_turned_by_nobody_looks_to_the_front() -> None:
    skimage = pytest.importorskip("skimage")
    clip = clips.from_frames("astronaut looks", [skimage.data.astronaut()[:256, 96:352]])
    tracks = faces.tracks(clip, clip.frames)
    assert tracks is not None
    found = regions.look(clip.frames, tracks[0])
    assert found["yaw"] < 25 and regions.SKIN["tan"] < found["ita"] < 90

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuralcodec.gaze import EYES
from neuralcodec.lids import BEYOND, DEEP, OPEN, RISE, SHUT, UPPER, Lids, openings
from neuralcodec.motion import Array, MotionParams


def face(*left: float, usual: float = 0.03) -> tuple[MotionParams, Array]:
    """Eyes 0.1 wide, open by these shares of ``usual``: one for both or one each."""
    canonical = np.random.default_rng(1).normal(0, 0.2, (30, 3)).astype(np.float32)
    for (outer, inner, upper, lower, _), share in zip(EYES, left * (2 // len(left)), strict=True):
        canonical[inner] = canonical[outer] + [0.1, 0, 0]
        canonical[lower] = canonical[upper] + [0, share * usual, 0]
    return MotionParams(0, 0, 0, np.zeros(3, np.float32), 0.5, np.zeros((30, 3), np.float32)), canonical


def gaps(motion: MotionParams, canonical: Array, usual: float = 0.03) -> Array:
    points = canonical + motion.delta
    return np.array([points[lower, 1] - points[upper, 1] for _, _, upper, lower, _ in EYES]) / usual


@pytest.mark.parametrize(
    ("left", "sent"),
    [
        (1.1, 1.1), (1.0, 1.0), (0.91, 0.91), ((SHUT + OPEN) / 2, OPEN / 2), (SHUT, 0.0),
        (SHUT - DEEP / 2, -BEYOND / 2), (SHUT - DEEP, -BEYOND), (0.1, -BEYOND), (-0.1, -BEYOND), (-0.3, -0.3),
    ],  # fmt: skip
)
def test_lids_close_the_further_the_less_is_left(left: float, sent: float) -> None:
    lids = Lids()
    lids.closed(*face(1.0), 0.0)
    motion, canonical = face(left)
    found = lids.closed(motion, canonical, 0.0)  # no time has passed, so usual is what it was
    assert np.allclose(gaps(found, canonical), sent, atol=1e-5)
    moved = np.flatnonzero((found.delta != motion.delta).any(1)).tolist()
    assert moved == ([] if sent == left else [2, 3, 6, 7]) and not (found.delta - motion.delta)[:, [0, 2]].any()
    assert not motion.delta.any()  # what came in is as it was


def test_openings_are_of_the_face_as_it_is_now() -> None:
    motion, canonical = face(1.0)
    delta = np.zeros((30, 3), np.float32)
    for outer, inner, upper, _, _ in EYES:
        delta[upper, 1], delta[inner] = 0.02, canonical[inner] - canonical[outer]  # half shut, and twice as wide
    assert np.allclose(openings(motion, canonical), 0.3)
    assert np.allclose(openings(replace(motion, delta=delta), canonical), 0.05, atol=1e-6)


def test_the_upper_lid_does_most_of_the_closing() -> None:
    lids, (shut, canonical) = Lids(), face(SHUT)
    lids.closed(*face(1.0), 0.0)
    way = lids.closed(shut, canonical, 0.0).delta[:, 1]
    for _, _, upper, lower, _ in EYES:
        assert np.allclose([way[upper], way[lower]], np.array([UPPER, UPPER - 1]) * SHUT * 0.03, atol=1e-6)


def test_each_eye_closes_by_itself() -> None:
    lids = Lids()
    lids.closed(*face(1.0), 0.0)
    wink = face(0.2, 1.0)
    assert np.allclose(gaps(lids.closed(*wink, 0.0), wink[1]), [-BEYOND, 1], atol=1e-5)


def test_usual_follows_eyes_that_open_sooner_than_eyes_that_close() -> None:
    lids = Lids()
    shut = face(0.45)
    assert np.allclose(gaps(lids.closed(*shut, 0.0), shut[1]), 0.45, atol=1e-5)  # nothing else is known yet
    for frame in range(1, 76):  # the eyes open for three seconds
        lids.closed(*face(1.0), frame / 25)
    usual = 1 - 0.55 * np.exp(-3 / RISE)
    closed = lids.closed(*shut, 3.0)  # no time has passed since
    assert np.allclose(gaps(closed, shut[1]), -BEYOND * (SHUT * usual - 0.45) / DEEP, atol=1e-5)
    for second in range(4, 20):  # they stay half closed, as a smile's do: that is what this face is like
        smile = lids.closed(*shut, second)
    assert np.allclose(gaps(smile, shut[1]), 0.45, atol=1e-5)


def test_time_that_runs_back_changes_nothing_of_what_is_usual() -> None:
    lids, shut = Lids(), face(SHUT)
    lids.closed(*face(1.0), 5000.0)
    assert np.allclose(gaps(lids.closed(*shut, 0.0), shut[1]), 0.0, atol=1e-5)


@pytest.mark.parametrize("left", [0.0, -0.2])
def test_eyes_that_were_never_seen_open_stay_as_they_are(left: float) -> None:
    shut = face(left)
    assert np.allclose(gaps(Lids().closed(*shut, 0.0), shut[1]), left, atol=1e-4)


def test_other_layouts_of_keypoints_pass() -> None:
    motion = MotionParams(0, 0, 0, np.zeros(3, np.float32), 0.5, np.ones((15, 3), np.float32))
    assert Lids().closed(motion, np.zeros((15, 3), np.float32), 0.0) is motion

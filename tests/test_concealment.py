"""Concealment: named states, bounded guesses, and nearer to the truth than doing nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralcodec.concealment import COAST_FRAMES, Concealment, conceal, state_after
from neuralcodec.motion import MotionParams

TRACKS = [np.load(Path(__file__).parent / "vectors" / f"track_{name}.npz") for name in "ab"]


def pose(yaw: float, x: float = 0.0, roll: float = 2.0) -> MotionParams:
    return MotionParams(yaw, 1.0, roll, np.array([x, 0, 0], np.float32), 0.7, np.full((4, 3), 0.1, np.float32))


def test_states_in_order() -> None:
    names = [state_after(n) for n in (-1, 0, 1, COAST_FRAMES, COAST_FRAMES + 1, 10**9)]
    assert names == [
        Concealment.RECEIVED,
        Concealment.RECEIVED,
        Concealment.COASTING,
        Concealment.COASTING,
        Concealment.RESTING,
        Concealment.RESTING,
    ]


def test_nothing_missing_changes_nothing() -> None:
    last = pose(3.0)
    assert conceal(last, pose(2.0), 0) is last


def test_pose_runs_on_slows_down_and_stops() -> None:
    yaws = [conceal(pose(10.0, 0.2), pose(8.0, 0.1), n).yaw for n in range(COAST_FRAMES + 5)]
    steps = np.diff(yaws)
    assert (steps[:COAST_FRAMES] > 0).all() and (np.diff(steps) <= 1e-9).all()
    assert steps[COAST_FRAMES:] == pytest.approx(0)
    assert yaws[-1] < 10.0 + 2.0 + 1e-6, "never further than one frame's movement"
    assert conceal(pose(10.0, 0.2), pose(8.0, 0.1), 1).translation[0] == pytest.approx(0.25)


def test_expression_relaxes_to_rest() -> None:
    sizes = [float(np.abs(conceal(pose(0), None, n).delta).max()) for n in (0, 1, 10, 200)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(0.1) and sizes[-1] < 1e-4


@pytest.mark.parametrize("before", [True, False])
def test_the_scene_stays_as_it_was(before: bool) -> None:
    scene = np.full((9, 2), 0.2, np.float32)
    last, earlier = replace(pose(3.0), scene=scene), replace(pose(2.0), scene=-scene)
    for missing in (0, 1, 5, 300):
        shown = conceal(last, earlier if before else None, missing)
        assert np.array_equal(shown.scene, scene) and shown.delta.shape == last.delta.shape
    plain = conceal(pose(3.0), pose(2.0) if before else None, 5)
    assert np.array_equal(conceal(last, earlier if before else None, 5).flat()[: len(plain.flat())], plain.flat())


def test_without_history_the_pose_stays() -> None:
    assert conceal(pose(12.0), None, 5).yaw == pytest.approx(12.0)


def test_turning_through_the_back_takes_the_short_way() -> None:
    assert conceal(pose(-179.0), pose(179.0), 1).yaw == pytest.approx(-178.0)
    assert conceal(pose(0, roll=-179.0), pose(0, roll=179.0), 1).roll == pytest.approx(-178.0)


def test_long_gaps_stay_finite() -> None:
    assert np.isfinite(conceal(pose(10.0), pose(-10.0), 10**6).flat()).all()


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_nearer_than_holding_on_real_motion(gap: int) -> None:
    held, guessed = [], []
    for data in TRACKS:
        frames, canonical = [MotionParams.from_flat(f) for f in data["flat"].astype(np.float64)], data["canonical"]
        for i in range(1, len(frames) - gap):
            truth = frames[i + gap].keypoints(canonical)[:, :2]
            held.append(np.square(frames[i].keypoints(canonical)[:, :2] - truth).mean())
            guessed.append(np.square(conceal(frames[i], frames[i - 1], gap).keypoints(canonical)[:, :2] - truth).mean())
    assert np.mean(guessed) < np.mean(held)

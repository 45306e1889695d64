from __future__ import annotations

from dataclasses import replace

import numpy as np

from neuralcodec.motion import Array, MotionParams
from neuralcodec.smoothing import MotionSmoother

RATE = 25


def run(tracks: Array) -> Array:
    """Filter flat motions (N, 7 + 3K), one a frame."""
    smoother = MotionSmoother()
    return np.array([smoother.smooth(MotionParams.from_flat(v), i / RATE).flat() for i, v in enumerate(tracks)])


def still(frames: int, noise: float) -> Array:
    rng = np.random.default_rng(1)
    flat = np.tile(np.array([5, -3, 1, 0.1, 0.0, 0, np.log(0.7), *np.zeros(30)]), (frames, 1))
    return flat + rng.normal(size=flat.shape) * noise * np.array([1, 1, 1, *[0.004] * 4, *[0.004] * 30])


def test_the_first_motion_passes_unchanged_and_each_gives_one_at_once() -> None:
    motion = MotionParams.from_flat(still(1, 0.3)[0])
    assert MotionSmoother().smooth(motion, 7.0) is motion


def test_a_still_head_trembles_less() -> None:
    tracks = still(200, 0.3)
    out = run(tracks)[50:]
    before, after = (np.sqrt((np.diff(t, 2, axis=0) ** 2).mean(0)) for t in (tracks[50:], out))
    assert (after < 0.6 * before).all() and np.abs(out.mean(0) - tracks.mean(0)).max() < 0.05


def test_a_fast_turn_is_hardly_delayed() -> None:
    tracks = still(60, 0.0)
    tracks[:, 0] = np.clip(np.arange(60) - 20, 0, 15) * 3.0  # 75 degrees a second
    out = run(tracks)
    lag = (tracks[:, 0] - out[:, 0])[24:35]
    assert lag.max() < 3.0, "less than one frame behind at full speed"
    assert np.isclose(out[-1, 0], tracks[-1, 0], atol=0.1)


def test_a_talking_mouth_does_not_wake_up_the_brows() -> None:
    tracks = still(120, 0.3)
    alone = run(tracks)
    tracks[:, 7:10] += 0.1 * np.sin(np.arange(120))[:, None]
    talking = run(tracks)
    assert np.allclose(talking[:, 10:], alone[:, 10:]) and np.allclose(talking[:, :7], alone[:, :7])


def test_roll_goes_round_the_short_way() -> None:
    tracks = still(30, 0.0)
    tracks[:, 2] = np.where(np.arange(30) % 2, 179.5, -179.5)
    assert (np.abs(run(tracks)[:, 2]) > 179).all()


def test_gaps_cuts_of_time_and_another_pack_start_anew() -> None:
    a, b = (MotionParams.from_flat(still(1, 0.0)[0] + shift) for shift in (0.0, 0.2))
    for later in (0.0, -1.0, 5.0):
        smoother = MotionSmoother()
        smoother.smooth(a, 1.0)
        assert smoother.smooth(b, 1.0 + later) is b
    smoother = MotionSmoother()
    smoother.smooth(a, 0.0)
    short = MotionParams.from_flat(a.flat()[:-3])
    assert smoother.smooth(short, 0.04) is short


def test_the_scene_is_left_alone() -> None:
    """It is measured against the reference in every frame anew, and a new reference makes it jump."""
    tracks, dice = still(20, 0.3), np.random.default_rng(4)
    scenes = dice.normal(0, 0.1, (20, 9, 2)).astype(np.float32)
    smoother = MotionSmoother()
    out = [
        smoother.smooth(replace(MotionParams.from_flat(v), scene=scenes[i]), i / RATE) for i, v in enumerate(tracks)
    ]
    assert all(np.array_equal(motion.scene, scene) for motion, scene in zip(out, scenes, strict=True))
    heads = np.array([replace(motion, scene=np.zeros((0, 2), np.float32)).flat() for motion in out])
    assert np.array_equal(heads, run(tracks))

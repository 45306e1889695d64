from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuralcodec.motion import Array, MotionParams
from neuralcodec.smoothing import (
    APART,
    BLOCK,
    FADE,
    FADE_SECONDS,
    NEAR,
    ROUNDED_MOST,
    MotionSmoother,
    PictureFade,
    PictureSmoother,
    between,
)

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


@pytest.mark.parametrize("angle", [0, 2], ids=["yaw", "roll"])
def test_yaw_and_roll_go_round_the_short_way(angle: int) -> None:
    tracks = still(30, 0.0)
    tracks[:, angle] = np.where(np.arange(30) % 2, 179.5, -179.5)
    shown = np.abs(run(tracks)[:, angle])
    assert (shown > 179).all() and (shown[10:] > 179.6).all()  # calmed, as any other tremble


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


def test_nothing_of_what_was_before_a_new_start_is_left() -> None:
    slow, fast = (MotionParams.from_flat(still(1, 0.0)[0] + shift) for shift in (0.0, 0.3))
    smoother, fresh = MotionSmoother(), MotionSmoother()
    smoother.smooth(slow, 0.92)
    smoother.smooth(fast, 0.96)
    smoother.forget()
    for seconds, motion in ((1.0, slow), (1.04, fast)):
        assert np.array_equal(smoother.smooth(motion, seconds).flat(), fresh.smooth(motion, seconds).flat())


def test_a_head_that_comes_nearer_is_followed_as_one_that_leaves() -> None:
    steps = []
    for sign in (1, -1):
        tracks = still(30, 0.0)
        tracks[:, 6] += sign * 0.02 * np.arange(30)
        steps.append(sign * (run(tracks) - still(30, 0.0))[:, 6])
    assert np.allclose(*steps)


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


# --- pictures ---


def noisy(frames: int, steps: float) -> list[Array]:
    """A grey ramp under coding noise: blocks of 8 x 8 that are off by a few steps, others in every frame."""
    rng = np.random.default_rng(2)
    ramp = np.linspace(60, 190, 128)[None, :, None] + np.zeros((128, 128, 3))
    return [
        np.rint(ramp + np.kron(rng.normal(0, steps, (16, 16)), np.ones((8, 8)))[..., None]).astype(np.uint8)
        for _ in range(frames)
    ]


def test_noise_on_a_still_picture_flickers_less_and_comes_nearer_to_the_truth() -> None:
    pictures, smoother = noisy(30, 1.0), PictureSmoother()
    shown = [smoother.smooth(picture) for picture in pictures]
    assert np.array_equal(shown[0], pictures[0]) and {p.dtype for p in shown} == {np.dtype(np.uint8)}
    flicker, before = (np.abs(np.diff(np.array(p[5:], float), axis=0)).mean() for p in (shown, pictures))
    assert flicker < 0.7 * before
    truth = np.mean(pictures, axis=0)
    assert np.abs(shown[-1] - truth).mean() < 0.8 * np.abs(pictures[-1] - truth).mean()


def test_what_moves_is_shown_at_once_and_what_rests_beside_it_is_not_touched() -> None:
    before, smoother = noisy(1, 0.0)[0], PictureSmoother()
    after = before.copy()
    after[32:64, 64:112] = 255 - after[32:64, 64:112]
    smoother.smooth(before)
    shown = smoother.smooth(after)
    inside = slice(32 + BLOCK // 2, 64 - BLOCK // 2), slice(64 + BLOCK // 2, 112 - BLOCK // 2)
    assert np.array_equal(shown[inside], after[inside])
    assert np.array_equal(shown[:16], after[:16])


def test_a_small_change_that_stays_arrives() -> None:
    before, smoother = noisy(1, 0.0)[0], PictureSmoother()
    smoother.smooth(before)
    for there in (before + np.uint8(1), before):
        shown = [smoother.smooth(there) for _ in range(6)]
        assert np.array_equal(shown[-1], there)
    smoother.forget()
    assert np.array_equal(smoother.smooth(before + np.uint8(1)), before + 1)


def test_a_picture_of_another_size_starts_anew() -> None:
    smoother = PictureSmoother()
    smoother.smooth(np.full((64, 64, 3), 10, np.uint8))
    assert np.array_equal(smoother.smooth(np.full((32, 32, 3), 11, np.uint8)), np.full((32, 32, 3), 11, np.uint8))


# --- the mesh around the head ---


def meshes(*places: float) -> Array:
    """One a frame, both of its nodes there, in coded-picture units along x."""
    return np.array([[[x, 0]] * 2 for x in places], np.float32)


def test_rounded_meshes_go_half_of_the_way_to_the_middle_of_their_neighbours() -> None:
    shown = between(meshes(0.002, 0.0, 0.004, 0.004), meshes(0.0)[0])
    assert shown.dtype == np.float32 and shown == pytest.approx(meshes(0.001, 0.0015, 0.003, 0.004))


def test_even_motion_stays_as_it_is() -> None:
    even = meshes(*np.arange(5) / 10)
    assert between(even, even[0] - meshes(0.1)[0]) == pytest.approx(even)


def test_frames_without_a_neighbour_to_either_side_keep_their_mesh() -> None:
    apart = meshes(0.0, 0.004, 0.0, 0.004)
    assert between(apart, None) == pytest.approx(meshes(0.0, 0.002, 0.002, 0.004))
    for before in (None, apart[1]):
        assert np.array_equal(between(apart[:1], before), apart[:1])


def test_a_mesh_that_really_leaps_is_hardly_held_back() -> None:
    shown = between(meshes(0.5, 0.0), meshes(0.0)[0])
    assert shown == pytest.approx(meshes(0.5 - ROUNDED_MOST, 0.0))


# --- from one reference picture to the next ---

STILL = np.zeros((30, 3), np.float32)


def plain(level: int) -> Array:
    return np.full((64, 64, 3), level, np.uint8)


def test_a_frame_fades_from_one_reference_picture_into_the_next() -> None:
    fade, steps = PictureFade(), round(25 * FADE_SECONDS)
    assert np.array_equal(fade.faded(plain(110), None, STILL, 0.0, "here"), plain(110))
    shown = [fade.faded(plain(100), None if n else plain(110), STILL, n / 25, "here") for n in range(steps + 2)]
    assert {picture.dtype for picture in shown} == {np.dtype(np.uint8)}
    levels = [float(picture.mean()) for picture in shown]
    assert levels == [round(100 + 10 * FADE * (1 - n / steps)) for n in range(steps)] + [100, 100]


def test_what_differs_much_is_shown_at_once_and_the_rest_fades() -> None:
    before, now = plain(100), plain(104)
    before[:, 32:] = 104 + int(APART) + 1
    shown = PictureFade().faded(now, before, STILL, 0.0, "here")
    assert np.array_equal(shown[:, 40:], now[:, 40:]) and np.array_equal(shown[:, :24], plain(102)[:, :24])


def test_less_is_left_where_the_face_has_gone_on() -> None:
    left = []
    for pixels in (0.0, NEAR, 4 * NEAR):
        fade = PictureFade()
        fade.faded(plain(100), plain(110), STILL, 0.0, "here")
        left.append(fade.faded(plain(100), None, STILL + np.float32([pixels / 128, 0, 9]), 0.04, "here").mean() - 100)
    assert left == [2, 1, 0]


@pytest.mark.parametrize(("seconds", "place"), [(0.04, "there"), (-1.0, "here"), (9.0, "here")])
def test_nothing_is_left_in_another_place_or_at_another_time(seconds: float, place: str) -> None:
    fade = PictureFade()
    fade.faded(plain(100), plain(110), STILL, 0.0, "here")
    assert np.array_equal(fade.faded(plain(100), None, STILL, seconds, place), plain(100))
    assert np.array_equal(fade.faded(plain(100), None, STILL, 0.08, "here"), plain(100))


def test_nothing_is_left_where_the_next_frame_does_not_follow() -> None:
    fade = PictureFade()
    fade.faded(plain(100), plain(110), STILL, 0.0, "here")
    fade.forget()
    assert np.array_equal(fade.faded(plain(100), None, STILL, 0.04, "here"), plain(100))


def test_a_picture_that_comes_while_one_fades_goes_on_from_what_is_shown() -> None:
    fade = PictureFade()
    fade.faded(plain(110), plain(115), STILL, 0.0, "here")
    shown = fade.faded(plain(104), plain(110), STILL, 0.04, "here")  # the frame that the first would have shown: 111
    assert shown.mean() == round(104 + FADE * 7)

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcodec.motion import MotionParams, View, euler_angles, rotation_matrix

angle = st.floats(-80, 80)
pose = st.tuples(angle, angle, angle)


def params(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, **more: object) -> MotionParams:
    given = {"translation": np.zeros(3, np.float32), "scale": 1.0, "delta": np.zeros((2, 3), np.float32), **more}
    return MotionParams(yaw, pitch, roll, **given)  # type: ignore[arg-type]


@given(pose)
def test_angles_and_matrices_agree(angles: tuple[float, float, float]) -> None:
    matrix = rotation_matrix(*angles)
    assert np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-5) and np.linalg.det(matrix) > 0.99
    assert np.allclose(euler_angles(matrix), angles, atol=0.02)


def test_signs_are_as_documented() -> None:
    nose = np.array([0, 0, -1.0])
    assert (nose @ rotation_matrix(20, 0, 0))[0] > 0.3  # to the right of the picture
    assert (nose @ rotation_matrix(0, 20, 0))[1] > 0.3  # down
    assert (np.array([1.0, 0, 0]) @ rotation_matrix(0, 0, 20))[1] > 0.3  # clockwise


def test_keypoints_follow_the_equation() -> None:
    canonical = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    delta = np.array([[0, 0, 0], [0, 1, 0]], np.float32)
    motion = params(roll=90, scale=0.5, translation=np.array([0.1, 0.2, 0], np.float32), delta=delta)
    assert np.allclose(motion.keypoints(canonical), [[0.1, 0.7, 0], [-0.9, 0.2, 0]], atol=1e-6)


@given(pose, st.floats(0.2, 2), st.integers(0, 2**32 - 1))
def test_flat_is_lossless(angles: tuple[float, float, float], scale: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=33).astype(np.float32)
    motion = params(*angles, scale=scale, translation=values[:3], delta=values[3:].reshape(10, 3))
    back = MotionParams.from_flat(motion.flat())
    assert (back.yaw, back.pitch, back.roll) == (motion.yaw, motion.pitch, motion.roll)
    assert np.array_equal(back.delta, motion.delta) and np.array_equal(back.translation, motion.translation)
    assert np.isclose(back.scale, scale, rtol=1e-12)


def test_flat_with_a_scene_is_lossless() -> None:
    dice = np.random.default_rng(2)
    delta, scene = dice.normal(size=(10, 3)).astype(np.float32), dice.normal(size=(9, 2)).astype(np.float32)
    motion = params(5, 6, 7, scale=0.6, delta=delta, scene=scene)
    flat = motion.flat()
    assert flat.shape == (7 + 30 + 18,) and np.array_equal(flat[37:], scene.astype(np.float64).ravel())
    back = MotionParams.from_flat(flat, 10)
    assert np.array_equal(back.delta, delta) and np.array_equal(back.scene, scene) and back.scene.dtype == np.float32
    assert MotionParams.from_flat(flat[:37]).scene.shape == MotionParams.from_flat(flat[:37], 10).scene.shape == (0, 2)


def test_a_view_turns_the_head_and_leaves_the_scene() -> None:
    scene = np.full((4, 2), 0.1, np.float32)
    motion = params(5, scene=scene)
    for seen in (motion.turned(View(yaw=20, x=0.1)), motion.turned(View(absolute=True))):
        assert np.array_equal(seen.scene, scene) and seen.yaw != motion.yaw


@given(pose)
def test_no_turn_changes_nothing_and_turns_add_up(angles: tuple[float, float, float]) -> None:
    motion = params(*angles)
    same = motion.turned(View())
    assert np.allclose(same.rotation, motion.rotation, atol=1e-5)
    there_and_back = motion.turned(View(yaw=25)).turned(View(yaw=-25))
    assert np.allclose(there_and_back.rotation, motion.rotation, atol=1e-4)


def test_a_view_is_finite_numbers() -> None:
    for wrong in (float("nan"), float("inf"), 10**400, "10", None, True, 1j, np.zeros(2)):
        for name in ("yaw", "pitch", "roll", "x", "y"):
            with pytest.raises(ValueError, match=f"View.{name} is .*finite number"):
                View(**{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"View\.absolute is 1"):
        View(absolute=1)  # type: ignore[arg-type]
    assert View(np.float32(3), 4).yaw == 3.0 and type(View(4).yaw) is float


def test_an_absolute_view_takes_the_place_of_the_pose() -> None:
    turned = params(yaw=31, pitch=-8, roll=12).turned(View(5, absolute=True))
    assert np.allclose((turned.yaw, turned.pitch, turned.roll), (5, 0, 0), atol=1e-4)


@given(pose, st.floats(-40, 40), st.floats(-20, 20))
def test_heads_turn_about_their_necks(angles: tuple[float, float, float], yaw: float, pitch: float) -> None:
    motion = params(*angles, scale=0.7)
    assert np.allclose(motion.turned(View(yaw, pitch)).neck, motion.neck, atol=1e-5)
    assert np.allclose(motion.turned(View(yaw, x=0.1, y=-0.2)).neck - motion.neck, [0.2, -0.4], atol=1e-5)


def test_a_face_moves_to_the_side_it_turns_to() -> None:
    turned = params(scale=0.5).turned(View(yaw=30))
    assert np.isclose(turned.translation[0], 0.5 * 0.71 * math.sin(math.radians(30)), atol=1e-5)


def test_a_turn_is_seen_from_the_camera() -> None:
    """Turning a head that is already rolled moves the nose along the picture's x, not along the head's own axis."""
    turned = params(roll=40).turned(View(yaw=30))
    nose = np.array([0, 0, -1.0]) @ turned.rotation
    assert np.isclose(nose[0], 0.5, atol=1e-5) and abs(nose[1]) < 1e-5

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neuralcodec.gaze import BALL, EYES, OUTWARD, REST_Y, eye_contact, gaze
from neuralcodec.motion import Array, MotionParams, View

# A plain face whose eyes rest: two eyes 0.26 wide and 0.27 open, in the head's own frame.
CANONICAL = np.zeros((30, 3), np.float32)
for side, eye in zip((-1, 1), EYES, strict=True):
    outer, inner, upper, lower, iris = eye
    CANONICAL[outer], CANONICAL[inner] = (side * 0.45, -0.2, 0), (side * 0.19, -0.2, 0)
    CANONICAL[upper], CANONICAL[lower] = (side * 0.32, -0.25, 0), (side * 0.32, -0.18, 0)
    CANONICAL[iris] = (side * (0.32 + OUTWARD * 0.26), -0.2 + REST_Y * 0.26, 0)
SIZE = 256


def face(yaw: float = 0.0, pitch: float = 0.0, *, eyes: float = 0.0, shut: bool = False) -> MotionParams:
    """eyes: degrees they look to the right of the picture, in the head."""
    delta = np.zeros((30, 3), np.float32)
    for _, _, upper, lower, iris in EYES:
        delta[iris, 0] = 0.26 * BALL * np.sin(np.deg2rad(eyes))
        if shut:
            delta[upper, 1] = CANONICAL[lower, 1] - CANONICAL[upper, 1]
    return MotionParams(yaw, pitch, 0.0, np.zeros(3, np.float32), 0.8, delta)


def drawn(motion: MotionParams) -> Array:
    """Dark irises on white eyes where the keypoints are."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    points = (motion.keypoints(CANONICAL)[:, :2] + 1) * SIZE / 2 - 0.5
    picture = np.full((SIZE, SIZE), 220.0)
    for eye in EYES:
        picture -= 180 * np.exp(-((x - points[eye[4], 0]) ** 2 + (y - points[eye[4], 1]) ** 2) / (2 * 3.0**2))
    return picture[..., None].repeat(3, 2).astype(np.uint8)


def irises(picture: Array) -> Array:
    """(2, 2): middle of the dark in the left and the right half."""
    dark = np.clip(200.0 - picture[..., 0], 0, None)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    halves = (np.s_[:, : SIZE // 2], np.s_[:, SIZE // 2 :])
    return np.array([[np.average(v[h], weights=dark[h]) for v in (x, y)] for h in halves])


def test_gaze_is_where_head_and_eyes_look() -> None:
    assert np.isclose(gaze(face(), CANONICAL).off_lens, 0, atol=0.1)
    assert np.isclose(gaze(face(eyes=12), CANONICAL).yaw, 12, atol=0.1)
    assert np.isclose(gaze(face(yaw=20, eyes=-12), CANONICAL).yaw, 8, atol=0.1)
    assert np.isclose(gaze(face(pitch=10), CANONICAL).pitch, 10, atol=0.1)


@pytest.mark.parametrize("eyes", [-12, -5, 5, 12])
def test_eyes_that_look_aside_are_brought_onto_the_lens(eyes: float) -> None:
    motion, straight = face(eyes=eyes), face()
    seen = eye_contact(drawn(motion), motion, motion, motion, CANONICAL, 0.0)
    before, after, wanted = (irises(p) for p in (drawn(motion), seen, drawn(straight)))
    assert np.abs(after - wanted).max() < 0.35 * np.abs(before - wanted).max() + 0.2


def test_eyes_that_rest_are_left_at_rest_and_do_not_squint() -> None:
    """As people's are when they look into the lens: a little nearer to the outer corners."""
    apart = face()
    for side, eye in zip((-1, 1), EYES, strict=True):
        apart.delta[eye[4], 0] = side * (0.32 + 0.027 * 0.26) - CANONICAL[eye[4], 0]
    picture = drawn(apart)
    assert np.abs(irises(eye_contact(picture, apart, apart, apart, CANONICAL, 0.0)) - irises(picture)).max() < 0.05


def test_a_reference_with_shut_eyes_keeps_no_gaze() -> None:
    """Under lids that are shut an iris is found far down; open eyes are drawn where the motion has them."""
    shut = face(shut=True)
    for _, _, _, _, iris in EYES:
        shut.delta[iris, 1] += 0.26 * BALL * np.sin(np.deg2rad(12))
    picture = drawn(face())
    assert np.array_equal(eye_contact(picture, face(), face(), shut, CANONICAL, 0.13), picture)


def test_a_turned_view_keeps_the_eyes_on_the_lens() -> None:
    motion = face()
    shown = motion.turned(View(yaw=15))
    seen = eye_contact(drawn(shown), shown, motion, motion, CANONICAL, 0.0)
    assert (irises(seen) - irises(drawn(shown)))[:, 0].max() < -1.0, "back to the left, toward the lens"


def test_who_looks_at_something_else_and_who_sleeps_is_left_alone() -> None:
    for motion in (face(yaw=35), face(eyes=12, shut=True)):
        picture = drawn(motion)
        assert np.array_equal(eye_contact(picture, motion, motion, motion, CANONICAL, 0.0), picture)


def test_eyes_turn_no_further_than_eyes_do() -> None:
    ways = []
    for yaw in (10, 25, 40):
        shown = face(yaw)
        seen = eye_contact(drawn(shown), shown, face(), face(), CANONICAL, 0.0)
        ways.append(abs(irises(seen) - irises(drawn(shown)))[:, 0].mean())
    assert ways[0] < ways[1] - 0.5 and ways[2] <= ways[1] + 0.1


def test_only_the_surroundings_of_the_eyes_change_and_the_picture_given_does_not() -> None:
    motion = face(eyes=12)
    picture = drawn(motion)
    copy = picture.copy()
    changed = np.argwhere((eye_contact(picture, motion, motion, motion, CANONICAL, 0.0) != copy).any(axis=2))
    assert np.array_equal(picture, copy) and len(changed)
    eyes = (motion.keypoints(CANONICAL)[list(range(8)), :2] + 1) * SIZE / 2
    low, high = eyes.min(0) - 25, eyes.max(0) + 25
    assert (changed[:, ::-1] >= low).all() and (changed[:, ::-1] <= high).all()


def test_faces_at_the_border_and_garbage_do_no_harm() -> None:
    for place in ([-0.95, -0.9, 0], [0.9, 0.95, 0], [5, 5, 0]):
        motion = replace(face(eyes=12), translation=np.array(place, np.float32))
        assert eye_contact(drawn(motion), motion, motion, motion, CANONICAL, 0.0).shape == (SIZE, SIZE, 3)
    flat = replace(face(), delta=-CANONICAL)  # all keypoints in one place
    assert eye_contact(drawn(flat), flat, flat, flat, CANONICAL, 0.0).shape == (SIZE, SIZE, 3)
    with pytest.raises(ValueError, match="needs the 30 keypoints of a portrait pack; this one has 20"):
        eye_contact(drawn(face()), face(), face(), face(), CANONICAL[:20], 0.0)

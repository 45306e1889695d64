"""Eye contact: where the eyes look is read from the motion, and the irises of a rendered picture are moved until they
look into the lens. Pure; knows no network.

Of the 30 keypoints of a `portrait` pack, 0-3 and 4-7 are the right and the left eye (outer and inner corner, upper and
lower lid) and 8 and 9 their irises. An eye is a ball that the iris sits on, so a turn of it moves the iris by
``BALL * sin(angle)`` eye widths.

Measured on the labels of 208 clips of 129 people, in eye widths and in the head's own frame: the iris rests 0.00
beside (mean of both eyes) and 0.049 above the middle between the corners; clips differ by 0.029 and 0.026, 5 and 4
degrees, and no picture tells a habit of looking aside from a place of rest. While the eyes are open the lids follow the
iris up and down. Each iris rests 0.027 nearer to the outer corner (49 of the clips, as the motion network sees them;
they differ by 0.018): brought to the middle, eyes squint by 8 degrees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .motion import Array, MotionParams

POINTS = 30  # keypoints of the packs whose layout is known
EYES = ((0, 1, 2, 3, 8), (4, 5, 6, 7, 9))  # outer corner, inner corner, upper lid, lower lid, iris
BALL = 0.36  # eye widths: the pupil is about 10 mm before the centre of rotation, the corners are about 28 mm apart
OUTWARD, REST_Y = 0.027, -0.049  # eye widths, toward the outer corner and down: see above
TURN_MAX = (25.0, 15.0)  # degrees in the head, sideways and up or down: beyond it people turn their heads instead
FULL, NONE = 15.0, 30.0  # degrees off the lens: up to the first all of it is taken away, from the second on nothing
OPEN, SHUT = 0.16, 0.08  # eye widths between the lids: open eyes are corrected, shut ones left alone
SKIN, BROW = 0.12, 0.35  # eye widths beyond the lids where sideways and upright movement of the picture has faded out
SMALLEST = 6.0  # pixels: a narrower eye has no iris to move


@dataclass(frozen=True)
class Gaze:
    """Where a head's two eyes look, mean of both, in degrees as the camera sees it: 0, 0 is the lens. Positive yaw:
    to the right of the picture, positive pitch: down."""

    yaw: float
    pitch: float

    @property
    def off_lens(self) -> float:
        return math.hypot(self.yaw, self.pitch)


def check_layout(keypoints: int) -> None:
    """ValueError unless a pack has the keypoints this module knows the eyes of."""
    if keypoints != POINTS:
        raise ValueError(f"Eye contact needs the {POINTS} keypoints of a portrait pack; this one has {keypoints}.")


def gaze(motion: MotionParams, canonical: Array) -> Gaze:
    """From a motion and the identity's canonical keypoints (30, 3). Good to some 5 degrees, see above."""
    sight = np.mean([_sight(canonical + motion.delta, eye) for eye in EYES], axis=0) @ motion.rotation
    x, y, z = map(float, sight)
    return Gaze(math.degrees(math.atan2(x, -z)), math.degrees(math.atan2(y, math.hypot(x, z))))


def eye_contact(
    picture: Array, shown: MotionParams, coded: MotionParams, reference: MotionParams, canonical: Array, follows: float
) -> Array:
    """The picture (uint8 RGB (S, S, 3)) with its eyes on the lens, as far as eyes and good manners go.

    shown: the motion it was rendered with, after any view. coded: the sender's. reference: of the picture it was made
    from. follows: how much of the way from the reference's to the coded gaze the pack's renderer shows, 0 to 1.

    A sender's gaze up to ``FULL`` degrees off the lens is brought onto it, one beyond ``NONE`` (the person is looking
    at something else) is left alone, in between less and less is done; shut eyes stay as they are. Keypoints of
    another layout than (30, 3) raise ValueError.
    """
    check_layout(len(canonical))
    strength = float(np.clip((NONE - gaze(coded, canonical).off_lens) / (NONE - FULL), 0, 1))
    lens = np.array([0.0, 0.0, -1.0]) @ shown.rotation.T  # in the head's frame
    high = np.sin(np.deg2rad(TURN_MAX))
    wanted = _ray(np.clip(lens[:2], -high, high))
    face, points = canonical + shown.delta, shown.keypoints(canonical).astype(np.float64)
    half = picture.shape[0] / 2
    out = picture
    for eye in EYES:
        outer, inner, upper, lower, _ = eye
        width = float(np.linalg.norm(face[outer] - face[inner]))
        awake = _awake(face, eye)
        before, now = _sight(canonical + reference.delta, eye), _sight(canonical + coded.delta, eye)
        # a picture with shut eyes has no irises that could stay behind: they are drawn where the motion has them
        stays = (1 - follows) * _awake(canonical + reference.delta, eye)
        turn = wanted - (now + stays * (before - now))
        way = strength * awake * width * BALL * shown.scale * (turn @ shown.rotation)[:2] * half  # pixels
        rest = face[[outer, inner]].mean(0) + width * np.array([*BALL * wanted[:2] + _rest(face, eye), 0.0])
        iris = shown.scale * (rest @ shown.rotation) + shown.translation  # where it will be
        place = (np.stack([points[outer], points[inner], points[upper], points[lower], iris])[:, :2] + 1) * half - 0.5
        if np.hypot(*way) > 0.05 and np.hypot(*(place[0] - place[1])) >= SMALLEST:
            out = _shifted(out, place, way)
    return out


def _awake(face: Array, eye: tuple[int, int, int, int, int]) -> float:
    """How far an eye of a face (30, 3) is open: from 0, shut, to 1."""
    outer, inner, upper, lower, _ = eye
    width = max(float(np.linalg.norm(face[outer] - face[inner])), 1e-6)
    return float(np.clip((float(face[lower, 1] - face[upper, 1]) / width - SHUT) / (OPEN - SHUT), 0, 1))


def _rest(face: Array, eye: tuple[int, int, int, int, int]) -> Array:
    """(2,): from the middle between its corners to where an eye's iris rests, in eye widths."""
    outer, inner, _, _, _ = eye
    return np.array([math.copysign(OUTWARD, float(face[outer, 0] - face[inner, 0])), REST_Y])


def _sight(face: Array, eye: tuple[int, int, int, int, int]) -> Array:
    """float64 (3,): unit vector along which an eye of a face (30, 3) in the head's own frame looks."""
    outer, inner, _, _, iris = (np.asarray(face[index], np.float64) for index in eye)
    width = max(float(np.linalg.norm(outer - inner)), 1e-6)
    return _ray(((iris - (outer + inner) / 2)[:2] / width - _rest(face, eye)) / BALL)


def _ray(aside: Array) -> Array:
    """Unit vector toward the camera's side with these x and y; garbage stays finite."""
    x, y = map(float, np.clip(np.nan_to_num(aside), -0.7, 0.7))
    return np.array([x, y, -math.sqrt(1 - x * x - y * y)])


def _shifted(picture: Array, place: Array, way: Array) -> Array:
    """A copy in which what surrounds one eye has moved by ``way`` (2,) pixels at the iris, not at all at the corners.

    place: (5, 2) pixels, x and y of outer and inner corner, upper and lower lid, and of the iris when it has moved.
    """
    middle, span = (place[0] + place[1]) / 2, place[1] - place[0]
    width = float(np.hypot(*span))
    along = span / width if span[0] >= 0 else -span / width
    down = np.array([-along[1], along[0]])
    top, bottom = ((place[index] - middle) @ down / width for index in (2, 3))
    reach = 0.9 * width
    left, upper = np.maximum(np.floor(middle - reach), 0).astype(int)
    right, lower = np.minimum(np.ceil(middle + reach) + 1, picture.shape[1::-1]).astype(int)
    if right - left < 2 or lower - upper < 2:
        return picture
    y, x = np.mgrid[upper:lower, left:right].astype(np.float64)
    u, v = (((x - middle[0]) * along[0] + (y - middle[1]) * along[1]) / width,
            ((x - middle[0]) * down[0] + (y - middle[1]) * down[1]) / width)  # fmt: skip

    def across(at: Array | float) -> Array:
        return np.clip(1 - 4 * np.square(at), 0, 1)  # no fold while the way is under a quarter of the width

    beyond = np.maximum(np.maximum(top - v, v - bottom), 0)
    goal = float((place[4] - middle) @ along / width)
    weight = across(u) / max(float(across(goal)), 0.6)
    aside, upright = way @ along, way @ down
    moved = np.stack([weight * np.clip(1 - beyond / SKIN, 0, 1) * aside,
                      weight * np.clip(1 - beyond / BROW, 0, 1) * upright])  # fmt: skip
    sx = np.clip(x - moved[0] * along[0] - moved[1] * down[0], 0, picture.shape[1] - 1.001)
    sy = np.clip(y - moved[0] * along[1] - moved[1] * down[1], 0, picture.shape[0] - 1.001)
    x0, y0 = sx.astype(int), sy.astype(int)
    fx, fy = (sx - x0)[..., None], (sy - y0)[..., None]
    rows = [picture[y0 + j, x0] * (1 - fx) + picture[y0 + j, x0 + 1] * fx for j in (0, 1)]
    out = picture.copy()
    out[upper:lower, left:right] = np.rint(rows[0] * (1 - fy) + rows[1] * fy).astype(np.uint8)
    return out

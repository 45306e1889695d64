"""What a receiver shows of the source: senders cut pictures from squares that jump after the head, and the view glides.

It eases from the square of one picture to that of the next as somebody who holds a camera would, and begins when the
head moves: the next picture has yet to be paid for. Pictures are cut anew for it, with their edges repeated, so that a
head is drawn which has left the square of its own picture. Where another shot begins the view jumps. Knows no packets;
time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .face import CropFollower, Face, Square, away, box_of, followed, head_square, luma, place_of, placed, square_at
from .motion import Array, MotionParams
from .packet import REFERENCES_MAX
from .pictures import HeldPicture
from .scene import mesh_in, rows_at

EASE = 0.25  # seconds, time constant of the way to another square
ARRIVED = 0.01  # half sides, or of log scale: closer is there
STEP = 0.12  # the same between what is shown and where a picture was cut anew: at more it is cut again
SLACK = 1.25  # times as far as makes a sender move its square: it will, and one who turns back at once is let go
# Median difference of two pictures of one shot, grey levels, in the square AROUND times the face or in what both hold.
# Of 112 pairs of frames one or two seconds apart 91 % have less around the face, of 1,540 pairs of people 5 %.
STRANGE, AROUND, LOOKED_AT = 24.0, 1.3, 32  # and points a side that tell


class Framing:
    """One stream's view."""

    def __init__(self) -> None:
        self._newest: HeldPicture | None = None  # that a frame was drawn from
        self._goal = Square(0, 0, 1)
        self._place = np.zeros(3)  # what is shown
        self._speed = np.zeros(3)  # a second
        self._seconds = 0.0
        # by id: a picture, what was cut from it last, and the square that the pixels of this are of
        self._cut: dict[int, tuple[HeldPicture, HeldPicture, Square]] = {}

    def follow(
        self, held: HeldPicture, motion: MotionParams, source: tuple[int, int], seconds: float, *, as_is: bool = False
    ) -> tuple[HeldPicture, MotionParams, Array]:
        """For a frame at this time that is drawn from this picture with this motion: the picture, cut from about what
        is shown, the motion told in that, and what is shown, float64 (3,): centre x and y and the logarithm of the
        side, source pixels. source: its width and height. as_is: the picture itself is shown, and the motion says
        nothing."""
        elapsed, self._seconds = max(0.0, seconds - self._seconds), seconds
        if self._newest is None or 0 < (held.id - self._newest.id) % 256 < 128:
            there = place_of(held.crop)
            far = away(self._place, there)[0] > CropFollower.JUMP
            if self._newest is None or far or not _same_shot(self._newest, held):
                self._place, self._speed, elapsed = there, np.zeros(3), 0.0
            self._newest, self._goal = held, held.crop
        if not as_is:
            wanted = head_square(Face.from_box(held.crop, box_of(motion)), source)
            stands = self._newest.crop
            back = followed(wanted, stands, source) == stands
            self._goal = stands if back else followed(wanted, self._goal, source, SLACK)
        self._ease(elapsed)
        cut, pixels = self._cut_from(held, as_is)
        return cut, _told_in(motion, held.crop, cut.crop, pixels), self._place

    def _cut_from(self, held: HeldPicture, as_is: bool) -> tuple[HeldPicture, Square]:
        """The picture for a square near what is shown, and the square that its pixels are of: another where the head in
        it would be cut off."""
        kept, cut, pixels = self._cut.get(held.id, (held, held, held.crop))
        if kept is not held or (as_is and pixels != cut.crop):
            cut, pixels = held, held.crop
        arrived = np.array_equal(self._place, place_of(self._goal))
        square = self._goal if arrived else square_at(self._place)
        if cut.crop == square or (not arrived and max(away(self._place, place_of(cut.crop))) <= STEP):
            return cut, pixels
        cut, pixels, found = held, held.crop, held.features
        if held.crop != square:
            pixels = square if as_is else _holding(Face.from_box(held.crop, found.estimate.box), square)
            shown = seen_in(found.picture, place_of(held.crop), place_of(pixels))
            face = found.estimate.placed(held.crop, pixels)
            cut = replace(held, features=found.recut(shown, face), crop=square)
        self._cut = {key: one for key, one in self._cut.items() if (held.id - key) % 256 < REFERENCES_MAX}
        self._cut[held.id] = held, cut, pixels
        return cut, pixels

    def _ease(self, elapsed: float) -> None:
        """One exact step of a critically damped spring: starts and stops softly whatever the frame rate."""
        goal, stiffness = place_of(self._goal), 2 / EASE
        decay = math.exp(-stiffness * elapsed)
        gap = self._place - goal
        push = (self._speed + stiffness * gap) * elapsed
        self._place, self._speed = goal + (gap + push) * decay, (self._speed - stiffness * push) * decay
        if max(away(self._place, goal)) < ARRIVED:
            self._place, self._speed = goal, np.zeros(3)


def _holding(face: Face, square: Square) -> Square:
    """The square of the same size next to this one that holds the face."""
    corners = []
    for start, centre in ((square.x, face.center_x), (square.y, face.center_y)):
        reach = min(face.half_side, square.side / 2)
        corners.append(round(min(max(start, centre + reach - square.side), centre - reach)))
    return Square(corners[0], corners[1], square.side)


def _told_in(motion: MotionParams, here: Square, there: Square, pixels: Square) -> MotionParams:
    """The motion of a picture of the square ``here`` told in another, for a picture of ``pixels``, as large as that."""
    if here == there == pixels:
        return motion
    scene = motion.scene
    if len(scene):
        away_by = np.subtract(there.center, here.center) * (2 / here.side)
        shift = np.subtract(there.center, pixels.center) * (2 / there.side)
        scene = mesh_in(scene, away_by, there.side / here.side) + np.asarray(shift, np.float32)
    return replace(placed(motion, here, there), scene=scene)


def seen_in(picture: Array, here: Array, there: Array) -> Array:
    """uint8 RGB (S, S, 3): what such a picture of one place shows of another; beyond its edges they are repeated."""
    size, shown = len(picture), picture
    for axis in (1, 0):
        points = there[axis] + math.exp(there[2]) * ((np.arange(size) + 0.5) / size - 0.5)
        at = (points - here[axis]) * (size / math.exp(here[2])) + (size - 1) / 2
        shown = rows_at(shown, at).swapaxes(0, 1)
    return np.ascontiguousarray((shown + 0.5).astype(np.uint8))


def _same_shot(before: HeldPicture, after: HeldPicture) -> bool:
    """Whether two pictures show one scene: they are of one square, or show the same face, or the same behind it."""
    one, other = before.crop, after.crop
    if one == other:
        return True
    left, top = max(one.x, other.x), max(one.y, other.y)
    right, bottom = min(one.x + one.side, other.x + other.side), min(one.y + one.side, other.y + other.side)
    places = [(_around_face(before), _around_face(after))]
    if left < right and top < bottom:
        places.append(((left, top, right - left, bottom - top),) * 2)
    for pair in places:
        a, b = (_points(held, place) for held, place in zip((before, after), pair, strict=True))
        if np.median(np.abs(a - b)) <= STRANGE:
            return True
    return False


def _around_face(held: HeldPicture) -> tuple[float, float, float, float]:
    """Left, top, width and height of what lies around the face in a picture, source pixels."""
    face = Face.from_box(held.crop, held.features.estimate.box)
    half = AROUND * face.half_side
    return face.center_x - half, face.center_y - half, 2 * half, 2 * half


def _points(held: HeldPicture, place: tuple[float, float, float, float]) -> Array:
    """float32 (LOOKED_AT, LOOKED_AT): luma of points of that part of the source."""
    size, along = len(held.features.picture), (np.arange(LOOKED_AT) + 0.5) / LOOKED_AT
    x, y = (
        np.clip((start + length * along - corner) * size / held.crop.side, 0, size - 1).astype(int)
        for start, length, corner in ((place[0], place[2], held.crop.x), (place[1], place[3], held.crop.y))
    )
    return luma(held.features.picture[y[:, None], x]).astype(np.float32)

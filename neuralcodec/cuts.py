"""Frames as they are looked at, and where one shot ends and another begins. Knows no rate, no packets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .face import Square, crop, luma, resize
from .inference import Inference, MotionEstimate
from .light import Small, relit, small
from .motion import Array

# Grey levels. A frame that differs from the one before by JUMP, root mean square, is drawn from that one: where half of
# all values are more than STRANGE off, another shot begins. So it is with 99 % of 244 cuts from one training clip to
# another, and with no frame of 208 clips of one shot, nor of 104 at five frames a second: hands and quick turns change
# as much, but not half of what is drawn.
JUMP, STRANGE = 30.0, 16.0
# Grey levels, root mean square from their mean: what has fewer, as it comes out of the dark, is strange sooner, not
# taken for what was there before, and looked at again when it has CLEARER times as many, as long as DIM_SECONDS. No
# shot of 24 clips with fewer than 33 is cut by it.
FLAT, CLEARER, DIM_SECONDS = 30.0, 1.5, 2.0
# Grey levels from the last frame before a cut, root mean square, in pictures of SMALL pixels a side, so that the head
# may move meanwhile: it was a flashlight, and the shot goes on.
BACK, SMALL = 14.0, 24


@dataclass(frozen=True)
class Shot:
    """A frame of the camera. picture: all of it, uint8 RGB. square: what is coded of it; tile: that, (S, S, 3), in the
    light of the first frame. estimate: the face found in the tile, or None. seconds: when it was taken. light: on the
    picture, see light.py."""

    picture: Array
    tile: Array
    square: Square
    estimate: MotionEstimate | None
    seconds: float
    light: int = 0

    @property
    def box(self) -> Array | None:
        """Of the face in the tile."""
        return None if self.estimate is None else self.estimate.box

    @cached_property
    def half(self) -> Array:
        return half(self.tile)

    def seen_in(self, square: Square) -> Array:
        """What the tile would be, had it been cut from this square."""
        return self.tile if square == self.square else tile_of(self.picture, square, len(self.tile), self.light)

    @property
    def squeezed(self) -> Array:
        """All of the picture, as large as the tile and in its light."""
        return relit(resize(self.picture, *self.tile.shape[:2]), -self.light)

    def half_in(self, square: Square) -> Array:
        return self.half if square == self.square else half(self.seen_in(square))

    @cached_property
    def small(self) -> Small:
        return small(self.half)


class Cuts:
    """Follows frame after frame. flash: seconds that a flashlight may last, which looks like a cut. timed: how long a
    stage takes."""

    def __init__(self, networks: Inference, flash: float, timed: Callable[[str], AbstractContextManager[None]]) -> None:
        self._networks, self._flash, self._timed = networks, flash, timed
        self._begun = 0  # shots before this one
        self._before: Shot | None = None  # the last frame
        self._seen: Shot | None = None  # and the last one with a face
        self._left: tuple[Shot, int, float] | None = None  # frame with a face and number before a cut, and its time
        self._jumped = False  # much has changed since a face was last seen
        self._dim: float | None = None  # fullness of what then looked like it, and was too dark to tell

    def forget(self) -> None:
        """The camera's picture has another size: places in those before mean nothing in it."""
        self._before = self._seen = self._left = self._dim = None

    def follow(self, frame: Shot, moved: bool) -> int:
        """How many shots have begun before this frame; fewer than before it once a flashlight has gone out. moved: the
        square has jumped."""
        if self._left is not None and frame.seconds - self._left[2] > self._flash:
            self._left = None
        if self._left is not None:
            left, begun, _ = self._left
            there = grey(left.tile, SMALL)
            away = np.mean((grey(frame.seen_in(left.square), SMALL) - there) ** 2)
            if away < (BACK * _fullness(there)) ** 2:
                self._before = self._seen = left
                self._begun, self._left = begun, None
        if self._begins_shot(frame, moved):
            if self._seen is not None:
                self._left = self._left or (self._seen, self._begun, frame.seconds)
            self._begun += 1
        self._before, self._seen = frame, frame if frame.estimate and self._dim is None else self._seen
        return self._begun

    def _begins_shot(self, frame: Shot, moved: bool) -> bool:
        """Whether another shot begins with this frame, or began while no face was seen: much has changed at once, and
        not as heads move."""
        before, seen = self._before, self._seen
        if before is None:
            return False
        changed = squared_error(frame.half_in(before.square), before.half)
        if seen is None:  # there is nobody to draw it from
            return frame.estimate is not None and changed >= JUMP**2
        self._jumped |= frame.estimate is None or moved or changed >= JUMP**2
        if self._dim is not None and frame.seconds - seen.seconds > DIM_SECONDS:
            self._dim = None
        clearer = self._dim is not None and _fullness(grey(frame.tile, SMALL)) >= CLEARER * self._dim
        if frame.estimate is None or not (self._jumped or clearer):
            return False
        self._jumped = False
        with self._timed("check"):
            features, tile = self._networks.reference(seen.tile), frame.seen_in(seen.square)
            estimate = frame.estimate.placed(frame.square, seen.square)
            if np.abs(estimate.box[:2]).max() > 1:  # a face that is elsewhere of a sudden is looked for where it is
                tile, estimate = frame.tile, frame.estimate
            motion = estimate.relative_to(features.canonical)
            motion = replace(motion, scene=self._networks.scene(features, tile, estimate, None))
            off = np.subtract(self._networks.render(features, motion), tile, dtype=np.int16)
        full = _fullness(grey(tile, SMALL))
        strange = float(np.median(np.abs(off))) > STRANGE * full
        self._dim = None if strange or full == 1.0 else full
        return strange


def _fullness(greys: Array) -> float:
    """Of what there is to be seen in most pictures, the share that is in this one, small and grey; 1 at most."""
    return min(1.0, float(greys.std()) / FLAT)


def tile_of(picture: Array, square: Square, size: int, light: int) -> Array:
    """What is coded of a picture in this light."""
    return relit(crop(picture, square, size), -light)


def grey(picture: Array, side: int) -> Array:
    """Of a small picture of so many pixels a side, row by row: float32 (side**2,), whole numbers from -128 to 127."""
    return luma(resize(picture, side, side)).ravel().astype(np.float32) - np.float32(128)


def half(picture: Array) -> Array:
    """Every second pixel of every second row, side by side in memory: compared in a tenth of the time."""
    return np.ascontiguousarray(picture[::2, ::2])


def squared_error(a: Array, b: Array) -> float:
    """Mean squared error of two uint8 pictures."""
    difference = np.subtract(a, b, dtype=np.int16).ravel().astype(np.float32)
    return float(difference @ difference) / difference.size

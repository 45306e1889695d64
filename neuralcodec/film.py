"""A film that is at hand: its frames, looked at a while before they are coded. Knows no rate, no packets."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from .cuts import grey
from .face import Face, Square, crop
from .lids import openings
from .light import Small, light_between, small_of
from .media import as_picture
from .motion import Array
from .watcher import Sight, Watcher

# Frames are compared by small grey pictures of so many pixels a side: of all that is coded, and of the square round the
# face, AROUND times its size. The root of this difference explains, of the logarithm of the squared error of 775 frames
# drawn from others (ten training clips), 88 % in the picture and 83 in the face; the root of the distance of keypoints
# 76 and 73; of all that is coded alone 91 and 77. Lids are too small to be seen there, so EYE points more for each eye
# say how far it stands open, WIDE grey levels for an eye as open as it is wide. Of 90 closed eyes of five training
# clips, as files at 4 kbit/s, 73 are shown closed, 55 without; PSNR is the same.
WHOLE, FACE, AROUND = 24, 20, 0.75
EYE, WIDE = 4, 370.0
# Seconds that a flashlight may last. Seven of them in eight seconds of a training clip, as a file at 4 kbit/s: 28.8 dB
# in the other frames at 3.83 kbit/s, for 26.7 at 5.35 where each was taken for a cut.
FLASH = 0.5
# What comes in a shot is another thing to code than a picture of it with FADED times its contrast, or less by that, or
# in other light by LIT log odds, as where it fades in. So that it can be told how fine that picture's chain should be,
# one tile in KEPT_SECONDS is kept. A training clip that fades in for 2.5 of its 8 seconds, as a file at 4 kbit/s: 30.2
# dB for 19.4 with a chain as fine as its first, dark picture allowed.
FADED, LIT, KEPT_SECONDS = 1.5, 0.3, 0.5


@dataclass(frozen=True)
class Look:
    """What a frame looks like, to tell how much others differ. grey: float32 (WHOLE**2 + FACE**2 + 2 * EYE,), whole
    numbers from -128 to 127, so that sums of their products are exact in whatever order. face: whether one is seen;
    without one only the first WHOLE**2 are not 0. shot: how many shots have begun before it; a flashlight is none."""

    grey: Array
    face: bool
    shot: int = 0

    @property
    def small(self) -> Small:
        """All of it, to tell its light."""
        return small_of(self.grey[: WHOLE**2] + np.float32(128))

    @cached_property
    def contrast(self) -> float:
        """Grey levels, root mean square from their mean."""
        return float(self.grey[: WHOLE**2].std())


class Film:
    """For ``Encoder(film=...)``: what the encoder is going to be given, in advance.

    frames: (pts, picture) as `Encoder.encode` gets them, from a reader of their own: they are asked for up to half a
    minute ahead, once, and hardly any is kept. duration: seconds of all of them, as far as known; 0: unknown.
    """

    def __init__(self, frames: Iterable[tuple[int, Any]], duration: float = 0.0) -> None:
        if not isinstance(duration, int | float | np.number | Fraction) or not 0 <= duration < math.inf:
            raise ValueError(f"duration is {duration!r}; expected the film's seconds, or 0 where they are not known.")
        self.duration = duration
        if not isinstance(frames, Iterable):
            raise ValueError(f"frames is {frames!r:.40}; expected what gives pairs of pts and picture.")
        self._frames = iter(frames)
        self._watcher: Watcher | None = None
        self._time_base = Fraction(1)
        self._seen: deque[tuple[int, float, Sight]] = deque()  # pts, seconds, and what was seen; the present one first
        self._looks: deque[Look] = deque()  # of the same frames
        self._tiles: dict[int, Array] = {}  # of some of them, by pts
        self._kept_at = -math.inf  # seconds, of the last of these
        self.last = 0.0  # seconds, of the last frame that has been looked at
        self.ended = False  # there are no more

    def watch_with(self, watcher: Watcher, time_base: Fraction) -> None:
        """Begin. ValueError when another encoder has begun: frames are there once."""
        if self._watcher is not None:
            raise ValueError("A Film is for one Encoder; make another from the same frames.")
        self._watcher, self._time_base = watcher, time_base

    def sight(self, pts: int) -> Sight:
        """What was seen in the frame of this pts; those before it are forgotten. ValueError for another frame than the
        film has there."""
        while self._seen and self._seen[0][0] < pts:
            self._tiles.pop(self._seen.popleft()[0], None)
            self._looks.popleft()
        if not self._seen:
            self._look()
        if not self._seen or self._seen[0][0] != pts:
            found = f"a frame at {self._seen[0][0]}" if self._seen else "its end"
            raise ValueError(f"pts is {pts}, where the film has {found}: encode the frames that Film was given.")
        return self._seen[0][2]

    @property
    def present(self) -> Look:
        """Of the frame that was asked for last."""
        return self._looks[0]

    def ahead(self, seconds: float) -> tuple[list[float], list[Look]]:
        """Of the present frame and those of the next ``seconds``: when they are, and what they look like."""
        while not self.ended and self._seen and self._seen[-1][1] <= self._seen[0][1] + seconds:
            self._look()
        times = [at for _, at, _ in self._seen]
        count = bisect_left(times, times[0] + seconds) if times else 0
        return times[:count], list(islice(self._looks, count))

    def typical_after(self, look: Look) -> tuple[Array, Array | None] | None:
        """Of what comes in the same shot: a tile of middling contrast and the box of the face in it, where this look
        has much less or more of it, or other light on it."""
        kept = [
            (other, pts, sight.estimate)
            for (pts, _, sight), other in zip(self._seen, self._looks, strict=True)
            if pts in self._tiles and other.shot == look.shot
        ]
        if not kept:
            return None
        other, pts, estimate = sorted(kept, key=lambda one: one[0].contrast)[len(kept) // 2]
        more, light = max(1.0, other.contrast) / max(1.0, look.contrast), light_between(look.small, other.small)
        if 1 / FADED < more < FADED and abs(light) < LIT:
            return None
        return self._tiles[pts], None if estimate is None else estimate.box

    def face_after(self, seconds: float) -> float | None:
        """Seconds from the present frame to the first with a face; None: there is none in the next so many."""
        times, looks = self.ahead(seconds)
        return next((at - times[0] for at, look in zip(times, looks, strict=True) if look.face), None)

    def _look(self) -> None:
        assert self._watcher is not None
        frame = next(self._frames, None)
        if frame is None:
            self.ended = True
            return
        if not isinstance(frame, tuple) or len(frame) != 2:
            raise ValueError(f"A Film has pairs of pts and picture; found {type(frame).__name__} among its frames.")
        pts, image = frame
        self.last = seconds = float(pts * self._time_base)
        sight, tile = self._watcher.see(as_picture(image), seconds)
        self._seen.append((pts, seconds, sight))
        if seconds - self._kept_at >= KEPT_SECONDS:
            self._tiles[pts], self._kept_at = tile.copy(), seconds
        for number in range(len(self._looks) - 1, -1, -1):  # what seemed to be another shot was a flashlight
            if self._looks[number].shot <= sight.shot:
                break
            self._looks[number] = replace(self._looks[number], shot=sight.shot)
        self._looks.append(_look_of(tile, sight))


def _look_of(tile: Array, sight: Sight) -> Look:
    whole, seen = grey(tile, WHOLE), sight.estimate
    if seen is None:
        return Look(np.concatenate([whole, np.zeros(FACE**2 + 2 * EYE, np.float32)]), False, sight.shot)
    at = Face.from_box(Square(0, 0, len(tile)), seen.box)
    around = AROUND * at.half_side
    square = Square(round(at.center_x - around), round(at.center_y - around), max(2, round(2 * around)))
    face = crop(tile, square, len(tile) // 2)
    wide = np.array(openings(seen.motion, seen.canonical) or [0.0, 0.0], np.float32)
    eyes = np.repeat(np.rint(np.clip(WIDE * wide, -128, 127)), EYE)
    return Look(np.concatenate([whole, grey(face, FACE), eyes]), True, sight.shot)

"""A film that is at hand: its frames, looked at a while before they are coded. Knows no rate, no packets."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

from .media import as_picture
from .motion import Array
from .watcher import Sight, Watcher


class Film:
    """For ``Encoder(film=...)``: what the encoder is going to be given, in advance.

    frames: (pts, picture) as `Encoder.encode` gets them, from a reader of their own: they are asked for up to half a
    minute ahead, once, and not kept. duration: seconds of all of them, as far as known; 0: unknown.
    """

    def __init__(self, frames: Iterable[tuple[int, Any]], duration: float = 0.0) -> None:
        if not 0 <= duration < math.inf:
            raise ValueError(f"duration is {duration!r}; expected the film's seconds, or 0 where they are not known.")
        self.duration = duration
        self._frames = iter(frames)
        self._watcher: Watcher | None = None
        self._time_base = Fraction(1)
        self._seen: deque[tuple[int, float, Sight]] = deque()  # pts, seconds, and what was seen; the present one first
        self._points: deque[Array] = deque()  # of the same frames
        self._scale: float | None = None  # pixels of 256 a source pixel, in the first square
        self.ended = False  # the last frame has been looked at

    def watch_with(self, watcher: Watcher, time_base: Fraction) -> None:
        """Begin. ValueError when another encoder has begun: frames are there once."""
        if self._watcher is not None:
            raise ValueError("A Film is for one Encoder; make another from the same frames.")
        self._watcher, self._time_base = watcher, time_base

    def sight(self, pts: int) -> Sight:
        """What was seen in the frame of this pts; those before it are forgotten. ValueError for another frame than the
        film has there."""
        while self._seen and self._seen[0][0] < pts:
            self._seen.popleft()
            self._points.popleft()
        if not self._seen:
            self._look()
        if not self._seen or self._seen[0][0] != pts:
            found = f"a frame at {self._seen[0][0]}" if self._seen else "its end"
            raise ValueError(f"pts is {pts}, where the film has {found}: encode the frames that Film was given.")
        return self._seen[0][2]

    @property
    def present(self) -> Array:
        """float32 (K, 2): the keypoints of the frame that was asked for last, as `ahead` has them."""
        return self._points[0]

    def ahead(self, seconds: float) -> tuple[Array, Array]:
        """Of the present frame and those of the next ``seconds``: when they are, float64 (N,), and where the face's
        keypoints are, float32 (N, K, 2), pixels of 256 from the corner of the source; NaN where none is seen."""
        while not self.ended and self._seen and self._seen[-1][1] <= self._seen[0][1] + seconds:
            self._look()
        if not self._seen:
            return np.zeros(0), np.zeros((0, 1, 2), np.float32)
        times = np.array([at for _, at, _ in self._seen])
        count = int(np.searchsorted(times, times[0] + seconds))
        return times[:count], _stacked(list(islice(self._points, count)))

    def _look(self) -> None:
        assert self._watcher is not None
        frame = next(self._frames, None)
        if frame is None:
            self.ended = True
            return
        pts, image = frame
        seconds = float(pts * self._time_base)
        sight, _ = self._watcher.see(as_picture(image), seconds)
        self._seen.append((pts, seconds, sight))
        self._points.append(self._placed(sight))

    def _placed(self, sight: Sight) -> Array:
        if sight.estimate is None:
            return np.full((1, 2), np.nan, np.float32)
        square = sight.square
        if self._scale is None:
            self._scale = 256 / square.side
        corner = np.array([square.x, square.y], np.float32)
        within = (sight.estimate.keypoints[:, :2] + 1) * np.float32(square.side / 2)
        return np.asarray((corner + within) * np.float32(self._scale), np.float32)


def _stacked(points: list[Array]) -> Array:
    """(N, K, 2); frames without a face have no keypoints of their own."""
    count = max(len(one) for one in points)
    return np.stack([np.broadcast_to(one, (count, 2)) for one in points])

"""How the bits of a film are spent that is at hand: the rate is kept on average over all of it, not in any two seconds.

How the head is going to move is known half a minute ahead (film.py). An update is due when what has been seen wrong
since the last picture, in pixels of drift and seconds, has grown to its bytes times a price. The price is the same for
every moment: moments of rest leave their bytes to those of movement. It is found, again every second, by trying which
one makes the updates of what is ahead take what is left for them. How fine the first picture is follows from it, too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from .film import Film
from .motion import Array
from .packet import REFERENCES_MAX
from .rate import (
    CLOSE,
    EVIDENCE,
    FINER,
    REFERENCE_BYTES,
    UPDATE_SHARE,
    WINDOW_SECONDS,
    MotionQuality,
    RateControl,
    growth,
)

HORIZON = 30.0  # seconds that are looked ahead
AGAIN = 1.0  # seconds after which the price is found anew
AIM = 0.96  # of the target: updates of heads that move much take more than was expected of them
COST_MOST = 16.0  # pixels of drift that are counted at most
STEP_MOST = 1.0  # seconds that a frame counts for at most
PRICES = (4e-5, 2.4)  # pixel seconds a byte, between which the price is looked for
TRIES = 9  # halvings of that, in the logarithm
# At this price a key of so many bytes is as fine as it should be, at a higher one it is too fine. The price of a film
# rises with its key, which leaves less for updates.
KEY_BYTES, KEY_PRICE, KEY_POWER = 1100, 0.014, 3.5
MOTION_PRIOR = 2.0  # seconds that the expectation of motion is worth
BLOCK = 64  # frames


class FilmRate(RateControl):
    """Spends what the target brings over the whole of a film. Arguments after ``film``: see RateControl."""

    def __init__(
        self,
        film: Film,
        target_kbps: float,
        headers_kbps: float = 0.0,
        preset: int | None = None,
        *,
        ahead: bool = False,
        lag: float = 0.0,
        motion_every: float = 0.04,
    ) -> None:
        self._film = film
        self._began: float | None = None  # seconds, of the first frame
        self._moves_since: float | None = None  # seconds, of the first face: until then there is no motion to send
        self._earned = 0.0  # bytes that the target has brought
        self._spent = self._motion_spent = 0  # bytes
        self._step = 0.0  # seconds since the frame before
        self._cost = 0.0  # pixel seconds since the last picture
        self._price = math.inf  # of a byte, pixel seconds
        self._priced = -math.inf  # seconds, when it was found
        self._held: deque[Array] = deque(maxlen=REFERENCES_MAX)  # keypoints in the pictures that are held
        super().__init__(target_kbps, headers_kbps, preset, ahead=ahead, lag=lag, motion_every=motion_every)

    def advance(self, seconds: float) -> None:
        self._began = seconds if self._began is None else self._began
        self._step = max(0.0, seconds - self._now) if self._seconds is not None else 0.0
        super().advance(seconds)
        self._earned += self._step * self.bytes_per_second
        if self._root_bytes is not None and seconds - self._priced >= AGAIN:
            self._priced = seconds
            future = _Future(*self._film.ahead(HORIZON), self._held)
            self._price = self._found(future, self._root_bytes, self._cost)

    def spend(self, count: int) -> None:
        super().spend(count)
        self._spent += count

    def spend_motion(self, count: int, payload: int, quality: MotionQuality) -> None:
        super().spend_motion(count, payload, quality)
        self._motion_spent += count

    def sent_key(self, count: int, extra: int = 0) -> None:
        super().sent_key(count, extra)
        self._priced = -math.inf
        self._begin()

    def sent_update(self, count: int) -> None:
        super().sent_update(count)
        self._begin()

    def _begin(self) -> None:
        """The present frame has a picture of its own."""
        self._held.append(self._film.present)
        self._cost = 0.0

    def begin_at_once(self) -> None:
        if self._moves_since is None:  # the first picture comes after frames with a face have waited
            self._moves_since = max(self._now - self._lag, self._began or 0.0)
        self.key_bytes = self._best_key()

    def wants_finer(self) -> bool:
        if self._evidence < EVIDENCE:
            return False
        self._evidence, best = 0.0, self._best_key()
        if best < FINER * self.key_bytes:
            return False
        self.key_bytes = best
        return True

    def wants_coarser(self) -> bool:
        return False  # the key was chosen for what is ahead

    def affords_picture(self, drift: float, *, waiting: bool = False) -> bool:
        self._drift = drift
        self._cost += min(drift, COST_MOST) * min(self._step, STEP_MOST)
        return drift >= CLOSE and self._cost >= self._price * self.picture_bytes

    # --- no moment is held to the rate ---

    @property
    def purse(self) -> float:
        return math.inf

    @property
    def room(self) -> float:
        return math.inf

    @property
    def _motion_allowed(self) -> float:
        return math.inf

    @property
    def _full(self) -> float:
        return math.inf

    # --- what is ahead ---

    def _best_key(self) -> int:
        """Bytes of a key for the present frame."""
        future = _Future(*self._film.ahead(HORIZON), [self._film.present])

        def too_coarse(size: float) -> bool:
            price = self._found(future, UPDATE_SHARE * size, 0.0, size)
            return price < KEY_PRICE * (KEY_BYTES / size) ** KEY_POWER

        return round(_narrowed(REFERENCE_BYTES, too_coarse)[0])

    def _found(self, future: _Future, root: float, cost: float, key: float = 0.0) -> float:
        """The price at which the updates ahead take what is left for them. key: bytes that are spent before."""
        budget = self._left(future, key)
        return _narrowed(PRICES, lambda price: future.updates(price, root, self._update_extra, cost) > budget)[1]

    def _left(self, future: _Future, key: float) -> float:
        """Bytes for updates of what is ahead."""
        past = self._now - (self._began or 0.0)
        left = ahead = future.seconds
        if not self._film.ended:
            left = max(self._film.duration - past, 2 * HORIZON)
        lacking = max(0.0, WINDOW_SECONDS - past - left)  # shorter films take what two seconds may take
        whole = AIM * (self._earned + self.bytes_per_second * (left + lacking)) - self._spent - key
        moved = self._now - (self._moves_since or 0.0)
        motion = (self._motion_spent + MOTION_PRIOR * self._start_motion) / (moved + MOTION_PRIOR)
        return whole * (ahead / left if left else 1.0) - motion * ahead


def _narrowed(bounds: tuple[float, float], too_small: Callable[[float], bool]) -> tuple[float, float]:
    """``bounds`` around what is just not too small, halved TRIES times in the logarithm."""
    low, high = map(math.log, bounds)
    for _ in range(TRIES):
        value = math.exp((low + high) / 2)
        low, high = (math.log(value), high) if too_small(value) else (low, math.log(value))
    return math.exp(low), math.exp(high)


class _Future:
    """Frames to come, and the updates that they would ask for.

    times: (N,) seconds. points: (N, K, 2), see Film.ahead. held: keypoints (K, 2) in the pictures held now.
    """

    def __init__(self, times: Array, points: Array, held: Sequence[Array] | deque[Array]) -> None:
        last = 2 * times[-1] - times[-2] if len(times) > 1 else times[-1]
        self._steps = np.minimum(np.diff(times, append=last), STEP_MOST)
        self._points = points
        self._rows: dict[int, Array] = {}
        self._far = [self._away(picture) for picture in held]
        self.seconds = float(last - times[0])

    def _away(self, picture: Array) -> Array:
        """(N,): how far the face in each frame is from there, pixels; 0 where none is seen. Infinitely far from a
        picture without a face, from which none is drawn (see sender.py)."""
        if np.isnan(picture).any():
            return np.where(np.isnan(self._points).any((1, 2)), 0.0, np.inf)
        return np.nan_to_num(np.sqrt(((self._points - picture) ** 2).sum(2).mean(1)))

    def updates(self, price: float, root: float, extra: float, cost: float) -> float:
        """Bytes of all of them. root: bytes for each unit of growth, extra: of each besides. cost: pixel
        seconds so far."""
        far, total, at = deque(self._far, maxlen=REFERENCES_MAX), 0.0, 0
        while (due := self._due(far, price, root, extra, cost, at)) is not None:
            at, size = due
            total += size
            if at not in self._rows:
                self._rows[at] = self._away(self._points[at])
            far.append(self._rows[at])
            at, cost = at + 1, 0.0
        return total

    def _due(
        self, far: deque[Array], price: float, root: float, extra: float, cost: float, since: int
    ) -> tuple[int, float] | None:
        """The next frame, from this one on, that asks for an update, and what that takes."""
        for start in range(since, len(self._steps), BLOCK):
            part = slice(start, start + BLOCK)
            drift = np.min([way[part] for way in far], axis=0)
            size = root * growth(drift) + extra
            costs = cost + np.cumsum(np.minimum(drift, COST_MOST) * self._steps[part])
            due = (costs >= price * size) & (drift >= CLOSE)
            first = int(due.argmax())
            if due[first]:
                return start + first, float(size[first])
            cost = float(costs[-1])
        return None

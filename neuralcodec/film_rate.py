"""How the bits of a film are spent that is at hand: the rate is kept on average over all of it, not in any two seconds.

What comes in the next half minute is known (film.py). Of which frames updates are made is planned so that two things
together come to the least: by how much frames differ from the picture they are shown from, in grey levels and seconds,
and what updates take, in bytes times a price. The price is the same for every moment: moments of rest leave their bytes
to those of movement. It is found, again every second, by trying with which one the updates of what is ahead take what
is left for them. Every shot of a film that is cut begins with a key, whose bytes are kept for it; how fine it is
follows from the price, too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .film import FADED, Film, Look
from .motion import Array
from .packet import REFERENCES_MAX
from .rate import (
    EVIDENCE,
    FINER,
    REFERENCE_BYTES,
    WINDOW_SECONDS,
    MotionQuality,
    RateControl,
)

HORIZON = 30.0  # seconds that are looked ahead
AGAIN = 1.0  # seconds after which the price is found anew
AIM = 0.96  # of the target: updates of heads that move much take more than was expected of them
# Grey levels, root mean square of a Look's points. A picture of a frame that differs by less than SAME from the one
# in use would show nothing new. CHANGE_MOST: that are counted at most.
SAME, CHANGE_MOST = 0.5, 40.0
# Times as much is seen wrong where nothing can be drawn, or all is much darker or brighter than it was. Two training
# clips with black between them, into which both fade: the worst second is at 21.0 dB, at 12.6 without the latter.
UNDRAWN = 2.0
# Instead, from a picture of another shot: a shot gets its key whatever that costs. Ten training clips of four seconds
# each behind one another: 26.66 dB at 3.88 kbit/s and 24.07 at 1.91, where shots that began with updates which nobody
# had planned for gave 26.23 at 3.87 and 24.01 at 2.01, and faces with patches of those before. Of two seconds each:
# 25.54 dB at 3.84 kbit/s and 23.38 at 1.99 for 25.79 at 3.94 and 23.46 at 2.28.
ELSEWHERE = 1e4
# What an update takes is in proportion to its change and CHANGE_LEAST, and the first time UPDATE_SHARE of its key's
# bytes for each of these: 471 updates of nine training clips at 4 and 10 kbit/s took 0.0068 to 0.0152 (four fifths of
# them; for each unit of the root of the drift in pixels and 3 that is 0.020 to 0.084). What has less contrast than it
# changes, such as black, takes as much as that.
CHANGE_LEAST, UPDATE_SHARE = 3.0, 0.0105
STEP_MOST = 1.0  # seconds that a frame counts for at most
PRICES = (8e-5, 5.0)  # grey levels times seconds a byte, between which the price is looked for
TRIES = 9  # halvings of that, in the logarithm
FRAMES_MOST = 800  # that are planned, those that wait included
# At this price a key of so many bytes is as fine as it should be, at a higher one it is too fine. The price of a film
# rises with its key, which leaves less for updates. Ten training clips of 12 seconds at 4 kbit/s, before looks had the
# face in them: 0.01, 0.013 and 0.02 are 1.34, 1.26 and 1.19 dB above a constant rate at equal bytes.
KEY_BYTES, KEY_PRICE, KEY_POWER = 1100, 0.01, 3.5
OWED_SECONDS = 5.0  # in which motion may save what has been spent too much, at least
MOTION_PRIOR = 2.0  # seconds that the expectation of motion is worth


class FilmRate(RateControl):
    """Spends what the target brings over the whole of a film. waits: frames that motion waits, so that a frame can be
    shown from a picture after it. Other arguments after ``film``: see RateControl."""

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
        waits: int = 0,
    ) -> None:
        self._film, self._waits = film, waits
        self._began: float | None = None  # seconds, of the first frame
        self._moves_since: float | None = None  # seconds, of the first face: until then there is no motion to send
        self._earned = 0.0  # bytes that the target has brought
        self._spent = self._motion_spent = 0  # bytes
        self._step = 0.0  # seconds since the frame before
        self._price = math.inf  # of a byte, grey levels times seconds
        self._plan: deque[float] = deque()  # seconds, of the frames that are to have pictures
        self._priced = -math.inf  # seconds, when both were found
        self._finer_at = -math.inf  # seconds, when a finer key was wanted
        self._held: deque[Look] = deque(maxlen=REFERENCES_MAX)  # of the frames whose pictures are held
        self._past: deque[tuple[float, Look]] = deque(maxlen=waits + 1)  # seconds and looks, the present frame last
        super().__init__(target_kbps, headers_kbps, preset, ahead=ahead, lag=lag, motion_every=motion_every)

    def advance(self, seconds: float) -> None:
        self._began = seconds if self._began is None else self._began
        self._step = max(0.0, seconds - self._now) if self._seconds is not None else 0.0
        super().advance(seconds)
        self._earned += self._step * self.bytes_per_second
        self._past.append((seconds, self._film.present))
        if self._root_bytes is not None and seconds - self._priced >= AGAIN:
            self._priced = seconds
            future = self._future(self._held)
            self._price = self._found(future, self._root_bytes, self.key_bytes)
            self._plan = deque(future.plan(self._price, self._root_bytes, self._update_extra, self.key_bytes)[0])

    def spend(self, count: int) -> None:
        super().spend(count)
        self._spent += count

    def spend_motion(self, count: int, payload: int, quality: MotionQuality) -> None:
        super().spend_motion(count, payload, quality)
        self._motion_spent += count

    def sent_key(self, count: int, extra: int = 0, of: float | None = None) -> None:
        super().sent_key(count, extra)
        faded = of is not None and self.typical_after(of) is not None
        self._root_bytes = UPDATE_SHARE * (self.key_bytes if faded else count)
        self._priced = -math.inf
        self._begin(of)

    def sent_update(self, count: int) -> None:
        present = self._film.present
        self._drift = min(float(_changes([present], self._held).min()), present.contrast)
        super().sent_update(count)
        if not self._due:
            self._priced = -math.inf  # nobody had planned it
        self._begin()

    def _growth(self, drift: float) -> float:
        return float(_shares(drift))

    def _begin(self, of: float | None = None) -> None:
        """The frame of this time, which may have waited, has a picture of its own; None: the present one."""
        self._held.append(self._look_at(of))
        while self._plan and self._plan[0] <= self._now:
            self._plan.popleft()

    def _look_at(self, of: float | None) -> Look:
        """Of the frame of this time, which may have waited; None: the present one."""
        return next((look for at, look in self._past if at == of), self._film.present)

    def begin_at_once(self, of: float | None = None, extra: int = 0) -> None:
        if self._moves_since is None:  # the first picture comes after frames with a face have waited
            self._moves_since = max(self._now - self._lag, self._began or 0.0)
        self._update_extra = extra
        if self._finer_at != self._now:
            self.key_bytes = self._best_key(of)

    def wants_finer(self) -> bool:
        if self._evidence < EVIDENCE:
            return False
        self._evidence, best = 0.0, self._best_key()
        if best < FINER * self.key_bytes:
            return False
        self.key_bytes, self._finer_at = best, self._now
        return True

    def wants_coarser(self) -> bool:
        return False  # the key was chosen for what is ahead

    def typical_after(self, of: float) -> tuple[Array, Array | None] | None:
        return self._film.typical_after(self._look_at(of))

    def begins_shot(self) -> bool:
        return True

    def affords_picture(self, drift: float, *, waiting: bool = False) -> bool:
        return self._due

    @property
    def _due(self) -> bool:
        return bool(self._plan) and self._plan[0] <= self._now

    # --- no moment is held to the rate ---

    @property
    def purse(self) -> float:
        return math.inf

    @property
    def room(self) -> float:
        return math.inf

    @property
    def owes_much(self) -> bool:
        return False

    @property
    def _motion_allowed(self) -> float:
        """Beside it, what has been spent too much is to be saved by the end of the film."""
        owed = self._spent - AIM * self._earned
        return AIM * self.bytes_per_second - owed / max(self._left_seconds, OWED_SECONDS)

    @property
    def _full(self) -> float:
        return math.inf

    # --- what is ahead ---

    def _future(self, held: Iterable[Look]) -> _Future:
        """What comes, and the frames that wait, as they would be shown from these pictures."""
        past = list(self._past)[:-1]
        frames = [*past, *zip(*self._film.ahead(HORIZON), strict=True)][:FRAMES_MOST]
        return _Future(
            np.array([at for at, _ in frames]), [look for _, look in frames], held,
            present=len(past), waits=self._waits,
            until=self._plan[REFERENCES_MAX - 1] if len(self._plan) >= REFERENCES_MAX else math.inf,
        )  # fmt: skip

    def _best_key(self, of: float | None = None) -> int:
        """Bytes of a key for the frame of this time; None: the present one."""
        future = self._future([self._look_at(of)])

        def too_coarse(size: float) -> bool:
            price = self._found(future, UPDATE_SHARE * size, size, spent=size)
            return price < KEY_PRICE * (KEY_BYTES / size) ** KEY_POWER

        return round(_narrowed(REFERENCE_BYTES, too_coarse)[0])

    def _found(self, future: _Future, root: float, key: float, *, spent: float = 0.0) -> float:
        """The price at which the pictures ahead take what is left for them. key: bytes of those that begin shots.
        spent: bytes that go before."""
        budget = self._left(future, spent)
        return _narrowed(PRICES, lambda price: future.plan(price, root, self._update_extra, key)[1] > budget)[1]

    def _left(self, future: _Future, spent: float) -> float:
        """Bytes for pictures of what is ahead, after so many."""
        ahead, left = future.seconds, self._left_seconds
        lacking = max(0.0, WINDOW_SECONDS - self._past_seconds - left)  # shorter films take what two seconds may take
        whole = AIM * (self._earned + self.bytes_per_second * (left + lacking)) - self._spent - spent
        moved = self._now - (self._now if self._moves_since is None else self._moves_since)
        motion = (self._motion_spent + MOTION_PRIOR * self._start_motion) / (moved + MOTION_PRIOR)
        return whole * (ahead / left if left > ahead else 1.0) - motion * ahead

    @property
    def _past_seconds(self) -> float:
        return self._now - (self._began or 0.0)

    @property
    def _left_seconds(self) -> float:
        """Of the film, as far as known, with the present frame."""
        if self._film.ended:
            return self._film.last - self._now + self._step
        return max(self._film.duration - self._past_seconds, 2 * HORIZON)


def _narrowed(bounds: tuple[float, float], too_small: Callable[[float], bool]) -> tuple[float, float]:
    """``bounds`` around what is just not too small, halved TRIES times in the logarithm."""
    low, high = map(math.log, bounds)
    for _ in range(TRIES):
        value = math.exp((low + high) / 2)
        low, high = (math.log(value), high) if too_small(value) else (low, math.log(value))
    return math.exp(low), math.exp(high)


class _Future:
    """Frames that wait or come, and the updates that are best made of them.

    times: (N,) seconds. looks: N. held: looks of the pictures held now. present: index of the first frame that can have
    an update. waits: frames that a frame waits for a better picture. until: seconds, when the last of those held has
    given its place to an update.
    """

    def __init__(
        self, times: Array, looks: Sequence[Look], held: Iterable[Look], *, present: int = 0, waits: int = 0,
        until: float = math.inf,
    ) -> None:
        last = 2 * times[-1] - times[-2] if len(times) > 1 else times[-1]
        self._times, self._present = times, present
        self.seconds = float(last - times[present])
        steps = np.minimum(np.diff(times, append=last), STEP_MOST)
        # [frame, picture]: the first picture stands for all that are held
        held = list(held)
        # where the frame would begin another shot, with a key
        self._begins = np.concatenate([_elsewhere(looks, held).all(1, keepdims=True), _elsewhere(looks, looks)], 1)
        here, there = _changes(looks, looks), _changes(looks, held)
        changes = _columns(here, there, times <= until)
        seen = _columns(_seen_wrong(looks, looks, here), _seen_wrong(looks, held, there), times <= until)
        seen[self._begins] = ELSEWHERE
        self._wrong(seen * steps[:, None], waits)
        self._shares = _shares(np.minimum(changes, np.array([[look.contrast] for look in looks])))
        self._shares[changes < SAME] = np.inf  # would show nothing new

    def _wrong(self, costs: Array, waits: int) -> None:
        """From the cost of each frame with each picture: that of all frames between two pictures, and of all after the
        last one. Frames that wait when the next picture is made are shown from the better of both."""
        count = len(costs)
        before = np.zeros((count + 1, count + 1))  # [frame, picture]: of all frames before this one
        np.cumsum(costs, axis=0, out=before[1:])
        own = before[np.arange(1, count + 1), np.arange(1, count + 1)]  # up to a picture, its own frame included
        since = np.concatenate([[0.0], own])
        self._after = before[-1] - since
        shown = np.maximum(np.arange(count) - waits, 0)  # frames that no longer wait when this one comes
        between = np.maximum(before[shown] - since, 0.0)
        after = np.tril(costs)  # of frames after their picture
        for back in range(1, min(waits, count - 1) + 1):
            between[back:] += np.minimum(after[:-back], np.diagonal(costs, 1 + back)[:, None])
        self._between = between

    def plan(self, price: float, root: float, extra: float, key: float = 0.0) -> tuple[list[float], float]:
        """When the frames are of which pictures are made, and bytes of all these. price: of a byte. root: bytes for
        each share of an update, extra: of each picture besides. key: bytes of the first picture of a shot."""
        count = len(self._times)
        sizes = np.where(self._begins, key, root * self._shares) + extra
        ways = self._between + price * sizes
        best, last = np.full(count + 1, np.inf), np.zeros(count + 1, np.intp)
        best[0] = 0.0
        for frame in range(self._present, count):
            sums = best[: frame + 1] + ways[frame, : frame + 1]
            last[frame + 1] = picture = sums.argmin()
            best[frame + 1] = sums[picture]
        at = int((best + self._after).argmin())
        moments, total = [], 0.0
        while at:
            moments.append(float(self._times[at - 1]))
            total += float(sizes[at - 1, last[at]])
            at = int(last[at])
        return moments[::-1], total


def _changes(looks: Sequence[Look], pictures: Iterable[Look]) -> Array:
    """(N, M): by how many grey levels frames differ from pictures, root mean square. A face is infinitely far from a
    picture without one, and all is from pictures of another shot: from these none is drawn (see sender.py)."""
    pictures = list(pictures)
    these, those = (np.stack([one.grey for one in some]) for some in (looks, pictures))
    squares = [(some.astype(np.float64) ** 2).sum(1) for some in (these, those)]
    far = np.sqrt(np.maximum(squares[0][:, None] + squares[1] - 2.0 * (these @ those.T), 0.0) / these.shape[1])
    face, drawn = (np.array([one.face for one in some]) for some in (looks, pictures))
    far[(face[:, None] & ~drawn) | _elsewhere(looks, pictures)] = np.inf
    return np.asarray(far)


def _columns(of_frames: Array, of_held: Array, kept: Array) -> Array:
    """(N, 1 + N): the best of the held pictures, then those of the frames, beside which it still is where ``kept``."""
    near = of_held.min(1, keepdims=True)
    return np.concatenate([near, np.where(kept[:, None], np.minimum(of_frames, near), of_frames)], 1)


def _seen_wrong(looks: Sequence[Look], pictures: Sequence[Look], changes: Array) -> Array:
    """(N, M): grey levels that are seen wrong of frames shown from pictures which they differ from so much."""
    faces = np.array([look.face for look in looks])[:, None]
    these, those = (np.log([max(1.0, look.contrast) for look in some]) for some in (looks, pictures))
    drawn = faces & (np.abs(these[:, None] - those) < math.log(FADED))
    return np.where(drawn, 1.0, UNDRAWN) * np.minimum(changes, CHANGE_MOST)


def _elsewhere(looks: Sequence[Look], pictures: Sequence[Look]) -> Array:
    """(N, M): whether frames are of another shot than pictures."""
    shots, others = (np.array([one.shot for one in some]) for some in (looks, pictures))
    return np.asarray(shots[:, None] != others)


def _shares(changes: Any) -> Any:
    """What updates take is in proportion to this."""
    return np.minimum(changes, CHANGE_MOST) + CHANGE_LEAST

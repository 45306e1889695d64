"""Symbols of frames that share a packet, chosen together: the fewest bits for their error. The sender's business alone;
receivers need to know nothing of it.

Rounding each frame by itself, as the quantizer does, takes the nearest step now, whatever that makes the next frames
cost. Frames whose packet waits for the last of them can be weighed against one another: number by number, the
M-algorithm (Anderson and Mohan, "Sequential coding algorithms", 1984) follows the PATHS cheapest sequences of steps to
either side of what is wanted through the closed loop. A symbol costs its squared error and its code length by the
pack's own tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .entropy import LONGEST, EntropyCoder, near_sums
from .motion import Array
from .quantizer import ACTIVITY_CAP, ACTIVITY_ONE, MOMENTUM_ONE, SYMBOL_LIMIT, State, Symbols, advance

# Of a squared step, what a bit may cost. Tracks of 15 training clips, all but scene, eight frames a packet, bytes a
# frame and pixels of 256 at the ladder's third step: frame by frame 3.97 and 0.413; 0.1 3.94 and 0.393, 0.15 3.74 and
# 0.404, 0.2 3.61 and 0.414, 0.4 3.36 and 0.443. With 0.4, and zero tried beside the two nearest steps, blinks got lost:
# 505 of 631 closed eyes of validation clips were shown closed, 541 frame by frame.
BIT_COST = 0.15
PATHS = 8  # 4 take 0.7 % more bytes at equal error, 16 0.2 % fewer; all of a clip at once would take 1.6 % fewer


class Trellis:
    """Holds tables only, so one instance serves any number of streams."""

    def __init__(self, coder: EntropyCoder) -> None:
        self._tables, self._lengths = coder.tables, coder.code_lengths
        self._own, self._near = (np.array(t) for t in (self._tables.own_thresholds, self._tables.near_thresholds))
        contexts = len(self._own) + 1, len(self._near) + 1
        self._rows = np.array(self._tables.predicted).reshape(-1, self._tables.size, *contexts)  # of the bank

    def settled(self, group: Sequence[Symbols], wanted: Array, weights: Array) -> tuple[list[Symbols], State]:
        """Better symbols for consecutive frames of one packet, and the state after them.

        group: F predicted frames of one level and component count as the quantizer found them one by one; the first
        one's state is where these begin. wanted: float64 (F, coded components), see :meth:`Quantizer.wanted`. weights:
        (N,), of each component's squared error.
        """
        level, components, state = group[0].level, group[0].components, group[0].state
        symbols = []
        for row in self._cheapest(np.array([frame.values for frame in group]), wanted, weights, level, state).tolist():
            symbols.append(Symbols(level, components, False, tuple(row), state))
            state = advance(self._tables, symbols[-1])
        return symbols, state

    def _cheapest(self, before: Array, wanted: Array, weights: Array, level: int, state: State) -> Array:
        """int (F, N): for each component the cheapest sequence, beside the others' symbols as they were."""
        count, step = before.shape[1], self._tables.levels[level]
        near, bank = np.searchsorted(self._near, near_sums(before), side="right"), self._rows[level]
        momentum = np.array(self._tables.momentum[level])[:count, None]
        price, thresholds = BIT_COST * step * step, self._own * step
        each = np.arange(count)[:, None]
        # (N, paths), one path at first
        value, older, activity = (np.array(x)[:count, None] for x in (state.values, state.older, state.activity))
        weights = weights[:count, None]
        cost, steps = np.zeros((count, 1)), []
        for frame, target in enumerate(wanted[..., None]):
            expected = value + ((momentum * (value - older) + MOMENTUM_ONE // 2) >> 6)
            below = np.clip(np.floor((target - expected) / step), -SYMBOL_LIMIT, SYMBOL_LIMIT - 1).astype(int)
            ways = np.stack([below, below + 1])  # (2, N, paths)
            own = (activity[..., None] >= thresholds).sum(-1)
            length = self._lengths[bank[each, own, near[frame][:, None]], np.clip(ways, -LONGEST, LONGEST) + LONGEST]
            sums = cost + weights * (expected + ways * step - target) ** 2 + price * length
            sums, ways = (x.transpose(1, 0, 2).reshape(count, -1) for x in (sums, ways))
            best = np.argsort(sums, axis=1, kind="stable")[:, :PATHS]
            origin = best % value.shape[1]
            cost, symbol = sums[each, best], ways[each, best]
            older, value = value[each, origin], expected[each, origin] + symbol * step
            size = np.where(symbol, np.minimum(np.abs(symbol), ACTIVITY_CAP) * ACTIVITY_ONE * step, 0)
            activity = activity[each, origin]
            activity = activity + ((size - activity) >> 2)
            steps.append((origin, symbol))
        chosen, path = np.empty_like(before), cost.argmin(1)
        for frame in range(len(before) - 1, -1, -1):
            origin, symbol = steps[frame]
            chosen[frame], path = symbol[each[:, 0], path], origin[each[:, 0], path]
        return chosen

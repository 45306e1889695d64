"""Symbols to bytes and back: integer tables and contexts, constriction's range coder. Knows no motion and no floats.

A residual is one *bucket* (coded with a frequency row that its context picks) and, for large values, raw bits inside
the bucket. Zero is the first bucket, so a frame in which nothing changed is the lowest code value: zero bytes.
Constriction writes 32-bit words; :func:`shortest` keeps only the bytes that a decoder reading zeros past the end needs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from math import log2
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from .errors import BitstreamError
from .quantizer import PRECISION, MotionTables, State, Symbols, advance

SMALL = 4  # magnitudes 1..4 have a bucket each
DOUBLINGS = 14  # then buckets of 2, 4, 8, ... 2**14 magnitudes
STARTS = tuple(range(1, SMALL + 1)) + tuple(SMALL - 1 + (1 << b) for b in range(1, DOUBLINGS + 1))
RAW_BITS = (0,) * SMALL + tuple(range(1, DOUBLINGS + 1))
ALPHABET = 1 + 2 * len(STARTS)  # bucket 0 is zero; 2m + 1 holds +magnitudes of class m, 2m + 2 the negative ones
NEAR = 12  # earlier components of the same frame that the second context looks at
NEAR_CAP = 4
LONGEST = 20  # magnitude up to which code lengths are told

_Rows = list[tuple[Any, ...]]  # per component: the model of each near context


class EntropyCoder:
    """Codes one packet at a time. It holds tables only, so one instance serves any number of streams."""

    def __init__(self, tables: MotionTables) -> None:
        self.tables = tables
        models = [row_model(row) for row in tables.bank]
        self._row_of = {model: row for row, model in enumerate(models)}
        width = len(tables.near_thresholds) + 1
        self._predicted = [
            [[tuple(models[r] for r in rows[k : k + width]) for k in range(0, len(rows), width)] for rows in level]
            for level in tables.predicted
        ]  # [level][component][own context][near context]
        self._intra = [[(models[row],) * width for row in level] for level in tables.intra]
        # Thresholds in the activity's own unit, so that coding compares and never divides.
        self._own = [tuple(t * step for t in tables.own_thresholds) for step in tables.levels]
        self._near = [bisect_right(tables.near_thresholds, total) for total in range(NEAR * NEAR_CAP + 1)]

    def encode(self, symbols: Symbols | Sequence[Symbols]) -> bytes:
        """Payload of one frame, or of consecutive frames that share one packet."""
        coder = constriction.stream.queue.RangeEncoder()
        for frame in [symbols] if isinstance(symbols, Symbols) else symbols:
            rows = self._rows(frame.level, len(frame.values), frame.intra, frame.state)
            near, window = 0, [0] * NEAR
            for i, q in enumerate(frame.values):
                size = abs(q)
                m = size - 1 if size <= SMALL else bisect_right(STARTS, size) - 1
                coder.encode(2 * m + (1 if q > 0 else 2) if q else 0, rows[i][self._near[near]])
                if size > SMALL:
                    coder.encode(size - STARTS[m], _RAW[RAW_BITS[m]])
                size = min(size, NEAR_CAP)
                near += size - window[i % NEAR]
                window[i % NEAR] = size
        return shortest(coder)

    def decode(self, payload: bytes, *, level: int, components: int, intra: bool, state: State) -> Symbols:
        """Inverse of :meth:`encode` for one frame. Any bytes give symbols or a BitstreamError."""
        return self.decode_group(payload, 1, level=level, components=components, intra=intra, state=state)[0]

    def decode_group(
        self, payload: bytes, frames: int, *, level: int, components: int, intra: bool, state: State
    ) -> list[Symbols]:
        """Inverse of :meth:`encode` for ``frames`` consecutive frames; ``intra`` speaks of the first, the others never
        are. ``state`` is the receiver's state before the first frame; :func:`quantizer.advance` carries it on."""
        coder = range_decoder(payload)
        count, group = self.tables.coded(components), []
        try:
            for _ in range(frames):
                rows = self._rows(level, count, intra, state)
                values, near, window = [], 0, [0] * NEAR
                for i in range(count):
                    bucket = coder.decode(rows[i][self._near[near]])
                    m, size = (bucket - 1) >> 1, 0
                    if bucket:
                        size = STARTS[m] + (coder.decode(_RAW[RAW_BITS[m]]) if m >= SMALL else 0)
                    values.append(size if bucket & 1 else -size)
                    size = min(size, NEAR_CAP)
                    near += size - window[i % NEAR]
                    window[i % NEAR] = size
                group.append(Symbols(level, components, intra, tuple(values), state))
                state, intra = advance(self.tables, group[-1]), False
        except (AssertionError, ValueError) as problem:
            raise BitstreamError(
                f"motion payload {payload[:8].hex()}.. is no code word of these tables; drop the packet", rule="R19"
            ) from problem
        return group

    def ideal_bits(self, frame: Symbols) -> float:
        """Code length of one frame by the tables alone, without a coder's rounding: for fitting and reports."""
        rows, bank, bits = self._rows(frame.level, len(frame.values), frame.intra, frame.state), self.tables.bank, 0.0
        sizes = [min(abs(q), NEAR_CAP) for q in frame.values]
        for i, q in enumerate(frame.values):
            bits += _code_length(bank[self._row_of[rows[i][self._near[sum(sizes[max(0, i - NEAR) : i])]]]], q)
        return bits

    @cached_property
    def code_lengths(self) -> NDArray[np.float64]:
        """(rows of the bank, 2 * LONGEST + 1): bits of each symbol from -LONGEST on."""
        symbols = range(-LONGEST, LONGEST + 1)
        return np.array([[_code_length(row, q) for q in symbols] for row in self.tables.bank])

    def _rows(self, level: int, count: int, intra: bool, state: State) -> _Rows:
        if intra:
            return self._intra[level][:count]
        own, rows = self._own[level], self._predicted[level]
        return [rows[i][bisect_right(own, state.activity[i])] for i in range(count)]


def _code_length(row: Sequence[int], q: int) -> float:
    """Bits of a symbol in this frequency row."""
    m = bisect_right(STARTS, abs(q)) - 1
    return PRECISION - log2(row[2 * m + (1 if q > 0 else 2) if q else 0]) + (RAW_BITS[m] if q else 0)


def near_sums(symbols: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the near contexts of frames of symbols (..., N) look at: the capped sizes of the last NEAR before each."""
    sums = np.cumsum(np.minimum(np.abs(symbols), NEAR_CAP), axis=-1)
    sums = np.concatenate([np.zeros((*symbols.shape[:-1], NEAR + 1), sums.dtype), sums], axis=-1)
    return sums[..., NEAR:-1] - sums[..., : -NEAR - 1]


def range_decoder(payload: bytes) -> Any:
    """Constriction's RangeDecoder of these bytes; it reads zeros past their end."""
    return constriction.stream.queue.RangeDecoder(
        np.frombuffer(payload + bytes(-len(payload) % 4), ">u4").astype(np.uint32)
    )


def shortest(coder: Any, *, followed: bool = False) -> bytes:
    """The fewest bytes that a RangeDecoder, fed zeros past their end, decodes to the same symbols. followed: whatever
    bytes come behind them.

    Any number in [low, low + size) decodes alike; ``pos()`` gives ``size`` and the low 64 bits of ``low``, the
    compressed words are some number inside the interval. So ``low`` is known exactly and the answer is the multiple
    of the largest power of 256 inside the interval.
    """
    words = coder.get_compressed()
    position, (lower, size) = coder.pos()
    bits = 32 * max(position + 2, len(words))
    inside = int.from_bytes(words.astype(">u4").tobytes(), "big") << (bits - 32 * len(words))
    scale = bits - 32 * (position + 2)
    low = (inside >> scale) - (((inside >> scale) - lower) % (1 << 64))
    bits -= scale
    for count in range(bits // 8 + 1):
        drop = bits - 8 * count
        top = -(-low >> drop)
        if (top << drop) + (((1 << drop) - 1) if followed else 0) < low + size:
            return top.to_bytes(count, "big") if count else b""
    raise AssertionError("unreachable: low itself lies inside the interval")


def exact_cumulative(row: Sequence[int]) -> list[int]:
    """Cumulative frequencies as the range coder uses them, out of 2**24 (FORMAT.md section 6)."""
    free = (1 << 24) - len(row)
    return [(c * free >> PRECISION) + i for i, c in enumerate(accumulate(row[:-1], initial=0))] + [1 << 24]


def row_model(row: Sequence[int]) -> Any:
    """What constriction codes a symbol of this frequency row with."""
    # Multiples of 2**-15 are exact floats, so constriction's fixed-point tables are exactly exact_cumulative(row).
    shares = np.array(row, np.float64) / (1 << PRECISION)
    return constriction.stream.model.Categorical(shares, perfect=False, lazy=False)


_RAW = [constriction.stream.model.Uniform(1 << bits) if bits else None for bits in range(DOUBLINGS + 1)]

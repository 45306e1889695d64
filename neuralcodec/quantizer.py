"""Motion to integers and back, in a closed loop both ends repeat exactly. Knows no bytes and no packets.

One linear transform (``analysis`` / ``synthesis``, fitted by export/fit_tables.py) turns the flat motion vector into
coefficients in *units*: 1 unit moves the keypoints by 1/64 pixel of a 256-pixel picture, root mean square. The first
seven coefficients are the pose, the others expression and scene in falling order of importance. Everything after that
rounding is integer arithmetic (FORMAT.md section 5):

    guess = state + momentum * (state - older state)         both ends
    symbol q = round((wanted - guess) / step)                sender only, with a dead zone
    state = guess + q * step                                 both ends
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import PackError
from .motion import POSE_SIZE, MotionParams

Array = NDArray[Any]

TABLES_FORMAT = 1
PRECISION = 15  # bits: every row of the bank sums to 2**15
VALUE_LIMIT = 1 << 17  # units; states are clipped to it, so garbage cannot grow them
SCENE_MAX = 16  # nodes a side
SYMBOL_LIMIT = 32770  # largest |q| the symbol alphabet can carry (entropy.py)
DEAD_ZONE = 0.2  # of a step, taken from both sides of every rounding boundary: measured best in bytes at equal error
MOMENTUM_ONE = 64  # momentum is kept in 1/64
RELAX_SHIFT = 3  # unsent components lose 1/8 a frame: as good as zero when dropped, as holding when skipped
RELAX_HALF = 1 << (RELAX_SHIFT - 1)
ACTIVITY_ONE = 16  # activity is kept in 1/16 unit
ACTIVITY_CAP = 15  # symbols; one jump must not blur the memory for a second


@dataclass(frozen=True)
class State:
    """What prediction and contexts remember between frames; all integers, equal at both ends.

    values: coefficient of every component, in units. older: the same one frame earlier.
    activity: leaky mean of |q| * step of every component, in 1/16 unit.
    """

    values: tuple[int, ...]
    older: tuple[int, ...]
    activity: tuple[int, ...]


@dataclass(frozen=True)
class Symbols:
    """One frame's residuals and what codes them. ``level`` and ``components`` are indices into the tables."""

    level: int
    components: int
    intra: bool
    values: tuple[int, ...]
    state: State  # before this frame: the entropy coder's contexts come from here


@dataclass(frozen=True)
class MotionTables:
    """The content of a pack's tables.json. Floats only in the transform; everything that meets bits is an integer."""

    keypoints: int
    scene: int  # nodes a side of the scene's mesh, 0 without one; F = 7 + 3 * keypoints + 2 * scene**2
    scene_components: tuple[int, ...]  # of the state: those that a new reference sets back to zero
    mean: Array  # float64 (F,)
    analysis: Array  # float64 (F, N): units = (flat - mean) @ analysis
    synthesis: Array  # float64 (N, F): flat = mean + units @ synthesis
    levels: tuple[int, ...]  # quantizer step of each level, in units
    components: tuple[int, ...]  # coefficients sent after the pose at each components index
    momentum: tuple[tuple[int, ...], ...]  # [level][component], 1/64 of the last movement that the guess repeats
    own_thresholds: tuple[int, ...]  # of activity, in 1/16 step
    near_thresholds: tuple[int, ...]  # of the neighbours' sum
    bank: tuple[tuple[int, ...], ...]  # frequency rows over the symbol alphabet
    predicted: tuple[tuple[tuple[int, ...], ...], ...]  # [level][component][context] -> bank row
    intra: tuple[tuple[int, ...], ...]  # [level][component] -> bank row

    @property
    def size(self) -> int:
        """Components in the state: 7 of pose, then every coefficient of expression and scene."""
        return len(self.synthesis)

    @property
    def flat_size(self) -> int:
        """F, the length of the flat motion vector."""
        return POSE_SIZE + 3 * self.keypoints + 2 * self.scene**2

    def motion(self, flat: Array) -> MotionParams:
        """Motion of a flat vector (F,)."""
        return MotionParams.from_flat(flat, self.keypoints)

    def coded(self, components: int) -> int:
        """How many symbols a frame has at a components index."""
        return POSE_SIZE + self.components[components]

    @classmethod
    def load(cls, source: str | Path | bytes | Mapping[str, Any], where: str = "motion tables") -> MotionTables:
        """Read tables.json (a path), its bytes or its parsed content, and check it. where: of these, for errors."""
        if isinstance(source, str | Path):
            where = str(source)
        try:
            text = Path(source).read_bytes() if isinstance(source, str | Path) else source
            data = text if isinstance(text, Mapping) else json.loads(text)
            if data["format"] != TABLES_FORMAT:
                raise PackError(f"{where}: tables format {data['format']}, this release reads {TABLES_FORMAT}")
            tables = cls(
                keypoints=int(data["keypoints"]),
                scene=int(data.get("scene", 0)),
                scene_components=_ints(data.get("scene_components", ())),
                mean=np.array(data["mean"], np.float64),
                analysis=np.array(data["analysis"], np.float64).T,
                synthesis=np.array(data["synthesis"], np.float64),
                levels=_ints(data["levels"]),
                components=_ints(data["components"]),
                momentum=tuple(_ints(row) for row in data["momentum"]),
                own_thresholds=_ints(data["own_thresholds"]),
                near_thresholds=_ints(data["near_thresholds"]),
                bank=tuple(_ints(row) for row in data["bank"]),
                predicted=tuple(tuple(_ints(rows) for rows in level) for level in data["predicted"]),
                intra=tuple(_ints(rows) for rows in data["intra"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, OSError) as problem:
            raise PackError(f"{where}: not usable as motion tables ({problem}); rebuild the pack") from problem
        tables._check(where)
        return tables

    def _check(self, where: str) -> None:
        flat, n = self.flat_size, self.size
        contexts = (len(self.own_thresholds) + 1) * (len(self.near_thresholds) + 1)
        rows = len(self.bank)
        wrong = (
            (self.mean.shape != (flat,) and "mean")
            or (self.synthesis.shape != (n, flat) and "synthesis")
            or (self.analysis.shape != (flat, n) and "analysis")
            or (not all(np.isfinite(a).all() for a in (self.mean, self.analysis, self.synthesis)) and "transform")
            or (not (len(self.levels) == 8 and all(0 < s < 1 << 12 for s in self.levels)) and "levels")
            or (not (self.scene == 0 or 2 <= self.scene <= SCENE_MAX) and "scene")
            or (not all(POSE_SIZE <= i < n for i in self.scene_components) and "scene_components")
            or (len(self.components) != 8 and "components")
            or (not all(0 <= c <= n - POSE_SIZE for c in self.components) and "components")
            or (not (rows and all(sum(r) == 1 << PRECISION and min(r) > 0 for r in self.bank)) and "bank")
            or (len({len(r) for r in self.bank}) != 1 and "bank")
            or (not self._momentum_fits() and "momentum")
            or (not self._maps_fit(contexts, rows) and "context maps")
        )
        if wrong:
            raise PackError(f"{where}: '{wrong}' has the wrong shape or values; rebuild the pack")

    def _momentum_fits(self) -> bool:
        small = all(0 <= m < MOMENTUM_ONE for row in self.momentum for m in row)
        return len(self.momentum) == 8 and small and all(len(row) == self.size for row in self.momentum)

    def _maps_fit(self, contexts: int, rows: int) -> bool:
        return (
            len(self.predicted) == len(self.intra) == 8
            and all(len(level) == self.size for level in (*self.predicted, *self.intra))
            and all(len(m) == contexts and max(m) < rows and min(m) >= 0 for level in self.predicted for m in level)
            and all(0 <= row < rows for level in self.intra for row in level)
        )


class Quantizer:
    """One direction's closed loop. The sender calls :meth:`forward`, the receiver :meth:`inverse`; equal symbols give
    equal states, and :attr:`last` is the motion the receiver sees. Assign :attr:`state` to go back (trial encodes)."""

    def __init__(self, tables: MotionTables) -> None:
        self.tables = tables
        self.state = start_state(tables)
        self._known = False

    @property
    def last(self) -> MotionParams | None:
        """The latest motion as the receiver has it; None before the first frame."""
        return self.motion() if self._known else None

    def reset(self) -> None:
        """Forget everything; the next frame must be intra."""
        self.state = start_state(self.tables)
        self._known = False

    def new_reference(self) -> None:
        """The next predicted frame names another reference: what moved since the old one is no guess for it."""
        self.state = at_new_reference(self.tables, self.state)

    def forward(self, motion: MotionParams, *, level: int, components: int, intra: bool = False) -> Symbols:
        """Quantize one frame and advance the state. The first frame after construction or reset is always intra."""
        intra = intra or not self._known
        before = start_state(self.tables) if intra else self.state
        step, wanted = self.tables.levels[level], self.wanted(motion, components)
        expected = guess(self.tables, before, level)
        ratio = (wanted - expected[: len(wanted)]) / step
        size = np.floor(np.abs(ratio) + (0.5 if intra else 0.5 - DEAD_ZONE))
        values = np.minimum(size, SYMBOL_LIMIT) * np.sign(ratio)
        symbols = Symbols(level, components, intra, tuple(values.astype(int).tolist()), before)
        self.state, self._known = advance(self.tables, symbols, expected), True
        return symbols

    def wanted(self, motion: MotionParams, components: int) -> Array:
        """float64 (coded components,): the coefficients of this motion that are coded, in units, before rounding."""
        flat = motion.flat()
        if len(flat) < self.tables.flat_size:  # motion that says nothing of a scene: nothing moved in it
            flat = np.pad(flat, (0, self.tables.flat_size - len(flat)))
        wanted = (flat - self.tables.mean) @ self.tables.analysis[:, : self.tables.coded(components)]
        wanted = np.minimum(np.maximum(wanted, -VALUE_LIMIT), VALUE_LIMIT)
        wanted[np.isnan(wanted)] = 0
        return np.asarray(wanted)

    def hold(self, *, level: int, components: int) -> Symbols:
        """A predicted frame in which nothing is corrected: it costs no bytes."""
        symbols = Symbols(level, components, False, (0,) * self.tables.coded(components), self.state)
        self.state = advance(self.tables, symbols)
        return symbols

    def inverse(self, symbols: Symbols) -> MotionParams:
        """Advance the state by received symbols and return the motion."""
        self.state, self._known = advance(self.tables, symbols), True
        return self.motion()

    def motion(self) -> MotionParams:
        """The state as motion parameters."""
        return self.tables.motion(self.tables.mean + np.array(self.state.values) @ self.tables.synthesis)


def start_state(tables: MotionTables) -> State:
    """The state an intra frame is coded from: the mean face at the mean pose."""
    zeros = (0,) * tables.size
    return State(zeros, zeros, zeros)


def at_new_reference(tables: MotionTables, state: State) -> State:
    """``state`` before a predicted frame that names its reference (FORMAT.md section 5): the scene's components are
    zero, because a reference is at first the present picture."""
    if not tables.scene_components:
        return state
    values, older = list(state.values), list(state.older)
    for i in tables.scene_components:
        values[i] = older[i] = 0
    return State(tuple(values), tuple(older), state.activity)


def guess(tables: MotionTables, state: State, level: int) -> list[int]:
    """Where every component is expected next; ``>>`` rounds toward minus infinity on every machine."""
    return [
        now + ((m * (now - old) + MOMENTUM_ONE // 2) >> 6)
        for now, old, m in zip(state.values, state.older, tables.momentum[level], strict=True)
    ]


def advance(tables: MotionTables, symbols: Symbols, expected: list[int] | None = None) -> State:
    """The state after a frame (FORMAT.md section 5): integers only, total on any symbols. expected: its `guess`, where
    that is known."""
    step, count, before = tables.levels[symbols.level], len(symbols.values), symbols.state
    expected = expected or guess(tables, before, symbols.level)
    moved = [start + q * step for start, q in zip(expected, symbols.values, strict=False)]
    if min(moved) < -VALUE_LIMIT or max(moved) > VALUE_LIMIT:
        moved = [max(-VALUE_LIMIT, min(VALUE_LIMIT, value)) for value in moved]
    values = tuple(moved)
    if symbols.intra:
        values += (0,) * (tables.size - count)
        return State(values, values, (ACTIVITY_ONE * step // 2,) * tables.size)
    values += tuple(old - ((old + RELAX_HALF) >> RELAX_SHIFT) for old in before.values[count:])
    cap, one = ACTIVITY_CAP, ACTIVITY_ONE * step
    activity = tuple(
        old + (((min(abs(q), cap) * one if q else 0) - old) >> 2)
        for old, q in zip(before.activity, symbols.values, strict=False)
    )
    return State(values, before.values[:count] + values[count:], activity + before.activity[count:])


def _ints(values: Any) -> tuple[int, ...]:
    if not all(isinstance(v, int) for v in values):
        raise ValueError("a table of integers holds something else")
    return tuple(values)

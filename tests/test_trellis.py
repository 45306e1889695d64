"""Symbols chosen together: fewer bits for no more error, and nothing a receiver could tell from other symbols."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuralcodec import trellis
from neuralcodec.entropy import EntropyCoder
from neuralcodec.motion import MotionParams
from neuralcodec.quantizer import MotionTables, Quantizer, State, Symbols, advance, guess

VECTORS = Path(__file__).parent / "vectors"
TABLES = MotionTables.load(VECTORS / "tables.json")
CODER = EntropyCoder(TABLES)
TRACK = [MotionParams.from_flat(row) for row in np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)]

STEP = TABLES.levels[1]

Array = NDArray[Any]


def tried(first: int, count: int, level: int, components: int) -> tuple[list[Symbols], Array]:
    """Frame by frame: symbols of so many predicted frames, and what they are of."""
    quantizer = Quantizer(TABLES)
    for motion in TRACK[max(0, first - 20) : first]:
        quantizer.forward(motion, level=level, components=components)
    group = TRACK[first : first + count]
    symbols = [quantizer.forward(motion, level=level, components=components) for motion in group]
    return symbols, np.array([quantizer.wanted(motion, components) for motion in group])


def price(symbols: list[Symbols], wanted: Array, weights: Array) -> tuple[float, float]:
    """Bits, and weighted squared error in units."""
    count = wanted.shape[1]
    states = [np.array(advance(TABLES, frame).values[:count]) for frame in symbols]
    error = sum(float((weights * (state - row) ** 2).sum()) for state, row in zip(states, wanted, strict=True))
    return sum(CODER.ideal_bits(frame) for frame in symbols), error


@pytest.mark.parametrize(("level", "components", "cost"), [(0, 7, 0.2), (2, 6, 0.17), (5, 4, 0.15)])
def test_fewer_bits_for_less_error(level: int, components: int, cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trellis, "BIT_COST", cost)
    before, after = np.zeros(2), np.zeros(2)
    for first in range(20, len(TRACK) - 8, 8):
        symbols, wanted = tried(first, 8, level, components)
        even = np.ones(wanted.shape[1])
        better, _ = trellis.Trellis(CODER).settled(symbols, wanted, even)
        before += price(symbols, wanted, even)
        after += price(better, wanted, even)
    assert (after < before).all() and after.prod() < 0.9 * before.prod()


def test_a_receiver_gets_the_symbols_and_the_state() -> None:
    symbols, wanted = tried(30, 8, 1, 7)
    better, end = trellis.Trellis(CODER).settled(symbols, wanted, np.ones(wanted.shape[1]))
    start = symbols[0].state
    received = CODER.decode_group(CODER.encode(better), 8, level=1, components=7, intra=False, state=start)
    assert received == better != symbols
    assert advance(TABLES, received[-1]) == end


@pytest.mark.parametrize("component", [0, 3, 9, 13])
def test_of_all_sequences_of_steps_beside_a_number_the_cheapest_is_taken(
    component: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trellis, "PATHS", 10**6)
    symbols, wanted = tried(40, 6, 1, 7)
    weights = np.linspace(0.5, 2, wanted.shape[1])
    better, _ = trellis.Trellis(CODER).settled(symbols, wanted, weights)

    def cheapest(state: State, frame: int) -> float:
        """Of this component alone, from a frame on: errors, and bits in the contexts that the others' symbols make."""
        if frame == len(symbols):
            return 0.0
        ratio = (wanted[frame, component] - guess(TABLES, state, 1)[component]) / STEP
        return min(cost(state, frame, value) for value in (int(np.floor(ratio)), int(np.floor(ratio)) + 1))

    def cost(state: State, frame: int, value: int, then: tuple[int, ...] | None = None) -> float:
        mine = [*symbols[frame].values[:component], value]
        with_it, without = (Symbols(1, 7, False, tuple(some), state) for some in (mine, mine[:-1]))
        bits = CODER.ideal_bits(with_it) - CODER.ideal_bits(without)
        state = advance(TABLES, with_it)
        off = state.values[component] - wanted[frame, component]
        now = float(weights[component] * off**2 + trellis.BIT_COST * STEP**2 * bits)
        if then is None:
            return now + cheapest(state, frame + 1)
        return now + (cost(state, frame + 1, then[0], then[1:]) if then else 0.0)

    first, *then = (frame.values[component] for frame in better)
    assert cost(symbols[0].state, 0, first, tuple(then)) == pytest.approx(cheapest(symbols[0].state, 0))


def test_what_counts_more_is_nearer() -> None:
    symbols, wanted = tried(30, 8, 2, 7)
    weights = np.ones(wanted.shape[1])
    weights[3] = 30.0
    off = []
    for some in (np.ones_like(weights), weights):
        better, _ = trellis.Trellis(CODER).settled(symbols, wanted, some)
        states = np.array([advance(TABLES, frame).values for frame in better])
        off.append(np.abs(states[:, 3] - wanted[:, 3]).mean())
    assert off[1] < 0.8 * off[0]


def test_numbers_out_of_all_bounds_stay_symbols() -> None:
    symbols, wanted = tried(30, 4, 0, 7)
    wanted[1], wanted[2] = 1e30, -1e30
    wanted = np.clip(wanted, -(1 << 17), 1 << 17)
    better, end = trellis.Trellis(CODER).settled(symbols, wanted, np.ones(wanted.shape[1]))
    assert (
        CODER.decode_group(CODER.encode(better), 4, level=0, components=7, intra=False, state=symbols[0].state)
        == better
    )
    assert all(abs(value) <= 1 << 17 for value in end.values)

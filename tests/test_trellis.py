"""Symbols chosen together: fewer bits for no more error, and nothing a receiver could tell from other symbols."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuralcodec import trellis
from neuralcodec.entropy import EntropyCoder
from neuralcodec.motion import MotionParams
from neuralcodec.quantizer import MotionTables, Quantizer, Symbols, advance

VECTORS = Path(__file__).parent / "vectors"
TABLES = MotionTables.load(VECTORS / "tables.json")
CODER = EntropyCoder(TABLES)
TRACK = [MotionParams.from_flat(row) for row in np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)]

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
    symbols, wanted = tried(40, 4, 1, 7)
    weights = np.linspace(0.5, 2, wanted.shape[1])
    better, _ = trellis.Trellis(CODER).settled(symbols, wanted, weights)

    def cost(values: tuple[int, ...]) -> float:
        """Of this component alone: its error, and its bits in the contexts that the others' symbols make."""
        state, total = symbols[0].state, 0.0
        for frame, row, value in zip(symbols, wanted, values, strict=True):
            mine = list(frame.values)
            mine[component] = value
            changed = Symbols(frame.level, frame.components, False, tuple(mine[: component + 1]), state)
            shorter = Symbols(frame.level, frame.components, False, tuple(mine[:component]), state)
            bits = CODER.ideal_bits(changed) - CODER.ideal_bits(shorter)
            state = advance(TABLES, changed)
            step = TABLES.levels[1]
            total += weights[component] * (state.values[component] - row[component]) ** 2
            total += trellis.BIT_COST * step * step * bits
        return float(total)

    chosen = tuple(frame.values[component] for frame in better)
    ways = product(*(range(frame.values[component] - 2, frame.values[component] + 3) for frame in symbols))
    assert cost(chosen) == pytest.approx(min(map(cost, ways)))


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

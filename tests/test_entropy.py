"""Symbols to bytes: exact, short, and total on any bytes."""

import random
from math import log2
from pathlib import Path

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.entropy import ALPHABET, RAW_BITS, SMALL, STARTS, EntropyCoder, exact_cumulative, shortest
from neuralcodec.errors import BitstreamError
from neuralcodec.motion import MotionParams
from neuralcodec.quantizer import SYMBOL_LIMIT, MotionTables, Quantizer, Symbols, start_state

VECTORS = Path(__file__).parent / "vectors"
TABLES = MotionTables.load(VECTORS / "tables.json")
CODER = EntropyCoder(TABLES)
TRACK = np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)


def coded(symbols: list[tuple[int, list[int]]]) -> tuple[int, int, int]:
    """Low end, size and bits of the interval, in plain integers (FORMAT.md 6.3)."""
    low, size, bits = 0, (1 << 64) - 1, 64
    for symbol, bounds in symbols:
        scale = size >> 24
        low, size = low + scale * bounds[symbol], scale * (bounds[symbol + 1] - bounds[symbol])
        if size < 1 << 32:
            low, size, bits = low << 32, size << 32, bits + 32
    return low, size, bits


def model(bounds: list[int]) -> object:
    row = np.array(TABLES.bank[ROWS.index(bounds)], np.float64) / (1 << 15)
    return constriction.stream.model.Categorical(row, perfect=False, lazy=False)


ROWS = [exact_cumulative(row) for row in TABLES.bank]


@pytest.mark.parametrize("seed", range(60))
def test_constriction_uses_the_integers_of_the_format_and_the_tail_is_shortest(seed: int) -> None:
    chance = random.Random(seed)
    bounds = [chance.choice(ROWS) for _ in range(chance.randrange(60))]
    ladder = [(chance.choices(range(ALPHABET), weights=np.diff(b).tolist())[0], b) for b in bounds]
    coder = constriction.stream.queue.RangeEncoder()
    for symbol, b in ladder:
        coder.encode(symbol, model(b))
    payload, (low, size, bits) = shortest(coder), coded(ladder)
    value = int.from_bytes(payload, "big") << (bits - 8 * len(payload))
    assert low <= value < low + size
    if payload:  # one byte less cannot do
        drop = bits - 8 * (len(payload) - 1)
        assert (-(-low >> drop)) << drop >= low + size
        assert payload[-1] != 0


def test_buckets_cover_every_magnitude_once() -> None:
    covered = [s + i for s, bits in zip(STARTS, RAW_BITS, strict=True) for i in range(1 << bits)]
    assert covered == list(range(1, SYMBOL_LIMIT + 1))
    assert ALPHABET == 1 + 2 * len(STARTS) == len(TABLES.bank[0])
    assert STARTS[SMALL - 1] == SMALL


def test_round_trip_of_a_track_with_every_level_and_count() -> None:
    sender, receiver, sizes = Quantizer(TABLES), Quantizer(TABLES), []
    for i, row in enumerate(TRACK):
        level, components = i * 3 % 8, i * 5 % 8
        symbols = sender.forward(MotionParams.from_flat(row), level=level, components=components, intra=i % 40 == 0)
        payload = CODER.encode(symbols)
        sizes.append(len(payload))
        intra = symbols.intra
        got = CODER.decode(
            payload,
            level=level,
            components=components,
            intra=intra,
            state=start_state(TABLES) if intra else receiver.state,
        )
        assert got == symbols
        receiver.inverse(got)
        assert receiver.state == sender.state
    assert np.mean(sizes) < 8


def test_groups_share_one_payload() -> None:
    sender = Quantizer(TABLES)
    group = [sender.forward(MotionParams.from_flat(row), level=3, components=2) for row in TRACK[:20]]
    payload = CODER.encode(group)
    state = start_state(TABLES)
    assert CODER.decode_group(payload, 20, level=3, components=2, intra=True, state=state) == group
    assert len(payload) < sum(len(CODER.encode(s)) for s in group)


def test_a_frame_without_change_is_empty() -> None:
    quantizer = Quantizer(TABLES)
    quantizer.forward(MotionParams.from_flat(TRACK[0]), level=2, components=2)
    for components in range(8):
        still = Symbols(2, components, False, (0,) * TABLES.coded(components), quantizer.state)
        assert CODER.encode(still) == b""
        got = CODER.decode(b"", level=2, components=components, intra=False, state=quantizer.state)
        assert got == still


def test_overhead_over_the_ideal_code_length_is_under_three_quarters_of_a_byte() -> None:
    quantizer, extra = Quantizer(TABLES), []
    for row in TRACK:
        symbols = quantizer.forward(MotionParams.from_flat(row), level=2, components=2)
        assert CODER.ideal_bits(symbols) == pytest.approx(ideal_bits(symbols))
        extra.append(len(CODER.encode(symbols)) - ideal_bits(symbols) / 8)
    assert max(extra) < 1.1  # no lower bound: an interval may happen to hold a very round number
    assert np.mean(extra) <= 0.75


def ideal_bits(symbols: Symbols) -> float:
    bits, sizes = 0.0, [min(abs(q), 4) for q in symbols.values]
    for i, q in enumerate(symbols.values):
        own = sum(t * TABLES.levels[symbols.level] <= symbols.state.activity[i] for t in TABLES.own_thresholds)
        near = sum(t <= sum(sizes[max(0, i - 12) : i]) for t in TABLES.near_thresholds)
        context = own * (len(TABLES.near_thresholds) + 1) + near
        row = TABLES.intra[symbols.level][i] if symbols.intra else TABLES.predicted[symbols.level][i][context]
        m = max(k for k, start in enumerate(STARTS) if start <= abs(q)) if q else 0
        bits += (RAW_BITS[m] if q else 0) - log2(TABLES.bank[row][2 * m + (1 if q > 0 else 2) if q else 0] / (1 << 15))
    return bits


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 7), st.integers(0, 7), st.booleans())
def test_any_symbols_survive(data: st.DataObject, level: int, components: int, intra: bool) -> None:
    value = st.integers(-5, 5) | st.integers(-SYMBOL_LIMIT, SYMBOL_LIMIT)
    count = TABLES.coded(components)
    values = tuple(data.draw(st.lists(value, min_size=count, max_size=count)))
    symbols = Symbols(level, components, intra, values, start_state(TABLES))
    got = CODER.decode(CODER.encode(symbols), level=level, components=components, intra=intra, state=symbols.state)
    assert got == symbols


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 7), st.integers(0, 7), st.booleans(), st.integers(1, 8))
def test_any_bytes_give_symbols_or_bitstream_error(p: bytes, level: int, components: int, intra: bool, n: int) -> None:
    state = start_state(TABLES)
    try:
        group = CODER.decode_group(p, n, level=level, components=components, intra=intra, state=state)
    except BitstreamError as error:
        assert error.rule == "R19"
    else:
        assert len(group) == n
        assert all(abs(q) <= SYMBOL_LIMIT for s in group for q in s.values)


def test_no_code_word_is_rule_19() -> None:
    with pytest.raises(BitstreamError) as caught:
        CODER.decode(b"\xff" * 40, level=0, components=7, intra=True, state=start_state(TABLES))
    assert caught.value.rule == "R19"


def test_frozen_payloads() -> None:
    """These bytes are in files out there: they must never decode otherwise."""
    quantizer = Quantizer(TABLES)
    symbols = [quantizer.forward(MotionParams.from_flat(r), level=2, components=2) for r in TRACK[:2]]
    assert [CODER.encode(s).hex() for s in symbols] == ["8f8c1d081fea258ead", "ff599c712f"]

"""Pictures in pieces: order, loss, parity, damage, and memory that hostile parts cannot fill."""

import hashlib
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.fragments import ARRIVING_MAX, PART_BYTES, Assembler, split, split_update
from neuralcodec.packet import PACKET_MAX, Parity, ReferencePart, parse_packet

PLACE = {"reference": 3, "codec": 1, "crop": (-5, 12, 640)}


def picture(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20 * PART_BYTES), st.integers(0, 3), st.randoms(use_true_random=False))
def test_any_order_gives_the_picture(size: int, parity: int, dice: random.Random) -> None:
    coded, parts = picture(size), split(picture(size), parity=parity, **PLACE)  # type: ignore[arg-type]
    assert all(parse_packet(bytes(p)) == p and len(bytes(p)) <= PART_BYTES + 24 for p in parts)
    own = [p for p in parts if isinstance(p, ReferencePart)]
    assert len({len(p.payload) for p in own[:-1]}) <= 1 and b"".join(p.payload for p in own) == coded
    dice.shuffle(parts)
    assembler = Assembler()
    got = [found for p in parts if (found := assembler.add(p)) is not None]
    assert got and set(got) == {coded} and assembler.damaged == 0


@pytest.mark.parametrize("size", [1, 900, 1150, 1151, 2301, 5000, 12000])
@pytest.mark.parametrize("parity", [1, 2])
def test_one_lost_fragment_of_each_group_comes_back(size: int, parity: int) -> None:
    coded = picture(size)
    parts = split(coded, parity=parity, **PLACE)  # type: ignore[arg-type]
    own = [p for p in parts if isinstance(p, ReferencePart)]
    groups = min(parity, len(own))
    for lost in range(len(own)):
        gone = {lost, *([(lost + 1) % len(own)] if groups == 2 and len(own) % 2 == 0 else [])}
        if groups == 2 and len({i % 2 for i in gone}) < len(gone):
            continue
        assembler = Assembler()
        found = [assembler.add(p) for p in parts if isinstance(p, Parity) or p.index not in gone]
        assert [f for f in found if f] == [coded]
    if len(own) > groups:
        assembler = Assembler()
        assert not any(assembler.add(p) for p in parts if isinstance(p, Parity) or p.index >= groups + 1)


def test_damage_is_counted_and_never_a_picture() -> None:
    parts = split(picture(3000), parity=1, **PLACE)  # type: ignore[arg-type]
    assembler = Assembler()
    for part in parts[:2]:
        assembler.add(part)
    assert assembler.add(replace(parts[2], payload=parts[2].payload[:-1] + b"!")) is None
    assert assembler.damaged == 1
    wrong = replace(parts[3], payload=bytes(len(parts[3].payload)))
    assert [assembler.add(p) for p in (parts[0], parts[1], wrong)] == [None] * 3 and assembler.damaged == 2


def test_hostile_parts_fill_no_memory() -> None:
    assembler = Assembler()
    for number in range(2000):
        digest = hashlib.sha256(number.to_bytes(4, "big")).digest()[:4]
        assembler.add(ReferencePart(number % 8, number % 63, 64, 1, digest, (0, 0, 256), bytes(1000)))
    assert len(assembler._arriving) <= ARRIVING_MAX
    big = Assembler()
    for index in range(5):
        big.add(ReferencePart(0, index, 64, 1, bytes(4), (0, 0, 256), bytes(PACKET_MAX // 4)))
    assert big.damaged == 1 and not big._arriving


@pytest.mark.parametrize(("part_bytes", "still", "update"), [(200, 6, 6), (10, 64, 8), (9000, 2, 2)])
def test_parts_are_as_small_as_asked_where_so_many_may_be_and_fit_a_datagram(
    part_bytes: int, still: int, update: int
) -> None:
    coded = picture(1200)
    parts = split(coded, part_bytes=part_bytes, **PLACE)  # type: ignore[arg-type]
    updates = split_update(coded, reference=3, hash=bytes(4), part_bytes=part_bytes)
    assert (len(parts), len(updates)) == (still, update)
    assert all(len(p.payload) <= PART_BYTES for p in (*parts, *updates))


@pytest.mark.parametrize("other", [{"reference": 4}, {"codec": 2}, {"crop": (0, 0, 640)}, {}], ids=str)
def test_parts_of_two_pictures_that_come_together_are_kept_apart(other: dict[str, object]) -> None:
    """The same picture twice, or another one in the same place."""
    two = [picture(2000), picture(2000, seed=not other)]
    assembler = Assembler()
    halves = zip(*(split(p, **PLACE | o) for p, o in zip(two, ({}, other), strict=True)), strict=True)  # type: ignore[arg-type]
    assert [assembler.add(part) for half in halves for part in half] == [None, None, *two] and not assembler.damaged


def test_an_updates_digest_is_not_that_of_its_bytes() -> None:
    coded, assembler = picture(2000), Assembler()
    assert [assembler.add(p) for p in split_update(coded, reference=3, hash=b"link")] == [None, coded]


def test_a_fragment_longer_than_its_parity_restores_nothing() -> None:
    first, second, _, parity = split(picture(3000), parity=1, **PLACE)  # type: ignore[arg-type]
    assembler = Assembler()
    assert [assembler.add(p) for p in (replace(first, payload=b"\xff" * 1001), second, parity)] == [None] * 3


def test_the_oldest_of_too_many_unfinished_pictures_gives_way() -> None:
    pictures = [split(picture(2000, seed), **PLACE) for seed in range(ARRIVING_MAX + 1)]  # type: ignore[arg-type]
    for count, lost in ((ARRIVING_MAX, 0), (ARRIVING_MAX + 1, 1)):
        assembler = Assembler()
        for first, _ in pictures[:count]:
            assembler.add(first)
        found = [assembler.add(second) for _, second in reversed(pictures[:count])]
        assert [f is None for f in found] == [False] * (count - lost) + [True] * lost

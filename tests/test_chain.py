"""A chain of pictures: both ends see the same, only the next picture follows, and nothing hostile gets through."""

import hashlib
import os
from itertools import pairwise

import numpy as np
import pytest
from conftest import portrait as drawn_portrait
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralcodec import chain
from neuralcodec.chain import HASH_BYTES, ChainDecoder, ChainEncoder, chain_digest, start_chain
from neuralcodec.errors import BitstreamError
from neuralcodec.quality import psnr

Coded = list[tuple[bytes, bytes, np.ndarray]]  # bytes, digest, what the sender says is shown


def scene(step: int, size: int = 128) -> np.ndarray:
    """A texture that slides one pixel a step."""
    noise = np.random.default_rng(5).normal(0, 1, (size // 8 + 16, size // 8 + 16, 3))
    smooth = noise.repeat(8, 0).repeat(8, 1)
    smooth = sum(np.roll(smooth, (dy, dx), (0, 1)) for dy in range(8) for dx in range(8)) / 64
    return np.clip(128 + 60 * smooth[step : step + size, step : step + size], 0, 255).astype(np.uint8)


def named(picture: tuple[bytes, bytes, np.ndarray]) -> tuple[bytes, bytes]:
    """Bytes and hash, as an update carries them."""
    return picture[0], picture[1][:HASH_BYTES]


@pytest.fixture(scope="module")
def coded() -> Coded:
    sender, key, shown = start_chain(scene(0), max_bytes=900, preset=8, coarser=44)
    pictures = [(key, sender.digest, shown)]
    for step in range(1, 6):
        update, shown = sender.code(scene(step))
        pictures.append((update, sender.digest, shown))
    return pictures


def test_the_receiver_sees_what_the_sender_says(coded: Coded) -> None:
    receiver = ChainDecoder(128)
    assert np.array_equal(receiver.key(coded[0][0]), coded[0][2])
    for update, digest, shown in coded[1:]:
        assert np.array_equal(receiver.update(update, digest[:HASH_BYTES]), shown)


def test_an_update_is_a_fraction_of_its_key_and_as_good(coded: Coded) -> None:
    key, *updates = coded
    assert 600 <= len(key[0]) <= 1000  # the budget was 900
    assert np.mean([len(update) for update, _, _ in updates]) < 0.4 * len(key[0])
    assert psnr(scene(5), updates[-1][2]) > psnr(scene(5), key[2]) + 5


@pytest.mark.parametrize("budget", [150, 400, 700])
def test_a_key_takes_its_budget_and_no_more(budget: int) -> None:
    assert 0.9 * budget < len(start_chain(scene(0), max_bytes=budget, preset=8, coarser=44)[1]) <= budget


def test_where_nothing_fits_a_key_is_the_coarsest() -> None:
    keys = [start_chain(scene(0), max_bytes=budget, preset=8, coarser=44)[1] for budget in (1, 60)]
    assert keys[0] == keys[1] and len(keys[0]) > 60


def test_a_key_that_is_darker_than_what_follows_is_as_coarse_as_that_asks_for() -> None:
    """Or its chain would spend on every update what only its first picture is cheap enough for; and the same where the
    key is brighter, within twice its bytes."""

    def sizes(key: np.ndarray, typical: np.ndarray | None) -> list[int]:
        sender, coded, _ = start_chain(key, max_bytes=600, preset=8, coarser=20, typical=typical)
        return [len(coded), *(len(sender.code(scene(step))[0]) for step in (1, 2, 3))]

    alone, told = sizes(scene(0) // 8, None), sizes(scene(0) // 8, scene(2))
    assert 4 * told[0] < alone[0] and max(told) < 600 and sum(alone[1:]) > 2 * sum(told[1:])
    calm = np.clip(scene(0).astype(int) // 4 + 96, 0, 255).astype(np.uint8)
    finer = start_chain(scene(0), max_bytes=300, preset=8, coarser=20, typical=calm)[1]
    assert 300 < len(finer) <= 600


def test_updates_are_as_much_coarser_as_was_asked() -> None:
    def updates(coarser: int) -> int:
        sender, _, _ = start_chain(scene(0), max_bytes=900, preset=8, coarser=coarser)
        return sum(len(sender.code(scene(step))[0]) for step in (1, 2))

    assert updates(60) < 0.8 * updates(0)


def test_no_update_is_much_coarser_than_the_one_before() -> None:
    """As SVT-AV1's layers would have it: 1.3 dB here."""
    pictures = drawn_portrait(60)[::6]
    sender, _, _ = start_chain(pictures[0], max_bytes=900, preset=8, coarser=44)
    quality = [psnr(picture, sender.code(picture)[1]) for picture in pictures[1:]]
    assert max(a - b for a, b in pairwise(quality)) < 0.7


def test_digests_name_the_whole_chain(coded: Coded) -> None:
    assert coded[0][1] == hashlib.sha256(coded[0][0]).digest()
    for before, now in zip(coded, coded[1:], strict=False):
        assert hashlib.sha256(before[1] + now[0]).digest() == now[1]


def test_only_the_next_picture_follows(coded: Coded) -> None:
    receiver = ChainDecoder(128)
    assert not receiver.follows(*named(coded[1]))  # no key yet
    receiver.key(coded[0][0])
    assert receiver.follows(*named(coded[1])) and not receiver.follows(*named(coded[2]))
    with pytest.raises(BitstreamError, match="does not follow"):
        receiver.update(*named(coded[2]))
    assert np.array_equal(receiver.update(*named(coded[1])), coded[1][2])  # the wrong one did no harm
    with pytest.raises(BitstreamError, match="does not follow"):
        receiver.update(*named(coded[1]))  # nor does a double


def test_a_key_begins_anew(coded: Coded) -> None:
    receiver = ChainDecoder(128)
    for _ in range(2):
        receiver.key(coded[0][0])
        assert np.array_equal(receiver.update(*named(coded[1])), coded[1][2])


@pytest.mark.parametrize("size", [64, 112, 256])
def test_the_sequence_header_rebuilt_is_the_encoders_own_but_for_the_level(size: int) -> None:
    sender = ChainEncoder(size, 60, 8, coarser=44)
    sequence, _ = chain._coded(sender._context, chain.planes_from_rgb(scene(0, size)), 0)
    flags = chain._flags(sequence, size)
    assert 0 <= flags < 1 << 13
    mine = f"{int.from_bytes(chain.sequence_header(size, flags), 'big'):b}"
    theirs = f"{int.from_bytes(sequence, 'big'):b}"
    assert mine.rstrip("0").endswith(theirs.rstrip("0"))  # level 0 leads theirs, so its bits are not there


def test_sequence_header_bits() -> None:
    """As SVT-AV1 4.1 writes it at 256 x 256 with preset 6, but level 31 and the main tier."""
    flags = chain._flags(bytes.fromhex("00000003bffff8d5f30080"), 256)
    assert f"{flags:013b}" == "0011010010110"  # edge filter, inter-intra, warp | frame vectors | CDEF, restoration
    assert chain.sequence_header(256, flags).hex() == "000000f9dffffc6af98040"


def damaged(coded: Coded, which: int, data: bytes) -> None:
    """Decode damaged bytes whose hash is made to fit, then show that a key starts again."""
    receiver = ChainDecoder(128)
    try:
        if which:
            receiver.key(coded[0][0])
            picture = receiver.update(data, chain_digest(receiver.digest, data)[:HASH_BYTES])
        else:
            picture = receiver.key(data)
        assert picture.shape == (128, 128, 3)
    except BitstreamError:
        assert receiver.digest == b""
    assert np.array_equal(receiver.key(coded[0][0]), coded[0][2])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1), st.integers(0, 10_000), st.integers(1, 255), st.integers(1, 10_000))
def test_damaged_pictures_raise_bitstream_errors_only(
    coded: Coded, which: int, where: int, change: int, keep: int
) -> None:
    data = bytearray(coded[which][0])
    data[where % len(data)] ^= change
    damaged(coded, which, bytes(data[: max(1, keep % (len(data) + 1))]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1), st.binary(max_size=200))
def test_random_bytes_raise_bitstream_errors_only(coded: Coded, which: int, data: bytes) -> None:
    damaged(coded, which, data)


@pytest.mark.parametrize("flags", [b"\xff\xff", b"\x40\x00"])
def test_reserved_flags_are_refused_and_end_the_chain_before(coded: Coded, flags: bytes) -> None:
    receiver = ChainDecoder(128)
    receiver.key(coded[0][0])
    assert receiver.follows(*named(coded[1]))
    with pytest.raises(BitstreamError, match="reserved flags"):
        receiver.key(flags + coded[0][0][2:])
    assert not receiver.follows(*named(coded[1]))


def test_an_update_that_cannot_be_decoded_ends_its_chain(coded: Coded) -> None:
    receiver = ChainDecoder(128)
    receiver.key(coded[0][0])
    cut = coded[1][0][:8]
    with pytest.raises(BitstreamError):
        receiver.update(cut, chain_digest(receiver.digest, cut)[:HASH_BYTES])
    assert not receiver.follows(*named(coded[1]))


def test_nothing_is_said_on_the_terminal_and_no_thread_becomes_real_time(capfd: pytest.CaptureFixture[str]) -> None:
    sender, _, _ = start_chain(scene(0), max_bytes=700, preset=8, coarser=44)
    sender.code(scene(1))
    assert capfd.readouterr() == ("", "")
    if hasattr(os, "sched_getscheduler"):
        assert {os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")} == {os.SCHED_OTHER}

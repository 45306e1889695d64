"""Reference pictures: quality, budgets, exact colour, the bytes on the wire, and hostile bytes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec import reference
from neuralcodec.errors import BitstreamError, LimitError, TruncatedError
from neuralcodec.motion import Array
from neuralcodec.quality import psnr
from neuralcodec.reference import PAYLOAD_MAX, decode_reference, encode_reference


def smooth_picture(size: int = 256, seed: int = 0) -> Array:
    """Soft blobs of saturated colour: what 4:2:0 keeps, so that any shift or mix-up of channels shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.zeros((size, size, 3))
    for _ in range(6):
        cx, cy, colour = rng.random(), rng.random(), rng.integers(30, 226, 3)
        picture += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) * 12)[..., None] * colour
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def busy_picture(size: int = 128) -> Array:
    """A smooth picture with texture on it, so that bytes depend on quality over the whole range."""
    rng = np.random.default_rng(1)
    coarse = np.kron(rng.normal(size=(size // 8, size // 8, 1)), np.ones((8, 8, 1))) * 25
    return np.clip(smooth_picture(size) + coarse + rng.normal(size=(size, size, 1)) * 6, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [64, 96, 256, 512])
def test_smooth_picture_comes_back_close_and_without_shift(size: int) -> None:
    picture = smooth_picture(size)
    decoded = decode_reference(encode_reference(picture, quality=95), size)
    assert decoded.shape == picture.shape and decoded.dtype == np.uint8
    assert psnr(picture, decoded) > 40
    assert np.abs(picture.mean((0, 1)) - decoded.mean((0, 1))).max() < 0.5  # no channel drifts
    moved = np.roll(decoded, 1, axis=1)
    assert psnr(picture, decoded) > psnr(picture, moved) + 3  # nor the picture


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 120)])
def test_flat_colours_survive(colour: tuple[int, int, int]) -> None:
    picture = np.full((64, 64, 3), colour, np.uint8)
    assert np.abs(decode_reference(encode_reference(picture, quality=90), 64).astype(int) - picture).max() <= 4


def test_colour_conversion_alone_is_within_rounding() -> None:
    picture = smooth_picture()
    back = reference.rgb_from_planes(reference.planes_from_rgb(picture))
    assert psnr(picture, back) > 46
    assert np.abs((picture.astype(float) - back).mean((0, 1))).max() < 0.1


def test_conversion_matches_the_standard_in_floats() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    blocks = np.repeat(np.repeat(picture[::2, ::2], 2, 0), 2, 1)  # equal 2 x 2 blocks: chroma has nothing to average
    y, cb, cr = reference.planes_from_rgb(blocks)
    r, g, b = blocks.astype(float).transpose(2, 0, 1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    assert np.abs(y - luma).max() <= 0.51
    assert np.abs(cb - np.clip(128 + (b - luma)[::2, ::2] / 1.772, 0, 255)).max() <= 0.52
    assert np.abs(cr - np.clip(128 + (r - luma)[::2, ::2] / 1.402, 0, 255)).max() <= 0.52


def test_chroma_lies_in_the_middle_of_its_block_and_is_linear_in_between() -> None:
    grey, red = np.full((4, 4), 128, np.uint8), np.array([[100, 140]] * 2, np.uint8)
    for cr, axis in ((red, 0), (red.T, 1)):
        shown = reference.rgb_from_planes([grey, grey[:2, :2], cr])[..., 0]
        assert (shown.take(0, axis) == [89, 103, 131, 145]).all()  # 128 + 1.402 times 100, 110, 130, 140 less 128


def test_more_quality_is_more_bytes_and_more_decibels() -> None:
    picture = busy_picture()
    coded = [encode_reference(picture, quality=q, preset=6) for q in (0, 30, 60, 90)]
    figures = [psnr(picture, decode_reference(c, 128)) for c in coded]
    assert [len(c) for c in coded] == sorted(len(c) for c in coded)
    assert figures == sorted(figures) and figures[-1] > figures[0] + 8


@pytest.mark.parametrize("budget", [300, 700, 1500])
def test_budget_is_kept_and_used(budget: int) -> None:
    picture = busy_picture()
    coded = encode_reference(picture, max_bytes=budget, quality=100)
    assert 0.8 * budget <= len(coded) <= budget
    rougher = encode_reference(picture, max_bytes=budget // 2, quality=100)
    assert psnr(picture, decode_reference(coded, 128)) > psnr(picture, decode_reference(rougher, 128))


def test_quality_caps_a_generous_budget() -> None:
    picture = smooth_picture()
    capped = encode_reference(picture, quality=40)
    assert encode_reference(picture, max_bytes=100_000, quality=40) == capped
    assert encode_reference(picture, max_bytes=len(capped), quality=40) == capped


def test_impossible_budget_gives_the_coarsest_picture() -> None:
    picture = busy_picture()
    assert encode_reference(picture, max_bytes=5) == encode_reference(picture, quality=0)


def test_same_picture_gives_the_same_bytes_and_pixels() -> None:
    picture = busy_picture()
    first, second = encode_reference(picture), encode_reference(picture)
    assert first == second
    assert np.array_equal(decode_reference(first, 128), decode_reference(second, 128))


@pytest.mark.parametrize("size", [64, 112, 256, 512, 1024])
def test_sequence_header_rebuilt_is_the_encoders_own(size: int) -> None:
    """Exactly one flags byte makes the header that the encoder wrote, so nothing else about it needs sending."""
    picture = smooth_picture(size)
    coded = encode_reference(picture, quality=40, preset=8)
    assert coded[0] < 0x80 and psnr(picture, decode_reference(coded, size)) > 25
    assert len({reference._sequence_header(size, flags) for flags in range(128)}) == 128


def test_sequence_header_bits() -> None:
    """As SVT-AV1 4.1 writes it at 256 x 256 (181dffffd30080), but level 31: filter-intra, CDEF, restoration on."""
    assert reference._sequence_header(256, 0b0110010).hex() == "1fddffffd30080"


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384])
def test_units_are_read_as_they_were_written(length: int) -> None:
    stream = reference.TEMPORAL_DELIMITER + reference.obu(reference.OBU_FRAME, bytes(length))
    assert reference.obus(stream) == [(2, b""), (6, bytes(length))]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", TruncatedError),
        (b"\x32", TruncatedError),
        (b"\x80abc", BitstreamError),
        (bytes(PAYLOAD_MAX + 1), LimitError),
        (b"\x7f" + b"\xff" * 40, BitstreamError),
    ],
)
def test_malformed_lengths_and_flags(data: bytes, error: type[BitstreamError]) -> None:
    with pytest.raises(error):
        decode_reference(data, 256)


def test_a_reserved_flag_is_refused_whatever_follows() -> None:
    coded = encode_reference(smooth_picture(64), preset=8)
    with pytest.raises(BitstreamError, match="flag bit 7 is set"):
        decode_reference(bytes((coded[0] | 0x80,)) + coded[1:], 64)


def test_wrong_size_is_an_error_or_another_picture_but_never_another_shape() -> None:
    coded = encode_reference(smooth_picture(128), quality=30)
    try:
        assert decode_reference(coded, 256).shape == (256, 256, 3)
    except BitstreamError:
        pass


CODED = encode_reference(busy_picture(64), quality=50)


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=0, max_size=400))
def test_random_bytes_raise_bitstream_errors_only(data: bytes) -> None:
    try:
        assert decode_reference(data, 64).shape == (64, 64, 3)
    except BitstreamError:
        pass


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(CODED) - 1), st.integers(1, 255), st.integers(1, len(CODED)))
def test_damaged_pictures_raise_bitstream_errors_only(where: int, change: int, keep: int) -> None:
    data = bytearray(CODED)
    data[where] ^= change
    try:
        assert decode_reference(bytes(data[:keep]), 64).shape == (64, 64, 3)
    except BitstreamError:
        pass


@pytest.mark.parametrize("shape", [(64, 64), (64, 66, 3), (65, 65, 3), (32, 32, 3), (64, 64, 4)])
def test_unusable_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"64|RGB"):
        encode_reference(np.zeros(shape, np.uint8))


def test_unusable_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 100"):
        encode_reference(smooth_picture(64), quality=101)


def test_encoder_and_decoder_say_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    decode_reference(encode_reference(smooth_picture(64)), 64)
    with pytest.raises(BitstreamError):
        decode_reference(b"\x7f" + b"\xff" * 40, 64)
    assert capfd.readouterr() == ("", "")


def test_several_encoders_may_run_at_once() -> None:
    pictures = [smooth_picture(96, seed) for seed in range(8)]
    alone = [encode_reference(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encode_reference, pictures)) == alone


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="threads have no scheduling policy here")
def test_coding_a_reference_makes_no_thread_real_time() -> None:
    """Run by root, SVT-AV1 raises its caller to SCHED_FIFO; run by anybody else this cannot fail."""
    encode_reference(smooth_picture(128))
    policies = {os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task")}
    assert policies == {os.SCHED_OTHER}

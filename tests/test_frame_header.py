"""Frame headers of updates: shorter, and the same again, whatever they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256

import numpy as np
import pytest
from conftest import portrait as drawn_portrait
from hypothesis import given, settings
from hypothesis import strategies as st
from test_call_bitstream_js import node
from test_format import TEXT

from export.fit_frame_header import Chain, fit, measure
from neuralcodec import chain
from neuralcodec.errors import BitstreamError
from neuralcodec.frame_header import FRONT, TABLE, HeaderCoder, HeaderTable
from neuralcodec.reference import planes_from_rgb

FLAGS = 0b0111110110110  # as slow presets have them
FAST = 0b0011010010110


@cache
def film() -> list[np.ndarray]:
    return drawn_portrait(90)[::3]


@cache
def real(preset: int, size: int = 256, count: int = 30) -> Chain:
    """A chain as SVT-AV1 writes it, of the portrait's film."""
    context = chain._svt(size, 45, preset, 40)
    coded = [
        chain._coded(context, planes_from_rgb(picture[:size, :size]), index)
        for index, picture in enumerate(film()[:count])
    ]
    return Chain(size, chain._flags(coded[0][0], size), [frame for _, frame in coded[1:]])


def shortened(source: Chain) -> list[bytes]:
    coder = HeaderCoder(source.size, source.flags)
    return [coder.shorten(frame) for frame in source.frames]


def restored(source: Chain, coded: Sequence[bytes]) -> list[bytes]:
    coder = HeaderCoder(source.size, source.flags)
    return [coder.restore(data) for data in coded]


@pytest.mark.parametrize("preset", [1, 2, 4, 6, 8])
def test_headers_of_our_encoders_take_four_bytes_instead_of_17(preset: int) -> None:
    source = real(preset)
    coded = shortened(source)
    assert restored(source, coded) == source.frames
    saved = np.mean([len(frame) - len(data) for frame, data in zip(source.frames, coded, strict=True)])
    assert 12 < saved < 17


@pytest.mark.parametrize("size", [64, 112, 192])
def test_pictures_of_other_sizes_come_back(size: int) -> None:
    source = real(8, size, 15)
    coded = shortened(source)
    assert restored(source, coded) == source.frames
    assert sum(map(len, coded)) < sum(map(len, source.frames)) - 10 * len(coded)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([64, 256]),
    st.one_of(st.sampled_from([FLAGS, FAST]), st.integers(0, (1 << 13) - 1)),
    st.lists(st.binary(max_size=48), max_size=6),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 255)), max_size=3),
)
def test_any_frame_comes_back(size: int, flags: int, frames: list[bytes], changes: list[tuple[int, int]]) -> None:
    """Random bytes, and real headers with bytes of them changed, cut to nothing and at other places of their chain."""
    for index, frame in enumerate(real(8).frames[: len(changes)]):
        changed = bytearray(frame[: 7 * index + 5])
        for where, value in changes:
            changed[where % len(changed)] = value
        frames.append(bytes(changed))
    source = Chain(size, flags, frames)
    coded = shortened(source)
    assert restored(source, coded) == frames
    assert all(len(data) <= len(frame) + 2 for data, frame in zip(coded, frames, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=48), max_size=4), st.integers(0, 30), st.integers(1, 255))
def test_bytes_that_no_encoder_writes_raise_bitstream_errors_only(
    data: list[bytes], where: int, change: int
) -> None:
    source = real(8)
    coder = HeaderCoder(source.size, source.flags)
    whole = bytearray(shortened(source)[0])
    whole[where % len(whole)] ^= change
    for coded in [bytes(whole), *data]:
        with suppress(BitstreamError):
            coder.restore(coded)


def test_a_code_that_does_not_end_as_codes_do_is_refused() -> None:
    source = real(8)
    coded = shortened(source)[0]
    with pytest.raises(BitstreamError, match="damaged"):
        restored(source, [coded[:1]])
    with pytest.raises(BitstreamError, match="does not end as codes do|no code word"):
        restored(source, [coded[:2] + b"\xff" + coded[3:]])


def test_the_table_is_the_one_that_the_format_names() -> None:
    assert sha256(TABLE.read_bytes()).hexdigest() in TEXT


def test_a_table_is_fitted_to_streams() -> None:
    streams = [real(2), real(8)]
    table = json.loads(json.dumps(fit(streams)))
    assert table["fronts"] == json.loads(TABLE.read_text("utf-8"))["fronts"], "what presets do is not chance"
    for rows in table["fields"]:
        for field in rows.values():
            for row in field["value"] if isinstance(field["value"][0], list) else [field["value"]]:
                assert sum(row) == 1 << 15 and min(row) >= 1
    size, saved = measure(streams, HeaderTable(table))
    assert saved > 13.5 and size > 40
    with pytest.raises(SystemExit, match="files and calls"):
        fit([real(2)])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_restores_the_same() -> None:
    rng = np.random.default_rng(3)
    odd = Chain(256, FLAGS, [rng.bytes(int(n)) for n in rng.integers(0, 60, 200)])
    swapped = Chain(256, FAST, [*real(8).frames[5:12], *real(2).frames[:9], b"", *real(2).frames[9:]])
    stopped = bytearray(real(2).frames[0])
    stopped[FRONT // 8] |= 0x80
    cases = [*map(real, (1, 4, 6)), real(8, 64, 15), odd, swapped, Chain(256, FLAGS, [bytes(stopped)])]
    damaged = [rng.bytes(int(n)).hex() for n in rng.integers(0, 40, 300)]
    found = node(
        """
        const restore = (coder, data) => {
          try { return bitstream.hex(coder.restore(unhex(data))); }
          catch (error) { if (!(error instanceof bitstream.BitstreamError)) throw error; return null; }
        };
        const open = (size, flags) => new reference.FrameHeaders(given.table, size, flags);
        const cases = given.cases.map(([size, flags, coded]) => {
          const coder = open(size, flags);
          return coded.map((data) => restore(coder, data));
        });
        result = { cases, damaged: given.damaged.map((data) => restore(open(256, 0), data)) };
        """,
        {
            "table": json.loads(TABLE.read_text("utf-8")),
            "cases": [[c.size, c.flags, [data.hex() for data in shortened(c)]] for c in cases],
            "damaged": damaged,
        },
    )
    assert found["cases"] == [[frame.hex() for frame in case.frames] for case in cases]
    expected = []
    for data in damaged:
        try:
            expected.append(HeaderCoder(256, 0).restore(bytes.fromhex(data)).hex())
        except BitstreamError:
            expected.append(None)
    assert found["damaged"] == expected and None in expected and any(expected)

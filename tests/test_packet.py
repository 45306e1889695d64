"""Packets: every field, every rule by number, every cut, and arbitrary bytes."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.errors import BitstreamError, LimitError, TruncatedError, UnsupportedVersionError
from neuralcodec.fields import signed_varint, varint
from neuralcodec.packet import (
    BUNDLE_MAX,
    DATAGRAM_BYTES,
    GROUP_MAX,
    PACKET_MAX,
    REFERENCES_MAX,
    SIGNED,
    Bundle,
    End,
    Extension,
    Feedback,
    Motion,
    Packet,
    Parity,
    ReferencePart,
    StreamHeader,
    Update,
    bundled,
    parse_packet,
)

HEADER = StreamHeader(bytes(range(8)), 1280, 720, (1, 25), 1, 256)
REFERENCE = ReferencePart(3, 0, 2, 1, b"\x0a\x0b\x0c\x0d", (-5, 12, 640), b"picture")
INTRA = Motion(9, 3, 5, b"\x12\x34", True, reference=3, pts=-1000)
PREDICTED = Motion(10, 7, 0, b"\x55")
UNUSUAL = Motion(255, 0, 7, b"\x01\x02\x03", reference=200, pts_step=70000, frames=64)
UPDATE = Update(200, 1, 3, b"\x01\x02\x03\x04", b"frame", (-5, 12, 640), True)
LIT = [Motion(11, 2, 2, b"\x07", light=light) for light in (-128, -1, 0, 127)]
AS_IS = Motion(11, 2, 2, b"", reference=9, as_is=True)
PARITY = Parity(3, 1, 2, 3, 1 | SIGNED, b"\x0a\x0b\x0c\x0d", (-5, 12, 640), 19, b"1234567")
FEEDBACK = Feedback(7, 255, (0, 9, 255), True, True)
BUNDLE = Bundle((INTRA, Motion(10, 3, 5, b""), REFERENCE))
ALL = [HEADER, REFERENCE, INTRA, PREDICTED, UNUSUAL, Motion(0, 0, 0, b""), UPDATE, AS_IS, End(250)]
ALL += [Extension(0x3F, b"any"), Update(0, 0, 1, b"\x01\x02\x03\x04", b"x")]
ALL += [*LIT, Motion(255, 0, 7, b"\x01", reference=200, pts_step=70000, frames=64, as_is=True, light=-5)]
ALL += [PARITY, BUNDLE, FEEDBACK, Feedback(), Feedback(0), Feedback(need_intra=True)]


@pytest.mark.parametrize("packet", ALL, ids=lambda p: f"{type(p).__name__}-{bytes(p)[0]:02x}")
def test_round_trip(packet: object) -> None:
    data = bytes(packet)  # type: ignore[call-overload]
    assert parse_packet(data) == packet
    assert bytes(parse_packet(data)) == data


def test_sizes() -> None:
    assert bytes(PREDICTED) == b"\xf0\x0a\x55"  # two bytes in front of the payload
    assert len(bytes(Motion(1, 2, 3, b""))) == 2
    assert len(bytes(UNUSUAL)) - 3 == 2 + 1 + 1 + 3 + 1
    assert len(bytes(HEADER)) <= 26
    assert bytes(End(0)) == b"\x04\x00"


@pytest.mark.parametrize("packet", [HEADER, REFERENCE, INTRA, UNUSUAL, LIT[0], UPDATE, End(1 << 40), PARITY, BUNDLE])
def test_cut_at_every_length(packet: object) -> None:
    data = bytes(packet)  # type: ignore[call-overload]
    for length in range(len(data)):
        try:
            shorter = parse_packet(data[:length])
        except TruncatedError as error:
            assert error.rule in ("R1", "R3", "R17") and error.offset <= length
        except BitstreamError as error:
            assert error.rule in {Parity: ("R26",), Bundle: ("R25",)}[type(packet)] and error.offset <= length
        else:  # a shorter payload is a packet too, and so is a bundle of fewer; nothing else may pass
            if isinstance(packet, Bundle):
                assert isinstance(shorter, Bundle) and packet.packets[: len(shorter.packets)] == shorter.packets
                continue
            assert not isinstance(shorter, StreamHeader | End)
            assert packet.payload.startswith(shorter.payload)  # type: ignore[attr-defined]


def header(**changes: object) -> bytes:
    return bytes(StreamHeader(**{**vars(HEADER), **changes}))


def reference(**changes: object) -> bytes:
    return bytes(ReferencePart(**{**vars(REFERENCE), **changes}))


def parity(**changes: object) -> bytes:
    return bytes(Parity(**{**vars(PARITY), **changes}))


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes((value,)) + data[at + 1 :]


BROKEN: list[tuple[str, type[BitstreamError], bytes]] = [
    ("R1", TruncatedError, b""),
    ("R1", LimitError, bytes(PACKET_MAX + 1)),
    ("R2", BitstreamError, b"\x00"),
    ("R2", BitstreamError, b"\x03abc"),
    ("R2", BitstreamError, b"\x1f"),
    ("R3", TruncatedError, bytes(HEADER)[:-1]),
    ("R4", BitstreamError, b"\x04\x80\x00"),
    ("R4", BitstreamError, b"\x04" + b"\xff" * 9 + b"\x01"),
    ("R4", LimitError, b"\x40\x00\x00" + b"\xff" * 8 + b"\x7f"),
    ("R5", BitstreamError, bytes(HEADER) + b"\x00"),
    ("R5", BitstreamError, b"\x04\x01\x01"),
    ("R6", BitstreamError, patched(bytes(HEADER), 1, 0)),
    ("R6", UnsupportedVersionError, patched(bytes(HEADER), 4, 2)),
    ("R7", LimitError, header(width=8193)),
    ("R7", LimitError, header(height=0)),
    ("R8", LimitError, header(time_base=(0, 1))),
    ("R8", LimitError, header(time_base=(1, 1 << 31))),
    ("R8", LimitError, header(frame_duration=0)),
    ("R9", LimitError, header(size=1040)),
    ("R9", LimitError, header(size=48)),
    ("R9", BitstreamError, header(size=250)),
    ("R10", BitstreamError, patched(bytes(HEADER), 13, 4)),
    ("R11", LimitError, reference(count=0)),
    ("R11", LimitError, reference(count=65)),
    ("R11", BitstreamError, reference(index=2)),
    ("R11", BitstreamError, patched(bytes(UPDATE), 2, 0x4B)),
    ("R5", BitstreamError, b"\x08\x02\x00"),
    ("R10", BitstreamError, b"\x08\x08"),
    ("R11", LimitError, parity(count=65, length=800)),
    ("R11", LimitError, parity(groups=4)),
    ("R11", BitstreamError, parity(index=2)),
    ("R12", BitstreamError, parity(codec=SIGNED)),
    ("R12", BitstreamError, reference(codec=SIGNED)),
    ("R13", LimitError, parity(crop=(0, 0, 0))),
    ("R17", TruncatedError, parity(payload=b"")),
    ("R25", BitstreamError, b"\x06"),
    ("R25", BitstreamError, b"\x06\x02\x80\x00"),
    ("R25", LimitError, b"\x06" + b"\x02\x80\x00" * 17),
    ("R25", LimitError, b"\x06" + b"\x04\x81\x00\x04\x40" * 2),
    ("R25", LimitError, b"\x06\x01\x06\x02\x80\x00"),
    ("R25", LimitError, bytes(Bundle((INTRA, BUNDLE)))),
    ("R1", LimitError, b"\x06\x00"),
    ("R1", LimitError, b"\x06" + varint(PACKET_MAX + 1)),
    ("R3", TruncatedError, b"\x06\x02\x80\x00\x05\x80"),
    ("R2", BitstreamError, b"\x06\x02\x80\x00\x01\x00"),
    ("R26", LimitError, parity(length=2)),
    ("R26", LimitError, parity(length=PACKET_MAX + 1)),
    ("R26", BitstreamError, parity(length=22)),
    ("R26", BitstreamError, parity(count=4, length=4, payload=b"12")),
    ("R26", BitstreamError, parity(count=3, length=4, payload=b"12")),  # nothing would be left for the last fragment
    ("R27", BitstreamError, b"\x08\x04\x00\x00\x02\x01"),
    ("R27", BitstreamError, b"\x08\x04\x00\x00\x02\x02"),
    ("R27", BitstreamError, b"\x08\x04\x00\x00" + bytes(range(9))),
    ("R12", BitstreamError, reference(codec=0)),
    ("R13", LimitError, bytes(Update(0, 0, 1, bytes(4), b"x", (0, 0, 16385)))),
    ("R13", LimitError, reference(crop=(-8193, 0, 64))),
    ("R13", LimitError, reference(crop=(0, 8193, 64))),
    ("R13", LimitError, reference(crop=(0, 0, 0))),
    ("R13", LimitError, reference(crop=(0, 0, 16385))),
    ("R14", BitstreamError, b"\x81\x00\x00"),
    ("R14", BitstreamError, b"\x81\x00\x20"),
    ("R15", LimitError, b"\x81\x00\x02\x00"),
    ("R15", LimitError, b"\x81\x00\x02" + varint(1 << 31)),
    ("R16", LimitError, b"\x81\x00\x04\x01"),
    ("R16", LimitError, b"\x81\x00\x04\x41"),
    ("R17", TruncatedError, reference(payload=b"")),
    ("R17", TruncatedError, bytes(UPDATE)[:-5]),
    ("R18", LimitError, b"\x80\x00" + b"\x01" * 513),
    ("R18", LimitError, b"\x81\x00\x04\x02" + b"\x01" * 1025),
    ("R20", BitstreamError, b"\x80\x00\x01\x00"),
    ("R20", BitstreamError, b"\x40\x00\x00\x00\x00"),
]


@pytest.mark.parametrize(("rule", "kind", "data"), BROKEN, ids=[f"{r}-{i}" for i, (r, _, _) in enumerate(BROKEN)])
def test_rules_by_number(rule: str, kind: type[BitstreamError], data: bytes) -> None:
    with pytest.raises(kind) as caught:
        parse_packet(data)
    assert caught.value.rule == rule
    assert type(caught.value) is kind
    assert 0 <= caught.value.offset <= len(data)


def test_limits_themselves_are_allowed() -> None:
    parse_packet(header(width=8192, height=1, time_base=((1 << 31) - 1, 1), size=1024))
    parse_packet(reference(index=63, count=64, crop=(-8192, 8192, 16384)))
    parse_packet(b"\x80\x00" + b"\x01" * 512)
    parse_packet(b"\x20" + bytes(PACKET_MAX - 1))
    parse_packet(parity(index=0, groups=1, count=1, length=7))
    parse_packet(bytes(Bundle((Motion(0, 0, 0, b"", frames=GROUP_MAX - 1), Motion(63, 0, 0, b"")))))
    parse_packet(bytes(Feedback(0, 0, tuple(range(REFERENCES_MAX)))))
    parse_packet(bytes(Motion(0, 0, 0, b"", True, 0, -(1 << 62) + 1)))


def test_offsets_inside_a_bundle_are_the_datagrams() -> None:
    data = b"\x06\x02\x80\x00\x04\x81\x00\x04\x41"
    with pytest.raises(LimitError) as caught:
        parse_packet(data)
    assert caught.value.rule == "R16" and data[caught.value.offset] == 0x41


def test_bundled_packets_fit_and_keep_their_order() -> None:
    packets = [HEADER, REFERENCE, *(Motion(i, 1, 1, b"\x01" * 30) for i in range(90)), BUNDLE]
    groups = bundled(packets, 200)
    inside = [p for g in groups for p in (g.packets if isinstance(g, Bundle) else (g,))]
    assert inside == [*packets[:-1], *BUNDLE.packets]
    assert all(len(bytes(g)) <= 200 for g in groups) and len(groups) < 20
    assert bundled([Motion(0, 1, 1, b"\x01" * 300)], 200) == [Motion(0, 1, 1, b"\x01" * 300)]


def test_bundles_are_as_full_as_they_may_be() -> None:
    def sizes(packets: Sequence[Packet], limit: int = DATAGRAM_BYTES) -> list[int]:
        return [len(g.packets) if isinstance(g, Bundle) else 1 for g in bundled(packets, limit)]

    assert sizes([Motion(i, 1, 1, b"") for i in range(BUNDLE_MAX + 1)]) == [BUNDLE_MAX, 1]
    assert sizes([*[Motion(0, 1, 1, b"", frames=GROUP_MAX // 2)] * 2, PREDICTED]) == [2, 1]
    full = len(bytes(Bundle((INTRA, PREDICTED))))
    assert sizes([INTRA, PREDICTED], full) == [2] and sizes([INTRA, PREDICTED], full - 1) == [1, 1]


def test_intra_needs_reference_and_pts() -> None:
    with pytest.raises(ValueError, match="reference id and a pts"):
        bytes(Motion(0, 0, 0, b"", intra=True))


VARINTS = [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), ((1 << 63) - 1, "f" * 16 + "7f")]


@pytest.mark.parametrize(("value", "data"), VARINTS)
def test_varint(value: int, data: str) -> None:
    assert varint(value).hex() == data
    assert parse_packet(b"\x04" + varint(value)) == End(value)


def test_varint_refuses_what_it_cannot_carry() -> None:
    assert [signed_varint(v)[0] for v in (0, -1, 1, -2)] == [0, 1, 2, 3]
    for value in (-1, 1 << 63):
        with pytest.raises(ValueError, match="does not fit"):
            varint(value)


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_packet_or_a_bitstream_error(data: bytes) -> None:
    try:
        packet = parse_packet(data)
    except BitstreamError as error:
        assert error.rule.startswith("R") and str(error)
    else:
        assert bytes(packet) == data


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_mutated_packets(packet: object, data: st.DataObject) -> None:
    raw = bytearray(bytes(packet))  # type: ignore[call-overload]
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert bytes(parse_packet(bytes(raw))) == bytes(raw)
    except BitstreamError as error:
        assert error.rule


@given(
    st.integers(0, 255),
    st.integers(0, 7),
    st.integers(0, 7),
    st.binary(max_size=40).filter(lambda b: b[-1:] != b"\0"),
    st.none() | st.integers(0, 255),
    st.none() | st.integers(1, (1 << 31) - 1),
    st.integers(1, 64),
)
def test_predicted_round_trip(q: int, l: int, c: int, p: bytes, r: int | None, s: int | None, n: int) -> None:  # noqa: E741
    packet = Motion(q, l, c, p, reference=r, pts_step=s, frames=n)
    assert parse_packet(bytes(packet)) == packet

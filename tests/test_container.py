"""The .ncv file: round trips, cuts at every byte, damage, and readers that deliver in pieces."""

from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.container import FILE_MAGIC, ContainerReader, ContainerWriter
from neuralcodec.errors import BitstreamError, LimitError, TruncatedError
from neuralcodec.fields import varint
from neuralcodec.packet import PACKET_MAX, End, Extension, Motion, Packet, ReferencePart, StreamHeader

HEADER = StreamHeader(bytes(8), 640, 480, (1, 25), 1, 256)
PACKETS: list[Packet] = [
    ReferencePart(0, 0, 1, 1, bytes(4), (0, 0, 480), b"x" * 200),
    Motion(0, 2, 3, b"\x01\x02", True, 0, 0),
    Motion(1, 2, 3, b"\x09"),
    Motion(2, 2, 3, b""),
    End(3),
]


def written() -> bytes:
    file = BytesIO()
    writer = ContainerWriter(file, HEADER)
    for packet in PACKETS:
        writer.write(packet)
    assert writer.bytes_written == len(file.getvalue())
    return file.getvalue()


class Trickle(BytesIO):
    """Delivers one byte at a time, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(1, size if size is not None and size >= 0 else 1))


@pytest.mark.parametrize("kind", [BytesIO, Trickle])
def test_round_trip(kind: type[BytesIO]) -> None:
    reader = ContainerReader(kind(written()))
    assert reader.header == HEADER
    assert list(reader) == [HEADER, *PACKETS]
    assert reader.offset == len(written())


def test_overhead_is_one_byte_a_small_packet() -> None:
    sizes = [len(bytes(p)) for p in [HEADER, *PACKETS]]
    assert len(written()) == len(FILE_MAGIC) + sum(size + len(varint(size)) for size in sizes)


def test_cut_at_every_byte_yields_whole_packets_then_truncated_error() -> None:
    data, ends = written(), [len(FILE_MAGIC)]
    for packet in [HEADER, *PACKETS]:
        ends.append(ends[-1] + len(varint(len(bytes(packet)))) + len(bytes(packet)))
    for cut in range(len(data)):
        got: list[object] = []
        try:
            for packet in ContainerReader(BytesIO(data[:cut])):
                got.append(packet)
        except TruncatedError as error:
            assert cut not in ends[1:]
            assert error.rule in ("R21", "R22", "R24") and error.offset <= cut
        else:
            assert cut in ends[1:], "a cut between two records is a recording that was stopped"
        assert got == [HEADER, *PACKETS][: sum(end <= cut for end in ends[1:])]


def read_all(data: bytes) -> list[object]:
    return list(ContainerReader(BytesIO(data)))


@pytest.mark.parametrize(
    ("rule", "kind", "data"),
    [
        ("R21", BitstreamError, b"\x00\x00\x00\x18ftypmp42"),
        ("R21", TruncatedError, b""),
        ("R22", TruncatedError, FILE_MAGIC),
        ("R22", BitstreamError, FILE_MAGIC + b"\x02" + bytes(End(1))),
        ("R23", BitstreamError, written() + b"\x02" + bytes(End(1))),
        ("R1", LimitError, written()[:-3] + b"\x00"),
        ("R1", LimitError, written()[:-3] + varint(PACKET_MAX + 1) + b"abc"),
        ("R1", LimitError, written()[:-3] + b"\xff" * 12),
        ("R4", BitstreamError, written()[:-3] + b"\x82\x00" + bytes(End(1))),
        ("R24", TruncatedError, written()[:-3] + b"\x82"),
        ("R2", BitstreamError, written()[:-3] + b"\x01\x00"),
    ],
)
def test_damage_names_rule_and_place(rule: str, kind: type[BitstreamError], data: bytes) -> None:
    with pytest.raises(kind) as caught:
        read_all(data)
    assert (type(caught.value), caught.value.rule) == (kind, rule)
    assert caught.value.offset <= len(data)


def test_offset_of_a_damaged_packet_counts_from_the_start_of_the_file() -> None:
    data = bytearray(written())
    place = len(FILE_MAGIC) + 1 + len(bytes(HEADER)) + 2
    data[place + 3] = 200  # the fragment count of the reference
    with pytest.raises(LimitError) as caught:
        read_all(bytes(data))
    assert (caught.value.rule, caught.value.offset) == ("R11", place + 3)


def test_records_that_are_no_packets_can_be_skipped() -> None:
    data, place = bytearray(written()), len(FILE_MAGIC)
    for packet in [HEADER, *PACKETS[:2]]:
        place += len(varint(len(bytes(packet)))) + len(bytes(packet))
    data[place + 1] = 0  # the kind of the second motion packet
    problems: list[BitstreamError] = []
    assert list(ContainerReader(BytesIO(data), problems.append)) == [HEADER, *PACKETS[:2], *PACKETS[3:]]
    assert [(problem.rule, problem.offset) for problem in problems] == [("R2", place + 1)]
    with pytest.raises(BitstreamError):
        read_all(bytes(data))
    for cut in (data[:-1], written()[:-3] + b"\x82\x00" + bytes(End(1))):  # what is no length is never skipped
        with pytest.raises(BitstreamError):
            list(ContainerReader(BytesIO(cut), problems.append))


def test_a_record_may_be_as_long_as_a_packet() -> None:
    longest, file = Extension(0x20, bytes(PACKET_MAX - 1)), BytesIO()
    ContainerWriter(file, HEADER).write(longest)
    assert read_all(file.getvalue()) == [HEADER, longest]


def test_writer_refuses_impossible_packets() -> None:
    writer = ContainerWriter(BytesIO(), HEADER)
    for size in (0, PACKET_MAX + 1):
        with pytest.raises(ValueError, match="record holds"):
            writer.write(bytes(size))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_files_give_packets_or_bitstream_errors(data: st.DataObject) -> None:
    raw = bytearray(written())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_all(bytes(raw))
    except BitstreamError as error:
        assert error.rule


@pytest.mark.parametrize("data", [b"\x06\x02\x80\x00\x02\x80\x01", b"\x08\x02"])
def test_what_belongs_to_datagrams_is_no_record(data: bytes) -> None:
    whole, file = written(), BytesIO()
    record = varint(len(data)) + data
    with pytest.raises(BitstreamError) as caught:
        list(ContainerReader(BytesIO(whole[: -len(bytes(End(3))) - 1] + record)))
    assert caught.value.rule == "R28"
    with pytest.raises(ValueError, match="belongs to a datagram"):
        ContainerWriter(file, HEADER).write(data)

"""The .ncv file: a magic, then packets with their lengths in front (FORMAT.md section 9). Knows files, not networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO

from .errors import BitstreamError, LimitError, TruncatedError
from .fields import VARINT_MAX, varint
from .packet import KIND_BUNDLE, KIND_FEEDBACK, PACKET_MAX, End, Packet, StreamHeader, parse_packet

FILE_MAGIC = b"\x89NCV\r\n\x1a\n"  # like PNG's: shows text-mode and 7-bit damage at once
DATAGRAM_ONLY = (bytes((KIND_BUNDLE,)), bytes((KIND_FEEDBACK,)))


class ContainerWriter:
    """Writes a stream to a binary file object. The caller opens and closes the file."""

    def __init__(self, file: BinaryIO, header: StreamHeader) -> None:
        self.header = header
        self.bytes_written = 0
        self._file = file
        self._put(FILE_MAGIC)
        self.write(header)

    def write(self, packet: Packet | bytes) -> None:
        """Append one packet."""
        data = bytes(packet)
        if data[:1] in DATAGRAM_ONLY:
            raise ValueError("a bundle or feedback belongs to a datagram; a file holds each packet once, by itself")
        if not 1 <= len(data) <= PACKET_MAX:
            raise ValueError(f"a packet of {len(data)} bytes; a record holds 1 to {PACKET_MAX}")
        self._put(varint(len(data)) + data)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes_written += len(data)


class ContainerReader:
    """Iterates the packets of a binary file object, the stream header first (also kept as ``header``).

    A file that was cut yields every whole packet before the cut and then raises TruncatedError. A file without an End
    packet that stops between two records is whole: a recording that was stopped.
    skip: told what is wrong with a record that is no packet, which is then left out; without it, that is raised. What
    is wrong with the lengths is always raised: nobody knows where the next record begins.
    """

    def __init__(self, file: BinaryIO, skip: Callable[[BitstreamError], None] | None = None) -> None:
        self._file, self._skip = file, skip
        self.offset = 0  # of the next unread byte
        magic = self._take(len(FILE_MAGIC))
        if magic != FILE_MAGIC:
            kind = TruncatedError if FILE_MAGIC.startswith(magic) else BitstreamError
            raise kind(f"the file starts with {magic!r}, expected {FILE_MAGIC!r}: not an .ncv file", rule="R21")
        record = self._next()
        if record is None:
            raise TruncatedError("the file ends before the stream header", rule="R22", offset=self.offset)
        first = self._packet(record)
        if not isinstance(first, StreamHeader):
            raise BitstreamError(
                f"the first record is {type(first).__name__}, expected StreamHeader", rule="R22", offset=len(magic)
            )
        self.header: StreamHeader = first

    def __iter__(self) -> Iterator[Packet]:
        yield self.header
        ended = False
        while (record := self._next()) is not None:
            try:
                packet = self._packet(record)
            except BitstreamError as problem:
                if self._skip is None:
                    raise
                self._skip(problem)
                continue
            if ended:
                raise BitstreamError("records follow the End packet", rule="R23", offset=self.offset)
            ended = isinstance(packet, End)
            yield packet

    def _next(self) -> bytes | None:
        start, length = self.offset, 0
        for shift in range(0, 7 * VARINT_MAX, 7):
            byte = self._take(1)
            if not byte:
                if shift:
                    raise TruncatedError("the file ends inside a record length", rule="R24", offset=self.offset)
                return None
            length |= (byte[0] & 0x7F) << shift
            if length > PACKET_MAX:
                break
            if byte[0] < 0x80:
                if shift and not byte[0]:
                    raise BitstreamError("a record length is not minimal", rule="R4", offset=start)
                break
        if not 1 <= length <= PACKET_MAX:
            raise LimitError(f"a record of {length} bytes, allowed is 1 to {PACKET_MAX}", rule="R1", offset=start)
        data = self._take(length)
        if len(data) < length:
            raise TruncatedError(
                f"the file ends inside a packet: {len(data)} of {length} bytes", rule="R24", offset=self.offset
            )
        return data

    def _packet(self, data: bytes) -> Packet:
        """Of the record just read."""
        base = self.offset - len(data)
        if data[:1] in DATAGRAM_ONLY:
            raise BitstreamError(
                f"a record of kind {data[0]:#04x}: bundles and feedback belong to datagrams", rule="R28", offset=base
            )
        try:
            return parse_packet(data)
        except BitstreamError as problem:
            problem.offset += base
            raise

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (piece := self._file.read(count - len(data))):
            data += piece  # pipes and sockets deliver in pieces
        self.offset += len(data)
        return data

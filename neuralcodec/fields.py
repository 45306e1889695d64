"""The fields packets are made of: varints, and a reader that checks every length and limit before it returns.

FORMAT.md sections 1 and 4. Knows no packet.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import BitstreamError, LimitError, TruncatedError

VARINT_MAX = 9  # bytes: 63 bits
FRAGMENTS_MAX = 64
MOTION_MAX = 512  # payload bytes per motion frame; the tables cannot need more


def varint(value: int) -> bytes:
    """Unsigned, 7 bits a byte, lowest first, top bit set on all but the last (LEB128)."""
    if not 0 <= value < 1 << 7 * VARINT_MAX:
        raise ValueError(f"{value} does not fit a varint of {VARINT_MAX} bytes")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed_varint(value: int) -> bytes:
    """0, -1, 1, -2, ... as varints 0, 1, 2, 3, ... (zigzag)."""
    return varint(value << 1 if value >= 0 else ~(value << 1))


def crop_bytes(crop: Sequence[int]) -> bytes:
    """Left, top and side of the square that a picture was cut from."""
    left, top, side = crop
    return signed_varint(left) + signed_varint(top) + varint(side)


class Reader:
    """Reads fields of one packet; every method checks length and limits before it returns."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 1  # the kind byte has been looked at

    def error(self, message: str, rule: int) -> BitstreamError:
        return BitstreamError(f"{message}; drop the packet", rule=f"R{rule}", offset=self.offset)

    def take(self, count: int, what: str) -> bytes:
        found = self.data[self.offset : self.offset + count]
        if len(found) < count:
            raise TruncatedError(
                f"the packet ends inside {what}: {len(found)} of {count} bytes", rule="R3", offset=len(self.data)
            )
        self.offset += count
        return found

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def varint(self, what: str) -> int:
        value, start = 0, self.offset
        for shift in range(0, 7 * VARINT_MAX, 7):
            byte = self.byte(what)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if not byte and shift:
                    break
                return value
        self.offset = start
        raise self.error(f"{what} is a varint that is not minimal or exceeds {VARINT_MAX} bytes", 4)

    def limited(self, what: str, low: int, high: int, rule: int) -> int:
        start, value = self.offset, self.varint(what)
        if not low <= value <= high:
            raise LimitError(f"{what} is {value}, allowed is {low} to {high}", rule=f"R{rule}", offset=start)
        return value

    def signed(self, what: str, high: int, rule: int) -> int:
        start, raw = self.offset, self.varint(what)
        value = ~(raw >> 1) if raw & 1 else raw >> 1
        if abs(value) > high:
            raise LimitError(f"{what} is {value}, allowed is {-high} to {high}", rule=f"R{rule}", offset=start)
        return value

    def fragment(self) -> tuple[int, int]:
        index, count = self.byte("the fragment index"), self.byte("the fragment count")
        if not 1 <= count <= FRAGMENTS_MAX:
            raise LimitError(f"{count} fragments, allowed is 1 to {FRAGMENTS_MAX}", rule="R11", offset=self.offset - 1)
        if index >= count:
            raise self.error(f"fragment {index} of {count} does not exist", 11)
        return index, count

    def codec(self) -> int:
        codec = self.byte("the codec")
        if not codec & 0x7F:
            raise self.error("codec 0 is reserved", 12)
        return codec

    def payload(self) -> bytes:
        found = self.data[self.offset :]
        if not found:
            raise TruncatedError("the packet ends before its payload", rule="R17", offset=self.offset)
        return found

    def motion(self, frames: int) -> bytes:
        found = self.data[self.offset :]
        if len(found) > MOTION_MAX * frames:
            raise LimitError(
                f"{len(found)} bytes of motion for {frames} frames, allowed are {MOTION_MAX} a frame",
                rule="R18",
                offset=self.offset,
            )
        if found and not found[-1]:
            raise self.error("a motion payload ends with a zero byte, so it is not the shortest", 20)
        return found

    def end(self) -> None:
        if self.offset < len(self.data):
            raise self.error(f"{len(self.data) - self.offset} bytes follow the last field", 5)

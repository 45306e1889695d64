"""The boxes a datagram carries: parse and build, byte for byte (FORMAT.md sections 3, 4). Knows no meaning of payloads.

``parse_packet(data)`` accepts any bytes and returns a packet or raises a BitstreamError that names the rule broken.
For every packet ``bytes(parse_packet(data)) == data``: there is one way to write each packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from .errors import BitstreamError, LimitError, TruncatedError, UnsupportedVersionError

FORMAT_VERSION = 1

# First bytes, written down and never derived. 0x40-0x7f: intra motion. 0x80-0xff: predicted motion.
KIND_HEADER = 0x01
KIND_REFERENCE = 0x02
KIND_PIXELS = 0x03
KIND_END = 0x04
KIND_UPDATE = 0x05
KIND_EXTENSION = 0x20  # to 0x3f: for later minor versions; a decoder that does not know one ignores it
KIND_INTRA = 0x40
KIND_PREDICTED = 0x80

# Limits a decoder must accept and may not exceed (section 8).
PACKET_MAX = 1 << 20  # bytes
DIMENSION_MAX = 8192  # pixels, each side
SIZE_MIN, SIZE_MAX, SIZE_STEP = 64, 1024, 16  # side of the coded square
TIME_MAX = (1 << 31) - 1  # time base terms, frame duration, pts steps
FRAGMENTS_MAX = 64
UPDATE_FRAGMENTS_MAX = 8
GROUP_MAX = 64  # motion frames in one packet
MOTION_MAX = 512  # payload bytes per motion frame; the tables cannot need more
VARINT_MAX = 9  # bytes: 63 bits

MAGIC = b"NCV"
FLAG_FULL_FRAME, FLAG_GRAY = 1, 2


class Packet(Protocol):
    """Anything parse_packet returns."""

    def __bytes__(self) -> bytes: ...


@dataclass(frozen=True)
class StreamHeader:
    """What a decoder must know first. A live sender repeats it with every reference."""

    pack_id: bytes  # 8 bytes: which model pack the stream needs
    width: int  # of the source, pixels
    height: int
    time_base: tuple[int, int]  # a pts unit is num / den seconds
    frame_duration: int  # nominal, in pts units
    size: int  # side of the coded square, pixels
    full_frame: bool = False  # the output is the source frame with the face pasted back
    gray: bool = False  # the source had no colour

    def __bytes__(self) -> bytes:
        flags = FLAG_FULL_FRAME * self.full_frame | FLAG_GRAY * self.gray
        numbers = (self.width, self.height, *self.time_base, self.frame_duration, self.size)
        head = bytes((KIND_HEADER,)) + MAGIC + bytes((FORMAT_VERSION,)) + self.pack_id + bytes((flags,))
        return head + b"".join(map(varint, numbers))

    @classmethod
    def _parse(cls, read: _Reader) -> StreamHeader:
        if (magic := read.take(3, "the magic")) != MAGIC:
            raise read.error(f"the header starts with {magic!r}, expected {MAGIC!r}: not a neuralcodec stream", 6)
        if (version := read.byte("the version")) != FORMAT_VERSION:
            raise UnsupportedVersionError(
                f"the stream is format version {version}, this release reads {FORMAT_VERSION}: update neuralcodec",
                rule="R6",
                offset=read.offset - 1,
            )
        pack_id, flags = read.take(8, "the pack id"), read.byte("the flags")
        if flags & ~(FLAG_FULL_FRAME | FLAG_GRAY):
            raise read.error(f"header flags {flags:#04x} set reserved bits", 10)
        width, height = read.limited("width", 1, DIMENSION_MAX, 7), read.limited("height", 1, DIMENSION_MAX, 7)
        base = read.limited("time base num", 1, TIME_MAX, 8), read.limited("time base den", 1, TIME_MAX, 8)
        duration = read.limited("frame duration", 1, TIME_MAX, 8)
        size = read.limited("coded size", SIZE_MIN, SIZE_MAX, 9)
        if size % SIZE_STEP:
            raise read.error(f"coded size {size} is not a multiple of {SIZE_STEP}", 9)
        read.end()
        return cls(pack_id, width, height, base, duration, size, bool(flags & FLAG_FULL_FRAME), bool(flags & FLAG_GRAY))


@dataclass(frozen=True)
class ReferencePart:
    """One fragment of a coded reference picture. All parts of a picture repeat everything but index and payload."""

    reference: int  # id, 0..255; a new picture under an id replaces the old one
    index: int  # fragment number
    count: int
    codec: int  # 1..255, of the still picture (FORMAT.md section 7)
    hash: bytes  # first 4 bytes of the SHA-256 of the whole coded picture
    crop: tuple[int, int, int]  # left, top, side in source pixels: where the coded square was cut
    payload: bytes

    def __bytes__(self) -> bytes:
        head = bytes((KIND_REFERENCE, self.reference, self.index, self.count, self.codec)) + self.hash
        left, top, side = self.crop
        return head + signed_varint(left) + signed_varint(top) + varint(side) + self.payload

    @classmethod
    def _parse(cls, read: _Reader) -> ReferencePart:
        reference = read.byte("the reference id")
        index, count = read.fragment()
        codec, digest = read.codec(), read.take(4, "the hash")
        left = read.signed("crop left", DIMENSION_MAX, 13)
        top = read.signed("crop top", DIMENSION_MAX, 13)
        side = read.limited("crop side", 1, 2 * DIMENSION_MAX, 13)
        return cls(reference, index, count, codec, digest, (left, top, side), read.payload())


@dataclass(frozen=True)
class Update:
    """One fragment of a reference picture that is predicted from the one before it in its chain (section 3.7)."""

    reference: int  # id it is held under
    index: int  # fragment number
    count: int  # 1..8
    hash: bytes  # first 4 bytes of the SHA-256 over the hash of the picture before and the whole coded picture
    payload: bytes
    crop: tuple[int, int, int] | None = None  # as a reference's; None: as the picture before

    CROP_FLAG: ClassVar[int] = 0x40

    def __bytes__(self) -> bytes:
        part = self.index | (self.count - 1) << 3 | (self.CROP_FLAG if self.crop else 0)
        head = bytes((KIND_UPDATE, self.reference, part)) + self.hash
        if self.crop:
            left, top, side = self.crop
            head += signed_varint(left) + signed_varint(top) + varint(side)
        return head + self.payload

    @classmethod
    def _parse(cls, read: _Reader) -> Update:
        reference, part = read.byte("the reference id"), read.byte("the fragment")
        index, count, crop = part & 7, (part >> 3 & 7) + 1, None
        if index >= count:
            raise read.error(f"fragment {index} of {count} does not exist", 11)
        if part & 0x80:
            raise read.error(f"update flags {part:#04x} set reserved bits", 10)
        digest = read.take(4, "the hash")
        if part & cls.CROP_FLAG:
            left = read.signed("crop left", DIMENSION_MAX, 13)
            top = read.signed("crop top", DIMENSION_MAX, 13)
            crop = left, top, read.limited("crop side", 1, 2 * DIMENSION_MAX, 13)
        return cls(reference, index, count, digest, read.payload(), crop)


@dataclass(frozen=True)
class Motion:
    """One or more consecutive motion frames. Two bytes in front of the payload when nothing unusual is said.

    intra: needs no earlier packet but its reference; carries reference and pts. Predicted frames continue the frame
    before them; ``reference`` and ``pts_step`` are None when they are the last reference and the nominal duration.
    as_is: the reference picture is shown as it is; motion is followed but does not move it.
    """

    sequence: int  # 0..255, counts frames (not packets) modulo 256
    level: int  # 0..7
    components: int  # 0..7, index into the pack's component counts
    payload: bytes
    intra: bool = False
    reference: int | None = None
    pts: int | None = None  # intra only: absolute
    pts_step: int | None = None  # predicted only: pts of the first frame minus pts of the frame before
    frames: int = 1  # predicted only; the further ones follow at the nominal duration
    as_is: bool = False  # predicted only

    REFERENCE_FLAG: ClassVar[int] = 1
    STEP_FLAG: ClassVar[int] = 2
    FRAMES_FLAG: ClassVar[int] = 4
    AS_IS_FLAG: ClassVar[int] = 8

    def __bytes__(self) -> bytes:
        scale = self.level << 3 | self.components
        if self.intra:
            if self.reference is None or self.pts is None:
                raise ValueError("an intra motion packet needs a reference id and a pts")
            head = bytes((KIND_INTRA | scale, self.sequence, self.reference))
            return head + signed_varint(self.pts) + self.payload
        flags, extra = 0, b""
        if self.reference is not None:
            flags, extra = flags | self.REFERENCE_FLAG, extra + bytes((self.reference,))
        if self.pts_step is not None:
            flags, extra = flags | self.STEP_FLAG, extra + varint(self.pts_step)
        if self.frames != 1:
            flags, extra = flags | self.FRAMES_FLAG, extra + varint(self.frames)
        flags |= self.AS_IS_FLAG * self.as_is
        head = bytes((KIND_PREDICTED | scale << 1 | bool(flags), self.sequence))
        return head + (bytes((flags,)) + extra if flags else b"") + self.payload

    @classmethod
    def _parse_intra(cls, read: _Reader, kind: int) -> Motion:
        level, components = kind >> 3 & 7, kind & 7
        sequence, reference = read.byte("the sequence number"), read.byte("the reference id")
        pts = read.signed("pts", (1 << 62) - 1, 4)
        return cls(sequence, level, components, read.motion(1), True, reference, pts)

    @classmethod
    def _parse_predicted(cls, read: _Reader, kind: int) -> Motion:
        level, components = kind >> 4 & 7, kind >> 1 & 7
        sequence, reference, step, frames, flags = read.byte("the sequence number"), None, None, 1, 0
        if kind & 1:
            flags = read.byte("the motion flags")
            if not 0 < flags < 16:
                raise read.error(f"motion flags {flags:#04x} are empty or set reserved bits", 14)
            if flags & cls.REFERENCE_FLAG:
                reference = read.byte("the reference id")
            if flags & cls.STEP_FLAG:
                step = read.limited("pts step", 1, TIME_MAX, 15)
            if flags & cls.FRAMES_FLAG:
                frames = read.limited("frame count", 2, GROUP_MAX, 16)
        payload, as_is = read.motion(frames), bool(flags & cls.AS_IS_FLAG)
        return cls(sequence, level, components, payload, False, reference, None, step, frames, as_is)


@dataclass(frozen=True)
class Pixels:
    """One fragment of an ordinary video frame, sent while the model cannot show what the camera sees."""

    sequence: int  # shared with Motion: counts frames
    index: int
    count: int
    codec: int  # 1..255 (FORMAT.md section 7)
    key: bool  # decodable without earlier pixel frames
    pts: int
    payload: bytes

    def __bytes__(self) -> bytes:
        head = bytes((KIND_PIXELS, self.sequence, self.index, self.count, self.codec, self.key))
        return head + signed_varint(self.pts) + self.payload

    @classmethod
    def _parse(cls, read: _Reader) -> Pixels:
        sequence = read.byte("the sequence number")
        index, count = read.fragment()
        codec, flags = read.codec(), read.byte("the pixel flags")
        if flags > 1:
            raise read.error(f"pixel flags {flags:#04x} set reserved bits", 10)
        pts = read.signed("pts", (1 << 62) - 1, 4)
        return cls(sequence, index, count, codec, bool(flags), pts, read.payload())


@dataclass(frozen=True)
class End:
    """The sender is done after this many frames."""

    frames: int

    def __bytes__(self) -> bytes:
        return bytes((KIND_END,)) + varint(self.frames)

    @classmethod
    def _parse(cls, read: _Reader) -> End:
        frames = read.varint("frame count")
        read.end()
        return cls(frames)


@dataclass(frozen=True)
class Extension:
    """A packet of a later minor version, or private data: kept as it is; decoders that do not know it ignore it."""

    kind: int  # 0x20..0x3f
    payload: bytes

    def __bytes__(self) -> bytes:
        return bytes((self.kind,)) + self.payload


def parse_packet(data: bytes) -> StreamHeader | ReferencePart | Update | Motion | Pixels | End | Extension:
    """One packet from the bytes of one datagram or one container record."""
    if not data:
        raise TruncatedError("an empty packet; a packet has at least its kind byte", rule="R1")
    if len(data) > PACKET_MAX:
        raise LimitError(f"a packet of {len(data)} bytes; the limit is {PACKET_MAX}", rule="R1", offset=PACKET_MAX)
    read, kind = _Reader(data), data[0]
    if kind & KIND_PREDICTED:
        return Motion._parse_predicted(read, kind)
    if kind & KIND_INTRA:
        return Motion._parse_intra(read, kind)
    if kind >= KIND_EXTENSION:
        return Extension(kind, data[1:])
    if kind == KIND_HEADER:
        return StreamHeader._parse(read)
    if kind == KIND_REFERENCE:
        return ReferencePart._parse(read)
    if kind == KIND_PIXELS:
        return Pixels._parse(read)
    if kind == KIND_END:
        return End._parse(read)
    if kind == KIND_UPDATE:
        return Update._parse(read)
    raise BitstreamError(f"packet kind {kind:#04x} does not exist; drop the packet", rule="R2")


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


class _Reader:
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
            raise LimitError(
                f"{count} fragments, allowed is 1 to {FRAGMENTS_MAX}", rule="R11", offset=self.offset - 1
            )
        if index >= count:
            raise self.error(f"fragment {index} of {count} does not exist", 11)
        return index, count

    def codec(self) -> int:
        codec = self.byte("the codec")
        if not codec:
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

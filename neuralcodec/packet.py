"""The boxes a datagram carries: parse and build, byte for byte (FORMAT.md sections 3, 4). Knows no meaning of payloads.

``parse_packet(data)`` accepts any bytes and returns a packet or raises a BitstreamError that names the rule broken.
For every packet ``bytes(parse_packet(data)) == data``: there is one way to write each packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

from .errors import BitstreamError, LimitError, TruncatedError, UnsupportedVersionError
from .fields import FRAGMENTS_MAX, Reader, crop_bytes, signed_varint, varint

FORMAT_VERSION = 1

# First bytes, written down and never derived. 0x40-0x7f: intra motion. 0x80-0xff: predicted motion.
KIND_HEADER = 0x01
KIND_REFERENCE = 0x02
KIND_END = 0x04
KIND_UPDATE = 0x05
KIND_BUNDLE = 0x06
KIND_PARITY = 0x07
KIND_FEEDBACK = 0x08
KIND_EXTENSION = 0x20  # to 0x3f: for later minor versions; a decoder that does not know one ignores it
KIND_INTRA = 0x40
KIND_PREDICTED = 0x80

# Limits a decoder must accept and may not exceed (section 8).
PACKET_MAX = 1 << 20  # bytes
DIMENSION_MAX = 8192  # pixels, each side
SIZE_MIN, SIZE_MAX, SIZE_STEP = 64, 1024, 16  # side of the coded square
PTS_MAX = (1 << 62) - 1  # of either sign
TIME_MAX = (1 << 31) - 1  # time base terms, frame duration, pts steps
UPDATE_FRAGMENTS_MAX = 8
GROUP_MAX = 64  # motion frames in one packet, or in all packets of a bundle
BUNDLE_MAX = 16  # packets in one bundle
REFERENCES_MAX = 8  # pictures a decoder holds; id modulo 8 is the place they take
SIGNED = 0x80  # bit of a codec or of an update's flags: a signature precedes the picture (FORMAT.md section 12)

DATAGRAM_BYTES = 1200  # that neighbours share: fits 1280 bytes of IPv6 with SRTP, and every tunnel met in practice

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
    def _parse(cls, read: Reader) -> StreamHeader:
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
    codec: int  # 1..127, of the still picture (FORMAT.md section 7); SIGNED is added when it is signed
    hash: bytes  # first 4 bytes of the SHA-256 of the whole coded picture, signature included
    crop: tuple[int, int, int]  # left, top, side in source pixels: where the coded square was cut
    payload: bytes

    def __bytes__(self) -> bytes:
        head = bytes((KIND_REFERENCE, self.reference, self.index, self.count, self.codec)) + self.hash
        return head + crop_bytes(self.crop) + self.payload

    @classmethod
    def _parse(cls, read: Reader) -> ReferencePart:
        reference = read.byte("the reference id")
        index, count = read.fragment()
        codec, digest = read.codec(), read.take(4, "the hash")
        return cls(reference, index, count, codec, digest, _crop(read), read.payload())


@dataclass(frozen=True)
class Parity:
    """The XOR of some fragments of a coded reference picture: any one of them can be lost (FORMAT.md section 13).

    Fragments are equally long but the last; parity ``index`` of ``groups`` covers fragments index, index + groups, ...
    """

    reference: int
    index: int
    groups: int  # parity packets of this picture, 1..count
    count: int  # fragments of this picture
    codec: int
    hash: bytes
    crop: tuple[int, int, int]
    length: int  # of the whole coded picture, bytes
    payload: bytes  # as long as the first fragment; shorter fragments count as followed by zeros

    def __bytes__(self) -> bytes:
        head = bytes((KIND_PARITY, self.reference, self.index, self.groups, self.count, self.codec)) + self.hash
        return head + crop_bytes(self.crop) + varint(self.length) + self.payload

    @classmethod
    def _parse(cls, read: Reader) -> Parity:
        reference = read.byte("the reference id")
        index, groups = read.fragment()
        count = read.byte("the fragment count")
        if not groups <= count <= FRAGMENTS_MAX:
            raise LimitError(
                f"{groups} parities of {count} fragments, allowed are {groups} to {FRAGMENTS_MAX}",
                rule="R11", offset=read.offset - 1,
            )  # fmt: skip
        codec, digest, crop = read.codec(), read.take(4, "the hash"), _crop(read)
        length = read.limited("picture length", count, PACKET_MAX, 26)
        payload = read.payload()
        if len(payload) != -(-length // count) or (count - 1) * len(payload) >= length:
            raise read.error(f"{len(payload)} bytes of parity for {count} fragments of {length} bytes in all", 26)
        return cls(reference, index, groups, count, codec, digest, crop, length, payload)


@dataclass(frozen=True)
class Update:
    """One fragment of a reference picture that is predicted from the one before it in its chain (section 3.6)."""

    reference: int  # id it is held under
    index: int  # fragment number
    count: int  # 1..8
    hash: bytes  # first 4 bytes of the digest that names this picture and all it was built on (section 7.1)
    payload: bytes
    crop: tuple[int, int, int] | None = None  # as a reference's; None: as the picture before
    signed: bool = False  # the coded picture begins with a signature

    CROP_FLAG: ClassVar[int] = 0x40

    def __bytes__(self) -> bytes:
        part = self.index | (self.count - 1) << 3 | self.CROP_FLAG * bool(self.crop) | SIGNED * self.signed
        head = bytes((KIND_UPDATE, self.reference, part)) + self.hash
        return head + (crop_bytes(self.crop) if self.crop else b"") + self.payload

    @classmethod
    def _parse(cls, read: Reader) -> Update:
        reference, part = read.byte("the reference id"), read.byte("the fragment")
        index, count = part & 7, (part >> 3 & 7) + 1
        if index >= count:
            raise read.error(f"fragment {index} of {count} does not exist", 11)
        digest = read.take(4, "the hash")
        crop = _crop(read) if part & cls.CROP_FLAG else None
        return cls(reference, index, count, digest, read.payload(), crop, bool(part & SIGNED))


@dataclass(frozen=True)
class Motion:
    """One or more consecutive motion frames. Two bytes in front of the payload when nothing unusual is said.

    intra: needs no earlier packet but its reference; carries reference and pts. Predicted frames continue the frame
    before them; ``reference`` and ``pts_step`` are None when they are the last reference and the nominal duration.
    as_is: the reference picture is shown as it is; motion is followed but does not move it. light: on the last frame,
    against that on the stream's first one; None where it is not said. See light.py.
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
    light: int | None = None  # predicted only, -128..127

    REFERENCE_FLAG: ClassVar[int] = 1
    STEP_FLAG: ClassVar[int] = 2
    FRAMES_FLAG: ClassVar[int] = 4
    AS_IS_FLAG: ClassVar[int] = 8
    LIGHT_FLAG: ClassVar[int] = 16

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
        if self.light is not None:
            flags, extra = flags | self.LIGHT_FLAG, extra + bytes((self.light & 255,))
        head = bytes((KIND_PREDICTED | scale << 1 | bool(flags), self.sequence))
        return head + (bytes((flags,)) + extra if flags else b"") + self.payload

    @classmethod
    def _parse_intra(cls, read: Reader, kind: int) -> Motion:
        level, components = kind >> 3 & 7, kind & 7
        sequence, reference = read.byte("the sequence number"), read.byte("the reference id")
        pts = read.signed("pts", PTS_MAX, 4)
        return cls(sequence, level, components, read.motion(1), True, reference, pts)

    @classmethod
    def _parse_predicted(cls, read: Reader, kind: int) -> Motion:
        level, components = kind >> 4 & 7, kind >> 1 & 7
        sequence, reference, step, frames, flags, light = read.byte("the sequence number"), None, None, 1, 0, None
        if kind & 1:
            flags = read.byte("the motion flags")
            if not 0 < flags < 32:
                raise read.error(f"motion flags {flags:#04x} are empty or set reserved bits", 14)
            if flags & cls.REFERENCE_FLAG:
                reference = read.byte("the reference id")
            if flags & cls.STEP_FLAG:
                step = read.limited("pts step", 1, TIME_MAX, 15)
            if flags & cls.FRAMES_FLAG:
                frames = read.limited("frame count", 2, GROUP_MAX, 16)
            if flags & cls.LIGHT_FLAG:
                light = (read.byte("the light") + 128) % 256 - 128
        payload, as_is = read.motion(frames), bool(flags & cls.AS_IS_FLAG)
        return cls(sequence, level, components, payload, False, reference, None, step, frames, as_is, light)


@dataclass(frozen=True)
class End:
    """The sender is done after this many frames."""

    frames: int

    def __bytes__(self) -> bytes:
        return bytes((KIND_END,)) + varint(self.frames)

    @classmethod
    def _parse(cls, read: Reader) -> End:
        frames = read.varint("frame count")
        read.end()
        return cls(frames)


@dataclass(frozen=True)
class Bundle:
    """Packets that share one datagram, oldest first: none of them a bundle, and no two that say the same."""

    packets: tuple[Packet, ...]

    def __bytes__(self) -> bytes:
        inside = [bytes(packet) for packet in self.packets]
        return bytes((KIND_BUNDLE,)) + b"".join(varint(len(data)) + data for data in inside)

    @classmethod
    def _parse(cls, read: Reader) -> Bundle:
        packets: list[Packet] = []
        frames = 0
        while read.offset < len(read.data):
            if len(packets) == BUNDLE_MAX:
                raise LimitError(f"a bundle of more than {BUNDLE_MAX} packets", rule="R25", offset=read.offset)
            length = read.limited("length of a bundled packet", 1, PACKET_MAX, 1)
            data = read.take(length, "a bundled packet")
            if data[0] == KIND_BUNDLE:
                raise LimitError("a bundle inside a bundle; drop the packet", rule="R25", offset=read.offset - length)
            try:
                packet = parse_packet(data)
            except BitstreamError as problem:
                problem.offset += read.offset - length
                raise
            packets.append(packet)
            frames += packet.frames if isinstance(packet, Motion) else 0
            if frames > GROUP_MAX:
                raise LimitError(f"more than {GROUP_MAX} frames in a bundle", rule="R25", offset=read.offset - length)
        if len(packets) < 2:
            raise read.error(f"a bundle of {len(packets)} packets, expected 2 to {BUNDLE_MAX}", 25)
        return cls(tuple(packets))


@dataclass(frozen=True)
class Feedback:
    """What a receiver tells its sender. The only packet that travels that way."""

    sequence: int | None = None  # newest frame number seen; None before the first
    lost: int = 0  # share of packets that did not come since the last report, in 1/256, at most 255
    held: tuple[int, ...] = ()  # ids of the reference pictures that are here, rising, at most 8
    need_reference: bool = False  # motion names a picture that is not here
    need_intra: bool = False  # motion cannot be followed

    def __bytes__(self) -> bytes:
        flags = self.need_reference | self.need_intra << 1 | (self.sequence is not None) << 2
        if self.sequence is None:
            return bytes((KIND_FEEDBACK, flags))
        return bytes((KIND_FEEDBACK, flags, self.sequence, self.lost, *self.held))

    @classmethod
    def _parse(cls, read: Reader) -> Feedback:
        flags = read.byte("the feedback flags")
        if flags > 7:
            raise read.error(f"feedback flags {flags:#04x} set reserved bits", 10)
        need_reference, need_intra = bool(flags & 1), bool(flags & 2)
        if not flags & 4:
            read.end()
            return cls(need_reference=need_reference, need_intra=need_intra)
        sequence, lost = read.byte("the sequence number"), read.byte("the loss")
        held = tuple(read.data[read.offset :])
        if len(held) > REFERENCES_MAX or any(a >= b for a, b in pairwise(held)):
            raise read.error(f"{len(held)} held references, expected at most {REFERENCES_MAX} rising ids", 27)
        return cls(sequence, lost, held, need_reference, need_intra)


@dataclass(frozen=True)
class Extension:
    """A packet of a later minor version, or private data: kept as it is; decoders that do not know it ignore it."""

    kind: int  # 0x20..0x3f
    payload: bytes

    def __bytes__(self) -> bytes:
        return bytes((self.kind,)) + self.payload


def parse_packet(
    data: bytes,
) -> StreamHeader | ReferencePart | Parity | Update | Motion | End | Bundle | Feedback | Extension:
    """One packet from the bytes of one datagram or one container record."""
    if not data:
        raise TruncatedError("an empty packet; a packet has at least its kind byte", rule="R1")
    if len(data) > PACKET_MAX:
        raise LimitError(f"a packet of {len(data)} bytes; the limit is {PACKET_MAX}", rule="R1", offset=PACKET_MAX)
    read, kind = Reader(data), data[0]
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
    if kind == KIND_END:
        return End._parse(read)
    if kind == KIND_UPDATE:
        return Update._parse(read)
    if kind == KIND_BUNDLE:
        return Bundle._parse(read)
    if kind == KIND_PARITY:
        return Parity._parse(read)
    if kind == KIND_FEEDBACK:
        return Feedback._parse(read)
    raise BitstreamError(f"packet kind {kind:#04x} does not exist; drop the packet", rule="R2")


def bundled(packets: Sequence[Packet], limit: int = DATAGRAM_BYTES) -> list[Packet]:
    """The same packets in the same order in as few datagrams of at most ``limit`` bytes as neighbours allow."""
    out: list[list[Packet]] = []
    size = frames = 0
    for packet in (inner for p in packets for inner in (p.packets if isinstance(p, Bundle) else (p,))):
        length = len(bytes(packet))
        cost, more = length + len(varint(length)), packet.frames if isinstance(packet, Motion) else 0
        if out and size + cost <= limit and len(out[-1]) < BUNDLE_MAX and frames + more <= GROUP_MAX:
            out[-1].append(packet)
            size, frames = size + cost, frames + more
        else:
            out.append([packet])
            size, frames = 1 + cost, more
    return [group[0] if len(group) == 1 else Bundle(tuple(group)) for group in out]


def _crop(read: Reader) -> tuple[int, int, int]:
    left, top = read.signed("crop left", DIMENSION_MAX, 13), read.signed("crop top", DIMENSION_MAX, 13)
    return left, top, read.limited("crop side", 1, 2 * DIMENSION_MAX, 13)

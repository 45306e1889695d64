"""A stream over RTP (RFC 3550): packets to RTP packets and back, feedback as RTCP (RFC 4585). FORMAT.md section 14.

Knows no sockets, clocks or networks. The sending end::

    rtp = RtpSender(ssrc)
    for datagram in rtp.pack(encoder.encode(image, pts), float(pts * encoder.time_base)):
        socket.send(datagram)
    for feedback in parse_rtcp(rtcp_datagram):           # as often as they come
        encoder.on_feedback(feedback)

The receiving end; the decoder itself puts late and doubled packets right::

    rtp, streams = RtpReceiver(), 0
    if (data := rtp.unpack(datagram)) is not None:
        if rtp.streams != streams:                       # another sender, or the same one anew
            decoder, streams = Decoder(), rtp.streams
        frames = decoder.decode(data)
    # rtp.restart() when nothing has come out of unpack for a second: whoever sends next is followed
    if decoder.wants_feedback(time.monotonic()):
        socket.send(rtcp_feedback(decoder.feedback(rtp.lost_share()), own_ssrc, rtp.ssrc))

Without RTP (a data channel, plain UDP) send ``bytes(packet)`` of each of ``bundled(packets, limit)``, and
``bytes(decoder.feedback())`` the other way: ``Decoder.decode`` and ``Encoder.on_feedback`` take bytes as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import BitstreamError, LimitError, TruncatedError
from .packet import DATAGRAM_BYTES, Feedback, Packet, StreamHeader, bundled, parse_packet
from .protection import RUN_MAX

CLOCK = 90000  # RTP timestamp units a second, as for every video payload
ENCODING = "x-neuralcodec"
PAYLOAD_TYPE = 97  # of the dynamic range; whatever signalling agreed on
HEADER_BYTES = 12
REORDER = 512  # RTP packets: what is older than this may be a new start of the numbering
DROPOUT = 3000  # RTP packets: and so may what is further ahead than this (RFC 3550 A.1)

RTCP_PSFB, FMT_PLI, FMT_FIR, FMT_APPLICATION = 206, 1, 4, 15
FEEDBACK_TAG = b"NCVF"


@dataclass(frozen=True)
class RtpPacket:
    """One RTP packet; what it may carry besides (contributing sources, extension, padding) is dropped on parsing."""

    payload_type: int  # 0..127
    sequence: int  # 16 bits
    timestamp: int  # 32 bits, CLOCK
    ssrc: int  # 32 bits
    marker: bool  # the last packet of a frame
    payload: bytes

    def __bytes__(self) -> bytes:
        second = self.marker << 7 | self.payload_type
        return struct.pack("!BBHII", 0x80, second, self.sequence, self.timestamp, self.ssrc) + self.payload

    @classmethod
    def parse(cls, data: bytes) -> RtpPacket:
        """Any bytes give a packet or a BitstreamError."""
        if len(data) < HEADER_BYTES:
            raise TruncatedError(f"an RTP packet of {len(data)} bytes; its header alone has {HEADER_BYTES}")
        first, second, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", data)
        if first >> 6 != 2:
            raise BitstreamError(f"RTP version {first >> 6}, expected 2; drop the packet")
        start, end = HEADER_BYTES + 4 * (first & 15), len(data)
        if first & 0x10:
            if end < start + 4:
                raise TruncatedError("the RTP packet ends inside its extension header", offset=end)
            start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
        if first & 0x20:
            end -= data[-1]
            if not data[-1]:
                raise BitstreamError("an RTP packet with padding of no length; drop the packet", offset=len(data) - 1)
        if start > end:
            raise TruncatedError("the RTP packet ends inside its headers", offset=len(data))
        return cls(second & 127, sequence, timestamp, ssrc, bool(second >> 7), data[start:end])


class RtpSender:
    """Numbers and stamps the packets of one stream.

    ssrc: 32 bits, random and one's own. sequence, timestamp: where to start, random in a real session (RFC 3550).
    limit: payload bytes; neighbouring packets of a frame share a payload while they fit.
    """

    def __init__(
        self,
        ssrc: int,
        *,
        payload_type: int = PAYLOAD_TYPE,
        sequence: int = 0,
        timestamp: int = 0,
        limit: int = DATAGRAM_BYTES,
    ) -> None:
        for name, value, bits in (("ssrc", ssrc, 32), ("payload_type", payload_type, 7), ("sequence", sequence, 16)):
            if not isinstance(value, int) or not 0 <= value < 1 << bits:
                raise ValueError(f"{name} is {value!r}; expected a whole number of {bits} bits.")
        self.ssrc, self.payload_type, self.limit = ssrc, payload_type, limit
        self._sequence, self._start = sequence, timestamp

    def pack(self, packets: Sequence[Packet], seconds: float) -> list[bytes]:
        """RTP packets of one frame's packets. seconds: the frame's media time, from any fixed start."""
        stamp = (self._start + round(seconds * CLOCK)) % (1 << 32)
        payloads = [bytes(packet) for packet in bundled(packets, self.limit)]
        out = []
        for index, payload in enumerate(payloads):
            last = index == len(payloads) - 1
            out.append(bytes(RtpPacket(self.payload_type, self._sequence, stamp, self.ssrc, last, payload)))
            self._sequence = (self._sequence + 1) % (1 << 16)
        return out


class RtpReceiver:
    """Takes one stream's RTP packets in any order and counts what is missing.

    ssrc: the stream, None at first and after :meth:`restart`. streams: how many were followed so far; the packets of
    each want a Decoder of their own.
    """

    def __init__(self, payload_type: int = PAYLOAD_TYPE) -> None:
        self.payload_type = payload_type
        self.ssrc: int | None = None
        self.streams = self.doubled = 0
        self._source: int | None = None  # of the last stream, which may go on after a restart
        self._proved = False  # two of its packets came in sequence
        self._proof: tuple[int, int] | None = None  # source and number that would prove another stream
        self._newest = 0  # extended by its wraps
        self._seen: set[int] = set()  # of the last REORDER numbers
        self._base = 0  # newest number, and packets received, at the last report
        self._received = self._received_then = 0

    def unpack(self, data: bytes) -> bytes | None:
        """The neuralcodec packet inside; None for a double, another stream or another payload type.

        Anybody can send to a port. A stream begins with a payload that is a packet, otherwise BitstreamError. Another
        source, or another numbering, is followed once two of its packets have come in sequence, of which the second
        is the first that is given; another source not at all while the stream that is followed was itself so proved
        and nobody has called :meth:`restart`.
        """
        packet = RtpPacket.parse(data)
        if packet.payload_type != self.payload_type or not packet.payload:
            return None
        ahead = (packet.sequence - self._newest + 0x8000) % 0x10000 - 0x8000
        if packet.ssrc != self._source or not -REORDER < ahead < DROPOUT:
            if not self._begins(packet):
                return None
            ahead = 0
        number = self._newest + ahead
        if number in self._seen:
            self.doubled += 1
            return None
        self.ssrc = packet.ssrc
        if number < self._newest and sum(runs := self._missing_beside(number)) >= RUN_MAX:
            # it was left out with a run that was none: only late, and what is left of it may be short enough to count
            self._base -= 1 + sum(run for run in runs if run <= RUN_MAX)
        self._proved = self._proved or not self._seen.isdisjoint((number - 1, number + 1))
        self._seen.add(number)
        self._received += 1
        if number > self._newest:
            gap = number - self._newest - 1
            self._base += gap if gap > RUN_MAX else 0  # as if they had not been sent
            self._newest = number
            if len(self._seen) > 2 * REORDER:
                self._seen = {n for n in self._seen if n > number - REORDER}
        return packet.payload

    def restart(self) -> None:
        """Follow whatever comes next. For when the stream has been silent for a second or so; it may itself go on."""
        self.ssrc, self._proved = None, False

    def _begins(self, packet: RtpPacket) -> bool:
        """Whether a packet that continues nothing begins a stream."""
        if self.ssrc not in (None, packet.ssrc) and self._proved:
            return False
        proved = self._proof == (packet.ssrc, packet.sequence)
        self._proof = packet.ssrc, (packet.sequence + 1) % 0x10000
        if self.ssrc is not None and not proved:
            return False
        parse_packet(packet.payload)
        self._source, self._proved, self._newest = packet.ssrc, proved, packet.sequence
        self._base, self._received_then = packet.sequence - 1, self._received
        self._seen.clear()
        self.streams += 1
        return True

    def _missing_beside(self, number: int) -> tuple[int, int]:
        """How many before and after this number have not come in a row; RUN_MAX + 1 for more."""
        before, after = (
            next((n for n in range(RUN_MAX + 1) if number + step * (n + 1) in self._seen), RUN_MAX + 1)
            for step in (-1, 1)
        )
        return before, after

    def lost_share(self) -> float:
        """Share of packets that did not come since the last call, 0..1; runs of more than RUN_MAX are left out. What
        comes after it was told of as lost makes up for losses to come."""
        expected, received = self._newest - self._base, self._received - self._received_then
        self._base, self._received_then = self._newest, self._received - max(0, received - expected)
        return min(1.0, max(0.0, (expected - received) / expected)) if expected > 0 else 0.0


# --- feedback --------------------------------------------------------------------------------------------------------


def rtcp_feedback(feedback: Feedback, sender_ssrc: int, media_ssrc: int) -> bytes:
    """An RTCP application layer feedback message (RFC 4585 section 6.4) around a feedback packet."""
    inside = bytes(feedback)
    body = FEEDBACK_TAG + bytes((len(inside),)) + inside
    body += bytes(-len(body) % 4)
    words = 2 + len(body) // 4
    return struct.pack("!BBHII", 0x80 | FMT_APPLICATION, RTCP_PSFB, words, sender_ssrc, media_ssrc) + body


def parse_rtcp(data: bytes, media_ssrc: int | None = None) -> list[Feedback]:
    """Feedback in a compound RTCP datagram: ours, and what any RTP stack sends for "I have lost the picture".

    media_ssrc: of the stream that was sent; what speaks of others is passed over. None: whatever it speaks of.

    PLI asks for an intra frame, FIR also for a reference. Other reports are passed over. Any bytes give a list or a
    BitstreamError.
    """
    found, offset = [], 0
    while offset < len(data):
        if len(data) - offset < 4:
            raise TruncatedError("the RTCP datagram ends inside a header", offset=len(data))
        first, kind, words = struct.unpack_from("!BBH", data, offset)
        body = data[offset + 4 : offset + 4 + 4 * words]
        if first >> 6 != 2 or len(body) < 4 * words:
            raise BitstreamError("an RTCP packet that is cut or not of version 2; drop the datagram", offset=offset)
        if kind == RTCP_PSFB and words >= 2:
            if media_ssrc is None or media_ssrc in _about(first & 31, body):
                found += _psfb(first & 31, body[8:])
        offset += 4 + 4 * words
    return found


def _about(fmt: int, body: bytes) -> set[int]:
    """The streams that a payload-specific message speaks of. FIR names them in entries of eight bytes (RFC 5104 section
    4.3.1)."""
    if fmt == FMT_FIR:
        return {ssrc for ssrc, _ in struct.iter_unpack("!II", body[8 : len(body) // 8 * 8])}
    return {int.from_bytes(body[4:8], "big")}


def _psfb(fmt: int, body: bytes) -> list[Feedback]:
    if fmt == FMT_PLI:
        return [Feedback(need_intra=True)]
    if fmt == FMT_FIR:
        return [Feedback(need_reference=True, need_intra=True)]
    if fmt != FMT_APPLICATION or body[:4] != FEEDBACK_TAG or len(body) < 6:
        return []
    if len(body) < 5 + body[4]:
        raise LimitError(f"feedback of {body[4]} bytes in {len(body) - 5}; drop the datagram")
    packet = parse_packet(body[5 : 5 + body[4]])
    return [packet] if isinstance(packet, Feedback) else []


# --- signalling ------------------------------------------------------------------------------------------------------


def sdp_attributes(header: StreamHeader, payload_type: int = PAYLOAD_TYPE) -> list[str]:
    """The lines that describe the stream in an SDP media section ``m=video PORT RTP/AVPF <payload type>``."""
    return [
        f"a=rtpmap:{payload_type} {ENCODING}/{CLOCK}",
        f"a=fmtp:{payload_type} version=1;pack={header.pack_id.hex()};size={header.size}",
        f"a=rtcp-fb:{payload_type} nack pli",
        f"a=rtcp-fb:{payload_type} ccm fir",
        f"a=rtcp-fb:{payload_type} ack ncvf",
    ]

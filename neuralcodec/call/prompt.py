"""Where aiortc waits and a live picture must not: changes to it that hold for the process which serves calls."""

from __future__ import annotations

from aiortc import rtcrtpreceiver
from aiortc.codecs import vpx
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtp import RtpPacket

VIDEO_BITS = 2_500_000, 4_000_000  # a second of the comparison: at the start, and at most


class PromptJitterBuffer(JitterBuffer):
    """Gives a picture out with its last packet, which RTP marks. aiortc waits for the next picture's first one: that is
    a camera period, 40 ms, of delay."""

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        packets: list[RtpPacket] = []
        first = self._origin or 0
        for place in range(self.capacity if self._is_video else 0):
            packet = self._packets[(first + place) % self.capacity]
            if packet is None or (packets and packet.timestamp != packets[0].timestamp):
                break
            packets.append(packet)
            if packet.marker:
                self.remove(len(packets))
                return JitterFrame(b"".join(p._data for p in packets), packet.timestamp)  # type: ignore[attr-defined]
        return super()._remove_frame(sequence_number)


def hurry() -> None:
    """Make it so."""
    rtcrtpreceiver.JitterBuffer = PromptJitterBuffer  # type: ignore[attr-defined]
    vpx.DEFAULT_BITRATE, vpx.MAX_BITRATE = VIDEO_BITS  # aiortc's own limits blur what we want to compare

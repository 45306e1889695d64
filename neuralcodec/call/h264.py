"""What H.264 shows for the very bytes that ours has spent: x264 as a call would run it. Knows no network, no page."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from neuralcodec.face import resize
from neuralcodec.media import exact_rgb
from neuralcodec.motion import Array

# What x264 does best with, by rate, on the demo's clip (PSNR and MS-SSIM over sizes, frame rates and qualities, frames
# left out while the bytes of the last are being earned; its own rate control did worse). Below kbit/s: side, frames a
# second at most, crf.
SETTINGS = ((3.0, 96, 12.5, 36), (12.0, 128, 12.5, 36), (32.0, 192, 25.0, 34), (float("inf"), 256, 25.0, 32))
SAVED_SECONDS = 2.0  # of the rate: unspent bytes do not pile up into a burst


class SameBytes:
    """Feed it each picture and how many bytes ours spent since the last; it shows x264's picture, or the old one while
    its own bytes have not been earned yet. Neither container nor SEI count against it."""

    def __init__(self, size: int, kbps: float) -> None:
        self.size = size
        self.bytes = self.frames = 0
        self._purse = 0.0
        self._shown = np.full((size, size, 3), 16, np.uint8)
        self._due = 0.0
        self._open(kbps)
        self._wanted = kbps

    def retarget(self, kbps: float) -> None:
        """A new rate from the next picture on; from any thread."""
        self._wanted = kbps

    def _open(self, kbps: float) -> None:
        """A new encoder, so a new key frame, which must be earned like any other."""
        self.kbps = kbps
        _, self.side, self.fps, crf = next(row for row in SETTINGS if kbps < row[0])
        encoder = av.CodecContext.create("libx264", "w")
        encoder.width = encoder.height = self.side
        encoder.pix_fmt, encoder.framerate = "yuv420p", Fraction(self.fps)
        encoder.time_base = Fraction(1, 1000)
        encoder.thread_count = 1  # slices would cost it bits
        encoder.options = {
            "crf": str(crf), "preset": "veryfast", "tune": "zerolatency", "g": "100000", "sc_threshold": "0"
        }  # fmt: skip
        decoder = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        self._encoder, self._decoder, self._pts = encoder, decoder, -1

    def show(self, picture: Array, earned: int, seconds: float) -> Array:
        """uint8 RGB (size, size, 3). picture: the same, what the camera sees; seconds: its time."""
        # here and not in `retarget`: a decoder must not change between a picture's encoding and its decoding
        if (wanted := self._wanted) != self.kbps:
            self._open(wanted)
        self._purse = min(self._purse + earned, SAVED_SECONDS * self.kbps * 125)
        pts = round(seconds * 1000)
        if self._purse < 0 or seconds < self._due or pts <= self._pts:
            return self._shown
        self._due = max(self._due + 1 / self.fps, seconds - 1 / self.fps)
        small = resize(picture, self.side, self.side)
        frame = av.VideoFrame.from_ndarray(small, format="rgb24").reformat(format="yuv420p")
        frame.pts = self._pts = pts
        for packet in self._encoder.encode(frame):
            spent = _counted(bytes(packet))
            self.bytes += spent
            self._purse -= spent
            for shown in self._decoder.decode(packet):
                self._shown = resize(exact_rgb(shown), self.size, self.size)
                self.frames += 1
        return self._shown


def _counted(packet: bytes) -> int:
    """Bytes of the units that a receiver needs: the encoder's signature (SEI) is none of them."""
    units = packet.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").split(b"\x00\x00\x01")
    return sum(len(unit) for unit in units if unit and unit[0] & 31 != 6)

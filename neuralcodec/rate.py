"""How the bits of a target rate are spent: how fine motion is coded, and when a reference picture is worth sending.

Knows no bytes of packets and no networks; time is an argument. A reference costs as much as 100 motion frames or more,
so whatever motion leaves of the rate is saved up for references and spent when the head has moved away from all that
are held. The constants were chosen on seven of the twenty validation clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .motion import Array

PIXEL = 2 / 256  # one pixel of a 256-pixel picture in coded-picture units
REFERENCES_HELD = 8  # a decoder keeps this many; the oldest is replaced
FIRST_SECONDS = 3.0  # the first reference may take what this many seconds earn
# Later ones. At 4 kbit/s 0.9 gains 1.2 dB over 2.0 because pictures come more often, but faces of 450 bytes lose their
# features to the eye; 800 bytes keep them.
REFERENCE_SECONDS = 1.6
REFERENCE_BYTES = (400, 12000)  # never smaller (nothing to recognise) nor larger (nothing to gain at 256 pixels)
CLOSE, FAR = 0.5, 2.5  # pixels: drift below CLOSE never asks for a reference; at FAR it goes as soon as it can be paid
SWITCH = 0.7  # another held reference is taken when its distance is below this share of the present one's
PERIOD = 2.0  # seconds between intra frames: how long a late joiner waits, and how long a lost packet is felt


@dataclass(frozen=True)
class MotionQuality:
    """How a motion frame is quantized: the ladder's level (0 finest) and the index of the component count."""

    level: int
    components: int


LADDER = (  # from this many kbit/s on; 4.4, 3.6, 2.9 and 1.9 bytes a frame on validation tracks, 0.17 to 0.56 px off
    (6.0, MotionQuality(0, 7)),
    (3.0, MotionQuality(1, 7)),
    (1.8, MotionQuality(2, 6)),
    (0.0, MotionQuality(4, 5)),
)


def motion_quality(target_kbps: float) -> MotionQuality:
    return next(quality for floor, quality in LADDER if target_kbps >= floor)


def distance(a: Array, b: Array) -> float:
    """How far two sets of keypoints (K, 3) lie apart in the picture: root mean square, in pixels of 256."""
    return float(np.sqrt(((a - b)[:, :2] ** 2).sum(1).mean())) / PIXEL


class RateControl:
    """A purse filled at the target rate and emptied by every byte sent."""

    def __init__(self, target_kbps: float) -> None:
        if not 0.5 <= target_kbps <= 1000:
            raise ValueError(f"target_kbps is {target_kbps}; expected 0.5 to 1000 kbit/s.")
        self.bytes_per_second = target_kbps * 125
        self.quality = motion_quality(target_kbps)
        self._purse = 0.0
        self._seconds: float | None = None

    def advance(self, seconds: float) -> None:
        """Time has come to ``seconds``."""
        if self._seconds is not None:
            self._purse += max(0.0, seconds - self._seconds) * self.bytes_per_second
        self._seconds = seconds
        self._purse = min(self._purse, 2 * self.reference_bytes)  # unspent rate does not pile up into a burst

    def spend(self, count: int) -> None:
        self._purse -= count

    @property
    def first_bytes(self) -> int:
        return int(np.clip(self.bytes_per_second * FIRST_SECONDS, *REFERENCE_BYTES))

    @property
    def reference_bytes(self) -> int:
        return int(np.clip(self.bytes_per_second * REFERENCE_SECONDS, *REFERENCE_BYTES))

    def affords_reference(self, drift: float) -> bool:
        """Whether to send one now that the nearest held reference is ``drift`` pixels away."""
        if drift < CLOSE:
            return False
        urgency = min(1.0, (drift - CLOSE) / (FAR - CLOSE))
        return self._purse >= self.reference_bytes * (2 - urgency)

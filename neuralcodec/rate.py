"""How the bits of a target rate are spent: how fine motion is coded, and when a reference picture is worth sending.

Knows no bytes of packets and no networks; time is an argument. The first picture sets the quality of its chain
(chain.py); from then on whatever motion leaves of the rate is saved up for the next picture, which goes out when it is
paid for and the head has moved away from all pictures that are held. The constants were chosen on validation clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .motion import Array

PIXEL = 2 / 256  # one pixel of a 256-pixel picture in coded-picture units
REFERENCES_HELD = 8  # a decoder keeps this many; the oldest is replaced
# The key of a chain may take FIRST_BYTES at 4 kbit/s and more at higher rates, but not in proportion: most of what a
# higher rate brings is worth more as more pictures than as finer ones. Tried on one lively clip only: at 4 kbit/s 700
# bytes give 26.2 dB and 720 to 850 give 25.3; at 8, 860 give 28.0 and 1400 give 26.6. Eyes look soft at 4 kbit/s.
FIRST_BYTES, FIRST_POWER = 700, 0.25
STILL_SECONDS = 1.6  # a still that follows others, where there is no chain
REFERENCE_BYTES = (400, 12000)  # of both; never smaller (nothing to recognise), never larger (nothing to gain at 256)
FINER = 1.6  # times the bytes of the last key, when its chain leaves that much of the rate unspent
UPDATE_SHARE = 0.12  # of its key's bytes that an update takes, until updates have been seen
MEMORY = 0.25  # weight of the last update in what the next one is expected to cost
CLOSE, FAR = 0.3, 1.5  # pixels: drift below CLOSE hardly asks for a picture; at FAR it goes as soon as it can be paid
REFINE_SECONDS = 1.0  # a head at rest is sent again this often: what stands still gets finer
SAVINGS_SECONDS = 0.2  # unspent rate that is kept, or two pictures if they cost more
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
PRESETS = ((14.0, 8), (6.0, 6), (0.0, 4))  # of SVT-AV1 from this rate on: many pictures a second must be coded faster

SOFTNESS = ((24.0, 1), (6.0, 3), (2.5, 5), (0.0, 7))  # from this rate on


def motion_quality(target_kbps: float) -> MotionQuality:
    return next(quality for floor, quality in LADDER if target_kbps >= floor)


def picture_preset(target_kbps: float) -> int:
    return next(preset for floor, preset in PRESETS if target_kbps >= floor)


def softness(target_kbps: float) -> int:
    """Width in pixels of the boxes that blur what is not the head (focus.py)."""
    return next(width for floor, width in SOFTNESS if target_kbps >= floor)


def distance(a: Array, b: Array) -> float:
    """How far two sets of keypoints (K, 3) lie apart in the picture: root mean square, in pixels of 256."""
    return float(np.sqrt(((a - b)[:, :2] ** 2).sum(1).mean())) / PIXEL


class RateControl:
    """A purse filled at the target rate and emptied by every byte sent."""

    def __init__(self, target_kbps: float) -> None:
        if not 0.5 <= target_kbps <= 1000:
            raise ValueError(f"target_kbps is {target_kbps}; expected 0.5 to 1000 kbit/s.")
        self.bytes_per_second = target_kbps * 125
        self.quality, self.preset = motion_quality(target_kbps), picture_preset(target_kbps)
        self.softness = softness(target_kbps)
        self.picture_bytes = float(self.still_bytes)  # what the next picture is expected to cost
        self._purse = 0.0
        self.key_bytes = self.first_bytes
        self._unspent = 0.0  # what the purse could not hold since the last key
        self._seconds: float | None = None
        self._picture_at = 0.0

    def advance(self, seconds: float) -> None:
        """Time has come to ``seconds``."""
        if self._seconds is not None:
            self._purse += max(0.0, seconds - self._seconds) * self.bytes_per_second
        self._seconds = seconds
        # unspent rate does not pile up into a burst, but it shows that the chain could be finer
        full = max(2 * self.picture_bytes, SAVINGS_SECONDS * self.bytes_per_second)
        self._unspent += max(0.0, self._purse - full)
        self._purse = min(self._purse, full)

    def spend(self, count: int) -> None:
        self._purse -= count

    def sent_key(self, count: int, extra: int = 0) -> None:
        """A chain was begun with so many bytes. extra: bytes that each update takes besides its picture."""
        self.picture_bytes = UPDATE_SHARE * count + extra
        self._purse += min(count, self._unspent)
        self._unspent = 0.0
        self._picture_at = self._seconds or 0.0

    def ended_chain(self) -> None:
        """The next picture is a key again."""
        self.picture_bytes = float(self.key_bytes)

    def sent_update(self, count: int) -> None:
        self.picture_bytes += MEMORY * (count - self.picture_bytes)
        self._picture_at = self._seconds or 0.0

    def wants_finer(self) -> bool:
        """Whether so much of the rate stays unspent that it pays a finer chain; ``key_bytes`` then says how fine."""
        finer = min(int(FINER * self.key_bytes), REFERENCE_BYTES[1])
        if finer == self.key_bytes or self._unspent < finer:
            return False
        self.key_bytes = finer
        return True

    @property
    def since_picture(self) -> float:
        """Seconds since the last one."""
        return (self._seconds or 0.0) - self._picture_at

    @property
    def first_bytes(self) -> int:
        return int(np.clip(FIRST_BYTES * (self.bytes_per_second / 500) ** FIRST_POWER, *REFERENCE_BYTES))

    @property
    def still_bytes(self) -> int:
        return int(np.clip(self.bytes_per_second * STILL_SECONDS, *REFERENCE_BYTES))

    def affords_picture(self, drift: float) -> bool:
        """Whether to send one now that the nearest held reference is ``drift`` pixels away."""
        if drift < CLOSE and self.since_picture < REFINE_SECONDS:
            return False
        urgency = float(np.clip((drift - CLOSE) / (FAR - CLOSE), 0, 1))
        return self._purse >= self.picture_bytes * (2 - urgency)

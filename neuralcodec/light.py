"""How the light on everything changes: cameras that set their exposure anew, a lamp that is dimmed, clouds.

Networks know nothing of it, and pictures have every pixel coded anew. So a sender sees, draws and codes all frames in
the light of the first one and tells what it was, which receivers put on last of all (FORMAT.md section 15). Knows no
packets, no networks.

Of three training clips whose light changes, as calls at 4 kbit/s, a selfie comes to 25.4 dB for 24.9 without, one that
fades in to 30.8 for 28.8, the third to 29.0 for 28.8. Where frames wait or all of a film is known it is left alone:
they are shown from the better of the pictures before and after them (26.3 dB for 26.2 with it, 33.3 for 33.0).
"""

from __future__ import annotations

import math
from collections import deque
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .face import luma, resize
from .motion import Array
from .quality import LUMA

# Light is the logarithm, in 1/64, of what the odds y / (WHITE - y) of grey values are multiplied by. WHITE = 255 would
# keep white white, as telephones do; without end of it all would be multiplied alike, as simple cameras do. This lies
# between: either makes what the other does worse than if nothing was told. Colours are multiplied by what their grey
# value is, since curves of their own change hues: cheeks turned red.
UNITS, WHITE = 64, 340.0
MOST = 32  # units of either sign: noise grows with it, and a picture of what is much brighter is worth its bytes
SIDE = 32  # pixels, of the small grey pictures that are compared
BASE_SECONDS = 0.2  # a frame is compared with the one so long before it
DARK, BRIGHT = 16, 240  # grey levels beyond which little can be said
ENOUGH = 0.1  # of all pixels lie between, or nothing is said
# Of log odds. Where the median of how they have changed is LEAST or more and COHERENT times the median of how far a
# pixel's is from it, it was the light. As a selfie's camera sets its exposure it is 2 to 3 times that, as heads, hands
# and cameras move at most 0.8 times: of 228 clips three are found to have other light in them, and have.
LEAST, COHERENT = 0.04, 1.3
FASTEST = 6.0  # a second: what is faster is a flashlight, or a lamp that goes on, and left to pictures
FOLLOWS = 0.5  # seconds after such a change, what has changed from frame to frame still counts
BACK = 2.0  # units a second, later: pictures take them over
# A camera that has just been switched on is setting its exposure while log odds change by SETTLING a second. Of its
# first frames that is supposed where 19 of 20 pixels are darker than DIM, or WHITE_SHARE of them white.
SETTLING, DIM, WHITE_SHARE = 1.0, 100, 0.15
LOOSE = 1.5  # units that what is told may be off: told anew, it takes two bytes


class Small(NamedTuple):
    """What is compared of a picture."""

    grey: Array  # (SIDE, SIDE) float32
    odds: Array  # of the same, logarithms


class _Seen(NamedTuple):
    seconds: float
    small: Small
    steps: float  # log odds, sum of what changed from frame to frame
    light: float  # log odds since the first frame


class LightMeter:
    """Follows frame after frame of one camera."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque()  # the last BASE_SECONDS and what came before
        self._changed_at = float("-inf")  # seconds, when the light changed last
        self._leapt = False  # while settling it has just done so too fast to be followed
        self._told = 0

    @property
    def settling(self) -> bool:
        """Whether the camera seems to be setting its exposure still."""
        if not self._seen:
            return False
        base, last = self._seen[0], self._seen[-1]
        since, grey = last.seconds - base.seconds, last.small.grey
        change, spread = _change(base.small, last.small, dark=-1)
        odd = np.percentile(grey, 95) < DIM or np.mean(grey > BRIGHT) > WHITE_SHARE
        changes = _is_light(change, spread) and abs(change) > SETTLING * since
        return self._leapt or changes or bool(odd and since < BASE_SECONDS)

    def begin(self) -> None:
        """Pictures are going to be in the light of the last frame."""
        light = self._seen[-1].light if self._seen else 0.0
        self._seen = deque(frame._replace(light=frame.light - light) for frame in self._seen)
        self._told = 0

    def forget(self) -> None:
        """The next frame cannot be compared with those before it."""
        self._seen.clear()

    def follow(self, picture: Array, seconds: float) -> int:
        """Light on a frame, uint8 RGB (H, W, 3), against that on the first one: units, -MOST to MOST."""
        frame = _Seen(seconds, small(picture), 0.0, self._told / UNITS)
        while len(self._seen) > 1 and seconds - self._seen[1].seconds >= BASE_SECONDS:
            self._seen.popleft()
        if self._seen:
            base, last = self._seen[0], self._seen[-1]
            step, wide = _change(last.small, frame.small)
            elapsed, light, steps = seconds - last.seconds, last.light, last.steps + step
            change, spread = _change(base.small, frame.small)
            leaps = abs(step) > FASTEST * elapsed
            self._leapt = leaps and _is_light(step, wide) and self.settling
            if leaps:
                self._seen.clear()
                self._changed_at = float("-inf")
            elif _is_light(change, spread):
                light, self._changed_at = base.light + steps - base.steps, seconds
            elif seconds - self._changed_at < FOLLOWS:
                light += step
            else:  # back to none
                left = max(0.0, min(abs(light), MOST / UNITS) - BACK * elapsed / UNITS)
                light = math.copysign(left, light)
            frame = frame._replace(steps=steps, light=light)
        self._seen.append(frame)
        wanted = min(max(frame.light * UNITS, -MOST), MOST)
        if abs(wanted - self._told) > LOOSE or not wanted:
            self._told = round(wanted)
        return self._told


def small(picture: Array) -> Small:
    """Of uint8 RGB (H, W, 3)."""
    return small_of(resize(picture, SIDE, SIDE) @ LUMA)


def small_of(grey: Array) -> Small:
    """Of the grey levels of a small picture."""
    return Small(grey, np.log((grey + 2) / (WHITE + 2 - grey)))


def light_between(before: Small, now: Small) -> float:
    """Log odds of the light on a picture against that on another; 0 where what differs between them is not light."""
    if abs(float(np.mean(now.odds - before.odds))) < LEAST:  # mostly, and means are found ten times as fast
        return 0.0
    change, spread = _change(before, now)
    return change if _is_light(change, spread) else 0.0


def _is_light(change: float, spread: float) -> bool:
    return abs(change) >= max(LEAST, COHERENT * spread)


def _change(before: Small, now: Small, dark: int = DARK) -> tuple[float, float]:
    """Medians of how log odds have changed, and of how far a pixel's are from that; zeros where too little is seen."""
    plain = (np.minimum(before.grey, now.grey) > dark) & (np.maximum(before.grey, now.grey) < BRIGHT)
    if np.count_nonzero(plain) < ENOUGH * plain.size:
        return 0.0, 0.0
    change = now.odds[plain] - before.odds[plain]
    median = float(np.median(change))
    return median, float(np.median(np.abs(change - median)))


def relit(picture: Array, light: float) -> Array:
    """A picture, uint8, in light that is so many units brighter; itself where that is none."""
    if not light:
        return picture
    factor, out = _factors(light)[luma(picture)], np.empty_like(picture)
    for channel in range(3):  # one after the other: what lies between then fits into a cache
        out[..., channel] = np.minimum(picture[..., channel] * factor + np.float32(0.5), np.float32(255))
    return out


@lru_cache(maxsize=256)
def _factors(light: float) -> Array:
    """What each of the 256 grey levels is multiplied by."""
    odds, level = np.exp(light / UNITS), np.arange(256)
    return (WHITE * odds / (WHITE + (odds - 1) * level)).astype(np.float32)

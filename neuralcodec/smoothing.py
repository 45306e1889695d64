"""Takes the tremble out of pose and expression, and the flicker out of pictures, without waiting for a later frame.

Motion goes through the one-euro filter of Casiez, Roussel and Vogel (CHI 2012): a first-order low pass whose cutoff
rises with speed, so that a still head is calmed and a fast one is hardly delayed. Speed is one number for the rotation,
the translation, the size and each keypoint, measured in what it does to the picture, so that a talking mouth does not
wake up the brows. Pictures go through a first-order low pass that opens where they move. Pure; time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np

from .motion import POSE_SIZE, Array, MotionParams

STILL_HZ = 1.5  # cutoff of what does not move
HZ_PER_SPEED = 0.12  # cutoff gained for each pixel (of 256) a second
SPEED_HZ = 2.0  # cutoff of the speed itself
GAP = 0.5  # seconds without a frame after which nothing is remembered
# pixels of 256 that a unit of the flat motion moves the keypoints of a usual face (scale 0.66): degrees, then units
PIXELS = np.array([0.75, 0.75, 0.75, 128.0, 128.0, 128.0, 45.0])
PIXELS_DELTA = 85.0
BLOCK = 16  # pixels, side of the squares in which two pictures are compared
# 28 training clips, 160 frames each, files at 4 kbit/s: pictures tremble 13 % less (10 % with MOVED at 6), their errors
# change 4 % less from frame to frame, PSNR is 0.01 dB more, landmarks are 0.01 px further off; 90 of 162 closed eyes
# are seen closed (88 with 6; on validation, where it was not chosen, 481 of 631 for 486).
CALM, MOVED = 2.0, 8.0  # 8-bit steps apart, mean over a block: all of LEFT_OUT below the first, nothing from the second
LEFT_OUT = 0.5  # of a change


class MotionSmoother:
    """One stream's filter. ``smooth`` gives a motion for each motion at once; the first one passes unchanged."""

    def __init__(self) -> None:
        self._value: Array | None = None
        self._speed: Array = np.zeros(0)
        self._seconds = 0.0

    def forget(self) -> None:
        """The next motion does not follow the last one."""
        self._value = None

    def smooth(self, motion: MotionParams, seconds: float) -> MotionParams:
        """The motion to show at ``seconds``; time that stands still or runs back, and gaps, start anew."""
        new = motion.flat_head()  # the scene is left alone
        elapsed = seconds - self._seconds
        self._seconds = seconds
        if self._value is None or len(self._value) != len(new) or not 0 < elapsed <= GAP:
            self._value, self._speed = new, np.zeros_like(new)
            return motion
        step = new - self._value
        step[[0, 2]] = (step[[0, 2]] + 180.0) % 360.0 - 180.0  # yaw and roll wrap
        self._speed = self._speed + _share(SPEED_HZ, elapsed) * (step / elapsed - self._speed)
        cutoff = STILL_HZ + HZ_PER_SPEED * _magnitudes(self._speed)
        self._value = self._value + _share(cutoff, elapsed) * step
        return replace(MotionParams.from_flat(self._value), scene=motion.scene)


class PictureSmoother:
    """One receiver's pictures: what hardly differs from the picture shown before is taken for coding, and half of it
    left out; what moves is shown at once. Flicker and the jolt of a new reference picture get less by it."""

    def __init__(self) -> None:
        self._last: Array | None = None

    def forget(self) -> None:
        """The next picture does not follow the last one."""
        self._last = None

    def smooth(self, picture: Array) -> Array:
        """The picture to show for uint8 RGB (S, S, 3), S a multiple of ``BLOCK``; the first one passes unchanged."""
        if self._last is None or self._last.shape != picture.shape:
            self._last = picture.astype(np.float32)
            return picture
        back = self._last - picture
        blocks, seen = picture.shape[0] // BLOCK, np.abs(back[::2, ::2])
        apart = seen.reshape(blocks, BLOCK // 2, blocks, BLOCK // 2 * 3).mean(axis=(1, 3))
        share = LEFT_OUT * np.clip((MOVED - apart) / (MOVED - CALM), 0, 1)
        back *= _spread(_spread(share).T).T[..., None]
        self._last = back + picture  # not rounded: small steps would never arrive
        return (self._last + 0.5).astype(np.uint8)


def _spread(values: Array) -> Array:
    """float32 (blocks, n), a row a block, to (blocks * BLOCK, n), a row a pixel, linear between block centres.

    Not as a product of matrices: the threads of a BLAS wait in a loop for the next one, in the renderer's way.
    """
    before, after, way = _between(len(values))
    return np.asarray(values[before] + way * (values[after] - values[before]))


@cache
def _between(blocks: int) -> tuple[Array, Array, Array]:
    """For each pixel the blocks whose centres lie before and after it, and how far on the way it is, (N, 1)."""
    at = np.clip((np.arange(blocks * BLOCK) + 0.5) / BLOCK - 0.5, 0, blocks - 1)
    before = at.astype(int)
    return before, np.minimum(before + 1, blocks - 1), (at - before).astype(np.float32)[:, None]


def _share(cutoff_hz: Array | float, elapsed: float) -> Array:
    """Of a step, that a first-order low pass lets through in ``elapsed`` seconds."""
    return np.asarray(1 - np.exp(-2 * math.pi * np.asarray(cutoff_hz) * elapsed))


def _magnitudes(speed: Array) -> Array:
    """Pixels a second of the group each number belongs to: rotation, translation, size, each keypoint."""
    pose = speed[:POSE_SIZE] * PIXELS
    points = speed[POSE_SIZE:].reshape(-1, 3) * PIXELS_DELTA
    groups = [np.full(3, np.linalg.norm(pose[:3])), np.full(3, np.linalg.norm(pose[3:6])), np.abs(pose[6:])]
    return np.concatenate([*groups, np.repeat(np.linalg.norm(points, axis=1), 3)])

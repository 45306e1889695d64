"""Takes the tremble out of pose and expression, and the flicker out of pictures, without waiting for a later frame.

Motion goes through the one-euro filter of Casiez, Roussel and Vogel (CHI 2012): a first-order low pass whose cutoff
rises with speed, so that a still head is calmed and a fast one is hardly delayed. Speed is one number for the rotation,
the translation, the size and each keypoint, measured in what it does to the picture, so that a talking mouth does not
wake up the brows. Where frames come together, the mesh around the head is drawn towards the frames before and after.
Pictures go through a first-order low pass that opens where they move, and fade from one reference picture to the next.
Pure; time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

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
# From one reference picture to the next: of how far a frame drawn from the one differs from the same frame drawn from
# the other, this share is shown at first, and none after so many seconds; less where they are further apart (8-bit
# steps, mean over a block), and as keypoints go on from there (pixels of 256, root mean square). 14 training clips, 200
# frames each, files and calls: at 4 kbit/s errors change 3.3 and 3.4 % less from frame to frame, PSNR is 0.02 dB more
# and 0.02 less, VMAF 0.2 and 0.4 less; at 8 kbit/s 4.7 and 3.4 %, 0.01 and 0.04 dB less, VMAF 0.5 and 0.7. Half of it
# within 0.2 s: 3.6, 3.8, 4.9 and 3.8 %, for VMAF 0.4, 0.8, 1.1 and 1.1. Less of it where the picture before is young:
# as much of both as with a smaller share. What differs in patches of 4 or 8 pixels alone: less steady for the same.
FADE, FADE_SECONDS = 0.4, 0.08
ALIKE, APART = 12.0, 40.0
NEAR = 3.0
# A mesh trembles by its rounding, which is coarser than what it goes on by: this share of how far a node is off the
# middle of the frames before and after is left out, but no more than so many coded-picture units (0.7 pixels of 256).
# 14 training clips, 200 frames each, files of eight frames a packet at 2, 4 and 8 kbit/s: errors change 8.5, 4.4 and
# 0.9 % less from frame to frame, PSNR is 0.05 and 0.03 dB more and 0.01 less, VMAF 0.3 and 0.1 more and 0.03 less; two
# frames a packet at 4: 2.8 %, nothing lost. Unbounded, five clips: 0.4 % less steady, films from a hand 0.04 dB worse.
# The last frame of a packet halfway to the one before: 0.03 dB less. Head and expression, too: worse in all.
ROUNDED, ROUNDED_MOST = 0.5, 0.0055


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


def between(scenes: Array, before: Array | None) -> Array:
    """Meshes (F, M, 2) of consecutive frames, float32, each drawn towards the middle of its neighbours; the last one,
    whose next is not known, and one that has none before pass unchanged. before: that of the frame before, told on the
    same picture; None where there is none."""
    if before is None:
        return np.concatenate([scenes[:1], between(scenes[1:], scenes[0])]) if len(scenes) > 1 else scenes
    known = np.concatenate([before[None], scenes])
    off = ROUNDED * ((known[:-2] + known[2:]) / 2 - scenes[:-1])
    far = np.linalg.norm(off, axis=-1, keepdims=True)
    off *= np.minimum(1, ROUNDED_MOST / np.maximum(far, ROUNDED_MOST))
    return np.concatenate([scenes[:-1] + off, scenes[-1:]]).astype(np.float32)


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
        back *= LEFT_OUT * _little(back, CALM, MOVED)
        self._last = back + picture  # not rounded: small steps would never arrive
        return (self._last + 0.5).astype(np.uint8)


class PictureFade:
    """One receiver's way from one reference picture to the next, frame after frame."""

    def __init__(self) -> None:
        self._apart: Array | None = None
        self._keypoints, self._seconds = np.zeros((0, 3), np.float32), 0.0
        self._place: Any = None

    def forget(self) -> None:
        """The next frame does not follow the last one."""
        self._apart = None

    def faded(self, picture: Array, before: Array | None, keypoints: Array, seconds: float, place: Any) -> Array:
        """The frame to show for ``picture``, uint8 RGB (S, S, 3), S a multiple of ``BLOCK``. before: the same frame
        drawn from the reference picture of the frame before, where that was another. keypoints: float32 (K, 3), its
        face. place: what tells places apart; in another nothing is left of a difference."""
        if place != self._place:
            self._apart, self._place = None, place
        left = self._left(keypoints, seconds)
        if before is not None:
            apart = before.astype(np.float32) - picture
            if left is not None:
                apart += left
            self._apart = apart * _little(apart, ALIKE, APART)
            self._keypoints, self._seconds = keypoints, seconds
            left = FADE * self._apart
        if left is None:
            return picture
        return np.asarray(np.rint(np.clip(picture + left, 0, 255)), np.uint8)

    def _left(self, keypoints: Array, seconds: float) -> Array | None:
        """What is still shown of the difference, float32 (S, S, 3)."""
        share = FADE * (1 - (seconds - self._seconds) / FADE_SECONDS)
        if self._apart is None or not 0 < share < FADE:  # time may run back
            self._apart = None
            return None
        gone = 128 * math.sqrt(float(((keypoints - self._keypoints)[:, :2] ** 2).sum(1).mean()))
        return self._apart * np.float32(share * math.exp(-((gone / NEAR) ** 2)))


def _little(apart: Array, most: float, none: float) -> Array:
    """float32 (S, S, 1): 1 where what is ``apart`` (S, S, 3) in 8-bit steps, mean over a block, is no more than
    ``most``, 0 from ``none`` on."""
    blocks, seen = len(apart) // BLOCK, np.abs(apart[::2, ::2])
    mean = seen.reshape(blocks, BLOCK // 2, blocks, BLOCK // 2 * 3).mean(axis=(1, 3))
    share = np.clip((none - mean) / (none - most), 0, 1)
    return np.asarray(_spread(_spread(share).T).T[..., None])


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

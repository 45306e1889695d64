"""Closing eyes, driven as far as it takes for them to be seen closed. Pure; knows no network and no packet.

The motion network tells closed eyes from open ones (96 % of the frames of 20 people never trained on, by dlib's
eyelids), but what a renderer draws of half-closed lids is more open than they were, more so from coded pictures, and a
blink is mostly half-closed frames. So the sender closes lids the further, the less of their usual opening is left: at
SHUT of it or less they are sent closed, at DEEP less than that crossed by BEYOND, at OPEN or more as found.

On twenty training clips, 250 frames each, as files at 4 kbit/s with pack 0.7.0: 290 of 372 closed frames are shown
closed and 96.5 % of the others open; with SHUT 0.5 and BEYOND 0, as before, 266 and 97.3. Of their usual opening, eyes
with 0.6 to 0.75 left are drawn 0.015 too open (0.046 before), eyes with less 0.075 (0.082); PSNR and landmarks are the
same. SHUT 0.65 or 0.7, OPEN 0.9 and BEYOND 0.3 cost more open eyes than they bring closed ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .gaze import EYES, POINTS
from .motion import Array, MotionParams

SHUT, OPEN, DEEP, BEYOND = 0.6, 0.85, 0.3, 0.15  # of an eye's usual opening
# Seconds, time constants of how usual is followed. It falls within seconds, too: eyes that look down or smile for long
# are not closing. So followed, 90 % of the frames of 35 training clips are told right (mean of both shares), 94 % with
# the middle opening of each clip, which nobody knows beforehand.
RISE, FALL = 1.0, 5.0
UPPER = 0.8  # of the way between the lids that the upper one goes


def openings(motion: MotionParams, canonical: Array) -> list[float]:
    """Of both eyes, in eye widths; none where the layout of ``canonical`` (K, 3) is not known."""
    if len(canonical) != POINTS:
        return []
    face = canonical + motion.delta
    return [
        float(face[lower, 1] - face[upper, 1]) / max(float(np.linalg.norm(face[outer] - face[inner])), 1e-6)
        for outer, inner, upper, lower, _ in EYES
    ]


def close(delta: Array, face: Array, eye: tuple[int, int, int, int, int], by: float) -> None:
    """Bring the lids of an eye of ``face`` (K, 3) nearer to each other by so many eye widths, in ``delta`` (K, 3)."""
    outer, inner, upper, lower, _ = eye
    way = by * float(np.linalg.norm(face[outer] - face[inner]))
    delta[upper, 1] += UPPER * way
    delta[lower, 1] -= (1 - UPPER) * way


class Usual:
    """How far one person's eyes usually stand open, frame after frame."""

    def __init__(self) -> None:
        self._usual: list[float] = []  # openings of both eyes, in eye widths
        self._seconds = 0.0

    def follow(self, found: list[float], seconds: float) -> list[float]:
        """Of both eyes, with the openings of the frame at ``seconds`` taken in."""
        elapsed, self._seconds = max(0.0, seconds - self._seconds), seconds
        self._usual = [
            before + (now - before) * (1 - math.exp(-elapsed / (RISE if now > before else FALL)))
            for before, now in zip(self._usual or found, found, strict=True)
        ]
        return [max(usual, 1e-6) for usual in self._usual]


class Lids:
    """Of one person, frame after frame."""

    def __init__(self) -> None:
        self._usual = Usual()

    def closed(self, motion: MotionParams, canonical: Array, seconds: float) -> MotionParams:
        """``motion`` of the frame at ``seconds``, found on ``canonical`` (K, 3), its lids closed as far as they are to
        be sent."""
        found = openings(motion, canonical)
        if not found:
            return motion
        usually = self._usual.follow(found, seconds)
        face, delta = canonical + motion.delta, np.array(motion.delta)
        for eye, now, usual in zip(EYES, found, usually, strict=True):
            left = now / usual
            sent = usual * float(np.interp(left, [SHUT - DEEP, SHUT, OPEN], [-BEYOND, 0.0, OPEN]))
            if left < OPEN and sent < now:
                close(delta, face, eye, now - sent)
        return replace(motion, delta=delta)

"""What a receiver's wish for another view becomes, frame by frame: within the pack's range, and never in one jump.

Pure; knows no network and no packet. Time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from .face import Square
from .motion import Array, MotionParams, View, euler_angles, rotation_matrix

EASE = 0.12  # seconds, time constant of the way to a new view: a joystick feels direct, a button looks like a turn
TOLERANCE = np.array([0.02, 0.02, 0.02, 1e-4, 1e-4])  # degrees and picture shares: less is rounding, not a clamp


@dataclass(frozen=True)
class ViewRange:
    """How far from its reference picture a pack shows a head well: degrees to each side, and shares of the picture.

    gaze: how much of the coded movement of the irises its renderer shows, 0 to 1; see :func:`gaze.eye_contact`.
    The manifest of a pack may say otherwise (``"view"``); these values are for one that says nothing.
    """

    yaw: float = 20.0
    pitch: float = 15.0
    roll: float = 20.0
    x: float = 0.15
    y: float = 0.15
    gaze: float = 0.2

    @classmethod
    def parse(cls, value: Any) -> ViewRange:
        """From a manifest's ``view`` object; ValueError says what is wrong with it."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or set(value) != names:
            raise ValueError(f"'view' must be an object of {', '.join(sorted(names))}")
        for name, limit in value.items():
            highest = 90 if name in ("yaw", "pitch", "roll") else 1
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit <= highest:
                raise ValueError(f"'view' says {name} {limit!r}, expected 0 to {highest}")
        return cls(**{name: float(limit) for name, limit in value.items()})

    def as_dict(self) -> dict[str, float]:
        """What :meth:`parse` reads."""
        return asdict(self)

    @property
    def limits(self) -> Array:
        """float64 (5,): yaw, pitch, roll, x, y."""
        return np.array([self.yaw, self.pitch, self.roll, self.x, self.y])


@dataclass(frozen=True)
class Seen:
    """A frame's motion after the view, and whether the range of the pack cut the wish short."""

    motion: MotionParams
    clamped: bool


class ViewControl:
    """Applies a view that may change at any time to a stream of frames.

    A new view is reached along the shortest turn: what separates it from the picture shown last decays with time
    constant ``EASE``; an absolute view still holds the head still while that happens, because only the difference to it
    decays. The way leads to where the range lets the view go: a wish far beyond it would be there in one frame, and a
    new reference, which moves the range, would jerk a clamped head. The first view of a stream applies at once.

    The range is about the turn between the reference picture and the picture shown, since that is what the renderer
    has to imagine. Where the sender's own head is already further out than the range, a view may bring it back toward
    the reference but not further out.
    """

    def __init__(self, limits: ViewRange) -> None:
        self._limits = limits.limits
        self._view = View()
        self._left = np.zeros(5)  # of the way to the view: a turn in degrees, and a shift
        self._shown: tuple[MotionParams, MotionParams, MotionParams] | None = None  # coded, reference, shown
        self._square: Square | None = None  # that it is told in
        self._seconds: float | None = None

    @property
    def idle(self) -> bool:
        """Whether frames pass unchanged."""
        return self._view == View() and not self._left.any()

    def apply(
        self, view: View, motion: MotionParams, reference: MotionParams, seconds: float, square: Square | None = None
    ) -> Seen:
        """``motion`` as coded, made from a picture whose own motion is ``reference``, shown at ``seconds``. square: of
        the source that both are told in."""
        elapsed = 0.0 if self._seconds is None else max(0.0, seconds - self._seconds)
        if self._shown is not None:
            # frames that pass unchanged may be pictures, whose motion nobody asked for: this one's stands for theirs
            coded, picture, shown = (motion, reference, motion) if self.idle else self._shown
            if square != self._square and not self.idle:  # as the head would have been shown in this one
                there = self._within(self._view, motion, reference).motion
                coded, picture, shown = motion, reference, _turned(there, self._left)
            if view != self._view or (picture is not reference and not self.idle):
                self._left = _between(self._within(view, coded, reference).motion, shown)
        self._view, self._square, self._seconds = view, square, seconds
        self._left *= math.exp(-elapsed / EASE)
        self._left[np.abs(self._left) < TOLERANCE] = 0.0
        if self.idle:
            self._shown = (motion, reference, motion)
            return Seen(motion, False)
        goal = self._within(view, motion, reference)
        seen = replace(goal, motion=_turned(goal.motion, self._left)) if self._left.any() else goal
        self._shown = (motion, reference, seen.motion)
        return seen

    def _within(self, view: View, motion: MotionParams, reference: MotionParams) -> Seen:
        """``motion`` after the whole of a view, as far as the range lets it."""
        turned = motion.turned(view)
        wanted, own = _between(reference, turned), _between(reference, motion)
        given = np.clip(wanted, np.minimum(-self._limits, own), np.maximum(self._limits, own))
        clamped = bool((np.abs(given - wanted) > TOLERANCE).any())
        # without a clamp the two are equal but for rounding; the direct way keeps an absolute view exact
        return Seen(_turned(reference, given, motion) if clamped else turned, clamped)


def _between(start: MotionParams, end: MotionParams) -> Array:
    """float64 (5,): the turn from ``start`` to ``end`` as the camera sees it (degrees), the shift in picture shares."""
    return np.array([*euler_angles(start.rotation.T @ end.rotation), *((end.neck - start.neck) / 2)])


def _turned(motion: MotionParams, way: Array, face: MotionParams | None = None) -> MotionParams:
    """``motion`` after a turn and a shift of :func:`_between`; size, depth and expression are those of ``face``."""
    rotation = motion.rotation @ rotation_matrix(*map(float, way[:3]))
    return (face or motion).posed(rotation, motion.neck + 2 * way[3:])

"""Arithmetic on rate-distortion curves: front, rate at equal quality, Bjontegaard rate. Pure; knows no codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SAMPLES = 1001  # of the quality axis, for integration


@dataclass(frozen=True)
class Point:
    """rate: kbit/s, > 0. quality: higher is better."""

    rate: float
    quality: float


@dataclass(frozen=True)
class RateAt:
    """Rate a curve needs for a quality. bound: "" exact, "<=" the curve starts above it, ">" it never gets there."""

    rate: float
    bound: str = ""


@dataclass(frozen=True)
class QualityAt:
    """Quality a curve gives for a rate. bound: "" exact, ">=" only a higher rate was measured (and its quality stands
    here), "<=" only a lower one."""

    quality: float
    bound: str = ""


@dataclass(frozen=True)
class Bjontegaard:
    """Mean rate difference at equal quality, percent (-50 means half the bits), over the qualities both curves reach.

    overlap: share of the narrower curve's quality range that both cover.
    """

    percent: float
    low: float
    high: float
    overlap: float


def front(points: Sequence[Point]) -> list[Point]:
    """The points no other point beats in both rate and quality, by rising rate and quality."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.rate, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def rate_at(points: Sequence[Point], quality: float) -> RateAt:
    """By straight lines in (quality, log rate) between the points of the front; never beyond its ends."""
    curve = front(points)
    if quality < curve[0].quality:
        return RateAt(curve[0].rate, "<=")
    if quality > curve[-1].quality:
        return RateAt(curve[-1].rate, ">")
    rate = np.interp(quality, [p.quality for p in curve], [np.log(p.rate) for p in curve])
    return RateAt(float(np.exp(rate)))


def quality_at(points: Sequence[Point], rate: float) -> QualityAt:
    """:func:`rate_at` read the other way, on the same lines."""
    curve = front(points)
    if rate < curve[0].rate:
        return QualityAt(curve[0].quality, ">=")
    if rate > curve[-1].rate:
        dearest = max(point.rate for point in points)  # more bits than the front's end bought nothing better
        return QualityAt(curve[-1].quality, "<=" if rate > dearest else "")
    quality = np.interp(np.log(rate), [np.log(p.rate) for p in curve], [p.quality for p in curve])
    return QualityAt(float(quality))


def bjontegaard(anchor: Sequence[Point], test: Sequence[Point]) -> Bjontegaard | None:
    """Rate of ``test`` against ``anchor``. None when either front has under two points or the qualities do not overlap:
    nothing is extrapolated. Monotone cubics through log rate as a function of quality (VCEG-AE07 uses the same idea).
    """
    a, b = front(anchor), front(test)
    if len(a) < 2 or len(b) < 2:
        return None
    low = max(a[0].quality, b[0].quality)
    high = min(a[-1].quality, b[-1].quality)
    if high <= low:
        return None
    qualities = np.linspace(low, high, SAMPLES)
    difference = _log_rate(b, qualities) - _log_rate(a, qualities)
    mean = (difference[:-1] + difference[1:]).mean() / 2  # trapezoids on an even grid
    narrower = min(a[-1].quality - a[0].quality, b[-1].quality - b[0].quality)
    return Bjontegaard(float(np.exp(mean) - 1) * 100, low, high, float((high - low) / narrower))


def _log_rate(curve: Sequence[Point], qualities: Array) -> Array:
    x = np.array([p.quality for p in curve])
    y = np.log([p.rate for p in curve])
    return monotone_cubic(x, y, qualities)


def monotone_cubic(x: Array, y: Array, at: Array) -> Array:
    """Fritsch and Carlson's interpolant (the one called PCHIP): no overshoot between rising x. ``at`` within x."""
    h = np.diff(x)
    slope = np.diff(y) / h
    if len(x) == 2:
        return np.asarray(y[0] + slope[0] * (at - x[0]))
    inner = np.zeros(len(x) - 2)
    same = slope[:-1] * slope[1:] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    inner[same] = ((w1 + w2)[same]) / (w1[same] / slope[:-1][same] + w2[same] / slope[1:][same])
    d = np.concatenate([[_end(h[0], h[1], slope[0], slope[1])], inner, [_end(h[-1], h[-2], slope[-1], slope[-2])]])
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(h) - 1)
    t = (at - x[i]) / h[i]
    return np.asarray(
        y[i] * (1 + 2 * t) * (1 - t) ** 2
        + h[i] * d[i] * t * (1 - t) ** 2
        + y[i + 1] * t**2 * (3 - 2 * t)
        + h[i] * d[i + 1] * t**2 * (t - 1)
    )


def _end(h0: float, h1: float, s0: float, s1: float) -> float:
    """Slope at an end: three-point estimate, kept from turning the curve around."""
    d = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    if d * s0 <= 0:
        return 0.0
    return 3 * s0 if s0 * s1 <= 0 and abs(d) > 3 * abs(s0) else float(d)

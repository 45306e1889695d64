"""The rate a codec needs for a given score on a clip, by trying settings in between. Owns the search only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import curves, points
from benchmarks.cache import Cache
from benchmarks.codecs import CODECS
from benchmarks.comparison import METRICS, between
from benchmarks.points import Baseline, Footage

STEPS = 2  # encodes a variant: after them a straight line between the two nearest settings is under 2 % off
NEAR = 0.05  # of a bracket from one of its ends: there the line is as good as after another step
FRACTIONS = {"libx264": 0.25, "libx265": 0.25}  # the others take whole numbers
PROMISING = 1.25  # variants whose interpolated rate is over this multiple of the best are left as they are

Tried = list[tuple[Baseline, dict[str, Any]]]


def needed(footage: Footage, cache: Cache, codec: str, metric: str, score: float) -> curves.RateAt:
    """Cheapest rate at which ``codec``, at any picture size and frame rate, reaches ``score`` (turned: more is better).

    Starts from the points that the cache holds for the codec's ladder, LookupError where it lacks some, and keeps every
    setting it tries there.
    """
    variants = [_ladder(footage, cache, codec, metric, *variant) for variant in CODECS[codec].ways(footage.facts.size)]
    if not all(variants):
        raise LookupError(f"The cache lacks points of {codec} with {metric} on {footage.path.stem}.")
    guesses = [_rate(tried, metric, score) for tried in variants]
    best = min((guess.rate for guess in guesses if guess.bound != ">"), default=None)
    for tried, guess in zip(variants, guesses, strict=True):
        if best is not None and not guess.bound and guess.rate <= best * PROMISING:
            _refine(tried, cache, metric, score)
    settings = [(index, point) for index, tried in enumerate(variants) for point in _curve(tried, metric)]
    return curves.rate_at(between(settings), score)


def _ladder(
    footage: Footage, cache: Cache, codec: str, metric: str, scale: float, hold: int, qualities: Sequence[int]
) -> Tried:
    settings = [Baseline(footage, codec, quality, scale, hold) for quality in qualities]
    group = (METRICS[metric].group,)
    if not all(points.known(setting, cache, group) for setting in settings):
        return []
    return [(setting, points.measure(setting, cache, group)) for setting in settings]


def _refine(tried: Tried, cache: Cache, metric: str, score: float) -> None:
    """Regula falsi on the quality parameter inside the bracket around ``score``."""
    measure = METRICS[metric]
    for _ in range(STEPS):
        ordered = sorted(tried, key=lambda item: item[1]["kbps"])
        pairs = zip(ordered, ordered[1:], strict=False)
        bracket = next(
            ((a, b) for a, b in pairs if measure.quality(a[1], metric) <= score <= measure.quality(b[1], metric)), None
        )
        if bracket is None:
            return
        (coarse, below), (fine, above) = bracket
        low, high = measure.quality(below, metric), measure.quality(above, metric)
        share = 0.5 if high == low else (score - low) / (high - low)
        if min(share, 1 - share) < NEAR:
            return
        quality = coarse.quality + share * (fine.quality - coarse.quality)
        step = FRACTIONS.get(CODECS[coarse.codec].encoder, 1)
        quality = round(quality / step) * step
        if quality in (coarse.quality, fine.quality):
            return
        setting = replace(coarse, quality=quality)
        tried.append((setting, points.measure(setting, cache, (measure.group,))))


def _rate(tried: Tried, metric: str, score: float) -> curves.RateAt:
    return curves.rate_at(_curve(tried, metric), score)


def _curve(tried: Tried, metric: str) -> Sequence[curves.Point]:
    return [curves.Point(p["kbps"], METRICS[metric].quality(p, metric)) for _, p in tried]

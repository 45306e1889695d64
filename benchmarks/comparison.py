"""Who needs how many bits: one codec against another at equal quality, clip by clip. Pure; measures nothing.

A point is a dictionary as benchmarks.points gives it. Ratios are test rate / anchor rate on the same clip: 0.1 means a
tenth of the bits. Means are geometric over clips, bands are 95 % bootstrap intervals over clips.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import curves

Array = NDArray[Any]
Points = Sequence[Mapping[str, Any]]

ROUNDING = 1e-9  # a ratio of one, computed in floats, is not a loss
RESAMPLES = 2000
STEPS = 8  # of the line between two settings
MEAN_RATES = 2.0 ** np.arange(0, 8.01, 0.25)  # kbit/s, where mean curves are looked at


@dataclass(frozen=True)
class Metric:
    """group: of benchmarks.points. sign: 1 when more is better, -1 when less is."""

    label: str
    group: str
    sign: int
    digits: int

    def quality(self, point: Mapping[str, Any], name: str) -> float:
        return self.sign * float(point[name])


METRICS = {
    "vmaf": Metric("VMAF", "vmaf", 1, 1),
    "ms_ssim": Metric("MS-SSIM", "picture", 1, 3),
    "landmark_px": Metric("landmark distance, px of 256", "landmarks", -1, 2),
    "st_lpips": Metric("ST-LPIPS", "perceptual", -1, 3),
    "lpips": Metric("LPIPS", "lpips", -1, 3),
    "dists": Metric("DISTS", "dists", -1, 3),
    "identity_distance": Metric("identity distance", "identity", -1, 3),
    "psnr": Metric("PSNR, dB", "picture", 1, 2),
    "temporal_error": Metric("temporal error, luma steps", "temporal", -1, 2),
}
HEADLINE = ("vmaf", "ms_ssim", "landmark_px", "st_lpips", "lpips", "psnr", "temporal_error")


def curve(points: Points, clip: str, codec: str, metric: str) -> list[curves.Point]:
    """What a codec can do on a clip, quality turned so that more is better: its settings and, since an encoder takes
    qualities in between too, the lines between neighbours of one picture size and frame rate. Without them a codec
    would be charged for the steps of the ladder where one size takes over from another."""
    return between([(_variant(p), _point(p, metric)) for p in points if _is(p, codec, metric, clip)])


def settings(points: Points, clip: str, codec: str, metric: str) -> list[Mapping[str, Any]]:
    """The points of a codec on a clip that it has a reason to use: those on the front of :func:`curve`."""
    best = curves.front(curve(points, clip, codec, metric))
    return [p for p in points if _is(p, codec, metric, clip) and _point(p, metric) in best]


def between(settings: Sequence[tuple[Any, curves.Point]]) -> list[curves.Point]:
    """(variant, point) of every setting: the points, and ``STEPS`` more between neighbours in rate of one variant."""
    found = [point for _, point in settings]
    for variant in {variant for variant, _ in settings}:
        own = sorted((point for other, point in settings if other == variant), key=lambda point: point.rate)
        for a, b in zip(own, own[1:], strict=False):
            for share in np.arange(1, STEPS) / STEPS:
                rate = float(np.exp((1 - share) * np.log(a.rate) + share * np.log(b.rate)))
                found.append(curves.Point(rate, float((1 - share) * a.quality + share * b.quality)))
    return found


def _is(point: Mapping[str, Any], codec: str, metric: str, clip: str) -> bool:
    return point["sha256"] == clip and point["codec"] == codec and metric in point


def _variant(point: Mapping[str, Any]) -> tuple[Any, Any]:
    setting = point.get("setting", {})
    return setting.get("size"), setting.get("fps")


def _point(point: Mapping[str, Any], metric: str) -> curves.Point:
    return curves.Point(point["kbps"], METRICS[metric].quality(point, metric))


def at_rate(points: Points, name: str) -> list[dict[str, Any]]:
    """The points, the rate of this name (see benchmarks.points) in place of the whole stream's."""
    return [{**point, "kbps": point[name]} for point in points]


def clips_of(points: Points, codec: str, metric: str | None = None) -> list[str]:
    """Hashes of the clips that a codec was measured on, in the order of their names."""
    found = {p["sha256"]: p["clip"] for p in points if p["codec"] == codec and (metric is None or metric in p)}
    return sorted(found, key=lambda sha: (found[sha], sha))


def band(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by resampling clips, always the same for the same values. None under two clips."""
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def ratio(logs: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, Any]:
    """Geometric mean of per-clip ratios with its band; "clips_lost": those above one."""
    values = list(logs.values())
    interval = band(values)
    return {
        "ratio": float(np.exp(np.mean(values))) if values else None,
        "band": None if interval is None else [float(np.exp(edge)) for edge in interval],
        "clips": len(values),
        "clips_lost": sum(value > ROUNDING for value in values),
        "per_clip": {name: float(np.exp(value)) for name, value in logs.items()},
        **counts,
    }


def compare(points: Points, metric: str, *, test: str, anchor: str) -> dict[str, Any]:
    """Over every point of ``test`` whose quality the anchor reaches, and Bjontegaard rate where both curves overlap.

    Where the anchor's cheapest stream is already better, its rate stands in (there is no cheaper one to send) and the
    point counts under ``anchor_cannot_go_so_low``; where the anchor never gets there it counts under
    ``anchor_never_gets_there`` alone. Nothing is extrapolated.
    """
    logs: dict[str, float] = {}
    bd: list[float] = []
    overlaps: list[float] = []
    low = high = exact = missing = 0
    for clip in clips_of(points, test, metric):
        a, b = (curve(points, clip, codec, metric) for codec in (anchor, test))
        if not a:
            missing += 1
            continue
        of_clip = []
        for setting in settings(points, clip, test, metric):
            point = _point(setting, metric)
            needed = curves.rate_at(a, point.quality)
            low += needed.bound == "<="
            high += needed.bound == ">"
            exact += not needed.bound
            if needed.bound != ">":
                of_clip.append(float(np.log(point.rate / needed.rate)))
        if of_clip:
            logs[clip] = float(np.mean(of_clip))
        difference = curves.bjontegaard(a, b)
        if difference is not None:
            bd.append(float(np.log1p(difference.percent / 100)))
            overlaps.append(difference.overlap)
    counts = {"points": exact + low, "anchor_cannot_go_so_low": int(low), "anchor_never_gets_there": int(high),
              "clips_not_measured": missing}  # fmt: skip
    return {
        "metric": metric,
        "test": test,
        "anchor": anchor,
        **ratio(logs, counts),
        "bd_rate_percent": float(np.expm1(np.mean(bd)) * 100) if bd else None,
        "bd_clips": len(bd),
        "bd_mean_overlap": float(np.mean(overlaps)) if overlaps else None,
    }


def headline(targets: Points, needed: Mapping[tuple[str, str], curves.RateAt], metric: str) -> dict[str, Any]:
    """One point of ours a clip against the rate the anchor needs for its score.

    needed: by (clip hash, metric), found by bisection; a clip that is not in it counts under ``not_measured``. The same
    stand-ins as in :func:`compare`. per_clip_bounds: clips whose ratio is a bound and no figure: ">=" where the
    anchor's cheapest stream already scores higher, "<" where even its dearest does not get there (such a clip is not in
    the mean, and ``per_clip`` has our rate over that of the dearest).
    """
    logs: dict[str, float] = {}
    beyond: dict[str, float] = {}
    low = missing = 0
    bounds: dict[str, str] = {}
    for point in targets:
        rate = needed.get((point["sha256"], metric))
        if rate is None:
            missing += 1
            continue
        low += rate.bound == "<="
        if rate.bound:
            bounds[point["sha256"]] = {"<=": ">=", ">": "<"}[rate.bound]
        (beyond if rate.bound == ">" else logs)[point["sha256"]] = float(np.log(point["kbps"] / rate.rate))
    counts = {"anchor_cannot_go_so_low": int(low), "anchor_never_gets_there": len(beyond), "not_measured": missing}
    found = ratio(logs, counts)
    found["per_clip"].update({name: float(np.exp(value)) for name, value in beyond.items()})
    return {"metric": metric, **found, "per_clip_bounds": bounds}


def equal_rate(points: Points, codec: str, *, test: str, target: float) -> dict[str, Any]:
    """What ``codec`` shows for the very bits that ``test`` spends at ``target`` kbit/s, clip by clip, metric by metric.

    Qualities are read off the front of the codec's points; where its cheapest stream costs more than ours it stands in
    all the same (``dearer`` counts those clips), and where its dearest costs less (``cheaper``) the figure could be
    better than the one here. better: clips where it beats ours; figures: [its mean, ours] over the clips of both.
    """
    figures: dict[str, list[float]] = {}
    better: dict[str, int] = {}
    dearer: set[str] = set()
    cheaper: set[str] = set()
    shared = set(clips_of(points, codec))
    targets = [point for point in at_target(points, test, target) if point["sha256"] in shared]
    for metric, measure in METRICS.items():
        pairs = []
        for point in targets:
            own = curve(points, point["sha256"], codec, metric)
            if not own or metric not in point:
                continue
            found = curves.quality_at(own, point["kbps"])
            if found.bound:
                (dearer if found.bound == ">=" else cheaper).add(point["sha256"])
            pairs.append((measure.sign * found.quality, float(point[metric])))
        if pairs:
            figures[metric] = [float(value) for value in np.mean(pairs, axis=0)]
            better[metric] = sum(measure.sign * (theirs - ours) > ROUNDING for theirs, ours in pairs)
    return {
        "codec": codec,
        "target": target,
        "kbps": float(np.mean([point["kbps"] for point in targets])) if targets else None,
        "clips": len(targets),
        "dearer": len(dearer),
        "cheaper": len(cheaper),
        "figures": figures,
        "better": better,
    }


def mean_curve(points: Points, codec: str, metric: str) -> list[tuple[curves.Point, tuple[float, float] | None]]:
    """What a codec shows for a rate on average over its clips, with the band of the metric: on every clip what
    :func:`curve` gives for that rate, at the ends its cheapest and its dearest, whose own rates then count (geometric
    mean of rates, plain mean of qualities)."""
    clips = clips_of(points, codec, metric)
    fronts = [curves.front(curve(points, clip, codec, metric)) for clip in clips]
    found: dict[curves.Point, tuple[float, float] | None] = {}
    for rate in MEAN_RATES if fronts else ():
        rates = [min(max(rate, front[0].rate), front[-1].rate) for front in fronts]
        qualities = [curves.quality_at(front, own).quality for front, own in zip(fronts, rates, strict=True)]
        point = curves.Point(float(np.exp(np.mean(np.log(rates)))), float(np.mean(qualities)))
        found[point] = band([METRICS[metric].sign * quality for quality in qualities])
    return [(point, found[point]) for point in curves.front(list(found))]


def nearest(points: Points, codec: str, clip: str, rate: float) -> Mapping[str, Any] | None:
    """The point a viewer should compare with: the best PSNR a codec has for at most ``rate``, else its cheapest."""
    own = [p for p in points if p["codec"] == codec and p["sha256"] == clip]
    affordable = [p for p in own if p["kbps"] <= rate]
    if affordable:
        return max(affordable, key=lambda p: p["psnr"])
    return min(own, key=lambda p: p["kbps"], default=None)


def at_target(points: Points, codec: str, target: float, metric: str | None = None) -> list[Mapping[str, Any]]:
    """A codec's point on each clip: of its target where it has one (ours), else the one nearest in rate.

    metric: of the points without a target only those on the front of this metric; no sender would choose another.
    """
    result = []
    for clip in clips_of(points, codec):
        own = [p for p in points if p["sha256"] == clip and p["codec"] == codec]
        if metric is not None and "target_kbps" not in own[0]["setting"]:
            own = settings(points, clip, codec, metric) or own
        result.append(min(own, key=lambda p: abs(np.log(p["setting"].get("target_kbps", p["kbps"]) / target))))
    return result


def means(points: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, float]:
    """Plain means over points, of the keys that all of them have."""
    chosen = list(points)
    return {key: float(np.mean([p[key] for p in chosen])) for key in keys if chosen and all(key in p for p in chosen)}

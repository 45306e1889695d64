"""Quality against bits: neuralcodec and ordinary codecs on the same clips, every byte counted.

``python -m benchmarks.rate_distortion --clips DIR --out DIR`` prints the headline first, good or bad, and writes
rate_distortion.json (every figure), rate_distortion.md and rate_distortion.html (curves, stills, a short film: pictures
of your clips, so look before you publish). Coded streams and figures stay in ``--cache``: a second run measures only
what has changed, and after a change of the codec or its pack ``--only ours`` measures ours alone.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import (
    bisection,
    clips,
    codecs,
    comparison,
    curves,
    ours,
    page,
    pictures,
    points,
    report,
    resources,
    running,
)
from benchmarks.cache import Cache
from benchmarks.points import Baseline, Footage, Ours
from neuralcodec.runtime.engine import write_whole
from neuralcodec.runtime.session import cores

TARGET = 4.0  # kbit/s, of the headline
OUR_TARGETS = (TARGET, 2.0, 8.0)  # in the order they are measured
ANCHOR = "x264-call"
OURS = "neuralcodec"
CALLS = "-call"  # ends the names of those that hold nothing back
WIRES = ("kbps", "wire", "wire_shared")  # rates of a point
FILES = f"{OURS}-file"  # the same at its best, as the others have theirs: frames share packets, and wait for it
SHOWN = ("svt-av1-best",)  # beside ours and the anchor in stills and film
REACH = 1.25  # times our highest rate: how far every codec's curve goes on every clip
FINER_TRIES = 3
QUICK_CODECS = (ANCHOR, "svt-av1-call")
QUICK_FRAMES, QUICK_CLIPS = 50, 6
SLOW = ("identity", "perceptual", "lpips", "dists")  # groups of figures for ours, the anchor and SHOWN only


def plan(options: argparse.Namespace, groups: Sequence[str]) -> list[running.Job]:
    """Every measurement of this run: ours first, then codec by codec in the order of benchmarks.codecs, the slow groups
    of figures after the others, so that a run cut short has whole codecs."""
    usual = tuple(group for group in groups if group not in SLOW)
    footage = [Footage(path, options.frames, options.size) for path in options.paths]
    jobs: list[running.Job] = []
    if options.only != "baselines":
        for index, pack in enumerate(options.pack or [None]):
            call = {"window": options.window}
            ways = {OURS: call, FILES: ours.FILE} if index == 0 else {f"{OURS}:{Path(pack).name}": call}
            for name, way in ways.items():
                jobs += [
                    (Ours(clip, kbps, pack, options.device, name, **way), tuple(groups))
                    for kbps in options.kbps
                    for clip in footage
                ]
    for name in options.codecs:
        codec = codecs.CODECS[name]
        settings = [
            Baseline(clip, name, quality, scale, hold)
            for clip in footage
            for scale, hold, qualities in codec.ways(clip.facts.size)
            for quality in qualities
        ]
        jobs += [(setting, usual) for setting in settings]
        if name in (ANCHOR, *SHOWN):
            jobs += [(setting, tuple(groups)) for setting in settings]
    return jobs


def finer(jobs: Sequence[running.Job], cache: Cache, reach: float) -> list[running.Job]:
    """One finer setting wherever the dearest of a codec on a clip stays under ``reach`` kbit/s: ladders are made for
    all clips, and on a calm head they would end before our own rates do."""
    groups: dict[Baseline, tuple[str, ...]] = {}
    for setting, chosen in jobs:
        if isinstance(setting, Baseline):
            groups[setting] = tuple(dict.fromkeys((*groups.get(setting, ()), *chosen)))
    rates: dict[tuple[str, Footage], dict[Baseline, float]] = {}
    for setting in groups:
        kilobits = cache.load(setting.what()).coded.get("bytes", math.inf) * 8 / 1000  # not yet coded: as if dear
        rate = kilobits * clips.FPS / setting.footage.facts.frames
        rates.setdefault((setting.codec, setting.footage), {})[setting] = rate
    added: list[running.Job] = []
    for found in rates.values():
        dearest = max(found, key=lambda setting: found[setting])
        if found[dearest] < reach:
            added.append((replace(dearest, quality=dearest.quality - codecs.FINER), groups[dearest]))
    return added


def whole_curves(measured: Sequence[dict[str, Any]], planned: Sequence[points.Setting]) -> list[dict[str, Any]]:
    """Without the baselines of a clip that lack a setting: half a curve would say that a codec never gets there."""
    wanted = Counter((setting.codec, setting.footage.facts.sha256) for setting in planned)
    found = Counter((point["codec"], point["sha256"]) for point in measured)
    return [
        point
        for point in measured
        if point["codec"] not in codecs.CODECS
        or found[point["codec"], point["sha256"]] == wanted[point["codec"], point["sha256"]]
    ]


def search(job: tuple[Footage, Cache, str, str, float]) -> curves.RateAt | None:
    """A bisection in a process of its own; None when the anchor has no point on that clip yet."""
    try:
        return bisection.needed(*job)
    except LookupError:
        return None


def headlines(
    measured: Sequence[Mapping[str, Any]], test: str, footage: Mapping[str, Footage], options: argparse.Namespace,
    cache: Cache,
) -> list[dict[str, Any]]:  # fmt: skip
    """``test`` at the target against the anchor's rate for its score, metric by metric."""
    targets = {
        metric: [p for p in comparison.at_target(measured, test, TARGET, metric) if metric in p]
        for metric in comparison.HEADLINE
    }
    wanted = sorted(  # clip by clip: a process keeps the last few
        (point["sha256"], metric, comparison.METRICS[metric].quality(point, metric))
        for metric, chosen in targets.items()
        for point in chosen
    )
    if options.no_bisection:
        found = [_interpolated(measured, clip, metric, score) for clip, metric, score in wanted]
    else:
        jobs = [(footage[clip], cache, ANCHOR, metric, score) for clip, metric, score in wanted]
        found = running.each(search, jobs, options.jobs, "bisection")
    needed = {(clip, metric): rate for (clip, metric, _), rate in zip(wanted, found, strict=True) if rate is not None}
    lines = [comparison.headline(chosen, needed, metric) for metric, chosen in targets.items()]
    return [line for line in lines if line["clips"] or line["anchor_never_gets_there"]]


def _interpolated(measured: Sequence[Mapping[str, Any]], clip: str, metric: str, score: float) -> curves.RateAt | None:
    anchor = comparison.curve(measured, clip, ANCHOR, metric)
    return curves.rate_at(anchor, score) if anchor else None


def summarise(
    measured: Sequence[Mapping[str, Any]], lines: Mapping[str, Sequence[dict[str, Any]]], options: argparse.Namespace
) -> dict[str, Any]:
    """Everything that the pages show, and every point."""
    names = list(dict.fromkeys(p["codec"] for p in measured))
    metrics = [name for name in comparison.METRICS if any(name in p for p in measured)]
    test = options.test
    return {
        "options": {k: v for k, v in vars(options).items() if k not in ("paths", "out", "cache", "clips", "pack")},
        "target": TARGET,
        "test": test,
        "tests": list(lines),  # the second, if any, is ours as a file
        "anchor": ANCHOR,
        "clips": {p["sha256"]: {"name": p["clip"], "frames": p["frames"]} for p in measured},
        "headline": list(lines[test]),
        "headline_files": list(lines.get(FILES, ())),
        "equal_rate": [
            comparison.equal_rate(measured, codec, test=test, target=target)
            for target in sorted(options.kbps)
            for codec in names
            if codec != test
        ],
        "comparisons": [
            comparison.compare(measured, metric, test=name, anchor=anchor)
            for name in lines
            for metric in metrics
            for anchor in names
            if anchor not in lines and any(metric in p for p in measured if p["codec"] == anchor)
        ],
        "wire": on_the_wire(measured, test, [name for name in names if name.endswith(CALLS) and name != test]),
        "points": list(measured),
    }


def on_the_wire(measured: Sequence[Mapping[str, Any]], test: str, anchors: Sequence[str]) -> list[dict[str, Any]]:
    """Every metric of the headline against every call: over all points, by each of the ``WIRES``."""
    rated = {rate: comparison.at_rate(measured, rate) for rate in WIRES}
    found = [
        {rate: comparison.compare(points, metric, test=test, anchor=anchor) for rate, points in rated.items()}
        for metric in comparison.HEADLINE
        for anchor in anchors
        if all(any(metric in p for p in measured if p["codec"] == codec) for codec in (test, anchor))
    ]
    return [{"metric": of[WIRES[0]]["metric"], "anchor": of[WIRES[0]]["anchor"], "rates": of} for of in found]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate_distortion", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=Path, help="a video file or a folder of them; default: the demo's portrait")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--cache", type=Path, default=Path("cache/rate_distortion"), help="folder of measurements")
    parser.add_argument("--only", choices=("ours", "baselines"), help="measure these; take the others from the cache")
    parser.add_argument("--codecs", nargs="+", choices=tuple(codecs.CODECS), help="default: all that can run here")
    parser.add_argument("--kbps", nargs="+", type=report.rate, default=OUR_TARGETS, help="our targets (default 2 4 8)")
    parser.add_argument("--window", type=report.window, help="seconds in which our calls keep their rate (default 2)")
    parser.add_argument("--pack", nargs="+", help="model packs; the first is ours (default: the bundled one)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--test", default=OURS, help="put this codec in our place: x264-call must come out at 1.00")
    parser.add_argument("--frames", type=report.count, help="first N frames of each clip")
    parser.add_argument("--size", type=int, help="resize every clip to this square first")
    parser.add_argument("--jobs", type=report.count, default=cores(), help="processes, one thread each")
    parser.add_argument("--minutes", type=float, help="stop measuring then; the next run goes on")
    parser.add_argument("--no-bisection", action="store_true", help="interpolate the headline between ladder points")
    parser.add_argument("--no-pictures", action="store_true", help="no stills, no film, no page")
    parser.add_argument("--quick", action="store_true", help="2 codecs, one target, 6 clips, 50 frames, no slow metric")
    return benchmark(parser.parse_args(arguments))


def benchmark(options: argparse.Namespace) -> int:
    """Measure, compare, write and print; the exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    cache = Cache(options.cache)
    options.paths = _paths(options, cache)
    if options.quick:
        options.frames = options.frames or QUICK_FRAMES
        options.paths, options.kbps, options.no_bisection = options.paths[:QUICK_CLIPS], [TARGET], True
    everything = [name for name in points.GROUPS if not (options.quick and name in SLOW)]
    wanted = options.codecs or (QUICK_CODECS if options.quick else tuple(codecs.CODECS))
    reasons = {name: codecs.unavailable(codecs.CODECS[name]) for name in wanted}
    options.codecs = [name for name in wanted if not reasons[name]]
    groups = [name for name in everything if not points.GROUPS[name].unavailable()]
    left_out = [r for r in (*reasons.values(), *(points.GROUPS[name].unavailable() for name in everything)) if r]
    left_out = list(dict.fromkeys(left_out))  # two groups may lack the same package
    for reason in left_out:
        print(reason, file=sys.stderr)

    machine, start = report.machine(), time.monotonic()
    jobs = plan(options, groups)
    own = [job for job in jobs if isinstance(job[0], Ours)]
    costs = resources.of(options.codecs, jobs, cache)
    new = len(running.lacking(list(dict(jobs).items()), cache))
    missing = running.run(own if options.only == "ours" else jobs, cache, options.jobs, minutes=options.minutes)
    for _ in range(FINER_TRIES):
        more = finer(jobs, cache, REACH * max(options.kbps))
        jobs += more
        new += len(running.lacking(more, cache))
        if options.only != "ours":
            left = options.minutes and max(0.0, options.minutes - (time.monotonic() - start) / 60)
            missing += running.run(more, cache, options.jobs, minutes=left)
    wanted_groups = dict(jobs)  # the last, and fullest, of a setting
    new -= len(running.lacking(list(wanted_groups.items()), cache))
    measured = whole_curves(running.collect(list(wanted_groups.items()), cache), list(wanted_groups))
    if not any(p["codec"] == options.test for p in measured) or not any(p["codec"] == ANCHOR for p in measured):
        print(f"{missing} measurements are missing, and nothing to compare yet; run this again to go on.")
        return 1
    footage = {setting.footage.facts.sha256: setting.footage for setting, _ in jobs}
    tests = [options.test, *([FILES] if options.test == OURS and FILES in {p["codec"] for p in measured} else [])]
    lines = {name: headlines(measured, name, footage, options, cache) for name in tests}
    result = {
        "machine": machine,
        **summarise(measured, lines, options),
        "left_out": left_out,
        "measurements": {
            "planned": len(wanted_groups), "used": len(measured), "new": new,
            "minutes": round((time.monotonic() - start) / 60, 1),
        },
        "encoders": {name: codecs.version(codecs.CODECS[name]) for name in options.codecs},
        "resources": costs,
    }  # fmt: skip
    report.save(options.out / "rate_distortion.json", result, lines=("points",))
    text = page.to_markdown(result)
    write_whole(options.out / "rate_distortion.md", text.encode())
    if not options.no_pictures:
        write_whole(options.out / "rate_distortion.png", page.overview(result["points"]))
        stills, film = pictures.side_by_side(result, jobs, cache, (options.test, ANCHOR, *SHOWN))
        write_whole(options.out / "rate_distortion.html", page.to_html(result, stills, film).encode())
    print(text)
    return 0


def _paths(options: argparse.Namespace, cache: Cache) -> list[Path]:
    if options.clips is None:
        return [clips.demo(cache.folder)]
    return clips.find(options.clips) if options.clips.is_dir() else [options.clips]


if __name__ == "__main__":
    report.run(main)

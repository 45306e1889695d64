"""Quality against bits: neuralcodec and ordinary codecs on the same clips, every byte counted. Owns no arithmetic.

``python -m benchmarks.rate_distortion --clips DIR --out DIR`` writes points.jsonl (one line per clip and setting; a
second run continues it), rate_distortion.json, rate_distortion.md and one PNG of curves per metric.

Ours is the whole .ncv file: container, headers, references. "net" leaves the references out. "wire" adds 40 bytes of
IPv4, UDP and RTP headers to every packet of at most 1200 bytes, for everybody; a baseline's frame is one or more.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips, codecs, curves, metrics, ours, report

WIRE_HEADER, WIRE_PAYLOAD = 40, 1200  # bytes
TRIES = 3  # a native encoder that dies takes its process along, and that must not cost the run
OUR_TARGETS = (1.5, 2, 3, 4, 6, 8, 12)  # kbit/s
DEFAULT_CODECS = tuple(codecs.CODECS)
QUICK_CODECS = ("x264-call", "svt-av1-call", "x264-best")
# (scale, hold, how many steps of the ladder): full pictures over the whole ladder; small pictures and half the frames
# at its coarse end only, where a codec runs out of bits.
VARIANTS = ((1.0, 1, 8), (0.5, 1, 5), (1.0, 2, 4), (0.5, 2, 4))
QUICK_VARIANTS = ((1.0, 1, 5), (0.5, 1, 3))
ROUNDING = 1e-9  # a ratio of one, computed in floats, is not a loss
METRICS = {"psnr": "PSNR, dB", "ms_ssim": "MS-SSIM", "vmaf": "VMAF"}

Key = tuple[str, str, str]  # clip hash, codec, setting: names one measurement in points.jsonl


def measure_baseline(
    path: Path, size: int | None, limit: int | None, every: int, name: str, quality: int, scale: float, hold: int
) -> dict[str, Any]:
    """One clip through one codec at one setting."""
    clip = clips.read(path, limit=limit, size=size)
    coded = codecs.code(codecs.CODECS[name], clip.frames, quality, scale=scale, hold=hold)
    packets = sum(math.ceil(size / WIRE_PAYLOAD) for size in coded.sizes if size)
    return {
        **_start(clip, name, setting_name(quality, scale, hold)),
        **_rates(coded.bytes, coded.bytes, packets, clip.seconds),
        **metrics.clip_metrics(clip.frames, coded.frames, every=every),
        "setting": dict(coded.setting),
        "library": coded.library,
        "encode_ms": float(np.median(coded.encode_ms)),
        "decode_ms": float(np.median(coded.decode_ms)),
    }


def measure_ours(
    path: Path, size: int | None, limit: int | None, every: int, kbps: float, pack: str | None, device: str
) -> dict[str, Any]:
    """One clip through neuralcodec at one target."""
    clip = clips.read(path, limit=limit, size=size)
    sent = ours.send(clip, kbps=kbps, pack=pack, device=device)
    net = len(sent.file) - sent.bytes_by_kind.get("ReferencePart", 0)
    return {
        **_start(clip, "neuralcodec", f"{kbps:g} kbit/s"),
        **_rates(len(sent.file), net, len(sent.packets), clip.seconds),
        **metrics.clip_metrics(clip.frames, sent.frames, every=every),
        "setting": {"target_kbps": kbps, "bytes_by_kind": sent.bytes_by_kind},
        "library": sent.library,
        "encode_ms": float(np.median(sent.encode_ms)),
        "decode_ms": float(np.median(sent.decode_ms)),
    }


def setting_name(quality: int, scale: float, hold: int) -> str:
    return f"q{quality}" + f" scale {scale:g}" * (scale != 1) + f" fps/{hold}" * (hold != 1)


def _start(clip: clips.Clip, codec: str, name: str) -> dict[str, Any]:
    return {"clip": clip.name, "sha256": clip.sha256, "frames": len(clip.frames), "codec": codec, "name": name}


def _rates(whole: int, net: int, packets: int, seconds: float) -> dict[str, Any]:
    rate = 8 / 1000 / seconds
    return {
        "bytes": whole,
        "kbps": whole * rate,
        "net_kbps": net * rate,
        "wire_kbps": (whole + WIRE_HEADER * packets) * rate,
    }


def compare(points: Sequence[dict[str, Any]], metric: str, *, test: str, anchor: str) -> dict[str, Any]:
    """``test`` against ``anchor``, clip by clip: bits at equal quality and Bjontegaard rate.

    ratio: geometric mean over every point of ``test`` whose quality the anchor reaches, of test rate / anchor rate at
    that quality. Where the anchor's cheapest picture is already better, its rate stands in and the point counts under
    ``anchor_cannot_go_so_low``; where the anchor never gets there, it counts under ``anchor_never_gets_there`` alone.
    """
    logs: list[float] = []
    bd: list[float] = []
    overlaps: list[float] = []
    low = high = lost = 0
    names = sorted({p["clip"] for p in points if p["codec"] == test and metric in p})
    for name in names:
        a, b = (_curve(points, name, codec, metric) for codec in (anchor, test))
        if not a or not b:
            continue
        of_clip = []
        for point in curves.front(b):
            needed = curves.rate_at(a, point.quality)
            low += needed.bound == "<="
            high += needed.bound == ">"
            if needed.bound != ">":
                of_clip.append(float(np.log(point.rate / needed.rate)))
        logs += of_clip
        lost += bool(of_clip and np.mean(of_clip) > ROUNDING)
        difference = curves.bjontegaard(a, b)
        if difference is not None:
            bd.append(float(np.log1p(difference.percent / 100)))
            overlaps.append(difference.overlap)
    return {
        "metric": metric,
        "test": test,
        "anchor": anchor,
        "clips": len(names),
        "ratio": float(np.exp(np.mean(logs))) if logs else None,
        "points": len(logs),
        "anchor_cannot_go_so_low": int(low),
        "anchor_never_gets_there": int(high),
        "clips_lost": int(lost),
        "bd_rate_percent": float(np.expm1(np.mean(bd)) * 100) if bd else None,
        "bd_clips": len(bd),
        "bd_mean_overlap": float(np.mean(overlaps)) if overlaps else None,
    }


def _curve(points: Iterable[dict[str, Any]], clip: str, codec: str, metric: str) -> list[curves.Point]:
    return [
        curves.Point(p["kbps"], p[metric]) for p in points if p["clip"] == clip and p["codec"] == codec and metric in p
    ]


def lowest_and_needed(points: Sequence[dict[str, Any]], codec: str, metric: str, quality: float) -> dict[str, Any]:
    """Mean over clips: a codec's cheapest point, and its rate for a given quality with how many clips bound it."""
    names = sorted({p["clip"] for p in points if p["codec"] == codec})
    cheapest, needed = [], []
    for name in names:
        curve = curves.front(_curve(points, name, codec, metric))
        cheapest.append(curve[0])
        needed.append(curves.rate_at(curve, quality))
    reached = [n.rate for n in needed if n.bound != ">"]
    return {
        "codec": codec,
        "lowest_kbps": float(np.mean([p.rate for p in cheapest])),
        f"{metric}_there": float(np.mean([p.quality for p in cheapest])),
        f"kbps_for_{quality:g}": float(np.mean(reached)) if reached else None,
        "clips_that_never_get_there": sum(n.bound == ">" for n in needed),
        "clips_never_below": sum(n.bound == "<=" for n in needed),
    }


def to_markdown(result: dict[str, Any]) -> str:
    """The headline first, then the cheapest points, then what was run."""
    lines = ["# Rate and distortion", "", f"{result['clips']} clips, {result['frames']} frames at 25 fps.", ""]
    if result["comparisons"]:
        head = ("metric", "against", "our bits / theirs", "points", "they cannot go so low", "they never get there",
                "clips lost", "BD-rate", "BD clips (mean overlap)")  # fmt: skip
        rows: list[tuple[Any, ...]] = []
        for c in result["comparisons"]:
            ratio = "n/a" if c["ratio"] is None else f"{c['ratio']:.2f}"
            bd = "no overlap" if c["bd_rate_percent"] is None else f"{c['bd_rate_percent']:+.0f} %"
            overlap = "0" if not c["bd_clips"] else f"{c['bd_clips']} ({c['bd_mean_overlap']:.0%})"
            rows.append((c["metric"], c["anchor"], ratio, c["points"], c["anchor_cannot_go_so_low"],
                         c["anchor_never_gets_there"], f"{c['clips_lost']} of {c['clips']}", bd, overlap))  # fmt: skip
        lines += ["## Ours against each codec", "", report.markdown(head, rows), ""]
    floor_head = ("codec", "lowest kbit/s", "PSNR there", "kbit/s for 32 dB", "clips that never get there")
    floors = [
        (c["codec"], f"{c['lowest_kbps']:.1f}", f"{c['psnr_there']:.1f}",
         "n/a" if c["kbps_for_32"] is None else f"{c['kbps_for_32']:.1f}", c["clips_that_never_get_there"])
        for c in result["floors"]
    ]  # fmt: skip
    lines += ["## Lowest rates", "", report.markdown(floor_head, floors), ""]
    machine = result["machine"]
    lines += [
        f"Machine: {machine['cpu']}, {machine['cores_usable']} cores. Commit {machine['commit'] or 'unknown'}.",
        "",
    ]
    return "\n".join(lines)


def plot(path: Path, points: Sequence[dict[str, Any]], metric: str) -> None:
    """Mean curve of every codec over clips, on a common log-rate axis, with the middle half of the clips as a band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for codec in dict.fromkeys(p["codec"] for p in points):
        names = sorted({p["clip"] for p in points if p["codec"] == codec})
        fronts = [curves.front(_curve(points, name, codec, metric)) for name in names]
        low = max(curve[0].rate for curve in fronts)
        high = min(curve[-1].rate for curve in fronts)
        if high <= low:
            continue
        rates = np.geomspace(low, high, 60)  # only where every clip has the codec: a mean of the same clips throughout
        table = np.array(
            [np.interp(np.log(rates), [np.log(p.rate) for p in f], [p.quality for p in f]) for f in fronts]
        )
        line = axes.plot(rates, table.mean(axis=0), label=codec, lw=2.5 if codec == "neuralcodec" else 1.2,
                         ls="--" if codec.endswith("best") else "-")[0]  # fmt: skip
        axes.fill_between(rates, *np.percentile(table, [25, 75], axis=0), color=line.get_color(), alpha=0.07)
    axes.set_xscale("log")
    axes.set_xlabel("kbit/s, whole stream")
    axes.set_ylabel(METRICS[metric])
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(jobs: Sequence[tuple[Key, Callable[..., dict[str, Any]], tuple[Any, ...]]], store: Path, workers: int) -> None:
    """Do what points.jsonl does not hold yet, appending each result as it comes."""
    context = multiprocessing.get_context("spawn")  # a fork would copy native encoder and network threads
    with store.open("a", encoding="utf-8") as file, report.progress() as bar:
        task = bar.add_task("points", total=len(jobs))
        for tries_left in reversed(range(TRIES)):
            done = {(p["sha256"], p["codec"], p["name"]) for p in load(store)}
            missing = [job for job in jobs if job[0] not in done]
            bar.update(task, completed=len(jobs) - len(missing))
            if not missing:
                return
            try:
                with ProcessPoolExecutor(workers, mp_context=context) as pool:
                    for future in as_completed([pool.submit(function, *given) for _, function, given in missing]):
                        file.write(json.dumps(future.result(), default=report.plain) + "\n")
                        file.flush()
                        bar.advance(task)
            except BrokenProcessPool:
                if not tries_left:
                    raise
                print("An encoder crashed its process; trying what is missing again.", file=sys.stderr)


def load(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read_text("utf-8").splitlines()] if store.exists() else []


def plan(options: argparse.Namespace) -> list[tuple[Key, Callable[..., dict[str, Any]], tuple[Any, ...]]]:
    """Every measurement of this run, ours first."""
    jobs: list[tuple[Key, Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
    variants = QUICK_VARIANTS if options.quick else VARIANTS
    for path in options.paths:
        digest = clips.read(path, limit=1).sha256
        common = (path, options.size, options.frames, options.every)
        for kbps in () if options.no_ours else options.kbps:
            key = (digest, "neuralcodec", f"{kbps:g} kbit/s")
            jobs.append((key, measure_ours, (*common, kbps, options.pack, options.device)))
        for name in options.codecs:
            ladder = codecs.CODECS[name].ladder
            for scale, hold, steps in variants:
                chosen = ladder if steps >= len(ladder) else _spread(ladder, steps, whole=scale == hold == 1)
                for quality in chosen:
                    key = (digest, name, setting_name(quality, scale, hold))
                    jobs.append((key, measure_baseline, (*common, name, quality, scale, hold)))
    return jobs


def _spread(ladder: Sequence[int], steps: int, *, whole: bool) -> list[int]:
    """``steps`` values of a ladder: over all of it, or its coarse end only."""
    if not whole:
        return list(ladder[:steps])
    return [ladder[round(i * (len(ladder) - 1) / (steps - 1))] for i in range(steps)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate_distortion", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="a video file or a folder of them")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--codecs", nargs="+", choices=DEFAULT_CODECS, help="default: all that can run here")
    parser.add_argument("--kbps", nargs="+", type=float, default=OUR_TARGETS, help="our targets")
    parser.add_argument("--pack", help="model pack; default the bundled one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-ours", action="store_true", help="baselines only")
    parser.add_argument("--frames", type=int, help="first N frames of each clip")
    parser.add_argument("--size", type=int, help="resize every clip to this square first")
    parser.add_argument("--every", type=int, default=5, help="PSNR and MS-SSIM on every n-th frame (default 5)")
    parser.add_argument("--jobs", type=int, default=report.cores(), help="processes, one thread each")
    parser.add_argument("--quick", action="store_true", help="3 codecs, 8 settings, first 50 frames")
    options = parser.parse_args(arguments)
    if options.quick:
        options.frames = options.frames or 50
    wanted = options.codecs or (QUICK_CODECS if options.quick else DEFAULT_CODECS)
    reasons = {name: codecs.unavailable(codecs.CODECS[name]) for name in wanted}
    options.codecs = [name for name in wanted if not reasons[name]]
    options.paths = clips.find(options.clips) if options.clips.is_dir() else [options.clips]
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "points.jsonl"
    run(plan(options), store, options.jobs)
    points = load(store)
    names = list(dict.fromkeys(p["codec"] for p in points))
    metric_names = [m for m in METRICS if all(m in p for p in points)]
    result = {
        "machine": report.machine(),
        "options": {k: v for k, v in vars(options).items() if k != "paths"},
        "left_out": [reason for reason in reasons.values() if reason],
        "clips": len({p["sha256"] for p in points}),
        "frames": sum({p["sha256"]: p["frames"] for p in points}.values()),
        "comparisons": [
            compare(points, metric, test="neuralcodec", anchor=anchor)
            for metric in metric_names
            for anchor in names
            if anchor != "neuralcodec" and "neuralcodec" in names
        ],
        "floors": [lowest_and_needed(points, name, "psnr", 32.0) for name in names],
        "points": points,
    }
    report.save(options.out / "rate_distortion.json", result)
    text = to_markdown(result)
    (options.out / "rate_distortion.md").write_text(text, "utf-8")
    for metric in metric_names:
        plot(options.out / f"{metric}.png", points, metric)
    print(text)


if __name__ == "__main__":
    main()

"""Time per frame of every stage, ours and x264's in the same session: median and 95th percentile after a warm-up.

``python -m benchmarks.latency [--clips FILE] [--cores N] [--json OUT]``. One process pinned to N cores; the networks
get N threads, x264 one (more do not help it at this size). Both are fed uint8 RGB and give it back; references are in
"encode" and "decode" where they fall, so look at the median for the usual frame and at p95 for the rare one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import clips, codecs, report

WARM_UP = 10  # frames left out at the start of each run
PEER, PEER_QUALITY = "x264-call", 42


def ours(frames: Sequence[Any], *, kbps: float, pack: str | None, device: str, threads: int) -> dict[str, list[float]]:
    """Milliseconds of each frame: whole calls, and each stage that the facades' own stopwatches know."""
    from neuralcodec import Decoder, Encoder, NoFaceError

    encoder = Encoder(kbps, pack=pack, device=device, crop="none", time_base=Fraction(1, clips.FPS), threads=threads)
    decoder = Decoder(pack=pack, device=device, threads=threads)
    watches = {"encode": encoder.stats.stage_seconds, "decode": decoder.stats.stage_seconds}
    spent: dict[str, list[float]] = {}
    for pts, frame in enumerate(frames):
        marks = [dict(totals) for totals in watches.values()]
        start = perf_counter()
        packets = [bytes(packet) for packet in encoder.encode(frame, pts)]
        middle = perf_counter()
        for packet in packets:
            decoder.decode(packet)
        figures = {"encode": middle - start, "decode": perf_counter() - middle}
        for (side, totals), before in zip(watches.items(), marks, strict=True):
            for stage, total in totals.items():
                figures[f"{side}: {stage}"] = total - before.get(stage, 0.0)
        if pts >= WARM_UP:
            for name, seconds in figures.items():
                spent.setdefault(name, []).append(seconds * 1000)
    if not encoder.stats.references:
        raise NoFaceError("No face was found in the clip, so there is nothing to time; give another with --clips.")
    return spent


def peer(frames: Sequence[Any]) -> dict[str, list[float]]:
    """The same for x264 as a call runs it."""
    coded = codecs.code(codecs.CODECS[PEER], frames, PEER_QUALITY)
    return {"encode": list(coded.encode_ms[WARM_UP:-1]), "decode": list(coded.decode_ms[WARM_UP:-1])}


def summary(spent: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, 95th percentile and number of frames of each stage."""
    return {
        name: {"median_ms": float(np.median(v)), "p95_ms": float(np.percentile(v, 95)), "frames": len(v)}
        for name, v in sorted(spent.items())
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, help="one video file; default: the demo's portrait")
    parser.add_argument("--frames", type=int, default=100, help="first N frames (default 100)")
    parser.add_argument("--pack")
    parser.add_argument("--kbps", type=float, default=4.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    report.pin(options.cores)
    machine = report.machine()
    if options.clips is None:
        from neuralcodec.demo import moving_portrait

        frames = list(moving_portrait(options.frames / clips.FPS))
    else:
        frames = clips.read(options.clips, limit=options.frames).frames
    mine = summary(ours(frames, kbps=options.kbps, pack=options.pack, device=options.device, threads=options.cores))
    theirs = summary(peer(frames))
    ratios = {side: mine[side]["median_ms"] / theirs[side]["median_ms"] for side in ("encode", "decode")}
    if options.json is not None:
        report.save(options.json, {"machine": machine, "options": vars(options), "neuralcodec": mine, PEER: theirs,
                                   "ratio_of_medians": ratios})  # fmt: skip
    rows = [
        (f"{codec} {name}", f"{v['median_ms']:.2f}", f"{v['p95_ms']:.2f}")
        for codec, figures in (("neuralcodec", mine), (PEER, theirs))
        for name, v in figures.items()
    ]
    height, width = frames[0].shape[:2]
    print(f"{len(frames) - WARM_UP} frames of {width}x{height} after {WARM_UP} to warm up; {machine['cpu']}, "
          f"{options.cores} cores, load {machine['load_before']}.\n")  # fmt: skip
    print(report.markdown(("stage", "median, ms", "p95, ms"), rows))
    print(
        f"\nOurs / {PEER}, medians: encode {ratios['encode']:.1f}, decode {ratios['decode']:.1f}."
        f" {report.busy(machine)}"
    )


if __name__ == "__main__":
    main()

"""Time per frame of every stage, ours and x264's in the same session: median and 95th percentile after a warm-up.

``python -m benchmarks.latency [--clips FILE] [--cores N] [--peer CHECKOUT] [--json OUT]``. One process pinned to N
cores; the networks get N threads, x264 one (more do not help it at this size). Both are fed uint8 RGB and give it back;
references are in "encode" and "decode" where they fall, so look at the median for the usual frame and at p95 for the
rare one. Every backend that answers on this machine has its rows, with the renderer's time a frame at several batch
sizes. ``--peer`` times another receiver's own code beside it (peers.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks import clips, codecs, peers, report
from neuralcodec.runtime.session import present_devices

WARM_UP = 10  # frames left out at the start of each run
PEER, PEER_QUALITY = "x264-call", 42
BATCHES = (1, 8, 32)
BATCH_RUNS = 5  # timed calls of each batch size, after one to warm up
FPS = 25


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


def batches(
    frames: Sequence[Any], *, pack: str | None, device: str, threads: int, sizes: Sequence[int] = BATCHES
) -> dict[int, list[float]]:
    """Milliseconds a frame of the renderer alone, by how many people's frames one call makes."""
    from neuralcodec.inference import Inference
    from neuralcodec.pack import load_pack

    networks = Inference(load_pack(pack), device=device, threads=threads)
    reference = networks.reference(frames[0])
    motions = [networks.motion(frames[i % len(frames)], reference.estimate.box).motion for i in range(max(sizes))]
    spent: dict[int, list[float]] = {}
    for size in sizes:
        for _ in range(BATCH_RUNS + 1):
            start = perf_counter()
            networks.render_many([reference] * size, motions[:size])
            spent.setdefault(size, []).append(1000 * (perf_counter() - start) / size)
    return {size: times[1:] for size, times in spent.items()}


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
    parser.add_argument("--frames", type=report.count, default=100, help="first N frames (default 100)")
    parser.add_argument("--pack")
    parser.add_argument("--kbps", type=report.rate, default=4.0)
    parser.add_argument("--device", action="append", help="repeatable; default: every one that answers")
    parser.add_argument("--cores", type=report.count, default=2)
    parser.add_argument("--batches", type=report.count, nargs="*", default=list(BATCHES), help="renderer's batch sizes")
    parser.add_argument(
        "--peer", type=Path, action="append", default=[], help="another receiver's checkout; repeatable"
    )
    parser.add_argument("--peer-frames", type=report.count, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    receivers = [peers.load_peer(folder) for folder in options.peer]
    report.pin(options.cores)
    machine = report.machine()
    if options.clips is None:
        from neuralcodec.demo import moving_portrait

        frames = list(moving_portrait(options.frames / clips.FPS))
    else:
        frames = clips.read(options.clips, limit=options.frames).frames
    if len(frames) <= WARM_UP + 1:
        parser.error(f"{len(frames)} frames are too few: {WARM_UP} warm up, and one more is left out at the end")
    mine, batched = {}, {}
    for device in options.device or present_devices():
        here = {"pack": options.pack, "device": device, "threads": options.cores}
        mine[device] = summary(ours(frames, kbps=options.kbps, **here))
        times = batches(frames, sizes=options.batches, **here) if options.batches else {}
        batched[device] = summary({f"render, batch {size}": times[size] for size in options.batches})
    theirs = summary(peer(frames))
    others = {r.name: summary({"render": peers.time_peer(r, options.peer_frames, options.cores)}) for r in receivers}
    ratios = {
        f"{device}: {side} / {PEER}": figures[side]["median_ms"] / theirs[side]["median_ms"]
        for device, figures in mine.items()
        for side in ("encode", "decode")
    } | {
        f"{device}: {name} render / ours": other["render"]["median_ms"] / figures["decode: render"]["median_ms"]
        for device, figures in mine.items()
        for name, other in others.items()
    }
    if options.json is not None:
        chosen = {k: v for k, v in vars(options).items() if k not in ("clips", "json", "peer", "pack")}
        report.save(options.json, {"machine": machine, "options": chosen, "neuralcodec": mine, "batches": batched,
                                   PEER: theirs, "peers": others, "ratios_of_medians": ratios})  # fmt: skip
    rows = [
        (f"{codec} {name}", f"{v['median_ms']:.2f}", f"{v['p95_ms']:.2f}", "")
        for codec, figures in (*((f"neuralcodec {d}", f) for d, f in mine.items()), (PEER, theirs), *others.items())
        for name, v in figures.items()
    ] + [
        (f"neuralcodec {device} {name}", f"{v['median_ms']:.2f}", f"{v['p95_ms']:.2f}",
         f"{1000 / FPS / v['median_ms']:.1f}")
        for device, figures in batched.items()
        for name, v in figures.items()
    ]  # fmt: skip
    height, width = frames[0].shape[:2]
    print(f"{len(frames) - WARM_UP} frames of {width}x{height} after {WARM_UP} to warm up; {machine['cpu']}, "
          f"{options.cores} cores, load {machine['load_before']}.\n")  # fmt: skip
    print(report.markdown(("stage", "median, ms a frame", "p95, ms", f"streams at {FPS} fps"), rows))
    print("\nRatios of medians: " + "; ".join(f"{name} {value:.1f}" for name, value in ratios.items()) + ".")
    print(report.busy(machine))


if __name__ == "__main__":
    report.run(main)

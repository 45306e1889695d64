"""Does the bitstream hold its promises? Bytes of motion, the curve from 1.5 to 32 kbit/s, and how well a rate is kept.

``python -m benchmarks.coding --clips DIR`` prints the table and keeps it all in ``benchmarks/results/coding.json``; a
run that was stopped goes on where it stopped (``--fresh`` begins anew, as do other clips, sources, libraries and
processors). ``--limit`` takes fewer clips, ``--frames`` fewer frames of each. Streams are files: 8 frames of motion
share a packet and wait for 12 more, and the rate is kept on average; references and headers are counted.

PSNR and MS-SSIM are measured on every fifth frame from the third on. Rate error: of the bytes in any 2 s against the
target, in files at a constant rate (``encode --constant-rate``), as calls have it. The first picture goes out at once
and is then paid off, so the first seconds after it take less than the target. All windows count for the excess, from
the first byte on; those that begin 4 s after the start or later for the shortfall: a head that rests needs less than
any target (see the held-still figure), and nothing is sent only to fill it. Overhead: bytes of a motion packet's
payload beyond the code length of its own tables. Held still: one frame repeated for 100.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips, metrics, ours, points, report

TARGETS = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
WINDOW_TARGETS = TARGETS[1:]
MOTION_TARGET = 4.0  # at which the coder's own figures are taken
MOTION_TARGETS = (MOTION_TARGET, 4.5)  # bytes of motion against its error, at the usual rate and a little more
LOWEST = 1.5
EVERY = 5  # frames between measured ones
WINDOW = 2 * clips.FPS
SETTLED = 4 * clips.FPS  # frames before the windows of the rate error
STILL_FRAMES, MINUTE = 100, 60 * clips.FPS
RESULT = Path(__file__).parent / "results" / "coding.json"


def measure(clip: clips.Clip, target: float, options: argparse.Namespace) -> dict[str, Any]:
    """One clip at one rate."""
    sent = ours.send(
        clip, kbps=target, pack=options.pack, device=options.device, threads=options.cores, **ours.FILE
    )  # all shown: frames are steadied by those before
    steady = ours.send(
        clip, kbps=target, pack=options.pack, device=options.device, threads=options.cores,
        every=MINUTE, **ours.STEADY,
    )  # fmt: skip
    row: dict[str, Any] = {
        "kbps": sent.kbps,
        "references": sent.references,
        "updates": sent.updates,
        "as_is": sent.as_is_frames / len(clip.frames),
        "bytes_by_kind": sent.bytes_by_kind,
        "motion_payload": float(np.mean(sent.motion_payload)),
        "motion_payload_p95": float(np.percentile(sent.motion_payload, 95)),
        "motion_packet": float(np.mean(sent.motion_bytes)),
        "keypoint_error_px": sent.keypoint_error_px,
        "encode_ms": float(np.mean(sent.encode_ms)),
        "rate_error": rate_errors(steady.bytes_until, target),
        **metrics.picture(clip.frames, sent.frames, every=EVERY),
    }
    if target == MOTION_TARGET:
        row |= coder_figures(sent.file, options.pack)
        if options.pictures is not None:
            report.sheet(options.pictures / f"{clip.name}.png", pictures(clip, options))
    return row


def pictures(clip: clips.Clip, options: argparse.Namespace) -> list[list[Any]]:
    """Four frames of a clip: the original, then what each rate shows."""
    every = max(1, len(clip.frames) // 4)
    columns = [clips.chosen(clip.frames, every)[:4]]
    for target in (2.0, 4.0, 8.0, 16.0):
        sent = ours.send(clip, kbps=target, pack=options.pack, device=options.device, every=every, **ours.FILE)
        columns.append(clips.chosen(sent.frames, every)[:4])
    return [list(row) for row in zip(*columns, strict=True)]


def rate_errors(bytes_until: Sequence[int], target: float) -> dict[str, float] | None:
    """Of 2 s windows, as shares of the target: the largest excess of any, of any after the start, and the largest
    shortfall after the start. None when too short."""
    if len(bytes_until) < SETTLED + WINDOW:
        return None
    until = np.array([0, *bytes_until], float)
    share = (until[WINDOW:] - until[:-WINDOW]) / (target * 125 * 2) - 1
    settled = share[SETTLED:]
    return {"over": float(share.max()), "over_settled": float(settled.max()), "under": float(settled.min())}


def coder_figures(file: bytes, pack: str | None) -> dict[str, Any]:
    """Bytes a packet over the ideal code length, and ms to quantize, code and decode a frame."""
    from neuralcodec import load_pack
    from neuralcodec.container import ContainerReader
    from neuralcodec.entropy import EntropyCoder
    from neuralcodec.packet import Motion
    from neuralcodec.quantizer import Quantizer, start_state

    tables = load_pack(pack).tables
    coder, receiver, sender = EntropyCoder(tables), Quantizer(tables), Quantizer(tables)
    over, spent = [], []
    for packet in ContainerReader(io.BytesIO(file)):
        if not isinstance(packet, Motion):
            continue
        scale = {"level": packet.level, "components": packet.components}
        if packet.reference is not None:
            receiver.new_reference()
            sender.new_reference()
        state = start_state(tables) if packet.intra else receiver.state
        group = coder.decode_group(packet.payload, packet.frames, **scale, intra=packet.intra, state=state)
        over.append(len(packet.payload) - sum(map(coder.ideal_bits, group)) / 8)
        for symbols in group:
            motion = receiver.inverse(symbols)
            start = time.perf_counter()
            again = sender.forward(motion, **scale, intra=symbols.intra)
            coder.decode(coder.encode(again), **scale, intra=again.intra, state=again.state)
            spent.append((time.perf_counter() - start) * 1000)
    return {"overhead_bytes": float(np.mean(over)), "coding_ms": float(np.median(spent))}


def held_still(clip: clips.Clip, options: argparse.Namespace) -> dict[str, Any]:
    """One frame again and again."""
    still = clips.Clip(clip.name, [clip.frames[0]] * STILL_FRAMES, clip.sha256)
    sent = ours.send(
        still, kbps=MOTION_TARGET, pack=options.pack, device=options.device, threads=options.cores,
        every=MINUTE, **ours.FILE,
    )  # fmt: skip
    payload, packet = float(np.mean(sent.motion_payload)), float(np.mean(sent.motion_bytes))
    return {"payload": payload, "packet": packet, "kbps": sent.kbps}


def a_minute(clip: clips.Clip, options: argparse.Namespace) -> dict[str, Any]:
    """60 s at the lowest rate: the clip forward and back until it is long enough."""
    there_and_back = [*clip.frames, *clip.frames[-2:0:-1]]
    frames = (there_and_back * (MINUTE // len(there_and_back) + 1))[:MINUTE]
    sent = ours.send(
        clips.Clip(clip.name, frames, clip.sha256), kbps=LOWEST, pack=options.pack, device=options.device,
        threads=options.cores, every=MINUTE, **ours.FILE,
    )  # fmt: skip
    return {"kbps": sent.kbps, "bytes": len(sent.file), "references": sent.references, "updates": sent.updates}


def the_same_twice(clip: clips.Clip, options: argparse.Namespace) -> dict[str, Any]:
    """Whether two encodes, with one thread and with two, give the same bytes."""
    short = clips.Clip(clip.name, clip.frames[:50], clip.sha256)
    digests = [
        sha256(
            ours.send(short, kbps=8, pack=options.pack, device=options.device, threads=threads, every=MINUTE).file
        ).hexdigest()
        for threads in (1, 1, 2)
    ]
    return {"again": digests[0] == digests[1], "threads": digests[0] == digests[2]}


def table(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The figures against their bars: means over clips unless said otherwise."""
    rows: list[tuple[str, str, str, str]] = []
    by_target: dict[float, list[dict[str, Any]]] = {}
    for row in result["rows"].values():
        by_target.setdefault(row["target"], []).append(row)

    def mean(target: float, key: str) -> float:
        return float(np.mean([row[key] for row in by_target[target]]))

    def add(figure: str, bar: str, measured: str, good: bool | None = None) -> None:
        rows.append((figure, bar, measured, "" if good is None else "pass" if good else "FAIL"))

    for at in [t for t in MOTION_TARGETS if t in by_target]:
        payload, p95, error = mean(at, "motion_payload"), mean(at, "motion_payload_p95"), mean(at, "keypoint_error_px")
        add(f"motion at {at:g}, bytes a frame: mean; 95th percentile", "<= 6; <= 12", f"{payload:.2f}; {p95:.1f}",
            payload <= 6 and p95 <= 12)  # fmt: skip
        add("  keypoint error, px of 256", "< 0.5", f"{error:.3f}", error < 0.5)
        add("  bytes a frame with packet headers", "", f"{mean(at, 'motion_packet'):.2f}")
    if MOTION_TARGET in by_target:
        at = MOTION_TARGET
        over, spent = mean(at, "overhead_bytes"), mean(at, "coding_ms")
        add("coder overhead, bytes a packet", "<= 0.75", f"{over:.2f}", over <= 0.75)
        add("quantize, code and decode a frame, ms (median)", "< 0.5", f"{spent:.2f}", spent < 0.5)
    for name, what in result["alone"].items():
        if name == "still":
            add("held-still head, bytes a frame: payload; packets", "<= 1.5",
                f"{what['payload']:.2f}; {what['packet']:.2f}", what["payload"] <= 1.5)  # fmt: skip
        elif name == "minute":
            add(f"60 s file at {LOWEST:g}, kbit/s", "<= 2.0", f"{what['kbps']:.2f}", what["kbps"] <= 2.0)
        else:
            add("same bytes again; with other thread counts", "exact",
                f"{what['again']}; {what['threads']}", what["again"] and what["threads"])  # fmt: skip
    before: tuple[float, float] | None = None
    for target in [t for t in TARGETS if t in by_target]:
        now = mean(target, "psnr"), mean(target, "ms_ssim")
        text = f"{now[0]:.2f} dB; {now[1]:.4f}; {mean(target, 'kbps'):.2f} kbit/s"
        good = None if before is None else now[0] > before[0] and now[1] > before[1]
        add(f"PSNR; MS-SSIM; whole file at {target:g}", "rise", text, good)
        before = now
    if 2.0 in by_target and 8.0 in by_target:
        gain = mean(8.0, "psnr") - mean(2.0, "psnr")
        add("PSNR from 2 to 8 kbit/s, dB", ">= +3", f"{gain:+.2f}", gain >= 3)
    for target in [t for t in WINDOW_TARGETS if t in by_target]:
        errors = [row["rate_error"] for row in by_target[target] if row["rate_error"]]
        if errors:
            over, under = max(e["over"] for e in errors), min(e["under"] for e in errors)
            later, middle = max(e["over_settled"] for e in errors), float(np.median([e["over"] for e in errors]))
            add(f"at a constant {target:g}, fullest 2 s: worst clip; after 4 s; median clip", "<= +10 %",
                f"{over:+.1%}; {later:+.1%}; {middle:+.1%}", over <= 0.1)  # fmt: skip
            middle = float(np.median([e["under"] for e in errors]))
            add(
                "  emptiest, after 4 s: worst clip; median clip",
                ">= -10 %",
                f"{under:+.0%}; {middle:+.0%}",
                under >= -0.1,
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coding", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="a folder of video files")
    parser.add_argument("--limit", type=report.count, help="take so many clips, evenly spaced by name")
    parser.add_argument("--frames", type=report.count, help="first N frames of each clip")
    parser.add_argument("--targets", type=report.rate, nargs="+", default=TARGETS, metavar="KBPS")
    parser.add_argument("--pack", help="folder or name of a model pack; default the bundled one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cores", type=report.count, default=2, help="processor cores and network threads (default 2)")
    parser.add_argument("--json", type=Path, default=RESULT, help="result file, kept up to date while it runs")
    parser.add_argument("--fresh", action="store_true", help="forget what the result file holds")
    parser.add_argument("--pictures", type=Path, help="write a sheet per clip here: original, 2, 4, 8 and 16 kbit/s")
    options = parser.parse_args(arguments)
    from neuralcodec import NeuralCodecError, load_pack

    report.pin(options.cores)
    pack = load_pack(options.pack)
    paths = clips.find(options.clips)
    if options.limit is not None and options.limit < len(paths):
        paths = [paths[i * len(paths) // options.limit] for i in range(options.limit)]
    machine = report.machine()
    setting = {
        **points.coder(options.pack, options.device),
        "cpu": machine["cpu"],  # or times of two machines would stand under the name of one
        "cores": options.cores,
        "frames": options.frames,
        "clips": {path.stem: sha256(path.read_bytes()).hexdigest() for path in paths},
    }
    result: dict[str, Any] = {"machine": machine, "setting": setting, "rows": {}, "alone": {}}
    if options.json.exists() and not options.fresh:
        old = report.load(options.json, "setting", "rows", "alone")
        if old["setting"] == setting:
            result = old
    jobs = [(path, target) for path in paths for target in options.targets]
    with report.progress() as bar:
        task = bar.add_task("coding", total=len(jobs) + 3)
        clip: clips.Clip | None = None
        for path, target in jobs:
            key = f"{path.stem} {target:g}"
            bar.update(task, description=key)
            if key not in result["rows"]:
                if clip is None or clip.name != path.stem:
                    clip = clips.read(path, limit=options.frames, size=pack.size)
                try:
                    result["rows"][key] = {"clip": path.stem, "target": target, **measure(clip, target, options)}
                except NeuralCodecError as problem:  # one bad clip is a result, not the end of the run
                    print(f"{path.stem} failed: {problem}", file=sys.stderr)
                report.save(options.json, result)
            bar.advance(task)
        first = clips.read(paths[0], limit=options.frames, size=pack.size)
        for name, job in (("still", held_still), ("minute", a_minute), ("same", the_same_twice)):
            bar.update(task, description=name)
            if name not in result["alone"]:
                result["alone"][name] = job(first, options)
                report.save(options.json, result)
            bar.advance(task)
    if not result["rows"]:
        return 1
    rows = table(result)
    result["table"] = rows
    report.save(options.json, result)
    print(f"{len(paths)} clips, pack {pack.id.hex()}. {report.busy(result['machine'])}\n")
    print(report.markdown(("figure", "bar", "measured", ""), rows))
    return int(any(verdict == "FAIL" for *_, verdict in rows))


if __name__ == "__main__":
    report.run(main)

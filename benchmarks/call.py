"""A real call, measured where people see it: `neuralcodec call` in headless Chromium with a film for a camera.

    python -m benchmarks.call --seconds 60
    python -m benchmarks.call --ort node_modules/onnxruntime-web/dist     # also the receiver in the browser
    python -m benchmarks.call --receiver --ort DIR --seconds 20           # that alone: the sender is far away
    python -m benchmarks.call --processor-time --seconds 8                # no browser: what the server must compute

Capture to display is read from the shown pixels: the page marks every camera picture with the time of its capture, the
server passes the mark through, the page reads it from the frame it shows. Browser, server and codec share this machine,
so every figure holds for a machine as busy as this one: the load average is part of the result.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console
from rich.table import Table

import neuralcodec as nc
from benchmarks import report
from benchmarks.browser import CallProcess, chromium, missing, processor_seconds, write_camera
from neuralcodec.call.h264 import SameBytes
from neuralcodec.demo import moving_portrait
from neuralcodec.face import resize
from neuralcodec.media import read_frames
from neuralcodec.packet import bundled

RECEIVE = """
const [sent, yaw] = arguments, worker = new Worker("/web/receiver.mjs", { type: "module" });
window.alone = { by: "", threads: 0, ms: [], problem: "", start() {
  let next = 0;
  const timer = setInterval(() => {
    if (next === sent.length) return clearInterval(timer);
    for (const text of sent[next++]) {
      const data = Uint8Array.from(text.match(/../g), (pair) => parseInt(pair, 16)).buffer;
      worker.postMessage({ data }, [data]);
    }
  }, 40);
} };
worker.onmessage = ({ data }) => {
  if (data.ready) [alone.by, alone.threads] = [data.by, data.threads];
  if (data.picture) alone.ms.push(data.ms);
  if (data.problem) alone.problem = data.problem;
};
worker.postMessage({ open: true });
worker.postMessage({ view: { yaw, pitch: 0, roll: 0 } });
"""
TURNED = 5.0  # degrees: any turn makes the receiver draw a head for every picture
SETTLE_SECONDS = 5.0  # after the first picture, before anything is counted
PARTS = 10  # of the time watched: memory is read after each
CAMERA_FRAMES = 250
PATIENCE = 180.0


def measure(film: Path | None, seconds: float, kbps: float, loss: float, ort: Path | None) -> dict[str, Any]:
    """Every figure of one call of ``seconds`` without loss, a third of that with it, and one with the browser's own
    receiver where ``ort`` is given."""
    with tempfile.TemporaryDirectory() as scratch:
        camera = Path(scratch) / "camera.mjpeg"
        source = (image for _, image in read_frames(film)) if film else moving_portrait(CAMERA_FRAMES / 25)
        write_camera(camera, islice(source, CAMERA_FRAMES))
        with CallProcess("--kbps", str(kbps), *(["--ort", str(ort)] if ort else [])) as call, chromium(camera) as page:
            begun = time.monotonic()
            page.get(call.address + "?measure")
            page.find_element("id", "start").click()
            _until(lambda: page.execute_script("return neuralcodecCall.latencies.length > 3"))
            found: dict[str, Any] = {"first_picture_s": time.monotonic() - begun, "kbps_target": kbps}
            time.sleep(SETTLE_SECONDS)
            found["call"] = _watch(page, call, seconds)
            page.execute_script(
                f"const s = document.getElementById('loss-in'); s.value = {loss}; s.dispatchEvent(new Event('input'));"
            )
            time.sleep(1.0)
            found["loss_percent"], found["with_loss"] = loss, _watch(page, call, seconds / 3)
            if ort:
                page.execute_script(
                    "const s = document.getElementById('loss-in'); s.value = 0; s.dispatchEvent(new Event('input'));"
                )
                # a turned head is always rendered, so that both receivers are timed at the same work
                page.find_element("id", "stick").send_keys("\ue014")
                time.sleep(SETTLE_SECONDS)
                found["python"] = _watch(page, call, seconds / 3)
                page.execute_script("document.getElementById('browser-in').click()")
                _until(lambda: page.execute_script("return (neuralcodecCall.receiver?.frames ?? 0) > 3"))
                found["browser"] = _watch_receiver(page, seconds / 3)
    return found | {"cores": os.cpu_count()}


def receiver_alone(film: Path | None, seconds: float, kbps: float, ort: Path) -> dict[str, dict[str, Any]]:
    """The receiver in the browser with the machine to itself: the film was coded before, its datagrams come 25 times a
    second. As filmed, pictures are shown as they are where that is what was sent. A turned head is always drawn; where
    that takes long, from the features of a picture before."""
    source = (image for _, image in read_frames(film)) if film else moving_portrait(seconds)
    encoder = nc.Encoder(kbps, time_base=Fraction(1, 25))
    pictures = islice(source, round(25 * seconds))
    sent = [[bytes(p).hex() for p in bundled(encoder.encode(image, pts))] for pts, image in enumerate(pictures)]
    return {name: _receive(sent, kbps, ort, yaw) for name, yaw in (("as filmed", 0), ("turned", TURNED))}


def _receive(sent: list[list[str]], kbps: float, ort: Path, yaw: float) -> dict[str, Any]:
    with CallProcess("--kbps", str(kbps), "--ort", str(ort)) as call, chromium(None) as page:
        page.get(call.address)
        page.execute_script(RECEIVE, sent, yaw)
        _until(lambda: page.execute_script("return alone.threads > 0"))
        pids, length = (call.process.pid, page.service.process.pid), len(sent) / 25
        used = [processor_seconds(pid) for pid in pids]
        page.execute_script("alone.start()")
        time.sleep(length)
        server, browser = (processor_seconds(pid) - begun for pid, begun in zip(pids, used, strict=True))
        by, threads, spent, problem = page.execute_script("return [alone.by, alone.threads, alone.ms, alone.problem]")
    if problem:
        raise SystemExit(problem)
    return {
        "fps": len(spent) / length, "by": by, "threads": threads, "cores": os.cpu_count(),
        "render_ms": _spread(spent),
        "cores_used": {"server": server / length, "browser": browser / length},
        "load_average": os.getloadavg()[0],
    }  # fmt: skip


def processor_time(film: Path | None, seconds: float, kbps: float) -> dict[str, float]:
    """Milliseconds of processor time a frame (of 25 a second) that the server spends on each part of a call, one thread
    each, and the rates sent. Unlike a clock's times these depend little on what else the machine does."""
    from aiortc.codecs.vpx import Vp8Encoder

    source = (image for _, image in read_frames(film)) if film else moving_portrait(seconds)
    pictures = list(islice(source, round(25 * seconds)))
    encoder, decoder = nc.Encoder(kbps, threads=1), nc.Decoder(threads=1)
    pane, video = SameBytes(256, kbps), Vp8Encoder()
    parts = ("encode", "decode, as coded", "decode, turned", "H.264 pane", "VP8")
    spent = dict.fromkeys(parts, 0.0)
    sent: list[int] = []
    turned = nc.Decoder(threads=1, view=nc.View(yaw=5))
    for pts, picture in enumerate(pictures):
        with _clocked(spent, "encode", pts):
            datagrams = [bytes(packet) for packet in bundled(encoder.encode(picture, pts))]
        sent += map(len, datagrams)
        with _clocked(spent, "decode, as coded", pts):
            frames = [frame for data in datagrams for frame in decoder.decode(data)]
        with _clocked(spent, "decode, turned", pts):
            for data in datagrams:
                turned.decode(data)
        shown = resize(frames[-1].image, 256, 256) if frames else picture
        with _clocked(spent, "H.264 pane", pts):
            theirs = pane.show(resize(picture, 256, 256), sum(map(len, datagrams)), pts / 25)
        with _clocked(spent, "VP8", pts):
            row = np.concatenate([resize(picture, 256, 256), shown, theirs], axis=1)
            frame = av.VideoFrame.from_ndarray(row, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = pts, Fraction(1, 25)
            video.encode(frame)
    rate = 25 * 8 / 1000 / len(pictures)
    return {name: 1000 * total / (len(pictures) - 25) for name, total in spent.items()} | {
        "kbit/s": sum(sent) * rate, "kbit/s with IP and UDP headers": (sum(sent) + 28 * len(sent)) * rate
    }  # fmt: skip


@contextmanager
def _clocked(spent: dict[str, float], part: str, pts: int) -> Iterator[None]:
    begin = time.process_time()
    yield
    if pts >= 25:  # the first second loads and warms
        spent[part] += time.process_time() - begin


def _watch(page: Any, call: CallProcess, seconds: float) -> dict[str, Any]:
    before = page.execute_script(
        "neuralcodecCall.latencies.length = neuralcodecCall.displayed.length = 0; return neuralcodecCall.state.stats"
    )
    memory, pids = [call.memory], (call.process.pid, page.service.process.pid)
    used = [processor_seconds(pid) for pid in pids]
    for _ in range(PARTS):
        time.sleep(seconds / PARTS)
        memory.append(call.memory)
    server, browser = (processor_seconds(pid) - begun for pid, begun in zip(pids, used, strict=True))
    after, latencies, displayed = page.execute_script(
        "return [neuralcodecCall.state.stats, neuralcodecCall.latencies, neuralcodecCall.displayed]"
    )
    span = after["seconds"] - before["seconds"]
    sent, packets = after["bytes"] - before["bytes"], after["packets"] - before["packets"]
    gaps = np.diff(displayed) if len(displayed) > 1 else np.array([np.nan])
    return {
        "seconds": span,
        "fps": len(displayed) / seconds,
        "capture_to_display_ms": _spread(latencies),
        "longest_freeze_ms": float(gaps.max()),
        "kbps": sent * 8 / 1000 / span,
        "kbps_with_ip_udp": (sent + 28 * packets) * 8 / 1000 / span,
        "lost": after["lost"] - before["lost"],
        "recovery_ms": after["recovery_ms"],
        "cores": {"server": server / seconds, "browser": browser / seconds},
        "load_average": os.getloadavg()[0],
        "stages_ms": after["stages"],
        "memory_mb": [size / 1e6 for size in memory],
    }


def _watch_receiver(page: Any, seconds: float) -> dict[str, Any]:
    page.execute_script("neuralcodecCall.receiver.frames = neuralcodecCall.receiver.ms.length = 0")
    time.sleep(seconds)
    by, frames, spent = page.execute_script(
        "const { by, frames, ms } = neuralcodecCall.receiver; return [by, frames, ms]"
    )
    return {"fps": frames / seconds, "by": by, "render_ms": _spread(spent)}


def _spread(values: list[float]) -> dict[str, float]:
    median, p95 = np.quantile(values, (0.5, 0.95)).tolist() if values else (float("nan"), float("nan"))
    return {"median": median, "p95": p95}


def _pair(spread: dict[str, float]) -> str:
    return f"{spread['median']:.0f}, {spread['p95']:.0f}" if spread["count"] else "-"


def _until(true: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"No picture has come in {PATIENCE:.0f} s: this machine is too busy to measure a call.")
        time.sleep(0.1)


def show(found: dict[str, Any], console: Console) -> None:
    table = Table("figure", "no loss", f"{found['loss_percent']:g} % loss", title="A call in the browser")
    call, lossy = found["call"], found["with_loss"]
    for name, pick in (
        ("capture to display, median ms", lambda c: f"{c['capture_to_display_ms']['median']:.0f}"),
        ("capture to display, p95 ms", lambda c: f"{c['capture_to_display_ms']['p95']:.0f}"),
        ("frames a second shown", lambda c: f"{c['fps']:.1f}"),
        ("until nothing is missing after a loss, median and p95 ms", lambda c: _pair(c["recovery_ms"])),
        ("longest freeze, ms", lambda c: f"{c['longest_freeze_ms']:.0f}"),
        (f"kbit/s, target {found['kbps_target']:g}", lambda c: f"{c['kbps']:.2f}"),
        ("kbit/s with IP and UDP headers", lambda c: f"{c['kbps_with_ip_udp']:.2f}"),
        ("cores used by server and browser", lambda c: f"{c['cores']['server']:.2f}, {c['cores']['browser']:.2f}"),
        ("load average of the machine", lambda c: f"{c['load_average']:.1f}"),
        (
            f"server memory before, after 1/{PARTS} of the time, half and all of it, MB",
            lambda c: ", ".join(f"{c['memory_mb'][at]:.0f}" for at in (0, 1, PARTS // 2, PARTS)),
        ),
    ):  # fmt: skip
        table.add_row(name, pick(call), pick(lossy))
    console.print(table)
    console.print("ms a frame:", ", ".join(f"{name} {spent:.1f}" for name, spent in call["stages_ms"].items()))
    if "browser" in found:
        browser, python = found["browser"], found["python"]
        ours, theirs = python["stages_ms"]["receive render"], browser["render_ms"]["median"]
        console.print(f"A turned head, rendered by Python: {python['fps']:.1f} fps, {ours:.0f} ms a picture;")
        console.print(f"in the browser ({browser['by']}): {browser['fps']:.1f} fps, {theirs:.0f} ms at the median.")
    console.print(f"First picture {found['first_picture_s']:.1f} s after the page was opened; {found['cores']} cores.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a call in headless Chromium.")
    parser.add_argument("--film", type=Path, help="square film to play as the camera (default: the demo's portrait)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kbps", type=report.rate, default=8.0)
    parser.add_argument("--loss", type=float, default=10.0, help="percent")
    parser.add_argument("--ort", type=Path, help="onnxruntime-web's dist folder")
    parser.add_argument("--receiver", action="store_true", help="the browser's receiver alone; needs --ort")
    parser.add_argument("--processor-time", action="store_true", help="no browser: processor time of each part")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found: dict[str, Any]
    if options.processor_time:
        found = processor_time(options.film, options.seconds, options.kbps)
        table = Table("figure; ms of processor time a frame", f"target {options.kbps:g} kbit/s")
        for part, value in found.items():
            table.add_row(part, f"{value:.1f}")
        Console().print(table)
    elif lacks := missing():
        raise SystemExit(f"Not installed: {lacks}.")
    elif options.receiver:
        if options.ort is None:
            parser.error("--receiver needs --ort, the dist folder of onnxruntime-web")
        found = receiver_alone(options.film, options.seconds, options.kbps, options.ort)
        for view, alone in found.items():
            ms = alone["render_ms"]
            Console().print(
                f"{view}: {alone['fps']:.1f} pictures a second of 25 in the browser ({alone['by']}, {alone['threads']} "
                f"threads, {alone['cores']} cores), {ms['median']:.0f} ms at the median, {ms['p95']:.0f} at the 95th "
                "percentile."
            )
    else:
        found = measure(options.film, options.seconds, options.kbps, options.loss, options.ort)
        show(found, Console())
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    report.run(main)

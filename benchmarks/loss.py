"""A call over a bad network, ours and x264's: how much picture is lost, and how soon it is right again.

``python -m benchmarks.loss --clips DIR --json benchmarks/results/loss.json``. A simulated link loses datagrams at
random (seeded) or all of them for the length of a burst, in both directions, and delays the others. Ours goes as RTP
with feedback (what ``neuralcodec.rtp`` describes), x264 as one slice a datagram with periodic intra refresh and
nothing else. Every frame has its moment: what has arrived by then is shown, the rest is concealed.

PSNR lost, both against the original, mean over frames: *on the way*, what a receiver would see that gets all of the
very same stream, less what the receiver sees; and *in all*, the same codec's call over a link that loses nothing less
this one: repeats, resent pictures and intra frames cost ours picture even where nothing is missing.
A picture is right again when it is within 1 dB of what it is compared with in either way; for ours its motion and its
reference must also have been received and not concealed. Time counts from the burst's end to the moment of display.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import clips, report
from benchmarks.codecs import _nal_type, _nal_units
from neuralcodec import load_pack
from neuralcodec.concealment import Concealment
from neuralcodec.errors import BitstreamError
from neuralcodec.quality import psnr
from neuralcodec.rtp import RtpReceiver, RtpSender, parse_rtcp, rtcp_feedback

TICK = 1 / clips.FPS
DELAY = 0.04  # seconds one way
JITTER = 0.015  # up to so much more, so that neighbours can change places
BUFFER = 0.02  # from a frame's usual arrival to its display
RANDOM = (0.05, 0.10, 0.20, 0.30)
BURSTS = (0.2, 0.5)  # seconds
BURST_EVERY = 3.0  # seconds from one burst to the next
RIGHT_DB = 1.0
ALLOWED = {0.05: 0.5, 0.10: 1.0, 0.20: 2.0, 0.30: 3.0}  # dB at each share of loss
RIGHT_MS = 250.0
FIGURES = ("kbps", "wire_kbps", "psnr")
WIRE = 40  # bytes of IPv4, UDP and RTP around each payload, for both

X264 = {
    "preset": "medium",
    "tune": "zerolatency",
    "x264-params": "intra-refresh=1:keyint=25:bframes=0:scenecut=0:slice-max-size=1150"
    ":vbv-bufsize={kbps}:vbv-maxrate={kbps}",
}


@dataclass
class Link:
    """One direction. loss: share of datagrams lost. bursts: (start, end) in seconds during which all are."""

    loss: float
    bursts: Sequence[tuple[float, float]]
    seed: int
    bytes_sent: int = 0
    _way: list[tuple[float, int, bytes]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def send(self, now: float, data: bytes) -> None:
        lost, late = self._dice.random() < self.loss, self._dice.random() * JITTER
        self._count += 1
        self.bytes_sent += len(data)
        if not lost and not any(start <= now < end for start, end in self.bursts):
            heapq.heappush(self._way, (now + DELAY + late, self._count, data))

    def receive(self, now: float) -> list[bytes]:
        """What has arrived by now, in order of arrival."""
        came = []
        while self._way and self._way[0][0] <= now:
            came.append(heapq.heappop(self._way)[2])
        return came


@dataclass(frozen=True)
class Shown:
    """frames: one for each original, None before the first. sent: the same of a receiver that loses nothing of this
    very stream; None where the sender does not listen, so that it is the call without loss. exact: shown as the sender
    meant it. kbps: the stream."""

    frames: list[Any]
    sent: list[Any] | None
    exact: list[bool]
    kbps: float
    wire_kbps: float


def ours(clip: clips.Clip, link: Link, back: Link, options: argparse.Namespace) -> Shown:
    """Our call: RTP one way, RTCP feedback the other."""
    import neuralcodec as nc

    encoder = nc.Encoder(options.kbps, pack=options.pack, device=options.device, crop="none", threads=options.cores)
    decoder = nc.Decoder(pack=options.pack, device=options.device, threads=options.cores)
    beside = nc.Decoder(pack=options.pack, device=options.device, threads=options.cores)  # the sender, loses nothing
    sender, receiver = RtpSender(1), RtpReceiver()
    frames: list[Any] = []
    sent: list[Any] = []
    exact: list[bool] = []
    last, datagrams = None, 0
    for number, picture in enumerate(clip.frames):
        now = number * TICK
        for data in back.receive(now):
            for feedback in parse_rtcp(data):
                encoder.on_feedback(feedback)
        packets = encoder.encode(picture, number)
        sent += [frame.image for packet in packets for frame in beside.decode(bytes(packet))]
        for data in sender.pack(packets, now):
            link.send(now, data)
            datagrams += 1
        moment, state = now + DELAY + BUFFER, None
        for data in link.receive(moment):
            payload = receiver.unpack(data)
            try:
                came = decoder.decode(payload) if payload else []
            except BitstreamError:
                continue
            if came:
                last, state = came[-1].image, came[-1].state if came[-1].pts >= number else None
        if state is None and last is not None:
            last, state = decoder.conceal(number).image, Concealment.COASTING
        frames.append(last)
        exact.append(state is Concealment.RECEIVED)
        if decoder.wants_feedback(moment, 2 * DELAY):
            back.send(moment, rtcp_feedback(decoder.feedback(receiver.lost_share()), 2, 1))
    payload_bytes = link.bytes_sent - 12 * datagrams
    return Shown(frames, sent, exact, _kbps(payload_bytes, clip), _kbps(payload_bytes + WIRE * datagrams, clip))


def x264(clip: clips.Clip, link: Link, back: Link, options: argparse.Namespace) -> Shown:
    """x264 as a call runs it: no delay, a column of intra blocks that wanders, slices that fit a datagram."""
    width, height = clip.size
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.bit_rate = Fraction(1, clips.FPS), clips.FPS, options.x264_kbps * 1000
    encoder.thread_count = 1
    encoder.options = {key: text.format(kbps=options.x264_kbps) for key, text in X264.items()}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoder.options = {"flags": "+low_delay+output_corrupt", "flags2": "+showall"}
    frames: list[Any] = []
    last, datagrams, payload_bytes = None, 0, 0
    for number, picture in enumerate(clip.frames):
        now = number * TICK
        planes = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuv420p")
        planes.pts = number
        for packet in encoder.encode(planes):
            for index, nal in enumerate(_nal_units(bytes(packet))):
                kind = _nal_type("libx264", nal)
                if kind in (6, 9):  # SEI and delimiters: nothing a decoder needs
                    continue
                datagrams, payload_bytes = datagrams + 1, payload_bytes + len(nal)
                if kind not in (7, 8):
                    link.send(now, number.to_bytes(4, "big") + index.to_bytes(2, "big") + nal)
                elif number == 0:  # parameter sets come with the signalling and are not lost
                    decoder.extradata = (decoder.extradata or b"") + b"\0\0\0\1" + nal
        came = sorted(link.receive(now + DELAY + BUFFER))
        for stamp in sorted({data[:4] for data in came}):
            unit = b"".join(b"\0\0\0\1" + data[6:] for data in came if data[:4] == stamp)
            try:
                for frame in decoder.decode(av.Packet(unit)):
                    last = frame.to_ndarray(format="rgb24")
            except av.FFmpegError:
                continue
        frames.append(last)
    return Shown(frames, None, [f is not None for f in frames], _kbps(payload_bytes, clip),
                 _kbps(payload_bytes + WIRE * datagrams, clip))  # fmt: skip


def _kbps(count: int, clip: clips.Clip) -> float:
    return count * 8 / 1000 / (len(clip.frames) * TICK)


Call = Callable[[clips.Clip, Link, Link, argparse.Namespace], Shown]
CALLS: dict[str, Call] = {"ours": ours, "x264": x264}


def bursts_of(length: float, seconds: float, seed: int) -> list[tuple[float, float]]:
    """One burst in every BURST_EVERY seconds, at a random moment that leaves time to recover."""
    dice = random.Random(seed)
    starts = np.arange(1.0, seconds - BURST_EVERY / 2, BURST_EVERY)
    begins = [float(start) + dice.random() / 2 for start in starts]
    return [(begin, begin + length) for begin in begins]


def qualities(clip: clips.Clip, frames: Sequence[Any]) -> list[float]:
    """PSNR of every frame against the original; a frame never shown counts as black."""
    black = np.zeros_like(clip.frames[0])
    return [psnr(a, black if b is None else b) for a, b in zip(clip.frames, frames, strict=True)]


def recoveries(
    clear: list[float], got: list[float], exact: list[bool], bursts: Sequence[tuple[float, float]]
) -> list[float]:
    """Milliseconds from each burst's end to the first right picture's display; infinite when the clip ends before."""
    out = []
    for _, end in bursts:
        right = (
            1000 * (n * TICK + DELAY + BUFFER - end)
            for n in range(len(got))
            if n * TICK + DELAY + BUFFER > end + DELAY and exact[n] and clear[n] - got[n] <= RIGHT_DB
        )
        out.append(next(right, float("inf")))
    return out


def measure(clip: clips.Clip, name: str, options: argparse.Namespace, tell: Callable[[], None]) -> dict[str, Any]:
    """One clip, one codec: without loss, with every share of random loss, with every length of burst."""
    call = CALLS[name]
    seed = options.seed + int(clip.sha256[:12], 16)  # or all would lose the first picture, or none

    def run(loss: float, bursts: Sequence[tuple[float, float]]) -> tuple[Shown, list[float]]:
        shown = call(clip, Link(loss, bursts, seed), Link(loss, bursts, seed + 1), options)
        tell()
        return shown, qualities(clip, shown.frames)

    def sent(shown: Shown) -> list[float]:
        return clear if shown.sent is None else qualities(clip, shown.sent)

    def lost(sent: Sequence[float], got: Sequence[float]) -> dict[str, float]:
        return {"lost_on_the_way": float(np.mean(sent) - np.mean(got)), "lost": float(np.mean(clear) - np.mean(got))}

    base, clear = run(0.0, ())
    result: dict[str, Any] = {
        "clip": clip.name, "sha256": clip.sha256, "frames": len(clip.frames), "codec": name,
        "kbps": base.kbps, "wire_kbps": base.wire_kbps, "psnr": float(np.mean(clear)),
    }  # fmt: skip
    for loss in options.random:
        shown, got = run(loss, ())
        result[f"loss {loss:g}"] = {
            **lost(sent(shown), got), "exact_share": float(np.mean(shown.exact)),
            "kbps": shown.kbps, "wire_kbps": shown.wire_kbps,
        }  # fmt: skip
    for length in options.bursts:
        bursts = bursts_of(length, clip.seconds, seed)
        shown, got = run(0.0, bursts)
        meant = sent(shown)
        result[f"burst {length:g}"] = {
            **lost(meant, got), "kbps": shown.kbps,
            "recovery_ms": recoveries(clear, got, shown.exact, bursts),
            "recovery_on_the_way_ms": recoveries(meant, got, shown.exact, bursts),
        }  # fmt: skip
    return result


def summary(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Rows: case, then for each codec what was lost (random) or how long it took (bursts), the bar and whether ours
    holds it."""
    rows = []
    for key, label in [(f"loss {x:g}", f"random loss {x:.0%}") for x in options.random] + [
        (f"burst {x:g}", f"bursts of {1000 * x:.0f} ms") for x in options.bursts
    ]:
        cells = []
        for name in options.codecs:
            mine = [r[key] for r in results if r["codec"] == name]
            way, whole, kbps = (np.mean([m[key] for m in mine]) for key in ("lost_on_the_way", "lost", "kbps"))
            cell = f"-{way:.2f} dB on the way, -{whole:.2f} in all, {kbps:.1f} kbit/s"
            if "recovery_ms" in mine[0]:
                way_ms, whole_ms = (
                    [t for m in mine for t in m[key]] for key in ("recovery_on_the_way_ms", "recovery_ms")
                )
                cell = f"right after {_spread(way_ms)} on the way, {_spread(whole_ms)} in all; {cell}"
            else:
                cell += f", {np.mean([m['exact_share'] for m in mine]):.0%} as sent" if name == "ours" else ""
            cells.append(cell)
        rows.append((label, *cells, *_verdict(key, [r[key] for r in results if r["codec"] == "ours"])))
    return rows


def _verdict(key: str, ours: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The bar for what happens on the way, and whether it holds: mean loss over clips, every burst."""
    kind, value = key.split()
    if kind == "burst":
        bar, holds = f"<= {RIGHT_MS:.0f} ms", all(t <= RIGHT_MS for r in ours for t in r["recovery_on_the_way_ms"])
    elif float(value) in ALLOWED:
        most = ALLOWED[float(value)]
        bar, holds = f"<= {most:g} dB", not ours or np.mean([r["lost_on_the_way"] for r in ours]) <= most
    else:
        return "", ""
    return bar, ("pass" if holds else "FAIL") if ours else ""


def _spread(times: Sequence[float]) -> str:
    """Milliseconds; no interpolation, since one of them may be infinite."""
    median, most = np.percentile(times, [50, 90], method="higher")
    return f"{median:.0f} ms median, {most:.0f} p90, {max(times):.0f} worst"


def main() -> int:
    parser = argparse.ArgumentParser(description="Ours and x264 over a network that loses datagrams.")
    parser.add_argument("--clips", type=Path, help="folder of films (default: the demo's moving portrait)")
    parser.add_argument("--limit", type=report.count, help="only so many clips, evenly chosen")
    parser.add_argument("--frames", type=report.count, default=250, help="of each clip (default: 250)")
    parser.add_argument("--kbps", type=report.rate, default=4.0)
    parser.add_argument("--x264-kbps", type=report.count, default=40, help="x264's rate (default: 40)")
    parser.add_argument("--codecs", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--random", nargs="*", type=float, default=RANDOM, metavar="SHARE")
    parser.add_argument("--bursts", nargs="*", type=float, default=BURSTS, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cores", type=report.count, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pack")
    parser.add_argument("--json", type=Path, help="write every figure here")
    options = parser.parse_args()
    machine = report.machine()
    if options.clips:
        paths = clips.find(options.clips)
        if options.limit:
            paths = [
                paths[i] for i in np.linspace(0, len(paths) - 1, min(options.limit, len(paths))).round().astype(int)
            ]
        footage = [clips.read(path, limit=options.frames, size=256) for path in paths]
    else:
        from neuralcodec.demo import moving_portrait

        footage = [clips.from_frames("astronaut", list(moving_portrait())[: options.frames])]
    runs = len(footage) * len(options.codecs) * (1 + len(options.random) + len(options.bursts))
    results = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Calling", total=runs)
        for clip in footage:
            for name in options.codecs:
                results.append(measure(clip, name, options, lambda: bar.advance(task)))
    frames = sum(len(clip.frames) for clip in footage)
    lossless = {
        name: {key: float(np.mean([r[key] for r in results if r["codec"] == name])) for key in FIGURES}
        for name in options.codecs
    }
    rows = summary(results, options)
    if options.json:
        whole = {
            "machine": machine, "pack": load_pack(options.pack).id.hex(), "clips": len(footage), "frames": frames,
            "seed": options.seed, "lossless": lossless, "table": rows, "results": results,
        }  # fmt: skip
        report.save(options.json, whole)
    table = Table("network", *options.codecs, "bar for ours, on the way", "", title=f"{len(footage)} clips, {frames} "
                  f"frames, one way {1000 * DELAY:.0f} ms + 0 to {1000 * JITTER:.0f} ms")  # fmt: skip
    table.add_row("no loss", *(f"{v['psnr']:.2f} dB, {v['kbps']:.1f} kbit/s, {v['wire_kbps']:.1f} with RTP/UDP/IP"
                               for v in lossless.values()))  # fmt: skip
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)
    return int(any(verdict == "FAIL" for *_, verdict in rows))


if __name__ == "__main__":
    report.run(main)

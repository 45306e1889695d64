"""What a codec costs besides bits: time, processor, memory and delay, measured in a fresh process per codec.

``python -m benchmarks.resources CODEC VIDEO [FRAMES]`` prints one line of JSON. Delay counts frames that the encoder
holds back before the first comes out: structure, not speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import clips, codecs, points, report
from benchmarks.cache import Cache, Entry
from benchmarks.points import Footage, Ours
from benchmarks.probe import peak_mb
from neuralcodec.errors import NeuralCodecError

FRAMES = 100
LOOK_SECONDS = 0.005


def of(names: Sequence[str], jobs: Sequence[Any], cache: Cache) -> list[dict[str, Any]]:
    """One line a codec, ours first, on the first clip of a run; kept in the cache by processor and library. To be asked
    for before the machine is made busy."""
    footage = jobs[0][0].footage
    packs = {s.codec: s for s, _ in jobs if isinstance(s, Ours) and s.frames_per_packet == 1}
    return [_kept(name, footage, cache, packs.get(name)) for name in (*packs, *names)]


def _kept(name: str, footage: Footage, cache: Cache, ours: Ours | None) -> dict[str, Any]:
    machine = report.machine()
    library = points.coder(ours.pack, "cpu") if ours else codecs.CODECS[name].library
    options = None if ours else codecs.CODECS[name].exact(_quality(name))
    what = {"codec": "resources", "of": name, "cpu": machine["cpu"], "library": library, "options": options,
            "clip": footage.facts.sha256}  # fmt: skip
    entry: Entry = cache.load(what)
    busy = report.busy(machine) != ""
    if not entry.coded or (entry.coded["busy"] and not busy):
        command = [sys.executable, "-m", "benchmarks.resources", name, str(footage.path)]
        if ours is not None and ours.pack is not None:
            command += ["--pack", ours.pack]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        if run.returncode:
            why = (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]
            raise NeuralCodecError(f"{name} could not be measured on {footage.path}: {why}")
        entry.coded = {**json.loads(run.stdout), "busy": busy}
        cache.save(entry)
    return {"codec": name, **entry.coded}


def _quality(name: str) -> int:
    """Full size and frame rate, the coarsest step: what comes nearest to our rates without leaving anything out."""
    return codecs.CODECS[name].variants[0][2][0]


@contextmanager
def programs() -> Iterator[list[float]]:
    """A list that holds, at the end, the peak memory in MB of the largest program that this process ran meanwhile.

    Looked at every few milliseconds, because getrusage gives a child its parent's peak; so does /proc until the child
    has become another program.
    """
    largest, done = [0.0], threading.Event()
    own = Path("/proc/self/exe")
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            for child in children.read_text().split():
                with suppress(OSError, StopIteration):  # it ended meanwhile
                    if not own.samefile(f"/proc/{child}/exe"):
                        largest[0] = max(largest[0], peak_mb(child))

    watcher = threading.Thread(target=watch)
    if children.exists():
        watcher.start()
    try:
        yield largest
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()


def measure(name: str, path: Path, pack: str | None) -> dict[str, Any]:
    """encode_ms, decode_ms: mean a frame. cpu_ms: processor time of both, a frame. peak_mb: peak memory of this process
    less what it held before coding, or of an encoder's own program if it has one and that is more. delay_frames: None
    when the encoder needs the whole clip."""
    clip = clips.read(path, limit=FRAMES)
    before, largest = peak_mb(), [0.0]
    cpu = cpu_seconds()
    start = time.perf_counter()
    if name.startswith("neuralcodec"):
        from benchmarks import ours

        sent = ours.send(clip, kbps=4.0, pack=pack, device="cpu", threads=1)
        encode, decode = sent.encode_ms, sent.decode_ms
        delay: int | None = next(frame for frame, size in enumerate(sent.bytes_until) if size)
    else:
        with programs() as largest:
            coded = codecs.code(codecs.CODECS[name], clip.frames, _quality(name))
        encode, decode, delay = coded.encode_ms, coded.decode_ms, coded.delay
    wall = time.perf_counter() - start
    return {
        "encode_ms": float(np.sum(encode)) / len(clip.frames),
        "decode_ms": float(np.sum(decode)) / len(clip.frames),
        "cpu_ms": 1000 * (cpu_seconds() - cpu) / len(clip.frames),
        "wall_ms": 1000 * wall / len(clip.frames),
        "peak_mb": max(peak_mb() - before, *largest),
        "delay_frames": delay,
        "needs_gpu": False,
    }


def cpu_seconds() -> float:
    """Of this process, all its threads, and programs it has run."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = arguments[arguments.index("--pack") + 1] if "--pack" in arguments else None
    print(json.dumps(measure(arguments[0], Path(arguments[1]), chosen)))

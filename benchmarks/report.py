"""How options enter a benchmark, and how results leave it: JSON with machine and versions, Markdown tables, contact
sheets. Measures nothing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from neuralcodec.encoder import WINDOWS
from neuralcodec.errors import NeuralCodecError
from neuralcodec.rate import RateControl
from neuralcodec.runtime.engine import write_whole
from neuralcodec.runtime.session import cores

Array = NDArray[Any]

BUSY_LOAD = 0.7  # of the last minute, before the measurement
PACKAGES = (
    "neuralcodec",
    "numpy",
    "av",
    "constriction",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "torchvision",
    "imageio-ffmpeg",
    "dlib-bin",
    "dlib",
    "face_recognition_models",
    "stlpips-pytorch",
    "lpips",
    "DISTS-pytorch",
)


def run(main: Callable[[], int | None]) -> None:
    """A benchmark as a command: what it cannot use is one sentence."""
    try:
        sys.exit(main())
    except (NeuralCodecError, OSError) as error:
        sys.exit(f"benchmarks.{Path(sys.argv[0]).stem}: {error}")


def count(text: str) -> int:
    """An option that is a number of things, at least one."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of 1 or more")
    return int(text)


def rate(text: str) -> float:
    """An option that is a target in kbit/s."""
    try:
        RateControl(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return float(text)


def window(text: str) -> float:
    """An option that is a number of seconds in which a call keeps its rate."""
    least, most = WINDOWS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(f"{text!r}; expected {least:g} to {most:g} seconds")
    return seconds


def machine() -> dict[str, Any]:
    """What a reader needs to repeat a figure: processor, cores this process may use, versions, commit."""
    return {
        "cpu": _cpu(),
        "cores_usable": cores(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "ffmpeg_libraries": {name: ".".join(map(str, v)) for name, v in av.library_versions.items()},
        "commit": _commit(),
    }


@cache
def versions() -> dict[str, str]:
    """Of the packages that can change a figure, where they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def busy(machine: dict[str, Any]) -> str:
    """A sentence to print beside speeds when other work ran at the start; empty when the machine was free."""
    load = machine["load_before"] or 0.0
    return f"The machine was busy (load {load}): do not quote the speeds." if load > BUSY_LOAD else ""


def pin(count: int) -> None:
    """Restrict this process, and threads it starts from now on, to the first ``count`` cores it has."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def save(path: Path, result: Any, *, lines: Sequence[str] = ()) -> None:
    """Write JSON in one step: a reader never sees half a file. lines: keys whose lists take one line an item, floats
    rounded to six significant digits (a thousand points stay readable, and small)."""
    text = json.dumps({k: v for k, v in result.items() if k not in lines}, indent=1, allow_nan=False, default=plain)
    for key in lines:
        items = ",\n  ".join(json.dumps(_rounded(item), allow_nan=False, default=plain) for item in result[key])
        text = f'{text[:-2]},\n "{key}": [\n  {items}\n ]\n}}'
    write_whole(path, (text + "\n").encode())


def load(path: Path, *keys: str) -> Any:
    """What a benchmark has written there, with at least these keys; SystemExit with one sentence for another file."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as problem:
        raise SystemExit(f"{path} cannot be read ({problem.strerror}); give a JSON file.") from None
    except ValueError:
        raise SystemExit(f"{path} is not JSON; give a file that one of the benchmarks wrote.") from None
    if keys and not (isinstance(found, dict) and set(keys) <= set(found)):
        raise SystemExit(f"{path} lacks {', '.join(keys)}; give a file that this benchmark wrote, or another name.")
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return {k: _rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; the first column is text, the others are right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def sheet(path: Path, rows: Sequence[Sequence[Array]]) -> None:
    """A PNG of equally large uint8 RGB pictures, row by row, with a thin grey line between them."""
    line = 4
    height, width = rows[0][0].shape[:2]
    shape = (len(rows) * (height + line) - line, max(map(len, rows)) * (width + line) - line, 3)
    canvas = np.full(shape, 128, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            top, left = y * (height + line), x * (width + line)
            canvas[top : top + height, left : left + width] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(canvas))


def png(picture: Array) -> bytes:
    """uint8 RGB (H, W, 3) as a PNG file."""
    context: Any = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = picture.shape[1], picture.shape[0], "rgb24"
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for part in (frame, None) for packet in context.encode(part))


def progress() -> Progress:
    """A progress bar on stderr, so that stdout carries only results."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def plain(value: Any) -> Any:
    """What JSON cannot hold as it is; for json.dumps(default=...)."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} does not belong in a result")


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, with a plus when files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""

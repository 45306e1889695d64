"""A clip's figures from its frames before and after: PSNR, MS-SSIM, VMAF, tremble. Knows no codec, no file format."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import FPS, chosen, looked_at, luma
from benchmarks.codecs import ffmpeg
from neuralcodec.quality import ms_ssim, psnr

Array = NDArray[Any]


def mean_psnr(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Mean of the frames' PSNR over RGB, dB."""
    return float(np.mean([psnr(a, b) for a, b in zip(before, after, strict=True)]))


def mean_ms_ssim(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Mean of the frames' MS-SSIM on luma."""
    return float(np.mean([ms_ssim(a, b) for a, b in zip(before, after, strict=True)]))


def vmaf(before: Sequence[Array], after: Sequence[Array], *, every: int = 1) -> float:
    """Mean VMAF of every ``every``-th frame.

    Model v0.6.1, made for 1080p at three heights: at 256x256 read it as a ranking. Motion is taken from both neighbours
    of a frame, and no other is handed over: of every eleventh that is a quarter of the film, and the same figure.
    """
    first = looked_at(len(before), every).start
    shown = [index for index in range(first, len(before)) if (index - first + 1) % every < 3]
    step = min(every, 3)
    height, width = before[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "vmaf.json")
        inputs: list[str] = []
        for name, film in (("after.rgb", after), ("before.rgb", before)):  # the filter takes the distorted one first
            _write_raw(Path(folder, name), [film[index] for index in shown])
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
            inputs += ["-framerate", str(FPS), "-i", name]
        graph = (
            "[0]format=yuv420p[a];[1]format=yuv420p[b];[a][b]libvmaf=log_fmt=json:n_threads=1:log_path=vmaf.json"
            f":n_subsample={step}"
        )
        run = subprocess.run(
            [ffmpeg(), "-v", "error", "-threads", "1", *inputs, "-lavfi", graph, "-f", "null", "-"],
            capture_output=True,
            check=False,
            cwd=folder,
        )
        if run.returncode:
            raise RuntimeError(f"ffmpeg could not compute VMAF: {run.stderr.decode(errors='replace').strip()}")
        frames_seen = json.loads(log.read_text())["frames"]
        return float(np.mean([frame["metrics"]["vmaf"] for frame in frames_seen if frame["frameNum"] % step == 0]))


def _write_raw(path: Path, frames: Sequence[Array]) -> None:
    """uint8 RGB frames one after the other, as ffmpeg's rgb24."""
    with path.open("wb") as file:
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)


@cache
def has_vmaf() -> bool:
    """Whether imageio-ffmpeg is installed and its program has the filter."""
    if not ffmpeg():
        return False
    filters = subprocess.run([ffmpeg(), "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
    return " libvmaf " in filters.stdout


def temporal(
    before: Sequence[Array], after: Sequence[Array], *, luma_before: Sequence[Array] | None = None
) -> dict[str, float]:
    """How a clip trembles, from second differences in time of luma: x[t-1] - 2 x[t] + x[t+1] is 0 for what stands still
    or changes evenly, and large for flicker, swimming and stutter.

    jitter: its root mean square in ``after`` over that in ``before``; 1 trembles as the camera did, under 1 less (a
    frozen picture: 0). temporal_error: root mean square of the difference of the two, in steps of 8-bit luma; 0 when
    every frame moved as the original did. luma_before: :func:`luma` of every frame of ``before``, if it is there.
    """
    sums = np.zeros(3)
    window: list[tuple[Array, Array]] = []
    for a, b in zip(luma_before or map(luma, before), map(luma, after), strict=True):
        window = [*window[-2:], (a, b)]
        if len(window) == 3:
            x, y = (window[0][i] - 2 * window[1][i] + window[2][i] for i in (0, 1))
            sums += [np.vdot(plane, plane) / plane.size for plane in (x, y, y - x)]
    count = max(len(before) - 2, 1)
    own, ours, apart = np.sqrt(sums / count)
    return {"jitter": float(ours / own) if own else float(ours > 0), "temporal_error": float(apart)}


def picture(before: Sequence[Array], after: Sequence[Array], *, every: int = 1) -> dict[str, float]:
    """psnr and ms_ssim of every ``every``-th frame."""
    pair = chosen(before, every), chosen(after, every)
    return {"psnr": mean_psnr(*pair), "ms_ssim": mean_ms_ssim(*pair)}

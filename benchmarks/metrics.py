"""A clip's figures from its frames before and after: PSNR, MS-SSIM, VMAF. Knows no codec and no file format."""

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

from benchmarks.clips import FPS
from benchmarks.codecs import ffmpeg
from neuralcodec.quality import ms_ssim, psnr

Array = NDArray[Any]


def mean_psnr(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Mean of the frames' PSNR over RGB, dB."""
    return float(np.mean([psnr(a, b) for a, b in zip(before, after, strict=True)]))


def mean_ms_ssim(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Mean of the frames' MS-SSIM on luma."""
    return float(np.mean([ms_ssim(a, b) for a, b in zip(before, after, strict=True)]))


def vmaf(before: Sequence[Array], after: Sequence[Array]) -> float:
    """Mean VMAF (model v0.6.1, made for 1080p at three heights: at 256x256 read it as a ranking). All frames count."""
    height, width = before[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "vmaf.json")
        inputs: list[str] = []
        for name, frames in (("after", after), ("before", before)):  # the filter takes the distorted one first
            path = Path(folder, f"{name}.rgb")
            path.write_bytes(b"".join(np.ascontiguousarray(frame).tobytes() for frame in frames))
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
            inputs += ["-framerate", str(FPS), "-i", str(path)]
        graph = "[0]format=yuv420p[a];[1]format=yuv420p[b];[a][b]libvmaf=log_fmt=json:n_threads=1:log_path=vmaf.json"
        run = subprocess.run(
            [ffmpeg(), "-v", "error", *inputs, "-lavfi", graph, "-f", "null", "-"],
            capture_output=True,
            check=False,
            cwd=folder,
        )
        if run.returncode:
            raise RuntimeError(f"ffmpeg could not compute VMAF: {run.stderr.decode(errors='replace').strip()}")
        return float(json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"])


@cache
def has_vmaf() -> bool:
    """Whether imageio-ffmpeg is installed and its program has the filter."""
    if not ffmpeg():
        return False
    filters = subprocess.run([ffmpeg(), "-hide_banner", "-filters"], capture_output=True, text=True, check=False)
    return " libvmaf " in filters.stdout


def clip_metrics(before: Sequence[Array], after: Sequence[Array], *, every: int = 1) -> dict[str, float]:
    """psnr and ms_ssim over every ``every``-th frame, vmaf over all frames where it can be had."""
    figures = {
        "psnr": mean_psnr(before[::every], after[::every]),
        "ms_ssim": mean_ms_ssim(before[::every], after[::every]),
    }
    if has_vmaf():
        figures["vmaf"] = vmaf(before, after)
    return figures

"""The footage of a benchmark: finding clips, reading them whole, hashing them. Knows no codec and no metric."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from neuralcodec.quality import LUMA

Array = NDArray[Any]

FPS = 25  # every clip is taken as 25 frames a second, whatever its file says, so that rates compare
SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".y4m"}


@dataclass(frozen=True)
class Clip:
    """name: the file's stem. frames: uint8 RGB (H, W, 3), all of one size. sha256: of the file, or of raw frames."""

    name: str
    frames: list[Array]
    sha256: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.frames[0].shape[:2]
        return width, height

    @cached_property
    def luma(self) -> list[Array]:
        """Of every frame, kept: every setting of every codec is compared with it."""
        return [luma(frame) for frame in self.frames]

    @property
    def seconds(self) -> float:
        return len(self.frames) / FPS


def luma(frame: Array) -> Array:
    """float32 (H, W), not rounded, of uint8 RGB (H, W, 3)."""
    return np.asarray(frame @ LUMA)


def looked_at(count: int, every: int) -> range:
    """Which of ``count`` frames every ``every``-th is, at least one, from the middle of the first stretch: a first
    frame, the key of whoever codes it, would stand in the sample far more often than in the film."""
    return range(min(every // 2, count - 1), count, every)


def chosen(frames: Sequence[Any], every: int) -> list[Any]:
    """Of these, those that are :func:`looked_at`."""
    return [frames[index] for index in looked_at(len(frames), every)]


def find(folder: Path) -> list[Path]:
    """Every video directly in the folder, sorted by name."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not a folder; give --clips a folder of video files.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder} holds no video file ({', '.join(sorted(SUFFIXES))}); give --clips another folder.")
    return paths


def read(path: Path, *, limit: int | None = None, size: int | None = None) -> Clip:
    """All frames of a file (the first ``limit``), resized to ``size`` x ``size`` with Lanczos when asked and needed."""
    frames: list[Array] = []
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                if limit is not None and len(frames) >= limit:
                    break
                side = {} if size is None else {"width": size, "height": size}
                frames.append(frame.reformat(format="rgb24", interpolation=Interpolation.LANCZOS, **side).to_ndarray())
    except (av.FFmpegError, OSError, IndexError) as error:  # IndexError: it has no video
        raise SystemExit(f"{path} cannot be read as a film ({error}); give a video file.") from error
    if not frames:
        raise SystemExit(f"{path} holds no frame.")
    return Clip(path.stem, frames, hashlib.sha256(path.read_bytes()).hexdigest())


def demo(folder: Path) -> Path:
    """The demo's moving portrait as a lossless file in ``folder``, written once."""
    from neuralcodec.demo import moving_portrait

    path = folder / "astronaut.mkv"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / "astronaut.part.mkv"
        frames = list(moving_portrait())
        with av.open(str(part), "w") as container:
            stream: Any = container.add_stream("libx264rgb", rate=FPS, options={"qp": "0", "preset": "fast"})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "rgb24"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode(None))
        part.replace(path)
    return path


def from_frames(name: str, frames: list[Array]) -> Clip:
    """A clip that no file holds, such as the astronaut demo."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).tobytes())
    return Clip(name, frames, digest.hexdigest())

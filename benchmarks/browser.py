"""A headless Chromium with a film for a camera, and `neuralcodec call` for it to visit: for benchmarks and tests.

Needs Chromium and its driver (Debian: apt-get install chromium chromium-driver) and selenium.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from neuralcodec.face import resize
from neuralcodec.motion import Array

CAMERA = (640, 480)  # pixels of the film that plays the camera
START_SECONDS = 60
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--autoplay-policy=no-user-gesture-required",
    # a page that nobody looks at must not be slowed down: several tabs are measured at once
    "--disable-background-timer-throttling", "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
)  # fmt: skip


def missing() -> str:
    """What is not installed here, "" when everything is."""
    lacks = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    for module in ("selenium", "aiortc", "aiohttp"):
        try:
            __import__(module)
        except ImportError:
            lacks.append(module)
    return ", ".join(lacks)


def write_camera(path: Path, pictures: Iterable[Array]) -> None:
    """Square pictures, uint8 RGB, as an .mjpeg film that Chromium plays as its camera: in the middle of CAMERA."""
    width, height = CAMERA
    with av.open(str(path), "w", format="mjpeg") as film:
        stream = film.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 3
        for picture in pictures:
            square = resize(picture, height, height)
            edge = (width - height) // 2
            frame = np.concatenate(
                [square[:, :1].repeat(edge, 1), square, square[:, -1:].repeat(width - height - edge, 1)], 1
            )
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        film.mux(stream.encode(None))


@contextmanager
def chromium(camera: Path | None, *, size: tuple[int, int] = (1280, 1000), flags: Sequence[str] = ()) -> Iterator[Any]:
    """A selenium driver. camera: a film to play as the camera (permission is given); None: no camera at all."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        given = [*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", *flags]
        if camera is not None:
            given += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
            given += [f"--use-file-for-fake-video-capture={camera}"]
        for flag in given:
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            driver.set_script_timeout(60)
            yield driver
        finally:
            driver.quit()


def processor_seconds(pid: int) -> float:
    """What a process and all that it has started have used so far (Linux)."""
    used: dict[int, float] = {}
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        used[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        parents[int(stat.parent.name)] = int(fields[1])

    def within(child: int) -> bool:
        return child == pid or (child in parents and within(parents[child]))

    return sum(seconds for child, seconds in used.items() if within(child))


class CallProcess:
    """`neuralcodec call` in a process of its own. Context manager; ``address`` is what it printed."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "neuralcodec", "call", "--port", str(port), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            self.process.wait(START_SECONDS)
            assert self.process.stderr is not None
            raise RuntimeError(f"neuralcodec call did not start: {line}{self.process.stderr.read()}")
        self.address = found[0]

    def __enter__(self) -> CallProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> str:
        """Ask it to end, wait, and return what it said on stderr."""
        if self.process.poll() is None:
            self.process.terminate()
        _, said = self.process.communicate(timeout=START_SECONDS)
        return said

    @property
    def memory(self) -> int:
        """Resident bytes (Linux)."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

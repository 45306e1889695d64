"""Yourself through the codec, in a window, beside the rate. Needs a camera, and Tk, which most Pythons bring.

    python examples/webcam_loopback.py --kbps 4
    python examples/webcam_loopback.py --source talk.mp4      # a film in place of the camera
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

import neuralcodec as nc

FPS = 25
CAMERAS = {"Linux": ("v4l2", "/dev/video0"), "Darwin": ("avfoundation", "default"), "Windows": ("dshow", "video=0")}


def pictures(source: str | None) -> Iterator[tuple[int, Any]]:
    """(pts, picture) on a grid of FPS a second: of the camera, or of a film at its own pace."""
    form, name = CAMERAS.get(platform.system(), CAMERAS["Linux"])
    try:
        video = av.open(source or name, format=None if source else form)
    except (OSError, av.FFmpegError) as error:
        what = source or "The camera"
        raise SystemExit(f"{what} cannot be opened ({error}); --source takes a film instead.") from None
    if not video.streams.video:
        raise SystemExit(f"{source} holds no video.")
    start, last, first = time.monotonic(), -1, None
    with video:
        for frame in video.decode(video.streams.best("video")):
            assert isinstance(frame, av.VideoFrame)
            if source:
                seconds = float(frame.time or 0.0)
                first = seconds if first is None else first  # films need not begin at 0
                time.sleep(max(0.0, start + seconds - first - time.monotonic()))
            pts = int((time.monotonic() - start) * FPS)
            if pts > last:  # a camera that is faster, or a codec that is slower, than FPS
                last = pts
                yield pts, frame  # and no array: it says how telephones were held


def main() -> None:
    parser = argparse.ArgumentParser(description="See yourself through the codec.")
    parser.add_argument("--source", help="a film or a device (default: the first camera)")
    parser.add_argument("--kbps", type=float, default=4.0)
    parser.add_argument("--frames", type=int, default=0, help="stop after so many (default: never)")
    parser.add_argument("--no-window", action="store_true", help="only count")
    options = parser.parse_args()

    encoder = nc.Encoder(options.kbps, time_base=Fraction(1, FPS))
    decoder = nc.Decoder()
    window = None if options.no_window else Window()
    for pts, image in pictures(options.source):
        for packet in encoder.encode(image, pts):
            for frame in decoder.decode(bytes(packet)):
                if window is not None and not window.show(frame.image):
                    return
        seconds = (pts + 1) / FPS
        print(f"\r{pts:6}  {encoder.stats.bytes_total * 8 / 1000 / seconds:6.2f} kbit/s", end="", flush=True)
        if encoder.stats.frames == options.frames:
            break
    print(f"\n{decoder.stats.frames} of {encoder.stats.frames} frames shown")


class Window:
    """Pictures in a Tk window."""

    def __init__(self) -> None:
        try:
            import tkinter

            self._root = tkinter.Tk()
        except Exception as error:  # no Tk, or no display
            raise SystemExit(f"No window can be opened ({error}); --no-window only counts.") from None
        self._tk = tkinter
        self._root.title("neuralcodec")
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._open = True
        self._root.protocol("WM_DELETE_WINDOW", self._close)

    def show(self, image: Any) -> bool:
        """False once the window was closed."""
        if self._open:
            height, width = image.shape[:2]
            self._photo = self._tk.PhotoImage(data=b"P6 %d %d 255 " % (width, height) + image.tobytes())
            self._label.configure(image=self._photo)
            self._root.update()
        return self._open

    def _close(self) -> None:
        self._open = False
        self._root.destroy()


if __name__ == "__main__":
    try:
        main()
    except (nc.NeuralCodecError, ValueError) as error:  # the latter: a rate that there is not, a film that is broken
        raise SystemExit(str(error)) from None

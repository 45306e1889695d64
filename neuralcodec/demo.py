"""A demonstration without a file or a network: a bundled portrait is made to move, coded, and shown beside x264.

The portrait is scikit-image's ``astronaut``: Eileen Collins, NASA, public domain. The movement is a warp of that one
photograph (camera, head, lids, brows, jaw), so that the figures say what the codec costs, not how it does on real film.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from .errors import BackendUnavailableError, MediaError
from .face import resize
from .media import VideoWriter, check_output, exact_rgb, output_path, read_frames, reason
from .motion import Array
from .pack import Pack
from .quality import ms_ssim, psnr
from .video import FileStats, Progress, decode_file, encode_file

SIZE, FPS = 256, 25
CAPTION = 24  # pixels above each picture
COLUMNS = 6  # moments shown in demo.png
# Where things are in the 512 x 512 photograph, pixels.
CENTER, SIDE = (226.0, 126.0), 210.0  # the head-and-shoulders square
NOSE, HEAD_RADII = (226.0, 118.0), (82.0, 108.0)
EYES = ((202.5, 101.0), (246.5, 103.5))
MOUTH = (223.0, 149.5)  # middle of the lower edge of the upper teeth


def moving_portrait(seconds: float = 6.0) -> Iterator[Array]:
    """Frames of the clip, uint8 RGB (256, 256, 3), at 25 a second. Any length; the movement repeats after a minute."""
    try:
        from scipy.ndimage import map_coordinates, zoom
        from skimage.data import astronaut
    except ImportError as error:
        raise BackendUnavailableError('The demo needs scikit-image; run: pip install "neuralcodec[demo]"') from error
    photograph = astronaut()[..., :3].astype(np.float32)
    # enlarged once with cubic splines, so that each frame can be sampled linearly, which is five times faster
    channels = [zoom(photograph[..., c], 2, order=3) for c in range(3)]
    finer = (2 * 512 - 1) / (512 - 1)
    for index in range(max(1, round(seconds * FPS))):
        x, y, gap = _source_points(index / FPS)
        samples = [map_coordinates(c, [y * finer, x * finer], order=1, mode="nearest") for c in channels]
        picture = np.stack(samples, -1)
        picture += gap[..., None] * (np.array([58.0, 22.0, 24.0], np.float32) - picture)  # the dark between the teeth
        yield np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _source_points(t: float) -> tuple[Array, Array, Array]:
    """Where each pixel of the frame at ``t`` seconds comes from in the photograph, and how much it shows the mouth's
    inside: x, y, gap, each (256, 256). Warps run backwards: camera first, expression last.
    """
    row, column = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    u, v = (column + 0.5) / SIZE * 2 - 1, (row + 0.5) / SIZE * 2 - 1
    x, y = _camera(u, v, t)
    x, y = _head(x, y, t)
    y = _brows(x, y, t)
    y = _lids(x, y, t)
    return x, *_jaw(x, y, t)


def _camera(u: Array, v: Array, t: float) -> tuple[Array, Array]:
    """Pan, zoom, roll and keystone of a camera held by hand."""
    keystone = 1 + 0.035 * np.sin(0.9 * t) * u + 0.025 * np.sin(0.7 * t + 1) * v
    u, v = u / keystone, v / keystone
    angle, zoom = 0.02 * np.sin(0.8 * t), 1 + 0.03 * np.sin(0.6 * t)
    cos, sin = np.cos(angle) * zoom * SIDE / 2, np.sin(angle) * zoom * SIDE / 2
    pan_x, pan_y = 3.5 * np.sin(0.5 * t), 2.0 * np.sin(0.75 * t)
    return CENTER[0] + pan_x + cos * u - sin * v, CENTER[1] + pan_y + sin * u + cos * v


def _head(x: Array, y: Array, t: float) -> tuple[Array, Array]:
    """Turn, nod and tilt: near parts (a smooth bump around the nose) move further than far ones."""
    across, down = (x - NOSE[0]) / HEAD_RADII[0], (y - NOSE[1]) / HEAD_RADII[1]
    near = np.clip(1 - across**2 - down**2, 0, 1) ** 1.5
    whole = np.exp(-((across / 1.25) ** 4) - ((y - 95) / 120) ** 4)  # head and hair, fading into the shoulders
    turn = 9.0 * np.sin(1.3 * t) + 2.0 * np.sin(3.1 * t)
    nod = 5.5 * np.sin(1.7 * t + 0.6) + 1.5 * np.sin(3.7 * t)
    tilt = 0.035 * np.sin(1.1 * t + 0.3)
    return (
        x - turn * near - 0.25 * turn * whole - tilt * whole * (y - 190),
        y - nod * near - 0.2 * nod * whole + tilt * whole * (x - NOSE[0]),
    )


def _brows(x: Array, y: Array, t: float) -> Array:
    """Brows go up now and then."""
    lift = 3.0 * max(0.0, float(np.sin(1.9 * t - 1.2))) ** 2
    return y + lift * np.exp(-(((x - 225) / 48) ** 4) - ((y - 87) / 9) ** 2)


def _lids(x: Array, y: Array, t: float) -> Array:
    """Two blinks every 4.6 s: the skin above the eye is drawn down over it."""
    shut = max(np.exp(-(((t % 4.6) - moment) / 0.075) ** 2) for moment in (1.3, 3.7))
    for eye_x, eye_y in EYES:
        across = (x - eye_x) / 11
        close = shut * np.clip(1.6 - 1.6 * across**2, 0, 1)
        top, upper, lower = eye_y - 9, eye_y - 4.5 + 3 * across**2, eye_y + 4.5 - 2 * across**2
        lid = upper + close * (lower - upper)
        inside = (np.abs(across) < 1) & (y > top) & (y < lid)
        y = np.where(inside, top + (y - top) * (upper - top) / np.maximum(lid - top, 1e-3), y)
    return y


def _jaw(x: Array, y: Array, t: float) -> tuple[Array, Array]:
    """The mouth opens and shuts as in speech: lower lip, chin and jaw go down, a dark gap opens under the teeth."""
    speech = 0.55 + 0.45 * np.sin(11.3 * t) * np.sin(4.1 * t + 0.5)
    opening = 6.5 * np.clip(speech - 0.25, 0, 1) * np.clip(np.sin(0.85 * t) * 3, 0, 1)
    across = (x - MOUTH[0]) / 22
    seam = MOUTH[1] - 8 * across**2
    drop = opening * np.exp(-((x - MOUTH[0]) / 16) ** 2)
    gap = np.clip(y - seam, 0, 1) * np.clip(seam + drop - y, 0, 1) * np.clip(3 - 3 * np.abs(across), 0, 1)
    fade = 1 - np.clip((y - 168) / 34, 0, 1) ** 2 * (3 - 2 * np.clip((y - 168) / 34, 0, 1))  # gone at the collar
    below = y > seam + drop
    return np.where(below, y - drop * fade, np.minimum(y, np.where(y > seam, seam, y))), gap


# --- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One codec's figures, means over the clip's frames."""

    name: str
    kbps: float
    psnr: float
    ms_ssim: float


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration measured and wrote. ``stage_ms``: mean per frame."""

    frames: int
    rows: tuple[Row, Row]
    stage_ms: dict[str, float]
    provider: str
    video: Path
    picture: Path


def run_demo(
    out: str | Path = "neuralcodec-demo",
    *,
    seconds: float = 6.0,
    target_kbps: float = 4.0,
    pack: str | Path | Pack | None = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Code the moving portrait with neuralcodec and x264 and write demo.ncv, demo.mp4 and demo.png to ``out``."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"Cannot make the folder {folder}: {reason(error)}.") from error
    names = ("demo.ncv", "demo.mp4", "demo.png")
    for name in names:
        check_output(folder / name, overwrite=overwrite)
    try:
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".demo.")
    except OSError as error:
        raise MediaError(f"Cannot write into the folder {folder}: {reason(error)}.") from error
    with scratch:
        work = Path(scratch.name)
        with VideoWriter(work / "clip.mp4", SIZE, SIZE, Fraction(1, FPS)) as writer:
            for index, image in enumerate(moving_portrait(seconds)):
                writer.write(image, index)
        sent = encode_file(
            work / "clip.mp4", work / "demo.ncv", target_kbps=target_kbps, pack=pack, device=device, threads=threads,
            progress=progress,
        )  # fmt: skip
        shown = decode_file(
            work / "demo.ncv", work / "decoded.mp4", pack=pack, device=device, threads=threads, progress=progress
        )
        x264 = _X264(_Clip(work / "clip.mp4", sent.frames), sent.kbps)
        rows = _compare(work, sent, x264)
        for name in names:
            with output_path(folder / name, overwrite=overwrite) as temporary:
                shutil.move(work / name, temporary)
    stages = {f"send: {name}": spent for name, spent in sent.stage_ms.items()}
    stages |= {f"receive: {name}": spent for name, spent in shown.stage_ms.items()}
    return DemoResult(sent.frames, rows, stages, sent.provider, folder / "demo.mp4", folder / "demo.png")


def _compare(work: Path, sent: FileStats, x264: _X264) -> tuple[Row, Row]:
    """Measure both codecs against the clip, frame by frame, and draw the two results."""
    rates = sent.kbps, x264.kbps
    titles = ["original", f"neuralcodec {rates[0]:.1f} kbit/s", f"x264 {rates[1]:.1f} kbit/s"]
    figures: list[list[float]] = []  # a frame: ours, theirs; of each PSNR, MS-SSIM
    kept: list[Array] = []
    chosen = set(np.linspace(0, sent.frames - 1, COLUMNS).round().astype(int).tolist())
    films = (
        (image for _, image in read_frames(work / "clip.mp4")),
        (image for _, image in read_frames(work / "decoded.mp4")),
        x264.frames,
    )
    banner = np.concatenate([_caption(title, SIZE) for title in titles], axis=1)  # (CAPTION, 3 SIZE, 3)
    with VideoWriter(work / "demo.mp4", 3 * SIZE, SIZE + CAPTION, Fraction(1, FPS)) as writer:
        for index, (original, ours, theirs) in enumerate(zip(*films, strict=True)):
            ours = resize(ours, SIZE, SIZE)
            figures.append([measure(original, shown) for shown in (ours, theirs) for measure in (psnr, ms_ssim)])
            row = np.concatenate([original, ours, theirs], axis=1)  # (SIZE, 3 SIZE, 3)
            writer.write(np.concatenate([banner, row]), index)
            if index in chosen:
                kept.append(row)
    _draw(work / "demo.png", titles, kept)
    mean = np.mean(figures, axis=0)
    return Row("neuralcodec", rates[0], *map(float, mean[:2])), Row("x264", rates[1], *map(float, mean[2:]))


@dataclass(frozen=True)
class _Clip:
    """The frames of a film, read anew by all who go through them: ten minutes of them are three gigabytes."""

    path: Path
    frames: int

    def __iter__(self) -> Iterator[Array]:
        return (image for _, image in read_frames(self.path))

    def __len__(self) -> int:
        return self.frames


class _X264:
    """The clip in x264 for at most ``kbps``, as a call runs it (low delay, one key frame): free to shrink its pictures
    to half and to leave out every other frame, it takes what shows the most. Where even the coarsest quantizer takes
    more, that. Its bytes are counted kindly: neither the container nor the encoder's signature (SEI) are in them.
    """

    OPTIONS = {"preset": "slow", "tune": "psnr,zerolatency", "x264-params": "keyint=infinite:scenecut=0"}
    WAYS = ((SIZE, 1), (SIZE // 2, 1), (SIZE // 2, 2))  # side of a picture; frames it is shown
    FINEST, COARSEST = 20, 51

    def __init__(self, images: Sequence[Array] | _Clip, kbps: float) -> None:
        self._count = len(images)
        found = [(self._finest(images, kbps, *way), way[1]) for way in self.WAYS]
        rates = [self._kbps(packets, self._count) for packets, _ in found]
        fit = [way for way, rate in zip(found, rates, strict=True) if rate <= kbps] or [found[int(np.argmin(rates))]]
        self.packets, self._hold = max(fit, key=lambda way: float(np.mean(list(map(psnr, images, self._shown(*way))))))
        self.kbps = self._kbps(self.packets, self._count)

    @property
    def frames(self) -> Iterator[Array]:
        """Of the clip, as they are shown."""
        return self._shown(self.packets, self._hold)

    def _finest(self, images: Iterable[Array], kbps: float, side: int, hold: int) -> list[bytes]:
        """Packets of the finest quality that takes no more, of this way; of the coarsest if none does."""
        low, high = self.FINEST, self.COARSEST
        while low < high:
            middle = (low + high) // 2
            fits = self._kbps(self._coded(images, middle, side, hold), self._count) <= kbps
            low, high = (low, middle) if fits else (middle + 1, high)
        return self._coded(images, low, side, hold)

    def _shown(self, packets: Sequence[bytes], hold: int) -> Iterator[Array]:
        coder = av.CodecContext.create("h264", "r")
        shown = (
            resize(exact_rgb(frame), SIZE, SIZE)
            for packet in [*map(av.Packet, packets), None]
            for frame in coder.decode(packet)
        )
        return islice((image for image in shown for _ in range(hold)), self._count)

    def _coded(self, images: Iterable[Array], crf: int, side: int, hold: int) -> list[bytes]:
        coder = av.CodecContext.create("libx264", "w")
        coder.width = coder.height = side
        coder.pix_fmt, coder.time_base, coder.framerate = "yuv420p", Fraction(hold, FPS), Fraction(FPS, hold)
        coder.options = {**self.OPTIONS, "crf": str(crf)}
        coder.thread_count = 1  # more threads cut each picture into slices, which costs x264 a third more bits here
        packets: list[bytes] = []
        for index, image in enumerate(islice(images, 0, None, hold)):
            small = resize(image, side, side)
            frame = av.VideoFrame.from_ndarray(small, format="rgb24").reformat(format="yuv420p")
            frame.pts = index
            packets += [bytes(packet) for packet in coder.encode(frame)]
        return packets + [bytes(packet) for packet in coder.encode(None)]

    @staticmethod
    def _kbps(packets: Sequence[bytes], frames: int) -> float:
        joined = (packet.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01") for packet in packets)
        units = [unit for packet in joined for unit in packet.split(b"\x00\x00\x01") if unit]
        return sum(len(unit) for unit in units if unit[0] & 31 != 6) * 8 / 1000 * FPS / frames


# --- drawing ---------------------------------------------------------------------------------------------------------


def _caption(text: str, width: int) -> Array:
    """A strip (CAPTION, width, 3) with white words on black."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (width, CAPTION))
    ImageDraw.Draw(strip).text((8, 3), text, fill=(255, 255, 255), font=ImageFont.load_default(15))
    return np.asarray(strip)


def _draw(path: Path, titles: list[str], kept: list[Array]) -> None:
    """One row of pictures for each film, one column for each kept moment."""
    from PIL import Image

    strips = []
    for index, title in enumerate(titles):
        pictures = [moment[:, index * SIZE : (index + 1) * SIZE] for moment in kept]
        strips += [_caption(title, SIZE * len(kept)), np.concatenate(pictures, axis=1)]
    Image.fromarray(np.concatenate(strips)).save(path, format="PNG")

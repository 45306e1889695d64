"""Video files in and out: read any, write mp4, at exact times and never half. Knows films and disks, no codec of ours.

Sound is not carried. Pictures are uint8 RGB (H, W, 3); a pts is an integer count of ``time_base`` seconds. Output goes
to a temporary name and is renamed at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from .errors import MediaError
from .motion import Array
from .packet import DIMENSION_MAX, TIME_MAX

WRITABLE = (".mp4", ".m4v", ".mov")  # containers that keep any time base exactly
GRAY = "gray", "ya", "mono"  # how the names of pixel formats begin that have no colour
SHORT = 50  # characters of a file's name that its temporary name keeps
TIMING_PACKETS = 240  # looked at to find the nominal frame duration
SHAPES = 0.05  # of width by height: pictures that differ less are stretched to the first one's, others get bars
PIXEL_SHAPES = (0.25, 4.0)  # width by height; beyond them a file's word is no use
CLEAR_TICKS = 8  # of a file's clock between frames, from which on stamps within one of the rate's prove that rate
ENDS_WITHIN = Fraction(1, 2)  # seconds by which a film may end before its announced end: nobody counts exactly
MATROSKA_LENGTH = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)$")
HDR_CURVES = (16, 18)  # PQ and HLG, as FFmpeg numbers transfer curves
HD_HEIGHT = 720  # untagged pictures this high are BT.709, lower ones BT.601, as players assume
# SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT, for FFmpeg's way from YUV to RGB, which else rounds down: pictures come out a
# whole grey level darker. For small ones that are compared; of 1280 x 720 it takes 12 ms a frame in place of 0.4.
EXACT_RGB = 0x40000 | 0x2000
X264 = {"crf": "14", "preset": "veryfast"}  # visually lossless next to what the codec costs; 1 ms a frame at 256 x 256


@contextlib.contextmanager
def output_path(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; renamed when the block ends well, removed on any exception. A link
    stays one, to the new file."""
    target = Path(path)
    check_output(target, overwrite=overwrite)
    file = Path(os.path.realpath(target))
    # a name may be of 255 bytes, of which a character takes up to four
    temporary = file.with_name(f".{file.name[:SHORT]}.{os.getpid()}.{token_hex(4)}.part")
    try:
        yield temporary
        os.replace(temporary, file)
    except OSError as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"Cannot write {target}: {reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a target that exists (without ``overwrite``), is no plain file, or has no folder."""
    target = Path(path)
    folder = Path(os.path.realpath(target)).parent
    try:
        there, exists, plain = folder.is_dir(), target.exists(), target.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise MediaError(f"Cannot write {target}: {reason(error)}.") from error
    if not there:
        raise MediaError(f"Cannot write {target}: the folder {folder} does not exist.")
    if exists and not plain:
        raise MediaError(f"Cannot write {target}: it is not a plain file.")
    if exists and not overwrite:
        raise MediaError(f"{target} exists already; -f (overwrite=True) replaces it.")


def check_input(path: str | Path, what: str) -> None:
    """Refuse what is no file on a disk: a folder, or a pipe, which cannot be read twice and may never speak."""
    source = Path(path)
    try:
        exists, folder, plain = source.exists(), source.is_dir(), source.is_file()
    except OSError as error:
        raise MediaError(f"Cannot read {source}: {reason(error)}.") from error
    if not exists:
        raise MediaError(f"{source} does not exist.")
    if folder:
        raise MediaError(f"{source} is a folder; {what} was expected.")
    if not plain:
        raise MediaError(f"{source} is a pipe or a device; {what} was expected: save it as a file first.")


def read_frames(path: str | Path) -> Iterator[tuple[int, Array]]:
    """(pts, picture) of every frame of a video file; the file is closed at the end. See :class:`VideoReader`."""
    with VideoReader(path) as reader:
        yield from reader


class VideoReader:
    """Iterates (pts, uint8 RGB (H, W, 3)) of a file's video stream, one frame in memory at a time: of several
    the first that it marks as its default, or else the first; a cover picture only where there is no other.

    Rotation and mirror metadata are honoured, pixels are made square, interlaced frames whole, HDR (PQ, HLG) BT.709,
    and what is transparent white. Every picture has the size of the first, between bars where its shape is another. pts
    rise strictly: where a file's own begin anew, they go on a frame after the last. Where a constant rate was rounded
    to a coarse clock (30 fps in Matroska's milliseconds), they count frames of that rate.
    ``time_base`` is seconds per pts unit, ``frame_duration`` the most common step between frames in those units,
    ``frames`` the count the file announces or 0, ``announced_s`` its seconds or 0, ``gray`` whether it has no colour,
    ``damaged`` how many pieces are not whole: shown as far as they can be, or left out.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.damaged = self._start = self._end = 0
        stamps = self._stamps()
        self._container = self._open()
        self._stream = _film(self._container)
        self._stream.thread_type = "AUTO"
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 1000)
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.frame_duration = min(max(1, _usual_step(stamps) or round(1 / (rate * self.time_base))), TIME_MAX)
        self.frames = self._stream.frames
        self._announced = self._length()
        self._ticks, self._base = Fraction(1), 0  # of the file's clock in a unit of pts; on it, the first frame
        if _rounded(stamps, ticks := 1 / (rate * self.time_base)):
            self._ticks, self._base, self.time_base, self.frame_duration = ticks, stamps[0], 1 / rate, 1
        self.gray = (self._stream.codec_context.pix_fmt or "").startswith(GRAY)
        shape = self._stream.sample_aspect_ratio or Fraction(1)
        self._pixel_shape = shape if PIXEL_SHAPES[0] <= shape <= PIXEL_SHAPES[1] else Fraction(1)
        self._tones = VideoReformatter()
        self.width = self.height = 0  # known once the first frame is decoded, rotated
        self._frames = self._decode()
        self._ahead: list[tuple[int, Array]] = []
        try:
            self._ahead.append(next(self._frames))
        except StopIteration:
            self.close()
            raise MediaError(f"{self.path} holds no frames that can be decoded.") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; iteration ends."""
        self._container.close()

    def __iter__(self) -> Iterator[tuple[int, Array]]:
        while self._ahead:
            yield self._ahead.pop()
            self._ahead.extend(next_ for next_ in [next(self._frames, None)] if next_ is not None)

    @property
    def announced_s(self) -> float:
        return float(self._announced)

    @property
    def missing_s(self) -> float:
        """After the last frame: seconds between it and the end that the file announces, 0 where they agree."""
        # some containers count from 0 and some from the first frame
        missing = self._announced - self.time_base * (self._end - min(0, self._start))
        return float(missing) if missing > ENDS_WITHIN + self.time_base * self.frame_duration else 0.0

    def _open(self) -> av.container.InputContainer:
        check_input(self.path, "a video file")
        try:
            # absolute: FFmpeg takes what stands before a colon in "12:30.mp4" for a protocol
            container = av.open(str(self.path.absolute()), metadata_errors="replace")
        except (OSError, av.FFmpegError, ValueError) as error:
            raise MediaError(f"{self.path} is not a video that can be read: {reason(error)}.") from error
        if not container.streams.video:
            container.close()
            raise MediaError(f"{self.path} holds no video.")
        return container

    def _stamps(self) -> list[int]:
        """pts of the first packets, rising. Nothing is decoded."""
        with self._open() as container:
            stamps: list[int] = []
            with contextlib.suppress(av.FFmpegError):
                for packet in container.demux(_film(container)):
                    if packet.pts is not None:
                        stamps.append(packet.pts)
                    if len(stamps) == TIMING_PACKETS:
                        break
        return sorted(stamps)

    def _length(self) -> Fraction:
        """What the file announces, in seconds; the least where it says several things, 0 where it says nothing."""
        said = [self._stream.duration * self.time_base] if self._stream.duration else []
        if self._container.duration:
            said.append(Fraction(self._container.duration, av.time_base))  # of the sound, if that is longer
        for name, text in self._stream.metadata.items():
            if name.startswith("DURATION") and (tag := MATROSKA_LENGTH.match(text)):  # a language may be added to it
                hours, minutes, seconds = map(Fraction, tag.groups())
                said.append(3600 * hours + 60 * minutes + seconds)
        return min(said, default=Fraction())

    def _decode(self) -> Iterator[tuple[int, Array]]:
        last: int | None = None
        newest = shift = 0  # of the file's own stamps, and what is added to them
        for frame, following in pairwise(chain(whole_frames(self._raw_frames()), [None])):
            assert frame is not None
            try:
                image = self._picture(frame)
            except av.FFmpegError as error:
                found = f"{self.path} holds pictures in the format {frame.format.name}, which cannot be read"
                raise MediaError(f"{found} ({reason(error)}): convert it to yuv420p first.") from error
            said, then = (None if f is None or f.pts is None else self._counted(f.pts) for f in (frame, following))
            if said is not None and then is not None and last is not None and then > newest:
                if max(newest - said, said - then) >= self.frame_duration:  # it alone is out of place
                    said = None
            if last is None:
                pts = newest = self._start = said or 0
            else:
                stamp = last + self.frame_duration - shift if said is None else said
                if newest - stamp >= self.frame_duration:  # two films in one file, or stamps after frames without
                    newest, shift = stamp, last + self.frame_duration - stamp
                newest = max(newest, stamp)
                pts = max(stamp + shift, last + 1)  # a stamp that is there twice keeps its place
            last = pts
            self._end = pts + max(self.frame_duration, round((frame.duration or 0) / self._ticks))
            yield pts, image

    def _counted(self, stamp: int) -> int:
        """In units of ``time_base``."""
        return round((stamp - self._base) / self._ticks) + round(self._base / self._ticks)

    def _raw_frames(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file ends in the middle of something
                self.damaged += 1
                packet = None
            broken = packet is not None and packet.is_corrupt
            try:
                for frame in self._stream.decode(packet):
                    broken |= frame.is_corrupt
                    yield frame
            except av.FFmpegError:
                broken = True
            self.damaged += broken
            if packet is None or (
                packet.size == 0 and packet.pts is None and packet.dts is None
            ):  # the demuxer's flush
                return

    def _picture(self, frame: av.VideoFrame) -> Array:
        untagged = int(frame.colorspace) == 2
        matrix = "ITU709" if untagged and frame.height >= HD_HEIGHT else None
        size = (self.width, self.height) if _turns(frame) % 2 == 0 else (self.height, self.width)
        own = width, height = self._square_width(frame), frame.height
        if self.width:
            width, height = size if _alike(own, size) else _within(own, size)
        kind = _rgb(frame)
        if int(frame.color_trc) in HDR_CURVES:
            # to BT.709, bright parts pressed together; one converter for all frames, as its tables take seconds
            frame = self._tones.reformat(
                frame, width, height, kind, interpolation="BICUBIC", dst_color_trc=1, dst_color_primaries=1
            )
        else:
            frame = frame.reformat(width, height, kind, src_colorspace=matrix, interpolation="BICUBIC")
        image = _on_white(upright(frame, frame.to_ndarray()))
        if self.width and image.shape[:2] != (self.height, self.width):  # a film that turns, as telephones make them
            bars, inner = np.zeros((self.height, self.width, *image.shape[2:]), image.dtype), image.shape[:2]
            y, x = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
            bars[y : y + inner[0], x : x + inner[1]] = image
            image = bars
        self.height, self.width = image.shape[:2]
        return image

    def _square_width(self, frame: av.VideoFrame) -> int:
        """That of the frame where its pixels are made square; even where that changes it, as players want it."""
        width = round(frame.width * self._pixel_shape)
        return frame.width if width == frame.width else max(2, 2 * round(frame.width * self._pixel_shape / 2))


class VideoWriter:
    """Writes pictures of one size to an mp4 (H.264) at exact times. Use as a context manager: leaving it well gives the
    file its name, leaving it with an exception leaves nothing.

    Sizes with an odd side are coded in 4:4:4, which keeps them exact (4:2:0 cannot).
    """

    def __init__(
        self, path: str | Path, width: int, height: int, time_base: Fraction, *, frame_duration: int = 1,
        overwrite: bool = False,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        if self.path.suffix.lower() not in WRITABLE:
            raise MediaError(f"Cannot write {self.path}: the name must end in {', '.join(WRITABLE)}.")
        if time_base <= 0 or frame_duration <= 0:
            raise MediaError(f"Frames of {frame_duration} x {time_base} seconds cannot be written; both are above 0.")
        if max(time_base.numerator, time_base.denominator) > TIME_MAX:
            raise MediaError(f"A time base of {time_base} seconds is finer than a video file can carry.")
        self.size = (width, height)
        self.frames = self._shift = 0
        self._closed = False
        self._time_base, self._duration = time_base, frame_duration
        self._cleanup = contextlib.ExitStack()
        temporary = self._cleanup.enter_context(output_path(self.path, overwrite=overwrite))
        try:
            self._open(temporary)
        except BaseException as error:
            self._leave(error)
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._leave(error)

    def write(self, image: Array, pts: int) -> None:
        """Append a uint8 RGB (height, width, 3) picture; pts must rise. A film starts at 0 or later: others move."""
        if image.shape != (self.size[1], self.size[0], 3):
            raise ValueError(f"A picture of {self.size[0]} x {self.size[1]} was expected; found shape {image.shape}.")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
            format=self._stream.pix_fmt, dst_colorspace="ITU709", dst_color_range="MPEG", interpolation="BICUBIC"
        )
        if not self.frames:
            self._shift = max(0, -pts)
        try:
            frame.pts, frame.time_base = pts + self._shift, self._time_base
        except OverflowError:
            raise MediaError(f"Cannot write {self.path}: no film has a frame at {pts} x {self._time_base} s.") from None
        self._mux(frame)
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._mux(None)
            self._container.close()
        except av.FFmpegError as error:
            problem = MediaError(f"Cannot write {self.path}: {reason(error)}.")
            self._leave(problem)
            raise problem from error
        except BaseException as error:
            self._leave(error)
            raise
        self._cleanup.close()

    def _open(self, temporary: Path) -> None:
        tick = self._time_base
        try:
            # an edit list keeps a first pts other than 0, in units of the movie's own time scale
            options = {"movie_timescale": str(tick.denominator)}
            self._container = av.open(str(temporary.absolute()), "w", format="mp4", options=options)
            self._stream = self._container.add_stream("libx264", rate=1 / (tick * self._duration), options=X264)
        except (OSError, av.FFmpegError, ValueError, OverflowError) as error:
            raise MediaError(f"Cannot write {self.path}: {reason(error)}.") from error
        context = self._stream.codec_context
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv444p" if self.size[0] % 2 or self.size[1] % 2 else "yuv420p"
        self._stream.time_base = context.time_base = tick
        context.max_b_frames = 0  # decode order is display order, so the times need no offset
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                packet.duration = self._duration
                self._container.mux(packet)
        except av.FFmpegError as error:
            raise MediaError(f"Cannot write {self.path}: {reason(error)}.") from error

    def _leave(self, error: BaseException) -> None:
        with contextlib.suppress(Exception):
            self._container.close()
        with contextlib.suppress(type(error)):
            self._cleanup.__exit__(type(error), error, error.__traceback__)


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether both are of about one shape, as where a stream changes its quality."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < SHAPES


def _within(size: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The first, as large as it fits into the other."""
    scale = min(other[0] / size[0], other[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def whole_frames(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """The same frames at the same times; those whose lines were taken at two times, every other line first, are
    deinterlaced. From the first of these on each frame waits for the next."""
    graph = shape = None
    for frame in frames:
        if graph is not None and shape != (frame.width, frame.height, frame.format.name):
            yield from _filtered(graph, None)
            graph = None
        if graph is None and frame.interlaced_frame:
            shape = frame.width, frame.height, frame.format.name
            graph = av.filter.Graph()
            steps = (
                graph.add_buffer(width=shape[0], height=shape[1], format=frame.format, time_base=frame.time_base),
                graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"),
            )  # fmt: skip
            graph.link_nodes(*steps).configure()
        yield from [frame] if graph is None else _filtered(graph, frame)
    if graph is not None:
        yield from _filtered(graph, None)


def exact_rgb(frame: av.VideoFrame) -> Array:
    """uint8 RGB (H, W, 3) of a decoded picture, as light as it went in."""
    return frame.reformat(format="rgb24", interpolation=int(Interpolation.BICUBIC) | EXACT_RGB).to_ndarray()


def _filtered(graph: av.filter.Graph, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
    graph.vpush(frame)
    with contextlib.suppress(BlockingIOError, EOFError):  # it waits for the next, or has no more
        while True:
            whole = graph.vpull()
            if whole.pts is not None:
                whole.pts //= 2  # the filter counts half as long ticks
            yield whole


def as_picture(image: Any) -> Array:
    """uint8 RGB (H, W, 3) from an array, or from an av.VideoFrame, which says how it is to be turned and mirrored."""
    framed = isinstance(image, av.VideoFrame)
    picture = _on_white(upright(image, image.to_ndarray(format=_rgb(image)))) if framed else np.asarray(image)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        found = type(image).__name__ if picture.dtype == object else f"{picture.dtype} {picture.shape}"
        raise ValueError(f"A frame is a uint8 RGB (H, W, 3) array or an av.VideoFrame; found {found}.")
    if max(picture.shape) > DIMENSION_MAX:
        raise ValueError(f"A frame is at most {DIMENSION_MAX} pixels wide and high; found {picture.shape[:2]}.")
    return picture


def upright(frame: av.VideoFrame, image: Array) -> Array:
    """The picture (H, W, C) of a frame, turned and mirrored as the frame says that it is to be shown."""
    return np.ascontiguousarray(np.rot90(image[::-1] if _mirrored(frame) else image, _turns(frame)))


def _rgb(frame: av.VideoFrame) -> str:
    """The format in which nothing of it is lost that is seen."""
    return "rgba" if frame.format.has_palette or any(part.is_alpha for part in frame.format.components) else "rgb24"


def _on_white(image: Array) -> Array:
    """uint8 RGB of the same or of RGBA: under what is transparent, files hold any colour or none."""
    if image.shape[2] == 3:
        return image
    opaque = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * opaque + 255 * (255 - opaque) + 127) // 255).astype(np.uint8)


def _film(container: av.container.InputContainer) -> av.VideoStream:
    """The video stream that players show: of those that are no cover picture, which a file's tags may hold in front of
    the film, the first that the file marks as its default, or else the first."""
    cover, default = av.stream.Disposition.attached_pic, av.stream.Disposition.default
    return min(
        container.streams.video,
        key=lambda stream: (bool(stream.disposition & cover), not stream.disposition & default),
    )


def _usual_step(stamps: Sequence[int]) -> int:
    """The most common step; 0 when there is none."""
    steps = Counter(step for step in np.diff(stamps).tolist() if step > 0)
    return int(steps.most_common(1)[0][0]) if steps else 0


def _rounded(stamps: Sequence[int], ticks: Fraction) -> bool:
    """Whether these are multiples of ``ticks``, which is no whole number, as far as whole numbers can say."""
    since = [stamp - stamps[0] for stamp in stamps]
    counts = [round(at / ticks) for at in since]
    near = all(abs(at - count * ticks) < 1 for at, count in zip(since, counts, strict=True))
    return ticks.denominator > 1 and ticks >= CLEAR_TICKS and len(stamps) > 2 and near and len({*counts}) == len(counts)


def _turns(frame: av.VideoFrame) -> int:
    """Quarters of a turn, counter-clockwise."""
    return round(frame.rotation / 90) % 4


def _mirrored(frame: av.VideoFrame) -> bool:
    """Whether a frame is to be turned upside down before it is rotated: all that ``frame.rotation`` leaves out."""
    matrix: Any = None  # 3 x 3, row by row
    with contextlib.suppress(ValueError):  # PyAV 18 reads none where one of them is of a kind it does not know, as Exif
        matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).tolist()
    return bool(a * d < b * c)


def reason(error: BaseException) -> str:
    """What went wrong, in a few words, without the call that failed."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")

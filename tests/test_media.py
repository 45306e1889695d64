"""Films in and out: what is read, what is written, at which times, and what is left behind when something fails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from neuralcodec.errors import MediaError
from neuralcodec.media import VideoReader, VideoWriter, as_picture, output_path, read_frames, reason
from neuralcodec.motion import Array


def picture(width: int, height: int, index: int = 0) -> Array:
    """Four coloured quarters (red, green / blue, white) over a grey that counts frames."""
    image = np.full((height, width, 3), 40 + 5 * index, np.uint8)
    image[: height // 2, : width // 2] = (200, 30, 40)
    image[: height // 2, width // 2 :] = (30, 170, 50)
    image[height // 2 :, : width // 2] = (40, 60, 190)
    return image


def write_film(
    path: Path, images: list[Array], stamps: list[int], time_base: Fraction, *, codec: str = "libx264",
    pixels: str = "yuv420p", turn: Callable[[av.VideoStream], None] | None = None, rate: int | Fraction = 25,
) -> None:  # fmt: skip
    """A film from any encoder and pixel format, independent of VideoWriter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.time_base = pixels, time_base
        stream.codec_context.time_base = time_base
        if turn:
            turn(stream)
        for image, pts in zip(images, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = pts, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (128, 96), (33, 64), (64, 47)])
def test_what_is_written_is_read_again(tmp_path: Path, size: tuple[int, int]) -> None:
    images = [picture(*size, index) for index in range(5)]
    with VideoWriter(tmp_path / "a.mp4", *size, Fraction(1, 25)) as writer:
        for index, image in enumerate(images):
            writer.write(image, index)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert (reader.width, reader.height, reader.frames, reader.damaged) == (*size, 5, 0)
        found = list(reader)
    for (_, image), wanted in zip(found, images, strict=True):
        inner = np.abs(image.astype(int) - wanted)[4 : size[1] // 2 - 4, 4 : size[0] // 2 - 4]
        assert inner.max() <= 8  # one quarter, away from its edges: the colour is right
        assert np.abs(image.astype(int) - wanted).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("time_base", "stamps"),
    [
        (Fraction(1, 25), [0, 1, 2, 3]),
        (Fraction(1001, 30000), [0, 1, 2, 5]),
        (Fraction(1, 90000), [0, 3003, 6006, 9009]),
        (Fraction(1, 90000), [12345, 12346, 20000, 90001]),  # variable rate, and not from 0
        (Fraction(1, 1000), [7]),
        (Fraction(1, 1000000), [1, 40002, 80001]),
    ],
)
def test_times_survive_exactly(tmp_path: Path, time_base: Fraction, stamps: list[int]) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 64, time_base) as writer:
        for index, pts in enumerate(stamps):
            writer.write(picture(64, 64, index), pts)
    reader = VideoReader(tmp_path / "a.mp4")
    assert [pts * reader.time_base for pts, _ in reader] == [pts * time_base for pts in stamps]


def test_a_film_that_starts_before_zero_is_moved_not_cut(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 1000)) as writer:
        for pts in (-80, -40, 0):
            writer.write(picture(64, 64), pts)
    reader = VideoReader(tmp_path / "a.mp4")
    assert [pts * reader.time_base * 1000 for pts, _ in reader] == [0, 40, 80]


def test_variable_rate_source(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 120, 400, 440, 2000]
    write_film(tmp_path / "a.mkv", [picture(64, 48, i) for i in range(7)], stamps, Fraction(1, 1000))
    reader = VideoReader(tmp_path / "a.mkv")
    assert reader.time_base == Fraction(1, 1000) and reader.frame_duration == 40
    assert [pts for pts, _ in reader] == stamps


@pytest.mark.parametrize(("stamps", "usual"), [([0, 13, 30, 70, 110, 150, 900, 940], 40), ([0], 100)])
def test_the_usual_step_is_the_most_common_one_or_what_the_rate_says(
    stamps: list[int], usual: int, tmp_path: Path
) -> None:
    write_film(tmp_path / "a.mp4", [picture(64, 48)] * len(stamps), stamps, Fraction(1, 1000), rate=10)
    reader = VideoReader(tmp_path / "a.mp4")
    assert reader.frame_duration * reader.time_base * 1000 == usual


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])
@pytest.mark.parametrize("start", [0, 17])
def test_a_rate_that_milliseconds_cannot_tell_is_told_in_frames(tmp_path: Path, rate: Fraction, start: int) -> None:
    """As in Matroska: steps of 33 and 34 ms would have to be told frame by frame."""
    stamps = [start + round(index * 1000 / rate) for index in (*range(20), 23, 24)]
    write_film(tmp_path / "a.mkv", [picture(64, 48)] * len(stamps), stamps, Fraction(1, 1000), rate=rate)
    with VideoReader(tmp_path / "a.mkv") as reader:
        times = [pts for pts, _ in reader]
        assert reader.time_base == 1 / rate and reader.frame_duration == 1 and reader.missing_s == 0
    assert [at - times[0] for at in times] == [*range(20), 23, 24] and abs(times[0] / rate - start / 1000) < 0.5 / rate


@pytest.mark.parametrize("stamps", [[0, 33, 67, 95, 133, 167], [0, 3, 7, 10, 13, 17, 20], [0, 33]])
def test_a_rate_that_stamps_do_not_prove_is_not_believed(tmp_path: Path, stamps: list[int]) -> None:
    write_film(tmp_path / "a.mkv", [picture(64, 48)] * len(stamps), stamps, Fraction(1, 1000), rate=30)
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert reader.time_base == Fraction(1, 1000) and [pts for pts, _ in reader] == stamps


def film_of(stamps: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Times at which a film at 25 fps is read whose decoder gives these stamps, in ms."""
    write_film(tmp_path / "a.mkv", [picture(64, 48)] * 4, [0, 40, 80, 120], Fraction(1, 1000))
    reader = VideoReader(tmp_path / "a.mkv")
    frames = []
    for stamp in stamps:
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.pts = stamp
        frames.append(frame)
    monkeypatch.setattr(reader, "_raw_frames", lambda: iter(frames))
    with reader:
        return [pts for pts, _ in reader._decode()]


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([0, 40, 80, 0, 40, 80, 120], [0, 40, 80, 120, 160, 200, 240]),  # two films in one file
        ([0, 40, 0, 40, 1000, 0], [0, 40, 80, 120, 1080, 1120]),
        ([None, None, None, 0, 40], [0, 40, 80, 120, 160]),
        ([None, None, 500, 540], [0, 40, 500, 540]),
        ([0, 40, None, 80, 120], [0, 40, 80, 81, 120]),
        ([0, 40, 40, 40, 80, 120], [0, 40, 41, 42, 80, 120]),  # doubles
        ([0, 40, 39, 80], [0, 40, 41, 80]),  # a little out of place
        ([0, 40, 80, 50, 20, 60], [0, 40, 80, 81, 121, 161]),
        ([None, None, None], [0, 40, 80]),
        ([0, 40, 0, 120, 160], [0, 40, 80, 120, 160]),  # one alone is out of place
        ([0, 40, 5000, 120, 160], [0, 40, 80, 120, 160]),
        ([0, 40, 5000, 5040], [0, 40, 5000, 5040]),  # a film that stood still
    ],
)
def test_stamps_that_begin_anew_go_on(
    stamps: list[int | None], times: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert film_of(stamps, tmp_path, monkeypatch) == times


@pytest.mark.parametrize(("size", "bars"), [((48, 64), 14), ((128, 96), 0), ((66, 48), 0)])
def test_a_film_that_turns_is_fitted_into_its_first_shape(
    size: tuple[int, int], bars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_film(tmp_path / "a.mkv", [picture(64, 48)] * 2, [0, 40], Fraction(1, 1000))
    reader = VideoReader(tmp_path / "a.mkv")
    white = [av.VideoFrame.from_ndarray(np.full((h, w, 3), 255, np.uint8), format="rgb24") for w, h in ((64, 48), size)]
    monkeypatch.setattr(reader, "_raw_frames", lambda: iter(white))
    with reader:
        first, second = (image for _, image in reader._decode())
    assert first.shape == second.shape == (48, 64, 3) and first.min() > 250
    assert (second[:, bars : 64 - bars] > 250).all()
    assert not second[:, :bars].any() and not second[:, 64 - bars :].any()


def test_two_transport_streams_in_one_file_follow_each_other(tmp_path: Path) -> None:
    images, step = [picture(64, 48, i) for i in range(25)], 3600
    write_film(tmp_path / "a.ts", images, list(range(25)), Fraction(1, 25), codec="mpeg2video")
    (tmp_path / "b.ts").write_bytes((tmp_path / "a.ts").read_bytes() * 2)
    reader = VideoReader(tmp_path / "b.ts")
    times = [pts for pts, _ in reader]
    assert reader.frame_duration == step and len(times) > 45
    assert set(np.diff(times)) <= {step, 2 * step}


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [
        ("libx264", "gray", ".mp4"),
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv444p", ".mkv"),
        ("mjpeg", "yuvj420p", ".avi"),
        ("ffv1", "rgb24", ".mkv"),
        ("ffv1", "gray", ".mkv"),
        ("png", "ya8", ".mov"),
        ("libvpx-vp9", "yuv420p", ".webm"),
    ],
)
def test_pixel_formats(tmp_path: Path, codec: str, pixels: str, suffix: str) -> None:
    pixels = "bgr0" if pixels == "rgb24" else pixels
    image = picture(96, 64)
    write_film(tmp_path / f"a{suffix}", [image] * 3, [0, 1, 2], Fraction(1, 25), codec=codec, pixels=pixels)
    with VideoReader(tmp_path / f"a{suffix}") as reader:
        found = [frame for _, frame in reader]
    assert reader.gray is ((codec, pixels) in (("ffv1", "gray"), ("png", "ya8")))  # H.264 is shown as colour, always
    assert len(found) == 3 and found[0].dtype == np.uint8 and found[0].shape == (64, 96, 3)
    wanted = image
    if pixels in ("gray", "ya8"):
        wanted = np.repeat((image @ [0.299, 0.587, 0.114]).round()[..., None], 3, -1)
    assert np.abs(found[0][8:24, 8:40].astype(int) - wanted[8:24, 8:40]).max() <= 14


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_metadata_is_honoured(tmp_path: Path, degrees: int, turns: int) -> None:
    image = picture(96, 64)
    write_film(tmp_path / "a.mp4", [image] * 2, [0, 1], Fraction(1, 25), turn=lambda s: s.set_display_rotation(degrees))
    reader = VideoReader(tmp_path / "a.mp4")
    (_, first), _ = reader
    wanted = np.rot90(image, turns)
    assert first.shape == wanted.shape and (reader.height, reader.width) == wanted.shape[:2]
    assert np.abs(first.astype(int) - wanted).mean() < 6
    with av.open(str(tmp_path / "a.mp4")) as container:  # as an application hands frames to an Encoder
        given = as_picture(next(container.decode(video=0)))
    assert given.shape == wanted.shape and np.abs(given.astype(int) - wanted).mean() < 6


@pytest.mark.parametrize(
    ("image", "found"),
    [(None, "NoneType"), (np.zeros((8, 8)), r"float64 \(8, 8\)")],
)
def test_what_is_no_picture_is_named(image: object, found: str) -> None:
    """None is what cameras give that have no picture."""
    with pytest.raises(ValueError, match=f"an av.VideoFrame; found {found}"):
        as_picture(image)


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).transpose(1, 0, 2)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), np.rot90),
    ],
)
def test_mirror_metadata_is_honoured(
    tmp_path: Path, matrix: tuple[int, int, int, int], wanted: Callable[[Array], Array]
) -> None:
    """All eight ways in which a phone can hold a picture, written into the track header of an mp4."""
    image = picture(96, 64)
    write_film(tmp_path / "a.mp4", [image] * 2, [0, 1], Fraction(1, 25))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    data[place : place + 36] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes()
    (tmp_path / "a.mp4").write_bytes(data)
    first = next(read_frames(tmp_path / "a.mp4"))[1]
    assert first.shape == wanted(image).shape
    assert np.abs(first.astype(int) - wanted(image)).mean() < 6


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        (Fraction(4, 3), 128),
        (Fraction(64, 45), 136),
        (Fraction(12, 11), 104),  # 104.7: even
        (Fraction(1, 2), 48),
        (Fraction(2), 192),
        (Fraction(1000, 999), 96),
        (Fraction(50), 96),  # nobody means that
    ],
)
def test_pixels_are_made_square(tmp_path: Path, shape: Fraction, width: int) -> None:
    def squeeze(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = shape

    images = [picture(96, 64, index) for index in range(3)]
    write_film(tmp_path / "a.mp4", images, [0, 1, 2], Fraction(1, 25), turn=squeeze)
    reader = VideoReader(tmp_path / "a.mp4")
    found = [image for _, image in reader]
    assert (reader.width, reader.height) == (width, 64)
    for index, image in enumerate(found):
        assert image.shape == (64, width, 3)
        assert np.abs(image.astype(int) - picture(width, 64, index)).mean() < 6


def test_pixels_are_made_square_before_the_picture_is_turned(tmp_path: Path) -> None:
    def turn(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)

    write_film(tmp_path / "a.mp4", [picture(96, 64)] * 2, [0, 1], Fraction(1, 25), turn=turn)
    assert [image.shape for _, image in read_frames(tmp_path / "a.mp4")] == [(128, 64, 3)] * 2


def test_untagged_hd_is_bt709_and_small_is_bt601(tmp_path: Path) -> None:
    for size, matrix, said in (((1280, 720), "ITU709", 2), ((320, 240), "ITU601", 2), ((1280, 720), "ITU601", 6)):
        path = tmp_path / f"{size[1]}-{said}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            frame = av.VideoFrame.from_ndarray(picture(*size), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=matrix)
            stream.codec_context.colorspace = frame.colorspace = said  # 2: nothing
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        _, image = next(read_frames(path))
        assert np.abs(image[10:50, 10:50].astype(int) - (200, 30, 40)).max() <= 6


@pytest.mark.parametrize("interlaced", [True, False])
def test_interlaced_frames_are_made_whole(tmp_path: Path, interlaced: bool) -> None:
    def stripes(time: int) -> Array:
        return np.tile(((np.arange(96) - time) // 8 % 2 * 160 + 40).astype(np.uint8)[None, :, None], (64, 1, 3))

    woven = [stripes(4 * index) for index in range(6)]
    for index, image in enumerate(woven):
        image[1::2] = stripes(4 * index + 2)[1::2]  # half a frame later

    def turn(stream: av.VideoStream) -> None:
        stream.codec_context.options = {"crf": "4", "x264-params": f"tff={int(interlaced)}"}

    write_film(tmp_path / "a.mp4", woven, [0, 1, 2, 4, 5, 6], Fraction(1, 25), turn=turn)
    with VideoReader(tmp_path / "a.mp4") as reader:
        stamps, images = zip(*reader, strict=True)
    assert [stamp * reader.time_base * 25 for stamp in stamps] == [0, 1, 2, 4, 5, 6]
    for image, wanted in zip(images, woven, strict=True):
        rows = image.astype(int)
        combed = np.abs(rows[1:-1:2] - (rows[:-2:2] + rows[2::2]) / 2).mean()
        assert combed < 4 if interlaced else combed > 20  # others stay as they are
        off = np.abs(rows - wanted).mean((1, 2))
        lines = np.median(off[::2]), np.median(off[1::2])
        assert min(lines) < 6 and (interlaced or max(lines) < 6)


def test_a_film_that_changes_its_size_keeps_every_frame_and_the_size_of_the_first(tmp_path: Path) -> None:
    def turn(stream: av.VideoStream) -> None:
        stream.codec_context.options = {"x264-params": "tff=1"}  # interlaced: frames wait for the next

    for name, size in (("a", (96, 64)), ("b", (144, 96))):
        write_film(tmp_path / f"{name}.ts", [picture(*size)] * 6, list(range(6)), Fraction(1, 25), turn=turn)
    (tmp_path / "c.ts").write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    found = [image for _, image in read_frames(tmp_path / "c.ts")]
    assert len(found) == 12
    assert all(image.shape == (64, 96, 3) and np.abs(image.astype(int) - picture(96, 64)).mean() < 8 for image in found)


BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # from BT.709


def pq(light: Array) -> Array:
    """SMPTE ST 2084: light 0 to 1, of 10000 cd/m2, to signal."""
    power = light ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light: Array) -> Array:
    """ARIB STD-B67: light 0 to 1, of 1000 cd/m2 on the screen, to signal."""
    scene = light * np.maximum(light @ [0.2627, 0.678, 0.0593], 1e-6)[..., None] ** (-0.2 / 1.2)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


@pytest.mark.parametrize(("curve", "signal", "peak"), [(16, pq, 10000), (18, hlg, 1000)])
def test_hdr_films_keep_their_colours(
    tmp_path: Path, curve: int, signal: Callable[[Array], Array], peak: float
) -> None:
    """White paper is 203 cd/m2 there (ITU-R BT.2408)."""
    image = picture(96, 64)
    coded = signal((image / 255.0) ** 2.4 @ BT2020.T * 203 / peak)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace = context.color_primaries = 9
        context.color_trc, context.color_range = curve, 1
        for pts in range(2):
            frame = av.VideoFrame.from_ndarray((coded * 65535).round().astype(np.uint16), format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range="MPEG")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for _, found in read_frames(tmp_path / "a.mkv"):
        difference = np.abs(found.astype(int) - image)
        assert difference[4:28, 4:44].max() <= 26 and difference.mean() < 8  # unconverted: 81, HLG 47


def test_pixels_that_nothing_can_convert_are_one_sentence(tmp_path: Path) -> None:
    write_film(tmp_path / "a.nut", [picture(64, 48)], [0], Fraction(1, 25), codec="rawvideo", pixels="rgb4")
    with pytest.raises(MediaError, match=r"a\.nut holds pictures in the format rgb4, which cannot be read .*yuv420p"):
        VideoReader(tmp_path / "a.nut")


def test_still_picture_is_a_film_of_one_frame(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(64, 48), format="rgb24")))
        container.mux(stream.encode(None))
    ((pts, image),) = read_frames(tmp_path / "a.png")
    assert pts == 0 and np.array_equal(image, picture(64, 48))


def boxes(data: bytes) -> list[bytes]:
    """The boxes of an MP4 file, or of one of its boxes."""
    found = []
    while data:
        length = int.from_bytes(data[:4], "big")
        found, data = [*found, data[:length]], data[length:]
    return found


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_films_in_a_file_the_one_that_is_its_default_is_read(default: int, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for index, stream in enumerate(streams):
            stream.width = stream.height = 64 + 32 * index
            stream.pix_fmt = "yuv420p"
            stream.disposition = av.stream.Disposition.default if index == default else av.stream.Disposition(0)
        for stream in streams:
            for packet in [*stream.encode(av.VideoFrame(stream.width, stream.height, "yuv420p")), *stream.encode(None)]:
                container.mux(packet)
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert reader.width == 64 + 32 * default


def test_a_cover_picture_is_no_film_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        film, cover = container.add_stream("libx264", rate=25), container.add_stream("mjpeg", rate=25)
        cover.disposition = av.stream.Disposition.attached_pic
        for stream, side, pixels in ((cover, 32, "yuvj420p"), (film, 64, "yuv420p")):
            stream.width = stream.height = side
            stream.pix_fmt = pixels
        for stream in (cover, film, film, film):
            frame = av.VideoFrame.from_ndarray(picture(stream.width, stream.width), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(film.encode(None))
    films = [path.read_bytes()]
    head = next(box for box in boxes(films[0]) if box[4:8] == b"moov")
    moved = sorted(boxes(head[8:]), key=lambda box: [b"mvhd", b"udta", b"trak"].index(box[4:8]))
    films += [films[0].replace(head, head[:8] + b"".join(moved))]  # its tags, which hold the cover, before the film
    for content, order in zip(films, ([64, 32], [32, 64]), strict=True):
        path.write_bytes(content)
        with av.open(str(path)) as container:
            assert [stream.width for stream in container.streams.video] == order
        with VideoReader(path) as reader:
            assert (reader.width, len(list(reader))) == (64, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_colour_it_hides(tmp_path: Path, mode: str) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:24] = (90, 90, 90, 255)
    pixels[24:36] = (90, 90, 90, 128)
    if mode == "P":
        colours = image.fromarray(pixels[..., 3]).convert("P")
        colours.putpalette([90] * 768)
        colours.save(tmp_path / "a.png", transparency=bytes(range(256)))
    else:
        image.fromarray(pixels if mode == "RGBA" else pixels[..., [0, 3]], mode).save(tmp_path / "a.png")
    ((_, found),) = read_frames(tmp_path / "a.png")
    half = round((90 * 128 + 255 * 127) / 255)
    assert found.shape == (48, 64, 3)
    assert [found[y, 5].tolist() for y in (0, 30, 47)] == [[90] * 3, [half] * 3, [255] * 3]
    with av.open(str(tmp_path / "a.png")) as container:
        assert np.array_equal(as_picture(next(container.decode(video=0))), found)


def test_photographs_of_phones_are_turned_as_they_say(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    image.fromarray(picture(96, 64)).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    ((_, found),) = read_frames(tmp_path / "phone.jpg")
    wanted = np.rot90(picture(96, 64), -1)
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < 6


def test_a_cut_film_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(20)]
    write_film(tmp_path / "a.mkv", images, list(range(20)), Fraction(1, 25))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    reader = VideoReader(tmp_path / "cut.mkv")
    assert 5 < len(list(reader)) < 20


def test_a_film_that_ends_before_its_announced_end_says_by_how_much(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(50)]
    write_film(tmp_path / "a.mkv", images, list(range(50)), Fraction(1, 25))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) // 2])
    with VideoReader(tmp_path / "a.mkv") as reader:
        found = list(reader)
    assert 10 < len(found) < 35
    assert reader.missing_s == pytest.approx(2 - len(found) / 25, abs=0.05)


@pytest.mark.parametrize(("further", "missing"), [(0.3, 0.0), (0.53, 0.0), (0.55, 0.55)])
def test_a_film_may_end_half_a_second_and_a_frame_before_its_announced_end(
    further: float, missing: float, tmp_path: Path
) -> None:
    write_film(tmp_path / "a.mkv", [picture(64, 48)] * 4, [0, 40, 80, 120], Fraction(1, 1000))
    reader = VideoReader(tmp_path / "a.mkv")
    reader._announced = Fraction(16, 100) + Fraction(further)
    assert len(list(reader)) == 4 and reader.missing_s == pytest.approx(missing)
    reader._start, reader._end = reader._start - 2000, reader._end - 2000  # counted from the first frame
    assert reader.missing_s == pytest.approx(missing)


def test_a_last_frame_that_stays_long_is_no_missing_film(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(1, 1000), frame_duration=3000) as writer:
        for pts in (0, 40, 80, 120):
            writer.write(picture(64, 48), pts)
    reader = VideoReader(tmp_path / "a.mp4")
    assert len(list(reader)) == 4 and reader._announced > 3 and reader.missing_s == 0


def test_matroska_says_its_length_in_hours_minutes_and_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(tmp_path / "a.mkv", [picture(64, 48)], [0], Fraction(1, 1000))
    with VideoReader(tmp_path / "a.mkv") as reader:
        monkeypatch.setattr(reader, "_container", SimpleNamespace(duration=None, close=reader._container.close))
        said = {"DURATION-eng": "01:02:03.500000000", "title": "00:00:01.0"}
        monkeypatch.setattr(reader, "_stream", SimpleNamespace(duration=None, metadata=said))
        assert reader._length() == Fraction("3723.5")


@pytest.mark.parametrize("where", ["demuxer", "decoder", "frame", "nowhere"])
def test_every_piece_that_is_not_whole_is_counted(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(tmp_path / "a.mkv", [picture(64, 48)], [0], Fraction(1, 1000))
    problem = av.error.InvalidDataError(1, "of no use")

    def packets(_: object) -> Iterator[object]:
        yield SimpleNamespace(is_corrupt=False, size=5, pts=0, dts=0)
        if where == "demuxer":
            raise problem

    def decode(packet: object) -> list[object]:
        if where == "decoder" and packet is not None:
            raise problem
        return [SimpleNamespace(is_corrupt=where == "frame")] if packet is not None else []

    with VideoReader(tmp_path / "a.mkv") as reader:
        monkeypatch.setattr(reader, "_container", SimpleNamespace(demux=packets, close=reader._container.close))
        monkeypatch.setattr(reader, "_stream", SimpleNamespace(decode=decode))
        assert len(list(reader._raw_frames())) == (where != "decoder")
        assert reader.damaged == (where != "nowhere")


def test_sound_that_goes_on_is_no_missing_film(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream, sound = container.add_stream("libx264", rate=25), container.add_stream("pcm_s16le", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pts in range(25):
            frame = av.VideoFrame.from_ndarray(picture(64, 48), format="rgb24").reformat(format="yuv420p")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.int16), format="s16", layout="mono")
        silence.rate, silence.pts = 8000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert len(list(reader)) == 25 and reader.missing_s == 0


def test_a_whole_film_misses_nothing(tmp_path: Path) -> None:
    for name, first in (("a.mkv", 0), ("b.mkv", 5000), ("a.mp4", 5000), ("a.ts", 900)):
        stamps = [first + 40 * i for i in range(25)]
        write_film(tmp_path / name, [picture(64, 48)] * 25, stamps, Fraction(1, 1000))
        reader = VideoReader(tmp_path / name)
        assert len(list(reader)) == 25 and (reader.damaged, reader.missing_s) == (0, 0)


def test_a_damaged_transport_stream_is_counted(tmp_path: Path) -> None:
    """FFmpeg shows what it can of such a film and raises nothing."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(20)]
    write_film(tmp_path / "a.ts", images, list(range(20)), Fraction(1, 25))
    data = (tmp_path / "a.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(data[: 188 * 100] + data[188 * 105 :])  # five packets never came
    reader = VideoReader(tmp_path / "a.ts")
    assert len(list(reader)) > 10 and reader.damaged > 0


def test_a_title_of_bytes_that_are_no_text_is_no_obstacle(tmp_path: Path) -> None:
    def name(stream: av.VideoStream) -> None:
        stream.container.metadata["title"] = "ZZZZ"

    write_film(tmp_path / "a.mkv", [picture(64, 48)], [0], Fraction(1, 1000), turn=name)
    (tmp_path / "a.mkv").write_bytes((tmp_path / "a.mkv").read_bytes().replace(b"ZZZZ", b"\xff\xfe\xff\xfe"))
    assert len(list(read_frames(tmp_path / "a.mkv"))) == 1


def test_a_reason_is_one_line_without_its_full_stop() -> None:
    errors = OSError(28, "No space."), RuntimeError("two.\nlines"), RuntimeError()
    assert [reason(error) for error in errors] == ["No space", "two", "RuntimeError"]


def test_no_film_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a film at all, however long this text may be " * 50)
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    for name, words in (
        ("missing.mp4", "does not exist"),
        (".", "folder"),
        ("text.mp4", "not a video"),
        ("empty.mp4", "not a video"),
        ("sound.wav", "holds no video"),
    ):
        with pytest.raises(MediaError, match=words) as caught:
            VideoReader(tmp_path / name)
        assert "\n" not in str(caught.value) and "avcodec" not in str(caught.value)


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, problem: type[BaseException]) -> None:
    with pytest.raises(problem), VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 25)) as writer:
        writer.write(picture(64, 64), 0)
        raise problem
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_without_leave_and_on_failure(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("precious")
    with pytest.raises(MediaError, match="exists already"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 25))
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 25), overwrite=True):
        raise RuntimeError
    assert (tmp_path / "a.mp4").read_text() == "precious"
    with VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 25), overwrite=True) as writer:
        writer.write(picture(64, 64), 0)
    assert len(list(read_frames(tmp_path / "a.mp4"))) == 1


def test_a_film_is_closed_once_and_has_times(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 25)) as writer:
        writer.write(picture(64, 64), 0)
        writer.close()
        written = (tmp_path / "a.mp4").read_bytes()
    writer.close()
    assert (tmp_path / "a.mp4").read_bytes() == written and len(list(tmp_path.iterdir())) == 1
    for base, duration in ((Fraction(0), 1), (Fraction(-1, 25), 1), (Fraction(1, 25), 0)):
        with pytest.raises(MediaError, match="both are above 0"):
            VideoWriter(tmp_path / "b.mp4", 64, 64, base, frame_duration=duration)


def test_unusable_targets_are_refused(tmp_path: Path) -> None:
    for name, words in (("a.avi", "must end in"), ("no/where.mp4", "does not exist"), ("folder.mp4", "plain file")):
        (tmp_path / "folder.mp4").mkdir(exist_ok=True)
        with pytest.raises(MediaError, match=words):
            VideoWriter(tmp_path / name, 64, 64, Fraction(1, 25))
    with pytest.raises(MediaError, match="time base"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, Fraction(1, 1 << 40))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_a_writer_takes_its_own_size_and_times_that_a_film_can_have(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "A.MP4", 64, 48, Fraction(1, 25)) as writer:
        with pytest.raises(ValueError, match="64 x 48 was expected"):
            writer.write(picture(48, 64), 0)
        with pytest.raises(MediaError, match="no film has a frame at"):
            writer.write(picture(64, 48), 1 << 70)
        writer.write(picture(64, 48), 0)
    assert len(list(read_frames(tmp_path / "A.MP4"))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="names with colons, pipes")
def test_names_with_a_colon_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.mp4", "pipe:0.mp4"):
        with VideoWriter(name, 64, 64, Fraction(1, 25)) as writer:
            writer.write(picture(64, 64), 0)
        assert len(list(read_frames(name))) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12:30.mp4", "pipe:0.mp4"]


@pytest.mark.parametrize("letter", ["n", "名"])
def test_names_as_long_as_a_file_system_takes(tmp_path: Path, letter: str) -> None:
    path = tmp_path / (letter * (251 // len(letter.encode())) + ".mp4")
    with VideoWriter(path, 64, 64, Fraction(1, 25)) as writer:
        writer.write(picture(64, 64), 0)
    assert len(list(read_frames(path))) == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="says it otherwise")
def test_longer_names_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 300 + ".mp4")
    for act in (lambda: VideoWriter(path, 64, 64, Fraction(1, 25)), lambda: VideoReader(path)):
        with pytest.raises(MediaError, match=r"^Cannot (read|write) .*File name too long\.$"):
            act()


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(MediaError, match="is a pipe or a device; a video file was expected"):
            VideoReader(path)


def test_output_path_hides_system_errors_behind_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"Cannot write .*a\.bin: No space left on device\.$"):
        with output_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="links are not everybody's there")
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    link, file = tmp_path / "here" / "a.mp4", tmp_path / "there" / "b.mp4"
    link.symlink_to("../there/b.mp4")  # to nothing yet
    for overwrite in (False, True):
        with VideoWriter(link, 64, 64, Fraction(1, 25), overwrite=overwrite) as writer:
            writer.write(picture(64, 64), 0)
        assert link.is_symlink() and file.is_file() and not file.is_symlink()
        assert len(list(read_frames(file))) == 1
        file.write_bytes(b"old")
    with pytest.raises(MediaError, match=r"a\.mp4 exists already"), output_path(link):
        raise AssertionError
    assert file.read_bytes() == b"old" and list((tmp_path / "here").iterdir()) == [link]
    assert list((tmp_path / "there").iterdir()) == [file]
    link.unlink()
    link.symlink_to("../nowhere/b.mp4")
    with pytest.raises(MediaError, match=r"Cannot write .*here/a\.mp4: the folder .*/nowhere does not exist\.$"):
        VideoWriter(link, 64, 64, Fraction(1, 25))


FULL_DISK = """
import resource, signal, sys
from fractions import Fraction
import numpy as np
from neuralcodec.media import as_picture
from neuralcodec.errors import MediaError
from neuralcodec.media import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
noise = np.random.default_rng(0)
try:
    with VideoWriter(sys.argv[1], 128, 128, Fraction(1, 25)) as writer:
        for index in range(int(sys.argv[2])):
            writer.write(noise.integers(0, 256, (128, 128, 3), np.uint8), index)
except MediaError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file size limits")
@pytest.mark.parametrize("frames", [1, 60])
def test_a_full_disk_leaves_nothing(tmp_path: Path, frames: int) -> None:
    """With one frame the disk is found full only when the file is finished, with sixty while they are written."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.mp4"), str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Cannot write") and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""Ordinary video codecs as a yardstick: frames in, decoded frames and a byte count out. Knows nothing of neuralcodec.

What is counted. The bytes of the elementary stream that a decoder needs, headers and parameter sets included, once:
H.264, H.265 and VVC: NAL units without start codes, without SEI, access-unit delimiters and filler. AV1: all OBUs
except temporal delimiters. VP9: all frames. No container, no packet headers. All that is counted in their favour.

How they run. "call": low delay, no lookahead, no B-frames, one key frame, the slowest preset that still buys something
and codes 256x256 in real time on one core, 25 ms a frame at most on average. A busy phone would not take it: with the
presets that WebRTC has for VP9 and AV1 they need a quarter to a half more bits. "best": reordering, lookahead, two
passes where marked, and the slowest preset that still buys something for its time: two steps slower gained 0.1 dB or
less on a val clip, and for VVC 0.3 dB at two and a half times the time.
Both at constant quality (no rate control to lose bits in), tuned for PSNR where the encoder can be, on one thread, so
that two runs agree to the byte. Pictures go in as BT.601 4:2:0, 8 bits, through swscale's Lanczos, and come back the
same way.

Which points are measured. Talking heads at 256x256 need an encoder's coarsest settings to come near our rates, so
ladders start at its own end and take wide steps; small pictures and half the frames reach further down.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from benchmarks.clips import FPS
from neuralcodec.media import EXACT_RGB
from neuralcodec.reference import scheduling_kept

Array = NDArray[Any]

Variant = tuple[float, int, tuple[int, ...]]  # scale, hold, qualities: see Codec

os.environ.setdefault("SVT_LOG", "-1")  # SVT-AV1 writes a banner to stderr, past every log hook


@dataclass(frozen=True)
class Codec:
    """One encoder in one way of running it.

    quality: the option that sets the quality ("a:b" is parameter b inside option a). variants: (scale, hold, values of
    that option, coarsest first), full size and frame rate first. binary: run through the ffmpeg program of
    imageio-ffmpeg, because PyAV's wheels lack the encoder or cannot do two passes.
    """

    name: str
    encoder: str
    decoder: str
    quality: str
    options: Mapping[str, str]
    variants: tuple[Variant, ...]
    binary: bool = False
    passes: int = 1

    def ways(self, size: tuple[int, int]) -> tuple[Variant, ...]:
        """The variants for clips of this size (width, height). They were chosen at LADDER_SIDE: larger clips are coded
        in pictures of the same sides, which at a few kbit/s is worth up to 3 dB, and whole."""
        fit = LADDER_SIDE / max(size)
        if fit >= 1:
            return self.variants
        return ((1.0, 1, self.variants[0][2]), *((scale * fit, hold, steps) for scale, hold, steps in self.variants))

    def exact(self, quality: float) -> dict[str, str]:
        """Every option, the quality in its place."""
        key, _, inner = self.quality.partition(":")
        value = f"{quality:g}"
        return {**self.options, key: f"{self.options[key]}:{inner}={value}" if inner else value}

    @property
    def library(self) -> str:
        """What pins the encoder's version: the program or the wheel it came in."""
        return program_version() if self.binary else f"PyAV {av.__version__}"


@dataclass(frozen=True)
class Coded:
    """What came back. sizes: bytes of each coded picture, in coding order. ``*_ms``: per call, colour conversion in."""

    codec: str
    setting: Mapping[str, Any]
    frames: list[Array]
    packets: list[bytes] = field(repr=False)
    sizes: tuple[int, ...]
    library: str
    delay: int | None  # frames the encoder holds back before the first comes out; None: all of them
    encode_ms: tuple[float, ...] = field(repr=False)
    decode_ms: tuple[float, ...] = field(repr=False)

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    @property
    def kbps(self) -> float:
        return self.bytes * 8 * FPS / len(self.frames) / 1000


SVT_QUALITY = "svtav1-params:crf"  # its own parameter goes to 70, FFmpeg's -crf only to 63
X265_COMMON = "keyint=-1:scenecut=0:pools=none:frame-threads=1:log-level=error"
X265_LOW_DELAY = "bframes=0:rc-lookahead=0:lookahead-slices=0:cutree=0"
LADDER_SIDE = 256  # pixels
FINER = 6  # steps of any codec's quality: about half as many bits again
EXACT = int(Interpolation.LANCZOS) | EXACT_RGB  # else a tenth to a quarter of a dB is lost at the rates measured here
VPX_COMMON = {"b": "0", "g": "9999"}

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        # Slower x264 presets than "slow" gain nothing without B-frames (tried on two clips).
        Codec("x264-call", "libx264", "h264", "crf",
              {"preset": "slow", "tune": "psnr,zerolatency", "x264-params": "keyint=infinite:scenecut=0"},
              ((1.0, 1, (46, 41, 35)), (0.5, 1, (41, 36)), (1.0, 2, (46, 41)), (0.5, 2, (51, 46, 41, 36)),
               (0.375, 2, (51, 46)))),
        Codec("svt-av1-best", "libsvtav1", "libdav1d", SVT_QUALITY,
              {"preset": "4", "svtav1-params": "keyint=-1:scd=0:tune=1:lp=1"},
              ((1.0, 1, (70, 65, 60)), (1.0, 2, (70, 65)), (0.5, 1, (70, 65)),
               (0.5, 2, (70, 65, 60)), (0.25, 2, (70,)))),
        Codec("x265-best", "libx265", "hevc", "crf",
              {"preset": "slow", "tune": "psnr", "x265-params": f"{X265_COMMON}:rc-lookahead=250"},
              ((1.0, 1, (46, 41)), (1.0, 2, (51, 46, 41)), (0.5, 1, (51, 46)), (0.5, 2, (51, 46, 41)))),
        Codec("svt-av1-call", "libsvtav1", "libdav1d", SVT_QUALITY,
              {"preset": "4", "svtav1-params": "pred-struct=1:keyint=-1:scd=0:tune=1:lp=1"},
              ((1.0, 1, (65, 60)), (1.0, 2, (70, 65, 60)), (0.5, 1, (70, 65)), (0.5, 2, (70, 65, 60, 55)))),
        Codec("vp9-best", "libvpx-vp9", "vp9", "crf",
              {"deadline": "good", "cpu-used": "1", "lag-in-frames": "25", "auto-alt-ref": "6", **VPX_COMMON},
              ((1.0, 1, (63,)), (1.0, 2, (63,)), (0.5, 1, (63,)),
               (0.5, 2, (63, 58)), (0.25, 2, (63,))), binary=True, passes=2),
        Codec("vvc-best", "libvvenc", "vvc", "qp",
              {"preset": "fast", "qpa": "0", "vvenc-params": "intraperiod=9984:decodingrefreshtype=cra"},
              ((1.0, 1, (40,)), (1.0, 2, (55, 49, 43)), (0.5, 1, (48, 42)), (0.5, 2, (48, 42, 37))), binary=True),
        Codec("aom-av1-best", "libaom-av1", "libdav1d", "crf",
              {"usage": "good", "cpu-used": "4", "lag-in-frames": "48", **VPX_COMMON},
              ((1.0, 1, (63,)), (1.0, 2, (63,)), (0.5, 1, (63,)),
               (0.5, 2, (63, 56)), (0.25, 2, (63,))), binary=True, passes=2),
        Codec("x265-call", "libx265", "hevc", "crf",
              {"preset": "slow", "tune": "psnr", "x265-params": f"{X265_COMMON}:{X265_LOW_DELAY}"},
              ((1.0, 1, (46, 41)), (1.0, 2, (51, 47, 43)), (0.5, 1, (51, 46)), (0.5, 2, (51, 46, 41, 37)))),
        Codec("aom-av1-call", "libaom-av1", "libdav1d", "crf",
              {"usage": "good", "cpu-used": "3", "lag-in-frames": "0", **VPX_COMMON},
              ((1.0, 1, (63, 58)), (1.0, 2, (63, 56)), (0.5, 1, (63,)),
               (0.5, 2, (63, 58, 50)), (0.25, 2, (63,))), binary=True),
        Codec("vp9-call", "libvpx-vp9", "vp9", "crf",
              {"deadline": "good", "cpu-used": "1", "lag-in-frames": "0", "auto-alt-ref": "0", **VPX_COMMON},
              ((1.0, 1, (63,)), (1.0, 2, (63,)), (0.5, 1, (63,)), (0.5, 2, (63, 58, 52)), (0.25, 2, (63,)))),
        Codec("x264-best", "libx264", "h264", "crf",
              {"preset": "veryslow", "tune": "psnr",
               "x264-params": "keyint=infinite:scenecut=0:rc-lookahead=250:bframes=8"},
              ((1.0, 1, (41,)), (1.0, 2, (46, 41)), (0.5, 1, (36,)), (0.5, 2, (51, 46, 41, 36)))),
    )
}  # fmt: skip


def unavailable(codec: Codec) -> str:
    """Why this codec cannot run here, in one sentence; empty when it can."""
    if codec.binary and codec.encoder not in _binary_encoders():
        return f"{codec.name} needs an ffmpeg program with {codec.encoder}: pip install 'neuralcodec[bench]'."
    for name, mode in ((codec.decoder, "r"),) + (() if codec.binary else ((codec.encoder, "w"),)):
        try:
            av.Codec(name, mode)  # type: ignore[arg-type]
        except ValueError:
            return f"{codec.name} needs {name}, which this build of PyAV ({av.__version__}) lacks."
    return ""


def code(
    codec: Codec,
    frames: Sequence[Array],
    quality: float,
    *,
    scale: float = 1.0,
    hold: int = 1,
    planes: Sequence[av.VideoFrame] | None = None,
) -> Coded:
    """Encode and decode uint8 RGB frames (H, W, 3) at 25 fps.

    scale: code a smaller picture (Lanczos down and up again). hold: code every hold-th frame and show it hold times.
    planes: what :func:`planes` gives for the same frames, scale and hold, where several encodes share it.
    """
    height, width = frames[0].shape[:2]
    size = coded_size((width, height), scale)
    options = codec.exact(quality)
    pictures = iter(planes) if planes is not None else (_planes(frame, size) for frame in frames[::hold])
    route = _encode_binary if codec.binary else _encode_pyav
    packets, encode_ms, delay = route(codec, pictures, size, options, Fraction(FPS, hold))
    shown, decode_ms = decode(codec, packets, (width, height), count=len(frames), hold=hold)
    return Coded(
        codec=codec.name,
        setting={**options, "size": "x".join(map(str, size)), "fps": f"{FPS / hold:g}"},
        frames=shown,
        packets=packets,
        sizes=tuple(stream_size(codec.encoder, packet) for packet in packets),
        library=_library(codec, packets),
        delay=delay,
        encode_ms=encode_ms,
        decode_ms=decode_ms,
    )


def planes(frames: Sequence[Array], *, scale: float = 1.0, hold: int = 1) -> list[av.VideoFrame]:
    """The pictures that an encoder gets for uint8 RGB frames (H, W, 3): see :func:`code`."""
    height, width = frames[0].shape[:2]
    return [_planes(frame, coded_size((width, height), scale)) for frame in frames[::hold]]


def coded_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height of the picture that is coded: even, and at least 64."""
    width, height = (max(64, round(side * scale / 2) * 2) for side in size)
    return width, height


def decode(
    codec: Codec, packets: Sequence[bytes], size: tuple[int, int], *, count: int, hold: int = 1
) -> tuple[list[Array], tuple[float, ...]]:
    """``count`` frames at 25 fps, scaled to ``size`` (width, height), and the milliseconds of each call."""
    shown, spent = _decode(codec, packets, size)
    if len(shown) != -(-count // hold):
        raise RuntimeError(f"{codec.name} gave back {len(shown)} of {-(-count // hold)} frames; its options drop some.")
    return [shown[i // hold] for i in range(count)], spent


def stream_size(encoder: str, packet: bytes) -> int:
    """Bytes of one coded picture that count, as the module's first paragraph says."""
    if encoder in ("libsvtav1", "libaom-av1"):
        return len(packet) - 2 if packet[:2] == b"\x12\x00" else len(packet)
    unwanted = UNWANTED_NALS.get(encoder)
    if unwanted is None:
        return len(packet)
    return sum(len(nal) for nal in _nal_units(packet) if _nal_type(encoder, nal) not in unwanted)


# Access-unit delimiters, filler and SEI: nothing a decoder needs.
UNWANTED_NALS = {"libx264": {6, 9, 12}, "libx265": {35, 38, 39, 40}, "libvvenc": {20, 23, 24, 25}}


def _nal_units(packet: bytes) -> Iterable[bytes]:
    """Annex B units without start codes; no unit ends in a zero byte, so zeros before a start code belong to it."""
    return (nal for nal in (part.rstrip(b"\0") for part in packet.split(b"\0\0\1")) if nal)


def _nal_type(encoder: str, nal: bytes) -> int:
    if encoder == "libx264":
        return nal[0] & 31
    return nal[0] >> 1 & 63 if encoder == "libx265" else nal[1] >> 3


def _planes(frame: Array, size: tuple[int, ...]) -> av.VideoFrame:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return picture.reformat(size[0], size[1], "yuv420p", interpolation=Interpolation.LANCZOS)


def _encode_pyav(
    codec: Codec, pictures: Iterator[av.VideoFrame], size: tuple[int, ...], options: Mapping[str, str], fps: Fraction
) -> tuple[list[bytes], tuple[float, ...], int | None]:
    context: Any = av.CodecContext.create(codec.encoder, "w")
    context.width, context.height, context.pix_fmt = *size, "yuv420p"
    context.time_base, context.framerate = 1 / fps, fps
    context.thread_count = 1
    context.options = dict(options)
    with scheduling_kept():
        context.open()
    packets: list[bytes] = []
    spent: list[float] = []
    delay: int | None = None
    for index in itertools.count():
        start = time.perf_counter()
        picture = next(pictures, None)
        if picture is not None:
            picture.pts, picture.time_base = index, 1 / fps
        made = [bytes(packet) for packet in context.encode(picture)]
        spent.append((time.perf_counter() - start) * 1000)
        if made and not packets:
            delay = index if picture is not None else None
        packets += made
        if picture is None:
            break
    return packets, tuple(spent), delay


def _encode_binary(
    codec: Codec, pictures: Iterator[av.VideoFrame], size: tuple[int, ...], options: Mapping[str, str], fps: Fraction
) -> tuple[list[bytes], tuple[float, ...], int | None]:
    raw = [picture.to_ndarray().tobytes() for picture in pictures]
    suffix = "vvc" if codec.encoder == "libvvenc" else "ivf"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, f"coded.{suffix}")
        command = [
            ffmpeg(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{size[0]}x{size[1]}",
            "-framerate", str(fps), "-i", "-", "-c:v", codec.encoder, "-threads", "1",
            *(word for key, value in options.items() for word in (f"-{key}" + ":v" * (key == "b"), value)),
        ]  # fmt: skip
        start = time.perf_counter()
        for number in range(1, codec.passes + 1):
            twice = ["-pass", str(number), "-passlogfile", str(Path(folder, "log"))] if codec.passes > 1 else []
            target = ["-f", "null", "-"] if number < codec.passes else [str(out)]
            run = subprocess.run([*command, *twice, *target], input=b"".join(raw), capture_output=True, check=False)
            if run.returncode:
                raise RuntimeError(f"ffmpeg could not run {codec.name}: {run.stderr.decode(errors='replace').strip()}")
        each = (time.perf_counter() - start) * 1000 / len(raw)
        with av.open(str(out)) as container:
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    return packets, (each,) * len(raw), 0 if options.get("lag-in-frames") == "0" else None


def _decode(codec: Codec, packets: Sequence[bytes], size: tuple[int, int]) -> tuple[list[Array], tuple[float, ...]]:
    context: Any = av.CodecContext.create(codec.decoder, "r")
    context.thread_count = 1
    frames: list[Array] = []
    spent: list[float] = []
    for data in [*packets, None]:
        start = time.perf_counter()
        for shown in context.decode(None if data is None else av.Packet(data)):
            picture = shown.reformat(size[0], size[1], "rgb24", interpolation=EXACT)
            frames.append(picture.to_ndarray())
        spent.append((time.perf_counter() - start) * 1000)
    return frames, tuple(spent)


def _library(codec: Codec, packets: Sequence[bytes]) -> str:
    """The encoder's own version where the stream tells it (x264 and x265 do), and the program it came with."""
    told = re.search(rb"x264 - core \d+(?: r\d+)?|x265 \(build \d+\) - [\w.+-]+", packets[0])
    own = told.group().decode() if told else codec.encoder
    return f"{own}, {codec.library}"


# One black picture through an encoder of PyAV, everything it says on stderr.
TELL = """
import logging, sys, av, av.logging
from fractions import Fraction
logging.basicConfig(level=logging.NOTSET)
av.logging.set_level(av.logging.VERBOSE)
context = av.CodecContext.create(sys.argv[1], "w")
context.width, context.height, context.pix_fmt, context.time_base = 64, 64, "yuv420p", Fraction(1, 25)
context.encode(av.VideoFrame(64, 64, "yuv420p"))
"""
TOLD = re.compile(r"(?:Encoder Lib v|encoder version |vvenc version: |\[lib(?:aom-av1|vpx-vp9) [^]]*\] v)(\d[\w.+-]*)")


def version(codec: Codec) -> str:
    """Encoder and version, as it tells when it starts in a process of its own; the name alone where it does not."""
    source = ["-f", "lavfi", "-i", "color=black:s=64x64:d=0.04:r=25", "-pix_fmt", "yuv420p"]
    command = [ffmpeg(), "-hide_banner", "-v", "verbose", *source, "-c:v", codec.encoder, "-f", "null", "-"]
    if not codec.binary:
        command = [sys.executable, "-c", TELL, codec.encoder]
    environment = {**os.environ, "SVT_LOG": "3"}
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    told = TOLD.search(run.stderr)
    return f"{codec.encoder} {told.group(1)}" if told else codec.encoder


@cache
def ffmpeg() -> str:
    """Path of imageio-ffmpeg's program; empty when the package is not installed."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return ""
    return str(imageio_ffmpeg.get_ffmpeg_exe())


@cache
def _binary_encoders() -> str:
    return _ask_binary("-encoders")


@cache
def program_version() -> str:
    """Of :func:`ffmpeg`; empty without it."""
    return " ".join(_ask_binary("-version").split()[:3])


def _ask_binary(option: str) -> str:
    if not ffmpeg():
        return ""
    return subprocess.run([ffmpeg(), "-hide_banner", option], capture_output=True, text=True, check=False).stdout

"""Coded reference pictures: square RGB <-> the smallest AV1 still. Knows no networks, packets or when to send one.

Wire form: one byte of AV1 sequence flags, then the payload of a single AV1 frame OBU. The temporal delimiter, the OBU
headers and the sequence header are not sent: the size is known from the stream header, so both ends write them anew.
Colour is full-range BT.601 in 4:2:0 with centred chroma, converted here in integers, so that two machines that decode
the same bytes show the same pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import BackendUnavailableError, BitstreamError, InferenceError, LimitError, TruncatedError
from .fields import varint
from .packet import SIZE_MAX, SIZE_MIN

if TYPE_CHECKING:
    import av

Array = NDArray[Any]

# Codec numbers on the wire: the coded square; the whole source frame squeezed into that size; the key of a chain.py;
# and what an update's signature speaks of, which has a packet kind of its own.
PICTURE, BACKDROP, KEY, UPDATE = 1, 2, 3, 4
ENCODER, DECODER = "libsvtav1", "libdav1d"
PAYLOAD_MAX = 1 << 20  # bytes; a decoder refuses more (a 1024 x 1024 still at quality 100 is well under half)
CRF_WORST, CRF_BEST = 70.0, 10.0  # SVT-AV1's coarsest; and one past which a 4:2:0 picture hardly gains
CRF_STEP = 0.25  # what SVT-AV1 tells apart
PRESET = 2  # of SVT-AV1; bytes at equal PSNR: preset 1 saves 3 % in 1.6 times the time, preset 0 4 % in 3.5 times
PROBE_PRESET = 8  # 3 ms at 256 x 256: finds the neighbourhood of a byte budget almost for free
BUDGET_AIMS = (1.0, 0.99, 0.95, 0.85)  # of a byte budget: one slow encode each, more careful every time
BUDGET_SLACK = 0.97  # stop looking once this share of the budget is used

# Sequence header bits that steer the decoder, lowest bit of the flags byte first (AV1 spec 5.5.1, 5.5.2). Bit 7: zero.
_FLAGS = (
    "use_128x128_superblock",
    "enable_filter_intra",
    "enable_intra_edge_filter",
    "enable_superres",
    "enable_cdef",
    "enable_restoration",
    "separate_uv_delta_q",
)
OBU_SEQUENCE, OBU_FRAME = 1, 6  # kinds
TEMPORAL_DELIMITER = b"\x12\x00"


def encode_reference(image: Array, *, max_bytes: int | None = None, quality: int = 50, preset: int = PRESET) -> bytes:
    """Code a uint8 RGB (S, S, 3) picture.

    quality: 0 (worst) to 100.
    preset: 0 (slowest, smallest) to 8; 1 is worth it when nobody waits.
    max_bytes: the best picture that fits, never better than ``quality``. When nothing fits, the coarsest picture there
    is comes back, longer than asked: compare its length.
    """
    _check_picture(image)
    if not 0 <= quality <= 100:
        raise ValueError(f"quality is {quality}; it must lie between 0 and 100.")
    planes = planes_from_rgb(image)
    step = round((100 - quality) / 100 * (CRF_WORST - CRF_BEST) / CRF_STEP)
    if max_bytes is None:
        return _encode_still(planes, step, preset)
    return _fit_budget(planes, step, preset, max_bytes)


def decode_reference(data: bytes, size: int) -> Array:
    """Inverse of :func:`encode_reference`: uint8 RGB (size, size, 3). Bad bytes raise BitstreamError, nothing else."""
    _check_size(size)
    if len(data) < 2:
        raise TruncatedError(f"A coded reference has at least 2 bytes; {len(data)} found.", offset=len(data))
    if len(data) > PAYLOAD_MAX:
        raise LimitError(f"A coded reference of {len(data)} bytes exceeds the limit of {PAYLOAD_MAX}.")
    if data[0] & 0x80:
        raise BitstreamError("The reference was coded in a way this version does not know: flag bit 7 is set.")
    stream = TEMPORAL_DELIMITER + obu(OBU_SEQUENCE, _sequence_header(size, data[0])) + obu(OBU_FRAME, data[1:])
    return rgb_from_planes(_decode_still(stream, size))


# --- choosing how coarse ---------------------------------------------------------------------------------------------


def _fit_budget(planes: list[Array], finest: int, preset: int, max_bytes: int) -> bytes:
    """The largest coded picture of at most ``max_bytes``: fast encodes find the step, a few slow ones make sure."""
    coarsest = round((CRF_WORST - CRF_BEST) / CRF_STEP)
    probes: dict[int, int] = {}

    def probe(step: int) -> int:
        if step not in probes:
            probes[step] = len(_encode_still(planes, step, PROBE_PRESET))
        return probes[step]

    low, high = finest, coarsest  # the answer lies between them
    ratio = 0.85  # slow bytes per fast byte, until measured on this picture
    best: bytes | None = None
    for aim in BUDGET_AIMS:
        first, last = low, high
        while first < last:  # finest step expected to fit
            middle = (first + last) // 2
            first, last = (first, middle) if probe(middle) * ratio <= aim * max_bytes else (middle + 1, last)
        coded = _encode_still(planes, first, preset)
        ratio = len(coded) / probe(first)
        if len(coded) > max_bytes:
            low = first + 1
        else:
            best = coded if best is None or len(coded) > len(best) else best
            if first == low or len(coded) >= BUDGET_SLACK * max_bytes:
                return best
            high = first - 1
        if low > high:
            break
    while best is None:  # rare: fast and slow sizes disagree; halve the steps that are left
        low = min((low + coarsest + 1) // 2, coarsest)
        coded = _encode_still(planes, low, preset)
        best = coded if len(coded) <= max_bytes or low == coarsest else None
    return best


# --- AV1 through PyAV ------------------------------------------------------------------------------------------------


def _encode_still(planes: list[Array], step: int, preset: int) -> bytes:
    import av

    size, crf = planes[0].shape[0], CRF_BEST + step * CRF_STEP
    frame = video_frame(planes)
    frame.pts = 0
    try:
        # avif=1 is SVT-AV1's name for one intra picture with the reduced still-picture header
        context = open_encoder(size, preset, f"avif=1:tune=1:crf={crf:.2f}:lp=2")
        packets = [*context.encode(frame), *context.encode(None)]
    except av.FFmpegError as error:
        # before PyAV 18 the library codes one still picture in a process and then no more
        raise InferenceError(
            f"The AV1 encoder {ENCODER} failed on a {size} x {size} picture ({error}); PyAV {av.__version__} is "
            "installed and 18 or later is needed: pip install -U av"
        ) from error
    return _strip(b"".join(bytes(packet) for packet in packets), size)


def open_encoder(size: int, preset: int, parameters: str) -> av.VideoCodecContext:
    """SVT-AV1 for pictures (size, size). parameters: of its own, see its documentation."""
    os.environ.setdefault("SVT_LOG", "-1")  # nothing else keeps the library's banner off stderr
    context = open_codec(ENCODER, "w")
    context.width = context.height = size
    context.pix_fmt = "yuv420p"
    context.time_base, context.framerate = Fraction(1, 25), Fraction(25)  # required by the library, not coded
    context.options = {"preset": str(preset), "svtav1-params": parameters}
    with scheduling_kept():
        context.open()
    return context


def video_frame(planes: list[Array]) -> av.VideoFrame:
    import av

    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], "yuv420p")
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = values
        plane.update(padded.tobytes())
    return frame


@contextmanager
def scheduling_kept() -> Iterator[None]:
    """Undo what opening SVT-AV1 does to threads. Run by root, as in many containers, it makes its own and its caller's
    thread real-time (SCHED_FIFO 99), which starves everything else on the machine for as long as the process lives."""
    before = set(_real_time_threads())
    try:
        yield
    finally:
        for thread in set(_real_time_threads()) - before:
            with suppress(OSError):  # it may have ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time_threads() -> Iterator[int]:
    if not hasattr(os, "sched_getscheduler") or not os.path.isdir("/proc/self/task"):
        return  # not Linux: nothing to undo
    for name in os.listdir("/proc/self/task"):
        with suppress(OSError):
            if os.sched_getscheduler(int(name)) in (os.SCHED_FIFO, os.SCHED_RR):
                yield int(name)


def _decode_still(stream: bytes, size: int) -> list[Array]:
    import av

    context = open_codec(DECODER, "r")
    context.thread_count = 1  # one small picture: threads would cost more than they save
    try:
        frames = [*context.decode(av.Packet(stream)), *context.decode(None)]
    except av.FFmpegError as error:
        raise BitstreamError("The coded reference is damaged: the AV1 decoder cannot read it.") from error
    if len(frames) != 1:
        raise BitstreamError(f"A coded reference must hold one picture; {len(frames)} found.")
    return picture_of(frames[0], size)


def picture_of(frame: av.VideoFrame, size: int) -> list[Array]:
    """Its planes, when it is 4:2:0 of that size."""
    if (frame.width, frame.height, frame.format.name) not in {(size, size, "yuv420p"), (size, size, "yuvj420p")}:
        found = f"{frame.width} x {frame.height} {frame.format.name}"
        raise BitstreamError(f"The coded reference is {found}; expected {size} x {size} yuv420p.")
    return [np.frombuffer(bytes(p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width] for p in frame.planes]


def open_codec(name: str, mode: str) -> av.VideoCodecContext:
    import av

    try:
        return av.CodecContext.create(name, mode)  # type: ignore[call-overload]
    except av.codec.codec.UnknownCodecError as error:
        raise BackendUnavailableError(
            f"The installed PyAV has no {name}, which reference pictures need; install the wheel: pip install -U av"
        ) from error


# --- the bytes around the picture ------------------------------------------------------------------------------------


def _strip(stream: bytes, size: int) -> bytes:
    """Flags byte and frame payload of a one-picture AV1 stream; the rest is put back by :func:`decode_reference`."""
    units = dict(obus(stream))
    sequence, frame = units.get(OBU_SEQUENCE, b""), units.get(OBU_FRAME, b"")
    unleveled = bytes([sequence[0] | 0x07, sequence[1] | 0xC0]) + sequence[2:] if len(sequence) > 2 else b""
    for flags in range(1 << len(_FLAGS)):
        if _sequence_header(size, flags) == unleveled and frame:
            return bytes([flags]) + frame
    raise InferenceError(
        f"This PyAV's {ENCODER} wrote an AV1 sequence header ({sequence.hex()}) that a reference picture cannot use; "
        "neuralcodec was tested with PyAV 18.1."
    )


def _sequence_header(size: int, flags: int) -> bytes:
    """AV1 sequence header (spec 5.5) of one reduced still picture: 8 bit, 4:2:0, square."""
    flag = [flags >> index & 1 for index in range(len(_FLAGS))]
    bits = "000" + "11" + "11111"  # main profile; still picture, reduced header; level 31 is "any size"
    bits += size_bits(size) + "".join(map(str, flag[:6]))
    bits += "0000" + "00"  # 8 bit, colour, nothing said about matrix, range (we convert, so it changes nothing), siting
    bits += f"{flag[6]}0" + "1"  # film grain off; the stop bit
    return whole_bytes(bits)


def size_bits(size: int) -> str:
    """What a sequence header says of square pictures: how many bits sides take, and the sides."""
    width = max(1, (size - 1).bit_length())
    return f"{width - 1:04b}" * 2 + f"{size - 1:0{width}b}" * 2


def whole_bytes(bits: str) -> bytes:
    """Of digits 0 and 1; zeros fill the last byte."""
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def obu(kind: int, payload: bytes) -> bytes:
    return bytes([kind << 3 | 2]) + varint(len(payload)) + payload


def obus(stream: bytes) -> list[tuple[int, bytes]]:
    """(kind, payload) of every OBU that our own encoder wrote (so sizes are present and true)."""
    units, position = [], 0
    while position < len(stream):
        kind = stream[position] >> 3 & 15
        length = shift = 0
        while True:
            position += 1
            length |= (stream[position] & 127) << shift
            shift += 7
            if stream[position] < 128:
                break
        units.append((kind, stream[position + 1 : position + 1 + length]))
        position += 1 + length
    return units


# --- colour ----------------------------------------------------------------------------------------------------------

_FORWARD = np.array([[19595, 38470, 7471], [-11058, -21710, 32768], [32768, -27439, -5329]], np.int32)  # BT.601 << 16


def planes_from_rgb(image: Array) -> list[Array]:
    """Full-range BT.601 Y, Cb, Cr; chroma is the mean of each 2 x 2 block."""
    # colour by colour: six times as fast as products with pixels of three
    rgb = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.int32)
    rows = rgb[:, 0::2] + rgb[:, 1::2]
    blocks = rows[..., 0::2] + rows[..., 1::2]  # (3, S/2, S/2), four pixels each
    (y, *chroma) = (
        red * colours[0] + green * colours[1] + blue * colours[2]
        for (red, green, blue), colours in zip(_FORWARD, (rgb, blocks, blocks), strict=True)
    )
    halves = [np.clip((plane + (1 << 17) >> 18) + 128, 0, 255) for plane in chroma]
    return [plane.astype(np.uint8) for plane in (y + (1 << 15) >> 16, *halves)]


def rgb_from_planes(planes: list[Array]) -> Array:
    y = (planes[0].astype(np.int32) << 20) + (1 << 19)
    cb, cr = _twice(planes[1]), _twice(planes[2])  # 16 times the value
    rgb = np.empty((*y.shape, 3), np.uint8)
    for colour, value in enumerate((y + 91881 * cr, y - 22554 * cb - 46802 * cr, y + 116130 * cb)):
        rgb[..., colour] = np.clip(value >> 20, 0, 255)
    return rgb


def _twice(plane: Array) -> Array:
    """Chroma minus 128 at double size, times 16: bilinear between the block centres."""
    p = np.pad(plane.astype(np.int32) - 128, 1, mode="edge")
    rows = np.empty((2 * plane.shape[0], p.shape[1]), np.int32)
    rows[0::2], rows[1::2] = p[:-2] + 3 * p[1:-1], 3 * p[1:-1] + p[2:]
    both = np.empty((rows.shape[0], 2 * plane.shape[1]), np.int32)
    both[:, 0::2], both[:, 1::2] = rows[:, :-2] + 3 * rows[:, 1:-1], 3 * rows[:, 1:-1] + rows[:, 2:]
    return both


def _check_picture(image: Array) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3:
        raise ValueError(f"A reference is a uint8 RGB (S, S, 3) array; found {image.dtype} {image.shape}.")
    _check_size(image.shape[0])


def _check_size(size: int) -> None:
    if not SIZE_MIN <= size <= SIZE_MAX or size % 2:
        raise ValueError(f"A reference is {SIZE_MIN} to {SIZE_MAX} pixels wide and even; found {size}.")

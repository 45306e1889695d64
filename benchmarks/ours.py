"""One clip through neuralcodec in memory: the file it makes, the frames that come back, bytes by kind, times.

Knows the two facades, the packets and the container; no metric and no other codec.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import FPS, Clip

Array = NDArray[Any]


@dataclass(frozen=True)
class Sent:
    """frames: decoded, one per original frame (a frame that never came repeats the one before, see ``missing``).

    file: the whole .ncv file. bytes_by_kind: packet bytes by packet class, and "container" for what the file adds.
    motion_bytes: motion packet bytes by frame, two or more header bytes in; motion_payload: without them.
    """

    frames: list[Array]
    missing: int
    file: bytes = field(repr=False)
    packets: list[bytes] = field(repr=False)
    bytes_by_kind: dict[str, int]
    motion_bytes: tuple[int, ...]
    motion_payload: tuple[int, ...]
    encode_ms: tuple[float, ...] = field(repr=False)
    decode_ms: tuple[float, ...] = field(repr=False)
    keypoint_error_px: float | None
    library: str

    @property
    def kbps(self) -> float:
        return len(self.file) * 8 * FPS / len(self.frames) / 1000


def send(clip: Clip, *, kbps: float, pack: str | None, device: str) -> Sent:
    """Encode every frame, write the file, decode the file packet by packet."""
    import neuralcodec
    from neuralcodec.container import ContainerReader, ContainerWriter
    from neuralcodec.packet import Motion, StreamHeader, parse_packet

    encoder = neuralcodec.Encoder(target_kbps=kbps, pack=pack, device=device)
    packets: list[bytes] = []
    encode_ms = []
    for pts, frame in enumerate([*clip.frames, None]):
        start = time.perf_counter()
        made = encoder.flush() if frame is None else encoder.encode(frame, pts)
        encode_ms.append((time.perf_counter() - start) * 1000)
        packets += map(bytes, made)
    parsed = [parse_packet(data) for data in packets]
    header = next(packet for packet in parsed if isinstance(packet, StreamHeader))
    file = io.BytesIO()
    writer = ContainerWriter(file, header)
    for packet in packets:
        if packet != bytes(header):  # the writer has put it first already
            writer.write(packet)
    kinds: Counter[str] = Counter()
    for data, packet in zip(packets, parsed, strict=True):
        kinds[type(packet).__name__] += len(data)
    kinds["container"] = file.tell() - kinds.total()
    motion = [(len(data), len(p.payload)) for data, p in zip(packets, parsed, strict=True) if isinstance(p, Motion)]

    decoder = neuralcodec.Decoder(pack=pack, device=device)
    shown: dict[int, Array] = {}
    decode_ms = []
    for packet in ContainerReader(io.BytesIO(file.getvalue())):
        data = bytes(packet)
        start = time.perf_counter()
        frames = decoder.decode(data)
        spent = (time.perf_counter() - start) * 1000
        if frames:
            decode_ms += [spent / len(frames)] * len(frames)
        shown.update((frame.pts, frame.image) for frame in frames)
    error = getattr(encoder.stats, "keypoint_error_px", None)
    return Sent(
        frames=_filled(shown, clip),
        missing=sum(pts not in shown for pts in range(len(clip.frames))),
        file=file.getvalue(),
        packets=packets,
        bytes_by_kind=dict(kinds),
        motion_bytes=tuple(size for size, _ in motion),
        motion_payload=tuple(size for _, size in motion),
        encode_ms=tuple(encode_ms),
        decode_ms=tuple(decode_ms),
        keypoint_error_px=None if error is None else float(error),
        library=f"neuralcodec {neuralcodec.__version__}",
    )


def first_reference(file: bytes, size: int) -> Array:
    """The first reference picture as a receiver sees it, uint8 RGB: what the freeze baseline repeats."""
    from neuralcodec.container import ContainerReader
    from neuralcodec.packet import ReferencePart
    from neuralcodec.reference import decode_reference

    parts: list[bytes] = []
    for packet in ContainerReader(io.BytesIO(file)):
        if isinstance(packet, ReferencePart):
            parts.append(packet.payload)
            if packet.index == packet.count - 1:
                return decode_reference(b"".join(parts), size)
    raise ValueError("The stream holds no reference picture.")


def symbols_digest(file: bytes, tables_path: str) -> str:
    """SHA-256 over every motion symbol in the file, decoded by the integer path alone: no network, no floats."""
    from neuralcodec.container import ContainerReader
    from neuralcodec.entropy import EntropyCoder
    from neuralcodec.packet import Motion
    from neuralcodec.quantizer import MotionTables, advance, start_state

    tables = MotionTables.load(tables_path)
    coder = EntropyCoder(tables)
    state, digest = start_state(tables), sha256()
    for packet in ContainerReader(io.BytesIO(file)):
        if isinstance(packet, Motion):
            before = start_state(tables) if packet.intra else state
            for symbols in coder.decode_group(
                packet.payload,
                packet.frames,
                level=packet.level,
                components=packet.components,
                intra=packet.intra,
                state=before,
            ):
                digest.update(repr(symbols.values).encode())
                state = advance(tables, symbols)
    return digest.hexdigest()


def _filled(shown: dict[int, Array], clip: Clip) -> list[Array]:
    """Frames 0..N-1; what is missing repeats the frame before, black before the first."""
    width, height = clip.size
    frames: list[Array] = []
    for pts in range(len(clip.frames)):
        before = frames[-1] if frames else np.zeros((height, width, 3), np.uint8)
        frame = shown.get(pts, before)
        if frame.shape != clip.frames[0].shape:
            raise ValueError(f"{clip.name}: decoded frames are {frame.shape}, the clip is {clip.frames[0].shape}.")
        frames.append(frame)
    return frames

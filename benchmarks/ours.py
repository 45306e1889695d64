"""One clip through neuralcodec in memory: the file it makes, the frames that come back, bytes by kind, times.

Knows the two facades, the packets and the container; no metric and no other codec.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import FPS, Clip, looked_at

if TYPE_CHECKING:
    from neuralcodec import DecodedFrame, MotionParams

Array = NDArray[Any]

# As neuralcodec.encode_file makes them.
STEADY: dict[str, Any] = {"frames_per_packet": 8, "lookahead": 12}  # with constant_rate
FILE: dict[str, Any] = {**STEADY, "film": True}


@dataclass(frozen=True)
class Sent:
    """frames: decoded, one per original frame (a frame that never came repeats the one before, see ``missing``).

    file: the whole .ncv file. bytes_by_kind: packet bytes by packet class, and "container" for what the file adds.
    motion_bytes: bytes of motion packets a frame, header in; motion_payload: without it. encode_ms: per frame.
    decode_ms: per packet, references among them. keypoint_error_px: mean rms distance of sent from true keypoints, px
    of 256.
    """

    frames: list[Array]
    motions: list[MotionParams] = field(repr=False)  # of the frames that came
    missing: int
    file: bytes = field(repr=False)
    packets: list[bytes] = field(repr=False)
    packet_frames: list[int] = field(repr=False)  # index of the frame whose encode call gave the packet
    first_reference_bytes: int
    bytes_by_kind: dict[str, int]
    motion_bytes: tuple[float, ...]
    motion_payload: tuple[float, ...]
    encode_ms: tuple[float, ...] = field(repr=False)
    decode_ms: tuple[float, ...] = field(repr=False)
    references: int
    updates: int
    as_is_frames: int
    keypoint_error_px: float
    bytes_until: tuple[int, ...] = field(repr=False)  # file size after each frame's packets
    provider: str
    library: str

    @property
    def kbps(self) -> float:
        return len(self.file) * 8 * FPS / len(self.frames) / 1000

    def kbps_until(self, frames: int) -> float | None:
        """Rate of the file cut after so many frames; None when the clip is shorter."""
        if len(self.bytes_until) < frames:
            return None
        return self.bytes_until[frames - 1] * 8 * FPS / frames / 1000


def send(
    clip: Clip, *, kbps: float, pack: str | None, device: str, threads: int | None = None,
    every: int = 1, film: bool = False, **options: Any
) -> Sent:  # fmt: skip
    """Encode every frame, write the file, decode the file packet by packet. options: further ones of the Encoder.

    film: the encoder may look at all frames before it begins, and keeps the rate on average over them.
    every: show only the frames that are `looked_at` (and repeat them), where speed and the others do not matter.
    """
    import neuralcodec
    from neuralcodec.container import ContainerWriter
    from neuralcodec.packet import Motion, Packet, ReferencePart, StreamHeader

    encoder = neuralcodec.Encoder(
        kbps, pack=pack, device=device, crop="none", time_base=Fraction(1, FPS), threads=threads, repeat_header=False,
        film=neuralcodec.Film(enumerate(clip.frames), clip.seconds) if film else None, **options,
    )  # fmt: skip
    made: list[Packet] = []
    made_at: list[int] = []
    file = io.BytesIO()
    writer: ContainerWriter | None = None
    encode_ms: list[float] = []
    bytes_until: list[int] = []
    for pts, frame in enumerate([*clip.frames, None]):
        start = time.perf_counter()
        packets = encoder.flush() if frame is None else encoder.encode(frame, pts)
        if frame is not None:
            encode_ms.append((time.perf_counter() - start) * 1000)
        for packet in packets:
            if writer is None:
                assert isinstance(packet, StreamHeader), "an encoder speaks of itself first"
                writer = ContainerWriter(file, packet)
            else:
                writer.write(packet)
        made += packets
        made_at += [pts] * len(packets)
        if frame is not None:
            bytes_until.append(file.tell())
    if not encoder.stats.references:
        raise neuralcodec.NoFaceError(f"No face was found in any of the {len(clip.frames)} frames of {clip.name}.")
    kinds: Counter[str] = Counter()
    for packet in made:
        kinds[type(packet).__name__] += len(bytes(packet))
    kinds["container"] = file.tell() - kinds.total()
    motion = [packet for packet in made if isinstance(packet, Motion)]

    references = [packet for packet in made if isinstance(packet, ReferencePart)]
    shown = decode(file.getvalue(), clip, pack=pack, device=device, threads=threads, every=every)
    return Sent(
        frames=shown.frames,
        motions=shown.motions,
        missing=shown.missing,
        file=file.getvalue(),
        packets=[bytes(packet) for packet in made],
        packet_frames=made_at,
        first_reference_bytes=sum(len(bytes(part)) for part in references[: references[0].count]),
        bytes_by_kind=dict(kinds),
        motion_bytes=tuple(len(bytes(packet)) / packet.frames for packet in motion for _ in range(packet.frames)),
        motion_payload=tuple(len(packet.payload) / packet.frames for packet in motion for _ in range(packet.frames)),
        encode_ms=tuple(encode_ms),
        decode_ms=shown.decode_ms,
        references=encoder.stats.references,
        updates=encoder.stats.updates,
        as_is_frames=encoder.stats.as_is_frames,
        bytes_until=tuple(bytes_until),
        keypoint_error_px=float(encoder.stats.keypoint_error_px),
        provider=encoder.stats.provider,
        library=f"neuralcodec {neuralcodec.__version__}",
    )


@dataclass(frozen=True)
class Shown:
    """What a receiver made of a file: see :class:`Sent` for the fields."""

    frames: list[Array]
    motions: list[MotionParams]
    missing: int
    decode_ms: tuple[float, ...]


def decode(
    file: bytes, clip: Clip, *, pack: str | None, device: str, threads: int | None = None, every: int = 1
) -> Shown:
    """Decode a file packet by packet; one frame per frame of ``clip``, of which those that are `looked_at` are made."""
    import neuralcodec
    from neuralcodec.container import ContainerReader

    decoder = neuralcodec.Decoder(pack=pack, device=device, threads=threads)
    wanted = looked_at(len(clip.frames), every)
    shown: dict[int, DecodedFrame] = {}
    decode_ms: list[float] = []
    for packet in ContainerReader(io.BytesIO(file)):
        data = bytes(packet)
        start = time.perf_counter()
        frames = decoder.decode(data, wanted=wanted.__contains__)
        decode_ms.append((time.perf_counter() - start) * 1000)
        shown.update((frame.pts, frame) for frame in frames)
    return Shown(
        frames=_filled({pts: frame.image for pts, frame in shown.items() if pts in wanted}, clip),
        motions=[frame.motion for frame in shown.values()],
        missing=sum(pts not in shown for pts in range(len(clip.frames))),
        decode_ms=tuple(decode_ms),
    )


def render(clip: Clip, *, pack: str | None, device: str, threads: int | None = None) -> list[Array]:
    """The networks alone: first frame uncoded as the reference, each frame's motion and scene unquantized."""
    from neuralcodec import load_pack
    from neuralcodec.inference import Inference

    networks = Inference(load_pack(pack), device=device, threads=threads)
    reference = networks.reference(clip.frames[0])
    box, scene, frames = reference.estimate.box, None, []
    for frame in clip.frames:
        estimate = networks.motion(frame, box)
        box, scene = estimate.box, networks.scene(reference, frame, estimate, scene)
        frames.append(networks.render(reference, replace(estimate.relative_to(reference.canonical), scene=scene)))
    return frames


def first_reference(file: bytes, size: int) -> Array:
    """The first reference picture as a receiver sees it, uint8 RGB: what the freeze baseline repeats."""
    from neuralcodec.chain import ChainDecoder
    from neuralcodec.container import ContainerReader
    from neuralcodec.packet import ReferencePart
    from neuralcodec.reference import KEY, decode_reference

    parts: list[bytes] = []
    for packet in ContainerReader(io.BytesIO(file)):
        if isinstance(packet, ReferencePart):
            parts.append(packet.payload)
            if packet.index == packet.count - 1:
                coded = b"".join(parts)
                if packet.codec == KEY:
                    return ChainDecoder(size).key(coded)
                return decode_reference(coded, size)
    raise ValueError("The stream holds no reference picture.")


def follow_symbols(file: bytes, tables: Path) -> tuple[str, list[MotionParams]]:
    """SHA-256 over every motion symbol in the file, and the motion of every frame, by the integer path alone: what any
    receiver must arrive at, without a network and without the Decoder."""
    from neuralcodec.container import ContainerReader
    from neuralcodec.entropy import EntropyCoder
    from neuralcodec.packet import Motion
    from neuralcodec.quantizer import MotionTables, Quantizer, start_state

    loaded = MotionTables.load(tables)
    coder, quantizer = EntropyCoder(loaded), Quantizer(loaded)
    digest, motions = sha256(), []
    for packet in ContainerReader(io.BytesIO(file)):
        if isinstance(packet, Motion):
            if packet.reference is not None:
                quantizer.new_reference()
            for symbols in coder.decode_group(
                packet.payload,
                packet.frames,
                level=packet.level,
                components=packet.components,
                intra=packet.intra,
                state=start_state(loaded) if packet.intra else quantizer.state,
            ):
                digest.update(repr(symbols.values).encode())
                motions.append(quantizer.inverse(symbols))
    return digest.hexdigest(), motions


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

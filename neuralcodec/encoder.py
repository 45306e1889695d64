"""Frames to packets: the sending facade. Reads next to decoder.py; all arithmetic lives in the modules it calls."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .entropy import EntropyCoder
from .face import CropFollower, Face, Square, crop, resize
from .inference import Inference, MotionEstimate, ReferenceFeatures
from .motion import Array, MotionParams
from .pack import Pack, load_pack
from .packet import End, Motion, Packet, ReferencePart, StreamHeader
from .quantizer import Quantizer
from .rate import PERIOD, REFERENCES_HELD, SWITCH, RateControl, distance
from .reference import BACKDROP, PICTURE, PRESET, decode_reference, encode_reference
from .stats import EncoderStats, timed

PART_BYTES = 1150  # of a reference in one packet, so that it fits a datagram with room for headers
WAITING_LIVE = 25  # frames before the first face that a live stream still sends
SURE = 0.5  # confidence below which the motion network does not see a face


@dataclass
class _Held:
    features: ReferenceFeatures
    keypoints: Array
    crop: Square


class Encoder:
    """Encodes pictures of one person.

    target_kbps: everything counted, headers and references too, averaged over seconds; a quiet head takes less.
    pack: folder or name of a model pack, None for the bundled one. device: "auto", "cpu", "cuda" or "tensorrt".
    crop: "auto" follows the face, "none" codes the whole frame, or (x, y, side) in pixels.
    time_base: seconds per pts unit. frame_duration: the usual pts step.
    full_frame: also send the surroundings, so that the receiver can paste the face back. gray: the source is grey.
    repeat_header: send the stream header again with each reference (a live stream needs it, a file does not).
    reference_preset: 0 (slowest, smallest pictures) to 8. Frames wait while a picture is being coded: a call takes 4.
    """

    def __init__(
        self,
        target_kbps: float = 4.0,
        *,
        pack: str | Path | Pack | None = None,
        device: str = "auto",
        crop: str | Sequence[int] = "auto",
        time_base: Fraction | float = Fraction(1, 25),
        frame_duration: int = 1,
        full_frame: bool = False,
        gray: bool = False,
        threads: int | None = None,
        repeat_header: bool = True,
        reference_preset: int = PRESET,
    ) -> None:
        self.pack = pack if isinstance(pack, Pack) else load_pack(pack)
        self.time_base = Fraction(time_base).limit_denominator(1 << 30)
        self.frame_duration = frame_duration
        self.full_frame, self.gray, self.repeat_header = full_frame, gray, repeat_header
        self._preset = reference_preset
        self.stats = EncoderStats()
        self._networks = Inference(self.pack, device=device, threads=threads)
        self._follower = CropFollower.parse(crop) if isinstance(crop, str) else CropFollower("fixed", Square(*crop))
        self._rate = RateControl(target_kbps)
        self._quantizer, self._coder = Quantizer(self.pack.tables), EntropyCoder(self.pack.tables)
        self._held: dict[int, _Held] = {}
        self._active = -1  # id of the reference in use
        self._next_id = 0
        self._face: Face | None = None  # where it was last seen, source pixels
        self._size: tuple[int, int] | None = None
        self._wants_reference = self._wants_intra = False
        self._sequence = 0
        self._pts: int | None = None
        self._intra_at = 0.0
        self._backdrop_due = full_frame
        self._measured = 0  # frames in the mean of keypoint_error_px
        self._waiting: list[int] = []  # pts of frames before the first face

    # --- the facade ---

    def encode(self, image: Any, pts: int) -> list[Packet]:
        """Packets of one frame, each at most a datagram long.

        image: uint8 RGB (H, W, 3) of any size, or an av.VideoFrame. pts: in time_base units, rising. Empty until a
        face has been seen; the frames before it are then sent as stills of that face.
        """
        picture = as_picture(image)
        self._check_pts(pts)
        seconds = float(pts * self.time_base)
        self._rate.advance(seconds)
        self.stats.frames += 1
        packets: list[Packet] = []
        size = (picture.shape[1], picture.shape[0])
        if size != self._size:
            self._size, self._face = size, None
            packets.append(self._header())
            self._wants_reference = True

        with self._timed("face"):
            face = self._face or self._find(picture)
            square = self._follower.update(size, face, seconds)
            tile = crop(picture, square, self.pack.size)
        with self._timed("motion"):
            estimate = self._look(tile, square, face)
        if estimate is None and self._face is not None:  # lost where it was: look over the whole picture once
            self._face = None
            with self._timed("face"):
                face = self._find(picture)
            with self._timed("motion"):
                estimate = self._look(tile, square, face)
        self._face = Face.from_box(square, estimate.box) if estimate else None

        if estimate is None:
            self.stats.face_lost_frames += 1
            if not self._held:
                self._waiting.append(pts)
                if self.repeat_header:  # live: what is long past is shown to nobody
                    del self._waiting[:-WAITING_LIVE]
                self._pts = pts
                return self._sent(packets)
        else:
            packets += self._refresh(picture, tile, square, estimate, seconds)
        for late in self._waiting:
            packets.append(self._motion(estimate, square, late, seconds))
        self._waiting.clear()
        packets.append(self._motion(estimate, square, pts, seconds))
        return self._sent(packets)

    @property
    def target_kbps(self) -> float:
        """The rate aimed at; assign a new one at any time, for example when the network changes."""
        return self._rate.bytes_per_second / 125

    @target_kbps.setter
    def target_kbps(self, value: float) -> None:
        self._rate = RateControl(value)

    def send_reference(self) -> None:
        """Send a new reference picture with the next frame, for example because a receiver asked for one."""
        self._wants_reference = True

    def send_intra(self) -> None:
        """Make the next motion frame decodable without the ones before it."""
        self._wants_intra = True

    def flush(self) -> list[Packet]:
        """The packet that ends the stream."""
        return self._sent([End(self.stats.frames)])

    # --- steps, in order ---

    def _header(self) -> StreamHeader:
        assert self._size is not None
        base = (self.time_base.numerator, self.time_base.denominator)
        return StreamHeader(
            self.pack.id, *self._size, base, self.frame_duration, self.pack.size, self.full_frame, self.gray
        )

    def _find(self, picture: Array) -> Face | None:
        # a fixed square is about the person in it, whoever else is in the picture
        faces = self._networks.detector.detect(picture, near=self._follower.fixed)
        return faces[0] if faces else None

    def _look(self, tile: Array, square: Square, face: Face | None) -> MotionEstimate | None:
        if face is None:
            return None
        estimate = self._networks.motion(tile, face.box_in(square))
        return estimate if estimate.confidence >= SURE else None

    def _refresh(
        self, picture: Array, tile: Array, square: Square, estimate: MotionEstimate, seconds: float
    ) -> list[Packet]:
        """Choose the reference for this frame; send a new one where it is due."""
        near = {
            key: distance(held.keypoints, estimate.placed(square, held.crop).keypoints)
            for key, held in self._held.items()
        }
        best = min(near, key=near.__getitem__, default=-1)
        drift = near.get(best, float("inf"))
        due = self._wants_reference or self._follower.moved or not self._held
        if due or self._rate.affords_reference(drift):
            return self._send_reference(picture, tile, square)
        if best >= 0 and (self._active not in near or drift < SWITCH * near[self._active]):
            self._wants_intra |= best != self._active
            self._active = best
        return []

    def _send_reference(self, picture: Array, tile: Array, square: Square) -> list[Packet]:
        budget = self._rate.reference_bytes if self._held else self._rate.first_bytes
        packets: list[Packet] = [self._header()] if self.repeat_header and self._held else []
        if self._backdrop_due or (self.full_frame and self._follower.moved):
            packets += self._parts(
                encode_reference(
                    resize(picture, *tile.shape[:2]), max_bytes=2 * budget, preset=self._preset
                ),
                BACKDROP,
                square,
            )
            self._backdrop_due = False
        with self._timed("reference"):
            coded = encode_reference(tile, max_bytes=budget, preset=self._preset)
            features = self._networks.reference(decode_reference(coded, self.pack.size))
        packets += self._parts(coded, PICTURE, square)
        self._held[self._next_id] = _Held(features, features.estimate.keypoints, square)
        self._active, self._next_id = self._next_id, (self._next_id + 1) % REFERENCES_HELD
        self._wants_reference, self._wants_intra = False, True
        self.stats.references += 1
        return packets

    def _parts(self, coded: bytes, codec: int, square: Square) -> list[Packet]:
        pieces = [coded[i : i + PART_BYTES] for i in range(0, len(coded), PART_BYTES)]
        digest = hashlib.sha256(coded).digest()[:4]
        place = (square.x, square.y, square.side)
        return [
            ReferencePart(self._next_id, i, len(pieces), codec, digest, place, piece) for i, piece in enumerate(pieces)
        ]

    def _motion(self, estimate: MotionEstimate | None, square: Square, pts: int, seconds: float) -> Motion:
        """``estimate`` was made in ``square``; what is sent is in the square that the reference was cut from."""
        with self._timed("entropy"):
            held, before = self._held[self._active], self._quantizer.last
            reference = held.features
            true = estimate.placed(square, held.crop).relative_to(reference.canonical) if estimate else before
            assert true is not None
            intra = self._wants_intra or before is None or seconds - self._intra_at >= PERIOD
            quality = self._rate.quality
            symbols = self._quantizer.forward(true, level=quality.level, components=quality.components, intra=intra)
            payload = self._coder.encode(symbols)
        if estimate is not None:
            self._note_error(true, reference)
        step = None if self._pts is None else pts - self._pts
        packet = Motion(
            self._sequence, quality.level, quality.components, payload, intra,
            reference=self._active if intra else None, pts=pts if intra else None,
            pts_step=None if intra or step == self.frame_duration else step,
        )  # fmt: skip
        self._sequence, self._pts = (self._sequence + 1) % 256, pts
        if intra:
            self._wants_intra, self._intra_at = False, seconds
            self.stats.intra_frames += 1
        return packet

    # --- bookkeeping ---

    def _note_error(self, true: MotionParams, reference: ReferenceFeatures) -> None:
        seen = self._quantizer.last
        assert seen is not None
        error = distance(true.keypoints(reference.canonical), seen.keypoints(reference.canonical))
        self._measured += 1
        self.stats.keypoint_error_px += (error - self.stats.keypoint_error_px) / self._measured

    def _sent(self, packets: list[Packet]) -> list[Packet]:
        for packet in packets:
            size = len(bytes(packet))
            payload = len(packet.payload) if isinstance(packet, Motion | ReferencePart) else 0
            self.stats.bytes_motion += payload if isinstance(packet, Motion) else 0
            self.stats.bytes_reference += payload if isinstance(packet, ReferencePart) else 0
            self.stats.bytes_overhead += size - payload
            self._rate.spend(size)
        self.stats.packets += len(packets)
        self.stats.provider = self._networks.provider if self._held else ""
        return packets

    def _check_pts(self, pts: int) -> None:
        last = self._waiting[-1] if self._waiting else self._pts
        if last is not None and pts <= last:
            raise ValueError(f"pts {pts} does not follow {last}: timestamps must rise from frame to frame.")

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return timed(self.stats.stage_seconds, stage)


def as_picture(image: Any) -> Array:
    """uint8 RGB (H, W, 3) from an array or an av.VideoFrame."""
    picture = image.to_ndarray(format="rgb24") if hasattr(image, "to_ndarray") else np.asarray(image)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(
            f"A frame is a uint8 RGB (H, W, 3) array or an av.VideoFrame; found {picture.dtype} {picture.shape}."
        )
    return picture

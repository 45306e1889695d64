"""Packets to frames: the receiving facade. Reads next to encoder.py; all arithmetic lives in the modules it calls."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from .concealment import Concealment, conceal, state_after
from .entropy import EntropyCoder
from .errors import BitstreamError, MissingReferenceError, PackMismatchError
from .face import Square, paste, resize
from .gaze import check_layout, eye_contact
from .inference import Inference, ReferenceFeatures
from .motion import Array, MotionParams, View
from .pack import Pack, load_pack
from .packet import Motion, ReferencePart, StreamHeader, parse_packet
from .quantizer import Quantizer, start_state
from .rate import REFERENCES_HELD
from .reference import BACKDROP, PAYLOAD_MAX, PICTURE, decode_reference
from .smoothing import MotionSmoother
from .stats import DecoderStats, timed
from .view import ViewControl

ARRIVING_MAX = 4  # pictures in pieces at a time
LUMA = np.array([77, 150, 29], np.uint16)  # BT.601 weights out of 256


@dataclass(frozen=True)
class DecodedFrame:
    """A shown frame. image: uint8 RGB (H, W, 3), never a view of the decoder's memory. pts: in the stream's time base.
    state: how its motion was found. motion: as the sender coded it. shown: after smoothing and view. reference: id of
    the picture it was made from."""

    image: Array
    pts: int
    state: Concealment
    motion: MotionParams
    reference: int
    shown: MotionParams


@dataclass(frozen=True)
class _Held:
    features: ReferenceFeatures
    crop: Square
    hash: bytes


class Decoder:
    """Decodes one stream. Packets may be lost, doubled or come late; what cannot be shown yet gives no frame.

    pack: folder or name of a model pack, None for the bundled one. device: "auto", "cpu", "cuda" or "tensorrt".
    full_frame: paste the face into the last full picture sent, where the stream carries one; None follows the stream.
    view: turn the head at the receiver; assign `decoder.view` at any time.
    eye_contact: bring the eyes onto the lens, within what eyes can do; `decoder.eye_contact` may be switched any time.
    smooth: calm the trembling of pose and expression; adds no frame of delay.
    None of the three needs anything from the sender.
    """

    def __init__(
        self,
        *,
        pack: str | Path | Pack | None = None,
        device: str = "auto",
        full_frame: bool | None = None,
        view: View | None = None,
        eye_contact: bool = False,
        smooth: bool = False,
        threads: int | None = None,
    ) -> None:
        self.pack = pack if isinstance(pack, Pack) else load_pack(pack)
        self.view = View() if view is None else view
        self.eye_contact = eye_contact
        self.full_frame = full_frame
        self.header: StreamHeader | None = None
        self.stats = DecoderStats()
        self._networks = Inference(self.pack, device=device, threads=threads)
        self._quantizer, self._coder = Quantizer(self.pack.tables), EntropyCoder(self.pack.tables)
        self._turning = ViewControl(self.pack.view_range)
        self._smoother = MotionSmoother() if smooth else None
        self._held: dict[int, _Held] = {}
        self._arriving: dict[tuple[int, int, bytes], dict[int, bytes]] = {}
        self._backdrop: Array | None = None
        self._active = 0  # id that motion refers to
        self._shows: _Held | None = None  # what it named when it was named; a new picture may have taken the id since
        self._lacks_reference = True
        self._sequence: int | None = None  # of the last frame decoded or concealed
        self._pts = 0
        self._broken = True  # predicted frames cannot be followed until the next intra frame
        self._last: MotionParams | None = None
        self._before: MotionParams | None = None
        self._missing = 0

    # --- the facade ---

    def decode(self, data: bytes) -> list[DecodedFrame]:
        """Frames that this packet completes: none for a header or a reference, one or more for motion.

        Raises BitstreamError for bytes that are no packet, PackMismatchError for a stream of another pack. After motion
        that cannot be decoded the decoder waits for an intra frame.
        """
        packet = parse_packet(bytes(data))
        if isinstance(packet, StreamHeader):
            self._on_header(packet)
        elif isinstance(packet, ReferencePart):
            self._on_part(packet)
        elif isinstance(packet, Motion):
            return self._on_motion(packet)
        return []

    @property
    def view(self) -> View:
        """How the head is to be turned. A new one is reached smoothly, and clamped to ``pack.view_range`` (counted in
        ``stats.clamped_frames``). Anything but a View is a ValueError."""
        return self._view

    @view.setter
    def view(self, view: View) -> None:
        if not isinstance(view, View):
            raise ValueError(f"decoder.view is set to {view!r}; expected a View such as View(yaw=10).")
        self._view = view

    def frontalize(self) -> None:
        """Turn the head to face the camera whatever the sender does; ``decoder.view = View()`` ends it."""
        self.view = View(absolute=True)

    @property
    def eye_contact(self) -> bool:
        """Whether eyes are brought onto the lens. ValueError for a pack whose keypoints hold no known eyes."""
        return self._eye_contact

    @eye_contact.setter
    def eye_contact(self, wanted: bool) -> None:
        if not isinstance(wanted, bool):
            raise ValueError(f"eye_contact is {wanted!r}; expected True or False.")
        if wanted:
            check_layout(self.pack.keypoints)
        self._eye_contact = wanted

    @property
    def wants_reference(self) -> bool:
        """True while the picture that motion refers to is not here: ask the sender for one, once a round trip."""
        return self.header is None or self._lacks_reference

    @property
    def wants_intra(self) -> bool:
        """True while motion cannot be followed because some of it was lost: ask the sender for an intra frame."""
        return self._broken

    @property
    def time_base(self) -> Fraction:
        return Fraction(*self._known_header().time_base)

    def conceal(self, pts: int) -> DecodedFrame:
        """A frame for ``pts`` although its packet has not come: the head moves on a little, then rests.

        Raises MissingReferenceError before the first frame was decoded.
        """
        if self._last is None or self._shows is None:
            raise MissingReferenceError(
                "No frame has been decoded yet, so there is nothing to conceal with; wait for a reference."
            )
        self._missing += 1
        self.stats.concealed_frames += 1
        return self._shown(conceal(self._last, self._before, self._missing), pts, state_after(self._missing))

    # --- one method a packet kind ---

    def _on_header(self, header: StreamHeader) -> None:
        if header.pack_id != self.pack.id:
            raise PackMismatchError(
                f"The stream needs the model pack {header.pack_id.hex()}, loaded is '{self.pack.name}' "
                f"{self.pack.id.hex()}: give the decoder the sender's pack."
            )
        if header.size != self.pack.size:
            raise BitstreamError(
                f"The stream codes {header.size} pixels, its pack {self.pack.size}; drop the stream.", rule="R9"
            )
        self.header = header

    def _on_part(self, part: ReferencePart) -> None:
        if self.header is None or part.codec not in (PICTURE, BACKDROP) or part.reference >= REFERENCES_HELD:
            return
        if part.crop[2] > 2 * max(self.header.width, self.header.height, self.pack.size):
            return  # a square far larger than the source has no use but to fill the memory
        held = self._held.get(part.reference)
        if part.codec == PICTURE and held is not None:
            if held.hash == part.hash:
                return  # a doubled packet
            del self._held[part.reference]  # its id is taken; motion that names it must not show the old picture
        key = (part.reference, part.codec, part.hash)
        pieces = self._arriving.setdefault(key, {})
        pieces[part.index] = part.payload
        if sum(map(len, pieces.values())) > PAYLOAD_MAX:
            self._arriving.pop(key)
            self.stats.damaged_references += 1
            return
        if len(pieces) < part.count:
            while len(self._arriving) > ARRIVING_MAX:  # pictures that never become whole must not fill it either
                self._arriving.pop(next(iter(self._arriving)))
            return
        self._arriving.pop(key)
        coded = b"".join(pieces[i] for i in sorted(pieces))
        if hashlib.sha256(coded).digest()[:4] != part.hash or sorted(pieces) != list(range(part.count)):
            self.stats.damaged_references += 1
            return
        with self._timed("reference"):
            picture = decode_reference(coded, self.pack.size)
            if part.codec == BACKDROP:
                self._backdrop = resize(picture, self.header.width, self.header.height)
                return
            self._held[part.reference] = _Held(self._networks.reference(picture), Square(*part.crop), part.hash)
        self._lacks_reference = False
        self.stats.references += 1
        self.stats.provider = self._networks.provider

    def _on_motion(self, packet: Motion) -> list[DecodedFrame]:
        header = self.header
        if header is None or self._is_late(packet):
            return []
        lost = 0 if self._sequence is None else (packet.sequence - self._sequence - 1) % 256
        if lost:
            self.stats.lost_frames += lost
            self._broken = True
        self._sequence = (packet.sequence + packet.frames - 1) % 256
        step = header.frame_duration if packet.pts_step is None else packet.pts_step
        first = packet.pts if packet.pts is not None else self._pts + lost * header.frame_duration + step
        self._pts = first + (packet.frames - 1) * header.frame_duration
        if packet.reference is not None:
            self._lacks_reference = packet.reference not in self._held
            if not self._lacks_reference:
                self._active, self._shows = packet.reference, self._held[packet.reference]
        if self._shows is None or self._lacks_reference or (self._broken and not packet.intra):
            self._broken = True
            self.stats.waiting_packets += 1
            if self._last is None:
                return []
            # something came: keep the picture moving until an intra frame
            return [self.conceal(first + i * header.frame_duration) for i in range(packet.frames)]
        self._broken = True  # until the payload has proved good
        with self._timed("entropy"):
            before = start_state(self.pack.tables) if packet.intra else self._quantizer.state
            group = self._coder.decode_group(
                packet.payload, packet.frames, level=packet.level, components=packet.components, intra=packet.intra,
                state=before,
            )  # fmt: skip
        self._broken, self._missing = False, 0
        frames = []
        for i, symbols in enumerate(group):
            self._before, self._last = (None if packet.intra else self._last), self._quantizer.inverse(symbols)
            frames.append(self._shown(self._last, first + i * header.frame_duration, Concealment.RECEIVED))
        return frames

    # --- showing ---

    def _shown(self, motion: MotionParams, pts: int, state: Concealment) -> DecodedFrame:
        held = self._shows
        assert held is not None
        reference, canonical = held.features.estimate.motion, held.features.canonical
        seconds = float(pts * self.time_base)
        with self._timed("view"):
            calm = self._smoother.smooth(motion, seconds) if self._smoother else motion
            seen = self._turning.apply(self._view, calm, reference, seconds)
            self.stats.clamped_frames += seen.clamped
        with self._timed("render"):
            picture = self._networks.render(held.features, seen.motion)
        if self._eye_contact:
            with self._timed("view"):
                follows = self.pack.view_range.gaze
                picture = eye_contact(picture, seen.motion, calm, reference, canonical, follows)
        with self._timed("paste"):
            picture = self._composed(picture, held.crop)
        self.stats.frames += 1
        return DecodedFrame(picture, pts, state, motion, self._active, seen.motion)

    def _composed(self, picture: Array, square: Square) -> Array:
        """At the source's size when it was coded whole or is to be pasted back, else the coded square as it is."""
        header = self._known_header()
        if header.gray:
            luma = (picture.astype(np.uint16) @ LUMA >> 8).astype(np.uint8)
            picture = luma[..., None].repeat(3, axis=2)
        wanted = header.full_frame if self.full_frame is None else self.full_frame
        if wanted and self._backdrop is not None:
            return paste(self._backdrop, square, picture)
        if square == Square.covering((header.width, header.height)):
            whole = resize(picture, square.side, square.side)
            return whole[-square.y : header.height - square.y, -square.x : header.width - square.x]
        return picture

    # --- bookkeeping ---

    def _is_late(self, packet: Motion) -> bool:
        """Whether the packet is older than the last one shown (or a double): its frame's time has passed."""
        if self._sequence is None or (packet.pts is not None and packet.pts > self._pts):
            return False
        return (packet.sequence - self._sequence) % 256 == 0 or (packet.sequence - self._sequence) % 256 >= 192

    def _known_header(self) -> StreamHeader:
        if self.header is None:
            raise MissingReferenceError("The stream header has not arrived yet; feed it to decode() first.")
        return self.header

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return timed(self.stats.stage_seconds, stage)

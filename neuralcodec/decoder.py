"""Packets to frames: the receiving facade. Reads next to encoder.py; all arithmetic lives in the modules it calls."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .chain import ChainDecoder
from .concealment import Concealment, conceal, state_after
from .entropy import EntropyCoder
from .errors import BitstreamError, LimitError, MissingReferenceError, PackMismatchError
from .face import Square, paste, resize
from .fragments import ARRIVING_MAX, Assembler, Part
from .inference import Inference, ReferenceFeatures
from .motion import Array, MotionParams, View
from .pack import Pack, load_pack
from .packet import (
    SIGNED,
    Bundle,
    Feedback,
    Motion,
    Packet,
    Parity,
    ReferencePart,
    StreamHeader,
    Update,
    parse_packet,
)
from .quantizer import Quantizer, State, start_state
from .rate import REFERENCES_HELD
from .reference import BACKDROP, KEY, PICTURE, decode_reference
from .signing import SIGNATURE_BYTES, public_key, statement, verify
from .stats import DecoderStats, timed

REORDER = 32  # frames: motion that comes out of order within so many still finds its place
SILENT = 2  # frames concealed in a row after which an intra frame is wanted although nothing came that shows a gap
JUMP = 0.15  # coded-picture units, or of log scale, from one frame to the next: more is another crop, not the head
FORGET = 128  # frames missing after which the 8-bit sequence numbers may have gone round
LUMA = np.array([77, 150, 29], np.uint16)  # BT.601 weights out of 256


@dataclass(frozen=True)
class DecodedFrame:
    """A shown frame. image: uint8 RGB (H, W, 3), never a view of the decoder's memory. pts: in the stream's time base.
    state: how its motion was found. reference: id of the picture it was made from."""

    image: Array
    pts: int
    state: Concealment
    motion: MotionParams
    reference: int


@dataclass(frozen=True)
class _Held:
    features: ReferenceFeatures
    crop: Square
    id: int
    hash: bytes


class Decoder:
    """Decodes one stream. Packets may be lost, doubled or come late; what cannot be shown yet gives no frame.

    pack: folder or name of a model pack, None for the bundled one. device: "auto", "cpu", "cuda" or "tensorrt".
    full_frame: paste the face into the last full picture sent, where the stream carries one; None follows the stream.
    view: turn the head at the receiver; assign `decoder.view` at any time.
    trusted_sender: an Ed25519 public key, its file or its 64 hexadecimal digits: pictures that this key did not sign
        for this pack, place and `signing_context` are never shown (`.stats.rejected_references` counts them).
    max_pixels: of the source picture; a stream that claims more is refused before memory is taken (default: past 4K).
    """

    def __init__(
        self,
        *,
        pack: str | Path | Pack | None = None,
        device: str = "auto",
        full_frame: bool | None = None,
        view: View | None = None,
        threads: int | None = None,
        trusted_sender: Any = None,
        signing_context: bytes = b"",
        max_pixels: int = 1 << 23,
    ) -> None:
        self.pack = pack if isinstance(pack, Pack) else load_pack(pack)
        self.view = view or View()
        self.full_frame = full_frame
        self.header: StreamHeader | None = None
        self.stats = DecoderStats()
        self._networks = Inference(self.pack, device=device, threads=threads)
        self._quantizer, self._coder = Quantizer(self.pack.tables), EntropyCoder(self.pack.tables)
        self._trusted = None if trusted_sender is None else public_key(trusted_sender)
        self._context, self._max_pixels = signing_context, max_pixels
        self._held: dict[int, _Held] = {}  # by place: id modulo REFERENCES_HELD
        self._assembler = Assembler()
        self._pictures: ChainDecoder | None = None
        self._square = Square(0, 0, 1)  # of the chain's last picture
        self._pieces: dict[bytes, dict[int, bytes]] = {}  # of updates, by hash
        self._early: dict[bytes, tuple[Update, bytes]] = {}  # updates that came before the one they follow
        self._backdrop: Array | None = None
        self._active = 0  # id that motion refers to
        self._shows: _Held | None = None  # what it named when it was named; a new picture may have taken the id since
        self._lacks_reference = True
        self._sequence: int | None = None  # newest frame seen
        self._pts = 0
        self._broken = True  # the newest frame could not be followed
        self._chain: int | None = None  # newest frame whose motion is known exactly
        self._past: dict[int, tuple[State, int]] = {}  # state after and pts of such frames, the last REORDER
        self._ahead: dict[int, Motion] = {}  # motion that came before the frames it continues
        self._reported = [0, 0]  # frames expected and received since the last feedback
        self._last: MotionParams | None = None
        self._before: MotionParams | None = None
        self._missing = 0
        self._wanted: Callable[[int], bool] | None = None
        self._as_is = False  # the newest frame shows its reference as it is

    # --- the facade ---

    def decode(self, data: bytes, *, wanted: Callable[[int], bool] | None = None) -> list[DecodedFrame]:
        """Frames that this packet completes: none for a header or a reference, one or more for motion.

        wanted: asked with a pts whether that frame will be shown; the images of the others stay empty (0, 0, 3). For
        a receiver that is late.

        Raises BitstreamError for bytes that are no packet, PackMismatchError for a stream of another pack. After motion
        that cannot be decoded the decoder waits for an intra frame.
        """
        packet = parse_packet(bytes(data))
        self._wanted = wanted
        try:
            return self._on_bundle(packet) if isinstance(packet, Bundle) else self._on_packet(packet)
        finally:
            self._wanted = None

    @property
    def wants_reference(self) -> bool:
        """True while the picture that motion refers to is not here: ask the sender for one, once a round trip."""
        return self.header is None or self._lacks_reference

    @property
    def wants_intra(self) -> bool:
        """True while motion cannot be followed because some of it was lost: ask the sender for an intra frame."""
        return self._broken or self._missing >= SILENT

    def feedback(self, lost: float | None = None) -> Feedback:
        """What to tell the sender, once a round trip: its ``Encoder.on_feedback`` takes it, as it is or as bytes.

        lost: share of datagrams that did not come since the last call, when the transport knows it (0..1); otherwise
        it is estimated from the frame numbers.
        """
        if self._sequence is None:
            return Feedback(need_reference=self.wants_reference, need_intra=self.wants_intra)
        expected, received = self._reported
        self._reported = [0, 0]
        share = lost if lost is not None else (expected - received) / expected if expected else 0.0
        held = tuple(sorted(held.id for held in self._held.values()))
        return Feedback(
            self._sequence, min(255, max(0, round(256 * share))), held, self.wants_reference, self.wants_intra
        )

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
        if self._missing >= FORGET:
            self._forget()
        self.stats.concealed_frames += 1
        return self._shown(conceal(self._last, self._before, self._missing), pts, state_after(self._missing))

    # --- one method a packet kind ---

    def _on_packet(self, packet: Packet) -> list[DecodedFrame]:
        if isinstance(packet, StreamHeader):
            self._on_header(packet)
        elif isinstance(packet, ReferencePart | Parity):
            self._on_part(packet)
        elif isinstance(packet, Update):
            self._on_update(packet)
        elif isinstance(packet, Motion):
            return self._on_motion(packet)
        return []

    def _on_bundle(self, packet: Bundle) -> list[DecodedFrame]:
        frames: list[DecodedFrame] = []
        problem: BitstreamError | None = None
        for inside in packet.packets:  # one that cannot be used does not cost the others
            try:
                frames += self._on_packet(inside)
            except BitstreamError as error:
                problem = error
        if problem is not None and not frames:
            raise problem
        return frames

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
        if header.width * header.height > self._max_pixels:
            raise LimitError(
                f"The stream is {header.width} x {header.height}; this decoder takes {self._max_pixels} pixels. "
                "Give it a larger max_pixels if you trust the sender.",
                rule="R7",
            )
        self.header = header

    def _on_part(self, part: Part) -> None:
        codec, place = part.codec & ~SIGNED, part.reference % REFERENCES_HELD
        if self.header is None or codec not in (PICTURE, BACKDROP, KEY) or not self._fits(part.crop):
            return
        if self._trusted is not None and not part.codec & SIGNED:
            self.stats.rejected_references += part.index == 0
            return
        held = self._held.get(place)
        if codec != BACKDROP and held is not None and (held.id, held.hash) == (part.reference, part.hash):
            return  # a doubled packet
        damaged = self._assembler.damaged
        coded = self._assembler.add(part)
        self.stats.damaged_references += self._assembler.damaged - damaged
        if self._trusted is None and codec != BACKDROP and held is not None and held.id == part.reference:
            del self._held[place]  # its id is taken; motion that names it must not show the old picture
        if coded is None:
            return
        if part.codec & SIGNED:
            signature, coded = coded[:SIGNATURE_BYTES], coded[SIGNATURE_BYTES:]
            source = self.header.width, self.header.height
            said = statement(self.pack.id, source, part.reference, codec, part.crop, coded, self._context)
            if self._trusted is not None and not verify(self._trusted, signature, said):
                self.stats.rejected_references += 1
                return
        with self._timed("reference"):
            if codec == KEY:
                self._pictures, self._square = ChainDecoder(self.pack.size), Square(*part.crop)
                picture = self._pictures.key(coded, part.hash)
            else:
                picture = decode_reference(coded, self.pack.size)
        if codec == BACKDROP:
            self._backdrop = resize(picture, self.header.width, self.header.height)
            return
        self._hold(part.reference, picture, Square(*part.crop), part.hash)
        self.stats.references += 1
        self._follow_updates()

    def _on_update(self, part: Update) -> None:
        # nothing in an update proves who made it, so a decoder that asks for proof does without
        if self.header is None or self._trusted is not None or (part.crop and not self._fits(part.crop)):
            return
        held = self._held.get(part.reference % REFERENCES_HELD)
        if part.hash in self._early or (held is not None and held.hash == part.hash):
            return  # a doubled packet
        pieces = self._pieces.setdefault(part.hash, {})
        pieces[part.index] = part.payload
        if sorted(pieces) == list(range(part.count)):
            self._early[part.hash] = part, b"".join(pieces[i] for i in range(part.count))
            del self._pieces[part.hash]
            self._follow_updates()
        for waiting, most in ((self._pieces, ARRIVING_MAX), (self._early, REFERENCES_HELD)):
            while len(waiting) > most:
                del waiting[next(iter(waiting))]

    def _follow_updates(self) -> None:
        """Decode the updates that are here and follow the last picture of the chain."""
        while (chain := self._pictures) is not None:
            following = [e for e in self._early.values() if chain.follows(e[1], e[0].hash)]
            if not following:
                return
            part, coded = following[0]
            del self._early[part.hash]
            with self._timed("reference"):
                picture = chain.update(coded, part.hash)
            self._square = Square(*part.crop) if part.crop else self._square
            self._hold(part.reference, picture, self._square, part.hash)
            self.stats.updates += 1

    def _fits(self, crop: tuple[int, int, int]) -> bool:
        """Whether the square is of use: one far larger than the source would only fill the memory."""
        header = self._known_header()
        return crop[2] <= 2 * max(header.width, header.height, self.pack.size)

    def _hold(self, reference: int, picture: Array, square: Square, digest: bytes) -> None:
        place = reference % REFERENCES_HELD
        self._held[place] = _Held(self._networks.reference(picture), square, reference, digest)
        if reference == self._active and self._lacks_reference:
            self._lacks_reference, self._shows = False, self._held[place]
        self.stats.provider = self._networks.provider

    def _on_motion(self, packet: Motion) -> list[DecodedFrame]:
        header = self.header
        if header is None:
            return []
        end = (packet.sequence + packet.frames - 1) % 256
        steps = packet.frames if self._sequence is None else (end - self._sequence) % 256
        if self._sequence is not None and (steps == 0 or steps >= 192):
            if packet.pts is not None and packet.pts > self._pts:  # after a long silence
                steps = steps or 256
            elif self._chain is None or 0 < (end - self._chain) % 256 < 128:
                steps = 0  # its time has passed, but it may fill a gap
            else:
                return []  # a double, or older than what is known
        fresh, lost = min(steps, packet.frames), max(0, steps - packet.frames)
        known = self._past.get((packet.sequence - 1) % 256)
        step = header.frame_duration if packet.pts_step is None else packet.pts_step
        rest = (packet.frames - 1) * header.frame_duration
        first = self._pts + (steps - packet.frames) * header.frame_duration + step  # a guess, unless it says or we know
        if packet.pts is not None:
            first = packet.pts
        elif known is not None:
            first = known[1] + step
        if steps:
            self._reported[0] += steps
            self._reported[1] += fresh if packet.sequence not in self._past else 1
            self.stats.lost_frames += lost
            self._sequence, self._pts = end, first + rest
            self._as_is = packet.as_is
        self._broken = True  # until the payload has proved good
        if packet.reference is not None:
            self._name(packet.reference)
        if packet.intra:
            if steps:
                self._ahead.clear()
            known = start_state(self.pack.tables), first
        if known is None:
            self._ahead[packet.sequence] = packet
            while len(self._ahead) > REORDER:
                del self._ahead[next(iter(self._ahead))]
            times = range(packet.frames - fresh, packet.frames)
            return self._held_over([first + i * header.frame_duration for i in times])
        motions = self._follow(packet, known[0], first)
        if packet.intra:  # nothing older is of use, and after a long silence its numbers would mislead
            self._past = {end: self._past[end]}
        if not steps:
            self.stats.lost_frames -= min(packet.frames, self.stats.lost_frames)
        self._catch_up()
        self._broken = self._chain != self._sequence
        if not steps and not self._broken:  # the gap was filled: go on from what is known now
            self._pts = next(reversed(self._past.values()))[1]
        return self._show_news(motions[packet.frames - fresh :], intra=packet.intra)

    def _name(self, reference: int) -> None:
        """Motion is from now on relative to this reference."""
        held = self._held.get(reference % REFERENCES_HELD)
        self._active = reference
        self._lacks_reference = held is None or held.id != reference
        if not self._lacks_reference:
            self._shows = held

    def _follow(self, packet: Motion, state: State, first: int) -> list[tuple[MotionParams, int]]:
        """Motion and pts of every frame of a packet whose earlier frames are known; remembers their states."""
        with self._timed("entropy"):
            group = self._coder.decode_group(
                packet.payload, packet.frames, level=packet.level, components=packet.components, intra=packet.intra,
                state=state,
            )  # fmt: skip
        found = []
        for i, symbols in enumerate(group):
            self._chain = (packet.sequence + i) % 256
            pts = first + i * self._known_header().frame_duration
            found.append((self._quantizer.inverse(symbols), pts))
            self._past.pop(self._chain, None)
            self._past[self._chain] = self._quantizer.state, pts
        while len(self._past) > REORDER:
            del self._past[next(iter(self._past))]
        return found

    def _catch_up(self) -> None:
        """Follow the packets that were ahead of a gap which has been filled."""
        while ready := [p for p in self._ahead.values() if (p.sequence - 1) % 256 in self._past]:
            for packet in ready:
                del self._ahead[packet.sequence]
                state, pts = self._past[(packet.sequence - 1) % 256]
                end = (packet.sequence + packet.frames - 1) % 256
                if end not in self._past and (end - (self._chain or 0)) % 256 < 128:
                    step = self._known_header().frame_duration if packet.pts_step is None else packet.pts_step
                    with suppress(BitstreamError):
                        motions = self._follow(packet, state, pts + step)
                        if not self._lacks_reference:
                            self._before, self._last = None, motions[-1][0]

    def _forget(self) -> None:
        """So much is missing that frame numbers say nothing any more: only an intra frame can go on."""
        self._past.clear()
        self._ahead.clear()
        self._chain, self._broken = None, True

    # --- showing ---

    def _show_news(self, motions: list[tuple[MotionParams, int]], *, intra: bool) -> list[DecodedFrame]:
        frames = []
        for motion, pts in motions:
            if self._shows is None or (self._lacks_reference and not self._near(motion)):
                frames += self._held_over([pts])
                continue
            self._before, self._last, self._missing = (None if intra else self._last), motion, 0
            borrowed = self._lacks_reference
            self.stats.waiting_packets += borrowed
            frames.append(self._shown(motion, pts, Concealment.BORROWED if borrowed else Concealment.RECEIVED))
        return frames

    def _held_over(self, times: list[int]) -> list[DecodedFrame]:
        """Concealed frames for motion that cannot be used: something came, so the picture keeps moving."""
        self.stats.waiting_packets += 1
        return [self.conceal(pts) for pts in times] if self._last is not None else []

    def _near(self, motion: MotionParams) -> bool:
        """Whether motion meant for a reference that is not here can be shown on the one that is: both pictures were
        then most likely cut from the same place. A jump says that they were not."""
        if self._last is None:
            return False
        jump = np.abs(motion.translation - self._last.translation).max(), abs(np.log(motion.scale / self._last.scale))
        return bool(max(jump) < JUMP)

    def _shown(self, motion: MotionParams, pts: int, state: Concealment) -> DecodedFrame:
        held = self._shows
        assert held is not None
        if self._wanted is not None and not self._wanted(pts):
            return DecodedFrame(np.zeros((0, 0, 3), np.uint8), pts, state, motion, held.id)
        if self._as_is and self.view == View():
            picture = held.features.picture.copy()
            self.stats.as_is_frames += 1
        else:
            with self._timed("reference"):
                held.features.feeds  # noqa: B018  computed when first asked for
            with self._timed("render"):
                picture = self._networks.render(
                    held.features, motion if self.view == View() else motion.turned(self.view)
                )
        with self._timed("paste"):
            picture = self._composed(picture, held.crop)
        self.stats.frames += 1
        return DecodedFrame(picture, pts, state, motion, held.id)

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

    def _known_header(self) -> StreamHeader:
        if self.header is None:
            raise MissingReferenceError("The stream header has not arrived yet; feed it to decode() first.")
        return self.header

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return timed(self.stats.stage_seconds, stage)

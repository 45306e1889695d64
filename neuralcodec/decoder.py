"""Packets to frames: the receiving facade. Reads next to encoder.py; all arithmetic lives in the modules it calls."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .closed_eyes import ClosedEyes, with_eyes
from .concealment import Concealment, conceal, state_after
from .entropy import EntropyCoder
from .errors import BitstreamError, LimitError, MissingReferenceError, PackMismatchError, check_flags
from .face import Square, luma, paste, place_of, placed, resize, square_at
from .framing import Framing, seen_in
from .gaze import check_layout, eye_contact
from .inference import SURE, Inference, ReferenceFeatures
from .light import relit
from .motion import Array, MotionParams, View
from .pack import Pack, load_pack
from .packet import Bundle, Feedback, Motion, Packet, Parity, ReferencePart, StreamHeader, Update, parse_packet
from .pictures import HeldPicture, Pictures
from .protection import ROUND_TRIP, LossMeter, Reports
from .quantizer import Quantizer, State, at_new_reference, start_state
from .smoothing import MotionSmoother, PictureFade, PictureSmoother, between
from .stats import DecoderStats, timed
from .view import ViewControl

REORDER = 32  # frames: motion that comes out of order within so many still finds its place
SILENT = 2  # frames concealed in a row after which an intra frame is wanted although nothing came that shows a gap
JUMP = 0.15  # coded-picture units, or of log scale, from one frame to the next: more is another crop, not the head
FORGET = 128  # frames missing after which the 8-bit sequence numbers may have gone round
LATE = 8  # packets in a row that are late and no doubles, each newer than the one before: the numbers have gone round
EARLY = 16  # packets kept that came before the stream header
DRAWN = 8  # times max_pixels that the frames of one packet may have together, if all are as large as the source


@dataclass(frozen=True, eq=False)  # by its arrays no frame could be compared or looked up
class DecodedFrame:
    """A shown frame. image: uint8 RGB (H, W, 3), never a view of the decoder's memory: the coded square, 256 x 256 with
    the bundled pack; of the source's size where all of it is coded or the face is pasted back, which may begin within a
    stream. pts: in the stream's time base. state: how its motion was found. motion: as the sender coded it. shown:
    after smoothing and view, told in what image shows. reference: id of the picture it was made from. as_is: it is that
    picture itself, whatever its motion. square: what image shows of the source, which follows the head, to the nearest
    pixel; None where image has the source's size."""

    image: Array
    pts: int
    state: Concealment
    motion: MotionParams
    reference: int
    shown: MotionParams
    as_is: bool = False
    square: Square | None = None


@dataclass(frozen=True)
class _Plan:
    """A frame of which all is decided, and nothing drawn yet. picture: a reference as it is, or the empty picture of a
    frame that nobody will see; None where the renderer is to draw. calm: before the view, shown: after it. eyes: the
    picture that they come from, where that is another. before: where the frame before was drawn from another picture of
    the same place, that one and the motion that draws this frame from it. contact: whether eyes are brought onto the
    lens, as it was wished when the rest was decided: another thread may change that before the frame is drawn. light:
    on the frame, see light.py. place: what is shown, see framing.py; None: all of the source."""

    pts: int
    state: Concealment
    motion: MotionParams
    held: HeldPicture
    calm: MotionParams
    shown: MotionParams
    picture: Array | None = None
    eyes: ReferenceFeatures | None = None
    before: tuple[ReferenceFeatures, MotionParams] | None = None
    contact: bool = False
    light: float = 0.0
    place: Array | None = None


class Decoder:
    """Decodes one stream. Packets may be lost, doubled or come late; what cannot be shown yet gives no frame. A sender
    that starts again begins another stream, which takes another Decoder. For one thread at a time.

    pack: folder or name of a model pack, None for the bundled one. device: "auto", "cpu", "cuda" or "tensorrt".
    full_frame: paste the face into the last full picture sent, where the stream carries one; None follows the stream.
    view: turn the head at the receiver; assign `decoder.view` at any time.
    eye_contact: bring the eyes onto the lens, within what eyes can do; `decoder.eye_contact` may be switched any time.
    smooth: calm the trembling of pose and expression where frames are rendered; adds no frame of delay.
    steady: what hardly differs from the picture shown before changes half as much, one reference picture fades into the
        next, and of frames that share a packet what is around the head moves evenly: less flicker, and no jolt. Off:
        all is shown as it was sent.
    None of these needs anything from the sender.
    trusted_sender: an Ed25519 public key, its file or its 64 hexadecimal digits: pictures that this key did not sign
        for this pack, place and `signing_context` are never shown nor built upon (`.stats.rejected_references` counts
        them).
    max_pixels: of the source picture; a stream that claims more, or a square of more than twice as many to be drawn, is
        refused before memory is taken (default: past 4K, and no side longer than 5792); so is a packet of frames that
        would take eight times as many together.
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
        steady: bool = True,
        threads: int | None = None,
        trusted_sender: Any = None,
        signing_context: bytes = b"",
        max_pixels: int = 1 << 24,
    ) -> None:
        if not isinstance(max_pixels, int | np.integer) or max_pixels < 1:
            raise ValueError(f"max_pixels is {max_pixels!r}; expected a whole number of pixels, at least 1.")
        check_flags(full_frame=full_frame or False, smooth=smooth, steady=steady)
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
        self._steady = PictureSmoother() if steady else None
        self._fade = PictureFade()
        self._drew: tuple[HeldPicture, MotionParams] | None = None  # the frame before, where one was
        self._closed_eyes = ClosedEyes()
        self._framing = Framing()
        self._max_pixels, self._max_side = max_pixels, math.isqrt(2 * max_pixels)
        self._pictures = Pictures(
            self.pack, self._networks, self.stats, trusted_sender, signing_context, max_side=self._max_side
        )
        self._early: deque[Packet] = deque(maxlen=EARLY)  # they came before the header
        self._active = 0  # id of the picture that motion refers to
        self._named_ago = 0  # frames from the one that said so to the newest
        self._shows: HeldPicture | None = None  # it, or the one before while it is not here
        self._lacks_reference = True
        self._as_is = False  # the last frame was a picture as it is
        self._light, self._light_to, self._light_in = 0.0, 0, 0  # on the last frame, then on the last of so many
        self._light_told_ago = 256  # frames from the one that it was told of last to the newest
        self._sequence: int | None = None  # newest frame seen
        self._pts = 0
        self._broken = True  # the newest frame could not be followed
        self._followed: int | None = None  # newest frame whose motion is known exactly
        self._past: dict[int, tuple[State, int]] = {}  # state after and pts of such frames, the last REORDER
        self._ahead: dict[int, Motion] = {}  # motion that came before the frames it continues
        self._losses = LossMeter()
        self._reports = Reports()
        self._came = self._steps = 0  # motion frames in the packet that is being decoded, and how far they lead
        self._began = False  # one of them is intra
        self._last: MotionParams | None = None
        self._before: MotionParams | None = None
        self._last_crop: Square | None = None  # that the last motion is told in
        self._recut = False  # it was told in another
        self._showed: HeldPicture | None = None  # as it was, with the last frame
        nothing = np.zeros((0, 0, 3), np.uint8)
        self._surroundings = nothing, 0.0, nothing  # as they came; a light, and they in it
        self._still = np.zeros((self.pack.scene**2, 2), np.float32)
        self._drawn = self._moved = self._still  # the scene as shown last, and what to add while a picture is not here
        self._missing = 0  # frames concealed in a row
        self._unfollowed = 0  # frames in a row without motion of their own, pictures shown as they are among them
        self._late: tuple[int, int] | None = None  # number of the last packet that was late, and how many such came
        self._left_pixels = 0  # that may yet be drawn for this packet
        self._wanted: Callable[[int], bool] | None = None

    # --- the facade ---

    def decode(
        self, data: bytes | bytearray | memoryview, *, wanted: Callable[[int], bool] | None = None
    ) -> list[DecodedFrame]:
        """Frames that this packet completes: none for a reference, one or more for motion, and for the header those of
        packets that came before it.

        wanted: asked with a pts whether that frame will be shown; the images of the others stay empty (0, 0, 3). For
        a receiver that is late.

        Raises BitstreamError for bytes that are no packet, PackMismatchError for a stream of another pack. After motion
        that cannot be decoded the decoder waits for an intra frame.
        """
        if not isinstance(data, bytes | bytearray | memoryview):  # of 5 bytes() would make five zeros
            raise ValueError(f"A packet is bytes; found {data!r:.40}.")
        packet = parse_packet(bytes(data))
        self._wanted, self._came, self._steps, self._began = wanted, 0, 0, False
        self._left_pixels = DRAWN * self._max_pixels
        try:
            return self._on_each(packet.packets) if isinstance(packet, Bundle) else self._on_packet(packet)
        finally:
            self._wanted = None
            self._losses.add(self._came, self._steps, intra=self._began)

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
        check_flags(eye_contact=wanted)
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
        return self._broken or self._missing >= SILENT

    def wants_feedback(self, seconds: float, round_trip: float = ROUND_TRIP) -> bool:
        """Whether :meth:`feedback` is to be sent now; ask after every datagram, and when none came. What is told soon
        is repaired soon.

        seconds: of any clock that does not go back. round_trip: seconds until an answer can be here. True counts as
        sent.
        """
        return self._reports.due(
            seconds, round_trip, self._pictures.ids,
            lacks=self.wants_reference or self.wants_intra, began=self._newest is not None,
        )  # fmt: skip

    def feedback(self, lost: float | None = None) -> Feedback:
        """What to tell the sender when :meth:`wants_feedback`: its ``Encoder.on_feedback`` takes it, as it is or as
        bytes.

        lost: share of datagrams that did not come since the last call, when the transport knows it (0..1); otherwise
        it is estimated from the frame numbers.
        """
        if lost is not None and not 0 <= lost <= 1:
            raise ValueError(f"lost is {lost}; expected a share of datagrams, 0 to 1.")
        newest = self._newest
        if newest is None:
            return Feedback(need_reference=self.wants_reference, need_intra=self.wants_intra)
        seen = self._losses.share()
        loss, held = min(255, round(256 * (seen if lost is None else lost))), self._pictures.ids
        return Feedback(newest, loss, held, self.wants_reference, self.wants_intra)

    @property
    def _newest(self) -> int | None:
        """Number of the newest frame seen, be it one that still waits for the header."""
        if self._sequence is not None:
            return self._sequence
        early = [packet for packet in self._early if isinstance(packet, Motion)]
        return (early[-1].sequence + early[-1].frames - 1) % 256 if early else None

    @property
    def time_base(self) -> Fraction:
        """Seconds per pts unit, as the stream header says; MissingReferenceError before it has arrived."""
        return Fraction(*self._known_header().time_base)

    def conceal(self, pts: int) -> DecodedFrame:
        """A frame for ``pts`` although its packet has not come: the head moves on a little, then rests.

        pts: in the stream's time base. Raises MissingReferenceError before the first frame was decoded.
        """
        if not isinstance(pts, int | np.integer):
            raise ValueError(f"pts is {pts!r:.40}; expected a whole number in the stream's time base.")
        if self._last is None or self._shows is None:
            raise MissingReferenceError(
                "No frame has been decoded yet, so there is nothing to conceal with; wait for a reference."
            )
        self._missing += 1
        self._count_unfollowed()
        self.stats.concealed_frames += 1
        motion = self._last if self._as_is else conceal(self._seen or self._last, self._before, self._missing)
        return self._drawn_each([self._planned(motion, int(pts), state_after(self._missing))])[0]

    # --- one method a packet kind ---

    def _on_packet(self, packet: Packet) -> list[DecodedFrame]:
        if isinstance(packet, StreamHeader):
            self._on_header(packet)
            early, self._early = self._early, deque(maxlen=EARLY)
            return self._on_each(early)
        if self.header is None:
            self._early.append(packet)
        elif isinstance(packet, ReferencePart | Parity | Update):
            self._on_part(packet)
        elif isinstance(packet, Motion):
            return self._on_motion(packet)
        return []

    def _on_each(self, packets: Iterable[Packet]) -> list[DecodedFrame]:
        frames: list[DecodedFrame] = []
        problem: BitstreamError | None = None
        for inside in packets:  # one that cannot be used does not cost the others
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
        if header.width * header.height > self._max_pixels or max(header.width, header.height) > self._max_side:
            raise LimitError(
                f"The stream is {header.width} x {header.height}; this decoder takes {self._max_pixels} pixels and "
                f"sides of {self._max_side}. Give it a larger max_pixels if you trust the sender.",
                rule="R7",
            )
        if self.header is not None and (header.width, header.height) != (self.header.width, self.header.height):
            self._framing, self._pictures.backdrop = Framing(), None  # places mean nothing in another picture
        self.header = header

    def _on_part(self, part: ReferencePart | Parity | Update) -> None:
        self._pictures.add(part, self._known_header(), lacking=self._lacks_reference)
        if self._lacks_reference:
            self._look_for_reference()

    def _on_motion(self, packet: Motion) -> list[DecodedFrame]:
        header = self._known_header()
        self._came += packet.frames
        end = (packet.sequence + packet.frames - 1) % 256
        steps = packet.frames if self._sequence is None else (end - self._sequence) % 256
        late = self._sequence is not None and (steps == 0 or steps >= 192)
        if self._goes_round(end, late=late):
            self._forget()
        if late:
            if packet.pts is not None and packet.pts > self._pts:  # after a long silence
                steps = steps or 256
            elif self._followed is None or 0 < (end - self._followed) % 256 < 128:
                steps = 0  # its time has passed, but it may fill a gap
            else:
                return []  # a double, or older than what is known
        fresh, lost = min(steps, packet.frames), max(0, steps - packet.frames)
        self._left_pixels -= fresh * header.width * header.height
        if self._left_pixels < 0:
            raise LimitError(
                f"{fresh} frames of {header.width} x {header.height} pixels at once are more than {DRAWN} times this "
                f"decoder's max_pixels of {self._max_pixels}; drop the packet.",
                rule="R7",
            )
        known = self._past.get((packet.sequence - 1) % 256)
        step = header.frame_duration if packet.pts_step is None else packet.pts_step
        rest = (packet.frames - 1) * header.frame_duration
        first = self._pts + (steps - packet.frames) * header.frame_duration + step  # a guess, unless it says or we know
        if packet.pts is not None:
            first = packet.pts
        elif known is not None:
            first = known[1] + step
        if steps:
            self._steps, self._began = self._steps + steps, self._began or packet.intra
            self.stats.lost_frames += lost
            self._sequence, self._pts = end, first + rest
            self._named_ago += steps
            self._light_told_ago += steps
            self._as_is = packet.as_is
        if packet.light is not None:
            self._tell_light(packet.light, end, max(1, fresh))
        self._broken = True  # until the payload has proved good
        if packet.reference is not None:
            self._name(packet.reference, packet.sequence)
        if packet.intra:
            known = start_state(self.pack.tables), first
        if known is None:
            self._ahead[packet.sequence] = packet
            while len(self._ahead) > REORDER:
                del self._ahead[next(iter(self._ahead))]
            times = [first + i * header.frame_duration for i in range(packet.frames - fresh, packet.frames)]
            return self._without_motion(times) if packet.as_is else self._held_over(times)
        unknown = 0 if steps else sum((packet.sequence + i) % 256 not in self._past for i in range(packet.frames))
        motions = self._follow(packet, known[0], first)
        if packet.intra:  # nothing older is of use, and after a long silence its numbers would mislead
            self._past = {end: self._past[end]}
            # it continues nothing any more, but would seem to when its number comes again
            later = {n: p for n, p in self._ahead.items() if 0 < (n - end) % 256 < 128}
            self._ahead = {} if steps else later
        self.stats.lost_frames -= min(unknown, self.stats.lost_frames)
        self._catch_up()
        self._broken = self._followed != self._sequence
        if not steps and not self._broken:  # the gap was filled: go on from what is known now
            self._pts = next(reversed(self._past.values()))[1]
        return self._show_news(motions[packet.frames - fresh :], intra=packet.intra)

    def _name(self, reference: int, sequence: int) -> None:
        """Motion from that frame on is relative to this reference, unless a later frame has named another."""
        assert self._sequence is not None
        ago = (self._sequence - sequence) % 256
        if ago <= self._named_ago or self._shows is None:
            if reference != self._active and self._last is not None:  # cut at about this moment: nothing moved since
                self._moved, self._last = self._drawn, replace(self._last, scene=self._still)
            self._active, self._named_ago = reference, ago
            self._look_for_reference()

    def _tell_light(self, light: int, sequence: int, frames: int) -> None:
        """The light on that frame, to be reached in so many, unless that on a later one has been told."""
        assert self._sequence is not None
        ago = (self._sequence - sequence) % 256
        if ago <= self._light_told_ago:
            self._light_to, self._light_in, self._light_told_ago = light, frames, ago

    def _look_for_reference(self) -> None:
        held = self._pictures.get(self._active)
        self._lacks_reference, self._shows = held is None, held or self._shows
        if held is None:
            return
        self._moved = self._still
        if self._last is not None and self._last_crop not in (None, held.crop):  # told in another square
            self._last, self._before = placed(self._last, self._last_crop, held.crop), None
            self._last_crop, self._recut = held.crop, True

    def _follow(self, packet: Motion, state: State, first: int) -> list[tuple[MotionParams, int]]:
        """Motion and pts of every frame of a packet whose earlier frames are known; remembers their states."""
        if packet.reference is not None and not packet.intra:
            state = at_new_reference(self.pack.tables, state)
        with self._timed("entropy"):
            group = self._coder.decode_group(
                packet.payload, packet.frames, level=packet.level, components=packet.components, intra=packet.intra,
                state=state,
            )  # fmt: skip
        found = []
        for i, symbols in enumerate(group):
            self._followed = (packet.sequence + i) % 256
            pts = first + i * self._known_header().frame_duration
            found.append((self._quantizer.inverse(symbols), pts))
            self._past.pop(self._followed, None)
            self._past[self._followed] = self._quantizer.state, pts
        while len(self._past) > REORDER:
            del self._past[next(iter(self._past))]
        return found

    def _catch_up(self) -> None:
        """Follow the packets that were ahead of a gap which has been filled."""
        # one at a time: following a packet can push the frame out that another continues
        while packet := next((p for p in self._ahead.values() if (p.sequence - 1) % 256 in self._past), None):
            del self._ahead[packet.sequence]
            state, pts = self._past[(packet.sequence - 1) % 256]
            end = (packet.sequence + packet.frames - 1) % 256
            if end not in self._past and (end - (self._followed or 0)) % 256 < 128:
                step = self._known_header().frame_duration if packet.pts_step is None else packet.pts_step
                with suppress(BitstreamError):
                    motions = self._follow(packet, state, pts + step)
                    if not self._lacks_reference:
                        self._before, self._last = None, motions[-1][0]
                        self._showed = self._showed if self._as_is else None

    def _count_unfollowed(self) -> None:
        """One more frame is shown without motion of its own."""
        self._unfollowed += 1
        if self._unfollowed >= FORGET:
            self._forget()

    def _goes_round(self, end: int, *, late: bool) -> bool:
        """Whether what seems late is new: after a silence of nearly 256 frames numbers look older than they are."""
        if not late:
            self._late = None
            return False
        if end in self._past:  # most likely a double
            return False
        before, count = self._late or (end, 0)
        self._late = end, count + 1 if 0 < (end - before) % 256 < REORDER else 1
        return self._late[1] >= LATE

    def _forget(self) -> None:
        """So much is missing that frame numbers say nothing any more: only an intra frame can go on."""
        self._past.clear()
        self._ahead.clear()
        self._followed, self._broken = None, True

    # --- showing ---

    def _show_news(self, motions: list[tuple[MotionParams, int]], *, intra: bool) -> list[DecodedFrame]:
        frames: list[DecodedFrame] = []
        plans: list[_Plan] = []
        for (motion, pts), scene in zip(motions, self._scenes(motions, intra=intra), strict=True):
            if self._shows is None or (self._lacks_reference and not self._near(motion)):
                frames, plans = frames + self._drawn_each(plans) + self._held_over([pts]), []
                continue
            same = self._shows.crop == self._last_crop and not self._recut
            follows = same and not (intra or self._as_is or self._showed)
            self._last_crop = None if self._lacks_reference else self._shows.crop  # what lacks may be cut elsewhere
            self._before, self._last, self._missing = (self._last if follows else None), motion, 0
            self._unfollowed, self._recut = 0, False
            self._showed = self._shows if self._as_is else None
            borrowed = self._lacks_reference
            self.stats.waiting_packets += borrowed
            state = Concealment.BORROWED if borrowed else Concealment.RECEIVED
            plans.append(self._planned(motion, pts, state, scene))
        return frames + self._drawn_each(plans)

    def _scenes(self, motions: list[tuple[MotionParams, int]], *, intra: bool) -> Sequence[Array | None]:
        """The meshes to show of frames that came together, where that is not their own."""
        if self._steady is None or len(motions) < 2:
            return [None] * len(motions)
        alone = intra or self._as_is or self._showed or self._missing or self._named_ago < len(motions)
        before = None if alone or self._last is None else self._last.scene
        return list(between(np.array([motion.scene for motion, _ in motions]), before))

    def _without_motion(self, times: list[int]) -> list[DecodedFrame]:
        """Frames that show a picture as it is need no motion."""
        if self._lacks_reference:
            return self._held_over(times)
        self._missing = 0
        if self._last is None:  # the face of the picture shown is what is concealed with
            assert self._shows is not None
            self._last, self._last_crop = self.pack.tables.motion(self.pack.tables.mean), self._shows.crop
        motion = self._last
        self._showed, self._before = self._shows, None
        for _ in times:
            self._count_unfollowed()
        return self._drawn_each([self._planned(motion, pts, Concealment.RECEIVED) for pts in times])

    def _held_over(self, times: list[int]) -> list[DecodedFrame]:
        """Concealed frames for motion that cannot be used: something came, so the picture keeps moving."""
        self.stats.waiting_packets += 1
        return [self.conceal(pts) for pts in times] if self._last is not None else []

    def _near(self, motion: MotionParams) -> bool:
        """Whether motion meant for a reference that is not here can be shown on the one that is: both pictures were
        then most likely cut from the same place. A jump says that they were not."""
        if (seen := self._seen) is None:
            return False
        jump = np.abs(motion.translation - seen.translation).max(), abs(np.log(motion.scale / seen.scale))
        return bool(max(jump) < JUMP)

    @property
    def _seen(self) -> MotionParams | None:
        """Of the last frame shown; of a picture as it is, that of the face in it."""
        if self._showed is None:
            return self._last
        assert self._shows is not None
        return placed(self._face_in(self._showed), self._showed.crop, self._shows.crop)

    def _face_in(self, held: HeldPicture) -> MotionParams:
        """Motion of the face in a picture itself, where nothing else has moved."""
        return replace(held.features.estimate.motion, scene=self._still)

    def _planned(self, motion: MotionParams, pts: int, state: Concealment, scene: Array | None = None) -> _Plan:
        """scene: the mesh to show in place of the motion's own."""
        held = self._shows
        assert held is not None
        seconds = float(pts * self.time_base)
        if self._light_in:  # frames of one packet go there in equal steps
            left = self._light_in - 1
            self._light, self._light_in = self._light_to + (self._light - self._light_to) * left / (left + 1), left
        with self._timed("view"):
            calm = motion if scene is None else replace(motion, scene=scene)
            if self._smoother and self._as_is:
                self._smoother.forget()
            elif self._smoother:
                calm = self._smoother.smooth(calm, seconds)
            if self._moved.any():
                calm = replace(calm, scene=calm.scene + self._moved)
            self._drawn = self._still if self._as_is else calm.scene
        if self._wanted is not None and not self._wanted(pts):
            self._drew = None
            return _Plan(pts, state, motion, held, calm, calm, np.zeros((0, 0, 3), np.uint8))
        header, place = self._known_header(), None
        source = header.width, header.height
        if not self._pastes and held.crop != Square.covering(source):
            with self._timed("view"):
                held, calm, place = self._framing.follow(held, calm, source, seconds, as_is=self._as_is)
        features, view, contact = held.features, self._view, self._eye_contact
        straight = view == View() and self._turning.idle  # else it is still on its way there
        if self._as_is:
            if not straight or contact:  # the face is where it is in the picture itself
                with self._timed("reference"):
                    calm = self._face_in(held)
            if straight:  # seen so: from here the way to a next view begins
                self._turning.apply(view, calm, calm, seconds, held.crop)
            if straight or features.estimate.confidence < SURE:  # there is nobody to be turned
                self._drew = None
                shown = features.picture
                return _Plan(pts, state, motion, held, calm, calm, shown, None, None, contact, self._light, place)
        with self._timed("reference"):
            features.feeds  # noqa: B018  computed when first asked for
        with self._timed("view"):
            turned = self._turning.apply(view, calm, features.estimate.motion, seconds, held.crop)
            self.stats.clamped_frames += turned.clamped
        eyes, before = self._closed_eyes.needed(held, calm, seconds), self._from_before(held, turned.motion)
        return _Plan(pts, state, motion, held, calm, turned.motion, None, eyes, before, contact, self._light, place)

    def _from_before(self, held: HeldPicture, shown: MotionParams) -> tuple[ReferenceFeatures, MotionParams] | None:
        """See `_Plan.before`."""
        last, self._drew = self._drew, (held, shown)
        if self._steady is None or last is None:
            return None
        other, then = last
        if other.id == held.id or (other.shot, other.crop) != (held.shot, held.crop):
            return None
        told = shown.told_on(other.features.canonical, held.features.canonical)
        return other.features, replace(told, scene=then.scene)

    def _drawn_each(self, plans: list[_Plan]) -> list[DecodedFrame]:
        """Planned frames as they are shown, in order: the renderer draws them together."""
        wanted = []
        for plan in plans:
            here, eyes = plan.held.features, plan.eyes
            if plan.picture is None:
                wanted.append((here, plan.shown))
            if plan.before:
                wanted.append(plan.before)
            if eyes:
                wanted.append((eyes, plan.shown.told_on(eyes.canonical, here.canonical)))
        with self._timed("render"):
            drawn = iter(self._networks.render_each(wanted))
        frames = []
        for plan in plans:
            if plan.picture is not None:
                self._fade.forget()
                frames.append(self._finished(plan, plan.picture))
                continue
            picture, held, seconds = next(drawn), plan.held, float(plan.pts * self.time_base)
            keypoints = plan.shown.keypoints(held.features.canonical)
            before = next(drawn) if plan.before else None
            picture = self._fade.faded(picture, before, keypoints, seconds, (held.shot, held.crop))
            if plan.eyes:
                picture = with_eyes(picture, next(drawn), keypoints)
            frames.append(self._finished(plan, picture))
        return frames

    def _finished(self, plan: _Plan, picture: Array) -> DecodedFrame:
        if not picture.size:  # nobody will see it
            if self._steady:
                self._steady.forget()
            held = plan.held
            return DecodedFrame(picture, plan.pts, plan.state, plan.motion, held.id, plan.calm, square=held.crop)
        if picture is plan.picture:
            picture = picture.copy()
            self.stats.as_is_frames += 1
        if self._steady:
            with self._timed("steady"):
                picture = self._steady.smooth(picture)
        features, follows = plan.held.features, self.pack.view_range.gaze
        if plan.contact and features.estimate.confidence >= SURE:
            with self._timed("view"):
                here = features.estimate.motion
                picture = eye_contact(picture, plan.shown, plan.calm, here, features.canonical, follows)
        with self._timed("paste"):
            picture, square = self._composed(picture, plan)
        self.stats.frames += 1
        shown = plan.shown if square is None else placed(plan.shown, plan.held.crop, square)
        as_is = plan.picture is not None
        return DecodedFrame(picture, plan.pts, plan.state, plan.motion, plan.held.id, shown, as_is, square)

    @property
    def _pastes(self) -> bool:
        """Whether the face is pasted into its surroundings."""
        wanted = self._known_header().full_frame if self.full_frame is None else self.full_frame
        return wanted and self._pictures.backdrop is not None

    def _composed(self, picture: Array, plan: _Plan) -> tuple[Array, Square | None]:
        """A frame in its light, and the square of the source that it shows: None where it has the source's size, which
        was coded whole or is pasted back."""
        header, square, light = self._known_header(), plan.held.crop, plan.light
        picture = relit(picture, light)
        if header.gray:
            picture = luma(picture)[..., None].repeat(3, axis=2)
        if plan.place is not None and not np.array_equal(here := place_of(square), plan.place):
            return seen_in(picture, here, plan.place), square_at(plan.place)
        if self._pastes:
            assert self._pictures.backdrop is not None
            plain, lit, shown = self._surroundings
            if plain is not self._pictures.backdrop or lit != light:  # large, and the same in most frames
                plain, lit, shown = self._pictures.backdrop, light, relit(self._pictures.backdrop, light)
                self._surroundings = plain, lit, shown
            return paste(shown, square, picture), None
        if square == Square.covering((header.width, header.height)):
            whole = resize(picture, square.side, square.side)
            return whole[-square.y : header.height - square.y, -square.x : header.width - square.x], None
        return picture, square

    # --- bookkeeping ---

    def _known_header(self) -> StreamHeader:
        if self.header is None:
            raise MissingReferenceError("The stream header has not arrived yet; feed it to decode() first.")
        return self.header

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return timed(self.stats.stage_seconds, stage)

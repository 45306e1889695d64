"""The reference pictures a sender gives out: which one a frame refers to, when another is due, how it is coded and cut.

The other end of pictures.py. A picture that stands on its own goes out at once where nothing can be shown without it; a
finer key that only makes use of rate left over goes out in small parts, between frames, while the old chain is in use,
and so does an update that turned out larger than the rate's window has room for.
Knows packets, chains and the rate; no motion packets and no clock: time is an argument.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .chain import HASH_BYTES, ChainEncoder, start_chain
from .cuts import Shot, half, squared_error
from .face import CropFollower, Square, away, place_of
from .focus import soften
from .fragments import PART_BYTES, UPDATE_MAX, split, split_update
from .inference import Inference, MotionEstimate, ReferenceFeatures
from .light import Small, light_between, small
from .motion import Array
from .pack import Pack
from .packet import REFERENCES_MAX, SIGNED, Feedback, Packet, Parity, ReferencePart, StreamHeader
from .protection import Protection, protection
from .rate import FAR, RateControl, distance
from .reference import BACKDROP, KEY, PICTURE, UPDATE, decode_reference, encode_reference
from .signing import SIGNATURE_BYTES, sign, statement
from .stats import EncoderStats, timed

OVERDUE = 0.2  # seconds after which an update that a receiver in trouble does not hold is taken for lost
KEY_OVERDUE = 2.0  # the same of a key or still
ASKED_AGAIN = 0.5  # seconds between reference pictures that a receiver can make the sender send
SENT_AGAIN = 0.1  # and between two times that it can have the same update sent again
SURROUNDED = 3  # times what a key may take: as much as it and they take at most, which are to be paid for first
AROUND_SECONDS = 2.0  # between surroundings, which take as much as several pictures, while a head walks
OFTEN_SECONDS = 0.14  # pictures that follow each other faster than this are shown as they are
STUCK_SECONDS = 3.0  # an update of which no part goes out for so long gives way to a key as small as the first
UPDATE_HEADER, UPDATE_PART = 24, 80  # bytes around an update, at most; of one part of it where it has to wait
# A frame is rendered from the held picture whose keypoints are nearest in pixels of 256, CHANGE times what differs from
# it as it is, in grey levels, added; from another than before where that is below SWITCH of the present one's.
CHANGE, SWITCH = 3.0, 0.9
# Grey levels that log odds of light count for. Of a training clip that fades in, as a file at 4 kbit/s, the worst
# second is at 28.6 dB, at 25.2 where pictures in other light are as good as their pixels say.
LIT = 100.0
GREY_PER_PIXEL = 4.0  # rms grey levels of change that count as one pixel of drift where no face can be measured


@dataclass
class Held:
    """A picture that the receiver should have."""

    features: ReferenceFeatures
    estimate: MotionEstimate | None  # of the camera's picture; None: no face in it
    crop: Square
    error: float  # mean squared error of coding
    since: int  # sequence number of the first frame after it was sent
    of: float  # seconds, when it was taken
    at: float  # and when it was sent
    chain: ChainEncoder | None = None  # that it belongs to; None: a still
    packets: Sequence[Packet] = ()  # of an update, to send it again
    after: int = -1  # id of the picture sent before it, which it follows
    lost: bool = False  # a receiver has said so and not yet said that it came after all

    @cached_property
    def half(self) -> Array:
        return half(self.features.picture)

    @cached_property
    def small(self) -> Small:
        return small(self.half)


@dataclass
class _Coming:
    """A picture on its way in small parts; nothing refers to it until the last of them has gone out. since: frame with
    which the first of them went. at: and when, seconds."""

    id: int
    chain: ChainEncoder
    shot: Shot
    shown: Array
    size: int
    since: int
    at: float
    parts: Sequence[Packet] = ()
    parity: Sequence[Packet] = ()  # goes behind the last of them
    sent: int = 0  # of the parts
    went: float = 0.0  # seconds, when the last of them went, or might have

    @property
    def complete(self) -> bool:
        return self.sent == len(self.parts)

    def next(self, left: float) -> list[Packet]:
        """The parts that ``left`` bytes pay."""
        before = self.sent
        while not self.complete and (size := len(bytes(self.parts[self.sent]))) <= left:
            left -= size
            self.sent += 1
        return [*self.parts[before : self.sent]]


class PictureSender:
    """All pictures of one stream.

    key: an Ed25519 private key that signs them, or None. context: what is signed besides. updates, full_frame, focus,
    repeat_header: see Encoder.
    header: of the stream, known from the first frame on. protection: what losses demand at present.
    """

    def __init__(
        self,
        pack: Pack,
        networks: Inference,
        stats: EncoderStats,
        rate: RateControl,
        *,
        updates: bool = True,
        key: Any = None,
        context: bytes = b"",
        full_frame: bool = False,
        repeat_header: bool = True,
        focus: bool = True,
    ) -> None:
        self.rate = rate
        self.header: StreamHeader | None = None
        self.protection: Protection = protection(0.0)
        self.held: dict[int, Held] = {}
        self.active = self.next_id = 0  # ids of the picture in use and of the next one
        self.wanted = False  # one that stands on its own is due
        self.began = False  # with this frame one has become the picture in use
        self._shot_began = self._size_began = False  # since the last one was taken
        self.again: list[Packet] = []  # to be sent once more with the next frame
        self._pack, self._networks, self._stats = pack, networks, stats
        self._updates, self._key, self._context = updates, key, context
        self._signature_bytes = SIGNATURE_BYTES if key else 0  # of each picture
        self._full_frame, self._repeat_header, self._focus = full_frame, repeat_header, focus
        self._backdrop_due, self._around_at = full_frame, float("-inf")  # and seconds, when they were sent last
        self._chain: ChainEncoder | None = None
        self._coming: _Coming | None = None  # a finer key
        self._late: _Coming | None = None  # an update too large for the rate's present window
        self._newest = -1  # id of the one sent last
        self._cuts: deque[float] = deque(maxlen=REFERENCES_MAX)  # seconds, of the first frames of shots
        self._now, self._sequence = 0.0, 0
        self._asked_at = float("-inf")  # seconds, of the last reference sent because a receiver asked

    @property
    def current(self) -> Held:
        """The picture in use."""
        return self.held[self.active]

    def cut(self, seconds: float) -> None:
        """Another shot begins with the frame of this time: pictures of the one before show somebody else."""
        self._cuts.append(seconds)

    def begin_size(self, header: StreamHeader) -> StreamHeader:
        """Pictures of another size follow: what is held, and what is around it, is of the one before."""
        self.header, self.wanted, self._size_began = header, True, True
        self._backdrop_due = self._full_frame
        return header

    def begin_shot(self) -> None:
        """The shot that has begun goes on: a picture of it is due, and what is around it."""
        self._shot_began, self._around_at = True, float("-inf")
        self._drop_coming()
        self.wanted |= self._chain is not None and self.rate.begins_shot()

    def undo_cut(self, seconds: float) -> None:
        """The shot of before this time goes on."""
        while self._cuts and self._cuts[-1] >= seconds:
            self._cuts.pop()

    def strange_to(self, shot: Shot, key: int) -> bool:
        """Whether a cut lies between this frame and the held picture of this id."""
        return self.cut_between(self.held[key].of, shot.seconds)

    def of_another(self, key: int) -> bool:
        """Whether the face that both ends find in the held picture of this id is not the one that was followed to it,
        but somebody's beside."""
        held = self.held[key]
        if held.estimate is None:
            return False
        followed, found = held.estimate.box, held.features.estimate.box
        return bool(np.abs(found[:2] - followed[:2]).max() > followed[2])

    def cut_between(self, one: float, other: float) -> bool:
        """Whether frames of these times, seconds, are of different shots."""
        return bisect(self._cuts, one) != bisect(self._cuts, other)

    def renews_surroundings(self, shot: Shot, *, moved: bool) -> bool:
        """Whether a picture of this frame is due that brings them along. moved: the coded square has jumped."""
        self._backdrop_due |= self._full_frame and (moved or self._shot_began)
        if self._backdrop_due and self._size_began:
            return True
        if self.held and self.rate.purse < -SURROUNDED * self.rate.key_bytes:
            return False  # those before are not paid for yet
        if not self._backdrop_due or shot.seconds - self._around_at >= AROUND_SECONDS:
            return self._backdrop_due
        last = self.held.get(self._newest)
        return last is None or away(place_of(shot.square), place_of(last.crop))[0] > CropFollower.JUMP

    def best_for(self, shot: Shot, then: int, last: int, *, as_is: bool) -> int:
        """Id of the held picture for a frame that has waited while others were sent. then: in use when it was taken;
        last: of the frame before. as_is: see `refresh`."""
        if shot.estimate is None or as_is or not (near := self._distances(shot)):
            return then if then in self.held else self.active
        return self._best(shot, near, last)

    def refresh(
        self, shot: Shot, seconds: float, sequence: int, *, as_is: bool, moved: bool, doubtful: bool
    ) -> list[Packet]:
        """Choose the picture for the frame of this number and time; send a new one where it is due.

        as_is: frames are shown as pictures, so that keypoints say nothing. moved: the coded square has jumped, which
        pictures need not follow at once. doubtful: the last cut may be none, and pictures wait.
        """
        self._now, self._sequence, self.began = seconds, sequence, False
        best, drift = self._nearest(shot, as_is=as_is)
        if doubtful and self.held and not self.wanted:
            self.active = best
            return self._send_late(self._late) if self._late is not None else []
        if self._coming is not None and (as_is or shot.estimate is None) and self._outdated(self._coming, shot):
            self._drop_coming()  # it would be shown as it is
        if self._chain is not None and self._coming is None and self.rate.wants_finer():
            if self.rate.room < float("inf"):
                self._begin_finer(shot)
            else:
                self.wanted = True  # it need not wait
        around = self.renews_surroundings(shot, moved=moved)
        if self.wanted or not self.held or around:
            return self._send_reference(shot, surroundings=around)
        if self._late is not None:
            self.active = best
            return self._send_late(self._late)
        if self._chain is None:
            if self._shot_began or self.rate.affords_picture(drift):
                return self._send_reference(shot)
        elif self._shot_began or (
            not self._crowded and self.rate.affords_picture(drift, waiting=self._coming is not None)
        ):
            return self._send_reference(shot) if self.rate.wants_coarser() else self._send_update(shot)
        self.active = best
        return self._send_parts(self._coming) if self._coming and (drift < FAR or self._crowded) else []

    @property
    def _crowded(self) -> bool:
        """Whether one more picture would take the place of the key that is on its way."""
        return self._coming is not None and self.gives_way(self._coming.id)

    def gives_way(self, key: int) -> bool:
        """Whether the next picture takes the place of this one."""
        return (self.next_id - key) % 256 >= REFERENCES_MAX

    @property
    def keeps(self) -> bool:
        """Whether the picture there is will do where pictures do not age."""
        return bool(self.held) and not self.wanted

    def refine(self, shot: Shot, seconds: float, sequence: int) -> list[Packet]:
        """Of a picture that does not age: the next part of a finer one of the same, with what motion leaves."""
        self._now, self._sequence, self.began = seconds, sequence, False
        lost = self._updates and self._chain is None  # a receiver went without the last one
        if self._coming is None and (lost or (self._chain is not None and self.rate.wants_finest())):
            self._begin_finer(shot)
        return self._send_parts(self._coming) if self._coming else []

    def on_feedback(self, feedback: Feedback, seconds: float, sequence: int) -> None:
        """React to what a receiver lacks. sequence: of the next frame."""
        self._now, self._sequence = seconds, sequence
        for key in feedback.held:
            if key in self.held:
                self.held[key].lost = False
        if self.rate.owes_much:
            return  # whoever asks without end must not make this end send without end
        if (feedback.need_reference or feedback.need_intra) and feedback.sequence is not None:
            self._replace_lost(feedback.held, feedback.sequence)
        elif feedback.need_reference and self._now - self._asked_at >= ASKED_AGAIN:
            newest = max((held.at for held in self.held.values() if not held.packets), default=float("-inf"))
            if self._now - newest > OVERDUE:  # else one is on its way to a receiver that has only just seen the header
                self.wanted, self._asked_at = True, self._now

    # --- which, and when ---

    def _nearest(self, shot: Shot, *, as_is: bool) -> tuple[int, float]:
        """The held picture that is best for this frame, and how far away it is, pixels of 256."""
        if shot.estimate is None or as_is:
            return self.active, self._staleness(shot)
        near = self._distances(shot)
        return self._best(shot, near, self.active), min(near.values(), default=float("inf"))

    def _distances(self, shot: Shot) -> dict[int, float]:
        """How far the face in each held picture is from this one, pixels of 256; without pictures of no face or of
        another shot."""
        assert shot.estimate is not None
        return {
            key: distance(held.estimate.keypoints, shot.estimate.placed(shot.square, held.crop).keypoints)
            for key, held in self.held.items()
            if held.estimate is not None and not held.lost and not self.strange_to(shot, key)
        }

    def _best(self, shot: Shot, near: Mapping[int, float], last: int) -> int:
        """Of the pictures of these ids and distances the one from which this frame will look best; not another than
        ``last`` for little."""
        costs = {key: way + CHANGE * self._change(shot, self.held[key]) for key, way in near.items()}
        best = min(costs, key=costs.__getitem__, default=self.active)
        return last if last in costs and costs[best] >= SWITCH * costs[last] else best

    def _change(self, shot: Shot, held: Held) -> float:
        """Root mean square of what differs from this picture, grey levels; other light, which no motion makes up for,
        weighs more."""
        there = shot.half_in(held.crop)
        light = light_between(held.small, shot.small if held.crop == shot.square else small(there))
        return float(np.sqrt(squared_error(there, held.half))) + LIT * abs(light)

    def _staleness(self, shot: Shot) -> float:
        """How far the picture has moved on from the one in use, as drift, where no keypoints can tell."""
        held = self.held.get(self.active)
        if held is None or held.crop != shot.square:
            return float("inf")
        changed = squared_error(shot.tile, held.features.picture) - held.error
        return float(np.sqrt(max(0.0, changed))) / GREY_PER_PIXEL

    def _outdated(self, coming: _Coming, shot: Shot) -> bool:
        """Whether the picture in use is nearer to this frame than the one on its way."""
        if coming.shot.square != shot.square:
            return True
        held = self.held.get(self.active)
        if held is None or held.crop != shot.square:
            return False
        return squared_error(shot.tile, coming.shown) > squared_error(shot.tile, held.features.picture)

    def _replace_lost(self, held: Sequence[int], sequence: int) -> None:
        """Go on from a picture that the receiver holds, and send again the updates that it lacks. Where that is not
        enough the chain is given up: the next picture begins another."""
        late = self._late
        if late is not None and (sequence - late.since) % 256 >= 128 and self._now - late.at > OVERDUE:
            # nothing that was sent with its first part or after has come
            late.sent, late.since, late.at = 0, self._sequence, self._now
        known = (self._sequence - 1 - sequence) % 256 < 128  # else the report names a frame that was never sent
        missing = {
            key: sent for key, sent in self.held.items()
            # sent before a frame that has arrived, or long ago, so it is not on its way but lost
            if key not in held
            and ((known and (sequence - sent.since) % 256 < 128)
                 or self._now - sent.at > (OVERDUE if sent.packets else KEY_OVERDUE))
            and not (sent.lost and self._now - sent.at < SENT_AGAIN)  # has just been sent again
        }  # fmt: skip
        updates = {key: sent for key, sent in missing.items() if sent.packets and sent.chain is self._chain}
        cost = sum(len(bytes(packet)) for sent in updates.values() for packet in sent.packets)
        absent = [key for key, sent in self.held.items() if key not in held and sent.chain is self._chain]
        follows = bool(absent and self.held[absent[0]].packets)  # a key that is lost begins nothing
        if follows and self.held[absent[0]].after in held and cost < self.rate.key_bytes:
            for sent in updates.values():
                self.again += sent.packets
                sent.since, sent.at, sent.lost = self._sequence, self._now, True
            missing = {key: sent for key, sent in missing.items() if key not in updates}
        broken = {id(sent.chain) for sent in missing.values() if sent.chain is not None}
        kept = {
            key: sent for key, sent in self.held.items()
            if key in held or not (key in missing or (sent.packets and id(sent.chain) in broken))
        }  # fmt: skip
        if not kept and self._now - self._asked_at < ASKED_AGAIN:
            return
        self._asked_at, self.held = self._asked_at if kept else self._now, kept
        if id(self._chain) in broken:
            self._chain = self._coming = self._late = None
            self.rate.ended_chain()
        here = [key for key, sent in self.held.items() if not sent.lost]
        if here and self.active not in here:
            self.active = here[-1]

    # --- sending ---

    def _send_reference(self, shot: Shot, *, surroundings: bool = False) -> list[Packet]:
        """A picture that stands on its own, at once: a key that begins a chain, or a still."""
        self.rate.begin_at_once(shot.seconds, self._signature_bytes)
        budget = self.rate.still_bytes if self.held and not self._updates else self.rate.key_bytes
        packets: list[Packet] = []
        if self._newest < 0:
            self._asked_at = float("-inf")  # the first would have been sent unasked
        elif self._repeat_header and self.header:
            packets.append(self.header)
        if surroundings:
            backdrop = encode_reference(shot.squeezed, max_bytes=2 * budget)
            packets += self._unprotected(self._parts(backdrop, BACKDROP, shot.square, self.next_id))
            self._backdrop_due, self._around_at = False, self._now
        budget -= self._signature_bytes
        self._coming, self._late, self._shot_began, self._size_began = None, None, False, False
        with self._timed():
            if self._updates:
                self._chain, coded, shown = self._started(shot, budget)
                self.rate.sent_key(len(coded), self._signature_bytes, shot.seconds)
            else:
                coded = encode_reference(self._focused(shot.tile, shot.box), max_bytes=budget)
                shown = decode_reference(coded, self._pack.size)
        codec = KEY if self._updates else PICTURE
        packets += self._unprotected(self._parts(coded, codec, shot.square, self.next_id))
        self._hold(self._take_id(), shot, shown)
        self.wanted, self.began = False, True
        self._stats.references += 1
        return packets

    def _begin_finer(self, shot: Shot) -> None:
        """Code the key of a finer chain. Its parts go out as the rate allows, and nothing refers to it until then."""
        budget = self.rate.key_bytes - self._signature_bytes
        with self._timed():
            chain, coded, shown = self._started(shot, budget)
        key = self._take_id()
        # with the parity a receiver would have the key before it has gone out, and be ahead of this end
        whole = self._parts(coded, KEY, shot.square, key, self.rate.part_bytes)
        parts, parity = ([p for p in whole if isinstance(p, kind)] for kind in (ReferencePart, Parity))
        self._coming = _Coming(key, chain, shot, shown, len(coded), self._sequence, self._now, parts, parity)

    def _send_parts(self, coming: _Coming) -> list[Packet]:
        """What can be paid of the key that is on its way; the last part makes it the picture in use."""
        if (self.next_id - coming.id - 1) % 256 >= REFERENCES_MAX:  # its place at the receiver has been taken
            self._drop_coming()
            return []
        packets = coming.next(min(self.rate.purse, self.rate.room))
        if coming.complete:
            self._coming, self._chain = None, coming.chain
            self.again += coming.parity
            self.rate.sent_key(coming.size, self._signature_bytes, coming.shot.seconds)
            self._hold(coming.id, coming.shot, coming.shown)
            self.began = True
            self._stats.references += 1
        return packets

    def _drop_coming(self) -> None:
        """The finer key that is on its way is of no use any more."""
        if self._coming is not None:
            self._coming = None
            self.rate.keeps_chain()

    def _send_late(self, coming: _Coming) -> list[Packet]:
        """What the rate's window has room for of the update that is on its way."""
        packets = coming.next(self.rate.room / (1 + bool(self.protection.parity)))
        coming.went = self._now if packets else coming.went
        if self._now - coming.went >= STUCK_SECONDS and self.rate.purse >= 0:
            # nothing is owed, and yet its parts are larger than what motion leaves of a window
            self._late, self.wanted = None, True
            self.rate.begins_shot()
        if coming.complete:
            self._late = None
            self._hold(coming.id, coming.shot, coming.shown, coming.parts)
            self.again += coming.parts if self.protection.parity else []
        return packets

    def _send_update(self, shot: Shot) -> list[Packet]:
        """The next picture of the chain."""
        assert self._chain is not None
        square, self._shot_began = shot.square, False
        before, place = self._chain.digest, (square.x, square.y, square.side)
        try:
            with self._timed():
                coded, shown = self._chain.code(self._focused(shot.tile, shot.box))
        except Exception:
            self._chain, self.wanted = None, True  # nobody knows where it stands
            raise
        signature = self._signature(UPDATE, place, coded, self.next_id, before)
        if len(signature) + len(coded) > UPDATE_MAX:  # as after a cut; a chain cannot leave out a picture
            self.wanted = True
            return []
        twice, room = 1 + bool(self.protection.parity), self.rate.room
        whole = twice * (len(signature) + len(coded) + UPDATE_HEADER) <= room
        # the light went on: a key takes less, and no seconds in parts; what is no face may be worth more
        if len(coded) > self.rate.key_bytes and not (whole and shot.estimate is None):
            self.wanted = True
            return []
        packets = split_update(
            signature + coded, reference=self.next_id, hash=self._chain.digest[:HASH_BYTES],
            crop=None if square == self.held[self._newest].crop else place, signed=bool(signature),
            part_bytes=PART_BYTES if whole else UPDATE_PART,
        )  # fmt: skip
        size = sum(len(bytes(packet)) for packet in packets)
        self.rate.sent_update(twice * size)
        self._late = _Coming(
            self._take_id(), self._chain, shot, shown, size, self._sequence, self._now, packets, went=self._now
        )  # fmt: skip
        self._stats.updates += 1
        return self._send_late(self._late)

    def _started(self, shot: Shot, max_bytes: int) -> tuple[ChainEncoder, bytes, Array]:
        """A chain as fine as the rate allows, its key's bytes and what the receiver sees."""
        rate, typical = self.rate, self.rate.typical_after(shot.seconds)
        return start_chain(
            self._focused(shot.tile, shot.box), max_bytes=max_bytes, preset=rate.preset,
            coarser=rate.updates_coarser, typical=None if typical is None else self._focused(*typical),
        )  # fmt: skip

    def _focused(self, tile: Array, box: Array | None) -> Array:
        """The tile, softened around the head."""
        if box is None or not self._focus:
            return tile
        return soften(tile, box.tolist(), self.rate.softness)

    def _take_id(self) -> int:
        taken, self.next_id = self.next_id, (self.next_id + 1) % 256
        return taken

    def _hold(self, key: int, shot: Shot, shown: Array, packets: Sequence[Packet] = ()) -> None:
        """Remember what the receiver now has under this id, and use it."""
        self.held = {k: sent for k, sent in self.held.items() if (k - key) % REFERENCES_MAX}
        features, error = self._networks.reference(shown), squared_error(shot.tile, shown)
        self.held[key] = Held(
            features, shot.estimate, shot.square, error, self._sequence, shot.seconds, self._now, self._chain,
            packets, self._newest,
        )  # fmt: skip
        self.active = self._newest = key

    def _parts(
        self, coded: bytes, codec: int, square: Square, key: int, part_bytes: int = PART_BYTES
    ) -> list[ReferencePart | Parity]:
        """Packets of a picture that stands on its own."""
        place = (square.x, square.y, square.side)
        if signature := self._signature(codec, place, coded, key):
            coded, codec = signature + coded, codec | SIGNED
        parity = self.protection.parity
        return split(coded, reference=key, codec=codec, crop=place, parity=parity, part_bytes=part_bytes)

    def _unprotected(self, packets: list[ReferencePart | Parity]) -> list[Packet]:
        """Without the parity, which goes with the next frame: losses come in runs."""
        self.again += [packet for packet in packets if isinstance(packet, Parity)]
        return [packet for packet in packets if not isinstance(packet, Parity)]

    def _signature(self, codec: int, place: tuple[int, int, int], coded: bytes, key: int, before: bytes = b"") -> bytes:
        """Of the picture of this id; empty without a private key."""
        if self._key is None:
            return b""
        assert self.header is not None
        size = self.header.width, self.header.height
        said = statement(self._pack.id, size, key, codec, place, coded, self._context, before)
        return sign(self._key, said)

    def _timed(self) -> AbstractContextManager[None]:
        return timed(self._stats.stage_seconds, "reference")

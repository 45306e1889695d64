"""Frames to packets: the sending facade. Reads next to decoder.py; all arithmetic lives in the modules it calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .avatar import Avatar, AvatarDriver
from .cuts import Shot, squared_error
from .entropy import EntropyCoder
from .errors import BitstreamError, LimitError, check_flags
from .face import CropFollower, Square, crop
from .fields import varint
from .film import FLASH, Film
from .film_rate import HORIZON, FilmRate
from .focus import soften
from .inference import Inference, MotionEstimate, ReferenceFeatures
from .lids import Lids, openings
from .media import as_picture
from .motion import Array, MotionParams
from .pack import Pack, load_pack
from .packet import (
    DATAGRAM_BYTES,
    PTS_MAX,
    TIME_MAX,
    Bundle,
    End,
    Feedback,
    Motion,
    Packet,
    Parity,
    ReferencePart,
    StreamHeader,
    Update,
    bundled,
    parse_packet,
)
from .protection import HEARD_SECONDS, Aggregator, Protection, believed, protection
from .quantizer import Quantizer, Symbols
from .rate import LOWEST_KBPS, QUALITIES, WINDOW_SECONDS, MotionQuality, RateControl, distance
from .refinement import Refinement
from .scene import worth
from .sender import OFTEN_SECONDS, OVERDUE, Held, PictureSender
from .signing import check_context, private_key
from .stats import EncoderStats, timed
from .trellis import Trellis
from .watcher import Watcher

# A film that begins so long before the first face begins with a picture of none. A training clip behind a title of two
# seconds, as a file at 4 kbit/s: 32.7 dB for 27.0 where the face stood for the title.
FACELESS_SECONDS = 0.3
# So long a call waits at most for a camera that has just been switched on to set its exposure: a picture of before
# would be shown until the next one is paid for. Four training clips, at 4 kbit/s, that come from a tenth of their light
# or two and a half times it: 22.2 to 28.3 dB over all of the call, for 18.0 to 25.1 with a picture at once.
EXPOSURE_SECONDS = 1.0
WAITING_LIVE = 25  # frames before the first picture that a live stream still sends
LOOKAHEAD_MAX = 16  # frames
SHARE_MAX = 16  # frames of a packet
WINDOWS = 1.0, 60.0  # seconds
# Seconds. A usual step of less is the tick of a clock whose frame_duration nobody gave: the rate then expects these.
TICK, USUAL_FRAME = 1 / 240, 1 / 25
# Of how much a picture changes with the scene's mesh (grey levels squared, scene.py), in squared units of a keypoint's
# error, where frames share packets. Of 14 training clips as files at 4 kbit/s the mesh lost 0.6 dB by rounding, faces
# 0.02; but small movements of a face say more.
SCENE_WORTH = 150.0
SCENE_TOO = 1.25  # times what the motion of a head takes, with the scene
BLINK = 0.3  # of the usual opening among them: the first picture is of none whose eyes are so much less open
# How often the encoder renders a frame itself to see whether the receiver had better not; at low frame rates, which
# are often those of a machine that has too much to do, seldom enough to cost little.
CHECK_SECONDS, CHECK_FRAMES = 0.5, 12
OFTEN_FRAMES = 1.5  # pictures that come with nearly every frame are shown as they are, however slowly
# Where no film says what follows, a picture after a cut waits so long for the shot before it to go on: then it was a
# flashlight. Seven of them in a call of eight seconds at 4 kbit/s: 27.1 dB for 20.8 without.
FLASH_SECONDS = 0.14
WORSE, BETTER = 1.12, 0.95  # rendered error over held error past which frames are shown as they are, and moved again
# Pixels, of what blurs both around the head before, where pictures are sharp there: a picture as it is has all of a
# wall in it, which rendering loses some of, and the face would stand still for it. Of a training clip before a
# patterned one, as a file at 16 kbit/s, 105 of 300 frames were shown as they are, landmarks 1.44 px off and what
# changes from frame to frame 28 % further off than at a constant rate; so compared 52, 1.14 px and 5 % less.
BEHIND = 5


@dataclass(frozen=True)
class _Taken:
    """A frame whose motion is to be coded. estimate: with the lids as they are to be sent. reference: the picture in
    use when it was taken. often: pictures came with nearly every frame then."""

    shot: Shot
    estimate: MotionEstimate | None
    pts: int
    reference: int
    often: bool


class Encoder:
    """Encodes pictures of one person. For one thread at a time: feedback too is given between two frames.

    target_kbps: everything counted, headers and references too; what a quiet head leaves over goes into finer pictures.
        No two seconds take much more (see README for how much), so that the average is a few percent less.
    window: seconds in place of these two, 1 to 60. In longer ones a movement can take what a rest has left, where the
        link lets as much pass at once. Not with a film.
    film: all the frames that are going to be encoded, where they are at hand: the target is then kept on average over
        them, and moments take of it what they need. Not with an avatar, and not without updates.
    pack: folder or name of a model pack, None for the bundled one. device: "auto", "cpu", "cuda" or "tensorrt".
    crop: "auto" follows the face, "none" codes the whole frame, or (x, y, side) in pixels; the side is
        at most twice that of the picture.
    time_base: seconds per pts unit. frame_duration: the usual pts step; after any other a
        frame takes a few bytes more.
    full_frame: also send the surroundings, so that the receiver can paste the face back. gray: the source is grey.
    avatar: show this registered picture with the camera's motion, never the camera's picture; see `Avatar`.
    repeat_header: send the stream header again with each reference (a live stream needs it). False: for a file, the
        lengths of whose records are counted, too.
    loss: share of packets expected to be lost, 0..1: frames and pictures are sent with as much redundancy as that
        takes. Reports given to on_feedback can raise it, and take back only what they raised.
    signing_key: an Ed25519 private key or its file (see signing.py): every picture is signed, updates too, for 64 bytes
        each. That is about as much as an update itself takes, so the same rate brings half as many of them.
    signing_context: what both ends know of this call (at most 255 bytes), so that a picture signed in another call
        is not accepted in this one.
    frames_per_packet: motion frames that share a packet, 1 to 16. Each saves up to 3 bytes and waits for the last one.
    lookahead: frames that motion waits, 0 to 16, so that a frame is shown from the best of the pictures before and
        after it, and the first picture is chosen among as many; fewer where eight pictures come in less time. Not with
        an avatar, whose pictures do not age.
    packet_overhead: bytes that the transport puts around each datagram (IPv4 and UDP: 28, with RTP 40), counted in
        target_kbps, which they may not take whole; the packets that one call of encode gives are taken to share
        datagrams, as `packet.bundled` does.
    updates: code references after the first as updates of it; False: each on its own, several times as large, for
    channels that lose so much that chains break all the time.
    preset: of SVT-AV1 for pictures, 0 to 13; None: by the rate 4 or 6, with lookahead 1 or 2. With 8 a picture takes
        half the time it takes with 4 and 29 % more bytes, with 1 three times as long and 8 % fewer.
    focus: soften what lies around the head before pictures are coded, the more the lower the rate; see focus.py.
    refine: draw every frame, to correct the motion that draws it (refinement.py): as long again as a receiver takes. In
        14 training clips at 4 kbit/s, 0.2 to 0.3 dB. None: with lookahead, where nobody waits. Not with an avatar.
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
        avatar: Avatar | None = None,
        threads: int | None = None,
        repeat_header: bool = True,
        loss: float = 0.0,
        signing_key: Any = None,
        signing_context: bytes = b"",
        frames_per_packet: int = 1,
        lookahead: int = 0,
        packet_overhead: int = 0,
        updates: bool = True,
        preset: int | None = None,
        focus: bool = True,
        film: Film | None = None,
        window: float = WINDOW_SECONDS,
        refine: bool | None = None,
    ) -> None:
        if not isinstance(loss, int | float | np.number) or not 0 <= loss < 1:
            raise ValueError(f"loss is {loss!r}; expected a share of packets, 0 <= loss < 1.")
        if preset is not None:
            _whole("preset", preset, 0, 13)
        frames_per_packet = _whole("frames_per_packet", frames_per_packet, 1, SHARE_MAX)
        lookahead = _whole("lookahead", lookahead, 0, LOOKAHEAD_MAX)
        packet_overhead = _whole("packet_overhead", packet_overhead, 0, DATAGRAM_BYTES)
        frame_duration = _whole("frame_duration", frame_duration, 1, TIME_MAX)
        if not isinstance(time_base, int | float | np.number | Fraction) or not 0 < time_base < TIME_MAX:
            raise ValueError(f"time_base is {time_base!r}; expected seconds per pts unit, more than 0.")
        if not isinstance(crop, str) and np.shape(crop) != (3,):
            raise ValueError(f"crop is {crop!r}; expected 'auto', 'none' or x, y and side in whole pixels.")
        check_context(signing_context)
        check_flags(full_frame=full_frame, gray=gray, repeat_header=repeat_header, updates=updates, focus=focus)
        if refine is not None:
            check_flags(refine=refine)
        if not isinstance(window, int | float | np.number) or not WINDOWS[0] <= window <= WINDOWS[1]:
            raise ValueError(f"window is {window!r}; expected {WINDOWS[0]} to {WINDOWS[1]} seconds.")
        if film is not None and window != WINDOW_SECONDS:
            raise ValueError("window goes without a film, whose rate is kept on average over all of it.")
        fixed = None if isinstance(crop, str) else Square(*(_whole("crop", n, -TIME_MAX, TIME_MAX) for n in crop))
        self.pack = pack if isinstance(pack, Pack) else load_pack(pack)
        exact = float(time_base) if isinstance(time_base, np.number) else time_base
        self.time_base = Fraction(exact).limit_denominator(TIME_MAX)
        if not 0 < self.time_base.numerator <= TIME_MAX:
            raise ValueError(f"time_base is {time_base}; expected a fraction of whole numbers up to {TIME_MAX}.")
        self.frame_duration = frame_duration
        self.full_frame, self.gray, self.repeat_header = full_frame, gray, repeat_header
        self.stats = EncoderStats()
        self._networks = Inference(self.pack, device=device, threads=threads)
        if avatar is not None and (full_frame or not isinstance(avatar, Avatar)):
            raise ValueError("avatar must be an Avatar, and goes without full_frame: no surroundings are sent with it.")
        self._avatar = AvatarDriver(avatar, self._networks) if avatar is not None else None
        if not isinstance(film, Film | None):
            raise ValueError(f"film is {film!r:.40}; expected a Film, such as Film(frames, seconds).")
        if film is not None and (avatar is not None or not updates):
            raise ValueError("film goes without an avatar, whose picture does not age, and with updates.")
        follower = CropFollower.parse(crop) if isinstance(crop, str) else CropFollower("fixed", fixed)
        self._fixed = follower.fixed
        # not self._timed: a circle keeps an encoder that nobody has any more until Python looks for circles
        self._watcher = Watcher(
            self._networks, follower, self.pack.size, partial(timed, self.stats.stage_seconds),
            flash=None if avatar is not None else FLASH_SECONDS if film is None else FLASH,
            light=avatar is None and film is None and not lookahead,
        )  # fmt: skip
        self._film = film
        frame_seconds = frame_duration * float(self.time_base)
        if frame_seconds < TICK:
            frame_seconds = USUAL_FRAME
        packets_per_second = 1 / (frames_per_packet * frame_seconds)
        self._packet_overhead = packet_overhead
        headers = packet_overhead * packets_per_second / 125
        self._lookahead = 0 if avatar is not None else lookahead
        lag = (self._lookahead + (frames_per_packet - 1) / 2) * frame_seconds
        every = frames_per_packet * frame_seconds
        timing: dict[str, Any] = {"ahead": self._lookahead > 0, "lag": lag, "motion_every": every}
        self._rate = (
            RateControl(target_kbps, headers, preset, ageless=avatar is not None, window=window, **timing)
            if film is None
            else FilmRate(film, target_kbps, headers, preset, waits=self._lookahead, **timing)
        )
        _check_headers(headers, target_kbps, frames_per_packet)
        self._quantizer, self._coder = Quantizer(self.pack.tables), EntropyCoder(self.pack.tables)
        self._pictures = PictureSender(
            self.pack, self._networks, self.stats, self._rate, updates=updates,
            key=None if signing_key is None else private_key(signing_key), context=signing_context,
            full_frame=full_frame, repeat_header=repeat_header, focus=focus,
        )  # fmt: skip
        self._lids = Lids()
        drawn = self._lookahead > 0 if refine is None else refine
        self._refinement = Refinement(self._networks) if drawn and avatar is None else None
        self._shots = 0  # that have begun before the one of the last frame
        self._cut_at: float | None = None  # seconds, of the first frame of what may be another or a flashlight
        self._size: tuple[int, int] | None = None  # as the header says
        self._camera: tuple[int, int] | None = None
        self._moved = False  # the square has just jumped
        self._expected_loss = self._loss = loss
        self._trellis = Trellis(self._coder) if frames_per_packet > 1 else None
        self._aggregator = Aggregator(self._coder, frames_per_packet)
        self._unsettled: list[tuple[MotionParams | None, ReferenceFeatures]] = []  # of frames that wait for others
        self._quality = self._rate.quality  # of the packet that frames are waiting for
        self._now = 0.0
        self._coded = 0  # motion frames; numbers on the wire are modulo 256
        self._reported = -1  # newest of them that a receiver has told of
        self._intra_sequence = 0  # number of the last intra frame
        self._heard_at = float("-inf")  # seconds, of the last report that told what the receiver holds
        self._named = -1  # reference that motion packets named last
        self._named_at = float("-inf")  # seconds, when they did
        self._as_is = False  # rendering does worse than showing the reference
        self._ratio = 1.0  # rendered error over held error, over the last checks
        self._check_at: float | None = None  # seconds, of the last check; None: no frame yet
        self._checked = 0  # frames by then
        self._wants_intra = False
        self._pts: int | None = None  # of the last motion frame
        self._given: int | None = None  # of the last picture
        self._taken: deque[_Taken] = deque()  # frames whose motion has not been coded yet
        self._intra_at = 0.0
        self._measured = 0  # frames in the mean of keypoint_error_px
        self._waiting: list[int] = []  # pts of frames before the first picture
        self._face_at: float | None = None  # seconds, of the first face
        self._dim_face: _Taken | None = None  # the last of those, where a face is seen and the camera sets its exposure
        self._ended = False  # by flush
        if film is not None:  # last: films are there once, and no argument may be refused after it
            film.watch_with(self._watcher, self.time_base)

    # --- the facade ---

    def encode(self, image: Any, pts: int) -> list[Packet]:
        """Packets of one frame, each at most a datagram long.

        image: uint8 RGB (H, W, 3) of any size, or an av.VideoFrame. pts: in time_base units, rising. Empty until a
        face has been seen and, in a call, the camera has set its exposure (a second at most); the frames before are
        then sent as stills of that face. A film that shows somebody within half a minute begins with what comes before.
        """
        if self._ended:
            raise ValueError("This encoder has ended its stream with flush(); make another for what follows.")
        picture = as_picture(image)
        if self._avatar is None:
            self._check_crop(picture)
        if self._lookahead:
            picture = picture.copy()  # it waits, and the caller may use what holds it again
        pts = self._check_pts(pts)
        seconds = float(pts * self.time_base)
        seen = None if self._film is None else self._film.sight(pts)
        self._given = pts
        elapsed, self._now = seconds - self._now, seconds
        self._rate.advance(seconds)
        self.stats.frames += 1
        self._pictures.protection = self._protection
        if seen is None:
            sight, tile = self._watcher.see(picture, seconds)
        else:
            sight, tile = seen, crop(picture, seen.square, self.pack.size)
        packets = self._count(self._pictures.again)
        self._pictures.again = []
        camera = (picture.shape[1], picture.shape[0])
        if camera != self._camera:
            self._camera = camera
            if self._avatar is not None:  # places in the picture before mean nothing in this one
                self._avatar.recenter()
        size = self._avatar.size if self._avatar else camera
        if size != self._size:
            packets += self._drained()  # frames that wait are of the old one
            self._size = size
            packets += self._count([self._pictures.begin_size(self._header())])

        square, estimate, self._moved = sight.square, sight.estimate, sight.moved
        found = estimate  # by which pictures are chosen: what they show is not driven
        if estimate is not None:
            estimate = replace(estimate, motion=self._lids.closed(estimate.motion, estimate.canonical, seconds))
        if self._avatar is not None:  # from here on the camera's picture is out of play
            found = estimate = self._avatar.driven(estimate, square, seconds) if estimate else None
            picture, tile, square = self._avatar.tile, self._avatar.tile, self._avatar.square

        if estimate is None:
            self.stats.face_lost_frames += 1
        often = self._rate.since_picture < max(OFTEN_SECONDS, OFTEN_FRAMES * elapsed)
        shot = Shot(picture, tile, square, found, seconds, sight.light)
        if not self.stats.references and not self._taken and self._waits_to_begin(estimate, seconds):
            self._watcher.begin()
            self._dim_face = None
            if estimate is not None:
                shot = replace(shot, picture=picture.copy(), tile=tile.copy())
                self._dim_face = _Taken(shot, estimate, pts, self._pictures.active, often)
            self._waiting.append(pts)
            if self.repeat_header:  # live: what is long past is shown to nobody
                del self._waiting[:-WAITING_LIVE]
            return self._sent(packets)
        packets += self._follow(sight.shot if self._film is None else self._film.present.shot, seconds)
        # new surroundings would be put around frames that wait
        around = bool(self._pictures.held) and self._pictures.renews_surroundings(shot, moved=self._moved)
        while self._taken and (around or self._own_gives_way()):
            packets += self._shown(self._taken.popleft())
        packets += self._count(self._closed()) if around else []
        if self.stats.references:
            packets += self._refresh(shot)
        active = self._pictures.active
        self._taken.append(_Taken(shot, estimate, pts, active, often))
        if not self.stats.references:
            if estimate is not None and len(self._taken) <= self._lookahead:
                return self._sent(packets)
            packets += self._begin()
        while len(self._taken) > self._lookahead:
            packets += self._shown(self._taken.popleft())
        return self._sent(packets)

    @property
    def target_kbps(self) -> float:
        """The rate aimed at; assign a new one at any time, for example when the network changes."""
        return self._rate.target_kbps

    @target_kbps.setter
    def target_kbps(self, value: float) -> None:
        self._rate.target_kbps = value

    def send_reference(self) -> None:
        """Send a new reference picture with the next frame, for example because a receiver asked for one."""
        self._pictures.wanted = True

    def send_intra(self) -> None:
        """Make the next motion frame decodable without the ones before it."""
        self._wants_intra = True

    def on_feedback(self, feedback: Feedback | bytes | bytearray | memoryview) -> None:
        """React to what a receiver reports: send again the pictures it lacks, or new ones, or an intra frame with the
        next frame, and protect the stream as the loss it sees demands. Bytes that are no feedback: BitstreamError."""
        if not isinstance(feedback, Feedback | bytes | bytearray | memoryview):  # of 5 bytes() would make five zeros
            raise ValueError(f"Feedback is a Feedback or its bytes; found {feedback!r:.40}.")
        packet = feedback if isinstance(feedback, Feedback) else parse_packet(bytes(feedback))
        if not isinstance(packet, Feedback):
            raise BitstreamError(f"a {type(packet).__name__} where feedback is expected; drop the packet")
        if packet.need_intra and not self._intra_on_its_way(packet.sequence):
            self._wants_intra = True
        if packet.sequence is not None:
            newest = self._coded - 1 - (self._sequence - 1 - packet.sequence) % 256
            # else no such frame was sent, or a later report came first and has told of this loss
            if newest >= max(0, self._reported):
                self._loss = max(self._expected_loss, believed(self._loss, packet.lost / 256, newest - self._reported))
                self._reported = newest
            self._heard_at = self._now
        self._pictures.on_feedback(packet, self._now, self._sequence)

    def recenter_avatar(self) -> None:
        """Take the sender's face in the next frame for the calm one that the avatar's picture stands for."""
        if self._avatar is None:
            raise ValueError("This encoder shows the camera's own picture; there is no avatar to recenter.")
        self._avatar.recenter()

    def flush(self) -> list[Packet]:
        """What is still waiting to be sent, and the packet that ends the stream; called again, that packet again. No
        frame can follow."""
        self._ended = True
        packets, self._pictures.again = self._count(self._pictures.again), []
        packets += self._drained()
        last, self._pictures.again = self._pictures.again, []
        return self._sent([*packets, *self._count([*last, End(self._coded)])])

    def _drained(self) -> list[Packet]:
        """Packets of all frames that wait."""
        if self._dim_face and not self._taken and not self.stats.references:  # no other comes
            self._waiting.pop()
            self._taken.append(self._dim_face)
        packets = self._begin() if self._taken and not self._pictures.held else []
        while self._taken:
            packets += self._shown(self._taken.popleft())
        return packets + self._count(self._closed())

    def _intra_on_its_way(self, seen: int | None) -> bool:
        """Whether a receiver that has seen this frame may yet get the last intra frame; None: it does not say."""
        if self._now - self._intra_at > OVERDUE:
            return False
        if seen is None or (self._sequence - 1 - seen) % 256 >= 128:  # the latter has never been sent
            return True
        return 0 < (self._intra_sequence - seen) % 256 < 128

    @property
    def _sequence(self) -> int:
        """Number of the next motion frame."""
        return self._coded % 256

    # --- steps, in order ---

    def _waits_to_begin(self, estimate: MotionEstimate | None, seconds: float) -> bool:
        """Whether there is nothing yet that the first picture should be of: no face, unless what comes before it is a
        part of the film, or one in light that is going to be another."""
        if estimate is None:
            first = None if self._film is None else self._film.face_after(HORIZON)
            return first is None or first < FACELESS_SECONDS
        self._face_at = seconds if self._face_at is None else self._face_at
        return self._watcher.settling and seconds - self._face_at < EXPOSURE_SECONDS

    def _header(self) -> StreamHeader:
        assert self._size is not None
        base = (self.time_base.numerator, self.time_base.denominator)
        return StreamHeader(
            self.pack.id, *self._size, base, self.frame_duration, self.pack.size, self.full_frame, self.gray
        )

    def _follow(self, shots: int, seconds: float) -> list[Packet]:
        """See to the pictures where another shot begins with this frame, so many having begun before it; packets of
        what waited for a first picture until then."""
        packets: list[Packet] = []
        if self._cut_at is not None and shots < self._shots:  # it was a flashlight
            self._pictures.undo_cut(self._cut_at)
            self._cut_at, self._shots = None, shots
        elif self._cut_at is not None and seconds - self._cut_at >= FLASH_SECONDS:
            self._pictures.begin_shot()
            self._cut_at = None
        if shots != self._shots and (self._taken or self._pictures.held):
            if self._film is not None and not self._pictures.held:  # else the rate has no room for two pictures
                packets = self._begin()
            self._pictures.cut(seconds)
            if self._film is not None:
                self._pictures.begin_shot()
            elif self._cut_at is None:
                self._cut_at = seconds
            self._lids = Lids()
        self._shots = shots
        return packets

    def _begin(self) -> list[Packet]:
        """The first picture: of the waiting frames with open eyes the one whose face is in the middle of the others;
        where a cut lies among them, of those after it."""
        shots, first = [frame.shot for frame in self._taken], self._taken[0]
        shots = [shot for shot in shots if not self._pictures.cut_between(shot.seconds, shots[-1].seconds)]
        self._taken.extendleft(replace(first, pts=late, often=False) for late in reversed(self._waiting))
        self._waiting.clear()
        square = shots[-1].square
        if (ahead := self._motion_ahead()) is not None:
            self._rate.begin_with_motion(ahead)
        seen = [(shot, shot.estimate) for shot in shots if shot.estimate]
        eyes = [sum(openings(estimate.motion, estimate.canonical)) for _, estimate in seen]
        usual = float(np.median(eyes)) if eyes else 0.0
        faces = [
            (shot, estimate.placed(shot.square, square).keypoints)
            for (shot, estimate), wide in zip(seen, eyes, strict=True)
            if wide >= usual - BLINK * abs(usual)
        ]
        ways = [sum(distance(face, other) for _, other in faces) for _, face in faces]
        return self._refresh(faces[int(np.argmin(ways))][0] if faces else shots[-1])

    def _motion_ahead(self) -> float | None:
        """Bytes a second that the motion of the frames that wait would take at its finest; None: they do not tell."""
        ahead = [(frame.pts, frame.estimate.motion) for frame in islice(self._taken, LOOKAHEAD_MAX) if frame.estimate]
        if not self._lookahead or self._as_is or len(ahead) < 2:
            return None
        quantizer, finest = Quantizer(self.pack.tables), QUALITIES[0]
        symbols = [quantizer.forward(motion, level=finest.level, components=finest.components) for _, motion in ahead]
        seconds = (ahead[-1][0] - ahead[0][0]) * float(self.time_base)
        return SCENE_TOO * len(self._coder.encode(symbols[1:])) / seconds

    def _weights(self, reference: ReferenceFeatures) -> Array:
        """(N,): by how much the squared error of each component of motion counts in pictures drawn from this one."""
        tables, weights = self.pack.tables, np.ones(self.pack.tables.size)
        if tables.scene:
            rows = list(tables.scene_components)
            meshes = tables.synthesis[rows, -2 * tables.scene**2 :].reshape(len(rows), -1, 2)
            flat = meshes.transpose(0, 2, 1).reshape(len(rows), -1)
            weights[rows] = SCENE_WORTH * ((flat @ worth(reference.grey, tables.scene)) * flat).sum(1)
        return weights

    def _refresh(self, shot: Shot) -> list[Packet]:
        """Choose the reference for this frame; send a new one where it is due."""
        self._rate.expect_waiting(self._aggregator.waiting_bytes)
        if self._avatar is not None and self._pictures.keeps:
            packets = self._pictures.refine(shot, self._now, self._sequence)
        else:
            packets = self._pictures.refresh(
                shot, self._now, self._sequence, as_is=self._as_is, moved=self._moved, doubtful=self._cut_at is not None
            )
        self._wants_intra |= self._pictures.began
        if packets and self._named not in self._pictures.held:  # by frames that wait for others to share a packet
            packets = [*self._closed(), *packets]
        return self._count(packets)

    def _own_gives_way(self) -> bool:
        """Whether a picture that a frame which waits is to be shown from is about to be replaced: its own, or the one
        before, where no face tells which is nearest."""
        taken = {frame.shot.seconds for frame in self._taken}
        faceless = {frame.reference for frame in self._taken if frame.estimate is None}
        return any(
            (held.of in taken or key in faceless) and self._pictures.gives_way(key)
            for key, held in self._pictures.held.items()
        )

    def _shown(self, frame: _Taken) -> list[Packet]:
        """Packets of a frame's motion, from the best picture there is by now."""
        key = self._pictures.active
        if self._lookahead:
            key = self._pictures.best_for(frame.shot, frame.reference, self._named, as_is=self._as_is)
        if self._pictures.strange_to(frame.shot, key) or self._pictures.of_another(key):
            # nobody's motion drives another's face
            frame = replace(frame, estimate=None)
        held, estimate = self._pictures.held[key], frame.estimate
        fresh = held.of == frame.shot.seconds  # that picture is of this very frame
        as_is = self._as_is or estimate is None or (fresh and frame.often and not self._wants_intra)
        as_is &= self._avatar is None  # its picture is nobody's present state
        scene = np.zeros((0, 2), np.float32)  # nothing moved since a picture of this very frame
        if estimate is not None and self._avatar is None and not fresh:
            estimate, scene = self._fitted(frame.shot, estimate, key, as_is=as_is)
            frame = replace(frame, estimate=estimate)
        packets = self._motion(frame, scene, key, as_is=as_is)
        if estimate is not None and self._avatar is None:
            self._check(frame, estimate, scene, held, as_is=as_is)
        return self._count(packets)

    def _fitted(self, shot: Shot, estimate: MotionEstimate, key: int, *, as_is: bool) -> tuple[MotionEstimate, Array]:
        """How what is not the head moved since the picture of this id, in the square that this was cut from, and the
        face; both, where they are drawn, as they draw the frame best."""
        held = self._pictures.held[key]
        last = self._quantizer.last if key == self._named else None
        start = None if last is None else last.scene
        seen, face = shot.seen_in(held.crop), estimate.placed(shot.square, held.crop)
        with self._timed("scene"):
            scene = self._networks.scene(held.features, seen, face, start)
        if self._refinement is None or as_is or not len(scene):
            return estimate, scene
        with self._timed("refinement"):
            face, scene = self._refinement.refined(held.features, seen, face, scene, start)
        return face.placed(held.crop, shot.square), scene

    def _drawn(self, shot: Shot, estimate: MotionEstimate, scene: Array, held: Held) -> Array:
        return self._networks.render(held.features, replace(_told(shot, estimate, held), scene=scene))

    def _motion(self, frame: _Taken, scene: Array, key: int, *, as_is: bool) -> list[Packet]:
        """Its motion was found in its own square; what is sent is in the square that the picture was cut from."""
        estimate, pts, seconds = frame.estimate, frame.pts, frame.shot.seconds
        held, before, period = self._pictures.held[key], self._quantizer.last, self._protection.period
        step = None if self._pts is None else pts - self._pts
        intra = before is None or ((self._wants_intra or seconds - self._intra_at >= period) and not as_is)
        intra |= step is not None and step > TIME_MAX  # no predicted packet can say so
        true: MotionParams | None = None
        with self._timed("motion"):
            reference = held.features
            if estimate is not None and (intra or not as_is):  # what shows a picture needs none
                true = replace(_told(frame.shot, estimate, held), scene=scene)
            elif intra and before is not None:  # no face to be seen: it stays where it was
                true = before if key == self._named else replace(before, scene=scene)
            elif intra:  # the first picture is of somebody else, who comes after a cut
                true = replace(reference.estimate.relative_to(reference.canonical), scene=scene)
        # no intra frame comes to the help of a receiver that lost the packet which named a picture shown as it is
        unnamed = seconds - self._named_at
        names = intra or key != self._named or (as_is and unnamed >= (OVERDUE if self._wants_intra else period))
        head = Motion(
            self._sequence, self._quality.level, self._quality.components, b"", intra,
            reference=key if names else None,
            pts=pts if intra else None,
            pts_step=None if intra or step == self.frame_duration else step,
            as_is=as_is and not intra,
            light=frame.shot.light,
        )  # fmt: skip
        packets: list[Packet] = []
        with self._timed("entropy"):
            if not self._aggregator.takes(head):  # one packet, one quality: a change would begin another
                packets = self._closed()  # where it ends, this frame begins
                self._rate.expect_motion(self._motion_ahead() or 0.0)
                self._quality = self._rate.quality
            quality = self._quality
            if names:
                self._quantizer.new_reference()
            if true is None:
                symbols = self._quantizer.hold(level=quality.level, components=quality.components)
            else:
                symbols = self._quantizer.forward(true, level=quality.level, components=quality.components, intra=intra)
        self._unsettled.append((true, reference))
        head = replace(head, level=quality.level, components=quality.components)
        self._coded, self._pts, self._named = self._coded + 1, pts, key
        self._named_at = seconds if names else self._named_at
        self.stats.as_is_frames += head.as_is
        if intra:
            self._wants_intra, self._intra_at, self._intra_sequence = False, seconds, head.sequence
            self.stats.intra_frames += 1
            if self.repeat_header and self._protection.parity:  # nobody would ask, and without it nothing can be shown
                self._pictures.again.append(self._header())
        with self._timed("entropy"):
            return packets + self._aggregator.add(head, symbols, self._protection.again, self._settled)

    def _closed(self) -> list[Packet]:
        """The packet of the frames that wait for others to share it."""
        return self._aggregator.close(self._protection.again, self._settled)

    def _settled(self, symbols: Sequence[Symbols]) -> Sequence[Symbols]:
        """What is sent of the frames that fill a packet, for what was tried while they waited for each other."""
        frames, self._unsettled = self._unsettled, []
        end, meant = self._quantizer.state, [true for true, _ in frames if true is not None]
        if self._trellis is not None and len(meant) == len(symbols) > 1:
            wanted = [self._quantizer.wanted(true, symbols[0].components) for true in meant]
            better, after = self._trellis.settled(symbols, np.array(wanted), self._weights(frames[0][1]))
            # elsewhere the window has room for what was tried, and no more
            if self._film is not None or len(self._coder.encode(better)) <= len(self._coder.encode(symbols)):
                symbols, end = better, after
        for (true, reference), state in zip(frames, [*(frame.state for frame in symbols[1:]), end], strict=True):
            self._quantizer.state = state
            if true is not None:
                self._note_error(true, reference)
        return symbols

    def _check(self, frame: _Taken, estimate: MotionEstimate, scene: Array, held: Held, *, as_is: bool) -> None:
        """Now and then: does rendering this frame beat showing the picture as it is?"""
        since, tile = self.stats.frames - self._checked, frame.shot.tile
        if self._check_at is None:
            self._check_at = frame.shot.seconds
        early = frame.shot.seconds - self._check_at < CHECK_SECONDS or since < CHECK_FRAMES
        if early or held.crop != frame.shot.square:
            return
        self._check_at, self._checked = frame.shot.seconds, self.stats.frames
        with self._timed("check"):
            shown = [self._drawn(frame.shot, estimate, scene, held), held.features.picture]
            rendered, still = (squared_error(tile, picture) for picture in shown)
            ratio = (rendered + 1) / (still + 1)
            if self._rate.sharp:
                tile, *shown = (soften(picture, estimate.box.tolist(), BEHIND) for picture in (tile, *shown))
                ratio = (squared_error(tile, shown[0]) + 1) / (squared_error(tile, shown[1]) + 1)
        if as_is == self._as_is:  # where frames have pictures of their own, rate left over tells whether finer ones pay
            self._rate.note_error(held.error, still if as_is else rendered)
        self._ratio = float(np.sqrt(self._ratio * ratio))
        leaving = self._as_is and self._ratio < BETTER
        self._wants_intra |= leaving
        self._as_is = self._ratio > WORSE or (self._as_is and not leaving)

    # --- bookkeeping ---

    def _note_error(self, true: MotionParams, reference: ReferenceFeatures) -> None:
        seen = self._quantizer.last
        assert seen is not None
        error = distance(true.keypoints(reference.canonical), seen.keypoints(reference.canonical))
        self._rate.note_motion(error)
        self._measured += 1
        self.stats.keypoint_error_px += (error - self.stats.keypoint_error_px) / self._measured

    def _count(self, packets: list[Packet]) -> list[Packet]:
        """These packets are about to go out; what is chosen from here on knows what they take."""
        for packet in packets:
            size = len(bytes(packet))
            record = 0 if self.repeat_header else len(varint(size))  # a file puts the length in front of it
            inside = packet.packets if isinstance(packet, Bundle) else (packet,)
            motion = [p for p in inside if isinstance(p, Motion)]
            for p in motion:
                self._rate.spend_motion(len(bytes(p)) + record, len(p.payload), MotionQuality(p.level, p.components))
            pictures = sum(len(p.payload) for p in inside if isinstance(p, ReferencePart | Parity | Update))
            payload = sum(len(p.payload) for p in motion)
            self.stats.bytes_motion += payload
            self.stats.bytes_reference += pictures
            self.stats.bytes_overhead += size - payload - pictures
            self._rate.spend(size + record)
        return packets

    def _sent(self, packets: list[Packet]) -> list[Packet]:
        if self._packet_overhead:
            self._rate.spend_headers(self._packet_overhead * len(bundled(packets)))
        self.stats.packets += len(packets)
        self.stats.provider = self._networks.provider if self._pictures.held else ""
        return packets

    @property
    def _protection(self) -> Protection:
        return protection(self._loss, heard=self._now - self._heard_at < HEARD_SECONDS)

    def _check_crop(self, picture: Array) -> None:
        """LimitError where decoders would drop every picture."""
        height, width = picture.shape[:2]
        most = Square.side_most(width, height, self.pack.size)
        if self._fixed and self._fixed.side > most:
            raise LimitError(
                f"The crop has a side of {self._fixed.side} pixels; of pictures of {width} x {height} no decoder shows "
                f"a square of more than {most}."
            )

    def _check_pts(self, pts: int) -> int:
        pts = _whole("pts", pts, -PTS_MAX, PTS_MAX)
        if self._given is not None and pts <= self._given:
            raise ValueError(f"pts {pts} does not follow {self._given}: timestamps must rise from frame to frame.")
        return pts

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        return timed(self.stats.stage_seconds, stage)


def _told(shot: Shot, estimate: MotionEstimate, held: Held) -> MotionParams:
    """The motion of a frame, found in its own square, as it is told on a held picture and in that one's square."""
    return estimate.placed(shot.square, held.crop).relative_to(held.features.canonical)


def _whole(name: str, value: Any, least: int, most: int) -> int:
    """``value`` if it is a whole number in this range."""
    if not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {least} to {most}.")
    return int(value)


def _check_headers(kbps: float, target_kbps: float, frames_per_packet: int) -> None:
    """Refuse those of a transport that leave nothing of the target: hardly a picture would follow the first."""
    if kbps < target_kbps:
        return
    alone = kbps * frames_per_packet  # with a packet for each frame
    fits = next((n for n in range(2, SHARE_MAX + 1) if alone / n + LOWEST_KBPS <= target_kbps), None)
    share = f", or let frames share packets: frames_per_packet={fits}" if fits else ""
    raise ValueError(
        f"target_kbps is {target_kbps:g}, of which headers alone (packet_overhead) take {kbps:.2f}; raise it{share}."
    )

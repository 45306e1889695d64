"""How the bits of a target rate are spent: how fine motion is coded, and when a reference picture is worth sending.

Knows no bytes of packets and no networks; time is an argument. The first picture sets the quality of its chain
(chain.py); from then on whatever motion leaves of the rate is saved up for the next picture, which goes out when enough
of it is paid for, no two seconds get too full with it, and the head has moved away from all pictures that are held.
Motion that takes too much, or more than two seconds have room for, is coded coarser. Where most of what a receiver sees
wrong is the coding of the pictures, and not what has moved since, or where rate is left over, a finer chain begins, and
where hardly anything is, a coarser one. The constants of pictures were chosen on validation clips before 2026-11-25
(not UPDATE_SHARE, DRIFT_LEAST and PAID), all others on training clips since.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .motion import Array

T = TypeVar("T")

PIXEL = 2 / 256  # one pixel of a 256-pixel picture in coded-picture units
LOWEST_KBPS = 0.5
# The key of a chain may take FIRST_BYTES at 4 kbit/s and more at higher rates, but not in proportion: most of what a
# higher rate brings is worth more as more pictures than as finer ones. Three training clips, six seconds, 4 kbit/s: 700
# bytes give 24.0 dB and 25.3 in the face, 1050 give 23.8 and 25.5 (more where the head is calm), 1400 23.0 and 24.8.
FIRST_BYTES, FIRST_POWER = 850, 0.25
STILL_SECONDS = 1.6  # a still that follows others, where there is no chain
REFERENCE_BYTES = (300, 12000)  # of both; never smaller (nothing to recognise), never larger (nothing to gain at 256)
# Of the squared error that a receiver sees, the share that was in the picture in use when it was coded. What checks
# find above CODING_SHARE is added up, what they find below taken off; at EVIDENCE a key of FINER times the bytes is
# worth its rate. Four training clips of 30 seconds: 28.3 to 29.0 dB, 29.5 to 30.1 in the face, and 4 % of frames shown
# as they are instead of 20 %. Ten seconds gain nothing from it.
CODING_SHARE, EVIDENCE, FINER = 0.65, 2.0, 1.6
# So it is where more than IDLE_SHARE of the rate finds no use, when what is more comes to that of IDLE_SECONDS. Six
# training clips of ten seconds at 32 kbit/s: 35.3 dB at 27.6 kbit/s; with 0.3 and 0.6 35.1 at 25.1. Larger steps go too
# far, past what lets every frame have a picture: with keys of a second's rate at least 34.0 dB for 34.8 without.
IDLE_SHARE, IDLE_SECONDS = 0.2, 0.3
AGELESS_FINER = 3.0  # times the bytes of the key before, where pictures do not age: 850, 2550, 7650, 12000 at 4 kbit/s
# Where hardly anything of the error is coding, updates of a coarser chain are worth more. Its key takes the place of an
# update that would have taken as much. Were it allowed twice that, two validation clips of heads that hardly rest would
# gain 0.4 and 1.8 dB and one that comes to rest lose 0.8, with landmarks that tremble twice as far.
PLENTY_SHARE, PLENTY = 0.2, 0.5
PART_SECONDS, PART_BYTES_MIN = 0.1, 150  # of the rate in a part of a key that goes out little by little
PART_HEADER = 22  # bytes around a part, at most: kind, id, index, count, codec, hash, crop
UPDATE_SHARE = 0.06  # of its key's bytes, times `growth`: what an update takes until updates have been seen
# What an update takes grows as the square root of the drift that it makes up for, which foretells it better than the
# updates before it do: by a factor of 1.3 off (root mean square over 14 training clips, 0.1 pixel added), not of 1.7.
# Pixels; DRIFT_LEAST is added, so that tiny updates save up longer, DRIFT_MOST is the most that is reckoned with.
DRIFT_LEAST, DRIFT_MOST = 3.0, 64.0
# Of an update that is due now, what has to be saved up; the rest is owed, and still no window gets too full.
PAID = 0.45
MOST_ROOM = 0.5  # of what motion leaves of a window: that a picture waits for at most, whatever it is expected to cost
MEMORY = 0.3  # weight of the last update in what the next is expected to cost
CLOSE, FAR = 0.3, 1.5  # pixels: drift below CLOSE asks for no picture; at FAR one goes as soon as it can be paid
SAVINGS_SECONDS = 0.2  # unspent rate that is kept, or two pictures if they cost more
# By which share any window of a stream (WINDOW_SECONDS, where an encoder was given no other) may exceed the target, a
# little more where motion grows: pictures wait or come in parts for it, and motion is coded coarser. With 0.07 the
# worst two seconds of 25 training clips, as files, are 8 % over at 2 kbit/s and 6 at 4. A stream takes 3 to 6 % less
# for it; at equal bytes it loses 0.1 dB. At low rates eight frames that begin to move are a larger share of two
# seconds, which 0.075 let be 10.4 % over at 2 kbit/s.
WINDOW_SECONDS, WINDOW_EXCESS = 2.0, ((3.0, 0.075), (0.0, 0.06))
# Of the first window: headers of stream and key, and the share of motion; the key takes the rest. Calls of twelve
# training clips at 4 kbit/s: 0.2 gives 26.7 dB and two seconds that are 15 % over, 0.27 26.9 dB and 10 %, 0.34 26.9 dB
# and 8 %. Where frames wait and tell how much they move, it is what their motion takes at START_STEP of QUALITIES, and
# LEAST_MOTION; one step finer would leave the liveliest heads so coarse a key at 2 kbit/s that they lose 0.3 dB. More
# than START_PACKETS a second take MOTION_HEADER each besides.
START_BYTES, START_MOTION, LEAST_MOTION, START_STEP = 60, 0.27, 0.22, 6
START_PACKETS = 25
PERIOD = 2.0  # seconds between intra frames: how long a late joiner waits, and how long a lost packet is felt


@dataclass(frozen=True)
class MotionQuality:
    """How a motion frame is quantized: the ladder's level (0 finest) and the index of the component count."""

    level: int
    components: int


# From fine to coarse; without scene the first takes 4.4 bytes a frame on validation tracks and is 0.17 px off, the
# fifth 1.9 and 0.56.
QUALITIES = tuple(MotionQuality(*q) for q in ((0, 7), (1, 7), (2, 6), (3, 6), (4, 5), (5, 5), (6, 4), (7, 4), (7, 2)))
USUAL = 7  # of them; the others only while a window is full
LADDER = ((6.0, 0), (3.0, 1), (1.8, 2), (0.0, 4))  # from this many kbit/s on, the finest of them that is used
# Of the rate: motion that takes less is coded finer again, that takes more coarser, and in between coarser while its
# keypoints are less than MOTION_ERROR pixels off. Files of 14 training clips, 250 frames, 4 kbit/s: 0.28 gives 27.18 dB
# at 3.88 kbit/s, landmarks of resting heads that tremble by 1.104 pixels and 100 of 209 closed eyes shown closed, 0.2
# 27.11 dB at 3.83, 1.090 and 107; with 0.2, shares of 0.3 and 0.52 give 26.94 dB at 3.87, 1.085 and 114.
MOTION_SHARE, MOTION_ERROR = (0.25, 0.47), 0.2
AGELESS_SHARE = (0.6, 0.85)  # the first two where pictures do not age
MOTION_SECONDS, MOTION_FRAMES = 0.5, 12  # over which share and error are measured
COARSER_SECONDS, FINER_SECONDS = 0.24, 1.0  # from one step of its quality to the next
SIZES = (1.0, 0.78, 0.6, 0.46, 0.34, 0.255, 0.18, 0.137, 0.117)  # of motion at QUALITIES: twelve training tracks
SURGE_SECONDS = 0.2  # over which it is measured besides, so that a head that begins to move fills no window too far
MOTION_HEADER = 2  # bytes of a packet of motion, at least, that are no symbols
MOTION_EVERY_MIN = 0.01  # seconds
GROWTH = 1.1  # times what motion took lately is what it is reckoned to take from here on
HEADER_SECONDS = 1.0  # over which the headers of a transport are measured
# Of SVT-AV1 from this rate on: many pictures a second must be coded faster, less so where nobody waits for them.
# Chains of training clips, bits at equal MS-SSIM and time of a picture, with 4 for 1: 8 takes 1.29 and 0.45, 6 1.15
# and 0.65, 2 0.95 and 1.7, 1 0.92 and 3, 0 0.91 and 8. As files seven clips are at a VMAF of 47.1 at 8 kbit/s with 6,
# at 47.8 with 2 and at 49.2 with 1, and at 16 kbit/s at 53.9 with 8 and at 58.5 with 2. Calls of 16 clips at 8 kbit/s
# are at 28.91 dB and 47.3 with 6, at 29.13 and 48.3 with 4.
PRESETS = ((12.0, 6), (0.0, 4))
PRESETS_AHEAD = ((12.0, 2), (0.0, 1))
# By how many quantizer indices (of AV1's 255) updates are coarser than their key, from this rate on. 28 training clips
# of six seconds at 4 kbit/s, motion not waiting: 44 gives 26.39 dB, MS-SSIM 0.901 and landmarks 1.52 px off, 36 fewer
# and finer updates (26.32 dB, 1.49 px), 52 more and coarser ones (26.40 dB, 1.55 px). 14 of them at 2 kbit/s, as files:
# 16 gives 24.96 dB, 0.870, 1.72 px and a VMAF of 19.7, 30 gives 24.71 dB, 0.862, 1.91 px and 17.5, 44 gives 24.46 dB,
# 0.853, 2.03 px and 15.7; 8 and 0 are like 16. At 3 kbit/s 16 gives 25.83 dB, 0.892 and a VMAF of 28.0, 44 25.95 dB,
# 0.890 and 26.1; at 4 26.89 dB, 0.907 and 37.7 for 27.14 dB, 0.913 and 37.6. At 32, where nearly every frame has one,
# 20 gives 35.57 dB at 28.1 kbit/s and 44 34.76 at 25.7; at 16 either does. All that was before updates' frame headers
# were coded (frame_header.py), which left 44 at 4 kbit/s with more of them, but no better ones: eleven training clips
# of eight seconds, calls at 3.9 kbit/s: 44 gives 28.96 dB and MS-SSIM 0.937, 36 29.02 and 0.938, 28 28.85 and 0.936; as
# files at 3.8 kbit/s 29.76 and 0.946, 29.81 and 0.946, 29.85 and 0.947. At 2 kbit/s 24 gives calls of twelve clips
# 25.79 dB and MS-SSIM 0.884, 16 26.03 and 0.891, 8 26.02 and 0.892, 0 26.08 and 0.894; files 26.53 and 0.897, 26.92 and
# 0.906, 27.08 and 0.910, 27.09 and 0.912.
UPDATES_COARSER = ((20.0, 28), (3.5, 36), (2.5, 16), (0.0, 0))

# Width in pixels of the boxes that blur what is not the head (focus.py), from keys of so many bytes on. Eight training
# clips at 4 kbit/s: width 1 gives 24.8 dB and 25.2 in the face, 3 gives 24.7 and 25.5, 5 gives 24.2 and 25.6.
SOFTNESS = ((2000, 1), (700, 3), (0, 5))
# From here on nothing is. Files of eight training clips at 16 kbit/s gain 0.7 dB by it on the median clip (0 to 1.6,
# 6.4 with text behind the head) and VMAF 5.7; four calls 0.3 to 5.6 dB. At 8 kbit/s files of four clips gain 0.5 dB and
# lose 0.3 dB in the face, landmarks are 1.01 px off for 0.96, and the distance of identities is 0.28 for 0.25.
SHARP_KBPS = 12.0


def motion_quality(target_kbps: float) -> MotionQuality:
    """The finest used at this rate."""
    return QUALITIES[_from_floor(LADDER, target_kbps)]


def _from_floor(ladder: Sequence[tuple[float, T]], value: float) -> T:
    """What stands at the highest floor that ``value`` reaches; floors fall, and the last is 0."""
    return next(step for floor, step in ladder if value >= floor)


def distance(a: Array, b: Array) -> float:
    """How far two sets of keypoints (K, 3) lie apart in the picture: root mean square, in pixels of 256."""
    return float(np.sqrt(((a - b)[:, :2] ** 2).sum(1).mean())) / PIXEL


class RateControl:
    """A purse filled at the target rate and emptied by every byte sent.

    headers_kbps: of the target, what a transport's headers are expected to take until `spend_headers` has told.
    preset: of SVT-AV1 for pictures; None: by the rate.
    ageless: pictures do not age, as an avatar's: motion comes first, at its finest, and they get what it leaves.
    ahead: pictures are coded ahead of the frames they are for, so that nobody waits for them.
    lag: seconds that motion waits before it is sent, on average. motion_every: from one packet of it to the next.
    window: seconds of which none may take more than the target and `excess`.
    """

    def __init__(
        self,
        target_kbps: float,
        headers_kbps: float = 0.0,
        preset: int | None = None,
        *,
        ageless: bool = False,
        ahead: bool = False,
        lag: float = 0.0,
        motion_every: float = 0.04,
        window: float = WINDOW_SECONDS,
    ) -> None:
        self._window = float(window)
        self._ageless, self._motion_every = ageless, max(motion_every, MOTION_EVERY_MIN)
        self._headers = headers_kbps * 125  # bytes a second of them, lately
        presets = PRESETS_AHEAD if ahead else PRESETS
        self._presets = presets if preset is None else ((0.0, preset),)
        self._aim(target_kbps)
        self._start_finest: float | None = None  # bytes a second of the first motion at its finest, if that is known
        self._motion = self._start_motion  # bytes a second that motion takes, lately
        self._packet_headers = MOTION_HEADER / self._motion_every  # of that, what no quality changes
        rest = max(self._motion / 2, self._motion - self._packet_headers)
        self._finest_motion = self._surge = rest / SIZES[self._finest]  # the rest, if it were at its finest
        self.key_bytes = self._chain_bytes = self.first_bytes
        self._coming = 0.0  # what the frames that wait would take at their finest
        self._waiting_bytes = 0  # what motion takes that waits for others
        self._motion_at: float | None = None  # seconds, of the last packet of it
        self._new_motion, self._new_headers, self._new_finest = 0, 0, 0.0  # bytes of motion that goes out now
        self._motion_error = MOTION_ERROR  # pixels of 256 that its keypoints are off, lately
        self._changed: float | None = None  # seconds, when the quality of motion changed
        self._alone_bytes = float(self.still_bytes)  # what a picture is expected to take that stands on its own
        self._root_bytes: float | None = None  # what updates take for each unit of `growth`; None: no chain
        self._update_extra = 0  # bytes of it that are no picture
        self._drift = 0.0  # pixels that the nearest picture is off
        self._purse, self._lag = 0.0, lag
        self._sent: deque[tuple[float, int]] = deque()  # seconds and bytes of what was sent within the window
        self._share = 0.0  # of coding in the error that the last check found
        self._evidence = 0.0  # that this chain is too coarse
        self._plenty = 0.0  # and that it is too fine
        self._idle = 0.0  # seconds whose rate found no use, beyond IDLE_SHARE
        self._parts_wait = False  # parts of a finer key
        self._seconds: float | None = None
        self._picture_at = float("-inf")  # seconds, of the last picture

    @property
    def target_kbps(self) -> float:
        """Assign a new one at any time: what was sent and seen until then still counts."""
        return self._target_kbps

    @target_kbps.setter
    def target_kbps(self, value: float) -> None:
        before = self.first_bytes
        self._aim(value)
        self.key_bytes, self._chain_bytes = (
            int(np.clip(size * self.first_bytes / before, *REFERENCE_BYTES))
            for size in (self.key_bytes, self._chain_bytes)
        )

    def _aim(self, target_kbps: float) -> None:
        if not isinstance(target_kbps, int | float | np.number) or not LOWEST_KBPS <= target_kbps <= 1000:
            raise ValueError(f"target_kbps is {target_kbps!r}; expected {LOWEST_KBPS} to 1000 kbit/s.")
        self._target_kbps = float(target_kbps)
        self._leave_headers()
        self._coarseness = self._finest

    @property
    def preset(self) -> int:
        """Of SVT-AV1, for the next chain."""
        return _from_floor(self._presets, self.bytes_per_second / 125)

    @property
    def updates_coarser(self) -> int:
        """Quantizer indices, of the next chain."""
        return _from_floor(UPDATES_COARSER, self.bytes_per_second / 125)

    def advance(self, seconds: float) -> None:
        """Time has come to ``seconds``."""
        elapsed = 0.0 if self._seconds is None else seconds - self._seconds
        if self._seconds is not None and elapsed > 0:
            self._measure_motion(self._seconds)
            if self._headers:
                self._headers *= math.exp(-elapsed / HEADER_SECONDS)
                self._leave_headers()
            self._purse += elapsed * self.bytes_per_second
        self._seconds = seconds
        if self._changed is None:
            self._changed = seconds
        share, since = self._motion / self.bytes_per_second, seconds - self._changed
        least, most = AGELESS_SHARE if self._ageless else MOTION_SHARE
        spare = share > least and self._motion_error < MOTION_ERROR and not self._ageless
        if (share > most or spare) and since >= COARSER_SECONDS and self._coarseness + 1 < USUAL:
            self._coarseness, self._changed = self._coarseness + 1, seconds
        elif share < least and since >= FINER_SECONDS and self._coarseness > self._finest:
            self._coarseness, self._changed = self._coarseness - 1, seconds
        while self._sent and self._sent[0][0] <= seconds - self._window + 1e-6:
            self._sent.popleft()
        # unspent rate does not pile up into a burst, nor is it lost while pictures wait for their window
        part_fits = not self._parts_wait or self.room >= self.part_bytes + PART_HEADER
        # a picture that takes more than a window is saved for in any case, or it would never be affordable
        most = self._full if self._has_room and part_fits else max(self._window_bytes, self.picture_bytes)
        lost = max(0.0, self._purse - most - self._lag * self._motion)
        self._purse -= lost
        idle = lost / self.bytes_per_second - IDLE_SHARE * elapsed
        self._idle = max(0.0, self._idle + min(idle, IDLE_SECONDS / 2))  # a long pause proves nothing

    @property
    def _now(self) -> float:
        return self._seconds or 0.0

    def spend(self, count: int) -> None:
        self._purse -= count
        before = self._sent.pop()[1] if self._sent and self._sent[-1][0] == self._now else 0
        self._sent.append((self._now, before + count))

    def spend_headers(self, count: int) -> None:
        """A transport puts so many bytes around what goes out now."""
        self._headers += count / HEADER_SECONDS

    def spend_motion(self, count: int, payload: int, quality: MotionQuality) -> None:
        """A packet of so many bytes of what is spent was motion, ``payload`` of them symbols of this quality; where it
        takes too much it is coded more coarsely."""
        self._new_motion += count
        self._new_headers += count - payload
        self._new_finest += payload / SIZES[QUALITIES.index(quality)]

    def _measure_motion(self, at: float) -> None:
        """Of the packets of motion that went out then: they stand for the time since those before."""
        if not self._new_motion:
            return
        since = self._motion_every if self._motion_at is None else at - self._motion_at
        since = min(since, max(self._motion_every, MOTION_SECONDS))  # after a gap it goes on as before
        slow, fast = (1 - math.exp(-since / seconds) for seconds in (MOTION_SECONDS, SURGE_SECONDS))
        self._motion += slow * (self._new_motion / since - self._motion)
        self._packet_headers += slow * (self._new_headers / since - self._packet_headers)
        self._finest_motion += slow * (self._new_finest / since - self._finest_motion)
        self._surge += fast * (self._new_finest / since - self._surge)
        self._motion_at, self._new_motion, self._new_headers, self._new_finest = at, 0, 0, 0.0

    def expect_motion(self, finest: float) -> None:
        """The frames that wait would take so many bytes a second at their finest; 0 where nothing is known of them."""
        self._coming = finest

    def expect_waiting(self, count: int) -> None:
        """Motion that waits to share a packet takes so many bytes already."""
        self._waiting_bytes = count

    def begin_with_motion(self, finest: float) -> None:
        """The same before the first key, which leaves room for it."""
        self._finest_motion = self._surge = self._coming = self._start_finest = finest
        self.key_bytes = self.first_bytes

    def note_motion(self, error: float) -> None:
        """Keypoints of a frame are so many pixels of 256 off, root mean square."""
        self._motion_error += (error - self._motion_error) / MOTION_FRAMES

    def _leave_headers(self) -> None:
        """What the transport's headers leave of the target is what there is to spend."""
        kbps = max(LOWEST_KBPS, self.target_kbps - self.headers_kbps)
        self.bytes_per_second = kbps * 125
        self._finest = 0 if self._ageless else QUALITIES.index(motion_quality(kbps))

    @property
    def headers_kbps(self) -> float:
        """What the transport's headers take, lately."""
        return self._headers / 125

    @property
    def softness(self) -> int:
        """How wide what is not the head is blurred before the next key and its updates."""
        return 1 if self.sharp else _from_floor(SOFTNESS, self.key_bytes)

    @property
    def sharp(self) -> bool:
        """Whether the rate lets what lies around the head be as sharp as the head."""
        return self.bytes_per_second >= 125 * SHARP_KBPS

    @property
    def quality(self) -> MotionQuality:
        """How the next motion frame is to be quantized: coarser while a window is full."""
        step, finest = self._coarseness, max(self._finest_motion, self._surge, self._coming)
        allowed = self._motion_allowed - self._packet_headers
        while step + 1 < len(QUALITIES) and GROWTH * SIZES[step] * finest > allowed:
            step += 1
        return QUALITIES[step]

    def sent_key(self, count: int, extra: int = 0, of: float | None = None) -> None:
        """A chain was begun with so many bytes. extra: bytes that each update takes besides its picture. of: seconds,
        when the picture was taken."""
        self._root_bytes, self._update_extra, self._chain_bytes = UPDATE_SHARE * count, extra, self.key_bytes
        self._evidence, self._plenty, self._idle = 0.0, 0.0, 0.0
        self._picture_at = self._now

    def keeps_chain(self) -> None:
        """The finer key that was wanted does not go out."""
        self.key_bytes = self._chain_bytes

    def ended_chain(self) -> None:
        """The next picture is a key again."""
        self._root_bytes, self._alone_bytes = None, float(self.key_bytes)

    def sent_update(self, count: int) -> None:
        """An update of so many bytes was sent for the drift that was last asked about."""
        if self._root_bytes is not None:
            seen = max(0, count - self._update_extra) / self._growth(self._drift)
            self._root_bytes += MEMORY * (seen - self._root_bytes)
        self._picture_at = self._now

    def note_error(self, coding: float, shown: float) -> None:
        """What a check found: mean squared errors of the picture in use when it was coded, and of what is shown now."""
        self._share = min(1.0, coding / max(shown, 1e-6))
        self._evidence = max(0.0, self._evidence + self._share - CODING_SHARE)
        self._plenty = max(0.0, self._plenty + PLENTY_SHARE - self._share)

    def wants_finer(self) -> bool:
        """Whether a finer chain is worth more than updates of this one, or than nothing; ``key_bytes`` then says how
        fine."""
        finer = min(int(FINER * self.key_bytes), REFERENCE_BYTES[1])
        due = self._evidence >= EVIDENCE or self._idle >= IDLE_SECONDS
        if not due or finer == self.key_bytes:
            return False
        self.key_bytes, self._evidence, self._idle = finer, 0.0, 0.0
        return True

    def begin_at_once(self, of: float | None = None, extra: int = 0) -> None:
        """A key goes out in one go: where pictures do not age it is a coarse one again, and finer ones follow it. of,
        extra: see `sent_key`."""
        if self._ageless:
            self.key_bytes = self.first_bytes

    def typical_after(self, of: float) -> tuple[Array, Array | None] | None:
        """A tile of what comes after the picture of this time, seconds, and the box of the face in it, where that is
        known and much more or less is to be seen: how fine a chain is then depends on it and not on its key."""
        return None

    def begins_shot(self) -> bool:
        """Whether another shot begins with a key and not with an update: where this chain is as fine as a calmer shot
        allowed. Else an update comes sooner, in parts."""
        if self.key_bytes <= self.first_bytes:
            return False
        self.key_bytes = self.first_bytes
        return True

    def wants_finest(self) -> bool:
        """Whether a picture that does not age can be had finer; ``key_bytes`` then says how fine the next one is."""
        finer = min(int(AGELESS_FINER * self.key_bytes), REFERENCE_BYTES[1])
        if finer == self.key_bytes:
            return False
        self.key_bytes = finer
        return True

    def wants_coarser(self) -> bool:
        """Whether the key of a coarser chain should go out in place of the next update; ``key_bytes`` then says how
        coarse."""
        if not self._coarser_due or self._coarser > self.room:  # unlike an update a key goes out in one go
            return False
        self.key_bytes = self._coarser
        return True

    @property
    def _coarser(self) -> int:
        return max(int(self.key_bytes / FINER), REFERENCE_BYTES[0])

    @property
    def _coarser_due(self) -> bool:
        return self._plenty > PLENTY and self._coarser < min(self.key_bytes, self.picture_bytes)

    @property
    def picture_bytes(self) -> float:
        """What the next picture is expected to take, if it is an update, at the drift that was last asked about."""
        if self._root_bytes is None:
            return self._alone_bytes
        return self._root_bytes * self._growth(self._drift) + self._update_extra

    def _growth(self, drift: float) -> float:
        """What updates take is in proportion to this."""
        return math.sqrt(min(drift, DRIFT_MOST) + DRIFT_LEAST)

    @property
    def next_bytes(self) -> float:
        """What the next picture is expected to take."""
        return self._coarser if self._coarser_due else self.picture_bytes

    @property
    def purse(self) -> float:
        """Bytes that can be spent now: not what frames that wait will take."""
        return self._purse - self._lag * self._motion

    @property
    def owes_much(self) -> bool:
        """Whether the largest of keys and two windows' bytes more were spent than the rate has brought: somebody who
        asks without end leads there, not even a rate that falls to a tenth."""
        return self._purse < -(REFERENCE_BYTES[1] + 2 * self._window_bytes)

    @property
    def room(self) -> float:
        """Bytes that a picture may take now so that no window, past or to come, exceeds the target by more than
        ``excess``: what has been sent leaves the window little by little while motion goes on."""
        motion = max(self._finest_motion, self._coming) * SIZES[self._coarseness]
        motion = GROWTH * (self._packet_headers + motion)
        surprise = max(0.0, self._waiting_bytes - (self._now - self._waits_since) * motion)
        return min(left - seconds * motion for left, seconds in self._windows()) - surprise

    @property
    def _motion_allowed(self) -> float:
        """Bytes a second that motion may take so that no window gets too full."""
        return min(left / seconds for left, seconds in self._windows() if seconds > 0)

    def _windows(self) -> Iterator[tuple[float, float]]:
        """Of every window that what was sent lies in: bytes that it has room for, and seconds whose motion may yet come
        in it, that which waits for others included."""
        left, since = self._window_bytes, self._waits_since
        yield left, self._window
        for at, count in reversed(self._sent):
            left -= count
            yield left, at + self._window - since

    @property
    def _waits_since(self) -> float:
        """Seconds; the motion of everything later has not been sent yet."""
        return self._now if self._motion_at is None else max(self._motion_at, self._now - self._motion_every)

    @property
    def _has_room(self) -> bool:
        """Whether the next picture fits; one that is expected to be very large comes in parts instead of never."""
        most = MOST_ROOM * (self._window_bytes - self._window * self._motion)
        return self.room >= min(self.next_bytes, most)

    @property
    def _window_bytes(self) -> float:
        return (1 + self.excess) * self._window * self.bytes_per_second

    @property
    def excess(self) -> float:
        """Of WINDOW_EXCESS, at this rate."""
        return _from_floor(WINDOW_EXCESS, self.bytes_per_second / 125)

    @property
    def part_bytes(self) -> int:
        """Of a picture that goes out little by little: so much in a packet."""
        return max(PART_BYTES_MIN, int(PART_SECONDS * self.bytes_per_second))

    @property
    def since_picture(self) -> float:
        """Seconds since the last one."""
        return self._now - self._picture_at

    @property
    def first_bytes(self) -> int:
        wanted = FIRST_BYTES * (self.bytes_per_second / 500) ** FIRST_POWER
        most = self._window_bytes - START_BYTES - self._window * self._start_motion
        return int(np.clip(min(wanted, most), *REFERENCE_BYTES))

    @property
    def _start_motion(self) -> float:
        """Bytes a second that the motion of the first seconds is expected to take."""
        if self._start_finest is None:
            more = max(0.0, 1 / self._motion_every - START_PACKETS)
            return START_MOTION * self.bytes_per_second + MOTION_HEADER * more
        return max(LEAST_MOTION * self.bytes_per_second, self._start_finest * SIZES[START_STEP])

    @property
    def still_bytes(self) -> int:
        return int(np.clip(self.bytes_per_second * STILL_SECONDS, *REFERENCE_BYTES))

    def affords_picture(self, drift: float, *, waiting: bool = False) -> bool:
        """Whether to send one now that the nearest held reference is ``drift`` pixels away.

        waiting: a finer key is on its way and takes what is left over; only a head that is far gets a picture.
        """
        self._drift, self._parts_wait = drift, waiting
        if not self._has_room:
            return False
        if waiting:
            return drift >= FAR and self.purse >= self.picture_bytes
        if self.purse >= self._full:  # more would be lost
            # of a head at rest a picture of this chain would show nothing new
            return drift >= CLOSE or self._share <= CODING_SHARE
        urgency = float(np.clip((drift - CLOSE) / (FAR - CLOSE), 0, 1))
        return drift >= CLOSE and self.purse >= PAID * (2 - urgency) * self.picture_bytes

    @property
    def _full(self) -> float:
        """What the purse holds: a part of a key with its header at least, or it would wait for ever."""
        return max(2 * self.picture_bytes, SAVINGS_SECONDS * self.bytes_per_second, self.part_bytes + PART_HEADER)

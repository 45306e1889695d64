"""What a sender adds so that a stream survives loss: frames sent again, parity of pictures, intra frames more often;
and how a receiver tells what is lost although frames come again.

Knows packets and symbols, no networks and no clock. See FORMAT.md section 13 for what a receiver makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from .entropy import EntropyCoder
from .packet import Bundle, Motion, Packet
from .quantizer import Symbols
from .rate import PERIOD


@dataclass(frozen=True)
class Protection:
    """again: how many frames before it each motion packet repeats. parity: XOR packets per still or key, at most; an
    update is sent twice instead. period: seconds between intra frames nobody asked for."""

    again: int
    parity: int
    period: float


# From this share of lost packets on. One repeated frame costs about 5 bytes, a parity packet as much as a fragment.
LADDER = (
    (0.15, Protection(2, 2, PERIOD / 2)),
    (0.03, Protection(1, 1, PERIOD)),
    (0.0, Protection(0, 0, PERIOD)),
)
HEARD_SECONDS = 2.0  # a report is so long a sign that there is a way back
AGAIN_MAX = 8  # frames that can be sent again
FEWER_MAX = 3  # datagrams in a row that can repeat fewer frames because one was lost before each of them
RUN_MAX = 3  # datagrams lost in a row; a longer run is an interruption, which nothing sent in advance makes up for
ROUND_TRIP = 0.08  # seconds, where nobody says how long it is
REPORT_SECONDS = 0.2  # beyond a round trip, between two reports while nothing is missing
RECOVERY_SECONDS = 1.0  # after something was missing, pictures that come are reported at once
RISE, FALL = 0.05, 0.01  # of the way from the loss believed in to the loss reported, for each frame the report is about


def protection(loss: float, *, heard: bool = False) -> Protection:
    """What to add when this share of packets, 0..1, is being lost.

    heard: the receiver reports what it lacks. Then a lost picture is sent again when it is asked for, and none before:
    twice the bytes for every picture would cost more picture than the round trip does.
    """
    choice = next(choice for floor, choice in LADDER if loss >= floor)
    return replace(choice, parity=0) if heard else choice


def believed(before: float, reported: float, frames: int) -> float:
    """The loss to protect against after a report about so many frames: worse is believed sooner, few frames less."""
    return before + (reported - before) * (1 - (1 - (RISE if reported > before else FALL)) ** max(1, frames))


class LossMeter:
    """Which share of frames lost the datagram that was to bring them first, from frame numbers alone.

    A datagram whose frames before the new ones are fewer than in those before and after it makes up for a lost one.
    Where they stay fewer, the sender repeats less. A run of more than RUN_MAX counts as if nothing had been sent.
    """

    def __init__(self) -> None:
        self._usual = 0  # frames sent again in each datagram
        self._fewer: list[int] = []  # in the latest ones, where not so many
        self._frames = self._lost = 0  # since the last report

    def add(self, frames: int, steps: int, *, intra: bool) -> None:
        """A datagram of so many frames has come that took the newest frame so many steps on."""
        if not steps:
            return
        if intra:  # repeats nothing before it
            self._usual, self._fewer = 0, []
        own = max(1, frames - self._usual)
        if steps > (RUN_MAX + 1) * own:
            self._frames += own
            return
        self._frames, self._lost = self._frames + steps, self._lost + max(0, steps - frames)
        known = max(0, frames - steps)
        if known >= self._usual:
            self._lost += sum(self._usual - fewer for fewer in self._fewer)
            self._usual, self._fewer = known, []
        else:
            self._fewer.append(known)
            if len(self._fewer) > FEWER_MAX:
                self._usual, self._fewer = max(self._fewer), []

    def share(self) -> float:
        """Since the last call, 0..1."""
        share = min(1.0, self._lost / self._frames) if self._frames else 0.0
        self._frames = self._lost = 0
        return share


class Reports:
    """When a receiver is to report: at once when something begins to be missing, when the first frame shows that it
    will not come by itself, and when a picture comes soon after that, which the sender may have sent again and then
    waits to hear of; else once a round trip or less often."""

    def __init__(self) -> None:
        self._at = self._lacked_at = float("-inf")  # seconds, of the last report, and when something was missing last
        self._lacked = self._began = False
        self._held: tuple[int, ...] = ()  # what the last report named

    def due(self, seconds: float, round_trip: float, held: tuple[int, ...], *, lacks: bool, began: bool = True) -> bool:
        """Whether one is, which then counts as sent. held: ids of pictures. began: a frame has come."""
        begins = lacks and not (self._lacked and self._began == began)
        self._lacked, self._began = lacks, began
        if lacks:
            self._lacked_at = seconds
        came = held != self._held and seconds - self._lacked_at <= RECOVERY_SECONDS
        pause = round_trip if lacks else round_trip + REPORT_SECONDS
        if not begins and not came and seconds - self._at < pause - 1e-6:
            return False
        self._at, self._held = seconds, held
        return True


# A frame and what its packet would say without others; the payload is empty, the light is always there.
Frame = tuple[Motion, Symbols]
Settle = Callable[[Sequence[Symbols]], Iterable[Symbols]]


class Aggregator:
    """Puts frames into packets: so many new ones in each, and in front of them the last frames sent before, again.

    share: new frames that wait for each other. Frames that cannot be coded as one group make a bundle.
    """

    def __init__(self, coder: EntropyCoder, share: int = 1) -> None:
        self._coder, self._share = coder, share
        self._sent: list[Frame] = []  # since the last intra frame, which starts it; no more than can be sent again
        self._new: list[Frame] = []
        self._light: int | None = 0  # that receivers surely know which have got the last packet
        self._lit = False  # it has ever been another than that of the first frame

    def add(self, head: Motion, symbols: Symbols, again: int, settle: Settle = list) -> list[Packet]:
        """The packets that are full now, or that this frame cannot join. again, settle: see `close`."""
        frame = head, symbols
        ready = [] if not self._new or self.takes(head) else self.close(again, settle)
        if head.intra:
            self._sent.clear()
        self._new.append(frame)
        return ready + self.close(again, settle) if head.intra or len(self._new) >= self._share else ready

    def takes(self, head: Motion) -> bool:
        """Whether a frame with this head will share the packet of the frames that wait."""
        return bool(self._new) and _joins(self._new[-1][0], head)

    @property
    def waiting_bytes(self) -> int:
        """What the new frames that wait for others take so far."""
        return len(self._coder.encode([s for _, s in self._new])) if self._new else 0

    def close(self, again: int, settle: Settle = list) -> list[Packet]:
        """The packet of the frames that were waiting, if any were. again: frames to repeat, 0 for none. settle: is told
        the symbols that waited and gives those that are sent."""
        if not self._new:
            return []
        heads, symbols = zip(*self._new, strict=True)
        self._new = [*zip(heads, settle(symbols), strict=True)]
        first = max(0, len(self._sent) - again)
        frames = self._sent[first:] + self._new
        if again and self._sent:  # what told of the light on these may be lost with them
            if first:
                self._light = self._known_after(self._sent[first - 1][0])
            elif self._lit and not self._sent[0][0].intra:
                self._light = None
        self._sent, self._new = frames[-AGAIN_MAX:], []
        runs: list[list[Frame]] = []
        for frame in frames:
            if runs and _joins(runs[-1][-1][0], frame[0]):
                runs[-1].append(frame)
            else:
                runs.append([frame])
        packets: list[Packet] = [
            replace(run[0][0], payload=self._coder.encode([s for _, s in run]), frames=len(run), light=self._told(run))
            for run in runs
        ]
        return packets if len(packets) == 1 else [Bundle(tuple(packets))]

    def _told(self, run: list[Frame]) -> int | None:
        """What a packet of these frames says of light: nothing that is known."""
        known, last = self._light, run[-1][0]
        self._lit |= bool(last.light)
        self._light = self._known_after(last)
        return None if last.intra or last.light == known else last.light

    def _known_after(self, frame: Motion) -> int | None:
        """Which light a receiver surely knows that has got all up to this frame. Intra motion cannot tell any, and may
        be the first that comes, or the first after what was lost."""
        return None if frame.intra and self._lit else frame.light


def _joins(before: Motion, now: Motion) -> bool:
    """Whether a frame can follow another inside one packet."""
    plain = not (before.intra or now.intra or now.reference is not None or now.pts_step is not None)
    same = (before.level, before.components, before.as_is) == (now.level, now.components, now.as_is)
    return plain and same

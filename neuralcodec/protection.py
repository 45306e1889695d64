"""What a sender adds so that a stream survives loss: frames sent again, parity of pictures, intra frames more often.

Knows packets and symbols, no networks and no clock. See FORMAT.md section 13 for what a receiver makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .entropy import EntropyCoder
from .packet import GROUP_MAX, Bundle, Motion, Packet
from .quantizer import Symbols
from .rate import PERIOD


@dataclass(frozen=True)
class Protection:
    """again: how many frames before it each motion packet repeats. parity: XOR packets per picture, at most.
    period: seconds between intra frames nobody asked for."""

    again: int
    parity: int
    period: float


# From this share of lost packets on. One repeated frame costs about 5 bytes, a parity packet as much as a fragment.
LADDER = (
    (0.15, Protection(2, 2, PERIOD / 2)),
    (0.03, Protection(1, 1, PERIOD)),
    (0.0, Protection(0, 0, PERIOD)),
)
RISE, FALL = 0.5, 0.1  # of the way from the loss believed in to the loss reported: worse is believed sooner


def protection(loss: float) -> Protection:
    """What to add when this share of packets, 0..1, is being lost."""
    return next(choice for floor, choice in LADDER if loss >= floor)


def believed(before: float, reported: float) -> float:
    """The loss to protect against after one more report."""
    return before + (reported - before) * (RISE if reported > before else FALL)


class Repeater:
    """Puts the frames before it into each motion packet: as one group where they can be coded as one, else a bundle."""

    def __init__(self, coder: EntropyCoder) -> None:
        self._coder = coder
        self._recent: list[tuple[Motion, Symbols]] = []  # since the last intra frame, which starts it

    def wrap(self, packet: Motion, symbols: Symbols, again: int) -> Packet:
        """The packet to send for a newly coded frame. ``again``: frames to repeat, 0 for none."""
        if packet.intra or packet.frames > 1:
            self._recent.clear()
        self._recent.append((packet, symbols))
        del self._recent[: -min(again + 1, GROUP_MAX)]
        run = 1
        while run < len(self._recent) and self._continues(-run):
            run += 1
        older, group = self._recent[:-run], self._recent[-run:]
        if not older and run == 1:
            return packet
        first = group[0][0]
        newest = packet if run == 1 else Motion(
            first.sequence, first.level, first.components, self._coder.encode([s for _, s in group]),
            reference=first.reference, pts_step=first.pts_step, frames=run, as_is=first.as_is,
        )  # fmt: skip
        return Bundle((*(p for p, _ in older), newest)) if older else newest

    def _continues(self, at: int) -> bool:
        """Whether the frame at ``at`` can follow the one before it inside one packet."""
        (before, _), (now, _) = self._recent[at - 1], self._recent[at]
        plain = not (before.intra or now.intra or before.frames > 1)
        alike = (before.level, before.components, before.as_is) == (now.level, now.components, now.as_is)
        return plain and alike and now.reference is None and now.pts_step is None

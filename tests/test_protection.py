"""Frames sent again: any run of losses shorter than the repeats leaves the receiver's integers as the sender's."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuralcodec.entropy import EntropyCoder
from neuralcodec.motion import MotionParams
from neuralcodec.packet import Bundle, Motion, Packet, parse_packet
from neuralcodec.protection import (
    AGAIN_MAX,
    LADDER,
    RECOVERY_SECONDS,
    REPORT_SECONDS,
    Aggregator,
    LossMeter,
    Reports,
    believed,
    protection,
)
from neuralcodec.quantizer import MotionTables, Quantizer, start_state

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="module")
def tables() -> MotionTables:
    return MotionTables.load(VECTORS / "tables.json")


def send(tables: MotionTables, again: int, count: int = 60) -> tuple[list[Packet], list[tuple[int, ...]]]:
    flat = np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)
    quantizer = Quantizer(tables)
    aggregator, packets, states = Aggregator(EntropyCoder(tables)), [], []
    for i in range(count):
        level, step = (1, 2)[i // 7 % 2], 3 if i == 11 else None
        symbols = quantizer.forward(MotionParams.from_flat(flat[i]), level=level, components=5, intra=i % 20 == 0)
        at = (i, 0) if symbols.intra else (None, None)
        head = Motion(
            i % 256, level, 5, b"", symbols.intra, pts=at[0], reference=at[1], pts_step=None if symbols.intra else step
        )
        packets += aggregator.add(head, symbols, again)
        states.append(quantizer.state.values)
    return packets, states


@pytest.mark.parametrize("again", [0, 1, 2, 3])
def test_losses_up_to_the_repeats_cost_no_frame(tables: MotionTables, again: int) -> None:
    packets, states = send(tables, again)
    coder, quantizer, known = EntropyCoder(tables), Quantizer(tables), {}
    for number, packet in enumerate(packets):
        if number % (again + 1) != again:
            continue  # lost: `again` packets in a row, all along
        packet = parse_packet(bytes(packet))
        for motion in packet.packets if isinstance(packet, Bundle) else (packet,):
            assert isinstance(motion, Motion)
            state = start_state(tables) if motion.intra else known[motion.sequence - 1]
            group = coder.decode_group(
                motion.payload, motion.frames, level=motion.level, components=motion.components, intra=motion.intra,
                state=state,
            )  # fmt: skip
            for i, symbols in enumerate(group):
                quantizer.inverse(symbols)
                known[motion.sequence + i] = quantizer.state
    last = len(packets) - len(packets) % (again + 1)
    assert all(known[i].values == states[i] for i in known)
    for i in set(range(last)) - known.keys():  # an intra frame does not repeat the frames it makes superfluous
        assert any((i + k) % 20 == 0 for k in range(1, again + 1))


def test_repeats_are_cheaper_than_sending_twice(tables: MotionTables) -> None:
    plain, twice = (sum(len(bytes(p)) for p in send(tables, again)[0]) for again in (0, 1))
    assert plain < twice < 2 * plain + 60


def test_frames_that_wait_take_what_their_packet_will(tables: MotionTables) -> None:
    quantizer, aggregator = Quantizer(tables), Aggregator(EntropyCoder(tables), share=4)
    flat = np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)
    for i in range(5):
        waiting = aggregator.waiting_bytes
        symbols = quantizer.forward(MotionParams.from_flat(flat[i]), level=1, components=5, intra=i == 0)
        start = 0 if i == 0 else None
        packets = aggregator.add(Motion(i, 1, 5, b"", i == 0, pts=start, reference=start), symbols, 0)
    (packet,) = packets
    assert isinstance(packet, Motion) and packet.frames == 4 and aggregator.waiting_bytes == 0
    assert 0 < waiting < len(packet.payload) < 2 * waiting


def test_without_repeats_nothing_is_added(tables: MotionTables) -> None:
    assert all(isinstance(p, Motion) and p.frames == 1 for p in send(tables, 0)[0])


def plain(**changes: Any) -> Motion:
    return replace(Motion(0, 1, 5, b""), **changes)


INTRA = plain(intra=True, reference=0, pts=0)


@pytest.mark.parametrize(
    ("share", "again", "heads", "frames"),
    [
        (4, 0, [plain()] * 6, [[4], [2]]),
        (4, 0, [INTRA, plain(), plain()], [[1], [2]]),
        (4, 0, [plain(), plain(level=2)], [[1], [1]]),
        (4, 0, [plain(), plain(components=4)], [[1], [1]]),
        (4, 0, [plain(), plain(as_is=True)], [[1], [1]]),
        (4, 0, [plain(), plain(pts_step=2)], [[1], [1]]),
        (4, 0, [plain(), plain(reference=1)], [[1], [1]]),
        (1, 2, [plain(), plain(), INTRA, plain(), plain()], [[1], [2], [1], [1, 1], [1, 2]]),
        (1, 99, [plain()] * (AGAIN_MAX + 3), [[n] for n in (*range(1, AGAIN_MAX + 2), *[AGAIN_MAX + 1] * 2)]),
    ],
)
def test_which_frames_share_a_packet_and_which_are_sent_again(
    share: int, again: int, heads: list[Motion], frames: list[list[int]]
) -> None:
    coder: Any = SimpleNamespace(encode=lambda symbols: b"")
    symbols: Any = None
    aggregator, packets = Aggregator(coder, share), []
    for head in heads:
        ready = aggregator.add(head, symbols, again)
        assert ready or not head.intra  # which waits for nobody
        packets += ready
    found = [p.packets if isinstance(p, Bundle) else (p,) for p in packets + aggregator.close(again)]
    assert [[motion.frames for motion in inside if isinstance(motion, Motion)] for inside in found] == frames


def test_the_ladder() -> None:
    assert protection(0.0).again == 0 and protection(0.05).again == 1 and protection(0.3).again == 2
    assert [floor for floor, _ in LADDER] == sorted((floor for floor, _ in LADDER), reverse=True)
    heard = protection(0.05, heard=True)
    assert heard.parity == 0 < protection(0.05).parity and heard.again == 1


def test_worse_loss_is_believed_sooner_and_a_report_about_few_frames_less() -> None:
    up, down = believed(0.0, 0.2, 10), 0.2 - believed(0.2, 0.0, 10)
    assert 0 < down < up < 0.2
    assert believed(0.0, 0.2, 2) < 0.3 * up and believed(0.0, 0.2, 0) > 0
    assert believed(believed(0.0, 0.2, 5), 0.2, 5) == pytest.approx(up)


def test_reports_are_due_when_something_begins_to_be_missing_and_when_it_has_come() -> None:
    reports, held = Reports(), (1, 2)

    def due(seconds: float, held: tuple[int, ...], *, lacks: bool = False) -> bool:
        return reports.due(seconds, 0.1, held, lacks=lacks)

    assert due(0.0, held) and not due(0.09 + REPORT_SECONDS, held) and due(0.1 + REPORT_SECONDS, held)
    assert not due(0.35, (1, 2, 3))  # a picture among others: nothing was missing
    assert due(0.4, held, lacks=True) and not due(0.49, held, lacks=True) and due(0.5, held, lacks=True)
    assert not due(0.52, held) and due(0.54, (1, 2, 3)) and not due(0.55, (1, 2, 3))
    assert due(0.5 + RECOVERY_SECONDS, (1, 2, 3, 4)) and not due(0.6 + RECOVERY_SECONDS, (2, 3, 4, 5))


def test_what_begins_to_be_missing_is_told_at_once() -> None:
    reports = Reports()
    assert [reports.due(at, 0.1, (), lacks=at > 0) for at in (0.0, 0.01, 0.02)] == [True, True, False]


TWICE_AGAIN = [(1, 1), (2, 1), (3, 1)]  # frames in the first datagrams of a sender that repeats two, and steps


@pytest.mark.parametrize(
    ("datagrams", "lost"),
    [
        ([(1, 1)] * 4 + [(1, 3)] + [(1, 1)] * 4, 2),
        ([(4, 4), (4, 16)], 12),
        ([(1, 1), (1, 4)], 3),
        ([(1, 1), (1, 5)], 0),  # an interruption
        ([*TWICE_AGAIN, (3, 2), (3, 1)], 1),
        ([*TWICE_AGAIN, (3, 2), (3, 2), (3, 2), (3, 1)], 3),
        ([*TWICE_AGAIN, *[(2, 1)] * 5, (3, 1)], 0),  # it repeats fewer for a while
        ([*TWICE_AGAIN, (3, 3), *[(2, 1)] * 3, (2, 2), (2, 1)], 1),
        ([(1, 1), (0, 0), (2, 0)], 0),  # what takes nothing on
    ],
)
def test_frame_numbers_tell_which_datagrams_are_lost_although_frames_come_again(
    datagrams: list[tuple[int, int]], lost: int
) -> None:
    meter = LossMeter()
    for frames, steps in datagrams:
        meter.add(frames, steps, intra=False)
    interrupted = 4 if (1, 5) in datagrams else 0
    assert meter.share() == lost / (sum(steps for _, steps in datagrams) - interrupted) and meter.share() == 0


def test_an_intra_frame_repeats_nothing_and_a_share_is_one_at_most() -> None:
    meter = LossMeter()
    for intra in (False, True):
        for frames, steps in TWICE_AGAIN:
            meter.add(frames, steps, intra=intra and frames == 1)
    assert meter.share() == 0
    meter.add(3, 2, intra=False)
    meter.add(3, 2, intra=False)
    assert meter.share() == 0  # not known yet
    meter.add(3, 1, intra=False)
    assert meter.share() == 1
    meter.add(1, 1, intra=True)
    meter.add(1, 5, intra=False)
    meter.add(1, 2, intra=False)
    assert meter.share() == 0.25  # of four, as the interruption counts as one frame

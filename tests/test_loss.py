"""A call over a bad network, both ends real: reordering, repeats, feedback, late joiners, pictures that never came."""

import random

import numpy as np
import pytest

import neuralcodec as nc
from benchmarks.fuzz import Outputs
from neuralcodec.concealment import Concealment
from neuralcodec.decoder import FORGET
from neuralcodec.entropy import EntropyCoder
from neuralcodec.errors import BitstreamError, LimitError
from neuralcodec.fragments import split
from neuralcodec.pack import Pack
from neuralcodec.packet import Bundle, Feedback, Motion, Packet, ReferencePart, StreamHeader, bundled, parse_packet
from neuralcodec.protection import Aggregator
from neuralcodec.quantizer import Quantizer
from neuralcodec.reference import encode_reference

Clip = list[np.ndarray]


def ends(**options: object) -> tuple[nc.Encoder, nc.Decoder]:
    """Pictures are coded as quickly as they can be: what is in them is for other tests."""
    sender = nc.Encoder(6, device="cpu", threads=1, preset=13, **options)  # type: ignore[arg-type]
    return sender, nc.Decoder(device="cpu", threads=1)


def sent(sender: nc.Encoder, clip: Clip, times: range) -> list[list[bytes]]:
    return [[bytes(p) for p in sender.encode(clip[pts % len(clip)], pts)] for pts in times]


def received(receiver: nc.Decoder, packets: list[bytes]) -> list[nc.DecodedFrame]:
    return [frame for data in packets for frame in receiver.decode(data)]


def test_packets_that_change_places_lose_nothing(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    stream = sent(sender, portrait_clip, range(8))
    received(receiver, stream[0])
    shown = received(receiver, stream[2] + stream[1] + stream[3])
    assert [(f.pts, f.state) for f in shown] == [(2, Concealment.COASTING), (3, Concealment.RECEIVED)]
    assert not receiver.wants_intra and receiver.stats.lost_frames == 0
    shown = received(receiver, stream[7] + stream[5] + stream[6] + stream[4] + stream[4])
    assert [f.pts for f in shown] == [7] and not receiver.wants_intra
    assert receiver._quantizer.state == sender._quantizer.state


def test_an_intra_frame_that_comes_late_is_followed(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    stream = sent(sender, portrait_clip, range(3))
    sender.send_intra()
    stream += sent(sender, portrait_clip, range(3, 6))
    received(receiver, [p for packets in stream[:2] for p in packets] + stream[4] + stream[3] + stream[5])
    assert not receiver.wants_intra and receiver._quantizer.state == sender._quantizer.state
    assert received(receiver, stream[2]) == []


@pytest.mark.parametrize(("loss", "run"), [(0.05, 1), (0.2, 2)])
def test_frames_sent_again_make_up_for_lost_ones(portrait_clip: Clip, loss: float, run: int) -> None:
    sender, receiver = ends(loss=loss)
    stream = sent(sender, portrait_clip, range(1 + 3 * (run + 1)))
    shown = received(receiver, stream[0])
    for pts in range(run + 1, len(stream), run + 1):  # `run` frames in a row are lost before each that arrives
        shown += received(receiver, stream[pts])
        assert not receiver.wants_intra and receiver._quantizer.last is not None
    assert [f.pts for f in shown] == list(range(len(stream))) and {f.state for f in shown} == {Concealment.RECEIVED}
    assert receiver._quantizer.state == sender._quantizer.state


def test_a_lost_picture_never_shows_as_an_older_one(portrait_clip: Clip) -> None:
    """Its id modulo 8 is that of a picture held: the motion goes on, on the picture before, and says so."""
    sender, receiver = ends()
    received(receiver, [p for packets in sent(sender, portrait_clip, range(2)) for p in packets])
    sender._pictures.next_id = 8
    sender.send_reference()
    packets = sender.encode(portrait_clip[2], 2)
    lost = [bytes(p) for p in packets if isinstance(p, ReferencePart)]
    (shown,) = received(receiver, [bytes(p) for p in packets if not isinstance(p, ReferencePart)])
    assert shown.state is Concealment.BORROWED and shown.reference == 0
    assert receiver.wants_reference and not receiver.wants_intra and receiver.feedback().held == (0,)
    received(receiver, lost)
    (shown,) = received(receiver, sent(sender, portrait_clip, range(3, 4))[0])
    assert shown.state is Concealment.RECEIVED and shown.reference == 8 and receiver.feedback().held == (8,)


@pytest.mark.parametrize("updates", [True, False])
def test_feedback_brings_a_right_picture_with_the_next_frame(portrait_clip: Clip, updates: bool) -> None:
    """Motion for one that the receiver holds, until the next picture can be paid."""
    sender, receiver = ends(updates=updates)
    received(receiver, [p for packets in sent(sender, portrait_clip, range(2)) for p in packets])
    sender.send_reference()
    for packet in sender.encode(portrait_clip[2], 2):
        if not isinstance(packet, ReferencePart):
            receiver.decode(bytes(packet))
    feedback = receiver.feedback()
    assert feedback.need_reference and feedback.held == (0,) and feedback.sequence == 2
    sender.on_feedback(bytes(feedback))
    packets = sender.encode(portrait_clip[3], 3)
    motion = packets[-1]
    assert isinstance(motion, Motion) and motion.reference == 0
    shown = received(receiver, [bytes(p) for p in packets])
    assert shown[-1].state is Concealment.RECEIVED and not receiver.wants_reference


def test_a_picture_still_on_its_way_is_not_given_up(portrait_clip: Clip) -> None:
    sender, _ = ends(updates=False)
    sent(sender, portrait_clip, range(2))
    sender.send_reference()
    sent(sender, portrait_clip, range(2, 4))
    sender.on_feedback(Feedback(1, 0, (), need_reference=True))  # of before the second picture was sent
    assert set(sender._pictures.held) == {1}


def test_a_key_that_an_outage_swallowed_is_replaced_at_once(portrait_clip: Clip) -> None:
    """Numbers of frames are modulo 256: past the half of it they do not tell that it was sent before what has come."""
    sender, receiver = ends()
    received(receiver, sent(sender, portrait_clip, range(1))[0])
    sender.send_reference()
    sent(sender, portrait_clip, range(1, 2))
    sender._coded += 140  # and as many frames
    lost = received(receiver, sent(sender, portrait_clip, range(142, 143))[0])
    assert [f.state for f in lost] != [Concealment.RECEIVED] and receiver.wants_intra
    sender.on_feedback(bytes(receiver.feedback()))
    (shown,) = received(receiver, sent(sender, portrait_clip, range(143, 144))[0])
    assert shown.state is Concealment.RECEIVED and not receiver.wants_reference


def test_a_late_joiner_is_shown_within_one_request(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    sent(sender, portrait_clip, range(6))
    assert received(receiver, sent(sender, portrait_clip, range(6, 7))[0]) == []
    feedback = receiver.feedback()
    assert feedback == Feedback(6, 0, (), need_reference=True, need_intra=True)
    assert parse_packet(bytes(feedback)) == feedback
    sender.on_feedback(feedback)
    sender.on_feedback(feedback)
    packets = sender.encode(portrait_clip[4], 7)
    assert isinstance(packets[0], StreamHeader)
    (shown,) = received(receiver, [bytes(p) for p in packets])
    assert shown.state is Concealment.RECEIVED and shown.pts == 7
    sender.on_feedback(feedback)  # asked again at once, as somebody might to make us send: not yet
    assert not any(isinstance(p, ReferencePart) for p in sender.encode(portrait_clip[5], 8))


def test_who_has_seen_only_the_header_waits_for_the_picture_that_may_be_on_its_way(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    packets = sender.encode(portrait_clip[0], 0)
    received(receiver, [bytes(p) for p in packets if isinstance(p, StreamHeader)])
    feedback = receiver.feedback()
    assert feedback == Feedback(need_reference=True, need_intra=True)
    times = iter(range(1, 9))

    def replaced() -> bool:
        sender.on_feedback(feedback)
        return any(isinstance(p, ReferencePart) for p in sender.encode(portrait_clip[0], next(times)))

    assert [replaced() for _ in range(8)] == [False] * 6 + [True, False]


def test_a_first_datagram_that_is_lost_is_replaced_as_soon_as_the_second_is_heard_of(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    assert receiver.wants_feedback(0.0, 0.08)  # nothing has come: it may not have been sent
    sender.on_feedback(receiver.feedback())
    _, second = sent(sender, portrait_clip, range(2))
    assert received(receiver, second) == [] and receiver.wants_feedback(0.04, 0.08)
    assert not receiver.wants_feedback(0.08, 0.08)
    feedback = receiver.feedback()
    assert feedback == Feedback(1, 0, (), need_reference=True, need_intra=True)
    sender.on_feedback(feedback)
    (shown,) = received(receiver, sent(sender, portrait_clip, range(2, 3))[0])
    assert shown.state is Concealment.RECEIVED and shown.pts == 2


def test_reported_loss_turns_protection_on_and_slowly_off() -> None:
    sender, _ = ends()

    def report(newest: int, lost: int) -> float:
        sender._coded = max(sender._coded, newest + 3)  # frames on their way when the report is written
        sender.on_feedback(Feedback(newest % 256, lost))
        return sender._loss

    for newest in range(0, 30, 10):
        report(newest, 64)
    assert sender._loss > 0.15
    for newest in range(30, 630, 10):
        report(newest, 0)
    assert sender._loss < 0.03
    before = sender._loss
    assert report(610, 255) == before == report(580, 255)  # late: a later one has told of the same
    assert report(630, 64) > before
    for wrong in (b"\x04\x01", b"\x08\xff", b""):
        with pytest.raises(BitstreamError):
            sender.on_feedback(wrong)


def test_reports_of_no_loss_take_back_nothing_of_what_is_expected() -> None:
    sender, _ = ends(loss=0.1)
    sender._coded = 200
    for newest in range(0, 200, 10):
        sender.on_feedback(Feedback(newest, 0))
    assert sender._loss == 0.1


def test_the_loss_report_counts_what_did_not_come(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    stream = sent(sender, portrait_clip, range(9))
    received(receiver, [p for packets in stream[:5] for p in packets] + stream[8])
    assert receiver.feedback().lost == round(256 * 3 / 9) and receiver.feedback().lost == 0
    assert receiver.feedback(0.5).lost == 128


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_an_interruption_is_no_reason_to_send_frames_again(portrait_clip: Clip, loss: float) -> None:
    sender, receiver = ends(loss=loss)
    stream = sent(sender, portrait_clip, range(20))
    received(receiver, [p for packets in [*stream[:9], stream[19]] for p in packets])
    report = receiver.feedback()
    assert receiver.wants_intra and report.lost == 0
    sender.on_feedback(report)
    assert sender._loss == loss


@pytest.mark.parametrize("share", [1, 4])
def test_frames_sent_again_hide_no_loss_and_look_like_none(portrait_clip: Clip, share: int) -> None:
    """Intra frames, pictures that change and levels that change break the run of frames that are sent again."""
    sender, _ = ends(loss=0.1, frames_per_packet=share)
    stream = [bundled(sender.encode(portrait_clip[pts % 20], pts)) for pts in range(80)]
    datagrams = [bytes(packet) for packets in stream for packet in packets]
    assert any(isinstance(parse_packet(data), Bundle) for data in datagrams)
    dice = random.Random(1)
    for missing in (0.0, 0.15):
        receiver, lost, all_frames = nc.Decoder(device="cpu", threads=1), 0, 0
        for number, data in enumerate(datagrams):
            packet = parse_packet(data)
            inside = packet.packets if isinstance(packet, Bundle) else (packet,)
            if number > 3 and dice.random() < missing and any(isinstance(p, Motion) for p in inside):
                lost += share
            else:
                receiver.decode(data, wanted=lambda pts: False)
            all_frames += share * any(isinstance(p, Motion) for p in inside)
        assert receiver.feedback().lost / 256 == pytest.approx(lost / all_frames, abs=0.04 if missing else 0.0)


def test_feedback_may_come_in_any_kind_of_bytes(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    received(receiver, sent(sender, portrait_clip, range(1))[0])
    for kind in (bytes, bytearray, memoryview):
        sender.on_feedback(kind(bytes(Feedback(0, need_intra=False, need_reference=True))))
    with pytest.raises(ValueError, match="lost is nan"):
        receiver.feedback(float("nan"))


def test_what_comes_before_the_header_waits_for_it(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    (header, *rest), second = sent(sender, portrait_clip, range(2))
    assert not received(receiver, rest) and receiver.wants_reference
    assert [frame.pts for frame in receiver.decode(header)] == [0]
    assert [frame.pts for frame in received(receiver, second)] == [1]


def test_the_header_comes_again_where_loss_is_expected(portrait_clip: Clip) -> None:
    for loss, copies in ((0.0, 1), (0.1, 2)):
        sender, receiver = ends(loss=loss)
        stream = [bytes(p) for pts in range(4) for p in bundled(sender.encode(portrait_clip[pts], pts))]
        parsed = [p for data in stream for p in getattr(parse_packet(data), "packets", (parse_packet(data),))]
        assert sum(isinstance(packet, StreamHeader) for packet in parsed) == copies


def test_a_bundle_with_a_bad_packet_gives_the_good_ones(portrait_clip: Clip) -> None:
    sender, receiver = ends()
    packets: list[Packet] = [p for pts in range(2) for p in sender.encode(portrait_clip[pts], pts)]
    received(receiver, [bytes(p) for p in packets[:-1]])
    other = StreamHeader(sender.pack.id, 64, 64, (1, 25), 1, 64)  # parses, and is not what this pack codes
    (shown,) = receiver.decode(bytes(Bundle((other, packets[-1]))))
    assert shown.pts == 1
    with pytest.raises(BitstreamError):
        receiver.decode(bytes(Bundle((other, Motion(1, 0, 7, b"")))))


def test_silence_asks_for_an_intra_frame_and_then_forgets(
    portrait_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = ends()
    stream = sent(sender, portrait_clip, range(2))
    received(receiver, stream[0])
    receiver.conceal(1)
    assert not receiver.wants_intra
    receiver.conceal(2)
    assert receiver.wants_intra
    monkeypatch.setattr(receiver, "_unfollowed", FORGET - 1)
    receiver.conceal(3)
    (shown,) = received(receiver, stream[1])  # the next frame by its number, but 256 frames may lie between
    assert shown.state is not Concealment.RECEIVED


def test_a_huge_picture_is_refused_before_it_takes_memory(coded: tuple[nc.Encoder, list[list[Packet]]]) -> None:
    receiver = nc.Decoder(device="cpu", threads=1)
    with pytest.raises(LimitError, match="8192 x 8192"):
        receiver.decode(bytes(StreamHeader(receiver.pack.id, 8192, 8192, (1, 25), 1, 256)))
    assert receiver.header is None


@pytest.mark.parametrize("seed", range(8))
def test_what_is_shown_as_received_is_what_was_sent(seed: int, scene_pack: Pack) -> None:
    """Loss, doubles, changed places and long silences over 900 frames: motion is right, or it is called concealed.
    With a scene in every other run, which starts anew wherever a reference is named."""
    pack, dice = (nc.load_pack(), scene_pack)[seed % 2], random.Random(seed)
    tables, noise = pack.tables, np.random.default_rng(seed)
    quantizer, coder = Quantizer(tables), EntropyCoder(tables)
    aggregator, again, values = Aggregator(coder), seed % 3, np.zeros(tables.size)
    receiver = nc.Decoder(pack=pack, device="cpu", threads=1, steady=False)  # all pictures are black: nothing to steady
    receiver._networks = receiver._pictures.networks = Outputs(pack.size)  # type: ignore[assignment]
    receiver.decode(bytes(StreamHeader(pack.id, 256, 256, (1, 25), 2, pack.size)))
    for reference in range(2):
        picture = encode_reference(np.full((pack.size, pack.size, 3), 90 + reference, np.uint8), max_bytes=900)
        for part in split(picture, reference=reference, codec=1, crop=(0, 0, 256)):
            receiver.decode(bytes(part))

    truth: dict[int, np.ndarray] = {}
    due: list[tuple[int, int, bytes]] = []  # frame at which it arrives, order, packet
    newest, right, silent = -2, 0, 0
    for frame in range(900):
        values = 0.97 * values + noise.normal(0, 12, tables.size)
        wants = receiver.wants_intra and dice.random() < 0.3
        pts = 2 * frame + (1 if frame % 97 > 50 else 0)  # a step that is not the nominal one now and then
        names = frame // 11 % 2 if wants or frame % 120 == 0 or frame % 11 < 2 else None
        if names is not None:
            quantizer.new_reference()
        symbols = quantizer.forward(
            tables.motion(tables.mean + values @ tables.synthesis), level=frame // 31 % 8,
            components=frame // 57 % 8, intra=wants or frame % 120 == 0,
        )  # fmt: skip
        step = pts - max(truth, default=-2)
        head = Motion(
            frame % 256, symbols.level, symbols.components, b"", symbols.intra, names,
            pts if symbols.intra else None, None if symbols.intra or step == 2 else step,
        )  # fmt: skip
        assert quantizer.last is not None
        truth[pts] = quantizer.last.flat()
        (data,) = map(bytes, aggregator.add(head, symbols, again))
        silent = silent - 1 if silent else dice.choice((0,) * 900 + (5, 9, 20, 40, 200, 256, 257))
        if not silent and dice.random() > 0.15:
            for _ in range(dice.choice((1, 1, 2))):
                due.append((frame + dice.choice((0,) * 6 + (1, 2, 4)), dice.randrange(1 << 20), data))
        shown = []
        for _, _, arrived in sorted(d for d in due if d[0] <= frame):
            shown += receiver.decode(arrived)
        due = [d for d in due if d[0] > frame]
        if not shown and receiver._last is not None:
            receiver.conceal(pts)
        for found in shown:
            if found.state is Concealment.RECEIVED:
                assert found.pts > newest, "times rise"
                assert np.array_equal(found.motion.flat(), truth[found.pts]), f"frame {frame}, pts {found.pts}"
                newest, right = found.pts, right + 1
    assert right > 200


def test_an_intra_frame_on_its_way_is_not_sent_twice(portrait_clip: Clip) -> None:
    sender, _ = ends()
    sent(sender, portrait_clip, range(4))

    def intra(seen: int, pts: int) -> bool:
        sender.on_feedback(Feedback(seen, need_intra=True, held=(0,)))
        packets = sender.encode(portrait_clip[pts % len(portrait_clip)], pts)
        return any(p.intra for p in packets if isinstance(p, Motion))

    assert intra(2, 4)
    assert not intra(3, 5)  # of before the receiver could have it
    assert intra(5, 6)  # lost: something sent after it has come
    assert not intra(5, 12) and intra(5, 13)  # nothing comes at all: again after a while


def test_where_the_receiver_reports_a_picture_is_sent_once(portrait_clip: Clip) -> None:
    sender, _ = ends(loss=0.1)
    first = sent(sender, portrait_clip, range(2))
    assert any(data[0] == 7 for data in first[1])  # parity of the key: nobody has been heard yet
    sender.on_feedback(Feedback(1, held=(0,)))
    sender.send_reference()
    later = sent(sender, portrait_clip, range(2, 4))
    assert any(data[0] == 2 for data in later[0]) and not any(data[0] == 7 for data in later[1])

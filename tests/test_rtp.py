"""RTP and RTCP: round trips, reordering, doubles, wraps, cuts and arbitrary bytes."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.errors import BitstreamError, LimitError
from neuralcodec.packet import Bundle, Feedback, Motion, ReferencePart, StreamHeader, parse_packet
from neuralcodec.protection import RUN_MAX
from neuralcodec.rtp import RtpPacket, RtpReceiver, RtpSender, parse_rtcp, rtcp_feedback, sdp_attributes

HEADER = StreamHeader(bytes(range(8)), 640, 480, (1, 25), 1, 256)
PART = ReferencePart(3, 0, 2, 1, b"\x0a\x0b\x0c\x0d", (-5, 12, 640), b"x" * 1170)
MOTION = Motion(9, 3, 5, b"\x12\x34", True, reference=3, pts=-1000)
FEEDBACK = Feedback(7, 30, (0, 2, 9), need_reference=True)


def test_header_bytes() -> None:
    packet = RtpPacket(97, 0x1234, 0xDEADBEEF, 0x01020304, True, b"\x80\x05")
    assert bytes(packet).hex() == "80e11234deadbeef010203048005"
    assert RtpPacket.parse(bytes(packet)) == packet


@pytest.mark.parametrize("wrong", [{"sequence": 65536}, {"payload_type": 128}, {"ssrc": 1 << 32}, {"ssrc": 1.5}])
def test_numbers_that_do_not_fit_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected a whole number of"):
        RtpSender(**{"ssrc": 1, **wrong})


def test_a_frame_shares_datagrams_while_they_fit() -> None:
    sender, receiver = RtpSender(5, sequence=65535, timestamp=(1 << 32) - 1), RtpReceiver()
    datagrams = sender.pack([HEADER, PART, MOTION], 2.0)
    packets = [RtpPacket.parse(d) for d in datagrams]
    assert [p.sequence for p in packets] == [65535, 0] and {p.timestamp for p in packets} == {2 * 90000 - 1}
    assert [p.marker for p in packets] == [False, True] and all(len(p.payload) <= 1200 for p in packets)
    inside = [parse_packet(data) for d in datagrams if (data := receiver.unpack(d))]
    assert inside == [HEADER, Bundle((PART, MOTION))]
    assert receiver.lost_share() == 0 and receiver.ssrc == 5


def test_reordered_doubled_and_foreign_packets() -> None:
    sender, receiver = RtpSender(5, sequence=65530), RtpReceiver()
    sent = [d for i in range(30) for d in sender.pack([Motion(i, 1, 1, b"\x01")], i / 25)]
    order = [0, 2, 1, 1, 3, 6, 5, 4, 7, 9, 8, 11, 10, 12, 16, 19]
    got = [receiver.unpack(sent[i]) for i in order]
    assert got.count(None) == 1 and receiver.doubled == 1
    assert receiver.lost_share() == pytest.approx(5 / 20)
    assert receiver.lost_share() == 0
    assert receiver.unpack(sent[21]) and receiver.unpack(sent[29])  # one lost, then an interruption
    assert receiver.lost_share() == pytest.approx(1 / 3)
    assert receiver.unpack(bytes(RtpPacket(97, 1, 0, 6, True, b"\x80\x00"))) is None  # another source
    assert receiver.unpack(bytes(RtpPacket(96, 1, 0, 5, True, b"\x80\x00"))) is None  # another payload type
    receiver.restart()
    assert receiver.unpack(bytes(RtpPacket(97, 1, 0, 6, True, b"\x80\x00"))) == b"\x80\x00" and receiver.ssrc == 6


def numbered(number: int, ssrc: int = 6, payload: bytes = b"\x80\x00") -> bytes:
    return bytes(RtpPacket(97, number % 65536, 0, ssrc, True, payload))


def test_a_sender_that_starts_again_is_followed_from_its_second_packet_on() -> None:
    for begin in (0, 9000):  # behind, and further ahead than any loss
        receiver = RtpReceiver()
        assert all(receiver.unpack(numbered(number)) for number in range(5000, 5010))
        assert receiver.streams == 1
        got = [receiver.unpack(numbered(number)) is not None for number in range(begin, begin + 4)]
        assert got == [False, True, True, True] and receiver.streams == 2 and receiver.lost_share() == 0


def test_one_packet_of_long_ago_changes_nothing() -> None:
    receiver = RtpReceiver()
    for number in range(1000, 2000):
        receiver.unpack(numbered(number))
    assert receiver.lost_share() == 0
    assert receiver.unpack(numbered(1100)) is None and receiver.unpack(numbered(12000)) is None
    assert receiver.unpack(numbered(2000)) and receiver.lost_share() == 0
    assert receiver.unpack(numbered(1999)) is None and receiver.doubled == 1 and receiver.streams == 1


def test_a_stream_begins_with_a_packet_that_can_be_parsed() -> None:
    receiver = RtpReceiver()
    with pytest.raises(BitstreamError):
        receiver.unpack(numbered(1, 666, b"x" * 3000))
    assert receiver.ssrc is None
    assert receiver.unpack(numbered(7)) and receiver.ssrc == 6


def test_a_stray_packet_gives_way_to_two_in_sequence() -> None:
    receiver = RtpReceiver()
    assert receiver.unpack(numbered(1, 666)) and receiver.ssrc == 666
    assert [receiver.unpack(numbered(n)) is not None for n in (7, 9, 10, 11)] == [False, False, True, True]
    assert receiver.ssrc == 6 and receiver.streams == 2 and receiver.lost_share() == 0
    assert [receiver.unpack(numbered(n, 666)) for n in (2, 3, 4)] == [None] * 3  # the proved one stays


def test_after_a_silence_the_next_is_followed_be_it_the_same() -> None:
    receiver = RtpReceiver()
    assert receiver.unpack(numbered(65535)) and receiver.unpack(numbered(0))
    receiver.restart()
    assert receiver.ssrc is None
    assert receiver.unpack(numbered(40)) and receiver.ssrc == 6 and receiver.streams == 1  # it was an interruption
    receiver.restart()
    assert receiver.unpack(numbered(41, 7)) and receiver.ssrc == 7 and receiver.streams == 2
    receiver.restart()
    assert receiver.unpack(numbered(30000, 7)) and receiver.streams == 3
    receiver.restart()
    assert receiver.unpack(numbered(30000, 8)) and receiver.doubled == 0  # its numbers are its own


def test_memory_stays_bounded_and_holds_what_may_yet_come_twice() -> None:
    receiver = RtpReceiver()
    for number in range(5000):
        assert receiver.unpack(numbered(number))
        assert number < 500 or receiver.unpack(numbered(number - 500)) is None
    assert len(receiver._seen) <= 1025 and receiver.doubled == 4500 and receiver.streams == 1


def test_a_packet_that_comes_after_it_was_reported_lost_is_no_less_than_none_lost() -> None:
    receiver = RtpReceiver()
    assert all(receiver.unpack(numbered(number)) for number in (0, 1, 3)) and receiver.lost_share() == 0.25
    assert receiver.unpack(numbered(2)) and receiver.unpack(numbered(4)) and receiver.lost_share() == 0


@pytest.mark.parametrize("jitter", [0, 3, 12, 30])
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.3])
def test_reordered_packets_hide_no_loss_and_are_none(loss: float, jitter: int) -> None:
    """A packet may be overtaken by as many as ``jitter``; one in ten comes twice."""
    rng = np.random.default_rng(5)
    sent = np.flatnonzero(rng.random(3000) >= loss)
    came = np.concatenate([sent, sent[rng.random(len(sent)) < 0.1]])
    came = came[np.argsort(came + jitter * rng.random(len(came)), kind="stable")]
    once, often, shares = RtpReceiver(), RtpReceiver(), []
    for index, number in enumerate(came.tolist()):
        assert (once.unpack(numbered(65000 + number)) is None) == (often.unpack(numbered(65000 + number)) is None)
        if index % 10 == 9:
            shares.append(often.lost_share())
    gaps = np.diff(sent) - 1
    lost = int(gaps[gaps <= RUN_MAX].sum())
    share = lost / (len(sent) + lost)
    assert once.lost_share() == pytest.approx(share, abs=0.001)  # the first that came may be another than the first
    assert share * 2 / 3 <= np.mean(shares) <= share + 0.01


def test_a_run_that_was_an_interruption_counts_as_far_as_it_was_none() -> None:
    receiver = RtpReceiver()
    assert receiver.unpack(numbered(10)) and receiver.unpack(numbered(17)) and receiver.lost_share() == 0
    for number in (8, 15, 18):  # of the first nobody knew; 11 to 14 are still too many to count
        assert receiver.unpack(numbered(number))
    assert receiver.lost_share() == pytest.approx(2 / 5)  # 9 and 16 of 8, 9, 15, 16, 18
    for number in (13, 12, 19):
        assert receiver.unpack(numbered(number))
    assert receiver.lost_share() == pytest.approx(2 / 5)  # 11 and 14 of 11 to 14 and 19


def test_a_payload_may_be_empty_and_carries_nothing_then() -> None:
    assert RtpPacket.parse(numbered(7, payload=b"")).payload == b""
    receiver = RtpReceiver()
    assert receiver.unpack(numbered(7, payload=b"")) is None and receiver.ssrc is None


def test_extension_sources_and_padding_are_skipped() -> None:
    head = bytes((0x80 | 0x20 | 0x10 | 2, 97)) + bytes(10)
    data = head + bytes(8) + b"\xbe\xde\x00\x01abcd" + b"payload" + b"\0\0\3"
    assert RtpPacket.parse(data).payload == b"payload"
    for length in range(len(head) + 16):
        with pytest.raises(BitstreamError):
            RtpPacket.parse(data[:length])
    with pytest.raises(BitstreamError, match="padding of no length"):
        RtpPacket.parse(data[:-1] + b"\0")


def test_feedback_round_trip() -> None:
    data = rtcp_feedback(FEEDBACK, 1, 2)
    assert len(data) % 4 == 0 and parse_rtcp(data) == [FEEDBACK]
    report = bytes((0x81, 201)) + (7).to_bytes(2, "big") + bytes(28)  # a receiver report in front, as RFC 3550 wants
    pli = bytes((0x81, 206)) + (2).to_bytes(2, "big") + bytes(8)
    fir = bytes((0x84, 206)) + (4).to_bytes(2, "big") + bytes(16)
    found = parse_rtcp(report + pli + data + fir)
    assert found == [Feedback(need_intra=True), FEEDBACK, Feedback(need_reference=True, need_intra=True)]
    whole = {len(report), len(report + data), 0}
    for length in range(len(report + data)):
        if length not in whole:
            with pytest.raises(BitstreamError):
                parse_rtcp((report + data)[:length])


@pytest.mark.parametrize("held", [(), (1,), (1, 2), (1, 2, 3)])
def test_feedback_of_any_length_fills_whole_words(held: tuple[int, ...]) -> None:
    data = rtcp_feedback(Feedback(7, 0, held), 1, 2)
    assert len(data) % 4 == 0 and parse_rtcp(data) == [Feedback(7, 0, held)]


def test_feedback_that_is_too_short_is_passed_over_or_refused() -> None:
    def message(fmt: int, body: bytes) -> bytes:
        return bytes((0x80 | fmt, 206, 0, len(body) // 4)) + body

    assert parse_rtcp(message(1, bytes(4))) == parse_rtcp(message(15, bytes(8) + b"NCVF")) == []
    with pytest.raises(LimitError, match="feedback of 4 bytes in 3"):
        parse_rtcp(message(15, bytes(8) + b"NCVF\x04\x08\x04\x07"))


def test_signalling() -> None:
    lines = sdp_attributes(HEADER, 100)
    assert lines[0] == "a=rtpmap:100 x-neuralcodec/90000" and "pack=0001020304050607" in lines[1]


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    for parse in (RtpReceiver().unpack, parse_rtcp):
        try:
            parse(data)
        except BitstreamError as error:
            assert str(error)
    try:
        parse_rtcp(bytes((0x8F, 206, 0, max(2, -(-len(data) // 4) + 2))) + bytes(8) + data + bytes(-len(data) % 4))
    except BitstreamError as error:
        assert str(error)


def test_feedback_about_another_stream_is_passed_over() -> None:
    ours, other = 0x1234, 0xDEAD
    pli = struct.pack("!BBHII", 0x81, 206, 2, 1, other)
    fir = struct.pack("!BBHIIII", 0x84, 206, 4, 1, 0, other, 0)
    report = rtcp_feedback(FEEDBACK, 1, other)
    assert parse_rtcp(pli + fir + report, ours) == []
    assert len(parse_rtcp(pli + fir + report, other)) == len(parse_rtcp(pli + fir + report)) == 3

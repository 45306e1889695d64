"""The parts of `neuralcodec call` that know no web: simulated network, settings, x264's pane, the two threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import ROOT, portrait

import neuralcodec as nc
from neuralcodec.call.h264 import SameBytes
from neuralcodec.call.link import HEADERS, Link
from neuralcodec.call.pipeline import FRAMES_SECONDS, PRESET, Comparison, Pipeline
from neuralcodec.call.settings import MESSAGE_MAX, RANGES, Settings, parse_message
from neuralcodec.face import crop, resize
from neuralcodec.motion import Array
from neuralcodec.pack import load_pack
from neuralcodec.packet import bundled, parse_packet
from neuralcodec.quality import psnr

PATIENCE = 180.0  # seconds, for what takes one on a free machine


def test_without_the_extra_the_command_names_it() -> None:
    code = "import sys; sys.modules['aiortc'] = None; from neuralcodec.cli import main; sys.exit(main(['call']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "neuralcodec[webrtc,cpu]" in done.stderr and done.stderr.count("\n") == 1


# --- link ---


def test_a_link_delivers_in_order_after_its_delay() -> None:
    link = Link(delay=0.2)
    link.send(b"a", 1.0)
    link.send(b"b", 1.1)
    assert link.next_arrival() == 1.2 and (link.waiting(1.19), link.waiting(1.2)) == (0, 1)
    assert link.receive(1.19) == []
    assert link.receive(1.25) == [b"a"]
    link.delay = 0.0
    link.send(b"c", 1.26)
    assert link.receive(1.27) == []  # turning the delay down lets nothing overtake
    assert link.receive(1.3) == [b"b", b"c"]
    assert link.next_arrival() is None
    assert (link.sent, link.bytes) == (3, 3)


def test_a_bottleneck_takes_its_time_and_drops_what_would_wait_too_long() -> None:
    link = Link(kbps=8)  # 1000 bytes a second
    for _ in range(20):
        link.send(bytes(100 - HEADERS), 0.0)
    assert link.next_arrival() == pytest.approx(0.1)
    assert len(link.receive(0.5)) == 5
    assert len(link.receive(9.0)) == 6  # one second's worth waits, then the one that is being sent
    assert link.dropped == 9


def test_loss_is_the_share_asked_for_and_the_same_every_time() -> None:
    runs = []
    for _ in range(2):
        link = Link(loss=0.2, seed=5)
        for number in range(5000):
            link.send(number.to_bytes(2, "big"), 0.0)
        runs.append(link.receive(0.0))
        assert link.lost + len(runs[-1]) == 5000
    assert runs[0] == runs[1]
    assert abs(len(runs[0]) / 5000 - 0.8) < 0.02


# --- settings ---


def test_settings_change_within_their_ranges() -> None:
    changed = Settings().changed({"kbps": 8, "loss": 5, "browser": True})
    assert (changed.kbps, changed.loss, changed.browser, changed.delay_ms) == (8, 5, True, 0)
    for name, (low, high) in RANGES.items():
        if name != "browser":
            assert getattr(Settings().changed({name: high}), name) == high
            with pytest.raises(ValueError, match=f"{name} is .*goes from {low:g} to"):
                Settings().changed({name: high + 1})
            for far in (float("inf"), -float("inf"), float("nan"), 10**400, -(10**400)):
                with pytest.raises(ValueError, match=rf"{name} is .{{,20}}; it goes from"):
                    Settings().changed({name: far})


@pytest.mark.parametrize(
    "message", [{"colour": 1}, {"kbps": "4"}, {"loss": True}, {"browser": 1}, {"yaw": None}]
)
def test_settings_that_make_no_sense_are_refused(message: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="setting"):
        Settings().changed(message)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"a": "' + "x" * MESSAGE_MAX + '"}', b"\xff", "[" * 2000])
def test_messages_that_are_no_small_json_object_are_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="message"):
        parse_message(text)


# --- x264 for the same bytes ---


def test_h264_spends_what_it_is_given_and_no_more(portrait_clip: list[Array]) -> None:
    pane = SameBytes(256, 8)
    given = 0
    first = pane.show(portrait_clip[0], 0, 0.0)
    for index in range(1, 100):
        earned = 40  # 8 kbit/s at 25 fps
        given += earned
        shown = pane.show(portrait_clip[index % len(portrait_clip)], earned, index / 25)
    assert first.shape == shown.shape == (256, 256, 3)
    # it may be one frame ahead of its purse, as a call with a bucket is
    assert 0.5 * given < pane.bytes < given + 1500
    assert psnr(portrait_clip[99 % len(portrait_clip)], shown) > 18


def test_h264_takes_a_new_rate_with_its_next_picture(portrait_clip: list[Array]) -> None:
    pane = SameBytes(256, 8)
    pane.show(portrait_clip[0], 9000, 0.0)
    inner = pane._encoder

    class Interrupted:
        """The page's thread asks for another rate while the receiver's has a picture between encoder and decoder."""

        def encode(self, frame: object) -> object:
            packets = inner.encode(frame)
            pane.retarget(64)
            return packets

    pane._encoder = Interrupted()
    pane.show(portrait_clip[1], 9000, 0.5)
    assert (pane.side, pane.frames) == (128, 2)
    pane.show(portrait_clip[2], 9000, 1.0)
    assert (pane.side, pane.frames) == (256, 3)


# --- losses ---


def test_with_a_tenth_lost_both_ways_the_picture_is_right_again_within_300_ms() -> None:
    """Both ends as the pipeline drives them, at 20 frames a second of a clock that does not depend on this machine."""
    fps, delay, seconds = 20, 0.04, 16
    clip = portrait(100)
    clip = (clip + clip[-2:0:-1]) * 3  # there and back without a jump
    encoder = nc.Encoder(8, device="cpu", threads=1, packet_overhead=HEADERS, preset=PRESET)
    decoder = nc.Decoder(device="cpu", threads=1)
    there, back = Link(loss=0.1, delay=delay, seed=13), Link(loss=0.1, seed=14)
    right_at, missed, recoveries = None, False, []
    for number in range(fps * seconds):
        now = number / fps
        for report in back.receive(now):
            encoder.on_feedback(report)
        pts = int(now * 25)
        for packet in bundled(encoder.encode(clip[pts], pts), 1200):
            there.send(bytes(packet), now)
        now += delay
        for data in there.receive(now + 1e-9):
            decoder.decode(data, wanted=lambda _: False)
            missing = decoder.wants_reference or decoder.wants_intra
            if missed and not missing and right_at is not None:
                recoveries.append(round(now - right_at, 9))  # sums of frame times are a rounding off
            right_at, missed = right_at if missing else now, missing
            if decoder.wants_feedback(now, FRAMES_SECONDS):
                back.send(bytes(decoder.feedback()), now)
    assert there.lost > 15 and len(recoveries) > 5
    assert max(recoveries) <= 0.3


# --- the two threads ---


class Collected:
    """What a pipeline shows and forwards, and a way to wait for it."""

    def __init__(self) -> None:
        self.shown: list[Comparison] = []
        self.datagrams: list[bytes] = []
        self.news = threading.Condition()

    def show(self, comparison: Comparison) -> None:
        with self.news:
            self.shown.append(comparison)
            self.news.notify_all()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def feed(pipeline: Pipeline, clip: list[Array], collected: Collected, count: int) -> None:
    """Push pictures at about the camera's pace until ``count`` more have come out."""
    goal, end, index = len(collected.shown) + count, time.monotonic() + PATIENCE, 0
    while len(collected.shown) < goal and time.monotonic() < end and not pipeline.problem:
        picture = clip[index % len(clip)]
        pipeline.push(np.concatenate([np.full_like(picture[:2], index % 256), picture]), 2)
        index += 1
        with collected.news:
            collected.news.wait(0.04)
    assert len(collected.shown) >= goal, pipeline.problem


def feed_until(true: Callable[[], bool], pipeline: Pipeline, clip: list[Array], collected: Collected) -> None:
    end = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < end:
        feed(pipeline, clip, collected, 1)
    assert true()


def test_pictures_come_out_beside_their_originals(portrait_clip: list[Array]) -> None:
    collected = Collected()
    pipeline = Pipeline(
        load_pack(), show=collected.show, forward=collected.datagrams.append, device="cpu", threads=1
    )
    fed = pipeline, portrait_clip, collected
    try:
        feed(pipeline, portrait_clip, collected, 8)
        last = collected.shown[-1]
        assert last.original.shape == last.ours.shape == last.h264.shape == (256, 256, 3)
        assert psnr(last.original, last.ours) > 17
        assert last.mark is not None and last.mark.shape == (2, 256, 3)
        assert last.captured <= last.encoded <= last.arrived <= last.shown
        until(lambda: pipeline.stats()["bytes"] == sum(map(len, collected.datagrams)))  # no loss: all that was sent
        stats = pipeline.stats()
        assert {"wait", "send motion", "network", "receive render", "total"} <= stats["stages"].keys()
        assert stats["face"] and stats["references"] >= 1 and not stats["problem"]

        pipeline.change(pipeline.settings.changed({"yaw": 25, "loss": 40}))
        feed_until(lambda: np.abs(collected.shown[-1].ours.astype(int) - last.ours).mean() > 2, *fed)  # another view
        feed_until(lambda: pipeline.stats()["lost"], *fed)

        sent = pipeline.stats()["references"]
        pipeline.change(pipeline.settings.changed({"loss": 0, "browser": True, "kbps": 16}))
        feed_until(lambda: not collected.shown[-1].ours.any(), *fed)  # the page draws its own
        feed_until(lambda: pipeline.stats()["references"] > sent, *fed)  # and starts with a reference
    finally:
        pipeline.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("neuralcodec-")]
    assert all(parse_packet(data) for data in collected.datagrams)


def test_a_call_may_aim_at_less_than_the_headers_of_all_frames_take() -> None:
    """A machine that has too much to do sends few; the page's slider goes as far down."""
    pipeline = Pipeline(load_pack(), show=lambda _: None, settings=Settings(kbps=2), device="cpu", threads=1)
    assert pipeline._encoder.target_kbps == 2
    pipeline.close()


def test_a_square_camera_that_is_coded_whole_comes_out_at_the_size_of_the_others(portrait_clip: list[Array]) -> None:
    collected = Collected()
    pipeline = Pipeline(load_pack(), show=collected.show, device="cpu", threads=1)
    try:
        feed(pipeline, [resize(picture, 512, 512) for picture in portrait_clip[:5]], collected, 2)
        last = collected.shown[-1]
        assert last.original.shape == last.ours.shape == last.h264.shape == (256, 256, 3)
        assert psnr(last.original, last.ours) > 17
    finally:
        pipeline.close()


def test_what_a_head_that_walks_is_compared_with_is_cut_where_it_is_shown(portrait_clip: list[Array]) -> None:
    collected, decoded = Collected(), []  # type: ignore[var-annotated]
    pipeline = Pipeline(load_pack(), show=collected.show, settings=Settings(kbps=16), device="cpu", threads=1)
    hand_over = pipeline._hand_over
    pipeline._hand_over = lambda frame: (decoded.append(frame), hand_over(frame))[1]  # type: ignore[method-assign]
    walk = []
    for n, left in enumerate([*range(0, 220, 4), *range(220, 0, -4)]):
        walk.append(np.tile(np.linspace(60, 200, 480, dtype=np.uint8)[None, :, None], (280, 1, 3)))
        walk[-1][24:, left : left + 256] = portrait_clip[n % len(portrait_clip)]
    try:
        feed(pipeline, walk, collected, 40)
        assert len({frame.square for frame in decoded}) > 2
        last = collected.shown[-1]
        shown = [frame.square for frame in decoded if frame.picture is last.ours]
        assert shown and any((crop(image, shown[0], 256) == last.original).all() for image in walk)
    finally:
        pipeline.close()


def test_what_the_page_decodes_is_no_recovery(portrait_clip: list[Array]) -> None:
    collected, skipped = Collected(), [0.0]
    pipeline = Pipeline(
        load_pack(), show=collected.show, device="cpu", threads=1, clock=lambda: time.monotonic() + skipped[0]
    )
    fed = pipeline, portrait_clip, collected
    try:
        feed(*fed, 3)
        pipeline.change(pipeline.settings.changed({"browser": True}))
        feed_until(lambda: not collected.shown[-1].ours.any(), *fed)
        skipped[0] = 2 * PATIENCE
        feed(*fed, 3)
        sent = pipeline.stats()["references"]
        pipeline.change(pipeline.settings.changed({"browser": False}))
        feed_until(lambda: collected.shown[-1].ours.any() and not pipeline._missed, *fed)
        assert pipeline._decoder.stats.lost_frames == 0  # it has followed the page's and goes on at once
        assert pipeline.stats()["references"] == sent
        assert max(pipeline._recoveries, default=0.0) < PATIENCE
    finally:
        pipeline.close()


def test_a_picture_without_a_face_is_said_and_not_shown() -> None:
    collected = Collected()
    pipeline = Pipeline(load_pack(), show=collected.show, device="cpu", threads=1)
    try:
        end = time.monotonic() + PATIENCE
        while pipeline.stats()["face"] and time.monotonic() < end:
            pipeline.push(np.full((120, 160, 3), 90, np.uint8))
            time.sleep(0.05)
        assert not pipeline.stats()["face"]
        assert not collected.shown
    finally:
        pipeline.close()


def test_a_thread_that_fails_says_so(portrait_clip: list[Array]) -> None:
    pipeline = Pipeline(load_pack(), show=lambda _: None, device="cpu", threads=1)
    try:
        pipeline.push(np.zeros((4, 4), np.uint8))  # not a colour picture
        until(lambda: bool(pipeline.problem))
        assert "ValueError" in pipeline.stats()["problem"]
    finally:
        pipeline.close()

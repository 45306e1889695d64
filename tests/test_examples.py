"""The examples run as their docstrings say, in processes of their own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import ROOT
from conftest import portrait as drawn_portrait
from test_media import write_film

import neuralcodec as nc
from neuralcodec.errors import BitstreamError
from neuralcodec.media import VideoWriter, as_picture, read_frames
from neuralcodec.packet import Bundle, End, Feedback, Motion, StreamHeader
from neuralcodec.rtp import RtpPacket, RtpSender, parse_rtcp, rtcp_feedback

FRAMES = 30
BEGIN = 3600 * 25  # the film's first pts: recorded broadcasts begin anywhere
PATIENCE = 240  # seconds for what takes ten on a free machine
EXAMPLES = ROOT / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "talk.mp4"
    with VideoWriter(path, 256, 256, Fraction(1, 25)) as writer:
        for index, image in enumerate(drawn_portrait(FRAMES)):
            writer.write(image, BEGIN + index)
    return path


def start(example: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def said(process: subprocess.Popen[str]) -> str:
    try:
        out, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, out + errors
    return out


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"\d+(?:\.\d+)?", text)]


def last_seconds(film: Path) -> float:
    """How long the last frame stays, which no frame after it tells."""
    with av.open(str(film)) as container:
        *_, last = (packet for packet in container.demux(video=0) if packet.size)
        assert last.duration is not None
        return float(last.duration * last.time_base)


def test_file_roundtrip(film: Path, tmp_path: Path) -> None:
    frames, kbps = numbers(said(start("file_roundtrip.py", film, tmp_path / "back.mp4", "--kbps", 6)))
    assert frames == FRAMES and 0 < kbps < 40  # a clip this short is mostly its first picture
    assert len(list(read_frames(tmp_path / "back.mp4"))) == FRAMES
    assert last_seconds(tmp_path / "back.mp4") == pytest.approx(1 / 25)


def test_webcam_loopback(film: Path) -> None:
    out = said(start("webcam_loopback.py", "--source", film, "--no-window", "--frames", 8))
    shown, fed = numbers(out.splitlines()[-1])
    assert 0 < shown <= fed <= 8
    wrong = start("webcam_loopback.py", "--source", film.with_name("absent.mp4"), "--no-window")
    _, errors = wrong.communicate(timeout=PATIENCE)
    assert wrong.returncode == 1 and "--source takes a film" in errors and "Traceback" not in errors


def test_webcam_loopback_takes_films_as_telephones_make_them(tmp_path: Path) -> None:
    image = drawn_portrait(1)[0][:128]
    turned = tmp_path / "turned.mp4"
    write_film(turned, [image] * 2, [0, 1], Fraction(1, 25), turn=lambda stream: stream.set_display_rotation(90))
    example = loaded("webcam_loopback.py")
    _, frame = next(example.pictures(str(turned)))
    assert as_picture(frame).shape == (256, 128, 3)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(SystemExit, match=r"sound\.mp4 holds no video\."):
        next(example.pictures(str(tmp_path / "sound.mp4")))


def test_webcam_loopback_without_a_display_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(SystemExit, match="No window can be opened .*; --no-window"):
        loaded("webcam_loopback.py").Window()


def test_udp_call(film: Path, tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    receiver = start("udp_call.py", "receive", tmp_path / "seen.mp4", "--port", port)
    assert receiver.stdout is not None and str(port) in receiver.stdout.readline()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:  # whose packets come first
        for payload in (b"x", bytes(StreamHeader(bytes(8), 256, 256, (1, 25), 1, 256))):  # the header of another pack
            stranger.sendto(bytes(RtpPacket(97, 5, 0, 666, True, payload)), ("127.0.0.1", port))
            assert receiver.stdout.readline()  # a sentence says what is wrong: it has been heard
    sender = start("udp_call.py", "send", film, "--to", f"127.0.0.1:{port}", "--kbps", 14)
    frames, kbps = numbers(said(sender))
    assert frames == FRAMES and kbps > 0
    shown, lost = numbers(said(receiver).splitlines()[-1])
    assert 0 < shown <= FRAMES and lost < FRAMES / 2
    assert len(list(read_frames(tmp_path / "seen.mp4"))) == shown
    assert last_seconds(tmp_path / "seen.mp4") == pytest.approx(1 / 25)


def test_udp_sender_goes_on_after_garbage(film: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(PATIENCE)
        sender = start("udp_call.py", "send", film, "--to", f"127.0.0.1:{receiver.getsockname()[1]}")
        _, address = receiver.recvfrom(2048)
        for garbage in (b"hello", b"", bytes(2000), rtcp_feedback(Feedback(3), 1, 2)[:-4]):
            receiver.sendto(garbage, address)
        assert numbers(said(sender))[0] == FRAMES


def test_udp_receiver_follows_another_sender_after_a_silence(coded: Any, tmp_path: Path) -> None:
    port, pictures = free_port(socket.SOCK_DGRAM), coded[1][:8]
    receiver = start("udp_call.py", "receive", tmp_path / "seen.mp4", "--port", port)
    assert receiver.stdout is not None and str(port) in receiver.stdout.readline()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("127.0.0.1", port))
        udp.settimeout(PATIENCE)
        for rtp in (RtpSender(1), RtpSender(2, sequence=77)):  # the first has gone without a word
            for pts, packets in enumerate(pictures):
                for datagram in rtp.pack(packets, pts / 25):
                    udp.send(datagram)
            while all(report.sequence != len(pictures) - 1 for report in parse_rtcp(udp.recv(2048))):
                pass  # all that was sent has been decoded once a report says so
            if rtp.ssrc == 1:
                for number in range(15):  # what is no stream, sent again and again, is silence, too
                    udp.send(bytes(RtpPacket(97, number, 0, 666, True, b"x")))
                    time.sleep(0.1)
        udp.send(rtp.pack([End(len(pictures))], 1.0)[0])
    shown, lost = numbers(said(receiver).splitlines()[-1])
    assert shown == 2 * len(pictures) and lost == 0
    assert len(list(read_frames(tmp_path / "seen.mp4"))) == shown


def test_udp_receiver_that_is_interrupted_keeps_its_film(
    coded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("udp_call", EXAMPLES / "udp_call.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sender = RtpSender(1)
    datagrams = [data for pts, packets in enumerate(coded[1][:4]) for data in sender.pack(packets, pts / 25)]
    rest = iter([*datagrams, None])

    class Interrupted(module.RtpReceiver):  # type: ignore[misc]
        def unpack(self, datagram: bytes) -> bytes | None:
            if (data := next(rest)) is None:
                raise KeyboardInterrupt
            return super().unpack(data)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "RtpReceiver", Interrupted)
    port = free_port(socket.SOCK_DGRAM)
    receiver = threading.Thread(target=module.receive, args=(str(tmp_path / "seen.mp4"), port), daemon=True)
    receiver.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        end = time.monotonic() + PATIENCE
        while receiver.is_alive() and time.monotonic() < end:
            udp.sendto(b"x", ("127.0.0.1", port))
            receiver.join(0.05)
    assert len(list(read_frames(tmp_path / "seen.mp4"))) == 4


def test_aiortc_track(film: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiortc", reason="the extra [webrtc] is not installed")
    port = free_port(socket.SOCK_STREAM)
    sender = start("aiortc_track.py", "send", film, "--kbps", 6, "--port", port)
    receiver = start("aiortc_track.py", "receive", tmp_path / "seen.mp4", "--port", port)
    shown, lost = numbers(said(receiver))
    frames = numbers(said(sender))[0]
    assert frames == FRAMES and 0 < shown <= FRAMES and lost < FRAMES / 2
    assert 0 < len(list(read_frames(tmp_path / "seen.mp4"))) <= shown  # a busy machine leaves frames out


class Channel(dict[str, Any]):
    """A data channel: by event what is called, and what was sent."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label, self.readyState, self.bufferedAmount = label, "open", 0
        self.sent: list[bytes] = []
        self.send = self.sent.append

    def on(self, event: str, called: Any) -> None:
        self[event] = called


class Signaling:
    """Carries descriptions between two peers of one process, and no word that one of them is gone."""

    def __init__(self, to: asyncio.Queue[Any], back: asyncio.Queue[Any]) -> None:
        self.send, self.receive = to.put, back.get

    async def close(self) -> None:
        pass


class Peer:
    def createDataChannel(self, label: str, **_: Any) -> Channel:
        return Channel(label)


def loaded(example: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(example).stem, EXAMPLES / example)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def aiortc_track() -> Any:
    pytest.importorskip("aiortc", reason="the extra [webrtc] is not installed")
    return loaded("aiortc_track.py")


def test_aiortc_sender_takes_reports_in_the_thread_that_encodes(aiortc_track: Any) -> None:
    class Encoder:
        """Notes what is called in which order, and that nothing is while a frame is being encoded."""

        busy, calls = threading.Event(), []  # type: ignore[var-annotated]

        def encode(self, image: Any, pts: int) -> list[Any]:
            self.calls.append((pts, threading.get_ident()))
            self.busy.set()
            time.sleep(0.1)
            self.calls.append((pts, threading.get_ident()))
            return []

        def on_feedback(self, report: bytes) -> None:
            self.calls.append((bytes(report), threading.get_ident()))
            if report == b"garbage":
                raise BitstreamError("no report")

    async def call() -> None:
        sender = aiortc_track.NeuralSender(Peer(), Encoder())
        report = sender.motion["message"]
        first = asyncio.ensure_future(sender.send(None, 0))
        await asyncio.to_thread(Encoder.busy.wait)
        for data in (b"1", b"garbage", "text", b"2"):
            report(data)
        await first
        await sender.send(None, 1)

    asyncio.run(call())
    assert [what for what, _ in Encoder.calls] == [0, 0, b"1", b"garbage", b"2", 1, 1]
    assert threading.get_ident() not in {thread for _, thread in Encoder.calls}


def test_aiortc_ends_when_the_other_end_is_gone(aiortc_track: Any, film: Path, tmp_path: Path) -> None:
    from aiortc import RTCConfiguration, RTCPeerConnection

    def other_end() -> Any:
        return RTCPeerConnection(RTCConfiguration(iceServers=[])), asyncio.Queue(), asyncio.Queue(), asyncio.Event()

    async def sender_vanishes() -> None:
        peer, to, back, opened = other_end()
        motion = aiortc_track.NeuralSender(peer, None).motion
        motion.on("open", opened.set)
        receives = asyncio.ensure_future(aiortc_track.receive(str(tmp_path / "seen.mp4"), Signaling(back, to)))
        await peer.setLocalDescription(await peer.createOffer())
        await to.put(peer.localDescription)
        await peer.setRemoteDescription(await back.get())
        await opened.wait()
        await peer.close()
        await receives

    async def receiver_vanishes() -> None:
        peer, to, back, came = other_end()
        peer.on("datachannel", lambda channel: channel.on("message", lambda _: came.set()))
        sends = asyncio.ensure_future(aiortc_track.send(str(film), 4.0, Signaling(back, to)))
        await peer.setRemoteDescription(await back.get())
        await peer.setLocalDescription(await peer.createAnswer())
        await to.put(peer.localDescription)
        await came.wait()
        await peer.close()
        await sends

    asyncio.run(asyncio.wait_for(sender_vanishes(), PATIENCE))
    asyncio.run(asyncio.wait_for(receiver_vanishes(), PATIENCE))


def test_aiortc_track_draws_the_newest_frame_that_waits(aiortc_track: Any, coded: Any) -> None:
    async def call() -> None:
        track = aiortc_track.NeuralTrack(nc.Decoder(device="cpu", threads=1))
        channels = {True: Channel("neuralcodec-motion"), False: Channel("neuralcodec-pictures")}
        for channel in channels.values():
            track.attach(channel)

        def arrive(packets: list[Any]) -> None:
            for packet in packets:
                channels[isinstance(packet, Motion | Bundle)]["message"](bytes(packet))

        frames = coded[1]
        for packets in frames[:-2]:
            arrive(packets)
        channels[False]["message"](b"\x20 a picture behind it makes no frame late")
        assert (await track.recv()).pts == len(frames) - 3
        for packets in frames[-2:]:
            arrive(packets)
            assert (await track.recv()).pts == packets[-1].sequence
        assert track.decoder.stats.lost_frames == 0 and channels[True].sent
        channels[False]["message"]("text")
        for _ in range(5000):  # nobody reads
            channels[True]["message"](b"\x20")
        assert len(track._arrived) == aiortc_track.WAITING

    asyncio.run(call())


def test_aiortc_track_ends_with_a_stream_of_another_pack(aiortc_track: Any) -> None:
    async def call() -> None:
        track, channel = aiortc_track.NeuralTrack(nc.Decoder(device="cpu")), Channel("neuralcodec-pictures")
        track.attach(channel)
        channel["message"](b"x")
        channel["message"](bytes(StreamHeader(bytes(8), 256, 256, (1, 25), 1, 256)))
        with pytest.raises(nc.PackMismatchError):
            await track.recv()
        assert track.readyState == "ended"

    asyncio.run(call())


def test_aiortc_track_that_is_stopped_wakes_who_waits(aiortc_track: Any) -> None:
    async def call() -> None:
        track = aiortc_track.NeuralTrack(None)
        waits = asyncio.ensure_future(track.recv())
        await asyncio.sleep(0)
        track.stop()
        for read in (waits, track.recv()):
            with pytest.raises(aiortc_track.MediaStreamError):
                await asyncio.wait_for(read, PATIENCE)

    asyncio.run(call())


def assert_one_sentence(example: str, *arguments: object) -> None:
    wrong = start(example, *arguments)
    _, errors = wrong.communicate(timeout=PATIENCE)
    assert wrong.returncode == 1 and errors.count("\n") == 1, errors


def test_what_cannot_be_read_is_one_sentence(film: Path, tmp_path: Path) -> None:
    for example, *arguments in (
        ("udp_call.py", "send", film, "--kbps", 8),
        ("free_view.py", tmp_path / "new.png", "--kbps", 0.1),
        ("file_roundtrip.py", film, tmp_path / "back.mp4", "--kbps", 0.1),
        ("webcam_loopback.py", "--source", film, "--kbps", 0.1),
        ("udp_call.py", "send", tmp_path / "absent.mp4"),
        ("free_view.py", tmp_path / "new.png", "--picture", tmp_path / "absent.png"),
        ("free_view.py", tmp_path / "no" / "new.png"),
        ("file_roundtrip.py", tmp_path / "absent.mp4", tmp_path / "back.mp4"),
    ):
        assert_one_sentence(example, *arguments)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        assert_one_sentence("udp_call.py", "receive", tmp_path / "seen.mp4", "--port", taken.getsockname()[1])
    assert_one_sentence("udp_call.py", "receive", tmp_path / "seen.mp4", "--port", 65536)


def test_aiortc_track_says_what_is_wrong_in_one_sentence(film: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiortc", reason="the extra [webrtc] is not installed")
    assert_one_sentence("aiortc_track.py", "send", tmp_path / "absent.mp4")
    assert_one_sentence("aiortc_track.py", "send", film, "--port", 65536)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert_one_sentence("aiortc_track.py", "send", film, "--port", taken.getsockname()[1])


def test_every_example_is_short_and_tested() -> None:
    tested = Path(__file__).read_text("utf-8") + (ROOT / "tests" / "test_motion.py").read_text("utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 200, path.name
        if path.name != "free_view.py":
            assert f'"{path.name}"' in tested, path.name

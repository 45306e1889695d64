"""The call server without a browser: who may start a call, how much of what, and a whole call from an aiortc peer.

And what the page does when its own decoder is switched on and off, in node.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the extra [webrtc] is not installed")
pytest.importorskip("aiortc", reason="the extra [webrtc] is not installed")

import av
from aiohttp import ClientSession, web
from aiortc import (
    AudioStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
    rtcrtpreceiver,
)
from aiortc.rtp import RtpPacket
from conftest import ROOT
from test_call_bitstream_js import WEB, node

from neuralcodec.call.pipeline import Pipeline
from neuralcodec.call.prompt import hurry
from neuralcodec.call.server import HEADERS, MARK_ROWS, OFFER_MAX, CallServer, ServerOptions, Session
from neuralcodec.cli import main
from neuralcodec.errors import MediaError
from neuralcodec.motion import Array
from neuralcodec.pack import load_pack
from neuralcodec.quality import psnr
from neuralcodec.rate import WINDOW_SECONDS
from neuralcodec.runtime.dequantize import is_quantized

PATIENCE = 180  # seconds, for what takes a few on a free machine


class Served:
    """A call server on a free port of this process."""

    def __init__(self, **options: Any) -> None:
        self.server = CallServer(ServerOptions(device="cpu", threads=1, **options))

    async def __aenter__(self) -> Served:
        self.runner = web.AppRunner(self.server.app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.origin = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        self.http = ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        await self.runner.cleanup()

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.http.get(self.origin + path, headers=headers) as response:
            assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
            return response.status, await response.read()

    async def offer(self, body: Any, path: str = "/offer", **headers: str) -> tuple[int, Any]:
        data = json.dumps(body) if isinstance(body, dict) else body
        async with self.http.post(
            self.origin + path, data=data, headers={"Origin": self.origin, **headers}
        ) as response:
            return response.status, await response.json()


class Camera(VideoStreamTrack):
    """The portrait, with a mark in the rows above it."""

    def __init__(self, clip: list[Array]) -> None:
        super().__init__()
        self.clip, self.index = clip, 0

    async def recv(self) -> av.VideoFrame:
        pts, base = await self.next_timestamp()
        mark = np.zeros((MARK_ROWS, 256, 3), np.uint8)
        mark[:, 64:128] = 255
        picture = np.concatenate([mark, self.clip[self.index % len(self.clip)]])
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = pts, base
        self.index += 1
        return frame


class Peer:
    """What the page does, in Python."""

    def __init__(self, served: Served, clip: list[Array]) -> None:
        self.served = served
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.control = self.peer.createDataChannel("control")
        self.packets = self.peer.createDataChannel("packets")
        self.messages: list[dict[str, Any]] = []
        self.datagrams: list[bytes] = []
        self.frames: asyncio.Queue[av.VideoFrame] = asyncio.Queue()
        self.control.on("message", lambda text: self.messages.append(json.loads(text)))
        self.packets.on("message", self.datagrams.append)
        self.peer.addTrack(Camera(clip))
        self.peer.on("track", lambda track: asyncio.ensure_future(self._watch(track)))

    async def _watch(self, track: Any) -> None:
        while True:
            await self.frames.put(await track.recv())

    async def offer(self) -> tuple[int, Any]:
        await self.peer.setLocalDescription(await self.peer.createOffer())
        return await self.served.offer({"sdp": self.peer.localDescription.sdp, "marked": True})

    async def start(self) -> None:
        status, answer = await self.offer()
        assert status == 200, answer
        await self.peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))

    def stats(self) -> dict[str, Any]:
        return next((m["stats"] for m in reversed(self.messages) if "stats" in m), {})


async def until(true: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.02)


def test_a_whole_call_and_its_end(portrait_clip: list[Array]) -> None:
    async def call() -> None:
        async with Served(sessions=1) as served:
            peer = Peer(served, portrait_clip)
            await peer.start()
            async with asyncio.timeout(PATIENCE):
                for _ in range(6):
                    frame = await peer.frames.get()
            picture = frame.to_ndarray(format="rgb24")
            assert picture.shape == (256 + MARK_ROWS, 768, 3)
            original, ours = picture[:256, :256], picture[:256, 256:512]
            assert psnr(original, ours) > 16
            mark = picture[256 + MARK_ROWS // 2].mean(-1)
            assert mark[240:340].mean() > 180 > 60 > mark[20:160].mean()  # passed through, not coded

            assert (await served.offer({"sdp": "v=0"}))[0] == 503  # the one call there may be
            assert json.loads((await served.get("/status"))[1])["calls"] == 1
            await until(lambda: peer.stats().get("references"))
            peer.control.send(json.dumps({"loss": 99}))
            await until(lambda: any("loss is 99" in m.get("refused", "") for m in peer.messages))
            for report, said in (("0x", "hexadecimal"), ("0401", "no End packet")):
                peer.control.send(json.dumps({"feedback": report}))
                await until(lambda said=said: any(said in m.get("refused", "") for m in peer.messages))
            peer.control.send(json.dumps({"loss": 50, "yaw": 10}))
            await until(lambda: peer.stats()["lost"] > 0)
            assert peer.datagrams and not peer.stats()["problem"]
            left = [weakref.ref(thing) for s in served.server.sessions for thing in (s, s.pipeline, s.peer)]
            await peer.peer.close()
            await until(lambda: not served.server.sessions)
            await until(lambda: not gc.collect() and not any(ref() for ref in left))  # nothing keeps what has ended
            assert not threads()

    asyncio.run(call())


def test_sound_and_a_second_camera_are_not_taken(portrait_clip: list[Array]) -> None:
    async def call() -> None:
        async with Served() as served:
            peer = Peer(served, portrait_clip)
            second = Camera(portrait_clip)
            for track in (AudioStreamTrack(), second):
                peer.peer.addTrack(track)
            await peer.start()
            await until(lambda: peer.stats().get("frames", 0) > 3)
            (session,) = served.server.sessions
            receivers = session.peer.getReceivers()
            assert len(receivers) == 3
            assert all(not r.track._queue.qsize() for r in receivers[1:]) and not second.index
            await peer.peer.close()
            await until(lambda: not served.server.sessions)

    asyncio.run(call())


def test_no_message_can_end_the_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call() -> None:
        async with Served() as served:
            session, said = Session(served.server.pack, served.server.options, lambda _: None, marked=False), []
            monkeypatch.setattr(session, "_send", said.append)
            monkeypatch.setattr(session, "_pipeline", Mock(feedback=lambda _: 1 / 0))
            session._on_message('{"feedback": "0a"}')
            assert said == [{"refused": "The server failed at this message; its log says why."}]
            await session.close()

    asyncio.run(call())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("neuralcodec-")]


def test_a_call_that_is_ended_while_its_codec_starts_leaves_nothing(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def slow(*given: Any, **options: Any) -> Pipeline:
        begun.set()
        assert ended.wait(PATIENCE)
        return Pipeline(*given, **options)

    async def call() -> None:
        async with Served() as served:
            peer = Peer(served, portrait_clip)
            offer = asyncio.ensure_future(peer.offer())
            await until(begun.is_set)
            (session,) = served.server.sessions
            await session.close()
            ended.set()
            status, answer = await offer
            assert status == 500 and "ended before it began" in answer["error"]
            assert not served.server.sessions and not threads() and not session._tasks
            await peer.peer.close()

    monkeypatch.setattr("neuralcodec.call.server.Pipeline", slow)
    asyncio.run(call())


def test_a_codec_that_starts_slowly_does_not_use_up_the_time_to_connect(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*given: Any, **options: Any) -> Pipeline:
        time.sleep(2.5)
        return Pipeline(*given, **options)

    async def call() -> None:
        async with Served() as served:
            peer = Peer(served, portrait_clip)
            status, _ = await peer.offer()
            assert status == 200
            await until(lambda: not served.server.sessions)  # nobody connects
            assert not threads()
            await peer.peer.close()

    monkeypatch.setattr("neuralcodec.call.server.START_SECONDS", 2.0)
    monkeypatch.setattr("neuralcodec.call.server.Pipeline", slow)
    asyncio.run(call())


def test_the_window_of_the_command_reaches_the_encoder(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def noted(*_: Any, **options: Any) -> Pipeline:
        given.update(options)
        raise MediaError("That is enough.")

    async def call(options: ServerOptions) -> None:
        async with Served(window=options.window) as served:
            peer = Peer(served, portrait_clip)
            await peer.offer()
            await peer.peer.close()

    told: list[ServerOptions] = []
    monkeypatch.setattr("neuralcodec.call.server.serve", lambda options, _: told.append(options))
    monkeypatch.setattr("neuralcodec.call.server.Pipeline", noted)
    assert main(["call"]) == main(["call", "--window", "6.5"]) == 0
    for options, window in zip(told, (WINDOW_SECONDS, 6.5), strict=True):
        asyncio.run(call(options))
        assert given["window"] == options.window == window
    with pytest.raises(ValueError, match="window is 0.5"):
        Pipeline(load_pack(), show=lambda _: None, device="cpu", threads=1, window=0.5)


def test_only_our_page_may_start_a_call() -> None:
    async def call() -> None:
        async with Served() as served:
            for origin in ("https://evil.example", "null", "http://localhost:1", ""):
                status, answer = await served.offer({"sdp": "v=0"}, Origin=origin)
                assert status == 403 and "Only the page" in answer["error"]
            for host in ("evil.example", "127.0.0.1.evil.example", "[::2]", ""):
                assert (await served.get("/", Host=host))[0] == 421
            for host in ("localhost", "127.0.0.1:80", "[::1]:8475", "[::1]"):
                assert (await served.get("/status", Host=host))[0] == 200
            assert not served.server.sessions

    asyncio.run(call())


def test_a_server_for_everywhere_takes_addresses_and_its_own_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Desk")
    monkeypatch.setattr("socket.getfqdn", lambda: "desk.home.example")

    async def call() -> None:
        async with Served(host="0.0.0.0") as served:
            for host in ("evil.example", "desk.evil.example", "1.2.3.4.evil.example", "::1.evil.example", "[::x]", ""):
                assert (await served.get("/", Host=host))[0] == 421, host
            for host in ("localhost:8475", "192.168.1.5:8475", "[fe80::1]:8475", "[::2]", "0.0.0.0:8475", "desk",
                         "DESK.local", "desk.home.example:8475"):  # fmt: skip
                assert (await served.get("/status", Host=host))[0] == 200, host
        async with Served(host="192.168.1.5") as served:
            assert (await served.get("/status", Host="192.168.1.6"))[0] == 421
            assert (await served.get("/status", Host="192.168.1.5:8475"))[0] == 200

    asyncio.run(call())


def test_offers_held_back_do_not_pass_the_limit_together() -> None:
    async def call() -> None:
        async with Served(sessions=1) as served:
            rest = asyncio.Event()

            async def late() -> AsyncIterator[bytes]:
                yield b'{"sdp": '
                await rest.wait()
                yield b'"v=0"}'

            offers = [asyncio.ensure_future(served.offer(late())) for _ in range(3)]
            await asyncio.sleep(0.2)  # the server has read all three heads
            rest.set()
            assert sorted(status for status, _ in await asyncio.gather(*offers)) == [400, 503, 503]
            assert not served.server.sessions

    asyncio.run(call())


def test_bad_and_long_requests_get_a_sentence_and_leave_nothing() -> None:
    async def call() -> None:
        async with Served() as served:
            bad = ["", "[]", "{", "[" * 3000, {"type": "offer"}, {"sdp": "v=0"}, {"sdp": "\x00" * 99}, b"\xff\xfe"]
            for body in bad:
                status, answer = await served.offer(body)
                assert status == 400 and answer["error"].endswith("."), body
            for path, body, charset in (
                ("/offer", "{}", "foo"), ("/end", "00", "foo"), ("/end", "00", "hex"), ("/end", b"\xff\xfe", "utf-8"),
                ("/end", "\\ud800", "unicode_escape"),
            ):  # fmt: skip
                status, answer = await served.offer(body, path, **{"Content-Type": f"text/plain; charset={charset}"})
                assert status == 400 and answer["error"].endswith("."), (path, body, charset)
            gzip = {"Content-Encoding": "gzip", "Connection": "close"}
            for path in ("/offer", "/end"):
                status, answer = await served.offer("no gzip", path, **gzip)
                assert status == 400 and answer["error"].endswith("."), path
            status, answer = await served.offer("x" * (OFFER_MAX + 1))
            assert status == 413 and str(OFFER_MAX) in answer["error"]
            assert not served.server.sessions
            for path in ("/nothing", "/web/nothing", "/web/..%2fserver.py", "/pack/MODEL_CARD.md", "/ort/ort.min.js"):
                status, body = await served.get(path)
                assert status == 404 and json.loads(body)["error"], path
            status, body = await served.get("/status", Expect="tea")
            assert status == 417 and json.loads(body)["error"]
            assert (await served.get("/nothing", Expect="tea"))[0] == 417
            status, answer = await served.offer({"type": "offer"}, Expect="100-continue")
            assert status == 400 and answer["error"].endswith(".")

    asyncio.run(call())


def test_the_page_needs_nothing_from_elsewhere() -> None:
    async def call() -> None:
        async with Served() as served:
            for name in ("", *(f"web/{p.name}" for p in (ROOT / "neuralcodec" / "call" / "web").iterdir())):
                status, body = await served.get(f"/{name}")
                assert status == 200
                text = body.decode().replace("http://www.w3.org/2000/svg", "").replace("http://localhost", "")
                assert "http://" not in text and "https://" not in text, name
            status, body = await served.get("/pack/pack.json")
            assert json.loads(body)["id"] == served.server.pack.id.hex()
            assert (await served.get("/pack/render.onnx"))[1] == served.server.pack.graph("render")

    asyncio.run(call())


def test_a_page_gets_no_file_of_another_pack_than_its_stream_is_of(tmp_path: Path) -> None:
    """The pack was installed anew while the server ran."""
    shutil.copytree(load_pack().folder, tmp_path / "pack")

    async def call() -> None:
        async with Served(pack=str(tmp_path / "pack")) as served:
            (tmp_path / "pack" / "render.onnx").write_bytes(served.server.pack.graph("motion"))
            for path in ("/pack/render.onnx", "/pack/render.onnx?float"):
                status, body = await served.get(path)
                assert status == 500 and "its manifest says" in json.loads(body)["error"], path
            assert (await served.get("/pack/motion.onnx"))[0] == 200

    asyncio.run(call())


def test_a_gpu_gets_float_graphs_or_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call() -> None:
        async with Served() as served:
            graph = served.server.pack.graph("render")
            status, body = await served.get("/pack/render.onnx?float")
            assert status == 200 and is_quantized(graph) and not is_quantized(body)
            motion = served.server.pack.graph("motion")  # in floats already
            assert (await served.get("/pack/motion.onnx?float"))[1] == motion
            monkeypatch.setitem(sys.modules, "onnx", None)
            assert (await served.get("/pack/render.onnx?float")) == (200, body)  # made once
            status, body = await served.get("/pack/reference.onnx?float")
            assert status == 404 and "pip install onnx" in json.loads(body)["error"]

    asyncio.run(call())


def test_onnxruntime_web_is_served_from_its_folder_only(tmp_path: Path) -> None:
    (tmp_path / "ort.wasm.min.mjs").write_text("export {}")
    (tmp_path / "secret.txt").write_text("no")

    async def call() -> None:
        async with Served(ort=tmp_path) as served:
            assert await served.get("/ort/ort.wasm.min.mjs") == (200, b"export {}")
            assert (await served.get("/ort/secret.txt"))[0] == 404
            assert json.loads((await served.get("/status"))[1])["ort"] is True

    asyncio.run(call())


def test_a_taken_port_and_a_wrong_folder_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def occupied() -> tuple[int, str]:
        async with Served() as served:
            port = served.origin.rsplit(":", 1)[1]
            return await asyncio.to_thread(main, ["call", "--port", port]), port

    code, port = asyncio.run(occupied())
    said = capsys.readouterr().err
    assert code == 1 and f"127.0.0.1 port {port}" in said and "--port" in said and said.count("\n") == 1
    assert main(["call", "--ort", str(tmp_path)]) == 1
    assert "npm install onnxruntime-web" in capsys.readouterr().err


def test_frames_keep_their_time() -> None:
    from neuralcodec.call.pipeline import Comparison
    from neuralcodec.call.server import CLOCK, ComparisonTrack

    async def call() -> None:
        track = ComparisonTrack()
        grey = np.full((64, 64, 3), 90, np.uint8)
        for shown in (1.0, 2.0):  # the second replaces the first, which nobody has asked for
            track.show(Comparison(grey, grey, grey, None, 0.0, 0.0, 0.0, shown))
        await asyncio.sleep(0.05)
        frame = await track.recv()
        assert (frame.pts, frame.time_base) == (2 * CLOCK, Fraction(1, CLOCK))

    asyncio.run(call())


def test_a_picture_leaves_the_jitter_buffer_with_its_last_packet() -> None:
    def packet(number: int, picture: int, *, last: bool) -> RtpPacket:
        made = RtpPacket(sequence_number=number & 0xFFFF, timestamp=picture * 3000, marker=int(last))
        made._data = bytes([picture, number & 255])
        return made

    hurry()
    buffer = rtcrtpreceiver.JitterBuffer(capacity=16, is_video=True)
    got, late = [], [(2, 2, True), (1, 2, False), (5, 4, True), (4, 4, False), (3, 3, True)]
    for number, picture, last in [(-2, 0, False), (-1, 0, True), (0, 1, True), *late]:
        _, frame = buffer.add(packet(number, picture, last=last))
        got.append(frame and (frame.timestamp // 3000, frame.data))
    assert got == [None, (0, b"\x00\xfe\x00\xff"), (1, b"\x01\x00"), None, (2, b"\x02\x01\x02\x02"), None, None,
                   (3, b"\x03\x03")]  # fmt: skip
    _, frame = buffer.add(packet(6, 5, last=True))
    assert frame is not None and frame.data == b"\x04\x04\x04\x05"  # what a lost packet held up follows at the next


PAGE = """
    const sent = [], workers = [], parts = {};
    const nothing = new Proxy(() => {}, {
      apply: () => nothing, get: (_, name) => name === Symbol.toPrimitive ? () => 0 : nothing,
    });
    const part = () => {
      const handlers = {}, own = { value: 0, checked: false, handlers };
      own.addEventListener = (kind, work) => { handlers[kind] = work; };
      return new Proxy(own, { get: (_, name) => name in own ? own[name] : nothing });
    };
    const document = { getElementById: (id) => parts[id] ??= part(), createElement: part };
    const window = { VideoDecoder: true };
    let serve = async () => ({ json: async () => ({ ort: true, kbps: 8 }) });
    const fetch = (address) => serve(address);
    class Worker {
      constructor() { this.alive = true; workers.push(this); }
      terminate() { this.alive = false; }
      postMessage() {}
      says(data) { this.onmessage({ data }); }
    }
    const names = ["document", "window", "location", "addEventListener", "fetch", "Worker"];
    const page = new Function(...names, given.replace(/^import .*$/m, ""));
    page(document, window, { search: "" }, () => {}, fetch, Worker);
    const { state } = window.neuralcodecCall, box = document.getElementById("browser-in");
    state.control = { readyState: "open", send: (text) => sent.push(JSON.parse(text).browser) };
    const loaded = () => new Promise((resolve) => setTimeout(resolve));
    const turn = (on) => { box.checked = on; box.handlers.change({ target: box }); };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("switched", "alive", "checked"),
    [
        ("turn(true); await loaded();", [True], True),
        ("turn(true); await loaded(); turn(false);", [False], False),
        ("turn(true); turn(false);", [], False),
        ("turn(true); await loaded(); turn(false); turn(true); await loaded();", [False, True], True),
        ("turn(true); turn(false); turn(true);", [True], True),
        (
            "turn(true); await loaded(); state.stream = { getTracks: () => [] }; parts.start.handlers.click();",
            [False], False,
        ),
    ],
    ids=["on", "off while it loads", "off at once", "on again while it loads", "on again at once", "the call ends"],
)  # fmt: skip
def test_the_page_has_one_decoder_while_it_is_switched_on(switched: str, alive: list[bool], checked: bool) -> None:
    ends = """
        await loaded();
        for (const worker of workers) worker.says({ ready: true });
        workers.filter((worker) => !worker.alive).forEach((worker) => worker.says({ problem: "Too late." }));
        result = { alive: workers.map((worker) => worker.alive), decoder: workers.indexOf(state.decoder),
                   browser: sent.at(-1) ?? false, checked: box.checked,
                   loads: /Loading/.test(parts.status.textContent) };
    """
    got = node(PAGE + switched + ends, (WEB / "call.js").read_text("utf-8"))
    decoder = alive.index(True) if checked else -1
    assert got == {"alive": alive, "decoder": decoder, "browser": checked, "checked": checked, "loads": False}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_remembers_how_long_its_last_thousand_pictures_took() -> None:
    ends = """
        turn(true);
        await loaded();
        const [worker] = workers;
        worker.says({ ready: true });
        globalThis.ImageData = class {};
        for (let ms = 0; ms < 1200; ms++) worker.says({ picture: [], size: 256, ms });
        const { frames, ms } = window.neuralcodecCall.receiver;
        result = [frames, ms.length, ms[0], ms.at(-1)];
    """
    assert node(PAGE + ends, (WEB / "call.js").read_text("utf-8")) == [1200, 1000, 200, 1199]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize(
    ("happens", "said"),
    [
        ("peer.becomes('disconnected'); peer.becomes('connected'); await passes();", ""),
        ("peer.becomes('disconnected'); await passes();", "broke off"),
        ("answers = false; peer.becomes('disconnected'); await passes();", "has gone"),
        ("peer.becomes('disconnected'); peer.becomes('failed'); await loaded();", "broke off"),
        ("answers = false; state.control.readyState = 'closed'; state.control.onclose(); await loaded();", "has gone"),
    ],
    ids=["a pause", "a longer one", "the server has ended", "a long one", "the server says so"],
)
def test_an_interrupted_call_waits_and_asks_before_it_says_what_happened(happens: str, said: str) -> None:
    begins = """
        let peer, answers = true;
        class Peer {
          constructor() { peer = this; this.localDescription = {}; this.iceGatheringState = "complete"; }
          createDataChannel() { return { readyState: "open", send() {} }; }
          addTransceiver() { return { sender: { getParameters: () => ({}) } }; }
          createOffer() {}
          setLocalDescription() {}
          setRemoteDescription() {}
          addEventListener() {}
          close() {}
          becomes(now) { this.connectionState = now; this.onconnectionstatechange(); }
        }
        const track = { stop() {} }, stream = { getTracks: () => [track], getVideoTracks: () => [track] };
        const timers = [], passes = async () => { timers.splice(0).forEach((work) => work()); await loaded(); };
        const wait = setTimeout;
        globalThis.setTimeout = (work, delay, ...rest) => delay ? timers.push(() => work(...rest)) : wait(work);
        globalThis.clearTimeout = (number) => { if (number) timers[number - 1] = () => {}; };
        Object.defineProperty(globalThis, "navigator", { value: {
          mediaDevices: { getUserMedia: async () => stream }, sendBeacon() {},
        }, configurable: true });
        globalThis.HTMLVideoElement = class { requestVideoFrameCallback() {} };
        globalThis.RTCPeerConnection = Peer;
        [window.isSecureContext, window.RTCPeerConnection] = [true, Peer];
        serve = async (address) => {
          if (!answers) throw new TypeError("no answer");
          return { ok: true, json: async () => ({ token: "00" }) };
        };
        document.getElementById("camera").play = async () => {};
        document.getElementById("start").handlers.click();
        await loaded();
        peer.becomes("connected");
    """
    ends = "result = [parts.problem.textContent, parts.start.textContent];"
    problem, button = node(PAGE + begins + happens + ends, (WEB / "call.js").read_text("utf-8"))
    assert said in problem and bool(said) == bool(problem)
    assert button == ("Start camera" if said else "Stop")

"""The page, the camera's WebRTC connection and the limits around both. Knows no codec: `pipeline` does the work.

Loopback unless told otherwise. A page of another origin cannot start a call, a host name that is not ours is refused
(DNS rebinding), calls and message sizes are limited. Every refusal is a sentence that the page shows.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import logging
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from neuralcodec import frame_header, motion
from neuralcodec.call.pipeline import Comparison, Pipeline
from neuralcodec.call.settings import Settings, parse_message
from neuralcodec.errors import BackendUnavailableError, MediaError, NeuralCodecError, PackError
from neuralcodec.face import resize
from neuralcodec.pack import GRAPHS, TABLES, Pack, load_pack
from neuralcodec.rate import WINDOW_SECONDS
from neuralcodec.runtime.dequantize import float_graph

try:
    import av
    from aiohttp import web
    from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
    from aiortc.mediastreams import MediaStreamError
except ImportError as error:
    raise BackendUnavailableError(
        f"A call needs aiortc and aiohttp ({error}); run: pip install 'neuralcodec[webrtc,cpu]'"
    ) from error

OFFER_MAX = 1 << 16  # bytes of a session description
SESSIONS = 4  # calls at a time
START_SECONDS = 20.0  # a call that has not connected by then is ended
STATS_SECONDS = 0.25
KEEPALIVE_SECONDS = 10.0  # of an idle HTTP connection
MARK_ROWS = 16  # top rows of a marked camera picture, bottom rows of the picture that goes back
PACKETS_WAITING = 1 << 18  # bytes that a page which decodes may be behind before datagrams are dropped
CLOCK = 90_000  # of RTP video
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
         ".wasm": "application/wasm", ".json": "application/json", ".onnx": "application/octet-stream",
         ".svg": "image/svg+xml"}  # fmt: skip
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",  # with the next one: threads for WebAssembly
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class ServerOptions:
    """What `neuralcodec call` was told. ``ort``: folder of onnxruntime-web's files, for the receiver in the browser."""

    host: str = "127.0.0.1"
    port: int = 8475
    kbps: float = 8.0  # headers at 25 packets a second take 5.6 of it
    sessions: int = SESSIONS
    pack: str | None = None
    device: str = "auto"
    threads: int | None = None
    ort: Path | None = None
    window: float = WINDOW_SECONDS  # seconds in which the rate is kept


class ComparisonTrack(MediaStreamTrack):
    """Original, ours and H.264 side by side as one video, so that all three are of the same moment: (S, 3S) and the
    mark's rows below. Holds the newest picture only."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()
        self._newest: asyncio.Queue[av.VideoFrame] = asyncio.Queue(1)
        self._last = -1

    def show(self, comparison: Comparison) -> None:
        """From any thread."""
        row = np.concatenate([comparison.original, comparison.ours, comparison.h264], axis=1)
        mark = np.zeros((MARK_ROWS, row.shape[1], 3), np.uint8)
        if comparison.mark is not None:
            mark = resize(comparison.mark, row.shape[1], MARK_ROWS)
        frame = av.VideoFrame.from_ndarray(np.concatenate([row, mark]), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = round(comparison.shown * CLOCK), Fraction(1, CLOCK)
        self._home.call_soon_threadsafe(self._put, frame)

    def _put(self, frame: av.VideoFrame) -> None:
        if self._newest.full():
            self._newest.get_nowait()
        self._newest.put_nowait(frame)

    async def recv(self) -> av.VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        return await self._newest.get()


class Session:
    """One page's call: its peer connection, its pipeline, its two data channels."""

    def __init__(self, pack: Pack, options: ServerOptions, ended: Callable[[Session], None], *, marked: bool) -> None:
        self._pack, self._options, self._ended, self._marked = pack, options, ended, marked
        self._loop = asyncio.get_running_loop()
        self.token = secrets.token_hex(16)  # with it the page can say that it has ended, though its packets get lost
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))  # no server outside is ever asked
        self._track = ComparisonTrack()
        self._pipeline: Pipeline | None = None
        self._control: Any = None
        self._packets: Any = None
        self._tasks: set[asyncio.Future[None]] = set()
        self._closing = False
        self.peer.addTrack(self._track)
        self.peer.on("track", lambda track: self._run(self._watch(track)))
        self.peer.on("datachannel", self._on_channel)
        self.peer.on("connectionstatechange", self._on_state)

    @property
    def pipeline(self) -> Pipeline:
        assert self._pipeline is not None
        return self._pipeline

    async def answer(self, sdp: str) -> str:
        """Start the codec and answer the page's offer."""
        options = self._options
        pipeline = await asyncio.to_thread(
            Pipeline, self._pack, show=self._track.show, forward=self._forward, settings=Settings(kbps=options.kbps),
            device=options.device, threads=options.threads, window=options.window,
        )  # fmt: skip
        if self._closing:  # `close` found no pipeline to end
            await asyncio.to_thread(pipeline.close)
            raise MediaError("The call was ended before it began; press Start camera again.")
        self._pipeline = pipeline
        self._run(self._report())
        await self.peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
        for other in self.peer.getTransceivers()[1:]:  # sound, a second camera: nobody would take them from memory
            other.direction = "inactive"
        await self.peer.setLocalDescription(await self.peer.createAnswer())
        self._loop.call_later(START_SECONDS, self._give_up)
        return str(self.peer.localDescription.sdp)

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()
        self._track.stop()
        await self.peer.close()
        if self._pipeline is not None:
            await asyncio.to_thread(self._pipeline.close)
        self._ended(self)
        gc.collect()  # aiortc's objects hold each other, and with them a hundred megabytes of networks

    # --- the page's video and channels ---

    async def _watch(self, track: Any) -> None:
        if track is not self.peer.getTransceivers()[0].receiver.track:  # the one that sends the comparison
            return
        try:
            while True:
                self.pipeline.push(await track.recv(), MARK_ROWS if self._marked else 0)
        except MediaStreamError:
            self._run(self.close())  # the camera has ended

    def _on_channel(self, channel: Any) -> None:
        if channel.label == "control":
            self._control = channel
            channel.on("message", self._on_message)
        elif channel.label == "packets":
            self._packets = channel
        else:
            channel.close()

    def _on_message(self, text: Any) -> None:
        try:
            message = parse_message(text)
            if (report := message.pop("feedback", None)) is not None:
                try:
                    data = bytes.fromhex(report)
                except (TypeError, ValueError):
                    raise ValueError("Feedback is a packet in hexadecimal digits.") from None
                self.pipeline.feedback(data)
            if message:
                self.pipeline.change(self.pipeline.settings.changed(message))
        except ValueError as error:
            self._send({"refused": str(error)})
        except Exception:  # it would end the transport, and with it the call
            logging.getLogger(__name__).exception("control message")
            self._send({"refused": "The server failed at this message; its log says why."})

    def _forward(self, data: bytes) -> None:
        self._loop.call_soon_threadsafe(self._forward_now, data)

    def _forward_now(self, data: bytes) -> None:
        channel = self._packets
        if channel is not None and channel.readyState == "open" and channel.bufferedAmount < PACKETS_WAITING:
            channel.send(data)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(STATS_SECONDS)
            self._send({"stats": self.pipeline.stats()})

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._control is not None and self._control.readyState == "open":
            self._control.send(json.dumps(message))

    # --- ends ---

    def _on_state(self) -> None:
        if self.peer.connectionState in ("failed", "closed", "disconnected"):
            self._run(self.close())

    def _give_up(self) -> None:
        if self.peer.connectionState != "connected":
            self._run(self.close())

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)


class CallServer:
    """The web application: page, pack files, and one POST that starts a call."""

    def __init__(self, options: ServerOptions) -> None:
        from neuralcodec.call.prompt import hurry  # imports aiortc

        self.options = options
        self.pack = load_pack(options.pack)
        self.sessions: set[Session] = set()
        self._floats: dict[str, bytes] = {}  # graphs as a page's GPU wants them
        self._turning = asyncio.Lock()  # one graph into floats at a time, and each once
        self._names = {options.host.lower(), *LOOPBACK}
        if options.host in EVERYWHERE:
            own = socket.gethostname().lower()
            self._names |= {own, f"{own}.local", socket.getfqdn().lower()}
        hurry()
        self.app = web.Application(middlewares=[self._guard], client_max_size=OFFER_MAX)
        routes = [
            web.get("/", self._page), web.get("/web/{name}", self._page), web.post("/offer", self._offer),
            web.post("/end", self._end),
            web.get("/pack/{name}", self._pack_file), web.get("/ort/{name}", self._ort_file),
            web.get("/status", self._status),
        ]  # fmt: skip
        for route in routes:
            route.kwargs["expect_handler"] = self._expect
        self.app.add_routes(routes)
        self.app.on_response_prepare.append(_secure)
        self.app.on_shutdown.append(self._shutdown)

    # --- who may ---

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse
        if not self._is_our_name(request.host):
            response = _refusal(421, f"This server is not {request.host[:60]!r}; use the address it printed.")
        else:
            try:
                response = await handler(request)
            except web.HTTPBadRequest:
                response = _refusal(400, "The request is not text in the encoding that it names; reload the page.")
            except web.HTTPRequestEntityTooLarge:
                response = _refusal(413, f"The request is longer than {OFFER_MAX} bytes.")
            except web.HTTPNotFound:
                response = _refusal(404, "There is nothing at this address.")
            except web.HTTPMethodNotAllowed:
                response = _refusal(405, "This address does not take that kind of request.")
        return response

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """What a client asks before it sends a body; aiohttp answers that before the guard sees the request."""
        if request.headers["Expect"].lower() != "100-continue":
            return _refusal(417, "This server expects no more of a request than that it goes on (100-continue).")
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
        return None

    def _is_our_name(self, host: str) -> bool:
        name = (host.rsplit(":", 1)[0] if not host.endswith("]") else host).strip("[]").lower()
        return name in self._names or (self.options.host in EVERYWHERE and _is_address(name))

    # --- what ---

    async def _page(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info.get("name", "index.html")
        folder = files("neuralcodec.call") / "web"
        if name not in {entry.name for entry in folder.iterdir()}:
            raise web.HTTPNotFound
        return _file((folder / name).read_bytes(), name)

    async def _pack_file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "pack.json":
            neck = [float(value) for value in motion.NECK]  # what views turn heads about
            headers = json.loads(frame_header.TABLE.read_text("utf-8"))
            return web.json_response(
                {"id": self.pack.id.hex(), "size": self.pack.size, "neck": neck, "frame_header": headers}
            )
        if name not in (*GRAPHS, TABLES):
            raise web.HTTPNotFound
        try:
            if "float" not in request.query:
                return _file(await asyncio.to_thread(self.pack.file, name), name)
            async with self._turning:
                if name not in self._floats:
                    graph = await asyncio.to_thread(self.pack.file, name)
                    self._floats[name] = await asyncio.to_thread(float_graph, graph)
        except BackendUnavailableError as error:
            return _refusal(404, str(error))
        except PackError as error:  # another pack lies there by now
            return _refusal(500, str(error))
        return _file(self._floats[name], name)

    async def _ort_file(self, request: web.Request) -> web.StreamResponse:
        name, folder = request.match_info["name"], self.options.ort
        if folder is None:
            return _refusal(404, "This server was started without --ort, so the page cannot run networks by itself.")
        if name not in {path.name for path in folder.iterdir()} or Path(name).suffix not in TYPES:
            raise web.HTTPNotFound
        return _file(await asyncio.to_thread((folder / name).read_bytes), name)

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({
            "calls": len(self.sessions), "limit": self.options.sessions, "kbps": self.options.kbps,
            "ort": self.options.ort is not None,
        })  # fmt: skip

    async def _end(self, request: web.Request) -> web.StreamResponse:
        token = await _text(request)
        for session in [s for s in self.sessions if secrets.compare_digest(s.token.encode(), token.encode())]:
            await session.close()
        return web.Response(status=204)

    async def _offer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Origin") != f"{request.scheme}://{request.host}":
            return _refusal(403, "Only the page that this server shows may start a call.")
        text = await _text(request)
        try:
            message = json.loads(text)
            sdp, marked = str(message["sdp"]), bool(message.get("marked"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return _refusal(400, "The request is not a session description; reload the page.")
        # counted once the body is here, and nothing is awaited in between: bodies held back must not pass together
        if len(self.sessions) >= self.options.sessions:
            return _refusal(503, f"{len(self.sessions)} calls run already; end one, or start the server with "
                                 f"--sessions {self.options.sessions + 1}.")  # fmt: skip
        session = Session(self.pack, self.options, self.sessions.discard, marked=marked)
        self.sessions.add(session)
        try:
            return web.json_response({"sdp": await session.answer(sdp), "type": "answer", "token": session.token})
        except NeuralCodecError as error:
            await session.close()
            return _refusal(500, str(error))
        except Exception as error:  # aiortc answers bad descriptions with a dozen types
            logging.getLogger(__name__).info("offer refused", exc_info=error)
            await session.close()
            return _refusal(400, "The browser's session description cannot be used; update the browser.")

    async def _shutdown(self, app: web.Application) -> None:
        await asyncio.gather(*(session.close() for session in list(self.sessions)))


def serve(options: ServerOptions, ready: Callable[[str], object]) -> None:
    """Run until SIGINT or SIGTERM. ``ready`` gets the page's address once it can be opened.

    Raises MediaError when the port is taken or the address is not this machine's.
    """
    asyncio.run(_serve(options, ready))


async def _serve(options: ServerOptions, ready: Callable[[str], object]) -> None:
    if options.ort is not None and not (options.ort / "ort.wasm.min.mjs").is_file():
        raise MediaError(
            f"{options.ort} does not hold onnxruntime-web (ort.wasm.min.mjs is missing); run: "
            "npm install onnxruntime-web, then give --ort node_modules/onnxruntime-web/dist"
        )
    server = CallServer(options)
    # a page asks for its files once and then talks over WebRTC: connections kept for an hour would only be open files
    runner = web.AppRunner(server.app, access_log=None, keepalive_timeout=KEEPALIVE_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port)
        try:
            await site.start()
        except OSError as error:
            raise MediaError(
                f"Cannot listen on {options.host} port {options.port} ({error.strerror}): stop what uses it, or give "
                "another --port, or a --host of this machine."
            ) from error
        port = runner.addresses[0][1]
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, stop.set)
            except (NotImplementedError, RuntimeError):  # Windows, or not the main thread: Ctrl-C raises instead
                break
        name = f"[{options.host}]" if ":" in options.host else options.host
        ready(f"http://{name}:{port}/")
        await stop.wait()
    finally:
        await runner.cleanup()


async def _secure(_: web.Request, response: web.StreamResponse) -> None:
    """Answers that aiohttp gives by itself have the headers, too."""
    response.headers.update(HEADERS)


async def _text(request: web.Request) -> str:
    """The body. HTTPBadRequest for an encoding that there is not, or bytes that are none of it."""
    try:
        text = str(await request.text())
        text.encode()  # half a surrogate pair, which some encodings let through, is no text either
    except (LookupError, UnicodeError, web.RequestPayloadError):  # the last: what is said to be gzip is none
        raise web.HTTPBadRequest from None
    return text


def _is_address(name: str) -> bool:
    """A page that was opened by an address has no name that could be bound to another."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _file(data: bytes, name: str) -> web.Response:
    return web.Response(body=data, content_type=TYPES.get(Path(name).suffix, "application/octet-stream"))


def _refusal(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)

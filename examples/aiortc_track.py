"""The codec inside an aiortc application: motion on an unreliable data channel, pictures on a reliable one.

Two processes, which find each other over TCP on this machine (signalling is yours to replace). Two terminals:

    python examples/aiortc_track.py receive seen.mp4
    python examples/aiortc_track.py send talk.mp4 --kbps 4

At the receiver `NeuralTrack` is an ordinary aiortc video track: record it, as here, or add it to another connection.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import av
from aiortc import MediaStreamTrack, RTCConfiguration, RTCDataChannel, RTCPeerConnection
from aiortc.contrib.media import MediaRecorder
from aiortc.contrib.signaling import TcpSocketSignaling
from aiortc.mediastreams import MediaStreamError

import neuralcodec as nc
from neuralcodec.media import VideoReader
from neuralcodec.packet import Bundle, End, Motion, Packet

REPORTS, WAITING = 64, 1000  # reports and datagrams that wait for a thread; of more the oldest are left out


class NeuralSender:
    """Sends pictures over two data channels of a peer connection; create it before the offer."""

    def __init__(self, peer: RTCPeerConnection, encoder: nc.Encoder) -> None:
        self.encoder = encoder
        # what is late is worthless for motion; pictures are few and must arrive
        self.motion = peer.createDataChannel("neuralcodec-motion", ordered=False, maxRetransmits=0)
        self.pictures = peer.createDataChannel("neuralcodec-pictures")
        self._reports: deque[bytes | str] = deque(maxlen=REPORTS)  # an encoder is for one thread at a time
        self.motion.on("message", self._reports.append)

    async def send(self, image: Any, pts: int) -> None:
        self._post(await asyncio.to_thread(self._encode, image, pts))

    def _encode(self, image: Any, pts: int) -> list[Packet]:
        while self._reports:
            with suppress(nc.BitstreamError):  # the other end's fault, as a text is
                if isinstance(report := self._reports.popleft(), bytes):
                    self.encoder.on_feedback(report)
        return self.encoder.encode(image, pts)

    async def close(self) -> None:
        self._post(self.encoder.flush())
        while self.pictures.bufferedAmount and self.pictures.readyState == "open":
            await asyncio.sleep(0.05)

    def _post(self, packets: list[Packet]) -> None:
        for packet in packets:
            channel = self.motion if isinstance(packet, Motion | Bundle) else self.pictures
            if channel.readyState == "open":
                channel.send(bytes(packet))


class NeuralTrack(MediaStreamTrack):
    """The other end: give it the peer's data channels, read video frames. Late ones are left out."""

    kind = "video"

    def __init__(self, decoder: nc.Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self._arrived: deque[tuple[bytes, bool]] = deque(maxlen=WAITING)  # and whether it is motion
        self._came = asyncio.Event()
        self._frames: list[nc.DecodedFrame] = []
        self._motion: RTCDataChannel | None = None
        self._last, self.shown = -1, 0

    def attach(self, channel: RTCDataChannel) -> None:
        if motion := channel.label == "neuralcodec-motion":
            self._motion = channel

        def keep(data: bytes | str) -> None:
            if isinstance(data, bytes):
                self._arrived.append((data, motion))
                self._came.set()

        channel.on("message", keep)

    def stop(self) -> None:
        super().stop()
        self._came.set()  # recv may be waiting

    async def recv(self) -> av.VideoFrame:
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.image.size and frame.pts > self._last:  # a frame that was concealed may still come
                    self._last, self.shown = frame.pts, self.shown + 1
                    shown = av.VideoFrame.from_ndarray(frame.image, format="rgb24")
                    shown.pts, shown.time_base = frame.pts, self.decoder.time_base
                    return shown
            if self.readyState == "ended":
                raise MediaStreamError("the stream has ended")
            if not self._arrived:
                self._came.clear()
                await self._came.wait()
                continue
            data, _ = self._arrived.popleft()
            if data[:1] == bytes(End(0))[:1]:
                self.stop()
                continue
            late = any(motion for _, motion in self._arrived)  # newer frames have come: this one is followed, not drawn
            try:
                wanted = (lambda _: False) if late else None
                self._frames += await asyncio.to_thread(self.decoder.decode, data, wanted=wanted)
            except nc.BitstreamError:
                continue  # counted by nobody's fault but the sender's: the next one may be good
            except nc.NeuralCodecError:  # of a stream that needs another pack nothing can ever be shown
                self.stop()
                raise
            back = self._motion
            if back is not None and back.readyState == "open" and self.decoder.wants_feedback(time.monotonic()):
                back.send(bytes(self.decoder.feedback()))


def when_gone(peer: RTCPeerConnection, do: Callable[[], None]) -> None:
    """Do this once the connection is closed, or has failed because the other end has died: half a minute later."""
    peer.on("connectionstatechange", lambda: do() if peer.connectionState in ("closed", "failed") else None)


async def send(film: str, kbps: float, signaling: Any) -> None:
    peer, gone = RTCPeerConnection(RTCConfiguration(iceServers=[])), asyncio.Event()
    when_gone(peer, gone.set)
    with VideoReader(film) as reader:
        encoder = nc.Encoder(kbps, time_base=reader.time_base, frame_duration=reader.frame_duration)
        sender = NeuralSender(peer, encoder)
        await peer.setLocalDescription(await peer.createOffer())
        await signaling.send(peer.localDescription)
        await peer.setRemoteDescription(await signaling.receive())
        while "connecting" in (sender.pictures.readyState, sender.motion.readyState) and not gone.is_set():
            await asyncio.sleep(0.02)
        start, first = time.monotonic(), None  # films need not begin at 0
        for pts, image in reader:
            if gone.is_set():
                break
            first = pts if first is None else first
            await asyncio.sleep(max(0.0, start + float((pts - first) * reader.time_base) - time.monotonic()))
            await sender.send(image, pts)
        await sender.close()
        stats, seconds = encoder.stats, float(encoder.stats.frames * reader.frame_duration * reader.time_base)
        print(f"{stats.frames} frames sent, {stats.bytes_total * 8 / 1000 / (seconds or 1):.2f} kbit/s before headers")
    waits = [asyncio.ensure_future(wait) for wait in (signaling.receive(), gone.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)  # the receiver has all it wants, or is no more
    await peer.close()


async def receive(film: str, signaling: Any) -> None:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    track, ended = NeuralTrack(nc.Decoder()), asyncio.Event()
    track.on("ended", ended.set)
    when_gone(peer, track.stop)
    peer.on("datachannel", track.attach)
    while True:
        try:
            await peer.setRemoteDescription(await signaling.receive())
            break
        except ConnectionRefusedError:  # the sender is not there yet
            await asyncio.sleep(0.2)
    await peer.setLocalDescription(await peer.createAnswer())
    await signaling.send(peer.localDescription)
    recorder = MediaRecorder(film)
    recorder.addTrack(track)
    await recorder.start()
    await ended.wait()
    await recorder.stop()
    await signaling.close()
    await peer.close()
    print(f"{track.shown} frames shown, {track.decoder.stats.lost_frames} lost")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Send a film through two data channels, or receive one.")
    parser.add_argument("role", choices=("send", "receive"))
    parser.add_argument("film")
    parser.add_argument("--kbps", type=float, default=4.0)
    parser.add_argument("--port", type=int, default=8476, help="of the signalling, on this machine")
    options = parser.parse_args()
    signaling = TcpSocketSignaling("127.0.0.1", options.port)
    sends = options.role == "send"
    await (send(options.film, options.kbps, signaling) if sends else receive(options.film, signaling))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (nc.NeuralCodecError, OSError, OverflowError, ValueError) as error:  # a port or a rate that there is not
        raise SystemExit(str(error)) from None

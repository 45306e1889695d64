"""A call over plain UDP, one way: RTP there, feedback as RTCP back on the same socket. Two terminals:

    python examples/udp_call.py receive seen.mp4 --port 5004
    python examples/udp_call.py send talk.mp4 --to 127.0.0.1:5004 --kbps 12
"""

from __future__ import annotations

import argparse
import secrets
import socket
import time
from contextlib import suppress
from fractions import Fraction

import neuralcodec as nc
from neuralcodec.face import resize
from neuralcodec.media import VideoReader, VideoWriter
from neuralcodec.packet import End, parse_packet
from neuralcodec.rtp import RtpReceiver, RtpSender, parse_rtcp, rtcp_feedback

RESTART_SECONDS = 1.0  # of silence, after which the receiver follows whoever sends next
GONE_SECONDS = 10.0  # of silence, after which it takes the sender for gone


def send(film: str, to: tuple[str, int], kbps: float) -> None:
    with VideoReader(film) as reader, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        encoder = nc.Encoder(kbps, time_base=reader.time_base, frame_duration=reader.frame_duration, packet_overhead=40)
        rtp = RtpSender(secrets.randbits(32), sequence=secrets.randbits(16), timestamp=secrets.randbits(32))
        start, first = time.monotonic(), None  # films need not begin at 0
        seconds = wire = 0.0
        for pts, image in reader:
            first = pts if first is None else first
            seconds = float((pts - first) * reader.time_base)
            time.sleep(max(0.0, start + seconds - time.monotonic()))  # a film plays at its own pace; a camera just does
            while (datagram := received(udp)) is not None:
                with suppress(nc.BitstreamError):  # anybody can send to a port: what is no report is left out
                    for feedback in parse_rtcp(datagram, rtp.ssrc):
                        encoder.on_feedback(feedback)
            for datagram in rtp.pack(encoder.encode(image, pts), seconds):
                wire += udp.sendto(datagram, to) + 28  # IPv4 and UDP headers
        for _ in range(3):  # the last word is worth repeating
            for datagram in rtp.pack(encoder.flush(), seconds):
                udp.sendto(datagram, to)
        rate = wire * 8 / 1000 / max(seconds, 1e-3)
        print(f"{encoder.stats.frames} frames, {rate:.2f} kbit/s with RTP, UDP and IP headers")


def receive(film: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", port))
        udp.settimeout(0.1)
        decoder, rtp, own_ssrc = nc.Decoder(), RtpReceiver(), secrets.randbits(32)
        print(f"Waiting on port {port}.", flush=True)
        writer: VideoWriter | None = None
        tick, first, last, lost = Fraction(1), None, -1, 0  # of the film; where in it the stream begins; lost before it
        streams, sender, heard = 0, None, time.monotonic()  # when a packet of the stream has come, no other counts
        with suppress(KeyboardInterrupt):  # what has come is a film all the same
            while (silence := time.monotonic() - heard) < GONE_SECONDS or sender is None:
                if silence > RESTART_SECONDS:
                    rtp.restart()
                frames: list[nc.DecodedFrame] = []
                try:
                    datagram, address = udp.recvfrom(2048)
                    if (data := rtp.unpack(datagram)) is None:
                        continue
                    sender, heard = address, time.monotonic()
                    if rtp.streams != streams:  # another sender, or the same one anew: nothing of the old one holds
                        lost += decoder.stats.lost_frames
                        decoder, streams, first = nc.Decoder(pack=decoder.pack), rtp.streams, None
                    if isinstance(parse_packet(data), End) and writer is not None:
                        break
                    frames = decoder.decode(data)
                except TimeoutError:
                    pass
                except nc.NeuralCodecError as error:  # anybody can send to a port: no stream, or one of another pack
                    print(error, flush=True)
                    continue
                for frame in frames:
                    if writer is None:
                        height, width = frame.image.shape[:2]
                        assert decoder.header is not None  # without it there is no frame
                        tick, step = decoder.time_base, decoder.header.frame_duration
                        writer = VideoWriter(film, width, height, tick, frame_duration=step, overwrite=True)
                    pts = round(frame.pts * decoder.time_base / tick)
                    first = last + 1 - pts if first is None else first
                    if first + pts > last:
                        last = first + pts
                        writer.write(resize(frame.image, *writer.size), last)
                if sender and rtp.ssrc is not None and decoder.wants_feedback(time.monotonic()):
                    udp.sendto(rtcp_feedback(decoder.feedback(rtp.lost_share()), own_ssrc, rtp.ssrc), sender)
        if writer is None:
            raise SystemExit("Nothing that can be shown has arrived.")
        writer.close()
        print(f"{writer.frames} frames shown, {lost + decoder.stats.lost_frames} lost")


def received(udp: socket.socket) -> bytes | None:
    try:
        return udp.recv(2048)
    except (BlockingIOError, ConnectionRefusedError):  # nothing there; or nobody listens yet
        return None


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description="Send a film over UDP, or receive one.")
    roles = parser.add_subparsers(dest="role", required=True)
    sender = roles.add_parser("send")
    sender.add_argument("film")
    sender.add_argument("--to", type=address, default="127.0.0.1:5004", metavar="HOST:PORT")
    sender.add_argument("--kbps", type=float, default=12.0, help="of which headers take 8 at 25 frames a second")
    receiver = roles.add_parser("receive")
    receiver.add_argument("film")
    receiver.add_argument("--port", type=int, default=5004)
    options = parser.parse_args()
    if options.role == "send":
        send(options.film, options.to, options.kbps)
    else:
        receive(options.film, options.port)


if __name__ == "__main__":
    try:
        main()
    except (nc.NeuralCodecError, OSError, OverflowError, ValueError) as error:  # a port that is taken or that there
        # is not, a rate that headers take whole
        raise SystemExit(str(error)) from None

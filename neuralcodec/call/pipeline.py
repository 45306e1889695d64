"""Camera pictures in, side-by-side pictures out: encoder, simulated network, decoder, in three threads. Knows no web.

    push -> [sender thread: encode] -> link -> [receiver thread: decode] -> [comparing thread: x264] -> show
                     ^---------- requests over a link back ----------'

Nothing queues: the sender takes the camera's newest picture at such a time that its packets find the receiver free.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from neuralcodec.call.h264 import SameBytes
from neuralcodec.call.link import HEADERS, Link
from neuralcodec.call.settings import Settings
from neuralcodec.decoder import Decoder
from neuralcodec.encoder import Encoder
from neuralcodec.errors import BitstreamError, NeuralCodecError
from neuralcodec.face import Square, crop, resize
from neuralcodec.media import as_picture
from neuralcodec.motion import Array, View
from neuralcodec.pack import Pack
from neuralcodec.packet import Bundle, Feedback, Motion, Packet, bundled, parse_packet
from neuralcodec.rate import LOWEST_KBPS, WINDOW_SECONDS

FPS = 25  # of the stream: a camera's jittery times are moved to this grid, so that no time costs bits
PRESET = 8  # of SVT-AV1: a picture takes 8 ms of processor time where 4 takes 26, and 29 % more bytes
WINDOW = 3.0  # seconds that the figures on the page are means of
RECENT = 0.1  # weight of the last frame in how long one takes at either end
ORIGINALS = 64  # pictures kept until their reconstruction comes, for the comparison
FRAMES_SECONDS = 0.04  # beyond the link's delays, until what answers a report can be here
RECOVERIES = 500  # of the last ones, how long they took
FACE_MISSING = 1.0  # seconds without a face before the page says so


@dataclass(frozen=True)
class Comparison:
    """One frame to show. Pictures are uint8 RGB (S, S, 3); captured, encoded, arrived, shown: seconds of one clock.
    mark: the camera picture's top rows that ``push`` named, untouched."""

    original: Array
    ours: Array
    h264: Array
    mark: Array | None
    captured: float
    encoded: float
    arrived: float
    shown: float


@dataclass(frozen=True)
class _Decoded:
    """What the receiver has made of a frame; stages: seconds by name."""

    pts: int
    square: Square | None  # of the camera's picture that it shows; None: all
    picture: Array
    arrived: float
    stages: dict[str, float]


@dataclass
class _Picture:
    """One camera picture on its way; stages: seconds by name."""

    image: Any
    mark_rows: int
    captured: float
    mark: Array | None = None
    encoded: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


class Pipeline:
    """One call. ``show`` gets every Comparison, ``forward`` every datagram that arrives (for a page that decodes by
    itself); they are called from threads of the pipeline's own, which ``close`` ends."""

    def __init__(
        self, pack: Pack, *, show: Callable[[Comparison], None], forward: Callable[[bytes], None] | None = None,
        settings: Settings | None = None, device: str = "auto", threads: int | None = None,
        window: float = WINDOW_SECONDS, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.settings = settings or Settings()
        self.problem = ""  # a sentence once a thread has ended by an error
        self._show, self._forward, self._clock = show, forward, clock
        # Both ends compute at the same time. On two cores shared with other work, one thread for each instead of two
        # took a frame through the codec in 254 ms instead of 663.
        threads = threads or max(1, (os.cpu_count() or 2) // 2)
        # Of 25 frames a second headers alone take 5.6 kbit/s; a machine that has too much to do sends fewer.
        self._encoder = Encoder(max(self.settings.kbps, HEADERS * FPS / 125 + LOWEST_KBPS), pack=pack, device=device,
                                threads=threads, time_base=Fraction(1, FPS), packet_overhead=HEADERS, preset=PRESET,
                                window=window)  # fmt: skip
        self._encoder.target_kbps = self.settings.kbps
        self._decoder = Decoder(pack=pack, device=device, threads=threads)
        self._h264 = SameBytes(pack.size, self.settings.kbps)
        self._there, self._back = Link(seed=1), Link(seed=2)
        self._lock = threading.Condition()  # guards everything below
        self._next: _Picture | None = None
        self._decoded: _Decoded | None = None  # waits for its comparison
        self._originals: OrderedDict[int, _Picture] = OrderedDict()
        self._earned = 0  # bytes sent since the last comparison: what x264 may spend
        self._missed = False  # something is not here that what has come refers to
        self._right_at: float | None = None  # when nothing was missing last
        self._recoveries: deque[float] = deque(maxlen=RECOVERIES)  # seconds from then until nothing was missing again
        self._closed = False
        self._start: float | None = None
        self._pushed_at: float | None = None  # when the camera gave its last picture
        self._faceless_since: float | None = None
        self._left_out = self._bad = 0
        self._busy_since: float | None = None  # when the receiver took what it works on
        self._pace = [0.0, 0.0]  # seconds that a frame takes the sender, the receiver
        self._sent: deque[tuple[float, int, int]] = deque()  # time, bytes, bytes with IP and UDP headers
        self._frames: deque[tuple[float, int]] = deque()  # time, bytes of motion packets
        self._shown: deque[tuple[float, dict[str, float]]] = deque()  # time, stages in seconds
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"neuralcodec-{loop.__name__}", daemon=True)
            for loop in (self._send, self._receive, self._compare)
        ]
        self.change(self.settings)
        for thread in self._threads:
            thread.start()

    # --- called from outside ---

    def push(self, image: Any, mark_rows: int = 0) -> None:
        """A camera picture, uint8 RGB (H, W, 3) or an av.VideoFrame, taken now. Its top ``mark_rows`` are not coded but
        come out as ``Comparison.mark``."""
        with self._lock:
            self._left_out += self._next is not None
            self._next = _Picture(image, mark_rows, self._clock())
            self._pushed_at = self._next.captured
            self._lock.notify_all()

    def change(self, settings: Settings) -> None:
        with self._lock:
            if settings.kbps != self.settings.kbps:
                self._encoder.target_kbps = settings.kbps
                self._h264.retarget(settings.kbps)
            if settings.browser and not self.settings.browser:
                self._encoder.send_reference()  # a decoder that joins now has nothing yet
            for link in (self._there, self._back):
                link.loss, link.delay = settings.loss / 100, settings.delay_ms / 1000
            self._there.kbps = settings.link_kbps
            self._decoder.view = View(settings.yaw, settings.pitch, settings.roll)
            self.settings = settings
            self._lock.notify_all()

    def feedback(self, data: bytes) -> None:
        """What a page that decodes by itself reports to the sender. BitstreamError for anything else."""
        if not isinstance(packet := parse_packet(data), Feedback):
            raise BitstreamError(f"A page can send feedback, and no {type(packet).__name__} packet.")
        with self._lock:
            self._back.send(bytes(packet), self._clock())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()

    def stats(self) -> dict[str, Any]:
        """What the page shows; rates and times are means of the last WINDOW seconds."""
        with self._lock:
            now = self._clock()
            for kept in (self._sent, self._frames, self._shown):
                while kept and kept[0][0] < now - WINDOW:
                    kept.popleft()
            span = min(WINDOW, max(1.0, now - (self._start or now)))
            spent: dict[str, float] = {}
            for _, stages in self._shown:
                for name, seconds in stages.items():
                    spent[name] = spent.get(name, 0.0) + 1000 * seconds / len(self._shown)
            encoder, decoder = self._encoder.stats, self._decoder.stats
            return {
                "problem": self.problem,
                "seconds": now - (self._start or now),
                "camera_s": now - (self._pushed_at or now),
                "kbps": sum(count for _, count, _ in self._sent) * 8 / 1000 / span,
                "wire_kbps": sum(count for _, _, count in self._sent) * 8 / 1000 / span,
                "frame_bytes": float(np.mean([count for _, count in self._frames])) if self._frames else 0.0,
                "fps": len(self._shown) / span,
                "bytes": self._there.bytes, "packets": self._there.sent,
                "lost": self._there.lost, "dropped": self._there.dropped, "bad": self._bad,
                "frames": encoder.frames, "left_out": self._left_out,
                "references": encoder.references, "updates": encoder.updates, "concealed": decoder.concealed_frames,
                "recovery_ms": _spread(self._recoveries),
                "face": self._faceless_since is None or now - self._faceless_since < FACE_MISSING,
                "stages": spent, "provider": encoder.provider,
                "h264": {"side": self._h264.side, "frames": self._h264.frames, "bytes": self._h264.bytes,
                         "fps": self._h264.frames / max(1.0, now - (self._start or now))},
            }  # fmt: skip

    # --- the sender's thread ---

    def _send(self) -> None:
        last = -1
        while True:
            with self._lock:
                begin = self._clock()
                if self._closed:
                    return
                if (pause := self._pause(begin)) != 0:
                    self._lock.wait(pause)
                    continue
                picture, self._next = self._next, None
                assert picture is not None
                self._start = picture.captured if self._start is None else self._start
                pts = round((picture.captured - self._start) * FPS)
                if pts <= last:  # between two ticks
                    self._left_out += 1
                    continue
                reports = self._back.receive(begin)
            last = pts
            picture.stages["wait"] = begin - picture.captured
            whole = as_picture(picture.image)
            if picture.mark_rows:
                picture.mark, whole = whole[: picture.mark_rows], whole[picture.mark_rows :]
            picture.image = whole
            stats = self._encoder.stats
            lost_before, spent_before = stats.face_lost_frames, dict(stats.stage_seconds)
            for report in reports:
                self._encoder.on_feedback(report)
            packets = self._encoder.encode(picture.image, pts)
            now = self._clock()
            with self._lock:
                if stats.face_lost_frames == lost_before:
                    self._faceless_since = None
                elif self._faceless_since is None:
                    self._faceless_since = now
                picture.encoded = now
                self._took(0, now - begin)
                picture.stages |= _since(spent_before, stats.stage_seconds, "send")
                self._originals[pts] = picture
                while len(self._originals) > ORIGINALS:
                    self._originals.popitem(last=False)
                for packet in bundled(packets):
                    data = bytes(packet)
                    self._there.send(data, now)
                    self._earned += len(data)
                    self._sent.append((now, len(data), len(data) + HEADERS))
                    motion = (part for part in _inside(packet) if isinstance(part, Motion))
                    self._frames += [(now, len(bytes(part))) for part in motion]
                self._lock.notify_all()

    def _pause(self, now: float) -> float | None:
        """Seconds until the camera's newest picture should be taken, None: until something happens. Its packets are to
        reach the receiver when that is done with what it works on. A receiver that is usually quicker than the sender,
        since most frames are pictures as they are, may be one datagram behind while it renders the odd one."""
        waiting, (sender, receiver) = self._there.waiting(now), self._pace
        if self._next is None or waiting > (receiver < sender):
            return None
        if self._busy_since is None:
            return 0.0
        return max(0.0, self._busy_since + (1 + waiting) * receiver - sender - now)

    def _took(self, end: int, seconds: float) -> None:
        self._pace[end] += RECENT * (seconds - self._pace[end])

    # --- the receiver's thread ---

    def _receive(self) -> None:
        before: dict[str, float] = {}  # stage times when the last frame was shown
        black = np.zeros((self._h264.size, self._h264.size, 3), np.uint8)  # where the page draws its own
        while True:
            with self._lock:
                now, due = self._clock(), self._there.next_arrival()
                if self._busy_since is not None:
                    self._took(1, now - self._busy_since)
                    self._busy_since = None
                    self._lock.notify_all()
                if self._closed:
                    return
                if due is None or due > now:
                    self._lock.wait(None if due is None else due - now)
                    continue
                arrived, browser = self._there.receive(now), self.settings.browser
                if browser:
                    self._right_at = None  # it is the page that reports what is missing and waits for it
                self._busy_since = now
                self._lock.notify_all()
            for index, data in enumerate(arrived):
                newest = index == len(arrived) - 1  # when several have come, the earlier ones are too late to be seen
                if self._forward is not None:
                    self._forward(data)
                try:  # while the page decodes too, which costs little as nothing is drawn: to go on when it stops
                    frames = self._decoder.decode(data, wanted=None if newest and not browser else _never)
                except BitstreamError:
                    self._bad += 1
                    continue
                for frame in frames:
                    if not (browser or frame.image.size):
                        continue
                    spent = _since(before, self._decoder.stats.stage_seconds, "receive")
                    before = dict(self._decoder.stats.stage_seconds)
                    picture, stages = (black, {}) if browser else (frame.image, spent)
                    self._hand_over(_Decoded(frame.pts, frame.square, picture, now, stages))
                if not browser:
                    self._report()

    def _hand_over(self, decoded: _Decoded) -> None:
        with self._lock:
            self._decoded = decoded  # a comparison that takes longer than decoding leaves frames out
            self._lock.notify_all()

    def _report(self) -> None:
        """Tell the sender what is here and what is not; note how long something was missing."""
        decoder = self._decoder
        missing = decoder.wants_reference or decoder.wants_intra
        with self._lock:
            now = self._clock()
            if not missing:
                if self._right_at is not None and self._missed:
                    self._recoveries.append(now - self._right_at)
                self._right_at = now
            self._missed = missing
            if decoder.wants_feedback(now, 2 * self._back.delay + FRAMES_SECONDS):
                self._back.send(bytes(decoder.feedback()), now)

    # --- the comparing thread ---

    def _compare(self) -> None:
        """Beside the receiver, whose next frame need not wait for x264."""
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._decoded is not None)
                if self._closed:
                    return
                ours, self._decoded = self._decoded, None
                assert ours is not None
                begin = self._clock()
                # a concealed frame may be of a time when the camera took no picture: the last one before it will do
                taken = max((known for known in self._originals if known <= ours.pts), default=None)
                if taken is None:
                    continue
                picture, earned, self._earned = self._originals[taken], self._earned, 0
            size = self._h264.size
            if ours.picture.shape[0] != size:  # a square camera that is coded whole comes out at its own size
                ours = replace(ours, picture=resize(ours.picture, size, size))
            whole = Square.covering(picture.image.shape[1::-1])
            original = crop(picture.image, ours.square or whole, size)
            theirs = self._h264.show(original, earned, ours.pts / FPS)
            now = self._clock()
            self._show(Comparison(
                original, ours.picture, theirs, picture.mark, picture.captured, picture.encoded, ours.arrived, now
            ))  # fmt: skip
            stages = picture.stages | ours.stages | {
                "network": ours.arrived - picture.encoded, "compare": now - begin, "total": now - picture.captured
            }  # fmt: skip
            with self._lock:
                self._shown.append((now, stages))

    # --- ---

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except NeuralCodecError as error:
            self.problem = str(error)
        except Exception as error:  # a thread must not die in silence: the page says what happened
            self.problem = f"The codec stopped: {type(error).__name__}: {error}"


def _never(_: int) -> bool:
    return False


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Of times: their number, median and 95th percentile, the two in milliseconds."""
    if not seconds:
        return {"count": 0}
    median, p95 = (1000 * float(value) for value in np.quantile(seconds, (0.5, 0.95)))
    return {"count": len(seconds), "median": median, "p95": p95}


def _inside(packet: Packet) -> tuple[Packet, ...]:
    return packet.packets if isinstance(packet, Bundle) else (packet,)


def _since(before: dict[str, float], after: dict[str, float], where: str) -> dict[str, float]:
    """What each stage has spent between two copies of ``Stats.stage_seconds``."""
    return {f"{where} {name}": spent - before.get(name, 0.0) for name, spent in after.items()}

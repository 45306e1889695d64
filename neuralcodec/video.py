"""Film to stream and stream to film: ``encode_file``, ``decode_file``, ``probe``. Runs the two facades; no arithmetic.

A film keeps its frame count and times through both. A damaged or cut stream still gives every frame that can be shown:
they are written first, then the error is raised.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

from .avatar import Avatar
from .container import ContainerReader, ContainerWriter
from .decoder import DecodedFrame, Decoder
from .encoder import Encoder
from .errors import BitstreamError, MediaError, MissingReferenceError, NoFaceError, SigningError, TruncatedError
from .face import resize
from .film import Film
from .fragments import Assembler
from .media import VideoReader, VideoWriter, check_input, check_output, output_path, reason
from .motion import Array, View
from .pack import Pack
from .packet import (
    DIMENSION_MAX,
    FORMAT_VERSION,
    GROUP_MAX,
    SIGNED,
    End,
    Motion,
    Packet,
    ReferencePart,
    StreamHeader,
    Update,
)
from .rate import WINDOW_SECONDS
from .reference import BACKDROP

# Of a file, for which nobody waits: frames that share a packet save up to 3 bytes each, and frames that wait for the
# pictures after them are shown from the nearer of two.
FRAMES_PER_PACKET, LOOKAHEAD = 8, 12

Progress = Callable[[int, int], None]  # frames done, frames in all (0: not known)


@dataclass(frozen=True)
class FileStats:
    """What a file job did. Bytes are those of the .ncv file; overhead is all that is neither picture nor motion."""

    frames: int
    duration_s: float
    bytes_total: int
    bytes_reference: int
    bytes_motion: int
    bytes_overhead: int
    references: int = 0  # pictures coded on their own
    updates: int = 0  # pictures predicted from those before
    concealed: int = 0  # frames made without their packet
    unshown: int = 0  # frames of a stream that come before the first picture to show them with; not among `frames`
    clamped: int = 0  # frames shown with less of a view than was asked for
    face_lost: int = 0  # frames in which the encoder saw no face
    damaged: int = 0  # pieces of the film that are not whole: shown as far as they can be, or left out
    missing_s: float = 0.0  # seconds by which the film ends before the end that it announces
    provider: str = ""  # what ran the networks
    elapsed_s: float = 0.0
    stage_ms: dict[str, float] = field(default_factory=dict)  # mean per frame

    @property
    def kbps(self) -> float:
        return self.bytes_total * 8 / 1000 / self.duration_s if self.duration_s else 0.0

    @property
    def bytes_per_frame(self) -> float:
        """Mean motion payload."""
        return self.bytes_motion / self.frames if self.frames else 0.0


# --- film to stream --------------------------------------------------------------------------------------------------


def encode_file(
    src: str | Path,
    dst: str | Path,
    *,
    target_kbps: float = 4.0,
    pack: str | Path | Pack | None = None,
    device: str = "auto",
    crop: str | Sequence[int] = "auto",
    full_frame: bool = False,
    avatar: Avatar | None = None,
    threads: int | None = None,
    signing_key: Any = None,
    frames_per_packet: int = FRAMES_PER_PACKET,
    lookahead: int = LOOKAHEAD,
    constant_rate: bool = False,
    window: float = WINDOW_SECONDS,
    refine: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FileStats:
    """Code the film ``src`` as the .ncv file ``dst``; see :class:`Encoder` for the options.

    The target is kept on average over the film; constant_rate: in any two seconds, as in a call and for an avatar.
    window: seconds in place of these two, 1 to 60. A wrong option: ValueError.
    """
    started = perf_counter()
    check_output(dst, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(VideoReader(src))
        _refuse_same_file(src, dst)
        if Path(dst).suffix.lower() != ".ncv":
            raise MediaError(f"{dst} does not end in .ncv, as a stream's name must: no player opens it as a film.")
        if max(reader.width, reader.height) > DIMENSION_MAX:
            found = f"{reader.width} x {reader.height}"
            raise MediaError(f"{src} is {found} pixels; a stream carries at most {DIMENSION_MAX} on a side.")
        on_average = not constant_rate and avatar is None
        passed = _Passes(progress, reader.frames, 1 + on_average)
        film: Film | None = None
        if on_average:
            film = Film(passed.over(stack.enter_context(VideoReader(src))), reader.announced_s)
        encoder = Encoder(
            target_kbps, pack=pack, device=device, crop=crop, time_base=reader.time_base,
            frame_duration=reader.frame_duration, full_frame=full_frame, gray=reader.gray and avatar is None,
            avatar=avatar, threads=threads, repeat_header=False, signing_key=signing_key,
            frames_per_packet=frames_per_packet, lookahead=lookahead, film=film, window=window, refine=refine,
        )  # fmt: skip
        with output_path(dst, overwrite=overwrite) as temporary:
            with open(temporary, "wb") as file:
                packets = _encoded(encoder, passed.over(reader))
                header = next(packets)
                assert isinstance(header, StreamHeader)  # an encoder speaks of itself first
                writer = ContainerWriter(file, header)
                for packet in packets:
                    writer.write(packet)
            if not encoder.stats.references:
                square = crop if isinstance(crop, str) else ",".join(map(str, crop))
                where = "" if square in ("auto", "none") else f" in the square {square}"
                raise NoFaceError(f"No face was found{where} in any of the {encoder.stats.frames} frames of {src}.")
        counted = _Counted(dst)
        stats = encoder.stats
        return counted.stats(
            face_lost=stats.face_lost_frames, damaged=reader.damaged, missing_s=reader.missing_s,
            provider=stats.provider, elapsed_s=perf_counter() - started, stage_ms=dict(stats.stage_ms),
        )  # fmt: skip


def _encoded(encoder: Encoder, frames: Iterable[tuple[int, Array]]) -> Iterator[Packet]:
    for pts, image in frames:
        yield from encoder.encode(image, pts)
    yield from encoder.flush()


class _Passes:
    """Progress of passes over the same frames that go on side by side, as of one."""

    def __init__(self, progress: Progress | None, frames: int, passes: int) -> None:
        self._progress, self._frames, self._passes = progress, frames, passes
        self._done = 0

    def over(self, frames: Iterable[tuple[int, Array]]) -> Iterator[tuple[int, Array]]:
        for frame in frames:
            yield frame
            self._done += 1
            if self._progress and not self._done % self._passes:
                self._progress(self._done // self._passes, self._frames)


# --- stream to film --------------------------------------------------------------------------------------------------


def decode_file(
    src: str | Path,
    dst: str | Path,
    *,
    pack: str | Path | Pack | None = None,
    device: str = "auto",
    view: View | None = None,
    eye_contact: bool = False,
    smooth: bool = False,
    full_frame: bool | None = None,
    loss: float = 0.0,
    burst: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
    trusted_sender: Any = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FileStats:
    """Show the .ncv file ``src`` as the film ``dst`` (.mp4).

    view, eye_contact, smooth: see :class:`Decoder`.
    full_frame: paste the face back (None: when the stream carries its surroundings).
    loss, burst, seed: lose this share of the motion packets, in runs of ``burst`` on average, and conceal them.
    A file has no way to ask again, so the header, the references and the first motion always arrive.
    trusted_sender: an Ed25519 public key; pictures it did not sign are not shown, and SigningError says so at the end.
    A cut or damaged file raises its BitstreamError after the frames that could be shown have been written.
    """
    started = perf_counter()
    check_output(dst, overwrite=overwrite)
    counted = _Counted(src)
    _refuse_same_file(src, dst)
    header = counted.header
    if full_frame and not header.full_frame:
        raise MediaError(f"{src} carries only the face; encode it with --full-frame (full_frame=True) first.")
    decoder = Decoder(
        pack=pack, device=device, full_frame=full_frame, view=view, eye_contact=eye_contact, smooth=smooth,
        threads=threads, trusted_sender=trusted_sender, max_pixels=DIMENSION_MAX**2,
    )  # fmt: skip
    channel = _Channel(loss, burst, seed)
    damaged = 0
    with contextlib.ExitStack() as stack:
        writer: VideoWriter | None = None
        for packet, times in counted.packets():
            # Lost before anything is shown, motion could not be concealed, and the film would begin at the next intra
            # frame, seconds later: so the first that can be shown arrives.
            delivered = packet is not None and (channel.delivers(packet) or writer is None)
            frames, broken = _shown(decoder, packet, times, delivered=delivered)
            damaged += broken
            for frame in frames:
                if writer is None:
                    size = frame.image.shape[1], frame.image.shape[0]
                    tick, step = Fraction(*header.time_base), header.frame_duration
                    writer = VideoWriter(dst, *size, tick, frame_duration=step, overwrite=overwrite)
                    stack.enter_context(writer)
                writer.write(resize(frame.image, *writer.size), frame.pts)
                if progress:
                    progress(writer.frames, counted.frames)
        damaged += len(counted.skipped)
        rejected = decoder.stats.rejected_references
        if writer is None and rejected:
            raise SigningError(f"{src} is not signed by the trusted sender: none of its pictures may be shown.")
        if writer is None:
            problem = counted.problem
            if problem is not None:
                said = f"{src} is damaged or cut, and no frame can be shown: {problem}."
                raise type(problem)(said, rule=problem.rule, offset=problem.offset)
            if decoder.stats.damaged_references or damaged:
                raise BitstreamError(f"{src} is damaged: none of its pictures can be decoded, so nothing can be shown.")
            raise MediaError(f"{src} holds no frame that can be shown.")
    unused = 0 if rejected else counted.pictures - decoder.stats.references - decoder.stats.updates
    _raise_late(src, dst, writer.frames, counted.problem, damaged, unused)
    if rejected:
        raise SigningError(
            f"{rejected} of the pictures in {src} are not signed by the trusted sender and were not shown; "
            f"the {writer.frames} frames in {dst} go without them."
        )
    stats = decoder.stats
    return counted.stats(
        writer.frames, concealed=stats.concealed_frames, clamped=stats.clamped_frames, provider=stats.provider,
        elapsed_s=perf_counter() - started, stage_ms=dict(stats.stage_ms),
    )  # fmt: skip


def _shown(
    decoder: Decoder, packet: Packet | None, times: list[int], *, delivered: bool
) -> tuple[Iterator[DecodedFrame], bool]:
    """A frame for each of ``times``, concealed where the packet is lost or of no use; and whether it was damaged.

    The file knows every frame's time; a decoder that missed a packet has to guess the times after it, so ours win.
    """
    frames: list[DecodedFrame] = []
    broken = False
    if packet is not None and delivered:
        try:
            frames = decoder.decode(bytes(packet))
        except BitstreamError:
            broken = True
    if len(frames) != len(times):
        return _concealed(decoder, times), broken
    return (replace(frame, pts=pts) for frame, pts in zip(frames, times, strict=True)), broken


def _concealed(decoder: Decoder, times: list[int]) -> Iterator[DecodedFrame]:
    """Made as they are asked for: of a damaged file thousands may be missing in one place."""
    with contextlib.suppress(MissingReferenceError):  # nothing shown yet: the film starts later
        for pts in times:
            yield decoder.conceal(pts)


def _raise_late(
    src: str | Path, dst: str | Path, frames: int, problem: BitstreamError | None, damaged: int, unused: int
) -> None:
    saved = f"the {frames} frames that could be shown are in {dst}"
    if isinstance(problem, TruncatedError):
        raise TruncatedError(f"{src} was cut short; {saved}.", rule=problem.rule, offset=problem.offset)
    if problem:
        raise BitstreamError(f"{src} is damaged: {problem}; {saved}.", rule=problem.rule, offset=problem.offset)
    if damaged or unused > 0:
        found = f"{damaged} packets and {max(0, unused)} pictures were left out"
        raise BitstreamError(f"{src} is damaged: {found}; {saved}.")


class _Channel:
    """Two-state (Gilbert) packet loss: ``loss`` on average, in runs of ``burst`` packets on average, or of as many as
    that much loss takes: at most half of all packets can be lost in runs of one."""

    def __init__(self, loss: float, burst: float, seed: int) -> None:
        if not 0 <= loss < 1 or not 1 <= burst < math.inf:
            raise ValueError(f"loss {loss} and burst {burst}: expected 0 <= loss < 1 and burst >= 1.")
        burst = max(burst, loss / (1 - loss))
        self._stay = 1 - 1 / burst
        self._enter = min(1.0, loss / (burst * (1 - loss)))
        self._random = random.Random(seed)
        self._losing = False

    def delivers(self, packet: Packet) -> bool:
        if not isinstance(packet, Motion):
            return True
        self._losing = self._random.random() < (self._stay if self._losing else self._enter)
        return not self._losing


# --- what is in a stream ---------------------------------------------------------------------------------------------


def probe(path: str | Path) -> dict[str, Any]:
    """What an .ncv file holds, as JSON-ready values; no network runs. ``complete``: its sender said it ends here."""
    counted = _Counted(path)
    stats, header = counted.stats(), counted.header
    problem = str(counted.problem) if counted.problem else None
    if counted.skipped and problem is None:
        problem = f"{len(counted.skipped)} records are damaged, the first: {counted.skipped[0]}"
    if counted.damaged and problem is None:
        problem = f"{counted.damaged} of {stats.references} reference pictures are damaged"
    return {
        "format_version": FORMAT_VERSION,
        "pack": header.pack_id.hex(),
        "width": header.width,
        "height": header.height,
        "size": header.size,
        "fps": round(stats.frames / stats.duration_s, 3) if stats.duration_s else 0.0,
        "frames": stats.frames,
        "duration_s": round(stats.duration_s, 6),
        "time_base": list(header.time_base),
        "references": stats.references,
        "updates": stats.updates,
        "bytes_total": stats.bytes_total,
        "bytes_reference": stats.bytes_reference,
        "bytes_motion": stats.bytes_motion,
        "bytes_overhead": stats.bytes_overhead,
        "kbps": round(stats.kbps, 3),
        "full_frame": header.full_frame,
        "gray": header.gray,
        "complete": counted.complete,
        "problem": problem,
    }


def list_packets(path: str | Path) -> Iterator[dict[str, Any]]:
    """One JSON-ready line for each packet that can be read: kind, bytes in the file, and what its header says."""
    for packet, times in _Counted(path).packets():
        if packet is None:
            continue
        line: dict[str, Any] = {"kind": type(packet).__name__, "bytes": len(bytes(packet))}
        if isinstance(packet, Motion):
            kind = "intra" if packet.intra else "predicted"
            line |= {"coding": kind, "pts": times[0], "frames": packet.frames, "sequence": packet.sequence}
            line |= {"level": packet.level, "components": packet.components, "payload": len(packet.payload)}
            line |= {"as_is": packet.as_is, "light": packet.light}
        elif isinstance(packet, ReferencePart):
            line |= {"reference": packet.reference, "part": f"{packet.index + 1}/{packet.count}"}
            line |= {"codec": packet.codec & ~SIGNED, "signed": bool(packet.codec & SIGNED)}
            line |= {"crop": list(packet.crop), "payload": len(packet.payload)}
        elif isinstance(packet, Update):
            line |= {"reference": packet.reference, "part": f"{packet.index + 1}/{packet.count}"}
            line |= {"signed": packet.signed, "payload": len(packet.payload)}
        yield line


class _Counted:
    """A first pass over a stream's packets (not its pictures): bytes, frames and times, and where it breaks off."""

    def __init__(self, source: str | Path) -> None:
        self.path = path = Path(source)
        self.problem: BitstreamError | None = None
        self.skipped: list[BitstreamError] = []  # what is wrong with records that were left out
        self.reference = self.motion = self.references = self.updates = 0
        self._parts: dict[tuple[int, bytes, int], set[int]] = {}  # by id, hash, count: of pictures to show frames from
        self._assembler = Assembler()
        self.complete = False
        self._times: list[int] = []
        check_input(path, "an .ncv file")
        try:
            self.total = path.stat().st_size
            with open(path, "rb") as file:
                self.header = ContainerReader(file).header
        except OSError as error:
            raise MediaError(f"Cannot read {path}: {reason(error)}.") from error
        except BitstreamError as error:
            raise type(error)(f"{path}: {error}.", rule=error.rule, offset=error.offset) from error
        for packet, times in self.packets():
            self._count(packet, times)
        if not self.complete and self.problem is None and not self.skipped:
            self.problem = TruncatedError("the end mark is missing", offset=self.total)

    def packets(self) -> Iterator[tuple[Packet | None, list[int]]]:
        """Every packet that can be read with the times of its frames, and None with those of frames whose record is
        damaged (``skipped``); ends where the next record cannot be found (``problem``)."""
        self.skipped.clear()
        step, last, following = self.header.frame_duration, 0, None
        frames = known = 0  # before this packet, and how many records were damaged until the last motion
        with open(self.path, "rb") as file:
            try:
                for packet in ContainerReader(file, self.skipped.append):
                    lost, times, skipped = 0, [], len(self.skipped) - known
                    if isinstance(packet, Motion):
                        if skipped and following is not None:
                            lost = (packet.sequence - following) % 256
                        start = last + lost * step + (packet.pts_step or step) if packet.pts is None else packet.pts
                        if lost > skipped * GROUP_MAX or (following is not None and start <= last):
                            self.skipped.append(BitstreamError("motion that does not follow the motion before it"))
                            continue
                        times = [start + index * step for index in range(packet.frames)]
                        following, known = (packet.sequence + packet.frames) % 256, len(self.skipped)
                    elif isinstance(packet, End) and skipped and frames:
                        lost = packet.frames - frames if packet.frames - frames <= skipped * GROUP_MAX else 0
                    missing = [last + index * step for index in range(1, lost + 1)]
                    missing = [pts for pts in missing if not times or pts < times[0]]
                    if missing:
                        yield None, missing
                    frames += len(missing) + len(times)
                    last = times[-1] if times else last
                    yield packet, times
            except BitstreamError as problem:
                self.problem = problem

    def _count(self, packet: Packet | None, times: list[int]) -> None:
        self._times += times
        if isinstance(packet, ReferencePart):
            self.reference += len(packet.payload)
            self.references += packet.index == 0
            self._assembler.add(packet)
            if packet.codec & ~SIGNED != BACKDROP:
                self._count_part(packet)
        elif isinstance(packet, Update):
            self.reference += len(packet.payload)
            self.updates += packet.index == 0
            self._count_part(packet)
        elif isinstance(packet, Motion):
            self.motion += len(packet.payload)
        elif isinstance(packet, End):
            self.complete = True

    def _count_part(self, part: ReferencePart | Update) -> None:
        self._parts.setdefault((part.reference, part.hash, part.count), set()).add(part.index)

    @property
    def frames(self) -> int:
        return len(self._times)

    @property
    def damaged(self) -> int:
        """Pictures that stand on their own and are not what was sent; of updates only decoding tells."""
        return self._assembler.damaged

    @property
    def pictures(self) -> int:
        """Those that are whole: a finer key may be on its way, in parts, when a stream ends."""
        return sum(len(found) == count for (_, _, count), found in self._parts.items())

    def stats(self, shown: int | None = None, **further: Any) -> FileStats:
        """Of all frames, or of the last ``shown``: those before them had no picture yet."""
        times = self._times if shown is None else self._times[len(self._times) - shown :]
        ticks = times[-1] - times[0] + self.header.frame_duration if times else 0
        return FileStats(
            len(times), float(ticks * Fraction(*self.header.time_base)), self.total, self.reference, self.motion,
            self.total - self.reference - self.motion, references=self.references, updates=self.updates,
            unshown=self.frames - len(times), **further,
        )  # fmt: skip


def _refuse_same_file(src: str | Path, dst: str | Path) -> None:
    if Path(dst).exists() and Path(src).samefile(dst):
        raise MediaError(f"{dst} is the input itself; give the output another name.")

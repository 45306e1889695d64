"""The command ``neuralcodec``: flags in, one library call, results on stdout, progress and errors on stderr.

Exit code 0: done. 1: failed, with one sentence. 2: wrong usage. Knows no codec: each command calls a tested function.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import BackendUnavailableError, MediaError, NeuralCodecError

if TYPE_CHECKING:
    from .avatar import Avatar
    from .video import FileStats, Progress


INTERRUPTED = "Interrupted: nothing was written."
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
UNWRITABLE = errno.ENOSPC, errno.EFBIG, errno.EIO  # what becomes of ``> /dev/full``


def program() -> None:
    """The command line as a process of its own, which ends here with the code of :func:`main`.

    Not through sys.exit: where a Ctrl-C fell into Python code that a C extension was running, CPython ends the process
    by SIGINT later on, whatever code it is given.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file name that its encoding lacks must not end a finished job
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("stdout", "stderr"):  # None where whoever started this has closed it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    code = main()
    with suppress(OSError):  # which main has told of
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    with _terminated_like_interrupted() as interrupts:
        try:
            options = make_parser().parse_args(_with_negatives(sys.argv[1:] if arguments is None else arguments))
            code: int = options.run(options)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return _interrupted()
        except NeuralCodecError as error:
            # a signal that falls into the loading of a C extension comes out of it as an ImportError
            return _interrupted() if interrupts else _fail(str(error))
        except BrokenPipeError:  # `neuralcodec info | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, MemoryError) as error:
            if interrupts:
                return _interrupted()
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                return _fail(f"Cannot write the output: {error.strerror}.")
            if os.environ.get("NEURALCODEC_DEBUG"):
                raise
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            return _fail(f"Unexpected {text} (NEURALCODEC_DEBUG=1 shows where; please report it).")


def make_parser() -> argparse.ArgumentParser:
    """Every command and flag."""
    parser = argparse.ArgumentParser(prog="neuralcodec", description="Talking-head video at a few kilobits per second.")
    parser.add_argument("--version", action="version", version=f"neuralcodec {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _command(commands, "encode", _encode, "film to .ncv stream (pictures only, sound is not carried)")
    command.add_argument("input", metavar="IN", help="any video file that FFmpeg reads")
    command.add_argument("output", metavar="OUT.ncv")
    command.add_argument("--kbps", type=_kbps, default=4.0, help="target rate, everything counted (default: 4)")
    command.add_argument(
        "--constant-rate", action="store_true", help="keep it in any two seconds, not on average over the film"
    )
    _add_window(command, "with --constant-rate or --avatar: seconds in place of these two")
    command.add_argument(
        "--no-refine", action="store_true", help="do not draw each frame to correct its motion: twice as fast"
    )
    command.add_argument(
        "--crop", type=_crop, default="auto", metavar="auto|none|x,y,side",
        help="follow the face (default), code the whole frame, or a fixed square in pixels",
    )  # fmt: skip
    command.add_argument("--full-frame", action="store_true", help="also send the surroundings, to paste the face into")
    command.add_argument("--sign", metavar="KEY", help="sign every picture with this private key (see keygen)")
    command.add_argument("--avatar", metavar="PICTURE", help="show this picture's person with the film's motion")
    command.add_argument("--consent", metavar="WORDS", help="who agreed to be that avatar; goes with --avatar")
    command.add_argument(
        "--transfer", choices=("relative", "absolute"),
        help="add the motion to the avatar's own pose and expression (default), or take it as it is",
    )  # fmt: skip
    _add_runtime(command)
    _add_force(command)

    command = _command(commands, "decode", _decode, ".ncv stream to .mp4 film")
    command.add_argument("input", metavar="IN.ncv")
    command.add_argument("output", metavar="OUT.mp4")
    command.add_argument("--full-frame", action="store_true", help="insist on the full frame; the stream must carry it")
    command.add_argument("--loss", type=_share, default=0.0, metavar="P", help="lose motion packets: 0.05 or 5%%")
    text = "mean run of lost packets, longer where --loss takes it (default: 1)"
    command.add_argument("--burst", type=_burst, default=1.0, metavar="N", help=text)
    command.add_argument("--seed", type=int, default=0, metavar="S", help="which packets are lost (default: 0)")
    command.add_argument(
        "--trusted-sender", metavar="KEY", help="show no picture that this public key (file or 64 digits) did not sign"
    )
    for angle, sense in (("yaw", "to the right of the picture"), ("pitch", "down"), ("roll", "clockwise")):
        command.add_argument(f"--{angle}", type=_angle, default=0.0, metavar="DEG", help=f"turn the head {sense}")
    for axis, sense in (("x", "to the right"), ("y", "down")):
        text = f"move the head {sense}, as a share of the picture"
        command.add_argument(f"--{axis}", type=_shift, default=0.0, metavar="SHARE", help=text)
    command.add_argument(
        "--frontal", action="store_true",
        help="face the camera whatever the sender does; angles then count from there",
    )  # fmt: skip
    command.add_argument("--eye-contact", action="store_true", help="bring the eyes onto the lens as far as is natural")
    command.add_argument("--smooth", action="store_true", help="calm the trembling of pose and expression")
    _add_runtime(command)
    _add_force(command)

    command = _command(commands, "info", _info, "what an .ncv file holds")
    command.add_argument("input", metavar="FILE")
    command.add_argument("--packets", action="store_true", help="list every packet")
    command.add_argument("--json", action="store_true", help="one JSON object")

    command = _command(commands, "keygen", _keygen, "a key pair to sign pictures with")
    command.add_argument("output", metavar="KEY", help="the private key's file; the public one gets .pub added")

    command = _command(commands, "pack", None, "model packs")
    verbs = command.add_subparsers(metavar="list|verify", required=True)
    _command(verbs, "list", _pack_list, "packs inside this installation")
    verb = _command(verbs, "verify", _pack_verify, "check every file of a pack against its manifest")
    verb.add_argument("packs", nargs="*", metavar="PACK", help="folder or name (default: all bundled packs)")

    _command(commands, "doctor", _doctor, "what this machine can run")

    command = _command(commands, "demo", _demo, "code a bundled portrait that moves; needs no file and no network")
    command.add_argument("--out", default="neuralcodec-demo", metavar="DIR", help="where to (default: %(default)s)")
    command.add_argument("--seconds", type=_seconds, default=6.0, metavar="N", help="length of the clip (default: 6)")
    command.add_argument("--kbps", type=_kbps, default=4.0, help="target rate (default: 4)")
    _add_runtime(command)
    _add_force(command)

    command = _command(commands, "call", _call, "a page that shows the codec on your own camera, in your browser")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    command.add_argument("--port", type=_port, default=8475, help="0 takes any free one (default: %(default)s)")
    command.add_argument("--kbps", type=_call_kbps, default=8.0, help="target rate, headers included (default: 8)")
    _add_window(command, "seconds in which the rate is kept")
    command.add_argument("--sessions", type=_count, default=4, metavar="N", help="calls at a time (default: 4)")
    command.add_argument(
        "--ort", metavar="DIR", help="onnxruntime-web's dist folder: the page can then decode by itself"
    )
    command.add_argument("--open", action="store_true", help="open the page in the default browser")
    _add_runtime(command)
    return parser


# --- commands --------------------------------------------------------------------------------------------------------


def _encode(options: argparse.Namespace) -> int:
    from .rate import WINDOW_SECONDS
    from .video import encode_file

    try:
        avatar = _avatar(options)
    except ValueError as error:
        return _fail(str(error))
    if options.window and not (options.constant_rate or avatar):
        return _fail("--window goes with --constant-rate or --avatar: else the rate is kept on average over the film.")
    with _progress("Encoding") as progress:
        stats = encode_file(
            options.input, options.output, target_kbps=options.kbps, pack=options.pack, device=options.device,
            crop=options.crop, full_frame=options.full_frame, avatar=avatar, threads=options.threads,
            signing_key=options.sign, constant_rate=options.constant_rate, refine=not options.no_refine,
            window=options.window or WINDOW_SECONDS, overwrite=options.force, progress=progress,
        )  # fmt: skip
    print(_summary(options.output, stats))
    if stats.face_lost:
        print(f"No face in {stats.face_lost} of {stats.frames} frames: shown as stills.", file=sys.stderr)
    if stats.damaged:
        print(
            f"{stats.damaged} pieces of {options.input} are damaged: shown as far as they can be, or left out.",
            file=sys.stderr,
        )
    if stats.missing_s:
        print(
            f"{options.input} ends {stats.missing_s:.2f} s before the end that it announces: it may be cut.",
            file=sys.stderr,
        )
    return 0


def _avatar(options: argparse.Namespace) -> Avatar | None:
    if options.avatar is None and options.consent is None and options.transfer is None:
        return None
    if options.avatar is None or options.consent is None or options.full_frame:
        raise ValueError(
            "--avatar PICTURE and --consent WORDS go together, --transfer only with them, and none with --full-frame."
        )
    from .avatar import Avatar
    from .media import read_frames

    try:
        _, picture = next(read_frames(options.avatar))
    except MediaError as error:
        raise MediaError(f"--avatar takes a picture of one face, or a film that begins with it: {error}") from error
    return Avatar(picture, options.consent, options.transfer or "relative")


def _decode(options: argparse.Namespace) -> int:
    from .motion import View
    from .video import decode_file

    with _progress("Decoding") as progress:
        stats = decode_file(
            options.input, options.output, pack=options.pack, device=options.device,
            view=View(options.yaw, options.pitch, options.roll, options.x, options.y, options.frontal),
            eye_contact=options.eye_contact, smooth=options.smooth, full_frame=options.full_frame or None,
            loss=options.loss, burst=options.burst, seed=options.seed, threads=options.threads,
            trusted_sender=options.trusted_sender, overwrite=options.force, progress=progress,
        )  # fmt: skip
    concealed = f", {stats.concealed} concealed" if stats.concealed else ""
    print(_summary(options.output, stats) + concealed)
    if stats.unshown:
        print(
            f"{stats.unshown} more frames come before the first picture in {options.input} and could not be shown.",
            file=sys.stderr,
        )
    if stats.clamped:
        print(f"The view was clamped to the pack's range in {stats.clamped} of {stats.frames} frames.", file=sys.stderr)
    return 0


def _summary(path: str, stats: FileStats) -> str:
    speed = f", {stats.frames / stats.elapsed_s:.1f} fps on {stats.provider}" if stats.elapsed_s else ""
    return (
        f"{path}: {stats.frames} frames, {stats.duration_s:.2f} s, {stats.bytes_total} bytes, {stats.kbps:.2f} kbit/s "
        f"({stats.references} references and {stats.updates} updates {stats.bytes_reference} B, "
        f"motion {stats.bytes_per_frame:.2f} B a frame, overhead {stats.bytes_overhead} B){speed}"
    )


def _info(options: argparse.Namespace) -> int:
    from .video import list_packets, probe

    found = probe(options.input)
    packets = list(list_packets(options.input)) if options.packets else []
    if options.json:
        print(json.dumps(found | ({"packets": packets} if options.packets else {})))
    else:
        for name, value in found.items():
            print(f"{name:<16} {value}")
        for index, packet in enumerate(packets):
            print(f"{index:>6} {packet['kind']:<14}", *(f"{k}={v}" for k, v in packet.items() if k != "kind"))
    return _fail(f"{options.input} is not whole: {found['problem']}.") if found["problem"] else 0


def _keygen(options: argparse.Namespace) -> int:
    from .signing import generate_key

    public = generate_key(options.output)
    print(f"{options.output}: the private key; keep it to yourself")
    print(f"{options.output}.pub: the public key, for receivers: {public}")
    return 0


def _pack_list(options: argparse.Namespace) -> int:
    from .pack import bundled_packs, load_pack

    for name in bundled_packs():
        pack = load_pack(name)
        print(f"{pack.name} {pack.version}  id {pack.id.hex()}  {pack.size} x {pack.size}  {pack.keypoints} keypoints")
    return 0


def _pack_verify(options: argparse.Namespace) -> int:
    from .pack import bundled_packs, check_graphs, load_pack

    for source in options.packs or list(bundled_packs()):
        pack = load_pack(source)
        pack.tables  # noqa: B018  # parses them
        opened = ""
        try:
            check_graphs(pack)
        except BackendUnavailableError:
            opened = " (graphs not opened: onnxruntime cannot be used)"
        match = f"{len(pack.files)} files match the manifest{opened}"
        print(f"{source}: {pack.name} {pack.version}, id {pack.id.hex()}, {match}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    return 0 if examine(print) else _fail("Encoding and decoding cannot run here; see the lines marked !! above.")


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo

    with _progress("Demo") as progress:
        result = run_demo(
            options.out, seconds=options.seconds, target_kbps=options.kbps, pack=options.pack, device=options.device,
            threads=options.threads, overwrite=options.force, progress=progress,
        )  # fmt: skip
    from rich.console import Console
    from rich.table import Table

    table = Table("", "kbit/s", "PSNR dB", "MS-SSIM", title=f"{result.frames} frames of 256 x 256 at 25 fps")
    for row in result.rows:
        table.add_row(row.name, f"{row.kbps:.2f}", f"{row.psnr:.2f}", f"{row.ms_ssim:.4f}")
    times = Table("stage", "ms a frame", title=f"Time per stage on {result.provider}")
    for stage, spent in result.stage_ms.items():
        times.add_row(stage, f"{spent:.2f}")
    console = Console()
    console.print(table, times)
    console.print(f"Look at {result.video} and {result.picture}", soft_wrap=True, highlight=False)
    return 0


def _call(options: argparse.Namespace) -> int:
    import webbrowser
    from pathlib import Path

    from .call.server import ServerOptions, serve
    from .rate import WINDOW_SECONDS

    def ready(address: str) -> None:
        print(f"Open {address} in a browser; Ctrl-C ends.", flush=True)
        if options.open:
            webbrowser.open(address)

    serve(
        ServerOptions(
            options.host, options.port, options.kbps, options.sessions, options.pack, options.device, options.threads,
            Path(options.ort) if options.ort else None, options.window or WINDOW_SECONDS,
        ),
        ready,
    )  # fmt: skip
    return 0


# --- flags -----------------------------------------------------------------------------------------------------------


def _with_negatives(arguments: Sequence[str]) -> list[str]:
    """A square that begins left of the picture, or a number such as -1e1, reads as a flag to argparse, unless it stands
    behind a '='."""
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch("--[a-z-]+", joined[-1]) and re.match(r"-\.?\d", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int] | None, text: str) -> Any:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    if run:
        command.set_defaults(run=run)
    return command


def _add_runtime(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", choices=("auto", "cpu", "cuda", "tensorrt", "ort-tensorrt"), default="auto")
    command.add_argument("--pack", help="folder or name of a model pack (default: the bundled one)")
    command.add_argument("--threads", type=_threads, help="CPU threads for the networks (default: one a core)")


def _add_window(command: argparse.ArgumentParser, text: str) -> None:
    trade = "in longer ones a movement gets what a rest has left, and the link must let as much pass at once"
    command.add_argument("--window", type=_window, metavar="SECONDS", help=f"{text} (default: 2); {trade}")


def _add_force(command: argparse.ArgumentParser) -> None:
    command.add_argument("-f", "--force", action="store_true", help="replace the output if it exists")


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} between {low:g} and {high:g}")
    return value


def _kbps(text: str) -> float:
    return _number(text, 0.5, 1000, "a rate in kbit/s")


def _angle(text: str) -> float:
    return _number(text, -90, 90, "an angle in degrees")


def _shift(text: str) -> float:
    return _number(text, -1, 1, "a share of the picture")


def _burst(text: str) -> float:
    return _number(text, 1, 1000, "a number of packets")


def _seconds(text: str) -> float:
    return _number(text, 0.04, 600, "a length in seconds")


def _window(text: str) -> float:
    return _number(text, 1, 60, "a length in seconds")


def _whole(text: str, low: int, high: int, what: str) -> int:
    value = _number(text, low, high, what)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}: expected a whole number")
    return int(value)


def _threads(text: str) -> int:
    return _whole(text, 1, 1024, "a number of threads")


def _port(text: str) -> int:
    return _whole(text, 0, 65535, "a port")


def _count(text: str) -> int:
    return _whole(text, 1, 64, "a number of calls")


def _call_kbps(text: str) -> float:
    return _number(text, 0.5, 64, "a rate in kbit/s")


def _share(text: str) -> float:
    return _number(text[:-1], 0, 99, "a percentage") / 100 if text.endswith("%") else _number(text, 0, 0.99, "a share")


def _crop(text: str) -> str:
    if text in ("auto", "none"):  # the default too: usage and help load no codec library
        return text
    from .face import CropFollower

    try:
        CropFollower.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


# --- terminal --------------------------------------------------------------------------------------------------------


def _fail(sentence: str) -> int:
    print(f"neuralcodec: {sentence}", file=sys.stderr)
    return 1


def _interrupted() -> int:
    """All is cleaned up: what a second signal could interrupt is this sentence."""
    with suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return _fail(INTERRUPTED)


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on stderr while it is a terminal, silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextmanager
def _terminated_like_interrupted() -> Iterator[list[int]]:
    """A polite kill or a closed terminal cleans up as Ctrl-C does; yields the signals that came, in order."""
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # else what the first one set off is cleaning up
            raise KeyboardInterrupt

    try:
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = [(number, signal.signal(number, interrupt)) for number in heard]
    except ValueError:  # not the main thread
        yield came
        return
    try:
        yield came
    finally:
        for number, handler in before:
            signal.signal(number, handler)

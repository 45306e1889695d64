"""The command line as a user meets it: output, exit codes, one sentence for every failure, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import portrait as drawn_portrait

from neuralcodec import __version__, cli
from neuralcodec.cli import main, make_parser
from neuralcodec.container import ContainerWriter
from neuralcodec.doctor import OPTIONAL
from neuralcodec.encoder import WINDOWS
from neuralcodec.errors import MediaError
from neuralcodec.media import VideoReader, VideoWriter
from neuralcodec.motion import View
from neuralcodec.pack import load_pack
from neuralcodec.packet import End, Motion, StreamHeader
from neuralcodec.rate import WINDOW_SECONDS
from neuralcodec.video import FileStats

ROOT = Path(__file__).parents[1]


def failed_with_one_sentence(capsys: pytest.CaptureFixture[str], words: str) -> bool:
    out, err = capsys.readouterr()
    return out == "" and err.startswith("neuralcodec: ") and err.count("\n") == 1 and words in err


def stream(path: Path, *, cut: int = 0) -> Path:
    """A stream of five frames that no network is needed to list."""
    with open(path, "wb") as file:
        writer = ContainerWriter(file, StreamHeader(bytes(8), 640, 480, (1, 25), 1, 256))
        writer.write(Motion(0, 2, 3, b"abcdef", intra=True, reference=0, pts=100))
        for sequence in range(1, 5):
            writer.write(Motion(sequence, 2, 3, b"xyz"))
        writer.write(End(5))
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("skimage")
    path = tmp_path_factory.mktemp("film") / "portrait.mp4"
    with VideoWriter(path, 256, 256, Fraction(1, 25)) as writer:
        for pts, image in enumerate(drawn_portrait(6)):
            writer.write(image, pts)
    return path


def test_round_trip(portrait: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coded, shown = str(tmp_path / "a.ncv"), str(tmp_path / "a.mp4")
    assert main(["encode", str(portrait), coded, "--kbps", "6", "--device", "cpu", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{coded}: 6 frames, 0.24 s, {os.path.getsize(coded)} bytes") and "kbit/s" in out
    assert out.count("\n") == 1 and err == ""
    assert main(["decode", coded, shown, "--device", "cpu", "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{shown}: 6 frames")
    with VideoReader(shown) as reader:
        assert (reader.frames, reader.width, reader.height) == (6, 256, 256)
    assert main(["info", coded, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 6 and found["fps"] == 25 and found["pack"] == load_pack().id.hex()

    assert main(["encode", str(portrait), coded]) == 1
    assert failed_with_one_sentence(capsys, "exists already; -f")
    (tmp_path / "cut.ncv").write_bytes(Path(coded).read_bytes()[:-4])
    assert main(["decode", str(tmp_path / "cut.ncv"), shown, "-f", "--device", "cpu"]) == 1
    assert failed_with_one_sentence(capsys, "cut short; the 1 frames that could be shown are in")
    with VideoReader(shown) as reader:
        assert reader.frames == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.ncv", "cut.ncv"]


def test_a_cut_film_is_coded_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import av

    pytest.importorskip("skimage")
    path, coded = tmp_path / "a.mkv", tmp_path / "a.ncv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "g": "5", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for image in drawn_portrait(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert main(["encode", str(path), str(coded), "--device", "cpu", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{coded}: ") and f"{path} ends 0." in err and "before the end that it announces" in err


def test_info_lists_a_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stream(tmp_path / "a.ncv")
    assert main(["info", str(path), "--packets"]) == 0
    out = capsys.readouterr().out
    assert "frames           5" in out and "640" in out and "coding=intra pts=100" in out
    assert out.count("coding=predicted") == 4 and "End" in out
    assert main(["info", str(path), "--json"]) == 0 and "packets" not in json.loads(capsys.readouterr().out)
    assert main(["info", str(path), "--json", "--packets"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [packet["pts"] for packet in found["packets"] if packet["kind"] == "Motion"] == [100, 101, 102, 103, 104]
    assert found["duration_s"] == 0.2 and found["bytes_motion"] == 18


def test_info_of_a_cut_stream_tells_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(stream(tmp_path / "a.ncv", cut=4)), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["frames"] == 4 and json.loads(out)["complete"] is False
    assert err.startswith("neuralcodec: ") and "is not whole" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "none.mp4", "out.ncv"],
        ["encode", "text.mp4", "out.ncv"],
        ["encode", ".", "out.ncv"],
        ["encode", "text.mp4", "no/such/folder/out.ncv"],
        ["decode", "none.ncv", "out.mp4"],
        ["decode", "text.mp4", "out.mp4"],
        ["decode", "empty.ncv", "out.mp4"],
        ["info", "none.ncv"],
        ["info", "text.mp4"],
        ["info", "."],
        ["pack", "verify", "none"],
        ["pack", "verify", "."],
        ["demo", "--out", "text.mp4"],
    ],
)
def test_failures_are_one_sentence_and_leave_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("words " * 300)
    (tmp_path / "empty.ncv").touch()
    assert main(arguments) == 1
    assert failed_with_one_sentence(capsys, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.ncv", "text.mp4"]


def test_no_face_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with VideoWriter(tmp_path / "grey.mp4", 160, 120, Fraction(1, 25)) as writer:
        for pts in range(3):
            writer.write(np.full((120, 160, 3), 100, np.uint8), pts)
    assert main(["encode", str(tmp_path / "grey.mp4"), str(tmp_path / "a.ncv"), "--device", "cpu"]) == 1
    assert failed_with_one_sentence(capsys, "No face was found in any of the 3 frames")
    square = ["--crop", "5000,5000,100"]
    assert main(["encode", str(tmp_path / "grey.mp4"), str(tmp_path / "a.ncv"), "--device", "cpu", *square]) == 1
    assert failed_with_one_sentence(capsys, "No face was found in the square 5000,5000,100 in any of the 3 frames")
    assert [path.name for path in tmp_path.iterdir()] == ["grey.mp4"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["transmogrify"],
        ["encode"],
        ["encode", "a.mp4"],
        ["encode", "a.mp4", "a.ncv", "--kbps", "fast"],
        ["encode", "a.mp4", "a.ncv", "--kbps", "0.1"],
        ["encode", "a.mp4", "a.ncv", "--crop", "left"],
        ["encode", "a.mp4", "a.ncv", "--crop", "1,2"],
        ["encode", "a.mp4", "a.ncv", "--device", "abacus"],
        ["decode", "a.ncv", "a.mp4", "--loss", "1.5"],
        ["decode", "a.ncv", "a.mp4", "--yaw", "nan"],
        ["decode", "a.ncv", "a.mp4", "--x", "2"],
        ["encode", "a.mp4", "a.ncv", "--transfer", "magic"],
        ["decode", "a.ncv", "a.mp4", "--threads", "0"],
        ["decode", "a.ncv", "a.mp4", "--threads", "1.5"],
        ["decode", "a.ncv", "a.mp4", "--loss", "1"],
        ["decode", "a.ncv", "a.mp4", "--loss", "100%"],
        ["decode", "a.ncv", "a.mp4", "--burst", "0.5"],
        ["encode", "a.mp4", "a.ncv", "--kbps", "0.4"],
        ["encode", "a.mp4", "a.ncv", "--constant-rate", "--window", "0.9"],
        ["call", "--window", "61"],
        ["pack"],
        ["demo", "--seconds", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "usage: neuralcodec" in err


@pytest.mark.parametrize("crop", [["--crop", "-20,-20,300"], ["--crop=-20,-20,300"], ["--crop", "5,-20,300"]])
def test_a_square_may_begin_outside_the_picture(crop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "none.mp4", "a.ncv", *crop, "--kbps", "4"]) == 1
    assert failed_with_one_sentence(capsys, "none.mp4 does not exist")


def test_numbers_below_zero_may_be_written_as_pleases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "none.ncv", "a.mp4", "--yaw", "-1e1", "--x", "-.1"]) == 1
    assert failed_with_one_sentence(capsys, "none.ncv does not exist")
    with pytest.raises(SystemExit):
        main(["encode", "in.mp4", "a.ncv", "--kbps", "-4e0"])
    assert "'-4e0' is not a rate in kbit/s between 0.5 and 1000" in capsys.readouterr().err


def test_flags_of_the_design_are_understood() -> None:
    words = "encode in out --kbps 2.5 --device cpu --pack p --crop 1,2,300 --full-frame --threads 2 -f"
    o = make_parser().parse_args(words.split())
    assert (o.kbps, o.device, o.pack, o.crop) == (2.5, "cpu", "p", "1,2,300")
    assert (o.full_frame, o.threads, o.force) == (True, 2, True)
    words = "decode in out --loss 5% --burst 3 --seed 9 --yaw -10 --pitch 4 --roll 1"
    o = make_parser().parse_args(words.split())
    assert (o.loss, o.burst, o.seed, o.yaw, o.pitch, o.roll) == (0.05, 3, 9, -10, 4, 1)
    assert not (o.frontal or o.eye_contact or o.smooth)
    o = make_parser().parse_args("decode in out --frontal --eye-contact --smooth --x 0.1 --y -0.05 --pitch -5".split())
    assert (o.frontal, o.eye_contact, o.smooth, o.x, o.y, o.pitch) == (True, True, True, 0.1, -0.05, -5)
    o = make_parser().parse_args(["encode", "in", "out", "--avatar", "a.png", "--consent", "she said yes"])
    assert (o.avatar, o.consent, o.transfer) == ("a.png", "she said yes", None)  # None: relative


@pytest.mark.parametrize(
    "flags", [["--avatar", "a"], ["--consent", "yes"], ["--avatar", "a", "--consent", " "], ["--transfer", "absolute"]]
)
def test_an_avatar_without_consent_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    if "--avatar" in flags:
        flags = ["--avatar", str(tmp_path / "a.png"), *flags[2:]]
        Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert main(["encode", "in.mp4", str(tmp_path / "out.ncv"), *flags]) == 1
    assert "consent" in capsys.readouterr().err and not (tmp_path / "out.ncv").exists()


def test_an_avatar_that_is_no_picture_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.key").write_text("secret")
    flags = ["--avatar", str(tmp_path / "a.key"), "--consent", "she said yes"]
    assert main(["encode", "in.mp4", str(tmp_path / "out.ncv"), *flags]) == 1
    assert failed_with_one_sentence(capsys, "--avatar takes a picture of one face")


def told(monkeypatch: pytest.MonkeyPatch, function: str, arguments: list[str], **stats: Any) -> dict[str, Any]:
    """What a command hands to this function of the library, which then says that it did six frames."""
    given: dict[str, Any] = {}

    def note(src: str, dst: str, **options: Any) -> FileStats:
        given.update(options, src=src, dst=dst)
        del given["progress"]
        return FileStats(6, 0.24, 100, 50, 20, 30, **stats)

    monkeypatch.setattr(f"neuralcodec.video.{function}", note)
    assert main(arguments) == 0
    return given


def test_every_flag_of_encode_reaches_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = {
        "src": "in", "dst": "out", "target_kbps": 4.0, "pack": None, "device": "auto", "crop": "auto", "avatar": None,
        "full_frame": False, "threads": None, "signing_key": None, "overwrite": False,
        "constant_rate": False, "window": WINDOW_SECONDS, "refine": True,
    }  # fmt: skip
    assert told(monkeypatch, "encode_file", ["encode", "in", "out"]) == plain
    flags = "--constant-rate --kbps 6 --pack p --device cpu --crop 1,2,300 --full-frame --threads 2 --sign key -f"
    more = ["--window", "6.5", "--no-refine"]
    assert told(monkeypatch, "encode_file", ["encode", "in", "out", *flags.split(), *more]) == {
        "src": "in", "dst": "out", "target_kbps": 6.0, "pack": "p", "device": "cpu", "crop": "1,2,300", "avatar": None,
        "full_frame": True, "threads": 2, "signing_key": "key", "overwrite": True, "constant_rate": True,
        "window": 6.5, "refine": False,
    }  # fmt: skip
    with VideoWriter(tmp_path / "a.mp4", 64, 48, Fraction(1, 25)) as writer:
        writer.write(np.full((48, 64, 3), 90, np.uint8), 0)
    flags = ["--avatar", str(tmp_path / "a.mp4"), "--consent", "she said yes"]
    for further, transfer in (([], "relative"), (["--transfer", "absolute"], "absolute")):
        avatar = told(monkeypatch, "encode_file", ["encode", "in", "out", *flags, *further])["avatar"]
        assert (avatar.picture.shape, avatar.consent, avatar.transfer) == ((48, 64, 3), "she said yes", transfer)
    assert told(monkeypatch, "encode_file", ["encode", "in", "out", *flags, "--window", "6"])["window"] == 6
    assert main(["encode", "in", "out", *flags, "--full-frame"]) == 1


def test_a_window_goes_with_a_constant_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "in.mp4", "a.ncv", "--window", "2"]) == 1
    assert failed_with_one_sentence(capsys, "--window goes with --constant-rate or --avatar")
    for command in (["encode", "in", "out"], ["call"]):
        assert [make_parser().parse_args([*command, "--window", str(most)]).window for most in WINDOWS] == [*WINDOWS]


def test_every_flag_of_decode_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {
        "src": "in", "dst": "out", "pack": None, "device": "auto", "view": View(), "eye_contact": False,
        "smooth": False, "full_frame": None, "loss": 0.0, "burst": 1.0, "seed": 0, "threads": None,
        "trusted_sender": None, "overwrite": False,
    }  # fmt: skip
    assert told(monkeypatch, "decode_file", ["decode", "in", "out"]) == plain
    flags = "--yaw 1 --pitch 2 --roll 3 --x 0.4 --y 0.5 --frontal --loss 5% --burst 3 --seed 9 --trusted-sender key -f"
    assert told(monkeypatch, "decode_file", ["decode", "in", "out", *flags.split(), "--full-frame"]) == plain | {
        "view": View(1, 2, 3, 0.4, 0.5, True), "full_frame": True, "loss": 0.05, "burst": 3, "seed": 9,
        "trusted_sender": "key", "overwrite": True,
    }  # fmt: skip
    for flag, name in (("--eye-contact", "eye_contact"), ("--smooth", "smooth")):
        assert told(monkeypatch, "decode_file", ["decode", "in", "out", flag]) == plain | {name: True}


def test_what_is_missing_from_a_film_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, "encode_file", ["encode", "in", "out"], face_lost=2, damaged=3, missing_s=1.5)
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err.splitlines() == [
        "No face in 2 of 6 frames: shown as stills.",
        "3 pieces of in are damaged: shown as far as they can be, or left out.",
        "in ends 1.50 s before the end that it announces: it may be cut.",
    ]
    told(monkeypatch, "decode_file", ["decode", "in", "out"], concealed=4, clamped=5, unshown=7)
    out, err = capsys.readouterr()
    assert out.endswith(", 4 concealed\n") and err.splitlines() == [
        "7 more frames come before the first picture in in and could not be shown.",
        "The view was clamped to the pack's range in 5 of 6 frames.",
    ]


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--version"], __version__), (["--help"], "doctor"), (["decode", "--help"], "--burst")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0 and words in capsys.readouterr().out


def test_doctor_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert all(line[:4] in ("ok  ", "--  ", "!!  ") for line in lines)
    assert code == (1 if any(line.startswith("!!") for line in lines) else 0)
    assert any("libsvtav1" in line for line in lines) and any("TensorRT" in line for line in lines)
    assert "has not been run on hardware by us" in out
    assert (err == "") == (code == 0)
    assert load_pack().id.hex() in out


def test_doctor_looks_for_what_the_extras_install() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for name, extra in OPTIONAL.items():
        assert name in {re.split("[>=]", requirement)[0] for requirement in extras[extra]}
    assert {"cpu", "gpu", "tensorrt", "demo", "webrtc", "sign"} == set(OPTIONAL.values())


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("sys.modules['av'] = None", "!!  PyAV cannot be loaded"),
        ("sys.modules['onnxruntime'] = None", "!!  the pack's networks cannot be opened: onnxruntime is not installed"),
        ("Empty.__spec__ = ModuleSpec('onnxruntime', None); sys.modules['onnxruntime'] = Empty",
         "!!  onnxruntime is installed and cannot be used"),
        ("import neuralcodec.doctor as d; d.CODECS = None", "!!  TypeError: 'NoneType'"),
        ("os.environ['XDG_CACHE_HOME'] = os.devnull; Empty.__spec__ = ModuleSpec('tensorrt', None); "
         "sys.modules['tensorrt'] = Empty", "--  Engines are kept in"),
    ],
)  # fmt: skip
def test_doctor_finishes_its_list_on_a_broken_installation(broken: str, line: str) -> None:
    code = (
        "import os, sys\nfrom importlib.machinery import ModuleSpec\nfrom types import ModuleType\n"
        f"Empty = ModuleType('empty')\n{broken}\nfrom neuralcodec.cli import main\nsys.exit(main(['doctor']))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    lines = done.stdout.splitlines()
    assert any(said.startswith(line) for said in lines), done.stdout + done.stderr
    assert all(said[:4] in ("ok  ", "--  ", "!!  ") for said in lines) and "TensorRT is" in done.stdout
    assert "Unexpected" not in done.stderr and done.returncode == (1 if line.startswith("!!") else 0), done.stderr


def test_packs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "list"]) == 0
    assert load_pack().id.hex() in capsys.readouterr().out
    assert main(["pack", "verify"]) == 0
    assert "match the manifest" in capsys.readouterr().out


def test_unexpected_errors_are_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def explode(path: str) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.delenv("NEURALCODEC_DEBUG", raising=False)
    monkeypatch.setattr("neuralcodec.video.probe", explode)
    assert main(["info", str(tmp_path / "a.ncv")]) == 1
    assert failed_with_one_sentence(capsys, "ZeroDivisionError: two")
    monkeypatch.setenv("NEURALCODEC_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["info", str(tmp_path / "a.ncv")])


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neuralcodec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("problem", [MediaError("half read"), ImportError("half loaded")])
def test_what_a_signal_broke_is_called_an_interruption(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def swallow(path: str) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise problem from None

    monkeypatch.setattr("neuralcodec.video.probe", swallow)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["info", "a.ncv"]) == 1
    assert failed_with_one_sentence(capsys, "Interrupted: nothing was written.")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_break_off_what_the_first_one_cleans_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    @contextlib.contextmanager
    def tidy() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)  # a terminal and what started this in it may both send one
            cleaned.append("by a generator")

    def interrupted(path: str) -> None:
        try:
            with tidy():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append("at the end")

    def said(sentence: str) -> int:
        code = fail(sentence)
        signal.raise_signal(signal.SIGINT)
        return code

    fail = cli._fail
    monkeypatch.setattr("neuralcodec.video.probe", interrupted)
    monkeypatch.setattr(cli, "_fail", said)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which nohup and the like have ignored
    try:
        assert main(["info", "a.ncv"]) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert failed_with_one_sentence(capsys, "Interrupted: nothing was written.")
    assert cleaned == ["by a generator", "at the end"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_closed_terminal_that_is_to_be_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("neuralcodec.video.probe", lambda _: seen.append(signal.getsignal(signal.SIGHUP)))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        main(["info", "a.ncv"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "neuralcodec", "info", str(stream(tmp_path / "a.ncv"))]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [("info", "a.ncv", "--packets"), ("pack", "list"), ("doctor",)])
def test_an_output_that_cannot_be_written_is_one_sentence(
    arguments: tuple[str, ...], unbuffered: str, tmp_path: Path
) -> None:
    stream(tmp_path / "a.ncv")
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "neuralcodec", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (1, "neuralcodec: Cannot write the output: No space left on device.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX file descriptors")
def test_an_output_that_is_closed_is_none(tmp_path: Path) -> None:
    path = str(stream(tmp_path / "a.ncv"))
    done = subprocess.run(
        ["sh", "-c", '"$0" -m neuralcodec info "$1" >&-', sys.executable, path],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_as_a_program(tmp_path: Path) -> None:
    done = run("info", str(tmp_path / "none.ncv"))
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert run("info").returncode == 2
    done = run("info", str(stream(tmp_path / "a.ncv")))
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("name", ["名.ncv", "\udcff.ncv"])
def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path, name: str) -> None:
    pytest.importorskip("cryptography")
    try:
        (tmp_path / name).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    key = str(tmp_path / name)
    done = run("keygen", key + ".key", env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "the private key" in done.stdout and "\\u" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [2, 15, 1])  # SIGINT, SIGTERM, SIGHUP; the last has no name on Windows
def test_interrupting_leaves_nothing(portrait: Path, tmp_path: Path, number: int) -> None:
    long = tmp_path / "long.mp4"
    with VideoReader(portrait) as reader, VideoWriter(long, 256, 256, Fraction(1, 25)) as writer:
        images = [image for _, image in reader]
        for pts in range(200):
            writer.write(images[pts % len(images)], pts)
    command = [sys.executable, "-m", "neuralcodec", "encode", str(long), str(tmp_path / "a.ncv"), "--device", "cpu"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # a shell that runs the suite in the background makes its children ignore Ctrl-C, nohup a closed terminal
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)] and None,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # until its temporary file is there
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (1, "", "neuralcodec: Interrupted: nothing was written.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4"]


def test_interrupting_while_flags_are_read_is_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading them may load NumPy and FFmpeg, which takes a while."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neuralcodec.cli.make_parser", interrupt)
    assert main(["encode", "a.mp4", "a.ncv"]) == 1
    assert failed_with_one_sentence(capsys, "Interrupted: nothing was written.")


def test_reading_flags_loads_no_codec_library() -> None:
    code = "import sys; from neuralcodec.cli import make_parser; make_parser().parse_args(['encode', 'a.mp4', 'a.ncv'])"
    done = subprocess.run(
        [sys.executable, "-c", code + "; print({'av', 'numpy'} & sys.modules.keys())"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "set()\n", done.stderr

"""Film to stream to film: same frames and times, and one clear error (and nothing half written) for everything else."""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import portrait as drawn_portrait

from neuralcodec.avatar import Avatar
from neuralcodec.cli import main
from neuralcodec.container import ContainerReader, ContainerWriter
from neuralcodec.decoder import DecodedFrame, Decoder
from neuralcodec.errors import (
    BitstreamError,
    MediaError,
    NeuralCodecError,
    NoFaceError,
    PackMismatchError,
    TruncatedError,
)
from neuralcodec.film import Film
from neuralcodec.media import VideoReader, VideoWriter, read_frames
from neuralcodec.motion import Array, View
from neuralcodec.pack import load_pack
from neuralcodec.packet import GROUP_MAX, End, Motion, ReferencePart, StreamHeader, Update
from neuralcodec.video import _Channel, decode_file, encode_file, list_packets, probe

pytest.importorskip("skimage")

STAMPS = [0, 40, 80, 160, 213, 240]  # ms: one frame missing, one late
LENGTH = 0.28  # seconds, the last frame's 40 ms included


def film(path: Path, images: list[Array], stamps: list[int], tick: Fraction = Fraction(1, 1000)) -> Path:
    height, width = images[0].shape[:2]
    with VideoWriter(path, width, height, tick, frame_duration=40) as writer:
        for image, pts in zip(images, stamps, strict=True):
            writer.write(image, pts)
    return path


def times(path: Path) -> list[Fraction]:
    reader = VideoReader(path)
    return [pts * reader.time_base for pts, _ in reader]


@pytest.fixture(scope="module")
def portrait() -> list[Array]:
    return drawn_portrait(len(STAMPS))


@pytest.fixture(scope="module")
def source(portrait: list[Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film") / "source.mp4", portrait, STAMPS)


@pytest.fixture(scope="module")
def stream(source: Path) -> Path:
    encode_file(source, source.with_suffix(".ncv"), device="cpu")
    return source.with_suffix(".ncv")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".part" or path.name.startswith("."))


def test_frames_and_times_survive_a_variable_rate(source: Path, stream: Path, tmp_path: Path) -> None:
    stats = decode_file(stream, tmp_path / "out.mp4", device="cpu")
    assert times(tmp_path / "out.mp4") == times(source) == [Fraction(t, 1000) for t in STAMPS]
    assert (stats.frames, stats.concealed, stats.damaged) == (len(STAMPS), 0, 0)
    assert stats.stage_ms and stats.provider
    first = next(read_frames(tmp_path / "out.mp4"))[1]
    assert first.shape == (256, 256, 3)


def test_probe_adds_up(stream: Path) -> None:
    found = probe(stream)
    wanted = {"format_version", "pack", "width", "height", "fps", "frames", "duration_s", "bytes_total"}
    assert wanted | {"bytes_reference", "bytes_motion", "bytes_overhead", "kbps"} <= found.keys()
    assert found["bytes_total"] == stream.stat().st_size
    assert found["bytes_total"] == found["bytes_reference"] + found["bytes_motion"] + found["bytes_overhead"]
    assert (found["width"], found["height"], found["frames"]) == (256, 256, len(STAMPS))
    assert found["duration_s"] == pytest.approx(LENGTH)
    assert found["fps"] == pytest.approx(len(STAMPS) / LENGTH, abs=0.001)
    assert found["kbps"] == pytest.approx(found["bytes_total"] * 8 / 1000 / LENGTH, abs=0.001)
    assert found["complete"] and found["problem"] is None
    assert found["pack"] == load_pack().id.hex()
    assert json.loads(json.dumps(found)) == found


def test_listed_packets_are_those_of_the_file(stream: Path) -> None:
    listed = list(list_packets(stream))
    with open(stream, "rb") as file:
        packets = list(ContainerReader(file))
    assert [line["kind"] for line in listed] == [type(packet).__name__ for packet in packets]
    assert [line["bytes"] for line in listed] == [len(bytes(packet)) for packet in packets]
    header = packets[0]
    assert isinstance(header, StreamHeader)
    motions = [line for line in listed if line["kind"] == "Motion"]
    pts = [line["pts"] + i * header.frame_duration for line in motions for i in range(line["frames"])]
    assert [time * Fraction(*header.time_base) * 1000 for time in pts] == STAMPS


@pytest.mark.parametrize("record", [-1, -4, 1])
def test_a_cut_stream_yields_every_whole_frame(stream: Path, tmp_path: Path, record: int) -> None:
    """Cut one byte before the end of the last record, of an earlier one, of the first after the header."""
    with open(stream, "rb") as file:
        reader = ContainerReader(file)
        ends = [reader.offset for _ in reader]
    (tmp_path / "cut.ncv").write_bytes(stream.read_bytes()[: ends[record] - 1])
    whole = sum(line.get("frames", 0) for line in list_packets(tmp_path / "cut.ncv"))
    if whole:
        with pytest.raises(TruncatedError, match=f"cut short; the {whole} frames"):
            decode_file(tmp_path / "cut.ncv", tmp_path / "out.mp4", device="cpu")
        assert len(times(tmp_path / "out.mp4")) == whole
    else:
        with pytest.raises(TruncatedError):
            decode_file(tmp_path / "cut.ncv", tmp_path / "out.mp4", device="cpu")
        assert not (tmp_path / "out.mp4").exists()
    assert leftovers(tmp_path) == []
    assert probe(tmp_path / "cut.ncv")["frames"] == whole and not probe(tmp_path / "cut.ncv")["complete"]


def test_a_damaged_packet_is_concealed_then_reported(stream: Path, tmp_path: Path) -> None:
    with open(stream, "rb") as file:
        packets = list(ContainerReader(file))
    bad = next(index for index, packet in enumerate(packets) if isinstance(packet, Motion) and not packet.intra) + 2
    with open(tmp_path / "bad.ncv", "wb") as file:
        header, *rest = packets
        assert isinstance(header, StreamHeader)
        writer = ContainerWriter(file, header)
        for index, packet in enumerate(rest, 1):
            if index == bad:
                assert isinstance(packet, Motion)
                level, components, step = packet.level, packet.components, packet.pts_step
                packet = Motion(packet.sequence, level, components, b"\xff" * 300, pts_step=step)
            writer.write(packet)
    with pytest.raises(BitstreamError, match=f"damaged.*the {len(STAMPS)} frames"):
        decode_file(tmp_path / "bad.ncv", tmp_path / "out.mp4", device="cpu")
    assert times(tmp_path / "out.mp4") == [Fraction(t, 1000) for t in STAMPS]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of 16 frames at 25 a second, four to a packet."""
    folder = tmp_path_factory.mktemp("even")
    source = film(folder / "source.mp4", drawn_portrait(16), [40 * i for i in range(16)])
    encode_file(source, folder / "even.ncv", target_kbps=32, device="cpu", frames_per_packet=4)
    return folder / "even.ncv"


@pytest.mark.parametrize("which", ["motion", "last motion", "picture"])
def test_a_damaged_record_costs_only_itself(even: Path, tmp_path: Path, which: str) -> None:
    data = bytearray(even.read_bytes())
    with open(even, "rb") as file:
        packets = list(ContainerReader(file))
    motions = [packet for packet in packets if isinstance(packet, Motion)]
    assert len(motions) > 3
    bad = {"motion": motions[2], "last motion": motions[-1]}.get(which)
    bad = bad or next(packet for packet in packets if isinstance(packet, Update))
    data[data.index(bytes(bad))] = 0  # no packet begins so
    (tmp_path / "bad.ncv").write_bytes(data)
    with pytest.raises(BitstreamError, match=r"damaged: 1 packets and \d pictures were left out; the 16 frames"):
        decode_file(tmp_path / "bad.ncv", tmp_path / "out.mp4", device="cpu")
    assert times(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(16)]
    found = probe(tmp_path / "bad.ncv")
    assert (found["frames"], found["complete"]) == (16, True)
    assert found["problem"].startswith("1 records are damaged, the first: ")
    assert len(list(list_packets(tmp_path / "bad.ncv"))) == len(packets) - 1


def test_frames_of_a_damaged_record_are_made_one_by_one(
    even: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[weakref.ref[Array]] = []
    most, conceal = 0, Decoder.conceal

    def noted(decoder: Decoder, pts: int) -> DecodedFrame:
        nonlocal most
        frame = conceal(decoder, pts)
        pictures.append(weakref.ref(frame.image))
        most = max(most, sum(picture() is not None for picture in pictures))
        return frame

    monkeypatch.setattr(Decoder, "conceal", noted)
    data = even.read_bytes().removesuffix(bytes(End(16)))[:-1]  # and the length in front of it
    end = bytes(End(16 + GROUP_MAX // 2))
    (tmp_path / "bad.ncv").write_bytes(data + b"\x01\x00" + bytes([len(end)]) + end)  # no packet begins with a zero
    with pytest.raises(BitstreamError, match=f"damaged: 1 packets .*; the {16 + GROUP_MAX // 2} frames"):
        decode_file(tmp_path / "bad.ncv", tmp_path / "out.mp4", device="cpu")
    assert len(pictures) == GROUP_MAX // 2 and most <= 3


def test_motion_whose_times_do_not_rise_is_left_out(even: Path, tmp_path: Path) -> None:
    with open(even, "rb") as file:
        header, *packets = list(ContainerReader(file))
    first = next(packet for packet in packets if isinstance(packet, Motion))
    assert isinstance(header, StreamHeader)
    with open(tmp_path / "bad.ncv", "wb") as file:
        writer = ContainerWriter(file, header)
        for packet in [*packets[:-1], replace(first, sequence=16), packets[-1]]:
            writer.write(packet)
    with pytest.raises(BitstreamError, match="1 packets and 0 pictures were left out; the 16 frames"):
        decode_file(tmp_path / "bad.ncv", tmp_path / "out.mp4", device="cpu")


def test_a_damaged_picture_is_reported(tmp_path: Path) -> None:
    good, images = tmp_path / "good.ncv", drawn_portrait(25)
    source = film(tmp_path / "source.mp4", images, [40 * i for i in range(25)])
    encode_file(source, good, target_kbps=48, device="cpu", lookahead=0)
    data, at = bytearray(good.read_bytes()), {}
    with open(good, "rb") as file:
        for packet in ContainerReader(file):
            at.setdefault(type(packet), data.index(bytes(packet)) + len(bytes(packet)) - 1)
    for kind, words in ((Update, "[1-9][0-9]* pictures were left out"), (ReferencePart, "none of its pictures")):
        data[at[kind]] ^= 1
        (tmp_path / "bad.ncv").write_bytes(data)
        data[at[kind]] ^= 1
        with pytest.raises(BitstreamError, match=f"bad.ncv is damaged.*{words}"):
            decode_file(tmp_path / "bad.ncv", tmp_path / "out.mp4", device="cpu", overwrite=True)
    assert probe(good)["problem"] is None
    assert "of 1 reference pictures are damaged" in probe(tmp_path / "bad.ncv")["problem"]


def test_a_key_that_was_on_its_way_at_the_end_is_no_damage(tmp_path: Path) -> None:
    images = drawn_portrait(10)
    source = film(tmp_path / "source.mp4", images, [40 * i for i in range(len(images))])
    encode_file(source, tmp_path / "a.ncv", target_kbps=8, device="cpu", lookahead=0)
    with open(tmp_path / "a.ncv", "rb") as file:
        header, *packets = list(ContainerReader(file))
    part = next(packet for packet in packets if isinstance(packet, ReferencePart))
    first = replace(part, reference=7, count=3, hash=b"more")
    assert isinstance(header, StreamHeader)
    with open(tmp_path / "b.ncv", "wb") as file:
        writer = ContainerWriter(file, header)
        for packet in [*packets[:-1], first, first, packets[-1]]:
            writer.write(packet)
    assert decode_file(tmp_path / "b.ncv", tmp_path / "b.mp4", device="cpu").frames == len(images)


def test_a_stream_is_not_named_like_a_film(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.mp4").write_bytes(b"precious")
    with pytest.raises(MediaError, match="does not end in .ncv"):
        encode_file(source, tmp_path / "mine.mp4", device="cpu", overwrite=True)
    assert (tmp_path / "mine.mp4").read_bytes() == b"precious"


def test_loss_keeps_every_frame_and_repeats_itself(stream: Path, tmp_path: Path) -> None:
    films = []
    for name in ("a", "b"):
        stats = decode_file(stream, tmp_path / f"{name}.mp4", device="cpu", loss=0.4, burst=2, seed=0)
        assert stats.concealed > 0 and stats.frames == len(times(tmp_path / f"{name}.mp4")) == len(STAMPS)
        films.append([image for _, image in read_frames(tmp_path / f"{name}.mp4")])
    assert all(np.array_equal(a, b) for a, b in zip(*films, strict=True))


def test_a_film_begins_with_the_first_motion_that_can_be_shown_however_much_is_lost(
    stream: Path, tmp_path: Path
) -> None:
    seed = next(seed for seed in range(9) if not _Channel(0.9, 1, seed).delivers(Motion(0, 0, 0, b"")))
    stats = decode_file(stream, tmp_path / "a.mp4", device="cpu", loss=0.9, seed=seed)
    assert times(tmp_path / "a.mp4") == [Fraction(t, 1000) for t in STAMPS]
    assert (stats.frames, stats.unshown) == (len(STAMPS), 0)


def test_frames_before_the_first_picture_are_not_counted_as_shown(
    stream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream that somebody recorded from its middle on."""
    with open(stream, "rb") as file:
        header, *packets = list(ContainerReader(file))
    assert isinstance(header, StreamHeader)
    parts = [packet for packet in packets if isinstance(packet, ReferencePart)]
    first, *rest = [packet for packet in packets if isinstance(packet, Motion)]
    assert first.intra and len(rest) > 0
    early = replace(first, sequence=255, pts=-40)
    with open(tmp_path / "a.ncv", "wb") as file:
        writer = ContainerWriter(file, header)
        for packet in [early, *parts, first, *rest, packets[-1]]:
            writer.write(packet)
    stats = decode_file(tmp_path / "a.ncv", tmp_path / "a.mp4", device="cpu")
    assert (stats.frames, stats.unshown) == (len(times(tmp_path / "a.mp4")), 1)
    assert stats.duration_s == pytest.approx(LENGTH) and probe(tmp_path / "a.ncv")["frames"] == stats.frames + 1
    assert main(["decode", "-f", str(tmp_path / "a.ncv"), str(tmp_path / "a.mp4"), "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert f": {stats.frames} frames, {LENGTH:.2f} s" in out and err.startswith("1 more frames come before the first")


@pytest.mark.parametrize(("loss", "burst"), [(0.05, 1), (0.2, 3), (0.5, 10), (0.0, 1)])
def test_channel_loses_what_was_asked_in_runs_as_asked(loss: float, burst: float) -> None:
    channel = _Channel(loss, burst, seed=1)
    packet = Motion(0, 0, 0, b"")
    fate = [channel.delivers(packet) for _ in range(40_000)]
    lost = fate.count(False)
    runs = sum(1 for now, before in zip(fate, [True, *fate], strict=False) if not now and before)
    assert lost / len(fate) == pytest.approx(loss, rel=0.15)
    assert not lost or lost / runs == pytest.approx(max(burst, 1 / (1 - loss) if burst == 1 else burst), rel=0.15)
    assert all(_Channel(0.99, 1, seed=1).delivers(End(1)) for _ in range(100))  # only motion is ever lost


@pytest.mark.parametrize(("loss", "burst"), [(0.9, 1), (0.75, 2)])
def test_so_much_is_lost_as_was_asked_though_runs_are_then_longer(loss: float, burst: float) -> None:
    channel = _Channel(loss, burst, seed=1)
    fate = [channel.delivers(Motion(0, 0, 0, b"")) for _ in range(20_000)]
    assert fate.count(False) / len(fate) == pytest.approx(loss, rel=0.02)


def test_turned_head_is_another_picture(stream: Path, tmp_path: Path) -> None:
    decode_file(stream, tmp_path / "a.mp4", device="cpu")
    decode_file(stream, tmp_path / "b.mp4", device="cpu", view=View(yaw=20))
    first, turned = (next(read_frames(tmp_path / f"{name}.mp4"))[1] for name in "ab")
    assert np.abs(first.astype(int) - turned).mean() > 0.5


@pytest.mark.parametrize("shape", ["one frame", "odd", "large", "gray"])
def test_other_shapes_of_film(portrait: list[Array], tmp_path: Path, shape: str) -> None:
    images, crop = portrait[:3], "none"
    if shape == "one frame":
        images = images[:1]
    elif shape == "odd":
        images = [np.ascontiguousarray(image[:241, 3:]) for image in images]  # 253 x 241
    elif shape == "large":
        images = [np.pad(image, ((200, 264), (500, 524), (0, 0)), mode="edge") for image in images]  # 1280 x 720
        crop = "500,200,256"
    elif shape == "gray":
        images = [image.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2) for image in images]
    film(tmp_path / "in.mp4", images, STAMPS[: len(images)])
    encode_file(tmp_path / "in.mp4", tmp_path / "x.ncv", device="cpu", crop=crop)
    decode_file(tmp_path / "x.ncv", tmp_path / "out.mp4", device="cpu")
    assert times(tmp_path / "out.mp4") == times(tmp_path / "in.mp4")
    shown = next(read_frames(tmp_path / "out.mp4"))[1]
    assert shown.shape == ((256, 256, 3) if shape == "large" else images[0].shape)


def test_full_frame_brings_the_surroundings_back(portrait: list[Array], tmp_path: Path) -> None:
    images = [np.pad(image, ((20, 44), (150, 106), (0, 0)), mode="edge") for image in portrait[:3]]  # 512 x 320
    film(tmp_path / "in.mp4", images, STAMPS[:3])
    encode_file(tmp_path / "in.mp4", tmp_path / "x.ncv", device="cpu", crop="150,20,256", full_frame=True)
    decode_file(tmp_path / "x.ncv", tmp_path / "full.mp4", device="cpu")
    decode_file(tmp_path / "x.ncv", tmp_path / "face.mp4", device="cpu", full_frame=False)
    assert next(read_frames(tmp_path / "full.mp4"))[1].shape == (320, 512, 3)
    assert next(read_frames(tmp_path / "face.mp4"))[1].shape == (256, 256, 3)


def test_full_frame_cannot_be_had_from_a_stream_without_it(stream: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="only the face"):
        decode_file(stream, tmp_path / "out.mp4", full_frame=True)
    assert list(tmp_path.iterdir()) == []


def test_no_face_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    film(tmp_path / "in.mp4", [np.full((128, 160, 3), 90, np.uint8)] * 3, STAMPS[:3])
    with pytest.raises(NoFaceError, match="any of the 3 frames"):
        encode_file(tmp_path / "in.mp4", tmp_path / "x.ncv", device="cpu")
    with pytest.raises(NoFaceError, match="in the square 0,0,128 in any"):
        encode_file(tmp_path / "in.mp4", tmp_path / "x.ncv", device="cpu", crop=(0, 0, 128))
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_another_pack_is_refused_before_anything_is_written(stream: Path, tmp_path: Path) -> None:
    data = bytearray(stream.read_bytes())
    place = bytes(data).index(load_pack().id)
    data[place] ^= 1
    (tmp_path / "x.ncv").write_bytes(bytes(data))
    with pytest.raises(PackMismatchError):
        decode_file(tmp_path / "x.ncv", tmp_path / "out.mp4", device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ncv"]


def header_for(pack_id: bytes) -> StreamHeader:
    return StreamHeader(pack_id, 256, 256, (1, 25), 1, 256)


def test_a_stream_without_frames_is_an_error(tmp_path: Path) -> None:
    with open(tmp_path / "x.ncv", "wb") as file:
        ContainerWriter(file, header_for(load_pack().id)).write(End(0))
    assert probe(tmp_path / "x.ncv")["frames"] == 0 and probe(tmp_path / "x.ncv")["kbps"] == 0
    with pytest.raises(MediaError, match="no frame that can be shown"):
        decode_file(tmp_path / "x.ncv", tmp_path / "out.mp4", device="cpu")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("content", [b"", b"\x89NCV", b"no stream at all", bytes(5000)])
def test_no_stream_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.ncv").write_bytes(content)
    for act in (lambda: probe(tmp_path / "x.ncv"), lambda: decode_file(tmp_path / "x.ncv", tmp_path / "out.mp4")):
        with pytest.raises(BitstreamError) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.ncv"]


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for act in (
        lambda: probe(tmp_path / "no.ncv"),
        lambda: probe(tmp_path),
        lambda: decode_file(tmp_path / "no.ncv", tmp_path / "out.mp4"),
        lambda: encode_file(tmp_path / "no.mp4", tmp_path / "out.ncv"),
    ):
        with pytest.raises(NeuralCodecError):
            act()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names")
def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for act in (
        lambda: probe(tmp_path / "pipe"),
        lambda: decode_file(tmp_path / "pipe", tmp_path / "out.mp4"),
        lambda: encode_file(tmp_path / "pipe", tmp_path / "out.ncv"),
    ):
        with pytest.raises(MediaError, match="is a pipe or a device"):
            act()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_existing_outputs_stay(source: Path, stream: Path, tmp_path: Path) -> None:
    for name in ("out.ncv", "out.mp4"):
        (tmp_path / name).write_text("precious")
    with pytest.raises(MediaError, match="exists already"):
        encode_file(source, tmp_path / "out.ncv")
    with pytest.raises(MediaError, match="exists already"):
        decode_file(stream, tmp_path / "out.mp4")
    assert {(tmp_path / name).read_text() for name in ("out.ncv", "out.mp4")} == {"precious"}
    with pytest.raises(MediaError, match="input itself"):
        encode_file(source, source, overwrite=True)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_job_leaves_nothing(
    source: Path, stream: Path, tmp_path: Path, problem: type[BaseException]
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise problem

    with pytest.raises(problem):
        encode_file(source, tmp_path / "out.ncv", device="cpu", progress=interrupt)
    with pytest.raises(problem):
        decode_file(stream, tmp_path / "out.mp4", device="cpu", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_to_the_end(stream: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    decode_file(stream, tmp_path / "out.mp4", device="cpu", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(index + 1, len(STAMPS)) for index in range(len(STAMPS))]


class Stop(Exception):
    """Nothing has to be coded to see with which options it would be."""


def options_of(monkeypatch: pytest.MonkeyPatch, facade: str, act: Callable[[], object]) -> dict[str, Any]:
    given: dict[str, Any] = {}

    def note(*rate: object, **options: Any) -> None:
        given.update(options, rate=rate)
        raise Stop

    monkeypatch.setattr(f"neuralcodec.video.{facade}", note)
    with pytest.raises(Stop):
        act()
    return given


def test_every_option_reaches_the_encoder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portrait: list[Array]
) -> None:
    target = tmp_path / "x.NCV"
    plain = options_of(monkeypatch, "Encoder", lambda: encode_file(source, target))
    assert (plain["rate"], plain["frames_per_packet"], plain["lookahead"]) == ((4.0,), 8, 12)
    assert plain["frame_duration"] * plain["time_base"] == Fraction(1, 25)
    assert (plain["gray"], plain["repeat_header"], plain["signing_key"]) == (False, False, None)
    further = {"frames_per_packet": 1, "lookahead": 0, "signing_key": "key", "crop": "none", "full_frame": True}
    further |= {"pack": "p", "device": "cpu", "threads": 2}
    given = options_of(monkeypatch, "Encoder", lambda: encode_file(source, target, target_kbps=6, **further))
    assert given["rate"] == (6,) and {name: given[name] for name in further} == further
    monkeypatch.setattr(VideoReader, "__init__", gray_reader(VideoReader.__init__))
    for avatar in (None, Avatar(portrait[0], "she said yes")):
        given = options_of(monkeypatch, "Encoder", lambda: encode_file(source, target, avatar=avatar))  # noqa: B023
        assert given["gray"] is (avatar is None) and given["avatar"] is avatar
        assert (given["film"] is None) is (avatar is not None)
    given = options_of(monkeypatch, "Encoder", lambda: encode_file(source, target, constant_rate=True, window=6))
    assert given["film"] is None and given["window"] == 6
    assert isinstance(plain["film"], Film) and plain["film"].duration == pytest.approx(LENGTH)
    assert list(tmp_path.iterdir()) == []


def gray_reader(plain: Callable[..., None]) -> Callable[..., None]:
    def init(reader: VideoReader, path: Path) -> None:
        plain(reader, path)
        reader.gray, reader.damaged = True, 3

    return init


def test_every_option_reaches_the_decoder(stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    further = {"eye_contact": True, "smooth": False, "view": View(yaw=5), "trusted_sender": "key", "threads": 2}
    for options in (further, further | {"eye_contact": False, "smooth": True}):
        given = options_of(monkeypatch, "Decoder", lambda: decode_file(stream, tmp_path / "x.mp4", **options))  # noqa: B023
        assert {name: given[name] for name in options} == options
        assert given["max_pixels"] >= 8192**2 and given["full_frame"] is None


def test_what_was_missing_from_a_film_is_counted(
    portrait: list[Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = np.full_like(portrait[0], 90)
    source = film(tmp_path / "in.mp4", [*portrait[:2], blank, blank], STAMPS[:4])
    monkeypatch.setattr(VideoReader, "__init__", gray_reader(VideoReader.__init__))
    monkeypatch.setattr(VideoReader, "missing_s", 1.5)
    seen: list[tuple[int, int]] = []
    stats = encode_file(
        source, tmp_path / "x.ncv", device="cpu", lookahead=0, progress=lambda done, total: seen.append((done, total))
    )
    assert (stats.frames, stats.face_lost, stats.damaged, stats.missing_s) == (4, 2, 3, 1.5)
    assert stats.references == 1 and seen == [(done, 4) for done in (1, 2, 3, 4)]


def test_a_film_that_no_stream_can_carry_is_refused_and_so_is_its_other_name(
    source: Path, stream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stream.read_bytes()
    with pytest.raises(MediaError, match="input itself"):
        decode_file(stream, stream, overwrite=True)
    os.link(source, tmp_path / "again.ncv")
    with pytest.raises(MediaError, match="input itself"):
        encode_file(source, tmp_path / "again.ncv", overwrite=True)
    assert stream.read_bytes() == before
    monkeypatch.setattr("neuralcodec.video.DIMENSION_MAX", 255)
    with pytest.raises(MediaError, match="256 x 256 pixels; a stream carries at most 255 on a side"):
        encode_file(source, tmp_path / "x.ncv")


def test_a_seed_says_which_packets_are_lost() -> None:
    fates = []
    for seed in (0, 1, 1):
        channel = _Channel(0.3, 1, seed)
        fates.append([channel.delivers(Motion(0, 0, 0, b"")) for _ in range(64)])
    assert fates[0] != fates[1] == fates[2]
    for loss, burst in ((1.0, 1.0), (-0.1, 1.0), (0.5, 0.5)):
        with pytest.raises(ValueError, match="expected 0 <= loss < 1 and burst >= 1"):
            _Channel(loss, burst, 0)

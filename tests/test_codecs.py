"""The yardstick codecs: byte counting on hand-made streams, and every encoder that is installed on a small clip."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("av")

from benchmarks import codecs
from benchmarks.codecs import CODECS, Array, Coded, code, stream_size, unavailable
from neuralcodec.quality import psnr

RUNNABLE = [name for name, codec in CODECS.items() if not unavailable(codec)]


def moving_clip(count: int = 8, size: tuple[int, int] = (96, 128)) -> list[Array]:
    """A textured pattern that moves by whole pixels over a gradient; uint8 RGB (96, 128, 3)."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x, y, (x + y) / 2], axis=2) + 40
    frames = []
    for index in range(count):
        disc = (x - 30 - 2 * index) ** 2 + (y - 48) ** 2 < 20**2
        texture = 127 + 60 * np.sin((x - 2 * index) / 3.0) * np.cos(y / 4.0)
        frames.append(np.clip(np.where(disc[..., None], texture[..., None], base), 0, 255).astype(np.uint8))
    return frames


FRAMES = moving_clip()


def mean_psnr(coded: Coded) -> float:
    return float(np.mean([psnr(a, b) for a, b in zip(FRAMES, coded.frames, strict=True)]))


@pytest.mark.parametrize("name", RUNNABLE)
def test_each_codec_gives_every_frame_back_and_more_bits_buy_more_quality(name: str) -> None:
    codec = CODECS[name]
    coarsest = max(quality for _, _, qualities in codec.variants for quality in qualities)
    coarse, fine = (code(codec, FRAMES, quality) for quality in (coarsest, coarsest - 12))
    for coded in (coarse, fine):
        assert len(coded.frames) == len(FRAMES)
        assert all(frame.shape == FRAMES[0].shape and frame.dtype == np.uint8 for frame in coded.frames)
        assert coded.bytes == sum(coded.sizes)
        assert coded.kbps == pytest.approx(coded.bytes * 8 * 25 / 8 / 1000)
    assert coarse.bytes < fine.bytes
    assert mean_psnr(coarse) + 1 < mean_psnr(fine)
    assert mean_psnr(fine) > 28
    assert str(coarse.setting[codec.quality.partition(":")[0]]).endswith(str(coarsest))
    assert "PyAV" in coarse.library or "ffmpeg" in coarse.library


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_pictures_come_back_as_light_as_they_went_in(scale: float) -> None:
    coded = code(CODECS["x264-call"], FRAMES, 20, scale=scale)
    lighter = [after.mean() - before.mean() for before, after in zip(FRAMES, coded.frames, strict=True)]
    assert abs(np.mean(lighter)) < 0.4


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name.endswith("call") and not CODECS[name].binary])
def test_a_call_delays_no_frame_and_repeats_to_the_byte(name: str) -> None:
    first, second = (code(CODECS[name], FRAMES, 46) for _ in range(2))
    assert len(first.sizes) == len(FRAMES)  # one packet a frame
    assert first.sizes[0] > max(first.sizes[1:])  # one key frame, at the start
    assert first.sizes == second.sizes
    assert all((a == b).all() for a, b in zip(first.frames, second.frames, strict=True))


def test_smaller_pictures_and_fewer_frames_cost_less_and_keep_the_size_and_count() -> None:
    codec = CODECS["x264-call"]
    whole = code(codec, FRAMES, 36)
    small = code(codec, FRAMES, 36, scale=0.75)
    held = code(codec, FRAMES, 36, hold=2)
    assert small.bytes < whole.bytes
    assert held.bytes < whole.bytes
    assert small.setting["size"] == "96x72" and held.setting["fps"] == "12.5"
    assert small.frames[0].shape == FRAMES[0].shape
    assert len(held.frames) == len(FRAMES) and len(held.sizes) == 4
    assert (held.frames[0] == held.frames[1]).all() and not (held.frames[1] == held.frames[2]).all()


@pytest.mark.parametrize("name", RUNNABLE)
def test_ladders_run_from_coarse_to_fine_full_size_first_and_reach_down(name: str) -> None:
    variants = CODECS[name].variants
    assert CODECS[name].ways((256, 192)) == variants
    whole, *larger = CODECS[name].ways((512, 384))
    assert whole == (1.0, 1, variants[0][2])
    assert [(2 * scale, hold, steps) for scale, hold, steps in larger] == list(variants)
    assert variants[0][:2] == (1.0, 1)
    assert all(list(qualities) == sorted(qualities, reverse=True) for _, _, qualities in variants)
    assert any(scale <= 0.5 and hold == 2 for scale, hold, _ in variants) or name == "vvc-best"  # see codecs.py
    assert len({variant[:2] for variant in variants}) == len(variants)


def test_pictures_made_once_give_the_same_stream() -> None:
    codec = CODECS["x264-call"]
    shared = codecs.planes(FRAMES, scale=0.75, hold=2)
    alone, first, again = (
        code(codec, FRAMES, 40, scale=0.75, hold=2, planes=planes) for planes in (None, shared, shared)
    )
    assert alone.packets == first.packets == again.packets
    assert all((a == b).all() for a, b in zip(alone.frames, again.frames, strict=True))


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name.startswith(("svt", "x265"))])
def test_an_encoder_tells_its_version(name: str) -> None:
    encoder, _, number = codecs.version(CODECS[name]).partition(" ")
    assert encoder == CODECS[name].encoder and number[:1].isdigit()


def test_an_odd_count_of_held_frames_still_fills_the_clip() -> None:
    coded = code(CODECS["x264-call"], FRAMES[:5], 40, hold=2)
    assert len(coded.frames) == 5 and len(coded.sizes) == 3


def test_start_codes_sei_and_delimiters_are_not_counted() -> None:
    sps, sei, picture = b"\x67abc", b"\x06xyzxyz", b"\x65" + bytes(range(1, 50))
    stream = b"\0\0\0\1" + b"\x09\xf0" + b"\0\0\0\1" + sps + b"\0\0\1" + sei + b"\0\0\1" + picture
    assert stream_size("libx264", stream) == len(sps) + len(picture)
    hevc_sei, hevc_picture = bytes([39 << 1, 1]) + b"words", bytes([19 << 1, 1]) + b"slice"
    assert stream_size("libx265", b"\0\0\1" + hevc_sei + b"\0\0\0\1" + hevc_picture) == len(hevc_picture)
    vvc_sei, vvc_picture = bytes([0, 23 << 3 | 1]) + b"words", bytes([0, 8 << 3 | 1]) + b"slice"
    assert stream_size("libvvenc", b"\0\0\1" + vvc_sei + b"\0\0\1" + vvc_picture) == len(vvc_picture)


@pytest.mark.parametrize(
    ("encoder", "unwanted", "wanted"),
    [("libx264", (6, 9, 12), (1, 5, 7, 8)), ("libx265", (35, 38, 39, 40), (1, 19, 32, 33, 34)),
     ("libvvenc", (20, 23, 24, 25), (0, 8, 14, 15, 16, 17))],
)  # fmt: skip
def test_units_that_no_decoder_needs_are_all_that_is_not_counted(
    encoder: str, unwanted: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    for kind in (*unwanted, *wanted):
        head = {"libx264": [0x60 | kind, 1], "libx265": [kind << 1, 1], "libvvenc": [0x40, kind << 3 | 1]}[encoder]
        assert stream_size(encoder, b"\0\0\0\1" + bytes(head) + b"data") == (6 if kind in wanted else 0)


def test_pictures_that_are_coded_have_even_sides_of_at_least_64() -> None:
    assert codecs.coded_size((256, 192), 0.375) == (96, 72)
    assert codecs.coded_size((250, 256), 0.5) == (124, 128)
    assert codecs.coded_size((256, 100), 0.25) == (64, 64)


def test_an_encoder_is_told_how_many_frames_a_second_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    told, plain = [], codecs._encode_pyav
    monkeypatch.setattr(codecs, "_encode_pyav", lambda *given: (told.append(given[-1]), plain(*given))[1])
    for hold in (1, 2):
        code(CODECS["x264-call"], FRAMES[:4], 46, hold=hold)
    assert told == [25, 12.5]


def test_delay_is_none_where_an_encoder_wants_every_frame_first() -> None:
    delays = {name: code(CODECS[name], FRAMES, 50).delay for name in RUNNABLE if name[:3] in ("x26", "aom")}
    wanted = {"x264-call": 0, "x264-best": None, "x265-call": 0, "x265-best": None}
    wanted |= {"aom-av1-call": 0, "aom-av1-best": None}
    assert delays == {name: wanted[name] for name in delays}


needs_ffmpeg = pytest.mark.skipif("vp9-best" not in RUNNABLE, reason="no ffmpeg program with libvpx-vp9")


@needs_ffmpeg
def test_two_passes_are_two_passes_and_a_failure_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, plain = [], codecs.subprocess.run
    monkeypatch.setattr(codecs.subprocess, "run", lambda c, **rest: (commands.append(c), plain(c, **rest))[1])
    code(CODECS["vp9-best"], FRAMES, 50)
    assert [command[command.index("-pass") + 1] for command in commands if "-i" in command] == ["1", "2"]
    wrong = replace(CODECS["vp9-best"], options={"deadline": "whenever"})
    with pytest.raises(RuntimeError, match="ffmpeg could not run vp9-best"):
        codecs._encode_binary(wrong, iter(codecs.planes(FRAMES[:1])), (128, 96), wrong.options, codecs.Fraction(25))


def test_codecs_of_the_ffmpeg_program_run_where_it_is_installed() -> None:
    binary = [name for name, codec in CODECS.items() if codec.binary]
    assert any(name in RUNNABLE for name in binary) == bool(codecs.ffmpeg())
    reason = unavailable(replace(CODECS["vp9-best"], encoder="libnothing"))
    assert "an ffmpeg program with libnothing: pip install" in reason


def test_small_pictures_come_back_smooth_and_an_encoder_tells_its_own_version() -> None:
    coded = code(CODECS["x264-call"], FRAMES, 10, scale=0.5)
    assert mean_psnr(coded) > 37 and coded.library.startswith("x264 - core ")


def test_av1_temporal_delimiters_are_not_counted_and_vp9_counts_whole() -> None:
    assert stream_size("libsvtav1", b"\x12\x00\x0a\x0bsequence") == 10
    assert stream_size("libaom-av1", b"\x32\x04data") == 6 and stream_size("libaom-av1", b"\x12\x04data") == 6
    assert stream_size("libvpx-vp9", b"\x12\x00frame") == 7


def test_what_is_counted_is_enough_to_decode() -> None:
    """Rebuild an x264 stream from the counted units only and decode it again: same pictures."""
    import av

    coded = code(CODECS["x264-call"], FRAMES, 36)
    assert sum(coded.sizes) > 200
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = 128, 96, "yuv420p"  # type: ignore[attr-defined]
    from fractions import Fraction

    from benchmarks.codecs import UNWANTED_NALS, _nal_type, _nal_units, _planes

    context.time_base = Fraction(1, 25)
    context.thread_count = 1
    context.options = {key: coded.setting[key] for key in ("preset", "tune", "x264-params", "crf")}
    packets = []
    for index, frame in enumerate(FRAMES):
        planes = _planes(frame, (128, 96))
        planes.pts, planes.time_base = index, Fraction(1, 25)
        packets += context.encode(planes)  # type: ignore[attr-defined]
    packets += context.encode(None)  # type: ignore[attr-defined]
    kept = [
        [nal for nal in _nal_units(bytes(packet)) if _nal_type("libx264", nal) not in UNWANTED_NALS["libx264"]]
        for packet in packets
    ]
    assert sum(len(nal) for nals in kept for nal in nals) == coded.bytes
    decoder = av.CodecContext.create("h264", "r")
    shown = [
        picture
        for nals in [*kept, None]
        for picture in decoder.decode(  # type: ignore[attr-defined]
            None if nals is None else av.Packet(b"".join(b"\0\0\0\1" + nal for nal in nals))
        )
    ]
    assert len(shown) == len(FRAMES)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="scheduling policies are Linux's")
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name.startswith("svt")])
def test_svt_av1_leaves_no_thread_in_real_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    plain = codecs._planes

    def watching(frame: Array, size: tuple[int, ...]) -> object:
        seen.update(os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task"))
        return plain(frame, size)

    monkeypatch.setattr(codecs, "_planes", watching)  # called before every frame, while the encoder is open
    code(CODECS[name], FRAMES, 50)
    seen.update(os.sched_getscheduler(int(task)) for task in os.listdir("/proc/self/task"))
    assert seen <= {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE}


def test_a_missing_encoder_is_one_sentence() -> None:
    reason = unavailable(replace(CODECS["x264-call"], encoder="libnothing"))
    assert "libnothing" in reason and reason.endswith("lacks.")

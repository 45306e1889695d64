"""The benchmarks' own arithmetic and bookkeeping on known cases with known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rich")

from test_codecs import FRAMES

from benchmarks import clips, codecs, curves, metrics, rate_distortion, report, validation
from benchmarks.curves import Point

CURVE = [Point(4, 28.0), Point(8, 31.0), Point(16, 33.5), Point(32, 35.0)]


# --- curves ---


@settings(deadline=None)
@given(st.floats(0.05, 20))
def test_bjontegaard_of_a_curve_with_every_rate_scaled_is_that_scale(factor: float) -> None:
    found = curves.bjontegaard(CURVE, [Point(p.rate * factor, p.quality) for p in CURVE])
    assert found is not None
    assert found.percent == pytest.approx((factor - 1) * 100, rel=1e-9, abs=1e-9)
    assert found.overlap == 1.0


def test_bjontegaard_agrees_with_scipy() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    other = [Point(3, 29.0), Point(5, 31.5), Point(12, 34.0), Point(40, 36.0)]
    found = curves.bjontegaard(CURVE, other)
    assert found is not None
    a, b = (interpolate.PchipInterpolator([p.quality for p in c], np.log([p.rate for p in c])) for c in (CURVE, other))
    mean = (b.integrate(29.0, 35.0) - a.integrate(29.0, 35.0)) / 6.0
    assert (found.low, found.high) == (29.0, 35.0)
    assert found.percent == pytest.approx((np.exp(mean) - 1) * 100, abs=1e-4)
    assert found.overlap == pytest.approx(6 / 7)


def test_curves_that_do_not_overlap_give_no_figure() -> None:
    assert curves.bjontegaard(CURVE, [Point(1, 20.0), Point(2, 27.0)]) is None
    assert curves.bjontegaard(CURVE, CURVE[:1]) is None


def test_front_drops_points_that_cost_more_and_show_less() -> None:
    assert curves.front([Point(9, 30.0), *CURVE, Point(4, 27.0)]) == CURVE


def test_rate_at_equal_quality_and_beyond_the_ends() -> None:
    assert curves.rate_at(CURVE, 31.0) == curves.RateAt(pytest.approx(8.0))
    assert curves.rate_at(CURVE, 29.5).rate == pytest.approx(np.sqrt(4 * 8))
    assert curves.rate_at(CURVE, 20.0) == curves.RateAt(4, "<=")
    assert curves.rate_at(CURVE, 40.0) == curves.RateAt(32, ">")


# --- the comparison ---


def measured(codec: str, rates: list[float], clip: str = "a") -> list[dict[str, Any]]:
    return [
        {"clip": clip, "codec": codec, "kbps": rate, "psnr": point.quality}
        for rate, point in zip(rates, CURVE, strict=True)
    ]


def test_a_codec_against_itself_is_one() -> None:
    frames = FRAMES
    points = []
    for codec_name in ("x264-call", "neuralcodec"):  # x264's own output fed in as ours
        for quality in (42, 36, 30):
            coded = codecs.code(codecs.CODECS["x264-call"], frames, quality)
            points.append({"clip": "a", "codec": codec_name, "kbps": coded.kbps,
                           "psnr": metrics.mean_psnr(frames, coded.frames)})  # fmt: skip
    found = rate_distortion.compare(points, "psnr", test="neuralcodec", anchor="x264-call")
    assert found["ratio"] == pytest.approx(1.0, abs=1e-12)
    assert found["bd_rate_percent"] == pytest.approx(0.0, abs=1e-9)
    assert found["clips_lost"] == 0 and found["points"] == 3


def test_half_the_bits_on_one_clip_and_twice_on_another_is_a_draw_with_one_lost() -> None:
    points = measured("x", [4, 8, 16, 32]) + measured("neuralcodec", [2, 4, 8, 16])
    points += measured("x", [4, 8, 16, 32], "b") + measured("neuralcodec", [8, 16, 32, 64], "b")
    found = rate_distortion.compare(points, "psnr", test="neuralcodec", anchor="x")
    assert found["ratio"] == pytest.approx(1.0)
    assert found["bd_rate_percent"] == pytest.approx(0.0, abs=1e-9)
    assert found["clips"] == 2 and found["clips_lost"] == 1


def test_points_out_of_the_anchors_reach_are_counted_apart() -> None:
    ours = [{"clip": "a", "codec": "neuralcodec", "kbps": k, "psnr": q} for k, q in ((1, 25.0), (4, 31.0), (6, 39.0))]
    found = rate_distortion.compare(measured("x", [4, 8, 16, 32]) + ours, "psnr", test="neuralcodec", anchor="x")
    assert found["anchor_cannot_go_so_low"] == 1 and found["anchor_never_gets_there"] == 1
    assert found["points"] == 2
    assert found["ratio"] == pytest.approx(np.sqrt((1 / 4) * (4 / 8)))


def test_floors_tell_the_cheapest_point_and_who_never_gets_there() -> None:
    points = measured("x", [4, 8, 16, 32]) + measured("x", [6, 8, 16, 32], "b")
    found = rate_distortion.lowest_and_needed(points, "x", "psnr", 31.0)
    assert found["lowest_kbps"] == 5 and found["kbps_for_31"] == pytest.approx(8)
    assert rate_distortion.lowest_and_needed(points, "x", "psnr", 36.0)["clips_that_never_get_there"] == 2


def test_wire_rate_counts_a_header_for_every_packet() -> None:
    rates = rate_distortion._rates(1000, 400, 25, 1.0)
    assert rates["kbps"] == pytest.approx(8.0) and rates["net_kbps"] == pytest.approx(3.2)
    assert rates["wire_kbps"] == pytest.approx(16.0)


def test_a_baseline_run_ends_in_a_report_and_a_second_run_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(rate_distortion, "QUICK_VARIANTS", ((1.0, 1, 2), (0.5, 2, 1)))
    film = tmp_path / "film" / "clip.mp4"
    write_film(film)
    arguments = [
        "--clips", str(film.parent), "--out", str(tmp_path / "out"), "--no-ours", "--quick", "--codecs", "x264-call",
        "--frames", "6", "--jobs", "1",
    ]  # fmt: skip
    rate_distortion.main(arguments)
    store = (tmp_path / "out" / "points.jsonl").read_text()
    result = json.loads((tmp_path / "out" / "rate_distortion.json").read_text())
    assert len(result["points"]) == len(store.splitlines()) == 3
    assert result["points"][0]["sha256"] == clips.read(film).sha256
    assert result["floors"][0]["codec"] == "x264-call"
    assert "x264-call" in (tmp_path / "out" / "rate_distortion.md").read_text()
    assert (tmp_path / "out" / "psnr.png").read_bytes().startswith(b"\x89PNG")
    rate_distortion.main(arguments)
    assert (tmp_path / "out" / "points.jsonl").read_text() == store


# --- clips, metrics, report ---


def write_film(path: Path) -> None:
    from fractions import Fraction

    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def test_clips_are_read_whole_cut_and_resized(tmp_path: Path) -> None:
    film = tmp_path / "clip.mp4"
    write_film(film)
    clip = clips.read(film)
    assert (len(clip.frames), clip.size, clip.name) == (len(FRAMES), (128, 96), "clip")
    assert metrics.mean_psnr(clip.frames, FRAMES) > 30
    assert len(clips.read(film, limit=3).frames) == 3
    assert clips.read(film, size=64).size == (64, 64)
    assert clips.find(tmp_path) == [film]


def test_a_folder_without_films_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no video file"):
        clips.find(tmp_path)
    with pytest.raises(SystemExit, match="not a folder"):
        clips.find(tmp_path / "nowhere")


@pytest.mark.skipif(not metrics.has_vmaf(), reason="no ffmpeg program with libvmaf; the bench extra brings one")
def test_vmaf_is_high_for_the_same_film_and_falls_with_quality() -> None:
    coded = [codecs.code(codecs.CODECS["x264-call"], FRAMES, quality).frames for quality in (24, 45)]
    same, fine, coarse = (metrics.vmaf(FRAMES, frames) for frames in (FRAMES, *coded))
    assert same > 95 and same >= fine > coarse + 10


def test_sheet_is_a_png_with_the_pictures_in_place(tmp_path: Path) -> None:
    import av

    report.sheet(tmp_path / "deep" / "sheet.png", [FRAMES[:3], FRAMES[3:6]])
    with av.open(str(tmp_path / "deep" / "sheet.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (2 * 96 + 4, 3 * 128 + 8, 3)
    assert (picture[:96, 132:260] == FRAMES[1]).all()
    assert (picture[100:, 264:] == FRAMES[5]).all()
    assert (picture[96:100] == 128).all()


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    report.save(target, {"rate": np.float32(1.5), "path": tmp_path})
    assert json.loads(target.read_text()) == {"rate": 1.5, "path": str(tmp_path)}
    with pytest.raises(ValueError):
        report.save(target, {"rate": float("nan")})
    assert json.loads(target.read_text())["rate"] == 1.5


def test_machine_names_what_a_reader_needs() -> None:
    found = report.machine()
    assert found["cpu"] and found["cores_usable"] >= 1 and found["versions"]["numpy"] == np.__version__


def test_a_busy_machine_is_said_beside_speeds() -> None:
    assert "do not quote" in report.busy({"load_before": 3.0})
    assert report.busy({"load_before": 0.1}) == report.busy({"load_before": None}) == ""


# --- validation ---


def validated(**changes: Any) -> dict[str, Any]:
    figures = {
        "clip": "a", "frames": 300, "psnr": 25.0, "ms_ssim": 0.8, "freeze_psnr": 20.0, "freeze_ms_ssim": 0.6,
        "gain": 5.0, "kbps": 4.2, "kbps_first_10_s": 4.5, "motion_payload": 5.0, "motion_payload_p95": 9.0,
        "motion_packet": 7.0, "references": 2, "keypoint_error_px": 0.5, "frames_missing": 0, "frames_strayed": 0,
        "encode_ms": 10.0, "decode_ms": 25.0, "symbols": "x", "symbols_again": "x", "symbols_elsewhere": "x",
    }  # fmt: skip
    return {**figures, **changes}


WHOLE = {"machine": {"cores_usable": 2}, "import_ms": 50.0, "decode_mb": 300.0}


def verdicts(results: list[dict[str, Any]], whole: dict[str, Any] = WHOLE) -> dict[str, str]:
    return {figure: verdict for figure, _, _, verdict in validation.table(results, whole) if verdict}


def test_the_table_passes_when_every_figure_holds() -> None:
    found = verdicts([validated()])
    assert len(found) == 12 and set(found.values()) == {"pass"}


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"motion_payload": 10.1}, "motion payload"),
        ({"kbps_first_10_s": 5.1}, "whole file"),
        ({"keypoint_error_px": 0.71}, "keypoint error"),
        ({"gain": 1.9}, "PSNR gain"),
        ({"gain": -0.1}, "share of clips"),
        ({"encode_ms": 17.0}, "encode"),
        ({"decode_ms": 51.0}, "decode"),
        ({"symbols_elsewhere": "y"}, "symbols"),
        ({"frames_strayed": 1}, "frames whose motion"),
        ({"frames_missing": 1}, "frames that never"),
    ],
)
def test_the_table_fails_the_figure_that_does_not_hold(changes: dict[str, Any], figure: str) -> None:
    failed = {name for name, verdict in verdicts([validated(**changes)]).items() if verdict == "FAIL"}
    assert any(name.startswith(figure) for name in failed)
    assert len(failed) <= 2


def test_short_clips_do_not_decide_the_ten_second_rate() -> None:
    rows = validation.table([validated(kbps_first_10_s=None), validated(kbps_first_10_s=4.0)], WHOLE)
    assert [row for row in rows if "10 s" in row[0]][0][2] == "4.00"


def test_halves_are_split_by_the_freeze_baseline() -> None:
    results = [validated(clip=str(q), freeze_psnr=q) for q in (12.0, 30.0, 20.0)]
    easy, hard = validation.halves(results)
    assert [r["clip"] for r in easy] == ["30.0", "20.0"] and [r["clip"] for r in hard] == ["12.0"]


def test_peak_memory_is_this_processes_own() -> None:
    program = "import numpy as np; a = np.ones(1 << 24); del a; from benchmarks.probe import peak_mb; print(peak_mb())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parents[1])  # fmt: skip
    assert 128 < float(run.stdout) < 400


def test_the_default_clip_is_the_demo_portrait() -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("scipy")
    try:
        (clip,) = validation.load(Namespace(clips=None, frames=3, pack=None))
    except Exception as problem:
        if type(problem).__name__ == "PackError":
            pytest.skip("no bundled pack in this checkout")
        raise
    assert clip.name == "astronaut" and len(clip.frames) == 3 and clip.size == (256, 256)

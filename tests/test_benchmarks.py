"""The benchmarks' own arithmetic and bookkeeping on known cases with known answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rich")

from test_codecs import FRAMES

from benchmarks import (
    bisection,
    clips,
    codecs,
    coding,
    comparison,
    curves,
    fuzz,
    latency,
    loss,
    metrics,
    ours,
    page,
    points,
    rate_distortion,
    report,
    resources,
    running,
    validation,
)
from benchmarks.cache import Cache
from benchmarks.curves import Point
from neuralcodec import Decoder
from neuralcodec.errors import NeuralCodecError, NoFaceError
from neuralcodec.video import FRAMES_PER_PACKET, LOOKAHEAD

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


@pytest.mark.parametrize("points", [2, 3, 9])
def test_the_interpolant_is_scipys_whichever_way_the_curve_turns(points: int) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    dice = np.random.default_rng(0)
    for _ in range(50):
        x, y = dice.uniform(0.1, 1, points).cumsum(), dice.normal(size=points)
        at = np.linspace(x[0], x[-1], 50)
        assert np.allclose(curves.monotone_cubic(x, y, at), interpolate.PchipInterpolator(x, y)(at))


def test_curves_that_do_not_overlap_give_no_figure() -> None:
    assert curves.bjontegaard(CURVE, [Point(1, 20.0), Point(2, 27.0)]) is None
    assert curves.bjontegaard(CURVE, [Point(1, 20.0), Point(2, 28.0)]) is None  # they only touch
    assert curves.bjontegaard(CURVE, CURVE[:1]) is None


def test_overlap_is_a_share_of_the_narrower_curve() -> None:
    found = curves.bjontegaard(CURVE, [Point(5, 29.0), Point(6, 31.0)])
    assert found is not None and found.overlap == 1.0


def test_front_drops_points_that_cost_more_and_show_less() -> None:
    assert curves.front([Point(9, 30.0), *CURVE, Point(4, 27.0)]) == CURVE


def test_quality_at_equal_rate_is_the_same_line_read_the_other_way() -> None:
    for quality in (28.5, 31.0, 34.2):
        rate = curves.rate_at(CURVE, quality).rate
        assert curves.quality_at(CURVE, rate) == curves.QualityAt(pytest.approx(quality))
    assert curves.quality_at(CURVE, 3.9) == curves.QualityAt(28.0, ">=")
    assert curves.quality_at(CURVE, 33.0) == curves.QualityAt(35.0, "<=")
    assert curves.quality_at([*CURVE, Point(40, 34.0)], 33.0) == curves.QualityAt(35.0)  # more bits bought nothing


def test_rate_at_equal_quality_and_beyond_the_ends() -> None:
    assert curves.rate_at(CURVE, 31.0) == curves.RateAt(pytest.approx(8.0))
    assert curves.rate_at(CURVE, 29.5).rate == pytest.approx(np.sqrt(4 * 8))
    assert curves.rate_at(CURVE, 20.0) == curves.RateAt(4, "<=")
    assert curves.rate_at(CURVE, 40.0) == curves.RateAt(32, ">")


# --- the comparison ---


def measured(codec: str, rates: Sequence[float], clip: str = "a", **more: Any) -> list[dict[str, Any]]:
    return [
        {"clip": clip, "sha256": clip, "codec": codec, "kbps": rate, "psnr": point.quality, "setting": {}, **more}
        for rate, point in zip(rates, CURVE, strict=True)
    ]


def test_half_the_bits_on_one_clip_and_twice_on_another_is_a_draw_with_one_lost() -> None:
    points = measured("x", [4, 8, 16, 32]) + measured("neuralcodec", [2, 4, 8, 16])
    points += measured("x", [4, 8, 16, 32], "b") + measured("neuralcodec", [8, 16, 32, 64], "b")
    found = comparison.compare(points, "psnr", test="neuralcodec", anchor="x")
    assert found["ratio"] == pytest.approx(1.0)
    assert found["band"] == [pytest.approx(0.5), pytest.approx(2.0)]  # of two clips, either may be drawn twice
    assert found["bd_rate_percent"] == pytest.approx(0.0, abs=1e-9)
    assert found["clips"] == 2 and found["clips_lost"] == 1
    assert found["per_clip"] == {"a": pytest.approx(0.5), "b": pytest.approx(2.0)}


def test_a_band_holds_95_percent_and_takes_two_clips() -> None:
    values = np.random.default_rng(1).normal(3, 1, 100)
    low, high = comparison.band(values.tolist()) or (0.0, 0.0)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.06)
    assert comparison.band([3.0]) is None


def test_a_ratio_of_one_in_floats_is_no_loss_and_a_clip_without_anchor_is_counted() -> None:
    assert comparison.ratio({"a": 1e-12, "b": 1e-6}, {})["clips_lost"] == 1
    points = measured("x", [4, 8, 16, 32]) + measured("neuralcodec", [2, 4, 8, 16])
    found = comparison.compare(points + measured("neuralcodec", [1, 2, 3, 4], "b"), "psnr", test="neuralcodec",
                               anchor="x")  # fmt: skip
    assert found["clips_not_measured"] == 1 and found["ratio"] == pytest.approx(0.5)


def test_points_out_of_the_anchors_reach_are_counted_apart() -> None:
    ours = [
        {"clip": "a", "sha256": "a", "codec": "neuralcodec", "kbps": k, "psnr": q}
        for k, q in ((1, 25.0), (4, 31.0), (6, 39.0))
    ]
    found = comparison.compare(measured("x", [4, 8, 16, 32]) + ours, "psnr", test="neuralcodec", anchor="x")
    assert found["anchor_cannot_go_so_low"] == 1 and found["anchor_never_gets_there"] == 1
    assert found["points"] == 2
    assert found["ratio"] == pytest.approx(np.sqrt((1 / 4) * (4 / 8)))


def test_less_is_better_where_it_is() -> None:
    landmarks = [{"landmark_px": px} for px in (4.0, 2.0, 1.0, 0.5)]
    points = [{**p, **lm} for codec, rates in (("x", [4, 8, 16, 32]), ("neuralcodec", [1, 2, 4, 8]))
              for p, lm in zip(measured(codec, rates), landmarks, strict=True)]  # fmt: skip
    assert comparison.compare(points, "landmark_px", test="neuralcodec", anchor="x")["ratio"] == pytest.approx(0.25)


def test_the_headline_keeps_clips_apart_that_the_anchor_cannot_match() -> None:
    targets = [{"sha256": name, "kbps": 4.0} for name in "abcde"]
    rates = {"a": curves.RateAt(8.0), "b": curves.RateAt(2.0), "c": curves.RateAt(1, ">"), "d": curves.RateAt(4, "<=")}
    needed = {(name, "vmaf"): rate for name, rate in rates.items()}
    found = comparison.headline(targets, needed, "vmaf")
    assert found["ratio"] == pytest.approx(1.0) and found["clips"] == 3 and found["clips_lost"] == 1
    assert found["anchor_never_gets_there"] == 1 and found["anchor_cannot_go_so_low"] == 1
    assert found["not_measured"] == 1 and "e" not in found["per_clip"]
    assert found["per_clip_bounds"] == {"c": "<", "d": ">="}
    assert found["per_clip"] == pytest.approx({"a": 0.5, "b": 2.0, "c": 4.0, "d": 1.0})
    shown = [page._bounded(found, name) for name in "acde"]
    assert shown == ["0.50", "less than 4.00", "at least 1.00", "not measured"]


def test_a_codec_may_use_the_qualities_between_two_settings_of_one_size() -> None:
    small, rare = ({"setting": {"size": "128x128", "fps": fps}} for fps in ("25", "12.5"))
    points: list[dict[str, Any]] = [
        {"sha256": "a", "clip": "a", "codec": "x", "kbps": rate, "psnr": psnr, **size}
        for rate, psnr, size in ((2, 20.0, small), (8, 30.0, small), (7.9, 24.0, rare), (16, 34.0, {}))
    ]
    curve = comparison.curve(points, "a", "x", "psnr")
    assert curves.rate_at(curve, 25.0).rate == pytest.approx(4.0)  # half way in log rate, not 7.9 up to 8
    assert [p["kbps"] for p in comparison.settings(points, "a", "x", "psnr")] == [2, 8, 16]


def test_at_equal_rate_each_metric_has_its_own_front_and_ends_are_counted() -> None:
    names = ("a", "b", "c")
    points = [p for clip in names for p in measured("x", [4, 8, 16, 32], clip)]
    ours = [
        {"clip": clip, "sha256": clip, "codec": "neuralcodec", "kbps": rate, "psnr": psnr,
         "setting": {"target_kbps": 4.0}}
        for clip, rate, psnr in (("a", 8.0, 30.0), ("b", 2.0, 30.0), ("c", 64.0, 36.0), ("d", 4.0, 99.0))
    ]  # fmt: skip
    found = comparison.equal_rate(points + ours, "x", test="neuralcodec", target=4.0)
    assert found["clips"] == 3 and found["dearer"] == 1 and found["cheaper"] == 1  # nobody measured x on d
    assert found["kbps"] == pytest.approx((8 + 2 + 64) / 3)
    assert found["figures"] == {"psnr": [pytest.approx((31.0 + 28.0 + 35.0) / 3), pytest.approx(32.0)]}
    assert found["better"] == {"psnr": 1}


def test_at_equal_rate_less_is_better_where_it_is() -> None:
    figures = zip(measured("x", [4, 8, 16, 32]), (4.0, 2.0, 1.0, 0.5), strict=True)
    points = [{**p, "landmark_px": px} for p, px in figures]
    for rate, theirs, better, dearer in ((2.0, 4.0, 0, 1), (8.0, 2.0, 1, 0)):
        ours = {**points[0], "codec": "neuralcodec", "kbps": rate, "landmark_px": 3.0, "setting": {"target_kbps": 4.0}}
        found = comparison.equal_rate([*points, ours], "x", test="neuralcodec", target=4.0)
        assert found["figures"]["landmark_px"] == [pytest.approx(theirs), 3.0]
        assert (found["better"]["landmark_px"], found["dearer"], found["cheaper"]) == (better, dearer, 0)
    curve = {round(point.rate, 3): point.quality for point, _ in comparison.mean_curve(points, "x", "landmark_px")}
    assert [curve[rate] for rate in (4, 8, 16, 32)] == [-4.0, -2.0, -1.0, -0.5]


def test_means_are_of_what_all_points_have() -> None:
    assert comparison.means([{"a": 1, "b": 2}, {"a": 3}], ["a", "b"]) == {"a": 2.0}
    assert comparison.means([], ["a"]) == {}


def test_what_a_viewer_compares_with_is_affordable_or_the_cheapest() -> None:
    points = measured("x", [4, 8, 16, 32])
    assert comparison.nearest(points, "x", "a", 9)["kbps"] == 8  # type: ignore[index]
    assert comparison.nearest(points, "x", "a", 3)["kbps"] == 4  # type: ignore[index]
    assert [p["kbps"] for p in comparison.at_target(points, "x", 10)] == [8]
    wasteful = [*points, {**points[0], "kbps": 10}]  # what 4 kbit/s show already
    assert comparison.nearest(wasteful, "x", "a", 11)["kbps"] == 8  # type: ignore[index]
    assert [p["kbps"] for p in comparison.at_target(wasteful, "x", 10)] == [10]
    assert [p["kbps"] for p in comparison.at_target(wasteful, "x", 10, "psnr")] == [8]


def test_a_mean_curve_has_every_clip_at_its_best_for_that_rate() -> None:
    points = [
        {"clip": clip, "sha256": clip, "codec": "x", "kbps": rate, "psnr": quality, "setting": {"size": size}}
        for clip, size, rate, quality in (
            ("a", 256, 2, 20.0), ("a", 256, 8, 30.0), ("b", 256, 8, 30.0), ("b", 256, 32, 40.0),
            ("a", 128, 4, 29.0),  # better than 256 is between 2 and 8
            ("b", 128, 36, 29.0),  # costs more and shows less
        )
    ]  # fmt: skip
    curve = comparison.mean_curve(points, "x", "psnr")
    at = {round(point.rate, 3): (point.quality, edges) for point, edges in curve}
    assert at[4.0] == (25.0, (20.0, 30.0))  # 2 kbit/s and 8: b has nothing cheaper
    assert at[round(32**0.5, 3)] == (29.5, (29.0, 30.0))  # 4 and 8
    assert at[8.0] == (30.0, (30.0, 30.0))
    assert at[16.0] == (35.0, (30.0, 40.0))  # 8 and 32: a has nothing dearer
    assert [point for point, _ in curve] == curves.front([point for point, _ in curve]) and len(at) == len(curve) == 17


# --- what a rate counts ---


def test_rates_count_headers_first_pictures_and_shared_packets() -> None:
    coded = {"bytes": 1000, "first": 500, "references": 600, "sent": [[500], *[[20]] * 24, []]}
    found = points.rates(coded, 1.0)
    assert found["kbps"] == pytest.approx(8.0) and found["net"] == pytest.approx(3.2)
    assert found["wire"] == pytest.approx(8 + 25 * 0.32)
    assert found["wire_shared"] == pytest.approx(8 + 5 * 0.32)  # five windows of 200 ms hold all of it
    assert found["peak"] == 1.0  # shorter than two seconds
    uneven = points.rates({**coded, "bytes": 1000, "sent": [[0]] * 30 + [[20]] * 50 + [[0]] * 20}, 4.0)
    assert uneven["peak"] == pytest.approx(2.0)
    assert found["call_1"] == pytest.approx(4 + 4 / 60) and found["call_10"] == pytest.approx(4 + 4 / 600)
    assert points._split(2500) == [1200, 1200, 100] and points._split(1200) == [1200] and points._split(0) == []


def test_files_are_measured_as_files_are_made() -> None:
    assert ours.STEADY == {"frames_per_packet": FRAMES_PER_PACKET, "lookahead": LOOKAHEAD}
    assert ours.FILE == {**ours.STEADY, "film": True}


def test_on_the_wire_every_packet_has_headers_and_bounds_are_marked() -> None:
    def points_of(codec: str, packets: int) -> list[dict[str, Any]]:
        return [
            {"codec": codec, "sha256": "a", "clip": "a", "name": f"{q}", "psnr": q, "kbps": rate,
             "wire": rate + packets * 0.32, "wire_shared": rate + 1.6, "setting": {"size": "", "fps": ""}}
            for q, rate in ((20.0, 2.0), (26.0, 4.0))
        ]  # fmt: skip

    measured = [*points_of("neuralcodec", 25), *points_of("x264-call", 12)]
    (line,) = rate_distortion.on_the_wire(measured, "neuralcodec", ["x264-call", "vp9-call"])
    alone, wire, shared = (line["rates"][rate]["ratio"] for rate in rate_distortion.WIRES)
    assert alone == shared == pytest.approx(1.0)
    assert wire == pytest.approx(np.sqrt((2 + 8) / (2 + 3.84) * (4 + 8) / (4 + 3.84)))
    assert [page._ratio(c) for c in line["rates"].values()] == ["1.00", f"{wire:.2f}", "1.00"]
    cheap = [{**p, "psnr": p["psnr"] - 3} for p in points_of("neuralcodec", 25)]
    found = comparison.compare([*cheap, *points_of("x264-call", 12)], "psnr", test="neuralcodec", anchor="x264-call")
    assert found["anchor_cannot_go_so_low"] == 1 and page._ratio(found).startswith(">= ")


# --- a run ---


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Arguments of a run over all x264 variants on one tiny film, and the folder it works in."""
    folder = tmp_path_factory.mktemp("run")
    write_film(folder / "film" / "clip.mp4")
    return [
        "--clips", str(folder / "film"), "--out", str(folder / "out"), "--cache", str(folder / "cache"), "--only",
        "baselines", "--codecs", "x264-call", "--frames", "8", "--jobs", "1", "--test", "x264-call",
        "--no-bisection",
    ], folder  # fmt: skip


def kept(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in (folder / "cache" / "x264-call").iterdir()}


def test_x264_in_our_place_needs_its_own_bits_and_a_second_run_measures_nothing(
    small_run: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    pytest.importorskip("matplotlib")
    if not metrics.has_vmaf():
        pytest.skip("no ffmpeg program with libvmaf; the bench extra brings one")
    arguments, folder = small_run
    for group in ("landmarks", "identity", "perceptual"):  # the film shows no face; their own tests measure them
        monkeypatch.setitem(points.GROUPS, group, replace(points.GROUPS[group], unavailable=lambda: "left out here."))
    monkeypatch.setattr(rate_distortion, "TARGET", 40.0)
    assert rate_distortion.main(arguments) == 0
    result = json.loads((folder / "out" / "rate_distortion.json").read_text())
    assert 0 <= result["measurements"].pop("minutes") < 5
    assert result["measurements"] == {"planned": 13, "used": 13, "new": 13}
    assert [line["metric"] for line in result["headline"]] == ["vmaf", "ms_ssim", "psnr", "temporal_error"]
    for line in result["headline"]:
        assert line["ratio"] == pytest.approx(1.0, abs=1e-9) and line["clips"] == 1 and line["clips_lost"] == 0
    itself = comparison.compare(
        [*result["points"], *({**p, "codec": "neuralcodec"} for p in result["points"])], "psnr",
        test="neuralcodec", anchor="x264-call",
    )  # fmt: skip
    assert itself["ratio"] == pytest.approx(1.0, abs=1e-12) and itself["clips_lost"] == 0
    assert itself["bd_rate_percent"] == pytest.approx(0.0, abs=1e-9) and itself["bd_mean_overlap"] == pytest.approx(1.0)
    text = (folder / "out" / "rate_distortion.md").read_text()
    assert text.startswith("# Rate and distortion\n\n**Bits of x264-call") and "left out here." in text
    page = (folder / "out" / "rate_distortion.html").read_text()
    assert page.count("data:image/png;base64,") >= 4 and "data:video/mp4;base64," in page
    with av.open(str(folder / "out" / "rate_distortion.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="gray")
    assert picture.shape[1] > 2 * picture.shape[0] and picture.std() > 10  # VMAF beside PSNR, for calls alone
    before = kept(folder)
    capsys.readouterr()
    assert rate_distortion.main([*arguments, "--no-pictures"]) == 0
    assert kept(folder) == before
    assert json.loads((folder / "out" / "rate_distortion.json").read_text())["measurements"]["new"] == 0
    assert capsys.readouterr().out.startswith("# Rate and distortion")


def test_figures_that_two_processes_measure_of_one_stream_are_both_kept(tmp_path: Path) -> None:
    cache, what = Cache(tmp_path), {"codec": "x264-call", "clip": "a"}
    one, other = cache.load(what), cache.load(what)
    one.figures["picture"], other.figures["vmaf"] = {"psnr": 30.0}, {"vmaf": 40.0}
    cache.save(one)
    cache.save(other)
    assert cache.load(what).figures == {"picture": {"psnr": 30.0}, "vmaf": {"vmaf": 40.0}}


def test_two_runs_agree_to_the_byte_and_to_a_thousandth(
    portrait_clip: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralcodec.demo.moving_portrait", lambda: portrait_clip)  # the part of it that is looked at
    footage = points.Footage(clips.demo(tmp_path), limit=12)
    names = [name for name in ("x264-call", "svt-av1-call", "vp9-best") if not codecs.unavailable(codecs.CODECS[name])]
    settings: list[points.Setting] = [points.Baseline(footage, name, 50, 0.5, 2) for name in names]
    settings.append(points.Ours(footage, 4.0))
    groups = ("picture", "temporal", *(["vmaf"] if metrics.has_vmaf() else []))
    here, elsewhere = Cache(tmp_path / "here"), Cache(tmp_path / "elsewhere")
    assert running.run([(setting, groups) for setting in settings], elsewhere, 1) == 0  # in a fresh process
    for setting in settings:
        first, second = (
            points.measure(setting, here, groups),
            points.point(setting, elsewhere.load(setting.what()), groups),
        )
        assert first["bytes"] == second["bytes"] > 0
        assert here.stream(setting.what()) == elsewhere.stream(setting.what())
        for figure in ("psnr", "ms_ssim", "jitter", "temporal_error", *groups[2:]):
            assert first[figure] == pytest.approx(second[figure], abs=1e-3)


def test_a_metric_added_later_costs_a_decode_and_no_encode(
    small_run: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8)
    setting, cache = points.Baseline(footage, "x264-call", 46, 0.5, 2), Cache(tmp_path)
    points.measure(setting, cache, ("picture",))
    assert points.known(setting, cache, ("picture", "temporal")) == ["picture"]
    sent = cache.load(setting.what()).coded["sent"]
    assert [bool(sizes) for sizes in sent] == [True, False] * 4  # every other frame is a picture
    monkeypatch.setattr(codecs, "code", lambda *_, **__: pytest.fail("coded twice"))
    assert "temporal_error" in points.measure(setting, cache, ("picture", "temporal"))
    anew = replace(points.GROUPS["picture"], version="anew", measure=lambda *_: {"psnr": 7.0})
    monkeypatch.setitem(points.GROUPS, "picture", anew)
    assert points.known(setting, cache, ("picture", "temporal")) == ["temporal"]
    assert points.measure(setting, cache, ("picture",))["psnr"] == 7.0


def test_what_another_version_measured_is_measured_anew(
    small_run: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VMAF is ffmpeg's, faces are dlib's: of two versions in one table nobody could compare a thing."""
    footage, cache = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8), Cache(tmp_path)
    setting, names = points.Baseline(footage, "x264-call", 46, 0.5, 2), ("picture", "vmaf", "landmarks", "perceptual")
    for name in names:
        monkeypatch.setitem(points.GROUPS, name, replace(points.GROUPS[name], measure=lambda *_: {"psnr": 7.0}))
    monkeypatch.setattr(codecs, "program_version", lambda: "ffmpeg version 9")
    monkeypatch.setattr(report, "versions", lambda: {"dlib-bin": "20", "stlpips-pytorch": "1"})
    points.measure(setting, cache, names)
    assert points.known(setting, cache, names) == [*names]
    monkeypatch.setattr(codecs, "program_version", lambda: "ffmpeg version 10")
    assert points.known(setting, cache, names) == ["picture", "landmarks", "perceptual"]
    monkeypatch.setattr(report, "versions", lambda: {"dlib-bin": "21", "stlpips-pytorch": "1"})
    assert points.known(setting, cache, names) == ["picture", "perceptual"]


def test_a_changed_option_is_another_entry_and_ours_follows_pack_and_source(
    small_run: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    footage = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8)
    plain = points.Baseline(footage, "x264-call", 41)
    assert plain.what() == points.Baseline(footage, "x264-call", 41).what()
    changed = (replace(plain, quality=42), replace(plain, hold=2), replace(plain, codec="x264-best"),
               replace(plain, footage=replace(footage, limit=7)))  # fmt: skip
    assert len({json.dumps(setting.what(), sort_keys=True) for setting in (plain, *changed)}) == 5
    ours = points.Ours(footage, 4.0)
    before = ours.what()
    monkeypatch.setattr(points, "source_version", lambda: "changed")
    assert ours.what() != before


def test_a_codec_given_no_time_measures_nothing_and_says_so(
    small_run: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*small_run[0], "--cache", str(tmp_path), "--minutes", "0"]
    assert rate_distortion.main(arguments) == 1
    assert "run this again" in capsys.readouterr().out


def test_a_curve_that_ends_below_our_rates_gets_finer_settings(
    small_run: tuple[list[str], Path], tmp_path: Path
) -> None:
    footage, cache = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8), Cache(tmp_path)
    jobs: list[running.Job] = [(points.Baseline(footage, "x264-call", q), ("picture",)) for q in (51, 46)]
    assert rate_distortion.finer(jobs, cache, 1e9) == []  # before anything is coded nobody knows
    rates = [points.measure(setting, cache, groups)["kbps"] for setting, groups in jobs]
    assert rate_distortion.finer(jobs, cache, max(rates)) == []
    added = rate_distortion.finer(jobs, cache, max(rates) * 1.01)
    assert added == [(points.Baseline(footage, "x264-call", 46 - codecs.FINER), ("picture",))]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarms on this system")
def test_a_measurement_that_hangs_ends_its_process() -> None:
    program = (
        "import threading; from benchmarks import points, running\n"
        "points.measure = lambda *_: threading.Event().wait()\n"
        "running._one((None, ()), None, None, 1)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], timeout=60, check=False)
    assert run.returncode == -signal.SIGALRM


def test_encoders_that_die_again_and_again_get_longer_and_end_in_a_sentence(
    small_run: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[int] = []

    class Dying(ThreadPoolExecutor):
        def __init__(self, workers: int, **_: object) -> None:
            super().__init__(workers)

        def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Any:
            allowed.append(arguments[-1])
            raise BrokenProcessPool

    monkeypatch.setattr(running, "ProcessPoolExecutor", Dying)
    footage = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8)
    with pytest.raises(NeuralCodecError, match="crashed or hung 9 times.* is kept: run this again"):
        running.run([(points.Baseline(footage, "x264-call", 51), ("picture",))], Cache(tmp_path), 1)
    assert allowed == [running.HANG_SECONDS * tries for tries in range(1, 10)]


def test_half_a_curve_is_no_curve(small_run: tuple[list[str], Path]) -> None:
    footage = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8)
    planned = [points.Baseline(footage, "x264-call", q) for q in (51, 46)]
    own = [{"codec": codec, "sha256": footage.facts.sha256} for codec in ("x264-call", "neuralcodec")]
    assert rate_distortion.whole_curves(own, planned) == own[1:]
    assert rate_distortion.whole_curves([*own, own[0]], planned) == [*own, own[0]]


def test_bisection_finds_the_rate_between_two_steps_of_the_ladder(
    small_run: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    footage, cache = points.Footage(Path(small_run[0][1]) / "clip.mp4", limit=8), Cache(tmp_path)
    variants = ((1.0, 1, (51, 46, 41)),)
    monkeypatch.setitem(codecs.CODECS, "x264-call", replace(codecs.CODECS["x264-call"], variants=variants))
    with pytest.raises(LookupError, match="lacks points of x264-call"):
        bisection.needed(footage, cache, "x264-call", "psnr", 30.0)
    ladder = [points.measure(points.Baseline(footage, "x264-call", q), cache, ("picture",)) for q in (51, 46, 41)]
    between = points.measure(points.Baseline(footage, "x264-call", 43), Cache(tmp_path / "other"), ("picture",))
    found = bisection.needed(footage, cache, "x264-call", "psnr", between["psnr"])
    assert not found.bound and found.rate == pytest.approx(between["kbps"], rel=0.03)
    assert bisection.needed(footage, cache, "x264-call", "psnr", 5.0) == curves.RateAt(ladder[0]["kbps"], "<=")
    assert bisection.needed(footage, cache, "x264-call", "psnr", 90.0).bound == ">"


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


def test_the_demo_clip_is_lossless_and_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuralcodec import demo

    monkeypatch.setattr(demo, "moving_portrait", lambda: iter(FRAMES))
    path = clips.demo(tmp_path / "cache")
    assert all((a == b).all() for a, b in zip(clips.read(path).frames, FRAMES, strict=True))
    monkeypatch.setattr(demo, "moving_portrait", lambda: pytest.fail("made twice"))
    assert clips.demo(tmp_path / "cache") == path


def test_a_folder_without_films_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no video file"):
        clips.find(tmp_path)
    with pytest.raises(SystemExit, match="not a folder"):
        clips.find(tmp_path / "nowhere")
    (tmp_path / "a.mp4").write_bytes(b"no film")
    for path in (tmp_path / "a.mp4", tmp_path / "nowhere.mp4", tmp_path):
        with pytest.raises(SystemExit, match=r"cannot be read as a film \(.+\); give a video file"):
            clips.read(path)


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (validation, ("--kbps", "0")), (validation, ("--cores", "0")), (coding, ("--limit", "0")),
        (coding, ("--targets", "nan")), (rate_distortion, ("--kbps", "-1")), (rate_distortion, ("--jobs", "0")),
        (loss, ("--limit", "0")), (latency, ("--frames", "0")), (fuzz, ("--packets", "few")),
        (validation, ("--window", "0.5")), (rate_distortion, ("--window", "nan")), (validation, ("--lookahead", "17")),
        (validation, ("--frames-per-packet", "0")),
    ],
)  # fmt: skip
def test_options_of_no_measurement_are_one_sentence(
    module: Any, flags: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *flags])
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == 2 and f"argument {flags[0]}: " in capsys.readouterr().err


def test_what_a_benchmark_cannot_use_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/validation.py", "--pack", "nowhere"])
    monkeypatch.setattr(report, "pin", lambda _: None)
    with pytest.raises(SystemExit, match=r"^benchmarks\.validation: .*nowhere"):
        report.run(validation.main)
    with pytest.raises(SystemExit) as caught:
        report.run(lambda: 3)
    assert caught.value.code == 3


@pytest.mark.skipif(not metrics.has_vmaf(), reason="no ffmpeg program with libvmaf; the bench extra brings one")
def test_vmaf_is_high_for_the_same_film_and_falls_with_quality() -> None:
    coded = [codecs.code(codecs.CODECS["x264-call"], FRAMES, quality).frames for quality in (24, 45)]
    same, fine, coarse = (metrics.vmaf(FRAMES, frames) for frames in (FRAMES, *coded))
    assert same > 95 and same >= fine > coarse + 10
    assert metrics.vmaf(FRAMES, coded[1], every=3) == pytest.approx(coarse, abs=12)  # a third of the same frames


@pytest.mark.skipif(not metrics.has_vmaf(), reason="no ffmpeg program with libvmaf; the bench extra brings one")
def test_vmaf_of_every_fifth_frame_sees_these_and_their_neighbours() -> None:
    film = [*FRAMES, *FRAMES[::-1]]
    coded = codecs.code(codecs.CODECS["x264-call"], film, 45).frames
    rubbish = np.random.default_rng(0).integers(0, 256, film[0].shape).astype(np.uint8)
    seen = [[f if i % 5 in (1, 2, 3) else rubbish for i, f in enumerate(frames)] for frames in (film, coded)]
    assert metrics.vmaf(*seen, every=5) == metrics.vmaf(film, coded, every=5) != metrics.vmaf(film, coded, every=6)


@pytest.mark.parametrize(
    ("count", "every", "chosen"), [(30, 11, [5, 16, 27]), (4, 1, [0, 1, 2, 3]), (3, 11, [2]), (1, 5, [0])]
)
def test_the_first_frame_is_looked_at_no_more_than_any_other(count: int, every: int, chosen: list[int]) -> None:
    assert list(clips.looked_at(count, every)) == chosen
    film = [np.full((176, 176, 3), 100, np.uint8)] * count
    spoilt = [film[0] if index in chosen else film[0] + np.uint8(50) for index in range(count)]
    assert metrics.picture(film, spoilt, every=every)["ms_ssim"] == pytest.approx(1)


def test_tremble_of_known_films() -> None:
    rng = np.random.default_rng(0)
    still = [np.full((32, 32, 3), 100, np.uint8)] * 6
    noisy = [frame + rng.integers(0, 20, frame.shape).astype(np.uint8) for frame in still]
    flicker = [frame + np.uint8(10 * (i % 2)) for i, frame in enumerate(still)]
    assert metrics.temporal(noisy, noisy) == {"jitter": 1.0, "temporal_error": 0.0}
    assert metrics.temporal(noisy, still)["jitter"] == 0.0  # a frozen picture does not tremble
    assert metrics.temporal(still, flicker)["temporal_error"] == pytest.approx(20.0, abs=1e-3)  # 10 up, 10 down
    fade = [np.full((32, 32, 3), 100 + 5 * i, np.uint8) for i in range(6)]
    assert metrics.temporal(still, fade)["temporal_error"] == pytest.approx(0.0, abs=1e-4)


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
    target.symlink_to(tmp_path / "kept" / "result.json")
    report.save(target, {"rate": np.float32(1.5), "path": tmp_path})
    assert target.is_symlink()
    assert json.loads(target.read_text()) == {"rate": 1.5, "path": str(tmp_path)}
    with pytest.raises(ValueError):
        report.save(target, {"rate": float("nan")})
    assert json.loads(target.read_text())["rate"] == 1.5


def test_a_full_disk_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    cache, target = Cache(tmp_path), tmp_path / "result.json"
    report.save(target, {"rate": 1.5})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError):
            cache.save_stream({"codec": "x264-call"}, [bytes(2000)])
        with pytest.raises(OSError):
            report.save(target, {"rate": [2.5] * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["result.json"]
    assert json.loads(target.read_text()) == {"rate": 1.5}


def test_machine_names_what_a_reader_needs() -> None:
    found = report.machine()
    assert found["cpu"] and found["cores_usable"] >= 1 and found["versions"]["numpy"] == np.__version__


def test_a_busy_machine_is_said_beside_speeds() -> None:
    assert "do not quote" in report.busy({"load_before": 3.0})
    assert report.busy({"load_before": 0.1}) == report.busy({"load_before": None}) == ""


def test_what_a_codec_costs_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_film(tmp_path / "clip.mp4")
    run = subprocess.run([sys.executable, "-m", "benchmarks.resources", "x264-call", str(tmp_path / "clip.mp4")],
                         capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])  # fmt: skip
    found = json.loads(run.stdout)
    assert found["delay_frames"] == 0 and found["needs_gpu"] is False
    assert found["cpu_ms"] > 0 and 0 < found["peak_mb"] < 400 and found["encode_ms"] > 0 and found["decode_ms"] > 0


def test_what_ours_costs_is_measured_anew_with_another_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_film(tmp_path / "clip.mp4")
    ran: list[Any] = []
    found = subprocess.CompletedProcess([], 0, '{"encode_ms": 1.0}', "")
    monkeypatch.setattr(resources.subprocess, "run", lambda command, **_: ran.append(command) or found)
    monkeypatch.setattr(report, "busy", lambda _: "")
    jobs = [(points.Ours(points.Footage(tmp_path / "clip.mp4"), 4.0), ("picture",))]
    for runtime, times in (("1.20", 1), ("1.20", 1), ("1.21", 2)):
        monkeypatch.setattr(report, "versions", lambda runtime=runtime: {"onnxruntime": runtime})
        monkeypatch.setattr(report, "machine", lambda: {"cpu": "any"})
        assert resources.of([], jobs, Cache(tmp_path))[0]["encode_ms"] == 1.0 and len(ran) == times


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="programs are watched through /proc")
def test_the_memory_of_another_program_is_its_own() -> None:
    ours = np.ones(1 << 25)  # 256 MB, which getrusage would give the child too
    with resources.programs() as largest:
        subprocess.run(["sleep", "0.3"], check=True)
    assert 0 < largest[0] < 64 < ours.nbytes >> 20


# --- validation ---


def validated(**changes: Any) -> dict[str, Any]:
    figures = {
        "clip": "a", "frames": 300, "psnr": 27.0, "ms_ssim": 0.92, "freeze_psnr": 20.0, "freeze_ms_ssim": 0.6,
        "jitter": 0.9, "gain": 7.0, "kbps": 4.2, "kbps_first_10_s": 4.5, "motion_payload": 5.0,
        "motion_payload_p95": 9.0,
        "motion_packet": 7.0, "references": 2, "keypoint_error_px": 0.4, "frames_missing": 0, "frames_strayed": 0,
        "encode_ms": 10.0, "decode_ms": 25.0, "symbols": "x", "symbols_again": "x", "symbols_elsewhere": "x",
    }  # fmt: skip
    return {**figures, **changes}


WHOLE = {"machine": {"cores_usable": 2}, "import_ms": 50.0, "decode_mb": 300.0, "pack_mb": 8.0}


def verdicts(results: list[dict[str, Any]], whole: dict[str, Any] = WHOLE) -> dict[str, str]:
    return {figure: verdict for figure, _, _, verdict in validation.table(results, whole) if verdict}


def test_the_table_passes_when_every_figure_holds() -> None:
    found = verdicts([validated()])
    assert len(found) == 15 and set(found.values()) == {"pass"}


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({"motion_payload": 6.1}, "motion payload"),
        ({"kbps_first_10_s": 5.1}, "whole file"),
        ({"keypoint_error_px": 0.51}, "keypoint error"),
        ({"psnr": 25.9}, "PSNR, dB"),
        ({"ms_ssim": 0.89}, "MS-SSIM"),
        ({"gain": 3.7}, "PSNR gain"),
        ({"gain": -0.1}, "share of clips"),
        ({"encode_ms": 17.0}, "encode"),
        ({"decode_ms": 34.0}, "decode"),
        ({"symbols_elsewhere": "y"}, "symbols"),
        ({"frames_strayed": 1}, "frames whose motion"),
        ({"frames_missing": 1}, "frames that never"),
    ],
)
def test_the_table_fails_the_figure_that_does_not_hold(changes: dict[str, Any], figure: str) -> None:
    failed = {name for name, verdict in verdicts([validated(**changes)]).items() if verdict == "FAIL"}
    assert any(name.startswith(figure) for name in failed)
    assert len(failed) <= 2


FACE = {
    "landmark_px": 1.5, "mouth_error": 0.01, "mouth_range": 0.1, "closed": 10, "closed_shown": 9, "opened": 90,
    "opened_shown": 90, "identity": 0.9, "identity_distance": 0.3, "tremble": 0.5, "tremble_original": 0.6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "figure"),
    [
        ({}, ""),
        ({"landmark_px": 2.1}, "landmark distance"),
        ({"mouth_error": 0.016}, "mouth opening"),
        ({"closed_shown": 7}, "blink agreement"),
        ({"identity": 0.8}, "identity similarity"),
        ({"tremble": 0.7}, "landmark jitter"),
    ],
)
def test_each_face_figure_has_its_bar(changes: dict[str, Any], figure: str) -> None:
    rows = validation.face_rows([{**FACE, **changes}])
    failed = [name for name, *_, verdict in rows if verdict == "FAIL"]
    assert len(rows) == 7 and len(failed) == bool(changes)
    assert not failed or failed[0].startswith(figure)


@pytest.mark.parametrize(
    ("flags", "waits"),
    [
        ([], ours.FILE),
        (["--call"], {"frames_per_packet": 1, "lookahead": 0}),
        (["--call", "--lookahead", "2", "--frames-per-packet", "3"], {"frames_per_packet": 3, "lookahead": 2}),
    ],
)
def test_calls_are_measured_without_waiting_unless_told(
    flags: list[str], waits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def send(clip: clips.Clip, **options: Any) -> ours.Sent:
        asked.append(options)
        raise NoFaceError("nobody")

    monkeypatch.setattr(ours, "send", send)
    monkeypatch.setattr(validation, "load", lambda _: [clips.from_frames("a", [np.zeros((8, 8, 3), np.uint8)])])
    monkeypatch.setattr(report, "pin", lambda _: None)
    assert validation.main(["--kbps", "3", *flags]) == 1
    (options,) = asked
    assert {k: v for k, v in options.items() if k in ("frames_per_packet", "lookahead", "film")} == waits
    assert options["kbps"] == 3


def test_shrunk_originals_are_softer_the_smaller_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stripes = np.kron(np.tile([[0, 255]], (64, 16)), np.ones((1, 2)))[..., None].repeat(3, 2).astype(np.uint8)
    monkeypatch.setattr(validation, "load", lambda _: [clips.from_frames("a", [stripes] * 3)])
    monkeypatch.setattr(report, "pin", lambda _: None)
    found = {}
    for times in (1, 2, 4):
        record = tmp_path / "record.json"
        validation.main(["--shrunk", f"{times}", "--json", str(record)])
        found[times] = json.loads(record.read_text())["clips"][0]["psnr"]
    assert found[1] == 100.0 and found[1] > found[2] > found[4]
    assert found[4] == pytest.approx(20 * np.log10(2), abs=0.1)  # all grey: half the range off everywhere


@pytest.mark.parametrize("times", ["0", "0.5", "17"])
def test_originals_cannot_be_shrunk_by_less_than_one_or_very_much(
    times: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        validation.main(["--shrunk", times])
    assert "expected 1 to 16" in capsys.readouterr().err


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


def test_the_first_picture_counts_for_the_excess_and_its_paying_off_not_for_the_shortfall() -> None:
    per_frame = 4.0 * 125 / coding.clips.FPS
    frames = np.full(200, per_frame)
    frames[0], frames[1:40] = 40 * per_frame, 0.0
    even = coding.rate_errors(list(np.cumsum(frames)), 4.0)
    assert even == pytest.approx({"over": 0.0, "over_settled": 0.0, "under": 0.0}, abs=1e-9)
    frames[0] *= 2
    early = coding.rate_errors(list(np.cumsum(frames)), 4.0)
    assert early is not None and early["over"] == pytest.approx(0.8) and early["over_settled"] == pytest.approx(0.0)
    frames[150:] = 0.0
    late = coding.rate_errors(list(np.cumsum(frames)), 4.0)
    assert late is not None and late["under"] == pytest.approx(-1.0)
    assert coding.rate_errors(list(np.cumsum(frames[:100])), 4.0) is None


def test_coding_looks_at_the_frames_that_the_others_do(
    portrait_clip: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, sent, send = clips.from_frames("portrait", portrait_clip[:8]), [], ours.send

    def kept(*clip: Any, **options: Any) -> Any:
        sent.append(send(*clip, **options, preset=13))
        return sent[-1]

    def seen(file: int, at: Sequence[int], drawn: Sequence[int]) -> list[Any]:
        decoder = Decoder(device="cpu", threads=1)
        frames = [frame for data in sent[file].packets for frame in decoder.decode(data, wanted=drawn.__contains__)]
        return [frames[index].image for index in at]

    monkeypatch.setattr(ours, "send", kept)
    options = Namespace(pack=None, device="cpu", cores=1, pictures=None)
    row = coding.measure(clip, 4.5, options)
    expected = metrics.picture([clip.frames[2], clip.frames[7]], seen(0, (2, 7), range(8)))
    assert (row["psnr"], row["ms_ssim"]) == (expected["psnr"], expected["ms_ssim"])
    sent.clear()
    quarters = (1, 3, 5, 7)
    columns = [list(column) for column in zip(*coding.pictures(clip, options), strict=True)]
    assert len(columns) == 5 and np.array_equal(columns[0], [clip.frames[i] for i in quarters])
    assert np.array_equal(columns[4], seen(3, quarters, quarters))


def test_coding_measures_anew_what_another_source_or_clip_would_change(
    small_run: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []
    monkeypatch.setattr(coding, "measure", lambda _, target, __: measured.append(target) or {})
    for name in ("held_still", "a_minute", "the_same_twice"):
        monkeypatch.setattr(coding, name, lambda *_: {})
    monkeypatch.setattr(coding, "table", lambda _: [])
    monkeypatch.setattr(report, "pin", lambda _: None)
    film = tmp_path / "clips" / "clip.mp4"
    film.parent.mkdir()
    film.write_bytes((Path(small_run[0][1]) / "clip.mp4").read_bytes())
    command = ["--clips", str(film.parent), "--frames", "2", "--targets", "4", "--json", str(tmp_path / "r.json")]
    here = report.machine()
    for change, times in (
        (lambda: None, 1),
        (lambda: None, 1),
        (lambda: monkeypatch.setattr(points, "source_version", lambda: "changed"), 2),
        (lambda: film.write_bytes(film.read_bytes() + b"\0" * 8), 3),
        (lambda: monkeypatch.setattr(report, "machine", lambda: {**here, "cpu": "another"}), 4),
        (lambda: command.extend(["--cores", "1"]), 5),
    ):
        change()
        assert coding.main(command) == 0 and len(measured) == times


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not JSON"), ("[]", "lacks setting, rows"), ('{"rows": {}}', "lacks setting")]
)
def test_coding_leaves_a_file_alone_that_is_no_result_of_it(
    content: str, words: str, small_run: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "pin", lambda _: None)
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=rf"^{path} {words}.*; give a file that"):
        coding.main(["--clips", small_run[0][1], "--json", str(path)])
    assert path.read_text() == content

"""PSNR and MS-SSIM against closed forms and an independent computation with scipy, in float64 and unseparated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcodec.quality import PSNR_CAP, Array, ms_ssim, psnr, scales


def picture(size: int | tuple[int, int] = 256, seed: int = 0) -> Array:
    """A smooth picture with edges: sums of waves, one disc."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64.0
    planes = [
        sum(30 * np.sin(fx * x + fy * y + phase) for fx, fy, phase in rng.uniform(0, 6, (4, 3))) + 120 for _ in range(3)
    ]
    planes = [np.where((x - 1) ** 2 + (y - 1) ** 2 < 0.4, 220, plane) for plane in planes]
    return np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)


def noisy(image: Array, sigma: float, seed: int = 1) -> Array:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def reference_ms_ssim(a: Array, b: Array) -> float:
    """Wang 2003 written the slow way: a full 2-D window by scipy.signal.convolve2d, all in float64."""
    signal = pytest.importorskip("scipy.signal")
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    x, y = (0.299 * p[..., 0].astype(float) + 0.587 * p[..., 1] + 0.114 * p[..., 2] for p in (a, b))
    c1, c2, result = 6.5025, 58.5225, 1.0
    for index, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mean_x, mean_y, xx, yy, xy = (signal.convolve2d(p, window, "valid") for p in (x, y, x * x, y * y, x * y))
        contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        result *= float((contrast if index < 4 else contrast * luminance).mean()) ** weight
        x, y = (p.reshape(p.shape[0] // 2, 2, p.shape[1] // 2, 2).mean(axis=(1, 3)) for p in (x, y))
    return result


@settings(deadline=None)
@given(level=st.integers(0, 255), step=st.integers(1, 255))
def test_psnr_of_a_constant_difference_is_the_closed_form(level: int, step: int) -> None:
    other = (level + step) % 256
    a = np.full((9, 7, 3), level, np.uint8)
    b = np.full((9, 7, 3), other, np.uint8)
    assert psnr(a, b) == pytest.approx(20 * np.log10(255 / abs(other - level)), abs=1e-9)


def test_psnr_ends_at_its_cap() -> None:
    a = np.zeros((400, 400, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 1  # 105 dB
    assert psnr(a, b) == psnr(a, a) == PSNR_CAP == 100


def test_psnr_counts_every_channel_and_pixel_once() -> None:
    a = np.zeros((10, 10, 3), np.uint8)
    b = a.copy()
    b[3, 4, 2] = 255  # one sample of 300 is as wrong as can be
    assert psnr(a, b) == pytest.approx(10 * np.log10(300), abs=1e-9)


def test_identical_pictures_hit_the_cap_and_one() -> None:
    image = picture()
    assert psnr(image, image) == PSNR_CAP
    assert ms_ssim(image, image) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("sigma", [2, 10, 40])
def test_ms_ssim_agrees_with_an_independent_computation(sigma: float) -> None:
    image = picture((256, 320), seed=3)
    damaged = noisy(image, sigma)
    assert ms_ssim(image, damaged) == pytest.approx(reference_ms_ssim(image, damaged), abs=1e-4)


def test_ms_ssim_agrees_on_other_light() -> None:
    image = picture((256, 320), seed=3)
    assert ms_ssim(image, image // 4) == pytest.approx(reference_ms_ssim(image, image // 4), abs=1e-4)


def test_ms_ssim_agrees_on_real_texture_and_a_shift() -> None:
    data = pytest.importorskip("skimage.data")
    image = np.ascontiguousarray(data.astronaut()[0:256, 96:352])
    shifted = np.roll(image, 3, axis=1)
    assert ms_ssim(image, shifted) == pytest.approx(reference_ms_ssim(image, shifted), abs=1e-4)


def test_one_scale_is_plain_ssim() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = picture(21), noisy(picture(21), 12)
    assert scales(21, 21) == 1
    x, y = (p @ np.array([0.299, 0.587, 0.114]) for p in (a, b))
    _, full = metrics.structural_similarity(
        x, y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True, truncate=10 / 3
    )
    assert ms_ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-4)


def test_both_get_worse_with_noise_and_do_not_care_about_order() -> None:
    image = picture()
    worse = [noisy(image, sigma) for sigma in (3, 9, 27)]
    for measure in (psnr, ms_ssim):
        figures = [measure(image, other) for other in worse]
        assert figures == sorted(figures, reverse=True)
        assert measure(image, worse[1]) == pytest.approx(measure(worse[1], image), abs=1e-6)


def test_inverted_texture_scores_zero_and_not_a_complex_number() -> None:
    image = noisy(np.full((256, 256, 3), 128, np.uint8), 40)
    assert ms_ssim(image, 255 - image) == 0.0


@settings(deadline=None, max_examples=25)
@given(height=st.integers(11, 190), width=st.integers(11, 190))
def test_any_size_from_11_up_gives_a_score_between_0_and_1(height: int, width: int) -> None:
    image = picture((height, width))
    assert 0.0 < ms_ssim(image, noisy(image, 5)) <= 1.0


@pytest.mark.parametrize(("smaller", "count"), [(11, 1), (21, 1), (22, 2), (44, 3), (88, 4), (175, 4), (176, 5)])
def test_scale_count_is_the_largest_that_fits(smaller: int, count: int) -> None:
    assert scales(smaller, 1000) == count


def test_bad_input_is_one_sentence() -> None:
    image = picture(32)
    with pytest.raises(ValueError, match="differ in size"):
        psnr(image, image[:-1])
    with pytest.raises(ValueError, match="uint8 RGB"):
        ms_ssim(image.astype(np.float32), image)
    with pytest.raises(ValueError, match="uint8 RGB"):
        psnr(image[..., 0], image[..., 0])
    with pytest.raises(ValueError, match="at least 11x11"):
        ms_ssim(image[:10], image[:10])

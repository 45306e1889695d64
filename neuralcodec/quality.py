"""How close a decoded picture is to the original: PSNR and MS-SSIM on numpy arrays. Knows no codec, file or network.

Both take two uint8 RGB pictures (H, W, 3) and give one float, the figure of that frame. A clip's figure is the plain
mean of its frames' figures (not the PSNR of the mean error, which lets a few bad frames decide).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PSNR_CAP = 100.0  # dB, given for identical pictures so that a clip's mean stays finite
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, full range, not rounded
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, finest scale first
WINDOW, SIGMA = 11, 1.5  # Gaussian window of SSIM, samples
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # SSIM's stabilising constants
MID = 128.0  # subtracted before squaring: float32 then agrees with float64 to 1e-4 (measured 3e-5)


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB over all pixels of all three RGB channels together; at most ``PSNR_CAP``.

    >>> grey = np.full((8, 8, 3), 100, np.uint8)
    >>> round(psnr(grey, grey + 5), 2)  # 20 log10(255 / 5)
    34.15
    """
    _check(a, b)
    difference = np.subtract(a, b, dtype=np.int32).reshape(-1)
    error = float(np.dot(difference.astype(np.float64), difference)) / difference.size
    if error == 0.0:
        return PSNR_CAP
    return float(min(PSNR_CAP, 10.0 * np.log10(255.0**2 / error)))


def ms_ssim(a: Array, b: Array) -> float:
    """Multi-scale structural similarity (Wang et al. 2003) of the luma of two RGB pictures; 1.0 when identical.

    Exactly: BT.601 luma in float; an 11x11 Gaussian window, sigma 1.5, only where it fits whole; between scales the
    mean of each 2x2 block (an odd last row or column is dropped); contrast-structure averaged over the picture at
    every scale, luminance only at the coarsest; a negative average counts as 0; the product of powers
    ``SCALE_WEIGHTS``.
    Pictures under 176 pixels cannot hold five scales: see :func:`scales`.
    """
    _check(a, b)
    count = scales(a.shape[0], a.shape[1])
    weights = np.array(SCALE_WEIGHTS[:count]) / sum(SCALE_WEIGHTS[:count])
    pair = np.stack([a @ LUMA, b @ LUMA]) - np.float32(MID)  # (2, H, W)
    result = 1.0
    for index, weight in enumerate(weights):
        luminance, contrast = _similarity(pair)
        term = luminance if index == count - 1 else contrast
        result *= max(term, 0.0) ** weight
        if index < count - 1:
            pair = _halved(pair)
    return float(result)


def scales(height: int, width: int) -> int:
    """How many of the five scales fit: the coarsest must hold one 11x11 window. Weights are then rescaled to sum to 1.

    >>> scales(256, 256), scales(128, 200), scales(11, 500)
    (5, 4, 1)
    """
    smaller = min(height, width)
    if smaller < WINDOW:
        raise ValueError(f"MS-SSIM needs pictures of at least {WINDOW}x{WINDOW} pixels, got {width}x{height}.")
    return min(len(SCALE_WEIGHTS), int(np.log2(smaller // WINDOW)) + 1)


def _similarity(pair: Array) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure of two luma planes (2, H, W) that are already ``MID`` darker."""
    x, y = pair
    blurred = _blur(np.stack([x, y, x * x, y * y, x * y]))  # (5, H - 10, W - 10)
    mean_x, mean_y = blurred[0], blurred[1]
    variances = blurred[2] + blurred[3] - mean_x * mean_x - mean_y * mean_y
    covariance = blurred[4] - mean_x * mean_y
    contrast = (2.0 * covariance + np.float32(C2)) / (variances + np.float32(C2))
    mean_x, mean_y = mean_x + np.float32(MID), mean_y + np.float32(MID)
    luminance = (2.0 * mean_x * mean_y + np.float32(C1)) / (mean_x * mean_x + mean_y * mean_y + np.float32(C1))
    return float((luminance * contrast).mean(dtype=np.float64)), float(contrast.mean(dtype=np.float64))


def _kernel() -> Array:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2.0 * SIGMA**2))
    return np.asarray(weights / weights.sum(), np.float32)


KERNEL = _kernel()


def _blur(planes: Array) -> Array:
    """Separable Gaussian over the last two axes of (N, H, W), kept where the window fits: (N, H - 10, W - 10)."""
    rows = planes.shape[1] - WINDOW + 1
    columns = planes.shape[2] - WINDOW + 1
    down = KERNEL[WINDOW // 2] * planes[:, WINDOW // 2 : WINDOW // 2 + rows]
    for i in range(WINDOW // 2):  # the window is symmetric: add its two ends first, multiply once
        down += KERNEL[i] * (planes[:, i : i + rows] + planes[:, WINDOW - 1 - i : WINDOW - 1 - i + rows])
    across = KERNEL[WINDOW // 2] * down[:, :, WINDOW // 2 : WINDOW // 2 + columns]
    for i in range(WINDOW // 2):
        across += KERNEL[i] * (down[:, :, i : i + columns] + down[:, :, WINDOW - 1 - i : WINDOW - 1 - i + columns])
    return np.asarray(across)


def _halved(planes: Array) -> Array:
    """Mean of each 2x2 block of (N, H, W)."""
    height, width = planes.shape[1] // 2 * 2, planes.shape[2] // 2 * 2
    even, odd = planes[:, 0:height:2], planes[:, 1:height:2]
    both = even + odd
    return np.asarray((both[:, :, 0:width:2] + both[:, :, 1:width:2]) * np.float32(0.25))


def _check(a: Array, b: Array) -> None:
    for picture in (a, b):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"Expected uint8 RGB of shape (H, W, 3), got {picture.dtype} of shape {picture.shape}.")
    if a.shape != b.shape:
        raise ValueError(f"The pictures differ in size: {a.shape} and {b.shape}; resize one of them first.")

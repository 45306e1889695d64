"""A demonstration without a file or a network: a bundled portrait is made to move, coded, and shown beside x264.

The portrait is scikit-image's ``astronaut``: Eileen Collins, NASA, public domain. The movement is a warp of that one
photograph (camera, head, lids, brows, jaw), so that the figures say what the codec costs, not how it does on real film.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .errors import BackendUnavailableError
from .motion import Array

SIZE, FPS = 256, 25
# Where things are in the 512 x 512 photograph, pixels.
CENTER, SIDE = (226.0, 126.0), 210.0  # the head-and-shoulders square
NOSE, HEAD_RADII = (226.0, 118.0), (82.0, 108.0)
EYES = ((202.5, 101.0), (246.5, 103.5))
MOUTH = (223.0, 149.5)  # middle of the lower edge of the upper teeth


def moving_portrait(seconds: float = 6.0) -> Iterator[Array]:
    """Frames of the clip, uint8 RGB (256, 256, 3), at 25 a second. Any length; the movement repeats after a minute."""
    try:
        from scipy.ndimage import map_coordinates, zoom
        from skimage.data import astronaut
    except ImportError as error:
        raise BackendUnavailableError('The demo needs scikit-image; run: pip install "neuralcodec[demo]"') from error
    photograph = astronaut()[..., :3].astype(np.float32)
    # enlarged once with cubic splines, so that each frame can be sampled linearly, which is five times faster
    channels = [zoom(photograph[..., c], 2, order=3) for c in range(3)]
    finer = (2 * 512 - 1) / (512 - 1)
    for index in range(max(1, round(seconds * FPS))):
        x, y, gap = _source_points(index / FPS)
        samples = [map_coordinates(c, [y * finer, x * finer], order=1, mode="nearest") for c in channels]
        picture = np.stack(samples, -1)
        picture += gap[..., None] * (np.array([58.0, 22.0, 24.0], np.float32) - picture)  # the dark between the teeth
        yield np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _source_points(t: float) -> tuple[Array, Array, Array]:
    """Where each pixel of the frame at ``t`` seconds comes from in the photograph, and how much it shows the mouth's
    inside: x, y, gap, each (256, 256). Warps run backwards: camera first, expression last.
    """
    row, column = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    u, v = (column + 0.5) / SIZE * 2 - 1, (row + 0.5) / SIZE * 2 - 1
    x, y = _camera(u, v, t)
    x, y = _head(x, y, t)
    y = _brows(x, y, t)
    y = _lids(x, y, t)
    return x, *_jaw(x, y, t)


def _camera(u: Array, v: Array, t: float) -> tuple[Array, Array]:
    """Pan, zoom, roll and keystone of a camera held by hand."""
    keystone = 1 + 0.035 * np.sin(0.9 * t) * u + 0.025 * np.sin(0.7 * t + 1) * v
    u, v = u / keystone, v / keystone
    angle, zoom = 0.02 * np.sin(0.8 * t), 1 + 0.03 * np.sin(0.6 * t)
    cos, sin = np.cos(angle) * zoom * SIDE / 2, np.sin(angle) * zoom * SIDE / 2
    pan_x, pan_y = 3.5 * np.sin(0.5 * t), 2.0 * np.sin(0.75 * t)
    return CENTER[0] + pan_x + cos * u - sin * v, CENTER[1] + pan_y + sin * u + cos * v


def _head(x: Array, y: Array, t: float) -> tuple[Array, Array]:
    """Turn, nod and tilt: near parts (a smooth bump around the nose) move further than far ones."""
    across, down = (x - NOSE[0]) / HEAD_RADII[0], (y - NOSE[1]) / HEAD_RADII[1]
    near = np.clip(1 - across**2 - down**2, 0, 1) ** 1.5
    whole = np.exp(-((across / 1.25) ** 4) - ((y - 95) / 120) ** 4)  # head and hair, fading into the shoulders
    turn = 9.0 * np.sin(1.3 * t) + 2.0 * np.sin(3.1 * t)
    nod = 5.5 * np.sin(1.7 * t + 0.6) + 1.5 * np.sin(3.7 * t)
    tilt = 0.035 * np.sin(1.1 * t + 0.3)
    return (
        x - turn * near - 0.25 * turn * whole - tilt * whole * (y - 190),
        y - nod * near - 0.2 * nod * whole + tilt * whole * (x - NOSE[0]),
    )


def _brows(x: Array, y: Array, t: float) -> Array:
    """Brows go up now and then."""
    lift = 3.0 * max(0.0, float(np.sin(1.9 * t - 1.2))) ** 2
    return y + lift * np.exp(-(((x - 225) / 48) ** 4) - ((y - 87) / 9) ** 2)


def _lids(x: Array, y: Array, t: float) -> Array:
    """Two blinks every 4.6 s: the skin above the eye is drawn down over it."""
    shut = max(np.exp(-(((t % 4.6) - moment) / 0.075) ** 2) for moment in (1.3, 3.7))
    for eye_x, eye_y in EYES:
        across = (x - eye_x) / 11
        close = shut * np.clip(1.6 - 1.6 * across**2, 0, 1)
        top, upper, lower = eye_y - 9, eye_y - 4.5 + 3 * across**2, eye_y + 4.5 - 2 * across**2
        lid = upper + close * (lower - upper)
        inside = (np.abs(across) < 1) & (y > top) & (y < lid)
        y = np.where(inside, top + (y - top) * (upper - top) / np.maximum(lid - top, 1e-3), y)
    return y


def _jaw(x: Array, y: Array, t: float) -> tuple[Array, Array]:
    """The mouth opens and shuts as in speech: lower lip, chin and jaw go down, a dark gap opens under the teeth."""
    speech = 0.55 + 0.45 * np.sin(11.3 * t) * np.sin(4.1 * t + 0.5)
    opening = 6.5 * np.clip(speech - 0.25, 0, 1) * np.clip(np.sin(0.85 * t) * 3, 0, 1)
    across = (x - MOUTH[0]) / 22
    seam = MOUTH[1] - 8 * across**2
    drop = opening * np.exp(-((x - MOUTH[0]) / 16) ** 2)
    gap = np.clip(y - seam, 0, 1) * np.clip(seam + drop - y, 0, 1) * np.clip(3 - 3 * np.abs(across), 0, 1)
    fade = 1 - np.clip((y - 168) / 34, 0, 1) ** 2 * (3 - 2 * np.clip((y - 168) / 34, 0, 1))  # gone at the collar
    below = y > seam + drop
    return np.where(below, y - drop * fade, np.minimum(y, np.where(y > seam, seam, y))), gap

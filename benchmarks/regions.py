"""Where a talking head goes wrong, each place by itself: the open mouth, closed eyes, the far cheek, hands, what should
stand still. And what a film looks like: how far the head turns, how light the skin appears. Knows no codec.

Places come from dlib's landmarks on the original (benchmarks/faces.py) and both films are compared there, so that a
mouth drawn beside its place counts as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import clips, pose
from benchmarks.faces import CLOSED, EYES, Track
from neuralcodec.quality import LUMA, psnr

Array = NDArray[Any]

INNER_LIPS = tuple(range(60, 68))  # in the 68-point numbering, once around
CHEEKS = ((36, 41, 31, 48, 4, 3, 2, 1), (45, 46, 35, 54, 12, 13, 14, 15))  # eye, nose, mouth corner, jaw: left, right
OPEN = 0.05  # inner lips apart, of the face height: about 5 pixels of a face that fills a picture of 256
TURNED = 20.0  # degrees of yaw
FEWEST_PIXELS = 20  # of a place: dB of fewer say nothing
EYE_LONG, EYE_HIGH = 0.6, 0.35  # half sides of the box around an eye, of the distance between its corners

STILL_FRAMES = clips.FPS  # what stands still for a second ...
STILL_RANGE = 4.0  # ... keeps its luma, blurred over BLUR pixels, within so many 8-bit steps
BLUR = 5  # pixels: takes sensor noise off, which no codec here keeps, and leaves what moves
STILL_SHARE = 0.02  # of the picture at least, or nothing in that second counts as still

# Individual typology angle, degrees, with the limits of Chardon et al. (1991) and Del Bino et al. (2006).
SKIN = {"very light": 55.0, "light": 41.0, "intermediate": 28.0, "tan": 10.0, "brown": -30.0, "dark": -90.0}
SRGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # IEC 61966-2-1
CHEEK_PART = 0.6  # of a cheek's width and height, the middle: no nose, no beard's edge
FACING = 20.0  # degrees of yaw up to which both cheeks are looked at


@dataclass(frozen=True)
class Spot:
    """One kind of place in a film. frames: indices of the N frames that show it. psnr, frozen: (N,) dB there, of the
    decoded film and of its first reference repeated."""

    frames: Sequence[int]
    psnr: Array
    frozen: Array

    def figures(self) -> dict[str, float]:
        return {"frames": len(self.frames), "psnr": float(self.psnr.mean()), "freeze_psnr": float(self.frozen.mean())}


def spots(
    before: Sequence[Array],
    after: Sequence[Array],
    freeze: Array,
    track: Track | None,
    hands: Sequence[Sequence[int]] = (),
) -> dict[str, Spot]:
    """Places by name; what never shows is left out. "mouth": inside the inner lips while they are apart. "eyes": around
    closed eyes. "far cheek": of a head turned by more than ``TURNED`` degrees. "hands": the whole picture, in frames
    that show one.

    track: of every frame of ``before``; None when no face is found. hands: labelled (first, end) frames.
    """
    places: dict[str, dict[int, Array]] = {"mouth": {}, "eyes": {}, "far cheek": {}, "hands": {}}
    shape = before[0].shape[:2]
    everything = np.ones(shape, bool)
    for first, end in hands:
        places["hands"] |= {index: everything for index in range(first, min(end, len(before)))}
    if track is not None:
        closed, turn = track.eyes < CLOSED * np.median(track.eyes), yaws(track)
        for index, points in enumerate(track.landmarks):
            if track.mouth[index] > OPEN:
                places["mouth"][index] = polygon(points[list(INNER_LIPS)], shape)
            if closed[index]:
                places["eyes"][index] = _around_eyes(points, shape)
            if abs(turn[index]) > TURNED:
                places["far cheek"][index] = polygon(points[list(CHEEKS[int(turn[index] > 0)])], shape)
    found = {}
    for name, masks in places.items():
        masks = {index: mask for index, mask in masks.items() if mask.sum() >= FEWEST_PIXELS}
        if masks:
            found[name] = Spot(
                list(masks),
                np.array([psnr(before[i][mask][None], after[i][mask][None]) for i, mask in masks.items()]),
                np.array([psnr(before[i][mask][None], freeze[mask][None]) for i, mask in masks.items()]),
            )
    return found


def still(before: Sequence[Array], after: Sequence[Array], track: Track | None) -> dict[str, float]:
    """Do the still surroundings swim or jump? Luma, blurred over ``BLUR`` pixels, outside the face.

    share: of the picture, that stands still for a second in ``before`` (mean over seconds). From frame to frame it
    changes there by a root mean square, in 8-bit steps, of which change, jump are the median and the 99th percentile
    over frames; change_original, jump_original: the same of ``before``. Empty when nothing stands still.
    """
    changes: list[Array] = []
    shares = []
    for start in range(0, len(before) - 1, STILL_FRAMES):
        stop = min(start + STILL_FRAMES + 1, len(before))
        own, ours = (np.stack([_blurred(frame) for frame in film[start:stop]]) for film in (before, after))
        mask = np.ptp(own, axis=0) <= STILL_RANGE
        if track is not None:
            points = track.landmarks[start:stop].reshape(-1, 2)
            left, top = np.maximum(points.min(axis=0), 0).astype(int)
            right, bottom = np.maximum(points.max(axis=0), 0).astype(int)
            mask[top : bottom + 1, left : right + 1] = False
        shares.append(float(mask.mean()))
        if shares[-1] >= STILL_SHARE:
            steps = (np.square(np.diff(film[:, mask], axis=0)).mean(axis=1) for film in (own, ours))
            changes.append(np.sqrt(np.stack(list(steps), axis=1)))  # (frames, 2)
    if not changes:
        return {}
    (own_change, change), (own_jump, jump) = np.percentile(np.concatenate(changes), [50, 99], axis=0)
    return {
        "share": float(np.mean(shares)),
        "change_original": float(own_change),
        "change": float(change),
        "jump_original": float(own_jump),
        "jump": float(jump),
    }


def look(frames: Sequence[Array], track: Track) -> dict[str, float]:
    """yaw: how far the head turns to a side, degrees (99th percentile: one misread frame decides nothing). ita: the
    individual typology angle of the cheeks, degrees, see :func:`typology_angle`; light and camera are in it, so it says
    how light the skin appears in this film, not how light it is. Left out when no frame shows both cheeks.
    """
    turn = np.abs(yaws(track))
    pixels = []
    for frame, points, angle in zip(frames, track.landmarks, turn, strict=True):
        if angle <= FACING:
            for cheek in CHEEKS:
                corners = points[list(cheek[1:-1])]  # less of the hair
                middle = corners.mean(axis=0)
                pixels.append(frame[polygon(middle + CHEEK_PART * (corners - middle), frame.shape[:2])])
    result = {"yaw": float(np.percentile(turn, 99))}
    if sum(map(len, pixels)):
        result["ita"] = typology_angle(np.concatenate(pixels))
    return result


def yaws(track: Track) -> Array:
    """(N,) degrees that the head turns to a side, positive towards the right of the picture."""
    turns = np.array([pose.rotation(points) for points in track.landmarks])
    return np.degrees(np.arctan2(-turns[:, 2, 0], turns[:, 2, 2]))


def typology_angle(pixels: Array) -> float:
    """Individual typology angle of sRGB pixels uint8 (N, 3): the angle of (L* - 50, b*) in degrees, CIELAB with D65, of
    the medians of L* and b*. Light skin has a high one; ``SKIN`` names the published classes."""
    value = np.asarray(pixels, float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ SRGB_TO_XYZ.T / SRGB_TO_XYZ.sum(axis=1)  # over the white point
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness, yellow = 116 * cube[:, 1] - 16, 200 * (cube[:, 1] - cube[:, 2])
    return float(np.degrees(np.arctan2(np.median(lightness) - 50, np.median(yellow))))


def polygon(corners: Array, shape: tuple[int, ...]) -> Array:
    """bool (H, W): pixels whose middle lies inside corners (M, 2) in pixels x, y, by the even-odd rule."""
    mask = np.zeros(shape[:2], bool)
    low = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(axis=0)) + 1, (shape[1], shape[0])).astype(int)
    if (low >= high).any():
        return mask
    x, y = np.arange(low[0], high[0])[None, :], np.arange(low[1], high[1])[:, None]
    inside = np.zeros((y.size, x.size), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    mask[low[1] : high[1], low[0] : high[0]] = inside
    return mask


def _around_eyes(points: Array, shape: tuple[int, ...]) -> Array:
    """A box around each eye, turned as the eye is."""
    mask = np.zeros(shape[:2], bool)
    for left, _, _, right, _, _ in EYES:
        middle, along = (points[left] + points[right]) / 2, points[right] - points[left]
        high = np.array([-along[1], along[0]])
        signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        mask |= polygon(middle + signs[:, :1] * EYE_LONG * along + signs[:, 1:] * EYE_HIGH * high, shape)
    return mask


def _blurred(frame: Array) -> Array:
    """Luma (H, W), each the mean of ``BLUR`` x ``BLUR`` pixels, the border repeated."""
    height, width = frame.shape[:2]
    luma: Array = np.pad(frame @ LUMA, BLUR // 2, mode="edge")
    rows = np.asarray(sum(luma[step : step + height] for step in range(BLUR)))
    return np.asarray(sum(rows[:, step : step + width] for step in range(BLUR))) / BLUR**2

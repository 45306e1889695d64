"""Find the face, follow it with a square crop, cut that square out, paste it back. Knows no motion, packet or clock.

All squares and faces are in pixels of the source picture; pictures are uint8 RGB (H, W, 3) of any size. Time is an
argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import av
import numpy as np

from .motion import Array, MotionParams
from .runtime.session import Session

# Where the renderer expects the face, in crop units (the square spans [-1, 1]): medians of its training footage.
HEAD_SCALE = 0.70
HEAD_Y = -0.126
LARGEST_SCALE = 1.0  # above this the square reaches out of the picture rather than cutting the head off
WHOLE_SCALES = (0.45, 1.0)  # a square picture with the face this big, and this near to its place, is coded as it is
WHOLE_OFFSET = 0.55

DEAD_ZONE, DEAD_ZOOM = 0.24, 0.25  # how far a head may stray in its square: half sides, and of log side
PATIENCE = 0.25  # seconds it must, so that one bad box moves nothing

CROP_MAX = 8192  # pixels: what a stream can say
SMALLEST_SIDE = 8  # swscale is not safe below this
LUMA = np.array([77, 150, 29], np.uint16)  # BT.601 weights out of 256
DETECTOR_SIZE = 160
THRESHOLD = 0.5
PROPOSAL = 0.7  # of the threshold: the first look may be less sure than the second
PROPOSALS = 4  # the second look is taken at so many faces at most
ZOOM_SCALE = 0.6  # how big the second look shows the face, as a half side in [-1, 1] units


@dataclass(frozen=True)
class Square:
    """A square of the source picture, in pixels. What of it lies outside the picture repeats the nearest edge pixel."""

    x: int
    y: int
    side: int

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.side / 2, self.y + self.side / 2

    @classmethod
    def around(cls, center_x: float, center_y: float, side: float) -> Square:
        """The whole-pixel square nearest to a centre and a side."""
        whole = max(SMALLEST_SIDE, round(side))
        return cls(round(center_x - whole / 2), round(center_y - whole / 2), whole)

    @classmethod
    def covering(cls, image_size: Sequence[int]) -> Square:
        """The centred square that holds a whole picture of (width, height)."""
        width, height = int(image_size[0]), int(image_size[1])
        side = max(width, height)
        return cls((width - side) // 2, (height - side) // 2, side)

    @staticmethod
    def side_most(width: int, height: int, size: int) -> int:
        """The longest side that is shown of pictures of so many pixels, coded at ``size`` (FORMAT.md section 8)."""
        return 2 * max(width, height, size)


@dataclass(frozen=True)
class Face:
    """A face found in a picture: centre and half side of the tight face square, in source pixels; score 0..1.

    The square is the one the motion network wants: centre = the pose's translation, half side = the pose's scale.
    """

    center_x: float
    center_y: float
    half_side: float
    score: float = 1.0

    def box_in(self, square: Square) -> Array:
        """float32 (3,): centre x, centre y and half side in units of ``square``, which spans [-1, 1]."""
        x, y = square.center
        half = square.side / 2
        return np.array([(self.center_x - x) / half, (self.center_y - y) / half, self.half_side / half], np.float32)

    @classmethod
    def from_box(cls, square: Square, box: Sequence[float] | Array, score: float = 1.0) -> Face:
        """Inverse of :meth:`box_in`; a coded frame's pose (tx, ty, scale) is such a box too."""
        x, y = square.center
        half = square.side / 2
        return cls(x + float(box[0]) * half, y + float(box[1]) * half, float(box[2]) * half, score)


def box_of(motion: MotionParams) -> Array:
    """float32 (3,): centre x, y and half side of a face in coded-picture units, as :meth:`Face.box_in` has them."""
    return np.array([*motion.translation[:2], motion.scale], np.float32)


def placed(motion: MotionParams, here: Square, there: Square) -> MotionParams:
    """The same face in the coordinates of another square of the source picture."""
    if here == there:
        return motion
    x, y, half = Face.from_box(here, box_of(motion)).box_in(there).tolist()
    depth = motion.translation[2] * np.float32(here.side / there.side)
    return replace(motion, translation=np.array([x, y, depth], np.float32), scale=half)


def crop(image: Array, square: Square, size: int) -> Array:
    """Cut ``square`` out of ``image`` as uint8 (size, size, 3). Not resampled, so exact, where the side is ``size``."""
    height, width = _checked(image).shape[:2]
    x, y, side = square.x, square.y, square.side
    if side < 1 or size < 1:
        raise ValueError(f"cannot crop a square of side {side} to {size} pixels: both must be at least 1")
    if x >= 0 and y >= 0 and x + side <= width and y + side <= height:
        part = image[y : y + side, x : x + side]
    else:
        left, top = min(max(x, 0), width - 1), min(max(y, 0), height - 1)  # at least one row and column to repeat
        right, bottom = max(min(x + side, width), left + 1), max(min(y + side, height), top + 1)
        if (
            right > x + side or bottom > y + side or left < x or top < y
        ):  # wholly outside: only the nearest edge is seen
            rows = np.clip(np.arange(y, y + side), 0, height - 1)
            columns = np.clip(np.arange(x, x + side), 0, width - 1)
            part = image[rows[:, None], columns]
        else:  # the same, ten times faster
            margins = ((top - y, y + side - bottom), (left - x, x + side - right), (0, 0))
            part = np.pad(image[top:bottom, left:right], margins, mode="edge")
    return resize(part, size, size)


def paste(canvas: Array, square: Square, picture: Array, feather: float = 0.06) -> Array:
    """A copy of ``canvas`` with ``picture`` (square, any size) scaled into ``square``.

    The edge fades over ``feather`` of the side, except where the square touches or crosses the border of the canvas:
    there nothing lies outside to fade into, so pasting a whole picture back is exact.
    """
    height, width = _checked(canvas).shape[:2]
    out = canvas.copy()
    left, top = max(0, square.x), max(0, square.y)
    right, bottom = min(width, square.x + square.side), min(height, square.y + square.side)
    if left >= right or top >= bottom:
        return out
    scaled = resize(_checked(picture), square.side, square.side)
    scaled = scaled[top - square.y : bottom - square.y, left - square.x : right - square.x]
    ramp = feather * square.side
    fade_x = _fade(right - left, ramp, square.x > 0, square.x + square.side < width)
    fade_y = _fade(bottom - top, ramp, square.y > 0, square.y + square.side < height)
    mask = np.minimum(fade_y[:, None], fade_x)[..., None]
    below = out[top:bottom, left:right].astype(np.float32)
    out[top:bottom, left:right] = np.rint(below + mask * (scaled - below)).astype(np.uint8)
    return out


def resize(image: Array, width: int, height: int) -> Array:
    """Resample uint8 RGB: area means when it shrinks by more than two, otherwise bicubic."""
    if image.shape[:2] == (height, width):
        return np.array(image, copy=True, order="C")
    if min(*image.shape[:2], width, height) < SMALLEST_SIDE:  # too small for swscale's vector code: nearest pixel
        rows = np.arange(height) * image.shape[0] // height
        columns = np.arange(width) * image.shape[1] // width
        return np.ascontiguousarray(image[rows[:, None], columns])
    # swscale turns RGB into YUV to scale it. Three planes called Y, U, V but holding R, G, B are only scaled: colours
    # stay exact and it is four times faster. Long bicubic filters drift by a level or two; area means do not.
    frame = av.VideoFrame(image.shape[1], image.shape[0], "yuv444p")
    for channel, plane in enumerate(frame.planes):
        buffer = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
        buffer[: image.shape[0], : image.shape[1]] = image[..., channel]
    mode = "AREA" if max(image.shape[0] / height, image.shape[1] / width) > 2 else "BICUBIC"
    scaled = frame.reformat(width, height, interpolation=mode, threads=1)  # to start more takes longer than to scale
    out = np.empty((height, width, 3), np.uint8)
    for channel, plane in enumerate(scaled.planes):
        buffer = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
        out[..., channel] = buffer[:height, :width]
    return out


def luma(image: Array) -> Array:
    """uint8 (H, W) of uint8 RGB (H, W, 3), rounded down."""
    return np.asarray((image.astype(np.uint16) @ LUMA >> 8).astype(np.uint8))


class FaceDetector:
    """Frontal to half-profile faces by the pack's small network: ``image`` in, ``heatmap`` and ``box`` out.

    A first look over the whole picture proposes; a second, zoomed look at each proposal decides and places it finely.
    """

    def __init__(self, session: Session, threshold: float = THRESHOLD) -> None:
        self._session = session
        self.threshold = threshold
        side = dict(session.input_shapes).get("image", (1, 3, DETECTOR_SIZE, DETECTOR_SIZE))[-1]
        self._size = side if isinstance(side, int) else DETECTOR_SIZE

    def detect(self, image: Array, near: Square | None = None) -> list[Face]:
        """Faces found in ``image``, or only inside ``near`` (one look), the largest and surest first."""
        _checked(image)
        if near is not None:
            return self._look(crop(image, near, self._size), near, self.threshold)
        whole = Square.covering((image.shape[1], image.shape[0]))
        sure: list[Face] = []
        for face in self._look(self._letterbox(image), whole, PROPOSAL * self.threshold)[:PROPOSALS]:
            area = Square.around(face.center_x, face.center_y, 2 * face.half_side / ZOOM_SCALE)
            closer = self._look(crop(image, area, self._size), area, self.threshold)
            sure += [c for c in closer if _same(c, face) and not any(_same(c, s) for s in sure)][:1]
        return sorted(sure, key=_weight)

    def _look(self, picture: Array, area: Square, threshold: float) -> list[Face]:
        """Faces in one network-sized picture of ``area``."""
        feed = np.ascontiguousarray(picture.transpose(2, 0, 1)[None]).astype(np.float32) / 255
        result = self._session.run({"image": feed})
        found = decode_faces(result["heatmap"][0, 0], result["box"][0], threshold)
        return sorted((Face.from_box(area, face[:3], float(face[3])) for face in found), key=_weight)

    def _letterbox(self, image: Array) -> Array:
        height, width = image.shape[:2]
        size = self._size
        ratio = max(height, width) / size
        step = max(1, int(ratio / 3))  # every step-th pixel first: the network looks at shapes, not at texture
        small = resize(image[::step, ::step], max(1, round(width / ratio)), max(1, round(height / ratio)))
        picture = np.full((size, size, 3), 128, np.uint8)
        top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
        picture[top : top + small.shape[0], left : left + small.shape[1]] = small
        return picture


def decode_faces(heatmap: Array, box: Array, threshold: float) -> Array:
    """float32 (N, 4): centre x, centre y, half side in [-1, 1] units of the network's picture, and score.

    heatmap (H, W) 0..1; box (3, H, W): offset of the centre from the middle of the cell in cells, and the logarithm of
    the half side in cells. Peaks are cells not lower than their eight neighbours; a peak inside a better face's square
    is that same face.
    """
    rows, columns = heatmap.shape
    around = np.pad(heatmap, 1, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3))
    peaks = np.argwhere((heatmap >= threshold) & (heatmap >= windows.max(axis=(2, 3))))
    kept: list[tuple[float, float, float, float]] = []
    for row, column in sorted(peaks.tolist(), key=lambda peak: -heatmap[peak[0], peak[1]]):
        offset_x, offset_y, log_half = (float(v) for v in box[:, row, column])
        x = (column + 0.5 + offset_x) / columns * 2 - 1
        y = (row + 0.5 + offset_y) / rows * 2 - 1
        half = math.exp(min(log_half, 5.0)) / columns * 2
        if all(max(abs(x - k[0]), abs(y - k[1])) > 0.7 * max(half, k[2]) for k in kept):
            kept.append((x, y, half, float(heatmap[row, column])))
    return np.asarray(kept, np.float32).reshape(-1, 4)


def head_square(face: Face, image_size: Sequence[int]) -> Square:
    """The head-and-shoulders square around ``face`` as in the training crops, inside the picture if it fits."""
    width, height = int(image_size[0]), int(image_size[1])
    side = 2 * face.half_side / HEAD_SCALE
    if side > min(width, height):
        side = max(min(width, height), 2 * face.half_side / LARGEST_SCALE)
    center_y = face.center_y - HEAD_Y * side / 2
    square = Square.around(face.center_x, center_y, side)
    return Square(_inside(square.x, square.side, width), _inside(square.y, square.side, height), square.side)


def frames_head(face: Face, image_size: Sequence[int]) -> bool:
    """Whether a (width, height) picture is square and already shows head and shoulders as the renderer expects them."""
    if image_size[0] != image_size[1]:
        return False
    x, y, half = Face.box_in(face, Square.covering(image_size)).tolist()
    return WHOLE_SCALES[0] <= half <= WHOLE_SCALES[1] and abs(x) <= WHOLE_OFFSET and abs(y - HEAD_Y) <= WHOLE_OFFSET


class CropFollower:
    """Decides which square of each frame is coded.

    ``mode`` "none" always codes the whole frame, "fixed" always ``fixed``, "auto" follows the face: the square stands
    still while the face stays in a dead zone, because a moving square moves the background and that costs bits; when
    the face leaves the zone the square jumps to its new place, and receivers make that a glide (framing.py). In "auto"
    a square picture that already frames head and shoulders is coded whole, and stays so.

    After each :meth:`update`: ``moved`` tells that the square has jumped and a new reference is due, ``whole`` that the
    square holds the whole picture by decision.
    """

    JUMP = 1.0  # a drift of this many half sides is a cut or another person
    JUMP_ZOOM = 0.7

    def __init__(self, mode: str = "auto", fixed: Square | None = None) -> None:
        if mode not in ("auto", "none", "fixed") or (mode == "fixed") != (fixed is not None):
            raise ValueError(f"crop mode {mode!r} with {fixed}: expected 'auto', 'none', or 'fixed' with a square")
        if fixed and not (
            SMALLEST_SIDE <= fixed.side <= CROP_MAX and abs(fixed.x) <= CROP_MAX and abs(fixed.y) <= CROP_MAX
        ):
            raise ValueError(
                f"crop {fixed.x},{fixed.y},{fixed.side} is out of range: {SMALLEST_SIDE} to {CROP_MAX} pixels"
            )
        self.mode = mode
        self.fixed = fixed
        self.moved = False
        self.whole = mode == "none"
        self._size: tuple[int, int] | None = None
        self._square: Square | None = None
        self._outside_since: float | None = None

    @classmethod
    def parse(cls, text: str) -> CropFollower:
        """From the command line: "auto", "none" or "x,y,side"."""
        if text in ("auto", "none"):
            return cls(text)
        try:
            x, y, side = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"crop {text!r} is not understood: expected auto, none, or x,y,side in pixels") from None
        if side < SMALLEST_SIDE:
            raise ValueError(f"crop side {side} is too small: expected at least {SMALLEST_SIDE} pixels")
        return cls("fixed", Square(x, y, side))

    def update(self, image_size: Sequence[int], face: Face | None, seconds: float) -> Square:
        """The square to code for a frame: its (width, height), the face found in it or None, and its time."""
        size = (int(image_size[0]), int(image_size[1]))
        new_size = size != self._size
        if new_size:
            self._size, self._square, self._outside_since = size, None, None
            self.whole = self.mode == "none"
        self.moved = new_size
        if self.fixed is not None:
            return self.fixed
        if self.mode == "none" or (self.whole and not new_size):
            return Square.covering(size)
        if face is not None and self._square is None:
            self.whole = frames_head(face, size)
            self._stand(Square.covering(size) if self.whole else head_square(face, size))
        elif face is not None:
            self._follow(head_square(face, size), seconds)
        if self._square is None:  # no face yet: the middle of the picture
            return Square.around(size[0] / 2, size[1] / 2, min(size))
        return self._square

    def _follow(self, wanted: Square, seconds: float) -> None:
        assert self._square is not None and self._size is not None
        there = followed(wanted, self._square, self._size)
        drift, zoom = away(place_of(wanted), place_of(self._square))
        if drift > self.JUMP or zoom > self.JUMP_ZOOM:
            self._stand(wanted)
        elif there == self._square:
            self._outside_since = None
        elif self._outside_since is None:
            self._outside_since = seconds
        elif seconds - self._outside_since >= PATIENCE:
            self._stand(there)

    def _stand(self, square: Square) -> None:
        """Another square from here on: a new reference is due."""
        self.moved, self._square, self._outside_since = True, square, None


def _weight(face: Face) -> float:
    return -face.score * face.half_side


def _same(a: Face, b: Face) -> bool:
    """Whether two boxes are of one face."""
    apart = max(abs(a.center_x - b.center_x), abs(a.center_y - b.center_y))
    return apart < 0.7 * max(a.half_side, b.half_side) and 0.5 < a.half_side / b.half_side < 2


def place_of(square: Square) -> Array:
    """float64 (3,): centre x and y and the logarithm of the side, source pixels."""
    return np.array([*square.center, math.log(square.side)])


def square_at(place: Array) -> Square:
    """The whole-pixel square nearest to a place of :func:`place_of`."""
    x, y, log_side = map(float, place)
    return Square.around(x, y, math.exp(log_side))


def away(one: Array, other: Array) -> tuple[float, float]:
    """How far two places are apart: centres in half sides of ``other``, and |log| of the sides' ratio."""
    return float(np.abs(one[:2] - other[:2]).max() / (math.exp(other[2]) / 2)), float(abs(one[2] - other[2]))


def followed(wanted: Square, stands: Square, image_size: Sequence[int], slack: float = 1.0) -> Square:
    """Where a square that stood there should stand for a head that wants another (:func:`head_square`): where it is,
    unless the head has strayed far from its place in it, to one side, up or down, or in size. slack: times what is
    far."""
    there = place_of(stands)
    drift = np.abs(place_of(wanted) - there) / [stands.side / 2, stands.side / 2, 1]
    if drift[2] > slack * DEAD_ZOOM:
        return wanted
    strayed = drift[:2] > slack * DEAD_ZONE
    if not strayed.any():
        return stands
    x, y = np.where(strayed, wanted.center, stands.center)
    square = Square.around(x, y, stands.side)
    x, y = (_inside(start, square.side, int(n)) for start, n in zip((square.x, square.y), image_size, strict=True))
    return Square(x, y, square.side)


def _inside(start: int, side: int, length: int) -> int:
    """Shift an interval into [0, length) if it fits; centre it otherwise."""
    return min(max(start, 0), length - side) if side <= length else (length - side) // 2


def _fade(length: int, ramp: float, fade_start: bool, fade_end: bool) -> Array:
    steps = np.arange(length, dtype=np.float32) + 0.5
    out = np.ones(length, np.float32)
    if ramp > 0 and fade_start:
        out = np.minimum(out, steps / np.float32(ramp))
    if ramp > 0 and fade_end:
        out = np.minimum(out, steps[::-1] / np.float32(ramp))
    return out


def _checked(image: Array) -> Array:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"picture is {image.dtype} {image.shape}: expected uint8 RGB (height, width, 3), not empty")
    return image

"""A sender may show a registered picture of somebody in place of the camera's: motion is carried over from one face to
the other before it is coded. Knows no packets.

This happens at the sender only, with a picture the sender holds and says who agreed to. A receiver has no way to choose
whom it sees: a stream binds motion to the reference pictures its sender chose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from .errors import NoFaceError
from .face import Square, crop, frames_head, head_square
from .gaze import EYES, POINTS
from .inference import Inference, MotionEstimate
from .lids import OPEN, Usual, close, openings
from .motion import Array, MotionParams, euler_angles, rotation_matrix

Transfer = Literal["relative", "absolute"]
SIZES = (0.6, 1.6)  # times its size in the picture: the avatar grows and shrinks no further
EDGE = 0.95  # coded-picture units: its face stays as far inside the picture, or as far as it is in its own
# Of the 30 keypoints that gaze.py tells of. Nobody is calm in the middle of a word: counted from a first frame with an
# open mouth, all later ones would be pressed shut. 34 training people who drive others, relative: openings of mouths by
# dlib's landmarks correlate at 0.54 on the mean clip (median 0.84) so counted and at 0.79 (0.89) taken as they are,
# movements of the whole face at 0.59 and 0.62. Lips arrive at about 0.8 of how far they were driven, by the same
# landmarks, wide open mouths in full: so the first are driven further. Sizes of the movement of all ten, head units:
# half of the frames of 32 training clips are under 0.084, 2 % over 0.3.
MOUTH, LIPS, WIDE = slice(16, 26), 0.25, (0.15, 0.3)
# Degrees of yaw, pitch and roll: a head that is turned further, at first or in the picture, does not rest so. Nor need
# the avatar then turn as far beyond its picture as the sender turns back: the same 34 people 0.66 for 0.62, and turns
# 5.4 degrees off for 5.6.
REST = 10.0


@dataclass(frozen=True, eq=False)
class Avatar:
    """A picture to be driven, for ``Encoder(avatar=...)``.

    picture: uint8 RGB (H, W, 3) with one face, of any size; it is cropped to head and shoulders.
    consent: who agreed to be shown so, in words; kept at the sender and never sent. Without one there is no avatar.
    transfer: "relative" adds the sender's movement since the first frame to the picture's own pose and expression, and
    suits a sender who starts with a calm face; a head that is turned by more than 10 degrees, in the first frame or in
    the picture, is not taken to rest so, and the avatar's turns no further from the picture than the pack shows well
    (`Pack.view_range`). "absolute" takes the sender's pose and expression as they are. Of either the mouth is the
    sender's as it is (of the bundled pack's 30 keypoints), and place and size move relative to the first frame, in
    units of the avatar's own face, which stays inside the picture.
    ValueError when something of this is missing or of the wrong kind.
    """

    picture: Array
    consent: str
    transfer: Transfer = "relative"

    def __post_init__(self) -> None:
        picture: Any = self.picture
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            found = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise ValueError(f"An avatar's picture is a uint8 RGB (H, W, 3) array; found {found}.")
        if not isinstance(self.consent, str) or not self.consent.strip():
            raise ValueError("An avatar needs consent: say in words who agreed to be shown with another's motion.")
        if self.transfer not in get_args(Transfer):
            raise ValueError(f"transfer is {self.transfer!r}; expected 'relative' or 'absolute'.")
        object.__setattr__(self, "picture", picture.copy())


class AvatarDriver:
    """Turns what the camera's face does into what the avatar's face does.

    tile: the avatar's head and shoulders, uint8 RGB (S, S, 3): the picture that is coded. square: where that is in
    itself, so to speak: the whole of it.
    """

    def __init__(self, avatar: Avatar, networks: Inference) -> None:
        picture, size = avatar.picture, networks.pack.size
        faces = networks.detector.detect(picture)
        if not faces:
            raise NoFaceError("No face was found in the avatar's picture; use a frontal one with head and shoulders.")
        extent = picture.shape[1], picture.shape[0]
        whole = Square.covering(extent)
        self.tile = crop(picture, whole if frames_head(faces[0], extent) else head_square(faces[0], extent), size)
        self.square = Square(0, 0, size)
        self.size = (size, size)
        self._own = networks.reference(self.tile).estimate
        self._transfer = avatar.transfer
        self._turns = networks.pack.view_range.limits[:3]
        self._start: tuple[MotionEstimate, Square] | None = None
        self._usual = Usual()

    def recenter(self) -> None:
        """Take the next frame for the sender's calm face."""
        self._start = None

    def driven(self, estimate: MotionEstimate, square: Square, seconds: float) -> MotionEstimate:
        """The avatar's motion, in ``self.square``, for the sender's ``estimate`` made in ``square`` of the camera at
        ``seconds``."""
        if self._start is None:
            self._start = estimate, square
        start, there = self._start
        now = estimate.placed(square, there)  # the crop may have followed the face since
        return replace(self._own, motion=self._carried(start, now, seconds), confidence=estimate.confidence)

    def _carried(self, start: MotionEstimate, now: MotionEstimate, seconds: float) -> MotionParams:
        own, first, latest = self._own.motion, start.motion, now.motion
        # of one identity, so that its error is not taken for expression
        told = now.relative_to(start.canonical)
        expression = told.delta
        moved = expression - self._calm(start, self._usual.follow(openings(told, start.canonical), seconds))
        rotation = latest.rotation
        if self._transfer == "relative":
            expression = own.delta + moved
            if len(expression) == POINTS:
                expression[MOUTH] = told.delta[MOUTH]
            rotation = _within(own.rotation, REST) @ _within(first.rotation, REST).T @ latest.rotation
            rotation = own.rotation @ _within(own.rotation.T @ rotation, self._turns)
        if len(expression) == POINTS:
            lips = moved[MOUTH]
            expression[MOUTH] += lips * np.interp(np.linalg.norm(lips), WIDE, (LIPS, 0))
        size = float(np.clip(latest.scale / first.scale, *SIZES))
        way = (latest.translation - first.translation) * np.float32(own.scale / first.scale)
        driven = MotionParams.from_matrix(rotation, own.translation + way, own.scale * size, expression)
        return replace(driven, translation=driven.translation + self._back_inside(driven))

    def _calm(self, start: MotionEstimate, usual: list[float]) -> Array:
        """float32 (K, 3), expression of the first frame; its eyes open where it was a blink, or the avatar would stare
        whenever they are. usual: openings of this sender's eyes; none where the layout is not known."""
        face, delta = start.canonical + start.motion.delta, np.array(start.motion.delta)
        found = openings(start.motion, start.canonical)
        for eye, now, wide in zip(EYES[: len(found)], found, usual, strict=True):
            close(delta, face, eye, -max(0.0, OPEN * wide - now))
        return delta

    def _back_inside(self, driven: MotionParams) -> Array:
        """float32 (3,): the way that brings the face back to where the picture shows all of it; mostly none."""
        face, own = (m.keypoints(self._own.canonical)[:, :2] for m in (driven, self._own.motion))
        least = np.minimum(-EDGE, own.min(0)) - face.min(0)
        most = np.maximum(EDGE, own.max(0)) - face.max(0)
        middle = (least + most) / 2  # of a face larger than the picture
        way = np.clip(0, np.minimum(least, middle), np.maximum(most, middle))
        return np.array([*way, 0], np.float32)


def _within(rotation: Array, limits: Any) -> Array:
    """``rotation`` (3, 3), turned by no more than so many degrees of yaw, pitch and roll."""
    return rotation_matrix(*map(float, np.clip(euler_angles(rotation), np.negative(limits), limits)))

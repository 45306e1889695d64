"""Head pose, expression and scene of one frame, and the geometry that turns them into keypoints. Knows no network.

Coordinates: the coded square picture spans [-1, 1] in x (to the right) and y (down); z has the same unit and is
negative toward the camera. Points are row vectors. The paper's Eq. 1-2, with expression in the head's own frame so that
it does not change when only the pose does:

    x = scale * (canonical + delta) @ rotation + translation
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import check_flags

Array = NDArray[Any]

POSE_SIZE = 7  # yaw, pitch, roll, tx, ty, tz, log scale: the first numbers of the flat layout
# What a head turns about, in its own frame and units of its size: below and behind the middle of the face. Fitted to
# the labels of 208 clips of 129 people, where turning about it explains 40 % of all that faces move.
NECK = np.array([0.0, 0.76, 0.71])
LOG_SCALE_MAX = 3.0  # a face twenty times the picture or a twentieth of it: garbage must not overflow


@dataclass(frozen=True)
class View:
    """Where the receiver wants the head to look (paper section 3.2); costs the sender no bit.

    yaw, pitch, roll: degrees, signs as in :class:`MotionParams`. Added on top of the coded pose; with ``absolute`` they
    take its place, so that ``View(absolute=True)`` faces the camera whatever the sender does.
    x, y: shift of the head, as a share of the coded picture's side (to the right, down); always on top of the coded
    place. Anything but finite numbers raises ValueError. Decoder clamps a view to what its pack can show.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    x: float = 0.0
    y: float = 0.0
    absolute: bool = False

    def __post_init__(self) -> None:
        check_flags(**{"View.absolute": self.absolute})
        for name in (f.name for f in fields(self) if f.name != "absolute"):
            value = getattr(self, name)
            try:
                number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise ValueError(f"View.{name} is {value!r:.40}; expected a finite number.")
            object.__setattr__(self, name, number)

    @property
    def rotation(self) -> Array:
        """float32 (3, 3), for row vectors."""
        return rotation_matrix(self.yaw, self.pitch, self.roll)


@dataclass(frozen=True, eq=False)
class MotionParams:
    """Pose and expression of one frame, and how the scene around the head moved.

    yaw, pitch, roll: degrees. Positive yaw turns the face to the right of the picture, positive pitch turns it down,
    positive roll turns it clockwise as seen in the picture.
    translation: float32 (3,), coded-picture units. scale: face size, > 0 (0.7 is a usual head and shoulders).
    delta: float32 (K, 3), expression offset of each keypoint in the head's own frame.
    scene: float32 (M, 2), see :mod:`neuralcodec.scene`; M = 0 for packs whose renderer knows no scene.
    """

    yaw: float
    pitch: float
    roll: float
    translation: Array
    scale: float
    delta: Array
    scene: Array = field(default_factory=lambda: np.zeros((0, 2), np.float32))

    @property
    def rotation(self) -> Array:
        """float32 (3, 3), for row vectors: ``turned = point @ rotation``."""
        return rotation_matrix(self.yaw, self.pitch, self.roll)

    def keypoints(self, canonical: Array) -> Array:
        """Keypoints (K, 3) float32 in the picture, from the identity's canonical keypoints (K, 3)."""
        points = self.scale * ((canonical + self.delta) @ self.rotation) + self.translation
        return np.asarray(points, np.float32)

    def told_on(self, canonical: Array, found_on: Array) -> MotionParams:
        """The same keypoints told on the identity ``canonical`` (K, 3), not on the one they were found on."""
        return replace(self, delta=(found_on + self.delta - canonical).astype(np.float32))

    def turned(self, view: View) -> MotionParams:
        """The same expression with the head where ``view`` wants it (receiver-side redirection)."""
        place = self.neck + [2 * view.x, 2 * view.y]  # the picture's side is 2 units
        return self.posed(view.rotation if view.absolute else self.rotation @ view.rotation, place)

    @property
    def neck(self) -> Array:
        """float64 (2,): where the point that heads turn about lies in the picture."""
        return np.asarray(self.translation[:2] + self.scale * (NECK @ self.rotation)[:2], np.float64)

    def posed(self, rotation: Array, neck: Array) -> MotionParams:
        """The same face turned to ``rotation`` (3, 3) with its neck at ``neck`` (2,) in the picture."""
        yaw, pitch, roll = euler_angles(rotation)
        place = np.array([*(neck - self.scale * (NECK @ rotation)[:2]), self.translation[2]], np.float32)
        return replace(self, yaw=yaw, pitch=pitch, roll=roll, translation=place)

    def flat(self) -> Array:
        """float64 (7 + 3K + 2M,): yaw, pitch, roll, tx, ty, tz, log(scale), then delta and scene row by row."""
        pose = [self.yaw, self.pitch, self.roll, *map(float, self.translation), float(np.log(self.scale))]
        parts = (np.asarray(part, np.float64).reshape(-1) for part in (pose, self.delta, self.scene))
        return np.concatenate([*parts])

    def flat_head(self) -> Array:
        """The flat layout without the scene, float64 (7 + 3K,)."""
        return replace(self, scene=self.scene[:0]).flat()

    @classmethod
    def from_flat(cls, values: Array, keypoints: int | None = None) -> MotionParams:
        """Inverse of :meth:`flat`. keypoints: K; what follows their delta is the scene. None: no scene follows."""
        v = np.asarray(values, np.float64)
        end = len(v) if keypoints is None else POSE_SIZE + 3 * keypoints
        return cls(
            yaw=float(v[0]),
            pitch=float(v[1]),
            roll=float(v[2]),
            translation=v[3:6].astype(np.float32),
            scale=float(np.exp(np.clip(v[6], -LOG_SCALE_MAX, LOG_SCALE_MAX))),
            delta=v[POSE_SIZE:end].reshape(-1, 3).astype(np.float32),
            scene=v[end:].reshape(-1, 2).astype(np.float32),
        )

    @classmethod
    def from_matrix(cls, rotation: Array, translation: Array, scale: float, delta: Array) -> MotionParams:
        """Build from a rotation matrix (3, 3) for row vectors instead of angles."""
        yaw, pitch, roll = euler_angles(rotation)
        return cls(yaw, pitch, roll, np.asarray(translation, np.float32), float(scale), np.asarray(delta, np.float32))


def rotation_matrix(yaw: float, pitch: float, roll: float) -> Array:
    """Row-vector rotation (3, 3) float32 from degrees: first yaw about y, then pitch about x, then roll about z.

    Signs: with x right, y down, z away from the camera, a nose at (0, 0, -1) moves to +x for positive yaw and to +y for
    positive pitch; positive roll takes +x toward +y.
    """
    y, p, r = np.deg2rad([yaw, pitch, roll])
    cy, sy, cp, sp, cr, sr = np.cos(y), np.sin(y), np.cos(p), np.sin(p), np.cos(r), np.sin(r)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return np.asarray(about_y @ about_x @ about_z, np.float32)


def euler_angles(rotation: Array) -> tuple[float, float, float]:
    """Yaw, pitch, roll in degrees of a row-vector rotation (3, 3).

    Inverse of :func:`rotation_matrix` for |pitch| < 90.
    """
    m = np.asarray(rotation, np.float64)
    pitch = np.arcsin(np.clip(m[1, 2], -1.0, 1.0))
    yaw = np.arctan2(m[0, 2], m[2, 2])
    roll = np.arctan2(-m[1, 0], m[1, 1])
    return float(np.rad2deg(yaw)), float(np.rad2deg(pitch)), float(np.rad2deg(roll))

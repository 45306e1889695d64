"""Head pose and expression of one frame, and the geometry that turns them into keypoints. Knows no network and no bits.

Coordinates: the coded square picture spans [-1, 1] in x (to the right) and y (down); z has the same unit and is
negative toward the camera. Points are row vectors. The paper's Eq. 1-2, with expression in the head's own frame so that
it does not change when only the pose does:

    x = scale * (canonical + delta) @ rotation + translation
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

POSE_SIZE = 7  # yaw, pitch, roll, tx, ty, tz, log scale: the first numbers of the flat layout
LOG_SCALE_MAX = 3.0  # a face twenty times the picture or a twentieth of it: garbage must not overflow


@dataclass(frozen=True)
class View:
    """A turn of the head asked for at the receiver, in degrees, added on top of the coded pose (paper section 3.2)."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0


@dataclass(frozen=True)
class MotionParams:
    """Pose and expression of one frame.

    yaw, pitch, roll: degrees. Positive yaw turns the face to the right of the picture, positive pitch turns it down,
    positive roll turns it clockwise as seen in the picture.
    translation: float32 (3,), coded-picture units. scale: face size, > 0 (0.7 is a usual head and shoulders).
    delta: float32 (K, 3), expression offset of each keypoint in the head's own frame.
    """

    yaw: float
    pitch: float
    roll: float
    translation: Array
    scale: float
    delta: Array

    @property
    def rotation(self) -> Array:
        """float32 (3, 3), for row vectors: ``turned = point @ rotation``."""
        return rotation_matrix(self.yaw, self.pitch, self.roll)

    def keypoints(self, canonical: Array) -> Array:
        """Keypoints (K, 3) float32 in the picture, from the identity's canonical keypoints (K, 3)."""
        points = self.scale * ((canonical + self.delta) @ self.rotation) + self.translation
        return np.asarray(points, np.float32)

    def turned(self, view: View) -> MotionParams:
        """The same expression seen after the head turned by ``view`` (receiver-side redirection)."""
        rotation = self.rotation @ rotation_matrix(view.yaw, view.pitch, view.roll)
        yaw, pitch, roll = euler_angles(rotation)
        return replace(self, yaw=yaw, pitch=pitch, roll=roll)

    def flat(self) -> Array:
        """float64 (7 + 3K,): yaw, pitch, roll, tx, ty, tz, log(scale), then delta row by row."""
        pose = [self.yaw, self.pitch, self.roll, *map(float, self.translation), float(np.log(self.scale))]
        return np.concatenate([np.asarray(pose, np.float64), np.asarray(self.delta, np.float64).reshape(-1)])

    @classmethod
    def from_flat(cls, values: Array) -> MotionParams:
        """Inverse of :meth:`flat`."""
        v = np.asarray(values, np.float64)
        return cls(
            yaw=float(v[0]),
            pitch=float(v[1]),
            roll=float(v[2]),
            translation=v[3:6].astype(np.float32),
            scale=float(np.exp(np.clip(v[6], -LOG_SCALE_MAX, LOG_SCALE_MAX))),
            delta=v[POSE_SIZE:].reshape(-1, 3).astype(np.float32),
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

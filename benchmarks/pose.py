"""Which way does a head look, by somebody else's eyes: dlib's 68 landmarks against a mean head, no network of ours.

The mean head is 23 of the 68 points that hardly move with the face, fitted to dlib's landmarks on 1,024 frames of 129
people whose rotations MediaPipe had given, so that zero means the same here as in our labels. On 400 frames of 20
other people it lies 4.0 degrees (mean) from MediaPipe's rotation, mostly in pitch, and 3.1 degrees on turns between
two frames of one person. That much of disagreement is in every figure made with it. Knows no codec.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Number in the 68-point scheme: x right, y down, z away from the camera; root mean square distance from the middle 1.
HEAD = {
    0: (-1.300, -0.184, 0.784), 1: (-1.278, 0.150, 0.731), 2: (-1.233, 0.482, 0.699),
    14: (1.241, 0.456, 0.784), 15: (1.275, 0.122, 0.821), 16: (1.286, -0.213, 0.879),
    17: (-1.033, -0.486, 0.071), 21: (-0.216, -0.601, -0.333), 22: (0.197, -0.609, -0.301),
    26: (1.015, -0.514, 0.160), 27: (-0.002, -0.335, -0.323), 28: (0.001, -0.126, -0.441),
    29: (0.005, 0.080, -0.571), 30: (0.008, 0.294, -0.701), 31: (-0.237, 0.477, -0.408),
    32: (-0.117, 0.517, -0.464), 33: (0.011, 0.550, -0.497), 34: (0.138, 0.514, -0.453),
    35: (0.256, 0.472, -0.388), 36: (-0.770, -0.258, -0.005), 39: (-0.335, -0.252, -0.070),
    42: (0.329, -0.260, -0.042), 45: (0.759, -0.276, 0.069),
}  # fmt: skip
ROUNDS = 15  # of Gauss-Newton


def rotation(landmarks: Array) -> Array:
    """Row-vector head rotation (3, 3), as in `neuralcodec.motion`, from landmarks (68, 2) in pixels.

    Weak perspective, least squares: points = scale * head @ rotation + place, in the picture.
    """
    seen = np.asarray(landmarks, float)[list(HEAD)]
    seen = seen - seen.mean(axis=0)
    head = np.array(list(HEAD.values()))
    head = head - head.mean(axis=0)
    u, _, v = np.linalg.svd(np.linalg.lstsq(head, seen, rcond=None)[0], full_matrices=False)
    first = u @ v  # (3, 2): the first two columns of a rotation, nearly
    turn = np.column_stack([first, np.cross(first[:, 0], first[:, 1])])
    for _ in range(ROUNDS):
        at = head @ turn
        scale = float((at[:, :2] * seen).sum() / (at[:, :2] ** 2).sum())
        slopes = [(scale * at @ _cross(axis))[:, :2].ravel() for axis in np.eye(3)] + [at[:, :2].ravel()]
        step = np.linalg.lstsq(np.array(slopes).T, (seen - scale * at[:, :2]).ravel(), rcond=None)[0][:3]
        turn = turn @ _exponential(step)
    return turn


def angle(turn: Array) -> float:
    """Degrees that a rotation (3, 3) turns by, about whatever axis."""
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))


def _cross(axis: Array) -> Array:
    """Generator of row-vector rotations about ``axis``: point @ (1 + it) is the point a little turned."""
    x, y, z = axis
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def _exponential(step: Array) -> Array:
    size = float(np.linalg.norm(step))
    if size < 1e-12:
        return np.eye(3)
    k = _cross(step / size)
    return np.asarray(np.eye(3) + np.sin(size) * k + (1 - np.cos(size)) * k @ k)

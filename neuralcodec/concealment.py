"""What to show while packets are missing: pose runs on and slows down, expression relaxes. Pure; knows no packets.

States by number of missing frames: RECEIVED (0), COASTING (pose still moving), RESTING (pose still, face relaxing).
BORROWED: the motion came, the picture it is meant for did not; it is shown on the one before.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import numpy as np

from .motion import POSE_SIZE, MotionParams

COAST_FRAMES = 6  # a quarter of a second at 25 fps: past it a guessed turn is more often wrong than right
DAMPING = 0.5  # of the pose's speed, per frame; measured 14 % nearer than holding after one lost frame, 9 % after 3
RELAXING = 0.95  # of the expression, per frame; measured 1 % nearer to the truth than holding it, and it looks alive


class Concealment(Enum):
    """How the motion of a frame was found."""

    RECEIVED = "received"
    BORROWED = "borrowed"
    COASTING = "coasting"
    RESTING = "resting"


def state_after(missing: int) -> Concealment:
    """The state after ``missing`` frames in a row did not arrive."""
    if missing <= 0:
        return Concealment.RECEIVED
    return Concealment.COASTING if missing <= COAST_FRAMES else Concealment.RESTING


def conceal(last: MotionParams, before: MotionParams | None, missing: int) -> MotionParams:
    """Motion ``missing`` frames after ``last``, the latest frame received; ``before`` is the one in front of it."""
    if missing <= 0:
        return last
    flat = last.flat_head()
    steps = min(missing, COAST_FRAMES)
    if before is not None:
        speed = flat[:POSE_SIZE] - before.flat_head()[:POSE_SIZE]
        speed[[0, 2]] = (speed[[0, 2]] + 180.0) % 360.0 - 180.0  # yaw and roll wrap
        flat[:POSE_SIZE] += speed * float(np.sum(DAMPING ** np.arange(1, steps + 1)))
    flat[POSE_SIZE:] *= RELAXING**missing
    return replace(MotionParams.from_flat(flat), scene=last.scene)  # the scene stays as it was

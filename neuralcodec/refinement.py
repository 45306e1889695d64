"""Motion found once more in what the renderer makes of it: analysis by synthesis. The sender's; knows no bits.

The motion network sees a face and registration (scene.py) what is around it; neither knows what a receiver will draw of
what they say. One step of Gauss-Newton against that picture tells: the mesh of the scene and the place, size and roll
of the head, together, since every point of a picture follows either. It costs a rendering a frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .inference import Inference, MotionEstimate, ReferenceFeatures
from .motion import Array, MotionParams, View
from .scene import GRAIN, REACH, SIDES, Pyramid, gathered, outside, squares, tied, trusted

# Drawn pictures of 14 training clips follow the mesh by less than half of what it moves within this ellipse (as HEAD of
# scene.py, which is where registration does not look).
FACE = (0.5, 0.88, 0.1)
FREE = 0.4  # of what holds the mesh to that of the frame before in registration: what is drawn is better evidence
# What holds a head to where the motion network sees it, and its correction to that of the frame before, against grey
# levels squared over 64 x 64 points for a pixel of these: of shifts, and at the face's half side of size and roll.
HELD, SMOOTH = 2000.0, 10000.0
FAR = 0.1  # coded-picture units; no correction is larger, as slopes say nothing of what is further off
NUDGE = 4  # unknowns of a head: x, y, logarithm of its size, roll in radians


class Refinement:
    """One sender's. Remembers the correction of the frame before."""

    def __init__(self, networks: Inference) -> None:
        self._networks = networks
        self._nudge = np.zeros(NUDGE)

    def refined(
        self, reference: ReferenceFeatures, picture: Array, face: MotionEstimate, mesh: Array, start: Array | None
    ) -> tuple[MotionEstimate, Array]:
        """The face and the mesh (M, 2) that draw ``picture``, uint8 RGB (S, S, 3), better from ``reference``. face:
        what the motion network saw in it. mesh: from registration, start: of the frame before as receivers have it;
        None where that was drawn from another picture."""
        if start is None:
            self._nudge = np.zeros(NUDGE)
        motion = replace(face.relative_to(reference.canonical), scene=mesh)
        drawn = Pyramid(self._networks.render(reference, motion))
        mesh, self._nudge = step(drawn, Pyramid(picture), face, mesh, start, self._nudge)
        return replace(face, motion=nudged(face.motion, self._nudge)), mesh


def step(
    drawn: Pyramid, picture: Pyramid, face: MotionEstimate, mesh: Array, start: Array | None, before: Array
) -> tuple[Array, Array]:
    """From what was drawn with this face and mesh: the better mesh (M, 2) float32, and how the head is to be nudged,
    float64 (NUDGE,). before: how the head of the frame before was."""
    side, nodes = SIDES[-1], round(len(mesh) ** 0.5)
    pixels, half = side / 2, float(face.box[2])
    read, dx, dy = drawn.slopes[-1].reshape(3, side, side)
    off = read - picture.levels[-1]
    trust = trusted(off)
    scene = outside(face.box.tolist(), side, FACE)  # share of each point that follows the mesh; of the head the rest
    axis = (np.arange(side) + 0.5) / pixels - 1
    x, y = axis - face.motion.translation[0], axis[:, None] - face.motion.translation[1]
    # A picture that moves to the right shows what was on the left of it; a mesh says where things were.
    head = (scene - 1) * pixels * np.stack([dx, dy, dx * x + dy * y, dy * x - dx * y])
    dx, dy = dx * scene, dy * scene

    now = np.asarray(mesh, np.float64) * pixels
    last = None if start is None else np.asarray(start, np.float64) * pixels
    ties, pull = tied(now, last, side, FREE)
    rigid = pixels**2 * np.diag([1, 1, half**2, half**2])
    flat = head.reshape(NUDGE, -1)
    across = np.stack([gathered(dx, dy, trust * one, nodes) for one in head])
    alone = (flat * trust.reshape(-1)) @ flat.T + (HELD + SMOOTH) * rigid
    hessian = np.block([[squares(dx, dy, trust, nodes) + ties, across.T], [across, alone]])
    slope = np.concatenate(
        [
            gathered(dx, dy, trust * off, nodes) + pull,
            (head * trust * off).sum((1, 2)) - SMOOTH * rigid @ before,
        ]
    )
    move = np.linalg.solve(hessian, -slope)
    moved = np.clip((now + move[:-NUDGE].reshape(2, -1).T) / pixels, -REACH, REACH)
    nudge = np.clip(move[-NUDGE:], -FAR, FAR)
    return np.asarray(np.rint(moved * GRAIN) / GRAIN, np.float32), np.rint(nudge * GRAIN) / GRAIN


def nudged(motion: MotionParams, nudge: Array) -> MotionParams:
    """The same face elsewhere in the picture, larger and rolled by ``nudge`` (NUDGE,), about its own place."""
    x, y, size, roll = map(float, nudge)
    turned = motion.turned(View(roll=float(np.degrees(roll))))
    place = motion.translation + np.array([x, y, 0], np.float32)
    return replace(turned, translation=place, scale=motion.scale * float(np.exp(size)))

"""How what is not the head moved since the reference picture: a coarse mesh of displacements, found by the sender.

Shoulders, hair and background are most of what a talking-head renderer gets wrong, because face keypoints say nothing
about them. The mesh says it in a byte or two a frame. Classical registration, no network: Gauss-Newton on small grey
pictures with a robust weight (Lucas and Kanade 1981; Baker and Matthews 2004, "forward additive"). Knows no bits.

The mesh is float32 (M, 2), M = nodes x nodes points row by row over the whole coded picture, corners included; x, y in
coded-picture units. What the picture shows at a point lay that far from there in the reference; between nodes it is
bilinear. Zero means that nothing moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from .face import resize
from .motion import Array
from .quality import LUMA

SIDES = (32, 64)  # of the grey pictures, coarse to fine
STEPS = (3, 2)  # Gauss-Newton steps at each
STIFF = 50.0  # weight of differences between neighbouring nodes, against grey levels squared over 64 x 64 points
STILL = 0.5  # weight of the displacement itself: where nothing can be seen, nothing moves
STEADY, STEADY_STIFF = 500.0, 1500.0  # the same two weights for what changes from frame to frame: only that costs bits
ROBUST = 60.0  # grey levels; a point off by much more is taken for something that came or went, not moved
# The ellipse that is left to the keypoints, in units of the face's half side: half its width, half its height, and how
# far below the pose's place its centre lies.
HEAD = (0.7, 1.3 * 0.7, -0.15)
REACH = 0.75  # coded-picture units: no node moves further
GRAIN = 1 << 13  # parts of a unit the result is rounded to, so that the last bits of a sum never reach the bitstream


class Pyramid:
    """A picture, uint8 RGB (S, S, 3), as registration looks at it: grey float32 ``levels`` of SIDES, coarse to fine."""

    def __init__(self, picture: Array) -> None:
        small = resize(picture, SIDES[-1], SIDES[-1]).astype(np.float32)
        self.levels = [small @ LUMA]
        while len(self.levels[0]) > SIDES[0]:
            half = len(self.levels[0]) // 2
            self.levels.insert(0, self.levels[0].reshape(half, 2, half, 2).mean((1, 3)))

    @cached_property
    def slopes(self) -> list[Array]:
        """Of each level: grey, d/dx and d/dy of every point, float64 (3, side * side); kept for its frames."""
        return [np.stack([g, *reversed(np.gradient(g))]).astype(np.float64).reshape(3, -1) for g in self.levels]


def register(
    reference: Pyramid, picture: Pyramid, head: Sequence[float] | None, start: Array | None, nodes: int
) -> Array:
    """The mesh (M, 2) float32 from one pyramid to another. head: centre x, y and half side of the face in ``picture``,
    whose motion the keypoints tell. start: the mesh of the frame before as the receiver has it, which the new one
    leaves only where the picture demands it; None: nothing is known."""
    mesh = np.zeros((nodes**2, 2)) if start is None else np.asarray(start, np.float64)
    last = None if start is None else mesh
    for side, steps, before, now in zip(SIDES, STEPS, reference.slopes, picture.levels, strict=True):
        weight, pixels = outside(head, side), side / 2
        for _ in range(steps):
            mesh = _step(before, now, weight, mesh * pixels, None if last is None else last * pixels, nodes) / pixels
            mesh = np.clip(mesh, -REACH, REACH)
    return np.asarray(np.rint(mesh * GRAIN) / GRAIN, np.float32)


def _step(slopes: Array, now: Array, weight: Array, mesh: Array, last: Array | None, nodes: int) -> Array:
    """One Gauss-Newton step; ``mesh`` and that of the frame before, float64 (M, 2) in pixels of this size."""
    side, m = len(now), nodes * nodes
    spread, _ = _weights(side, nodes)
    grid = mesh.T.reshape(2, nodes, nodes)
    shift = spread @ grid @ spread.T  # (2, side, side)
    read, dx, dy = _bilinear(slopes, shift[0], shift[1])
    off = read - now
    trust = weight * trusted(off)
    hessian = squares(dx, dy, trust, nodes)
    slope = gathered(dx, dy, trust * off, nodes)
    ties, pull = tied(mesh, last, side)
    move = np.linalg.solve(hessian + ties, -slope - pull)
    return np.asarray(mesh + move.reshape(2, m).T)


def mesh_in(mesh: Array, centre: Array, ratio: float) -> Array:
    """The same mesh, float32 (M, 2), of another square: one ``ratio`` times as large, whose centre lies at ``centre``
    (2,) of this one. Beyond its edges this one's are repeated."""
    nodes = round(len(mesh) ** 0.5)
    grid = mesh.reshape(nodes, nodes, 2)
    for axis in (1, 0):
        grid = rows_at(grid, (centre[axis] + ratio * np.linspace(-1, 1, nodes) + 1) / 2 * (nodes - 1)).swapaxes(0, 1)
    return np.asarray(grid.reshape(-1, 2) / np.float32(ratio), np.float32)


def rows_at(values: Array, at: Array) -> Array:
    """float32: rows of values (N, M, C) at places between their own; beyond the edges these are repeated."""
    at = np.clip(at, 0, len(values) - 1)
    first = np.minimum(at.astype(int), len(values) - 2)
    share = (at - first).astype(np.float32)[:, None, None]
    return np.asarray(values[first] * (1 - share) + values[first + 1] * share)


def worth(reference: Pyramid, nodes: int) -> Array:
    """(2M, 2M): by how many grey levels squared, mean over all points, a picture drawn from this one is off where the
    mesh is off by ``e``, in coded-picture units, all of x before all of y: ``e @ worth @ e``, while that is little."""
    side = SIDES[-1]
    dx, dy = (slope.reshape(side, side) * (side / 2) for slope in reference.slopes[-1][1:])
    return squares(dx, dy, np.full((side, side), side**-2.0), nodes)


def tied(mesh: Array, last: Array | None, side: int, share: float = 1.0) -> tuple[Array, Array]:
    """What holds a mesh to rest and, by this share, to that of the frame before: the quadratic form (2M, 2M) and its
    slope (2M,). Meshes: float64 (M, 2), in pixels of this size."""
    prior, steady = _priors(side, round(len(mesh) ** 0.5))
    pull = prior @ mesh.T.reshape(-1)
    if last is None:
        return prior, pull
    return prior + share * steady, pull + share * (steady @ (mesh - last).T.reshape(-1))


def trusted(off: Array) -> Array:
    """Robust weight, 0 to 1, of points that are so many grey levels off."""
    return np.asarray(1 / (1 + (off / ROBUST) ** 2) ** 2)


def gathered(dx: Array, dy: Array, off: Array, nodes: int) -> Array:
    """(2M,): the slope of a mesh, all of x before all of y, along which points that are ``off``, weighted, get nearer.
    dx, dy: slopes of the picture, (side, side)."""
    spread, _ = _weights(len(dx), nodes)
    return np.concatenate([(spread.T @ (off * d) @ spread).reshape(-1) for d in (dx, dy)])


def squares(dx: Array, dy: Array, weight: Array, nodes: int) -> Array:
    """(2M, 2M): the quadratic form of a mesh, all of x before all of y, that sums what it changes at each point,
    squared and weighted. dx, dy: slopes of the picture, (side, side)."""
    m, (_, pairs) = nodes * nodes, _weights(len(dx), nodes)

    def product(q: Array) -> Array:  # sum over points of q B B^T, with B = spread (x) spread
        return (pairs @ q @ pairs.T).reshape(nodes, nodes, nodes, nodes).transpose(0, 2, 1, 3).reshape(m, m)

    xy = product(weight * dx * dy)
    return np.block([[product(weight * dx * dx), xy], [xy.T, product(weight * dy * dy)]])


def outside(head: Sequence[float] | None, side: int, shape: tuple[float, float, float] = HEAD) -> Array:
    """Weight of each of side x side points: 1 away from the head, 0 inside the ellipse of this ``shape``."""
    if head is None:
        return np.ones((side, side))
    x, y, half = map(float, head)
    wide, tall, below = shape
    axis = (np.arange(side) + 0.5) * (2 / side) - 1
    across, down = ((axis - x) / (wide * half)) ** 2, ((axis - y - below * half) / (tall * half)) ** 2
    return np.clip(down[:, None] + across - 0.5, 0, 1)


def _bilinear(maps: Array, dx: Array, dy: Array) -> Array:
    """maps (C, side * side) read at every point moved by dx, dy (side, side) in pixels: (C, side, side). Past the
    border the border is repeated."""
    side = len(dx)
    last = np.nextafter(np.float64(side - 1), 0)
    x = np.clip(np.arange(side) + dx, 0, last)
    y = np.clip(np.arange(side)[:, None] + dy, 0, last)
    i, j = y.astype(np.intp), x.astype(np.intp)
    at, fx, fy = (i * side + j).ravel(), (x - j).ravel(), (y - i).ravel()
    # one plane after the other: four times as fast as reading the C values of a point together
    above = maps.take(at, 1) * (1 - fx) + maps.take(at + 1, 1) * fx
    below = maps.take(at + side, 1) * (1 - fx) + maps.take(at + side + 1, 1) * fx
    return np.asarray(above * (1 - fy) + below * fy).reshape(-1, side, side)


@lru_cache(maxsize=16)
def _weights(side: int, nodes: int) -> tuple[Array, Array]:
    """Along one axis: each pixel centre's bilinear share of each node (side, nodes), and all products of two (nodes**2,
    side)."""
    at = (np.arange(side) + 0.5) / side * (nodes - 1)
    spread = np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(nodes)))
    return spread, np.einsum("pi,pk->ikp", spread, spread).reshape(nodes * nodes, side)


@lru_cache(maxsize=16)
def _priors(side: int, nodes: int) -> tuple[Array, Array]:
    """Quadratic forms (2M, 2M) of a mesh and of its change since the frame before."""
    apart = np.diff(np.eye(nodes), axis=0)
    line = apart.T @ apart
    stiffness = np.kron(line, np.eye(nodes)) + np.kron(np.eye(nodes), line)  # differences between neighbouring nodes
    fewer = (side / SIDES[-1]) ** 2  # points, so that the priors weigh alike at every size

    def form(stiff: float, still: float) -> Array:
        return np.kron(np.eye(2), (stiff * stiffness + still * np.eye(nodes**2)) * fewer)

    return form(STIFF, STILL), form(STEADY_STIFF, STEADY)

"""The sender's registration: movements that are known are found, and what cannot be seen is said not to move."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from neuralcodec.face import resize
from neuralcodec.motion import Array
from neuralcodec.scene import GRAIN, REACH, SIDES, Pyramid, mesh_in, outside, register, worth

NODES = 5
PIXEL = 2 / SIDES[-1]  # of the finest pictures that are compared, in coded-picture units
AXIS = (np.arange(256) + 0.5) / 128 - 1
Y, X = np.meshgrid(AXIS, AXIS, indexing="ij")
GRID = np.stack(np.meshgrid(np.linspace(-1, 1, NODES), np.linspace(-1, 1, NODES)), -1).reshape(-1, 2)  # x, y of nodes


def texture(x: Array, y: Array) -> Array:
    """uint8 RGB (256, 256, 3) of a wall without end, seen at x, y."""
    grey = 128 + 35 * np.sin(11 * x + 3 * y) + 35 * np.cos(9 * y - 4 * x) + 30 * np.sin(5 * x * y + 2)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


Head = tuple[float, float, float] | None


def found(reference: Array, picture: Array, head: Head = None, start: Array | None = None) -> Array:
    return register(Pyramid(reference), Pyramid(picture), head, start, NODES)


def inner(mesh: Array) -> Array:
    """The nodes that are not at the rim, where new things come into the picture."""
    return mesh.reshape(NODES, NODES, 2)[1:-1, 1:-1]


@pytest.mark.parametrize("shift", [(0.01, 0.0), (0.0, -0.02), (0.043, 0.027), (-0.06, 0.05)])
def test_a_shift_is_found_to_a_fraction_of_a_pixel(shift: tuple[float, float]) -> None:
    """The picture shows at p what the reference showed at p + shift."""
    off = np.abs(found(texture(X, Y), texture(X + shift[0], Y + shift[1])) - shift)
    assert inner(off).max() < 0.5 * PIXEL and np.median(off) < 0.2 * PIXEL


def test_a_zoom_is_found() -> None:
    off = np.abs(found(texture(X, Y), texture(1.04 * X, 1.04 * Y)) - 0.04 * GRID)
    assert inner(off).max() < 0.5 * PIXEL and np.median(off) < 0.2 * PIXEL


def test_two_halves_move_each_their_way() -> None:
    mesh = found(texture(X, Y), texture(X + np.where(X < 0, 0.03, -0.03), Y)).reshape(NODES, NODES, 2)
    assert np.abs(mesh[:, :2, 0] - 0.03).mean() < PIXEL / 3 and np.abs(mesh[:, 3:, 0] + 0.03).mean() < PIXEL / 3


@pytest.mark.parametrize("picture", [texture(X, Y), np.full((256, 256, 3), 90, np.uint8)])
def test_nothing_that_moved_is_exactly_zero(picture: Array) -> None:
    """As is a flat picture that only grew lighter: there is nothing to see it move by."""
    for start in (None, np.zeros((NODES**2, 2), np.float32)):
        assert not found(picture, picture, start=start).any()
    assert not found(np.full_like(picture, 90), np.full_like(picture, 120)).any()


def test_what_is_hidden_in_the_head_is_not_looked_at() -> None:
    """Anything may happen inside the ellipse; without it the same thing bends the mesh."""
    head = (0.1, 0.05, 0.5)
    inside = outside(head, 256) == 0
    assert 0.05 < inside.mean() < 0.5
    dice = np.random.default_rng(1)
    picture = texture(X + 0.03, Y)
    changed = picture.copy()
    small = resize((inside[..., None] * np.uint8(255)).repeat(3, 2), SIDES[-1], SIDES[-1])[..., 0]
    core = resize(np.uint8(small == 255)[..., None].repeat(3, 2) * np.uint8(255), 256, 256)[..., 0] == 255
    for _ in range(4):  # blocks of noise, well inside so that no shrinking carries them out
        changed[core] = (changed[core].astype(int) + dice.integers(-120, 120, changed[core].shape)).clip(0, 255)
    with_head = [found(texture(X, Y), shown, head) for shown in (picture, changed)]
    assert np.abs(with_head[0] - with_head[1]).max() < 0.05 * PIXEL
    without = [found(texture(X, Y), shown) for shown in (picture, changed)]
    assert np.abs(without[0] - without[1]).max() > 0.2 * PIXEL
    assert np.abs(with_head[1].reshape(NODES, NODES, 2)[:, 0] - [0.03, 0]).max() < PIXEL / 2


def test_the_weight_of_the_head_is_an_ellipse_above_its_place() -> None:
    weight = outside((0.2, 0.1, 0.4), 64)
    assert weight.min() == 0 and weight.max() == 1 and weight[0, 0] == weight[-1, -1] == 1
    rows, columns = np.nonzero(weight == 0)
    assert abs((columns.mean() + 0.5) / 32 - 1 - 0.2) < 0.03 and (rows.mean() + 0.5) / 32 - 1 < 0.1
    assert np.ptp(rows) > 1.15 * np.ptp(columns)
    assert (outside(None, 64) == 1).all()


def test_what_moves_away_frame_by_frame_is_followed_further_than_one_look_sees() -> None:
    start = None
    for step in range(1, 33):
        start = found(texture(X, Y), texture(X + 0.01 * step, Y), start=start)
    assert start is not None
    assert np.abs(start.reshape(NODES, NODES, 2)[1:-1, 1:-2] - [0.32, 0]).max() < PIXEL
    alone = found(texture(X, Y), texture(X + 0.32, Y))
    assert np.abs(alone - [0.32, 0]).mean() > 4 * np.abs(start - [0.32, 0]).mean()


def test_from_frame_to_frame_only_what_the_picture_demands_changes() -> None:
    """Noise moves the mesh much less with the frame before it; a movement comes through all the same."""
    dice = np.random.default_rng(9)

    def noisy(picture: Array) -> Array:
        return (picture + dice.normal(0, 12, picture.shape)).clip(0, 255).astype(np.uint8)

    before = found(texture(X, Y), noisy(texture(X + 0.03, Y)))
    free, tied = [], []
    for _ in range(4):
        picture = noisy(texture(X + 0.03, Y))
        free.append(np.abs(found(texture(X, Y), picture) - before).mean())
        tied.append(np.abs(found(texture(X, Y), picture, start=before) - before).mean())
    assert np.mean(tied) < 0.7 * np.mean(free)
    for _ in range(3):
        before = found(texture(X, Y), noisy(texture(X + 0.05, Y)), start=before)
    assert np.median(np.abs(before - [0.05, 0])) < 0.3 * PIXEL


def test_results_are_rounded_bounded_and_finite() -> None:
    dice = np.random.default_rng(3)
    noise = [dice.integers(0, 256, (256, 256, 3), np.uint8) for _ in range(2)]
    far = np.full((NODES**2, 2), 3.0, np.float32)
    for mesh in (found(*noise), found(*noise, start=far), found(texture(X, Y), texture(X + 0.02, Y))):
        assert mesh.dtype == np.float32 and mesh.shape == (NODES**2, 2)
        assert np.isfinite(mesh).all() and np.abs(mesh).max() <= REACH
        assert np.array_equal(mesh * GRAIN, np.rint(mesh * GRAIN))


def test_any_size_of_picture_and_mesh() -> None:
    for side, nodes in ((64, 2), (512, 8), (256, 16)):
        pictures = [resize(texture(X + shift, Y), side, side) for shift in (0.0, 0.02)]
        mesh = register(*map(Pyramid, pictures), None, None, nodes)
        assert abs(float(np.median(mesh[:, 0])) - 0.02) < 0.3 * PIXEL


def test_the_number_of_threads_changes_nothing() -> None:
    """What goes to the bitstream must not hang on how a library shares out its sums."""
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_scene import *\n"
        "dice = np.random.default_rng(7)\n"
        "picture = (texture(X + 0.05, Y - 0.03) + dice.integers(0, 20, X.shape)[..., None]).clip(0, 255)\n"
        "print(found(texture(X, Y), picture.astype(np.uint8), (0.0, 0.0, 0.6)).tobytes().hex())\n"
    )
    results = set()
    for threads in ("1", "2"):
        given = {name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **given}
        )
        assert done.returncode == 0, done.stderr
        results.add(done.stdout)
    assert len(results) == 1 and len(results.pop().strip()) == 2 * 4 * 2 * NODES**2


def test_the_worth_of_a_mesh_is_what_it_changes_in_the_picture() -> None:
    reference, chance = Pyramid(texture(X, Y)), np.random.default_rng(3)
    form = worth(reference, NODES)
    for _ in range(3):
        mesh = chance.normal(0, 0.01, (NODES**2, 2))
        share = np.maximum(0, 1 - np.abs((AXIS[:, None] + 1) * (NODES - 1) / 2 - np.arange(NODES)))  # bilinear
        shift = share @ mesh.T.reshape(2, NODES, NODES) @ share.T
        off = Pyramid(texture(X + shift[0], Y + shift[1])).levels[-1] - reference.levels[-1]
        assert mesh.T.reshape(-1) @ form @ mesh.T.reshape(-1) == pytest.approx((off**2).mean(), rel=0.1)


def test_a_mesh_in_another_square_moves_the_same_places_as_far() -> None:
    """One that is linear all over says the same everywhere; beyond the edge it goes on as there."""
    axis = np.linspace(-1, 1, 4)
    mesh = np.stack([np.add.outer(0 * axis, 0.1 * axis), np.add.outer(-0.05 * axis, 0 * axis)], -1).reshape(16, 2)
    mesh = mesh.astype(np.float32)
    assert np.allclose(mesh_in(mesh, np.zeros(2), 1.0), mesh)
    half = mesh_in(mesh, np.array([0.25, -0.5]), 0.5).reshape(4, 4, 2)  # in units half as large
    assert np.allclose(half[..., 0], 2 * 0.1 * (0.25 + 0.5 * axis), atol=1e-6)
    assert np.allclose(half[..., 1], (2 * -0.05 * (-0.5 + 0.5 * axis))[:, None], atol=1e-6)
    beyond = mesh_in(mesh, np.array([2.0, 0.0]), 1.0).reshape(4, 4, 2)
    assert np.allclose(beyond[:, 1:, 0], 0.1)

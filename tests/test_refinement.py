"""The sender's look at what the renderer drew: what is known to be off is found, what is drawn comes nearer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import portrait
from test_scene import AXIS, PIXEL, X, Y, texture

import neuralcodec as nc
from neuralcodec.inference import Inference, MotionEstimate
from neuralcodec.motion import Array, MotionParams
from neuralcodec.quality import psnr
from neuralcodec.refinement import FACE, FAR, NUDGE, Refinement, nudged, step
from neuralcodec.scene import GRAIN, REACH, Pyramid, outside

NODES = 4
HALF = 0.8  # side of a head that fills most of the picture, so that there is much of it to see
POINTS = np.random.default_rng(4).normal(0, 0.3, (12, 3)).astype(np.float32)


def face(x: float = 0.05, y: float = -0.1) -> MotionEstimate:
    motion = MotionParams(4, -3, 5, np.array([x, y, 0], np.float32), HALF, np.zeros_like(POINTS))
    return MotionEstimate(motion, POINTS, 1.0)


def off(nudge: Array | tuple[float, ...], scene: tuple[float, ...]) -> Array:
    """What the camera sees, if the head stands so elsewhere than it is drawn, and its surroundings moved so."""
    x, y, size, roll = nudge
    share = outside(face().box.tolist(), len(AXIS), FACE)
    across, down = X - face().motion.translation[0], Y - face().motion.translation[1]
    dx = (share - 1) * (x + size * across - roll * down) + share * scene[0]
    dy = (share - 1) * (y + size * down + roll * across) + share * scene[1]
    return texture(X + dx, Y + dy)


@pytest.mark.parametrize(
    "nudge", [(0.01, 0, 0, 0), (0, -0.012, 0, 0), (0, 0, 0.02, 0), (0, 0, 0, -0.025), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("scene", [(0.0, 0.0), (0.01, -0.015)])
def test_head_and_scene_are_told_from_each_other(nudge: tuple[float, ...], scene: tuple[float, ...]) -> None:
    """Steps go some of the way, held to what was known; the next ones, each from where the last led, the rest."""
    wanted, mesh, now = Pyramid(off(nudge, scene)), np.zeros((NODES**2, 2), np.float32), np.zeros(NUDGE)
    for _ in range(4):
        drawn = off(now, tuple(np.median(mesh, 0)))  # by a renderer that has been told so
        mesh, more = step(Pyramid(drawn), wanted, face(), mesh, mesh, np.zeros(NUDGE))
        now = now + more
    assert np.abs(now - nudge).max() < 0.3 * PIXEL
    assert np.abs(np.median(mesh, 0) - scene).max() < 0.3 * PIXEL
    assert mesh.dtype == np.float32


def test_a_nudge_moves_turns_and_enlarges_a_face_about_its_place() -> None:
    before, nudge = face(), np.array([0.02, -0.03, 0.1, 0.2])
    after = nudged(before.motion, nudge).keypoints(POINTS)[:, :2]
    place = before.motion.translation[:2]
    c, s = np.cos(0.2), np.sin(0.2)
    expected = (before.keypoints[:, :2] - place) @ np.array([[c, s], [-s, c]]) * np.exp(0.1) + place + nudge[:2]
    assert after == pytest.approx(expected, abs=1e-5)
    same = nudged(before.motion, np.zeros(NUDGE))
    assert same.flat() == pytest.approx(before.motion.flat(), abs=1e-4)


def test_results_are_rounded_bounded_and_finite() -> None:
    dice = np.random.default_rng(6)
    still = np.full((NODES**2, 2), 3.0, np.float32)
    for _ in range(4):
        noise = [Pyramid(dice.integers(0, 256, (256, 256, 3), np.uint8)) for _ in range(2)]
        mesh, nudge = step(*noise, face(), still, still if dice.random() < 0.5 else None, np.full(NUDGE, 5.0))
        assert mesh.dtype == np.float32 and np.abs(mesh).max() <= REACH and np.abs(nudge).max() <= FAR
        assert all(np.array_equal(one * GRAIN, np.rint(one * GRAIN)) for one in (mesh, nudge))


def test_the_correction_goes_on_from_the_frame_before_of_the_same_picture() -> None:
    """Two frames alike: the second is corrected further; after another picture it begins anew."""
    wanted, still = Pyramid(off((0.02, 0, 0, 0), (0, 0))), np.zeros((NODES**2, 2), np.float32)
    drawn = Pyramid(texture(X, Y))
    _, first = step(drawn, wanted, face(), still, still, np.zeros(NUDGE))
    _, second = step(drawn, wanted, face(), still, still, first)
    assert 0 < first[0] < second[0]


@pytest.mark.skipif(not nc.load_pack().scene, reason="the bundled pack has no scene")
def test_what_is_drawn_comes_nearer_to_the_camera(networks: Inference) -> None:
    clip = portrait(60)
    reference, nodes = networks.reference(clip[0]), networks.pack.scene
    better = []
    for image in (clip[20], clip[40], clip[59]):
        seen, refinement = networks.estimate(image), Refinement(networks)
        mesh = networks.scene(reference, image, seen)
        found, moved = refinement.refined(reference, image, seen, mesh, None)
        assert moved.shape == (nodes**2, 2)
        scores = [
            psnr(networks.render(reference, replace(one.relative_to(reference.canonical), scene=scene)), image)
            for one, scene in ((seen, mesh), (found, moved))
        ]
        better.append(scores[1] - scores[0])
    assert min(better) > 0 and np.mean(better) > 0.2


@pytest.mark.skipif(not nc.load_pack().scene, reason="the bundled pack has no scene")
def test_frames_are_refined_where_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those shown as they are, and in the square that the picture was cut from."""
    asked: list[Any] = []
    refined = Refinement.refined

    def noted(self: Refinement, reference: Any, picture: Array, seen: MotionEstimate, *more: Any) -> Any:
        asked.append((picture, seen))
        return refined(self, reference, picture, seen, *more)

    monkeypatch.setattr(Refinement, "refined", noted)
    clip = portrait(8)
    encoder = nc.Encoder(4, device="cpu", threads=1, refine=True)
    for pts, image in enumerate(clip):
        encoder.encode(image, pts)
    assert encoder.stats.stage_seconds["refinement"] > 0
    assert len(asked) == 7  # all but the frame that the picture is of
    assert all(np.array_equal(seen, image) for (seen, _), image in zip(asked, clip[1:], strict=True))
    encoder._as_is = True
    encoder.encode(clip[0], 8)
    assert len(asked) == 7


def test_calls_are_refined_on_demand_and_what_waits_unless_told_not_to(portrait_clip: list[Array]) -> None:
    for given, refined in (
        ({}, False),
        ({"refine": True}, True),
        ({"lookahead": 2}, True),
        ({"lookahead": 2, "refine": False}, False),
        ({"refine": True, "avatar": nc.Avatar(portrait_clip[0], consent="a test")}, False),
    ):
        encoder = nc.Encoder(4, device="cpu", threads=1, **given)
        assert (encoder._refinement is not None) is refined
    with pytest.raises(ValueError, match="refine is 'yes'"):
        nc.Encoder(4, refine="yes")  # type: ignore[arg-type]

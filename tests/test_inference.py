"""The network calls on the bundled pack's real networks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import NODES

from neuralcodec.errors import InferenceError
from neuralcodec.inference import Inference, MotionEstimate, _as_picture
from neuralcodec.motion import MotionParams
from neuralcodec.pack import Pack, load_pack


def test_many_people_in_one_call_look_as_they_do_one_by_one(networks: Inference, portrait_clip: list[Any]) -> None:
    mirrored = np.ascontiguousarray(portrait_clip[0][:, ::-1])
    people = [networks.reference(portrait_clip[0]), networks.reference(mirrored), networks.reference(portrait_clip[5])]
    motions = [networks.motion(portrait_clip[i], people[0].estimate.box).motion for i in (3, 6, 9)]
    for order in ((0, 1, 2), (0, 1, 2), (2, 0, 1), (1, 1, 1)):
        chosen, moved = [people[i] for i in order], [motions[i] for i in order]
        together = networks.render_many(chosen, moved)
        for found, person, motion in zip(together, chosen, moved, strict=True):
            alone = networks.render(person, motion)
            assert int(np.abs(found.astype(int) - alone).max()) <= 1 and alone.std() > 5
    with pytest.raises(ValueError, match="1 references and 2 motions"):
        networks.render_many(people[:1], motions[:2])


def test_frames_drawn_side_by_side_are_those_drawn_one_by_one(portrait_clip: list[Any]) -> None:
    networks = Inference(load_pack(), device="cpu", threads=3)
    reference, other = networks.reference(portrait_clip[0]), networks.reference(portrait_clip[5][:, ::-1].copy())
    seen = [networks.motion(portrait_clip[i], reference.estimate.box).motion for i in (3, 6, 9, 12, 15)]
    frames = [(other if i == 2 else reference, motion) for i, motion in enumerate(seen)]
    together, alone = networks.render_each(frames), [networks.render(*frame) for frame in frames]

    def apart(a: Any, b: Any) -> int:
        return int(np.abs(a.astype(int) - b).max())

    assert all(apart(a, b) <= 1 for a, b in zip(together, alone, strict=True))  # 0 where both use as many threads
    assert all(apart(together[0], picture) > 5 for picture in together[1:])  # their order could be mistaken
    assert networks.render_each([]) == [] and apart(networks.render_each(frames[:1])[0], alone[0]) == 0
    assert networks._side_by_side is not None and Inference(load_pack(), threads=1, device="cpu")._side_by_side is None


def test_the_face_of_a_reference_is_where_many_looks_end(networks: Inference, portrait_clip: list[Any]) -> None:
    moved = np.roll(portrait_clip[0], 40, axis=0)  # far from where heads usually are
    for picture in (portrait_clip[0], portrait_clip[7], moved):
        found = settled = networks.estimate(picture)
        for _ in range(6):
            settled = networks.motion(picture, settled.box)
        assert 128 * np.abs(found.keypoints - settled.keypoints)[:, :2].mean() < 0.5  # pixels
        again = networks.estimate(picture.copy())
        assert np.array_equal(again.canonical, found.canonical) and np.array_equal(again.keypoints, found.keypoints)


def test_a_picture_without_a_face_is_looked_at_where_heads_usually_are(networks: Inference) -> None:
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert networks.detector.detect(grey) == []
    assert np.isfinite(networks.estimate(grey).keypoints).all()


@pytest.mark.parametrize("name", ["rotation", "translation", "scale", "canonical", "delta", "confidence"])
def test_a_motion_network_that_gives_nan_is_an_error(name: str) -> None:
    shapes = {"rotation": (1, 3, 3), "translation": (1, 3), "scale": (1, 1), "canonical": (1, 5, 3), "delta": (1, 5, 3),
              "confidence": (1, 1)}  # fmt: skip
    out = {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    assert MotionEstimate.from_outputs(out).confidence == 1
    out[name].flat[-1] = np.nan
    with pytest.raises(InferenceError, match="gave NaN or a face of no size"):
        MotionEstimate.from_outputs(out)


def test_a_single_pixel_of_nan_is_an_error() -> None:
    picture = np.full((3, 64, 64), 0.5, np.float32)
    assert (_as_picture(picture) == 128).all()
    picture[1, 5, 7] = np.nan
    with pytest.raises(InferenceError, match="The renderer gave NaN"):
        _as_picture(picture)


def test_a_warm_up_opens_every_network(portrait_clip: list[Any]) -> None:
    networks = Inference(load_pack(), device="cpu", threads=1)
    networks.warm_up(batch=2)
    assert {"_motion", "_reference", "_render", "detector"} <= vars(networks).keys()
    assert networks.provider == "CPUExecutionProvider"


def head(scale: float = 0.7) -> MotionEstimate:
    motion = MotionParams(0, 0, 0, np.zeros(3, np.float32), scale, np.zeros((16, 3), np.float32))
    return MotionEstimate(motion, np.zeros((16, 3), np.float32), 1.0)


def test_the_scene_of_a_pack_with_one_is_found_around_the_head(scene_pack: Pack, portrait_clip: list[Any]) -> None:
    networks, shifted = Inference(scene_pack), np.roll(portrait_clip[0], -4, axis=1)
    reference = networks.reference(portrait_clip[0])
    assert not networks.scene(reference, portrait_clip[0], head()).any()
    found = networks.scene(reference, shifted, head())
    assert found.shape == (NODES**2, 2) and found.dtype == np.float32
    assert np.abs(np.median(found, axis=0) - [4 / 128, 0]).max() < 0.3 / 32  # of a pixel of the pictures compared
    again = networks.scene(reference, shifted, head(), found)
    assert np.abs(again - found).max() < 0.3 / 32, "it goes on from what the frame before found"
    assert "estimate" not in vars(reference), "no network is asked"


def test_a_pack_without_a_scene_finds_none(scene_pack: Pack, portrait_clip: list[Any]) -> None:
    pack = replace(scene_pack)
    vars(pack)["tables"] = replace(scene_pack.tables, scene=0)
    networks = Inference(pack)
    assert networks.scene(networks.reference(portrait_clip[0]), portrait_clip[1], head()).shape == (0, 2)


def test_the_scene_goes_to_renderers_that_take_one(scene_pack: Pack, portrait_clip: list[Any]) -> None:
    networks = Inference(scene_pack)
    reference: Any = SimpleNamespace(canonical=np.zeros((16, 3), np.float32))
    scene = np.full((NODES**2, 2), 0.1, np.float32)
    motions = [replace(head().motion, scene=scene), head().motion]  # the second knows of no scene: nothing moves
    vars(networks)["_render"] = SimpleNamespace(input_shapes={"driving_scene": ("batch", NODES**2, 2)})
    inputs = networks.driving([reference] * 2, motions)
    assert np.array_equal(inputs["driving_scene"], [scene, np.zeros_like(scene)])
    assert inputs["driving_scene"].dtype == np.float32
    vars(networks)["_render"] = SimpleNamespace(input_shapes={})
    assert set(networks.driving([reference] * 2, motions)) == {"driving_keypoints", "driving_rotation"}


@pytest.mark.skipif(not load_pack().scene, reason="the bundled pack has no scene")
@pytest.mark.parametrize("pixels", [4, 8])
def test_the_renderer_moves_what_is_not_the_head(networks: Inference, portrait_clip: list[Any], pixels: int) -> None:
    """A picture on itself with the scene moved aside: nearer to the picture moved aside than to itself, at the rim."""
    picture = portrait_clip[0]
    reference = networks.reference(picture)
    scene = np.tile(np.array([[pixels / 128, 0]], np.float32), (networks.pack.scene**2, 1))
    moved = networks.render(reference, replace(reference.estimate.motion, scene=scene)).astype(float)
    still = networks.render(reference, reference.estimate.motion).astype(float)
    aside = np.roll(picture, -pixels, axis=1).astype(float)
    rim = np.s_[8:-8, 8:40]
    assert np.square(moved - aside)[rim].mean() < 0.5 * np.square(moved - picture)[rim].mean()
    assert np.square(still - picture)[rim].mean() < 0.5 * np.square(still - aside)[rim].mean()

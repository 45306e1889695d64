from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_call_bitstream_js import node
from test_call_face_js import hexed
from test_lids import face

from neuralcodec.closed_eyes import APART, CLOSING, SHUT, ClosedEyes, with_eyes
from neuralcodec.face import Square
from neuralcodec.gaze import EYES
from neuralcodec.motion import Array, MotionParams
from neuralcodec.pictures import HeldPicture


def picture(*left: float, shot: int = 1) -> Any:
    motion, canonical = face(*left)
    features: Any = SimpleNamespace(estimate=SimpleNamespace(motion=motion), canonical=canonical)
    return HeldPicture(0, b"", features, Square(0, 0, 256), shot)


def test_a_frame_gets_closed_eyes_from_the_latest_picture_that_shows_them() -> None:
    eyes, opened = ClosedEyes(), picture(1.0)
    first, second = picture(SHUT - 0.01), picture(0.1)

    def needed(held: HeldPicture, share: float) -> Any:
        """Of a frame whose eyes are open by ``share``; no time passes, so that usual stays what it was first."""
        return eyes.needed(held, frame(held, share), 0.0)

    assert needed(opened, 1.0) is None
    assert needed(opened, 0.1) is None  # there is none yet
    assert needed(first, 0.1) is None  # it shows closed eyes itself
    assert needed(opened, CLOSING - 0.01) is first.features
    assert needed(opened, CLOSING + 0.01) is None
    assert needed(picture(SHUT + 0.01), 0.1) is first.features  # half closed is no closed eye
    assert needed(second, 1.0) is None and needed(opened, 0.1) is second.features
    assert needed(picture(1.0, shot=2), 0.1) is None  # that may be somebody else


def frame(held: HeldPicture, *left: float) -> MotionParams:
    """Its motion, found on that picture."""
    motion, canonical = face(*left)
    return motion.told_on(held.features.canonical, canonical)


@pytest.mark.parametrize("left", [(0.1, 1.0), (1.0, 0.1)])
def test_one_closed_eye_is_a_wink(left: tuple[float, float]) -> None:
    eyes, opened, winks, shut = ClosedEyes(), picture(1.0), picture(*left), picture(0.1)
    assert [eyes.needed(held, frame(held, 1.0), 0.0) for held in (opened, winks)] == [None, None]
    assert eyes.needed(opened, frame(opened, 0.1), 0.0) is None  # that one is not kept
    assert eyes.needed(shut, frame(shut, 1.0), 0.0) is None
    assert eyes.needed(opened, frame(opened, 0.1), 0.0) is shut.features
    assert eyes.needed(opened, frame(opened, *left), 0.0) is None


def test_other_layouts_of_keypoints_pass() -> None:
    motion = MotionParams(0, 0, 0, np.zeros(3, np.float32), 0.5, np.zeros((15, 3), np.float32))
    features: Any = SimpleNamespace(canonical=np.zeros((15, 3), np.float32))
    assert ClosedEyes().needed(HeldPicture(0, b"", features, Square(0, 0, 256), 1), motion, 0.0) is None


def looks(eye: int) -> Array:
    """Skin with a level of its own where both eyes are, 40 x 16 pixels of 256."""
    drawn = np.full((256, 256, 3), (150, 120, 100), np.uint8)
    for middle in (90, 166):
        drawn[92:108, middle - 20 : middle + 20] = eye
    return drawn


def keypoints() -> Array:
    """Of such a face: eyes 40 pixels wide."""
    points = np.zeros((30, 3), np.float32)
    for (outer, inner, upper, lower, _), middle, side in zip(EYES, (90, 166), (-1, 1), strict=True):
        points[outer, :2], points[inner, :2] = (middle + 20 * side, 100), (middle - 20 * side, 100)
        points[upper, :2], points[lower, :2] = (middle, 96), (middle, 104)
    points[:, :2] = points[:, :2] * 2 / 255 - 1
    return points


def test_eyes_are_taken_over_and_nothing_else() -> None:
    opened, shut = looks(20), looks(110)
    mixed = with_eyes(opened, shut, keypoints())
    for middle in (90, 166):
        assert (mixed[96:104, middle - 8 : middle + 8] == 110).all()
    changed = (mixed != opened).any(2)
    assert not changed[:60].any() and not changed[140:].any() and not changed[:, 120:136].any()
    assert (opened == looks(20)).all() and (shut == looks(110)).all()


def test_other_light_is_taken_off() -> None:
    opened, shut = looks(20), looks(110)
    darker = shut - np.array([30, 20, 10], np.uint8)
    assert np.abs(with_eyes(opened, darker, keypoints()).astype(int) - with_eyes(opened, shut, keypoints())).max() <= 1


def test_another_face_keeps_its_eyes() -> None:
    opened, shut, step = looks(20), looks(110), np.uint8(APART + 1)
    spots = 2 * step * np.random.default_rng(0).integers(0, 2, (256, 256, 1), np.uint8)
    for other in (shut - step, shut + spots):
        assert with_eyes(opened, other, keypoints()) is opened


@pytest.mark.parametrize("place", [(0, 0), (-3, 0), (0, 1e6), (-0.9, 0.9), (1.4, 0)])
@pytest.mark.parametrize("size", [0.0, 0.01, 1.0, 1e5])
def test_eyes_may_lie_anywhere(place: tuple[float, float], size: float) -> None:
    points = keypoints() * size
    points[:, :2] += np.array(place, np.float32)
    mixed = with_eyes(looks(20), looks(110), points)
    assert mixed.shape == (256, 256, 3) and mixed.dtype == np.uint8


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_takes_eyes_over_as_python_does() -> None:
    dice = np.random.default_rng(3)
    cases, expected = [], []
    for shift in (0.0, 0.05, 0.4, 1.5):
        for apart in (0, 8, 2.5 * APART):
            points = keypoints() + dice.normal(0, 0.01, (30, 3)).astype(np.float32)
            points[:, 0] += shift
            other = np.clip(looks(110) + dice.normal(apart / 2, apart / 2, (256, 256, 3)), 0, 255).astype(np.uint8)
            expected.append(with_eyes(looks(20), other, points))
            cases.append({"other": hexed(other), "keypoints": points.ravel().tolist()})
    found = node(
        "const pixels = (text) => Uint8ClampedArray.from(unhex(text)), picture = pixels(given.picture);"
        "result = given.cases.map(({ other, keypoints }) =>"
        " bitstream.hex(withEyes(picture, pixels(other), keypoints, 256)));",
        {"picture": hexed(looks(20)), "cases": cases},
    )
    for ours, theirs in zip(expected, found, strict=True):
        same = np.frombuffer(bytes.fromhex(theirs), np.uint8).reshape(256, 256, 4)[..., :3].astype(int)
        assert np.abs(same - ours).max() <= 1
    changed = [(picture != looks(20)).any() for picture in expected]
    assert any(changed) and not all(changed)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_chooses_the_picture_that_python_chooses() -> None:
    dice, eyes = np.random.default_rng(4), ClosedEyes()
    steps, expected, references = [], [], []
    for number in range(400):
        if number % 8 == 0:
            share = float(dice.choice([1.0, 0.7, 0.3, 0.1], p=[0.4, 0.2, 0.2, 0.2]))
            references.append(picture(share, shot=number // 100))
        held = references[-1]
        motion = frame(held, float(dice.choice([1.0, 0.8, 0.45, 0.2])))
        chosen = eyes.needed(held, motion, number / 25)
        expected.append(next((i for i, r in enumerate(references) if r.features is chosen), -1))
        steps.append([len(references) - 1, motion.delta.ravel().tolist(), number / 25])
    pictures = [
        {"i": i, "shot": held.shot, "face": {"canonical": held.features.canonical.ravel().tolist(),
         "motion": {"delta": held.features.estimate.motion.delta.ravel().tolist()}}}
        for i, held in enumerate(references)
    ]  # fmt: skip
    found = node(
        "const eyes = new ClosedEyes();"
        "result = given.steps.map(([i, ...rest]) => eyes.needed(given.pictures[i], ...rest)?.i ?? -1);",
        {"steps": steps, "pictures": pictures},
    )
    assert found == expected and len(set(expected)) > 5

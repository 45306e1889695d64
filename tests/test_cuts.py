"""Where one shot ends and another begins, as real networks see it."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from conftest import exposed, somebody_else

from neuralcodec.cuts import Cuts, Shot
from neuralcodec.face import CropFollower, Square
from neuralcodec.inference import Inference
from neuralcodec.motion import Array
from neuralcodec.watcher import Watcher

FLASH = 0.2  # seconds


def shots_of(networks: Inference, film: list[Array]) -> list[int]:
    """The number that each frame's has, at 25 frames a second."""
    watcher = Watcher(networks, CropFollower.parse("none"), 256, lambda _: nullcontext(), FLASH)
    return [watcher.see(image, pts / 25)[0].shot for pts, image in enumerate(film)]


def lit(image: Array, more: int) -> Array:
    return np.minimum(image.astype(int) + more, 255).astype(np.uint8)


def test_another_shot_begins_with_somebody_else(networks: Inference, portrait_clip: list[Array]) -> None:
    film = [*portrait_clip[:3], *map(somebody_else, portrait_clip[3:6]), *portrait_clip[9:11]]
    assert shots_of(networks, film) == [0, 0, 0, 1, 1, 1, 0, 0]  # he is back so soon that it was a flashlight
    film[6:6] = map(somebody_else, portrait_clip[6:9])
    assert shots_of(networks, film) == [0, 0, 0, *[1] * 6, 2, 2]


@pytest.mark.parametrize(("lasts", "is_one"), [(1, True), (5, True), (7, False)])
def test_a_flashlight_begins_no_shot(networks: Inference, portrait_clip: list[Array], lasts: int, is_one: bool) -> None:
    """It is brightest at once and fades by more than a cut; what stays longer is another shot. What follows is compared
    with the frame before it, be it in another light."""
    bright = [lit(image, more) for image, more in zip(portrait_clip[2:], [110] + [50] * (lasts - 1), strict=False)]
    film = [*portrait_clip[:2], *bright, *portrait_clip[2 + lasts : 5 + lasts]]
    shots = shots_of(networks, film)
    assert shots[:2] == [0, 0] and all(shots[2 : 2 + lasts])
    assert (shots[-3:] == [0, 0, 0]) is is_one and len(set(shots[-3:])) == 1


@pytest.mark.parametrize("between", [1, 8])
def test_what_nobody_is_seen_in_begins_no_shot_but_may_end_one(
    networks: Inference, portrait_clip: list[Array], between: int
) -> None:
    room = [np.full((256, 256, 3), 90, np.uint8)] * between
    for after, begun in ((portrait_clip[4:6], 0), ([*map(somebody_else, portrait_clip[4:6])], 1)):
        shots = shots_of(networks, [portrait_clip[0], *portrait_clip[:2], *room, *after])
        assert shots == [*[0] * (between + 3), begun, begun]


def test_with_the_first_face_a_shot_begins_where_all_changes_at_once(
    networks: Inference, portrait_clip: list[Array]
) -> None:
    room = np.full((256, 256, 3), 90, np.uint8)
    assert shots_of(networks, [room, room, *portrait_clip[:3]]) == [0, 0, 1, 1, 1]
    there = np.linspace(0, 1, 10)[:, None, None, None]
    appears = [*(room * (1 - there) + portrait_clip[0] * there).astype(np.uint8)]
    assert shots_of(networks, [*appears, *portrait_clip[1:3]]) == [0] * 12


def test_somebody_else_who_comes_out_of_the_dark_is_in_another_shot(
    networks: Inference, portrait_clip: list[Array]
) -> None:
    night, gains = np.zeros((256, 256, 3), np.uint8), (0.3, 0.37, 0.43, 0.5)
    others = [somebody_else(image) for image in portrait_clip[4:8]]
    for image in others:
        image[:, :70] = image[:, -70:] = 0  # before a black wall
    down = [exposed(image, gain) for image, gain in zip(portrait_clip[:4], gains[::-1], strict=True)]
    for up, begun in ((others, 1), (portrait_clip[4:8], 0)):
        dark = [exposed(image, gain) for image, gain in zip(up, gains, strict=True)]
        assert shots_of(networks, [*down, night, night, *dark]) == [*[0] * 6, *[begun] * 4]


def test_what_is_too_dark_to_tell_is_looked_at_again(networks: Inference, portrait_clip: list[Array]) -> None:
    others = [somebody_else(image) for image in portrait_clip[4:9]]
    for image in others:
        image[:, :70] = image[:, -70:] = 100
    down = [exposed(image, gain) for image, gain in zip(portrait_clip, (0.3, 0.24, 0.18, 0.12, 0.06), strict=False)]
    up = [exposed(image, gain) for image, gain in zip(others, (0.2, 0.25, 0.3, 0.4, 0.5), strict=True)]
    night = np.zeros((256, 256, 3), np.uint8)
    assert shots_of(networks, [*down, night, *up]) == [*[0] * 9, 1, 1]


def test_what_comes_out_of_the_dark_is_no_flashlight(
    networks: Inference, portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is dark is alike."""
    cuts, square = Cuts(networks, FLASH, lambda _: nullcontext()), Square(0, 0, 256)
    found = iter([False, True, False, False])
    monkeypatch.setattr(cuts, "_begins_shot", lambda *_: next(found))
    estimate = networks.motion(portrait_clip[0], np.array([0, 0, 0.5], np.float32))
    shots = []
    for pts, image in enumerate([portrait_clip[0], *map(somebody_else, portrait_clip[1:4])]):
        dark = exposed(image, 0.1 + 0.02 * pts)
        shots.append(cuts.follow(Shot(dark, dark, square, estimate, pts / 25), False))
    assert shots == [0, 1, 1, 1]


def test_a_jump_of_the_camera_or_a_hand_is_no_cut(networks: Inference, portrait_clip: list[Array]) -> None:
    film = [np.roll(image, 12 * (pts // 2 % 2), axis=1) for pts, image in enumerate(portrait_clip[:6])]
    for image in film[4:]:
        image[180:] = 255 - image[180:]
    assert shots_of(networks, film) == [0] * 6


def test_a_picture_of_another_size_is_compared_with_none_before_it(
    networks: Inference, portrait_clip: list[Array]
) -> None:
    film = [portrait_clip[0], somebody_else(portrait_clip[1])[8:-8, 8:-8], somebody_else(portrait_clip[2])[8:-8, 8:-8]]
    assert shots_of(networks, film) == [0, 0, 0]

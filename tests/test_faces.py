"""The independent face measures on films whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import clips, faces
from benchmarks.faces import Track

needs_networks = pytest.mark.skipif(bool(faces.unavailable()), reason=faces.unavailable() or "installed")


def face(mouth: float = 0.1, eyes: float = 0.3) -> Any:
    """68 landmarks with the given openings: face height 100 px, eyes 20 px wide."""
    points = np.zeros((68, 2))
    points[27], points[8] = (50, 0), (50, 100)
    for upper, lower in faces.INNER_LIPS:
        points[upper], points[lower] = (50, 70), (50, 70 + 100 * mouth)
    for left, (out, up1, up2, inner, down2, down1) in zip((20, 60), faces.EYES, strict=True):
        points[out], points[inner] = (left, 20), (left + 20, 20)
        points[up1], points[up2] = (left + 6, 20), (left + 14, 20)
        points[down1], points[down2] = (left + 6, 20 + 20 * eyes), (left + 14, 20 + 20 * eyes)
    return points


def track(*each: Any) -> Track:
    return Track(np.array(each), 256)


def test_openings_are_read_off_the_landmarks() -> None:
    seen = track(face(0.1, 0.3), face(0.0, 0.05))
    assert seen.mouth == pytest.approx([0.1, 0.0]) and seen.eyes == pytest.approx([0.3, 0.05])


def test_a_film_against_itself_is_perfect_and_a_shift_is_a_distance() -> None:
    film = track(*(face(m, e) for m, e in ((0, 0.3), (0.1, 0.3), (0.2, 0.05))))
    same = faces.distances(film, film)
    assert same["landmark_px"] == same["mouth_error"] == 0
    assert (same["closed"], same["closed_shown"], same["opened"], same["opened_shown"]) == (1, 1, 2, 2)
    moved = faces.distances(film, Track(film.landmarks + (3, 4), 256))
    assert moved["landmark_px"] == pytest.approx(5) and moved["mouth_error"] == pytest.approx(0)
    assert faces.distances(Track(film.landmarks, 512), Track(film.landmarks + (3, 4), 512))["landmark_px"] == 2.5


def test_a_mouth_that_stays_shut_misses_its_whole_range() -> None:
    speaking, shut = (track(*(face(m) for m in openings)) for openings in ((0, 0.2) * 50, (0, 0) * 50))
    found = faces.distances(speaking, shut)
    assert faces.mouth_share([found]) == pytest.approx(0.5)  # wrong by all of it half of the time


def test_eyes_that_never_blink_agree_by_half() -> None:
    blinking = track(*(face(eyes=e) for e in (0.3, 0.3, 0.05, 0.3)))
    staring = track(*[face(eyes=0.3)] * 4)
    assert faces.blink_agreement([faces.distances(blinking, staring)]) == 0.5
    assert faces.blink_agreement([faces.distances(blinking, blinking)]) == 1.0


def test_tremble_of_a_still_head() -> None:
    still = track(*[face()] * 12)
    shaking = Track(still.landmarks + np.array([(i % 2, 0) for i in range(12)])[:, None], 256)
    found = faces.tremble(still, shaking)
    assert found["tremble_original"] == 0 and found["tremble"] == pytest.approx(2.0)  # 1, -1, 1: second difference 2


def test_two_people_have_no_similarity_and_one_has_all() -> None:
    rng = np.random.default_rng(0)
    people = [rng.normal(size=128) * 0.1 + 1 for _ in range(20)]  # near each other, as the network puts faces
    film = [np.tile(person, (3, 1)) for person in people]
    assert faces.centred_similarity([(a, a) for a in film]) == pytest.approx([1.0] * 20)
    swapped = faces.centred_similarity(list(zip(film, film[1:] + film[:1], strict=True)))
    assert abs(np.mean(swapped)) < 0.15


@needs_networks
def test_a_photograph_is_itself_and_blur_takes_its_identity() -> None:
    skimage = pytest.importorskip("skimage")
    from scipy.ndimage import gaussian_filter

    photograph = skimage.data.astronaut()[:256, 96:352]
    clip = clips.from_frames("astronaut", [photograph] * 2)
    blurred = [gaussian_filter(photograph, (6, 6, 0))] * 2
    same = faces.landmark_figures(clip, clip.frames)
    assert same["landmark_px"] == 0 and faces.identity_figures(clip, clip.frames)["same_person"] == 1
    assert faces.landmark_figures(clip, blurred)["landmark_px"] > 0.5
    near = [gaussian_filter(photograph, (1, 1, 0))] * 2
    far, little = (faces.identity_figures(clip, film)["identity_distance"] for film in (blurred, near))
    assert far > 2 * little > 0


@needs_networks
def test_a_moved_picture_is_that_distance_away() -> None:
    skimage = pytest.importorskip("skimage")
    photograph = skimage.data.astronaut()[:256, 96:352]
    clip = clips.from_frames("astronaut moved", [photograph])
    moved = np.roll(photograph, 4, axis=1)
    assert faces.landmark_figures(clip, [moved])["landmark_px"] == pytest.approx(4.0, abs=1.0)


@needs_networks
def test_two_looks_see_a_mirrored_face_as_the_same() -> None:
    skimage = pytest.importorskip("skimage")
    dlib = pytest.importorskip("dlib")
    photograph = skimage.data.astronaut()[:256, 96:352]
    mirrored = np.ascontiguousarray(photograph[:, ::-1])
    box = faces._detect(photograph)
    other = dlib.rectangle(255 - box.right(), box.top(), 255 - box.left(), box.bottom())
    one, two = faces.look_twice([photograph], [box]), faces.look_twice([mirrored], [other])
    back = two.landmarks[:, faces.MIRRORED] * [-1, 1] + [255, 0]
    assert np.abs(back - one.landmarks).max() < 1e-9
    assert np.abs(faces._look([photograph], [box]).landmarks - one.landmarks).max() > 0.1  # one look is not so


@needs_networks
def test_a_clip_without_a_face_has_no_figures() -> None:
    clip = clips.from_frames("grey", [np.full((64, 64, 3), 128, np.uint8)] * 2)
    assert faces.landmark_figures(clip, clip.frames) == faces.identity_figures(clip, clip.frames) == {}


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    assert "dlib" in faces.unavailable() and "pip install" in faces.unavailable()

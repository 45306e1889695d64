"""A film is looked at before it is coded: what is seen, how far ahead, and what is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec.face import CropFollower, Square
from neuralcodec.film import AROUND, EYE, FACE, WHOLE, WIDE
from neuralcodec.gaze import EYES, POINTS
from neuralcodec.inference import Inference
from neuralcodec.media import as_picture
from neuralcodec.motion import Array
from neuralcodec.stats import timed
from neuralcodec.watcher import Sight, Watcher

TICK = Fraction(1, 10)
NOBODY = 7  # grey level of a picture without a face


def eyes(*wide: float) -> dict[str, Any]:
    """Of an estimate whose eyes stand so far open; none: keypoints of another layout."""
    points = np.zeros((POINTS if wide else 5, 3), np.float32)
    for (outer, inner, upper, lower, _), opening in zip(EYES, wide, strict=False):
        points[inner, 0], points[lower, 1] = points[outer, 0] + 1, points[upper, 1] + opening
    return {"canonical": points, "motion": SimpleNamespace(delta=np.zeros_like(points))}


class Eyes:
    """A watcher for pictures that say by their grey level where the face is, in a square that is twice as large. shots:
    the number that each frame's has."""

    def __init__(self, shots: list[int] | None = None) -> None:
        self._shots = iter(shots or [0] * 1000)

    def see(self, picture: Array, seconds: float) -> tuple[Sight, Array]:
        grey = int(picture[0, 0, 0])
        estimate: Any = None if grey == NOBODY else SimpleNamespace(box=np.array([0.0, 0.0, 0.5]), **eyes())
        return Sight(Square(-64, 32, 512), False, estimate, next(self._shots)), picture


def picture(grey: int) -> Array:
    return np.full((8, 8, 3), grey, np.uint8)


def film_of(greys: list[int], asked: list[int] | None = None) -> nc.Film:
    """A picture every tick. asked: gets the pts of those that were asked for."""

    def frames() -> Iterator[tuple[int, Array]]:
        for pts, grey in enumerate(greys):
            if asked is not None:
                asked.append(pts)
            yield pts, picture(grey)

    film, eyes = nc.Film(frames(), len(greys) / 10), Eyes()
    film.watch_with(eyes, TICK)  # type: ignore[arg-type]
    return film


def test_the_encoder_gets_the_sights_that_it_would_have_had_without_a_film(portrait_clip: list[Array]) -> None:
    """The portrait moves through a wide picture, is gone for a while, and is looked at ahead or not."""
    scenes = np.full((10, 300, 500, 3), 128, np.uint8)
    for number, image in enumerate(portrait_clip[:10]):
        if number not in (4, 5):
            scenes[number, 22:278, 10 + 20 * number :][:, :256] = image
    networks, stages = Inference(nc.load_pack(), device="cpu", threads=1), {}
    plain, ahead = (Watcher(networks, CropFollower(), 256, lambda stage: timed(stages, stage)) for _ in range(2))
    film = nc.Film(enumerate(scenes))
    film.watch_with(ahead, Fraction(1, 25))
    squares = set()
    for pts, scene in enumerate(scenes):
        wanted, _ = plain.see(as_picture(scene), pts / 25)
        if pts in (2, 6):
            film.ahead(0.1)
        sight = film.sight(pts)
        assert (sight.square, sight.moved) == (wanted.square, wanted.moved)
        assert (sight.estimate is None) == (wanted.estimate is None) == (pts in (4, 5))
        if sight.estimate is not None and wanted.estimate is not None:
            assert np.array_equal(sight.estimate.keypoints, wanted.estimate.keypoints)
            assert np.array_equal(sight.estimate.motion.flat(), wanted.estimate.motion.flat())
        squares.add(sight.square)
    assert len(squares) > 1


def test_frames_are_asked_for_once_and_no_further_ahead_than_needed() -> None:
    asked: list[int] = []
    film = film_of([1] * 50, asked)
    assert asked == []
    film.sight(0)
    assert asked == [0]
    for _ in range(2):
        times, looks = film.ahead(1.0)
        assert np.allclose(times, np.arange(10) / 10) and len(looks) == 10
        assert asked == list(range(12))  # the last of them tells that it lies behind the end
    film.sight(1)
    film.sight(5)
    assert asked == list(range(12))
    times, _ = film.ahead(1.0)
    assert np.allclose(times, np.arange(5, 15) / 10) and asked == list(range(17))
    times, _ = film.ahead(0.35)
    assert np.allclose(times, np.arange(5, 9) / 10) and asked == list(range(17)) and not film.ended


def test_frames_before_the_present_one_are_forgotten() -> None:
    film = film_of([10 + number for number in range(20)])
    film.sight(0)
    film.ahead(1.0)
    film.sight(8)
    times, looks = film.ahead(0.45)
    assert np.allclose(times, np.arange(8, 13) / 10)
    assert looks[0] is film.present and [look.grey[0] + 128 for look in looks] == [18, 19, 20, 21, 22]
    assert len(film._seen) == len(film._looks) <= 6
    with pytest.raises(ValueError, match="pts is 7, where the film has a frame at 8"):
        film.sight(7)


def test_pictures_themselves_are_not_kept() -> None:
    """Half a minute of them would be gigabytes."""
    alive: list[int] = []

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            alive.remove(id(self))

    def frames() -> Iterator[tuple[int, Array]]:
        for pts in range(30):
            image = picture(1).view(Counted)
            alive.append(id(image))
            yield pts, image
            del image

    film, eyes = nc.Film(frames()), Eyes()
    film.watch_with(eyes, TICK)  # type: ignore[arg-type]
    film.sight(0)
    film.ahead(2.0)
    assert len(film._seen) == 22 and len(alive) <= 1


BOX = np.array([0.25, -0.5, 0.25], np.float32)  # of the face that Tiles sees: its centre and half its side


class Tiles:
    """A watcher that sees a face in every picture and all of it."""

    def see(self, picture: Array, seconds: float) -> tuple[Sight, Array]:
        face: Any = SimpleNamespace(box=BOX, **eyes(0.25, 0.01))
        return Sight(Square(0, 0, 256), False, face), picture


def test_looks_are_small_grey_pictures_whose_products_add_up_exactly(portrait_clip: list[Array]) -> None:
    image = portrait_clip[0].copy()
    (x, y), around = 128 + 128 * BOX[:2], round(AROUND * 128 * BOX[2])
    image[round(y) - around : round(y) + around, round(x) - around : round(x) + around] //= 4
    film = nc.Film([(0, image), (1, np.full_like(image, 255)), (2, np.zeros_like(image))])
    film.watch_with(Tiles(), TICK)  # type: ignore[arg-type]
    film.sight(0)
    _, (first, white, black) = film.ahead(1.0)
    assert first.grey.dtype == np.float32 and first.grey.shape == (WHOLE**2 + FACE**2 + 2 * EYE,)
    assert first.grey[-2 * EYE :].tolist() == [round(0.25 * WIDE)] * EYE + [round(0.01 * WIDE)] * EYE
    assert np.all(white.grey[: -2 * EYE] == 127) and black.grey[: -2 * EYE].max() <= -127
    assert np.array_equal(first.grey, np.rint(first.grey))
    grey = image @ np.array([0.299, 0.587, 0.114]) - 128
    assert np.mean(first.grey[: WHOLE**2]) == pytest.approx(np.mean(grey), abs=1)
    assert np.all(first.grey[WHOLE**2 : -2 * EYE].reshape(FACE, FACE)[2:-2, 2:-2] < -60)  # darkened, and nothing else
    assert len(first.grey) * 128**2 <= 2**24  # what float32 counts exactly


def textured(low: int, high: int) -> Array:
    image = np.full((64, 64, 3), low, np.uint8)
    image[np.arange(64) // 8 % 2 == 0] = high
    return image


def fades_in(count: int, shots: list[int] | None = None) -> nc.Film:
    """Comes out of the dark within a second and stays; a picture every tick."""
    film = nc.Film((pts, textured(2 * min(pts, 10), 20 * min(pts, 10))) for pts in range(count))
    film.watch_with(Eyes(shots), TICK)  # type: ignore[arg-type]
    return film


def test_what_fades_in_is_told_by_what_it_comes_to() -> None:
    film = fades_in(80)
    film.sight(0)
    first = film.ahead(5.0)[1][1]
    found = film.typical_after(first)
    assert found is not None and np.array_equal(found[0], textured(20, 200)) and found[1] is not None
    film.sight(20)
    _, looks = film.ahead(5.0)
    assert film.typical_after(looks[0]) is None  # it is as what follows
    assert film.typical_after(first) is not None
    film.sight(71)
    assert len(film._tiles) <= 1  # nothing behind is kept


def test_no_other_shot_says_what_is_typical_and_few_tiles_are_kept() -> None:
    film = fades_in(80, [0] * 6 + [1] * 74)
    film.sight(0)
    found = film.typical_after(film.ahead(5.0)[1][1])
    assert found is not None and np.array_equal(found[0], textured(10, 100))
    assert len(film._tiles) == 11


@pytest.mark.parametrize("greys", [[NOBODY, 1, 2], [1, NOBODY, NOBODY], [NOBODY] * 3])
def test_looks_say_where_a_face_was_seen(greys: list[int]) -> None:
    film = film_of(greys)
    assert film.sight(0).square == Square(-64, 32, 512)
    _, looks = film.ahead(5.0)
    assert [look.face for look in looks] == [grey != NOBODY for grey in greys]


def test_a_film_says_when_somebody_comes() -> None:
    film = film_of([NOBODY] * 12 + [1] * 20)
    film.sight(0)
    assert film.face_after(1.0) is None and film.face_after(5.0) == pytest.approx(1.2)
    film.sight(9)
    assert film.face_after(1.0) == pytest.approx(0.3)
    film.sight(15)
    assert film.face_after(1.0) == 0.0


def test_looks_say_of_which_shot_they_are() -> None:
    """What is found to be a flashlight later on is of the shot that goes on after it, wherever it is looked at."""
    for begins in (0, 3):
        film = nc.Film((pts, picture(NOBODY if pts == 4 else 1)) for pts in range(9))
        film.watch_with(Eyes([0, 1, 1, 2, 3, 1, 1, 1, 2]), TICK)  # type: ignore[arg-type]
        film.sight(0)
        film.ahead(0.1 * begins)
        film.sight(begins)
        _, looks = film.ahead(5.0)
        assert [look.shot for look in looks] == [0, 1, 1, 1, 1, 1, 1, 1, 2][begins:]


def test_a_film_has_ended_once_its_last_frame_has_been_looked_at_and_another_was_asked_for() -> None:
    film = film_of([1] * 15)
    film.sight(0)
    film.ahead(1.0)
    assert not film.ended
    film.sight(3)
    times, _ = film.ahead(1.0)
    assert not film.ended and len(times) == 10
    film.sight(4)
    times, _ = film.ahead(1.0)
    assert film.ended and len(times) == 10
    assert film.sight(14).estimate is not None
    assert len(film.ahead(1.0)[0]) == 1


def test_nothing_is_ahead_in_an_empty_film() -> None:
    film = film_of([])
    assert film.ahead(30.0) == ([], [])
    with pytest.raises(ValueError, match="pts is 0, where the film has its end"):
        film.sight(0)
    assert film.ended and len(film.ahead(30.0)[0]) == 0


def test_a_frame_that_the_film_has_not_is_refused() -> None:
    film = nc.Film((2 * pts + 2, picture(1)) for pts in range(10))
    film.watch_with(Eyes(), TICK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pts is 1, where the film has a frame at 2: encode the frames that Film was"):
        film.sight(1)
    film.sight(2)
    film.ahead(1.0)
    with pytest.raises(ValueError, match="pts is 5, where the film has a frame at 6"):
        film.sight(5)
    film.sight(6)


def test_an_end_that_comes_too_early_is_said() -> None:
    film = film_of([1] * 3)
    for pts in range(3):
        film.sight(pts)
    with pytest.raises(ValueError, match="pts is 3, where the film has its end: encode the frames that Film was given"):
        film.sight(3)


def test_a_film_is_for_one_encoder(portrait_clip: list[Array]) -> None:
    film = nc.Film(enumerate(portrait_clip))
    with pytest.raises(ValueError, match="target_kbps is 0.1"):  # the film is not taken with it
        nc.Encoder(0.1, device="cpu", threads=1, film=film)
    nc.Encoder(4, device="cpu", threads=1, film=film)
    with pytest.raises(ValueError, match="A Film is for one Encoder; make another from the same frames"):
        nc.Encoder(4, device="cpu", threads=1, film=film)


@pytest.mark.parametrize(("frames", "duration"), [(5, 1.0), ([], "x"), ([], None), ([], float("nan"))])
def test_a_film_of_anything_else_is_refused(frames: Any, duration: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        nc.Film(frames, duration)


def test_pictures_without_times_are_no_film(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(4, device="cpu", threads=1, film=nc.Film(portrait_clip[:2]))
    with pytest.raises(ValueError, match="A Film has pairs of pts and picture; found ndarray"):
        encoder.encode(portrait_clip[0], 0)

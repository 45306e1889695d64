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
from neuralcodec.inference import Inference
from neuralcodec.media import as_picture
from neuralcodec.motion import Array
from neuralcodec.stats import timed
from neuralcodec.watcher import Sight, Watcher

TICK = Fraction(1, 10)
POINTS = 5
NOBODY = 7  # grey level of a picture without a face


class Eyes:
    """A watcher for pictures that say by their grey level where the face is, in a square that is twice as large."""

    def see(self, picture: Array, seconds: float) -> tuple[Sight, Array]:
        grey = int(picture[0, 0, 0])
        points = np.full((POINTS, 3), grey / 100, np.float32)
        estimate: Any = None if grey == NOBODY else SimpleNamespace(keypoints=points)
        return Sight(Square(-64, 32, 512), False, estimate), picture


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
        times, points = film.ahead(1.0)
        assert np.allclose(times, np.arange(10) / 10) and points.shape == (10, POINTS, 2)
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
    times, points = film.ahead(0.45)
    assert np.allclose(times, np.arange(8, 13) / 10)
    assert np.array_equal(points[0], film.present) and len(np.unique(points[:, 0, 0])) == 5
    assert len(film._seen) == len(film._points) <= 6
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


def test_keypoints_are_in_pixels_of_256_from_the_corner_of_the_source() -> None:
    film = film_of([50, 0])
    film.sight(0)
    _, points = film.ahead(1.0)
    # of a square at (-64, 32) and 512 wide, a source pixel is half a pixel of 256
    assert points.dtype == np.float32
    assert np.allclose(points[0], [0.5 * (-64 + 1.5 * 256), 0.5 * (32 + 1.5 * 256)])
    assert np.allclose(points[1], [0.5 * (-64 + 256), 0.5 * (32 + 256)])


def test_a_square_that_grows_does_not_move_the_face() -> None:
    """The scale stays that of the first square."""
    film, squares = nc.Film((pts, picture(0)) for pts in range(2)), iter([Square(0, 0, 256), Square(-128, -128, 512)])

    class Zooming:
        def see(self, picture: Array, seconds: float) -> tuple[Sight, Array]:
            estimate: Any = SimpleNamespace(keypoints=np.zeros((POINTS, 3), np.float32))
            return Sight(next(squares), False, estimate), picture

    film.watch_with(Zooming(), TICK)  # type: ignore[arg-type]
    film.sight(0)
    _, points = film.ahead(1.0)
    assert np.allclose(points, 128)


@pytest.mark.parametrize("greys", [[NOBODY, 1, 2], [1, NOBODY, NOBODY], [NOBODY] * 3])
def test_frames_without_a_face_have_no_keypoints(greys: list[int]) -> None:
    film = film_of(greys)
    assert film.sight(0).square == Square(-64, 32, 512)
    times, points = film.ahead(5.0)
    assert len(times) == 3 and points.shape[2] == 2
    for grey, one in zip(greys, points, strict=True):
        assert np.isnan(one).all() if grey == NOBODY else np.isfinite(one).all()
    assert np.isnan(film.present).all() == (greys[0] == NOBODY)


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
    times, points = film.ahead(30.0)
    assert times.shape == (0,) and points.shape[0] == 0 and points.shape[2] == 2
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
    nc.Encoder(4, device="cpu", threads=1, film=film)
    with pytest.raises(ValueError, match="A Film is for one Encoder; make another from the same frames"):
        nc.Encoder(4, device="cpu", threads=1, film=film)

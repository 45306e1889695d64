"""How the rate of a film is spread over it. Films are tracks of keypoints, but for the last tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec.avatar import Avatar
from neuralcodec.film_rate import AGAIN, AIM, COST_MOST, HORIZON, PRICES, TRIES, FilmRate, _Future
from neuralcodec.motion import Array
from neuralcodec.packet import REFERENCES_MAX, Packet, Update
from neuralcodec.rate import CLOSE, DRIFT_LEAST, DRIFT_MOST, EVIDENCE, FINER, UPDATE_SHARE, RateControl

POINTS = 6
STEP = (PRICES[1] / PRICES[0]) ** (1 / 2**TRIES)  # between prices that are told apart
Place = Callable[[float], float]  # of the face at a time, pixels of 256; NaN: none is seen


class Track:
    """A film whose keypoints are known. now: index of the present frame."""

    def __init__(self, times: Array, points: Array, duration: float | None = None) -> None:
        self.times, self.points, self.now = times, points, 0
        self.duration = float(times[-1]) if duration is None else duration
        self.ended = False

    @property
    def present(self) -> Array:
        return self.points[self.now]

    def ahead(self, seconds: float) -> tuple[Array, Array]:
        end = int(np.searchsorted(self.times, self.times[self.now] + seconds))
        self.ended |= end == len(self.times)
        return self.times[self.now : end], self.points[self.now : end]


def track(place: Place, seconds: float, fps: float = 10, duration: float | None = None) -> Track:
    times = np.arange(round(seconds * fps)) / fps
    points = np.array([np.full((POINTS, 2), [place(at), 0.0]) for at in times], np.float32)
    return Track(times, points, duration)


def rests(_: float) -> float:
    return 100.0


def moves(at: float) -> float:
    """Never twice at the same place."""
    return 9 * at


def rate_of(film: Track, kbps: float = 4, **options: Any) -> FilmRate:
    rate = FilmRate(film, kbps, **options)  # type: ignore[arg-type]
    rate.advance(float(film.times[0]))
    return rate


def begun(film: Track, kbps: float = 4, key: int = 900) -> FilmRate:
    """A key has been sent, and the price for the next frame is known."""
    rate = rate_of(film, kbps)
    rate.sent_key(key)
    rate.spend(key)
    film.now = 1
    rate.advance(float(film.times[1]))
    return rate


def sent(film: Track, kbps: float = 4, size: float = 30) -> tuple[list[float], float]:
    """When updates went out, each of ``size`` bytes for each unit of growth, and bytes of the whole film."""
    rate = FilmRate(film, kbps)  # type: ignore[arg-type]
    moments, held = [], [film.present]
    for number, at in enumerate(film.times):
        film.now = number
        rate.advance(float(at))
        if number == 0:
            rate.begin_at_once()
            rate.sent_key(rate.key_bytes)
            rate.spend(rate.key_bytes)
            continue
        near = min(float(np.sqrt(((film.present - one) ** 2).sum(1).mean())) for one in held[-REFERENCES_MAX:])
        if rate.affords_picture(0.0 if math.isnan(near) else near):
            update = round(size * math.sqrt(min(near, DRIFT_MOST) + DRIFT_LEAST))
            rate.sent_update(update)
            rate.spend(update)
            moments.append(float(at))
            held.append(film.present)
    return moments, rate._spent


def wandering(dice: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Frames at odd times, with a face that wanders, rests, returns and is not always seen."""
    times = np.cumsum(dice.uniform(0.01, 0.08, count))
    times[count // 2 :] += 3.0  # the camera was away
    speed = dice.uniform(0, 4, (count, 1)) * (dice.uniform(size=(count, 1)) < 0.6)
    places = 40 * np.sin(np.cumsum(dice.normal(0.02, 0.05, (count, 1)) * speed, axis=0)) + dice.normal(0, 0.1, (1, 2))
    points = places[:, None] + dice.normal(0, 5, (1, POINTS, 2)) + dice.normal(0, 0.2, (count, POINTS, 2))
    gone = dice.integers(2, count)
    points[gone : gone + 9] = np.nan
    return times, points


def updates_one_by_one(
    times: Array, points: Array, held: Sequence[Array], price: float, root: float, extra: float, cost: float
) -> tuple[float, int]:
    """Bytes and number of the updates that these frames ask for."""
    pictures, total, count = list(held), 0.0, 0
    for number in range(len(times)):
        after = min(number + 1, len(times) - 1)
        step = min(1.0, times[after] - times[after - 1])
        drift = 0.0
        if not np.isnan(points[number]).any():
            drift = min(
                math.inf if np.isnan(one).any() else math.sqrt(((points[number] - one) ** 2).sum(1).mean())
                for one in pictures[-REFERENCES_MAX:]
            )
        cost += min(drift, COST_MOST) * step
        size = root * math.sqrt(min(drift, DRIFT_MOST) + DRIFT_LEAST) + extra
        if drift >= CLOSE and cost >= price * size:
            total, count, cost = total + size, count + 1, 0.0
            pictures.append(points[number])
    return total, count


@pytest.mark.parametrize("seed", range(8))
def test_updates_that_frames_would_ask_for_are_those_found_one_by_one(seed: int) -> None:
    dice = np.random.default_rng(seed)
    times, points = wandering(dice, 250)
    held = [points[0], points[0] + 3.0, np.full((1, 2), np.nan)][: 1 + seed % 3]
    future, counts = _Future(times, points, held), []
    for price in (3e-4, 3e-3, 3e-2):
        for cost in (0.0, 2.5):
            asked = (price, float(dice.uniform(10, 40)), 64.0 * (seed % 2), cost)
            wanted, count = updates_one_by_one(times, points, held, *asked)
            assert future.updates(*asked) == pytest.approx(wanted, rel=1e-9)
            counts.append(count)
    assert max(counts) > 2 * REFERENCES_MAX and len(set(counts)) > 2


def test_a_cost_that_has_grown_before_brings_the_first_update_forward() -> None:
    film = track(moves, 1.0)
    future = _Future(film.times, film.points, [film.present])
    price, root = 0.02, 20.0
    once = root * math.sqrt(9 * 0.1 + DRIFT_LEAST)  # of the second frame
    assert future.updates(price, root, 0.0, 0.0) != pytest.approx(future.updates(price, root, 0.0, price * once))
    short = _Future(film.times[:2], film.points[:2], [film.present])
    assert short.updates(price, root, 0.0, 0.0) == 0
    assert short.updates(price, root, 0.0, price * once) == pytest.approx(once)


@pytest.mark.parametrize("seed", range(3))
def test_a_higher_price_buys_less(seed: int) -> None:
    times, points = wandering(np.random.default_rng(seed), 400)
    future = _Future(times, points, [points[0]])
    bytes_of = [future.updates(price, 25.0, 0.0, 0.0) for price in np.geomspace(*PRICES, 12)]
    assert bytes_of == sorted(bytes_of, reverse=True) and bytes_of[0] > 3 * bytes_of[5] > 0


def test_at_the_price_that_is_found_updates_take_what_is_left() -> None:
    """And at the next lower one they would take more."""
    for seed, kbps in enumerate((2, 4, 8)):
        times, points = wandering(np.random.default_rng(seed), 1500)
        film = Track(times, points)
        rate = begun(film, kbps)
        future = _Future(*film.ahead(HORIZON), rate._held)
        left = rate._left(future, 0.0)
        assert left > 0 and PRICES[0] * STEP < rate._price < PRICES[1] / STEP
        root = UPDATE_SHARE * 900
        assert future.updates(rate._price, root, 0.0, 0.0) <= left < future.updates(rate._price / STEP, root, 0.0, 0.0)
        assert future.updates(rate._price, root, 0.0, 0.0) > 0.8 * left


def test_where_nothing_is_left_the_price_is_the_highest_and_it_falls_again() -> None:
    film = track(moves, 100.0)
    rate = begun(film)
    usual = rate._price
    rate.spend(100_000)
    film.now += 1
    rate.advance(film.times[film.now])
    assert rate._price == usual  # not before a second has passed
    film.now = round(10 * (0.1 + AGAIN))
    rate.advance(film.times[film.now])
    assert rate._price == pytest.approx(PRICES[1]) and not rate.affords_picture(5.0)
    rate._spent = 900
    film.now += round(10 * AGAIN)
    rate.advance(film.times[film.now])
    assert rate._price < 2 * usual


def test_a_head_that_rests_gets_a_finer_key_than_one_that_moves_and_so_does_more_rate_and_time() -> None:
    def key(place: Place, kbps: float = 4, seconds: float = 30) -> int:
        rate = rate_of(track(place, seconds), kbps)
        rate.begin_at_once()
        return rate.key_bytes

    def rests_then_moves(at: float) -> float:
        return moves(max(0.0, at - 10))

    usual = key(moves)
    assert 300 < usual < key(rests_then_moves) < key(rests)
    assert usual < key(moves, kbps=8) < key(moves, kbps=16)
    assert key(moves, seconds=3) < usual < key(moves, seconds=90)


def test_a_finer_key_is_wanted_only_with_evidence_and_only_where_it_is_much_finer() -> None:
    rate = rate_of(track(moves, 60.0))
    rate.begin_at_once()
    best = rate.key_bytes

    def wanted(present: float, checks: int) -> bool:
        rate.key_bytes = round(present)
        rate.sent_key(rate.key_bytes)
        for _ in range(checks):
            rate.note_error(100.0, 100.0)
        return rate.wants_finer()

    many = math.ceil(2 * EVIDENCE / (1 - 0.65))
    assert not wanted(best / (1.2 * FINER), 2) and rate.key_bytes == round(best / (1.2 * FINER))
    assert not wanted(best / (0.9 * FINER), many) and rate.key_bytes == round(best / (0.9 * FINER))
    assert not rate.wants_finer()
    assert wanted(best / (1.2 * FINER), many) and rate.key_bytes == best
    assert not rate.wants_finer()  # once


def test_no_coarser_key_is_wanted() -> None:
    film = track(moves, 60.0)
    wanted = []
    for rate in (RateControl(4), rate_of(film)):
        rate.advance(0.0)
        rate.sent_key(rate.key_bytes)
        rate.affords_picture(1000.0)
        rate._root_bytes = 900.0
        for _ in range(20):
            rate.note_error(0.0, 100.0)
        rate.advance(10.0)
        before = rate.key_bytes
        wanted.append((rate.wants_coarser(), rate.key_bytes < before))
    assert wanted == [(True, True), (False, False)]


def test_no_moment_is_held_to_the_rate() -> None:
    """What goes out at once makes neither pictures wait nor motion coarser."""
    film = track(moves, 60.0)
    rates = {True: rate_of(film), False: RateControl(4)}
    free = {}
    for held, rate in ((False, rates[True]), (True, rates[False])):
        rate.advance(0.0)
        rate.sent_key(900)
        usual = rate.quality
        rate.spend(1_000)
        rate.spend(20_000)
        film.now = 20
        rate.advance(2.0 - 1e-3)
        free[held] = (rate.room, rate.purse, rate.quality == usual)
    assert free[False] == (math.inf, math.inf, True)
    assert free[True][0] < 0 and free[True][1] < 0 and not free[True][2]


def test_a_head_that_has_hardly_moved_gets_no_update_however_cheap() -> None:
    rate = begun(track(lambda at: 100 + 0.5 * CLOSE * math.sin(at), 60.0), 64)
    assert rate._price < 2 * PRICES[0]
    for number in range(2, 40):
        rate.advance(number / 10)
        assert not rate.affords_picture(0.9 * CLOSE)
    assert rate.affords_picture(CLOSE)


def moves_later(at: float) -> float:
    return moves(max(0.0, at - 20))


@pytest.mark.parametrize("duration", [40.0, 0.0, 15.0, 400.0])
def test_rest_leaves_its_bytes_to_movement_and_the_whole_is_on_target(duration: float) -> None:
    """Whatever length the film announces."""
    moments, total = sent(track(moves_later, 40.0, 5, duration), 2, size=60)
    assert moments and min(moments) > 20
    assert total == pytest.approx(AIM * 2 * 125 * 40, rel=0.1)


def test_seconds_count_and_not_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many frames of the same film ask for updates at the same moments."""
    monkeypatch.setattr(FilmRate, "_found", lambda *_: 0.03)

    def place(at: float) -> float:
        return 30 * math.sin(1.1 * at) + 20 * math.sin(0.37 * at + 1)

    slow, fast = (sent(track(place, 12.0, fps))[0] for fps in (25, 50))
    assert len(slow) == len(fast) > 3 and np.allclose(slow, fast, atol=2.01 / 25)


def test_a_face_that_is_gone_asks_for_nothing() -> None:
    film = track(lambda at: math.nan if 5 <= at < 15 else moves(at), 20.0)
    moments, _ = sent(film)
    assert moments and not any(5 <= at < 15 for at in moments)
    assert min(at for at in moments if at >= 15) < 16


def test_a_picture_without_a_face_is_near_to_none() -> None:
    """As where the face is gone again when the first picture is sent, which is of one of the frames before."""
    keys = []
    for gone in (0.0, 0.5):
        film = track(lambda at, gone=gone: math.nan if at < gone else moves(at), 60.0)  # type: ignore[misc]
        rate = rate_of(film)
        rate.begin_at_once()
        keys.append(rate.key_bytes)
        rate.sent_key(rate.key_bytes)
        rate.spend(rate.key_bytes)
        film.now = 5
        rate.advance(0.5)
        assert PRICES[0] * 10 < rate._price < PRICES[1] / 10
    assert keys[1] == pytest.approx(keys[0], rel=0.2)


@pytest.mark.parametrize("count", [1, 2])
def test_a_film_may_be_a_frame_long(count: int) -> None:
    film = track(rests, count / 10)
    rate = rate_of(film)
    rate.begin_at_once()
    assert 300 <= rate.key_bytes < 1000
    rate.sent_key(rate.key_bytes)
    film.now = count - 1
    rate.advance(10.0)
    assert film.ended and not rate.affords_picture(0.0)


def shares(frames: Sequence[Array], film: nc.Film | None) -> tuple[float, float, Iterator[Packet]]:
    """Of the second half in all bytes; kbit/s; and the packets."""
    encoder = nc.Encoder(
        10, device="cpu", threads=1, repeat_header=False, frames_per_packet=8, lookahead=12, preset=13, film=film
    )
    halves, made = [0, 0], []
    for pts, image in enumerate([*frames, None]):
        packets = encoder.flush() if image is None else encoder.encode(image, pts)
        halves[2 * pts >= len(frames)] += sum(len(bytes(packet)) + 2 for packet in packets)
        made += packets
    return halves[1] / sum(halves), sum(halves) * 8 / 1000 / (len(frames) / 25), iter(made)


def test_the_encoder_leaves_more_of_a_film_to_the_half_that_moves(portrait_clip: list[Array]) -> None:
    count = 75
    frames = [*portrait_clip[:1] * count, *((portrait_clip + portrait_clip[-2:0:-1]) * 2)[:count]]
    share, kbps, packets = shares(frames, nc.Film(enumerate(frames), len(frames) / 25))
    assert share > shares(frames, None)[0] + 0.02
    assert kbps == pytest.approx(10, rel=0.12)
    decoder = nc.Decoder(device="cpu", threads=1)
    shown = [frame.pts for packet in packets for frame in decoder.decode(bytes(packet), wanted=lambda _: False)]
    assert shown == list(range(len(frames)))


@pytest.mark.parametrize("faces", [1, 2, 20])
def test_films_of_a_few_frames_are_whole(portrait_clip: list[Array], faces: int) -> None:
    """Those shorter than the lookahead, and those whose face is gone again before it is over."""
    frames = [*portrait_clip[:faces], *[np.full_like(portrait_clip[0], 90)] * (2 if faces == 20 else 0)]
    _, _, packets = shares(frames, nc.Film(enumerate(frames)))
    decoder = nc.Decoder(device="cpu", threads=1)
    shown = [frame.pts for packet in packets for frame in decoder.decode(bytes(packet), wanted=lambda _: False)]
    assert shown == list(range(len(frames)))


def test_another_film_than_the_encoders_is_refused(portrait_clip: list[Array]) -> None:
    encoder = nc.Encoder(4, device="cpu", threads=1, film=nc.Film(enumerate(portrait_clip[:2])))
    packets = [packet for pts in range(2) for packet in encoder.encode(portrait_clip[pts], pts)]
    assert packets and not any(isinstance(packet, Update) for packet in packets)
    with pytest.raises(ValueError, match="pts is 50, where the film has its end"):
        encoder.encode(portrait_clip[2], 50)  # so late that a price is found again


def test_an_avatar_and_pictures_without_updates_have_no_film(portrait_clip: list[Array]) -> None:
    wrong: list[dict[str, Any]] = [{"avatar": Avatar(portrait_clip[0], "she said yes")}, {"updates": False}]
    for options in wrong:
        with pytest.raises(ValueError, match="film goes without an avatar, whose picture does not age, and with upd"):
            nc.Encoder(4, device="cpu", film=nc.Film(enumerate(portrait_clip)), **options)

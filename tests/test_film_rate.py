"""How the rate of a film is spread over it. Films are tracks of what frames look like, but for the last tests."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from conftest import there_and_back

import neuralcodec as nc
from neuralcodec.avatar import Avatar
from neuralcodec.film import FADED, Look
from neuralcodec.film_rate import (
    AGAIN,
    AIM,
    CHANGE_LEAST,
    CHANGE_MOST,
    ELSEWHERE,
    FRAMES_MOST,
    HORIZON,
    PRICES,
    SAME,
    STEP_MOST,
    TRIES,
    UNDRAWN,
    UPDATE_SHARE,
    FilmRate,
    _Future,
)
from neuralcodec.motion import Array
from neuralcodec.packet import REFERENCES_MAX, Packet, Update
from neuralcodec.rate import EVIDENCE, FINER, QUALITIES, RateControl

STEP = (PRICES[1] / PRICES[0]) ** (1 / 2**TRIES)  # between prices that are told apart
Place = Callable[[float], float]  # grey level of frames at a time; NaN: 0, and no face is seen


def look(place: float, face: bool = True, shot: int = 0, contrast: float = 200.0) -> Look:
    """Rounded, so that sums are exact."""
    mean = 0.0 if math.isnan(place) else round(64 * place) / 64
    return Look(mean + contrast * np.array([1.0, -1.0, 1.0, -1.0]), face and not math.isnan(place), shot)


def change(one: Look, other: Look) -> float:
    drawn = one.shot == other.shot and (other.face or not one.face)
    return float(np.sqrt(np.mean((one.grey - other.grey) ** 2))) if drawn else math.inf


def seen_wrong(one: Look, other: Look) -> float:
    contrasts = max(1.0, one.contrast), max(1.0, other.contrast)
    drawn = one.face and max(contrasts) < FADED * min(contrasts)
    return (1.0 if drawn else UNDRAWN) * min(change(one, other), CHANGE_MOST)


class Track:
    """A film that is known. now: index of the present frame."""

    def __init__(self, times: Array, looks: Sequence[Look], duration: float | None = None) -> None:
        self.times, self.looks, self.now = times, list(looks), 0
        self.duration = float(times[-1]) if duration is None else duration
        self.ended, self.last = False, float(times[-1])

    @property
    def present(self) -> Look:
        return self.looks[self.now]

    def ahead(self, seconds: float) -> tuple[list[float], list[Look]]:
        end = int(np.searchsorted(self.times, self.times[self.now] + seconds))
        self.ended |= end == len(self.times)
        return self.times[self.now : end].tolist(), self.looks[self.now : end]

    def typical_after(self, _: Look) -> Any:
        return self.typical

    typical: Any = None


def track(place: Place, seconds: float, fps: float = 10, duration: float | None = None) -> Track:
    times = np.arange(round(seconds * fps)) / fps
    return Track(times, [look(place(at)) for at in times], duration)


def rests(_: float) -> float:
    return 100.0


def moves(at: float) -> float:
    """Never twice at the same place."""
    return 9 * at


def sways(at: float) -> float:
    return 30 * math.sin(1.1 * at) + 20 * math.sin(0.37 * at + 1)


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


def sent(film: Track, kbps: float = 4, size: float = 10) -> tuple[list[float], float]:
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
        near = min(change(film.present, one) for one in held[-REFERENCES_MAX:])
        if rate.affords_picture(near):
            update = round(size * (min(near, CHANGE_MOST) + CHANGE_LEAST))
            rate.sent_update(update)
            rate.spend(update)
            moments.append(float(at))
            held.append(film.present)
    return moments, rate._spent


def wandering(dice: np.random.Generator, count: int, cut: int | None = None) -> tuple[Array, list[Look]]:
    """Frames at odd times, with a head that wanders, rests, returns and is not always seen. cut: the first frame of
    another shot."""
    times = np.cumsum(dice.uniform(0.01, 0.08, count))
    times[count // 2 :] += 3.0  # the camera was away
    speed = dice.uniform(0, 4, count) * (dice.uniform(size=count) < 0.6)
    places = 40 * np.sin(np.cumsum(dice.normal(0.02, 0.05, count) * speed)) + dice.normal(0, 0.2, count)
    gone = dice.integers(2, count)
    faces = [not gone <= n < gone + 9 for n in range(count)]
    flat = np.where(dice.uniform(size=count) < 0.2, 5.0, 8.0)  # what little is to be seen in
    return times, [look(places[n], faces[n], int(cut is not None and n >= cut), flat[n]) for n in range(count)]


def value(
    chosen: Sequence[int], times: Array, looks: Sequence[Look], held: Sequence[Look],
    price: float, root: float, extra: float, key: float, waits: int, until: float,
) -> tuple[float, float]:  # fmt: skip
    """What is seen wrong with pictures of these frames, their bytes times the price added; and their bytes."""
    steps = np.minimum(np.diff(times, append=2 * times[-1] - times[-2]), STEP_MOST)

    def there(number: int, others: list[int]) -> list[Look]:
        first = not any(one < number for one in chosen)
        return [*(held if first or times[number] <= until else []), *(looks[one] for one in others)]

    def near(number: int, others: list[int]) -> float:
        return min(change(looks[number], other) for other in there(number, others))

    wrong = total = 0.0
    for number, one in enumerate(looks):
        after = [other for other in chosen if number < other <= number + waits][:1]
        around = [*[other for other in chosen if other < number][-1:], *after]
        if number in chosen:
            continue
        seen = min((seen_wrong(one, other) for other in there(number, around)), default=math.inf)
        elsewhere = all(other.shot != one.shot for other in there(number, around))
        wrong += (ELSEWHERE if elsewhere else seen) * steps[number]
    for index, number in enumerate(chosen):
        before = list(chosen[:index][-1:])
        if near(number, before) < SAME:
            return math.inf, math.inf
        update = root * (min(near(number, before), CHANGE_MOST, looks[number].contrast) + CHANGE_LEAST)
        begins = all(other.shot != looks[number].shot for other in there(number, before))
        total += (key if begins else update) + extra
    return wrong + price * total, total


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_the_best_of_all(seed: int) -> None:
    dice = np.random.default_rng(seed)
    count, present, waits = 9, seed % 3, seed % 4
    times, looks = wandering(dice, count, cut=4 + seed % 3 if seed >= 4 else None)
    held = [looks[0], look(30.0), look(math.nan)][: 1 + seed % 3]
    until = math.inf if seed % 2 else float(times[5])
    future, lengths = _Future(times, looks, held, present=present, waits=waits, until=until), []
    for price in (1e-4, 1e-3, 1e-1):
        asked = price, float(dice.uniform(5, 20)), 64.0 * (seed % 2), float(dice.uniform(200, 1000))
        every = [some for n in range(count + 1) for some in combinations(range(present, count), n)]
        best = min(value(some, times, looks, held, *asked, waits, until) for some in every)
        moments, total = future.plan(*asked)
        chosen = [int(np.searchsorted(times, at)) for at in moments]
        assert value(chosen, times, looks, held, *asked, waits, until) == pytest.approx(best)
        assert total == pytest.approx(best[1])
        lengths.append(len(moments))
    assert lengths[0] > lengths[-1]


@pytest.mark.parametrize("seed", range(3))
def test_a_higher_price_buys_less(seed: int) -> None:
    times, looks = wandering(np.random.default_rng(seed), 400)
    future = _Future(times, looks, looks[:1])
    bytes_of = [future.plan(price, 9.0, 0.0)[1] for price in np.geomspace(*PRICES, 12)]
    assert bytes_of == sorted(bytes_of, reverse=True) and bytes_of[0] > 3 * bytes_of[5] > 0


def test_at_the_price_that_is_found_updates_take_what_is_left() -> None:
    """And at the next lower one they would take more."""
    for seed, kbps in enumerate((1, 2, 4)):
        film = Track(*wandering(np.random.default_rng(seed), 700))
        rate = begun(film, kbps)
        rate._plan.clear()  # as it was when the price was found
        future = rate._future(rate._held)
        left = rate._left(future, 0.0)
        assert left > 0 and PRICES[0] * STEP < rate._price < PRICES[1] / STEP
        root = UPDATE_SHARE * 900
        assert future.plan(rate._price, root, 0.0)[1] <= left < future.plan(rate._price / STEP, root, 0.0)[1]
        assert future.plan(rate._price, root, 0.0)[1] > 0.8 * left


def test_films_of_many_frames_a_second_are_planned_less_far() -> None:
    rate = begun(track(moves, 40.0, 60), 4)
    future = rate._future(rate._held)
    assert future.seconds == pytest.approx(FRAMES_MOST / 60) and future.seconds < HORIZON


def test_where_nothing_is_left_the_price_is_the_highest_and_it_falls_again() -> None:
    film = track(moves, 100.0)
    rate = begun(film)
    usual, plan = rate._price, len(rate._plan)
    rate.spend(100_000)
    film.now += 1
    rate.advance(film.times[film.now])
    assert rate._price == usual and len(rate._plan) == plan > 0  # not before a second has passed
    film.now = round(10 * (0.1 + AGAIN))
    rate.advance(film.times[film.now])
    assert rate._price == pytest.approx(PRICES[1]) and not rate._plan and not rate.affords_picture(5.0)
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
    assert key(moves, seconds=3) < usual and key(sways, seconds=3) < key(sways) < key(sways, seconds=90)


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


def test_motion_saves_what_has_been_spent_too_much() -> None:
    rate = begun(track(moves, 20.0))
    usual = rate.quality
    allowed = rate._motion_allowed
    rate.spend(3_000)  # six seconds of the target
    assert rate._motion_allowed == pytest.approx(allowed - 3_000 / 20, rel=0.02)
    rate._finest_motion = rate._surge = 700.0
    assert QUALITIES.index(rate.quality) > QUALITIES.index(usual)
    rate._film.now = len(rate._film.times) - 1  # type: ignore[attr-defined]
    for second in range(1, 20):
        rate.advance(0.1 + second)
    assert rate._motion_allowed > allowed  # nothing was sent in between


def test_of_a_key_in_other_light_than_what_follows_nothing_is_learned() -> None:
    film = track(moves, 20.0)
    rate = rate_of(film)
    rate.sent_key(120, of=0.0)
    assert rate._root_bytes == pytest.approx(UPDATE_SHARE * 120)
    film.typical = np.zeros((8, 8, 3), np.uint8), None
    rate.sent_key(120, of=0.0)
    assert rate._root_bytes == pytest.approx(UPDATE_SHARE * rate.key_bytes) and rate.key_bytes > 300


def test_an_update_of_next_to_nothing_is_expected_to_take_next_to_nothing() -> None:
    film = track(moves, 20.0)
    film.looks[5] = look(120.0, contrast=0.5)
    rate = begun(film)
    expected = rate._root_bytes
    film.now = 5
    rate.advance(float(film.times[5]))
    assert expected is not None
    rate.sent_update(round(expected * (0.5 + CHANGE_LEAST)))
    assert rate._root_bytes == pytest.approx(expected, rel=0.05)


def test_what_updates_take_is_learned_by_how_much_frames_had_changed() -> None:
    film = track(moves, 20.0)
    rate = begun(film)
    expected = []
    for size in (9.0, 9.0, 20.0):
        film.now += 5
        rate.advance(float(film.times[film.now]))
        change = min(abs(film.present.grey[0] - one.grey[0]) for one in rate._held)
        rate.sent_update(round(size * (change + CHANGE_LEAST)))
        expected.append(rate._root_bytes)
    assert abs(expected[0] - 9) > abs(expected[1] - 9) and expected[1] < expected[2] < 20  # type: ignore[operator]


def test_the_first_picture_is_of_a_frame_that_has_waited() -> None:
    """And where the head is by then elsewhere an update follows."""
    film = track(lambda at: 0.0 if at < 0.3 else 12.0, 12.0, 25)
    rate = FilmRate(film, 2, waits=12)  # type: ignore[arg-type]
    moments, keys = [], {}
    for number, at in enumerate(film.times):
        film.now = number
        rate.advance(float(at))
        if number == 12:
            for of in (at, film.times[5]):
                rate.begin_at_once(float(of))
                keys[of] = rate.key_bytes
            rate.sent_key(rate.key_bytes, of=float(film.times[5]))
            rate.spend(rate.key_bytes)
        elif number > 12 and rate.affords_picture(0.0):
            rate.sent_update(200)
            rate.spend(200)
            moments.append(number)
    assert keys[film.times[5]] < keys[film.times[12]]
    assert moments == [13]


@pytest.mark.parametrize("start, faceless", [(0.0, 0.0), (1000.0, 0.0), (0.0, 5.0)])
def test_what_motion_will_take_is_told_by_what_it_took_since_there_is_a_face(start: float, faceless: float) -> None:
    times = start + np.arange(200) / 10
    film = Track(times, [look(moves(at), at >= start + faceless) for at in times])
    rate = FilmRate(film, 4)  # type: ignore[arg-type]
    for number in range(100):
        film.now = number
        rate.advance(float(times[number]))
        if number == round(10 * faceless):
            rate.begin_at_once()
            rate.sent_key(900)
        if number >= round(10 * faceless):
            rate.spend_motion(20, 18, rate.quality)
    future = rate._future(rate._held)
    whole = AIM * 500 * 20.0 - rate._spent
    assert (whole - rate._left(future, 0.0)) / future.seconds == pytest.approx(200, rel=0.13)


def test_an_update_that_was_not_planned_is_planned_around() -> None:
    rate = begun(track(moves, 20.0))
    plan = list(rate._plan)
    rate.advance(0.2)
    assert list(rate._plan) == plan  # for a second
    rate.sent_update(100)
    rate.advance(0.3)
    assert list(rate._plan) != plan


def test_pictures_held_now_count_until_updates_have_taken_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, seen = begun(track(moves, 20.0)), []
    monkeypatch.setattr("neuralcodec.film_rate._Future", lambda *_, until, **__: seen.append(until))
    for count in (REFERENCES_MAX - 1, REFERENCES_MAX, 20):
        rate._plan = deque(float(at) for at in range(1, 1 + count))
        rate._future(rate._held)
    assert seen == [math.inf, REFERENCES_MAX, REFERENCES_MAX]


def test_signatures_are_reckoned_with_from_the_first_key_on() -> None:
    film = track(moves, 12.0)
    keys, counts = [], []
    for extra in (0, 64):
        rate = rate_of(film)
        rate.begin_at_once(extra=extra)
        keys.append(rate.key_bytes)
        rate.sent_key(900, extra)
        rate.spend(900)
        rate.advance(0.1)
        counts.append(len(rate._plan))
    assert keys[1] < keys[0] and counts[1] < counts[0]


def test_frames_that_hardly_differ_get_no_update_however_cheap() -> None:
    for factor in (0.45, 0.55):
        rate = begun(track(lambda at, factor=factor: factor * SAME * (-1) ** round(10 * at), 20.0), 64)  # type: ignore[misc]
        assert rate._price < 2 * PRICES[0]
        assert bool(rate._plan) == (factor > 0.5)


def moves_later(at: float) -> float:
    return moves(max(0.0, at - 20))


@pytest.mark.parametrize("duration", [40.0, 0.0, 15.0, 400.0])
def test_rest_leaves_its_bytes_to_movement_and_the_whole_is_on_target(duration: float) -> None:
    """Whatever length the film announces."""
    moments, total = sent(track(moves_later, 40.0, 5, duration), 2, size=20)
    assert moments and min(moments) > 20
    assert total == pytest.approx(AIM * 2 * 125 * 40, rel=0.1)


def test_seconds_count_and_not_frames() -> None:
    """Of twice as many frames of the same film updates are made at the same moments."""
    films = [track(sways, 12.0, fps) for fps in (25, 50)]
    slow, fast = (_Future(f.times, f.looks, f.looks[:1]).plan(0.03, 9.0, 0.0)[0] for f in films)
    assert len(slow) == len(fast) > 3 and np.allclose(slow, fast, atol=2.01 / 25)


def test_a_face_that_is_gone_asks_for_updates_only_where_something_changes() -> None:
    def place(at: float) -> float:
        return math.nan if 5 <= at < 15 else moves(at)

    film = track(place, 20.0)
    moments, _ = sent(film)
    assert len([at for at in moments if 5 <= at < 15]) <= 1  # of the empty room
    assert min(at for at in moments if at >= 15) < 16
    film.looks = [look(moves(at), one.face) for at, one in zip(film.times, film.looks, strict=True)]
    film.now = 0
    moments, _ = sent(film)
    assert len([at for at in moments if 5 <= at < 15]) > 3


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


def test_a_cut_that_is_ahead_has_its_bytes_kept() -> None:
    """A key's for the first picture of each shot, so that the first shot's is smaller than it would be alone."""
    keys, film = [], track(sways, 24.0)
    shots = [replace(one, shot=int(at // 3)) for at, one in zip(film.times, film.looks, strict=True)]
    for looks in (film.looks, shots):
        film.looks, film.now = looks, 0
        rate = rate_of(film)
        rate.begin_at_once()
        keys.append(rate.key_bytes)
        moments, total = _Future(film.times, looks, looks[:1]).plan(0.05, 9.0, 0.0, 700.0)
        assert set(np.arange(3, 24, 3.0)) <= set(moments) or looks is not shots
        assert (total >= 7 * 700) == (looks is shots)
    assert keys[1] < 0.9 * keys[0]


def test_a_face_is_not_drawn_from_a_picture_without_one() -> None:
    looks = [look(math.nan), *(look(1.0),) * 50]
    times = np.arange(len(looks)) / 10
    moments, total = _Future(times, looks, looks[:1]).plan(0.01, 9.0, 0.0)
    assert moments == [times[1]] and total == 9.0 * (CHANGE_MOST + CHANGE_LEAST)


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
        8, device="cpu", threads=1, repeat_header=False, frames_per_packet=8, lookahead=12, preset=13, film=film
    )
    halves, made = [0, 0], []
    for pts, image in enumerate([*frames, None]):
        packets = encoder.flush() if image is None else encoder.encode(image, pts)
        halves[2 * pts >= len(frames)] += sum(len(bytes(packet)) + 2 for packet in packets)
        made += packets
    return halves[1] / sum(halves), sum(halves) * 8 / 1000 / (len(frames) / 25), iter(made)


def test_the_encoder_leaves_more_of_a_film_to_the_half_that_moves(portrait_clip: list[Array]) -> None:
    count = 75
    frames = [*portrait_clip[:1] * count, *there_and_back(portrait_clip, count)]
    share, kbps, packets = shares(frames, nc.Film(enumerate(frames), len(frames) / 25))
    assert share > shares(frames, None)[0] + 0.02
    assert kbps == pytest.approx(8, rel=0.12)
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
    with pytest.raises(ValueError, match="window goes without a film"):
        nc.Encoder(4, device="cpu", film=nc.Film(enumerate(portrait_clip)), window=6)

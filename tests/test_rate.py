import math

import numpy as np
import pytest

from neuralcodec.rate import (
    CLOSE,
    COARSER_SECONDS,
    CODING_SHARE,
    DRIFT_LEAST,
    DRIFT_MOST,
    EVIDENCE,
    FAR,
    FINER_SECONDS,
    IDLE_SECONDS,
    IDLE_SHARE,
    LEAST_MOTION,
    LOWEST_KBPS,
    MOTION_ERROR,
    MOTION_SHARE,
    PAID,
    PART_BYTES_MIN,
    PART_HEADER,
    PIXEL,
    PLENTY,
    PLENTY_SHARE,
    QUALITIES,
    REFERENCE_BYTES,
    SIZES,
    START_BYTES,
    START_MOTION,
    USUAL,
    WINDOW_SECONDS,
    RateControl,
    distance,
    motion_quality,
)


def motion(rate: RateControl, count: float, headers: int = 0) -> None:
    """A frame that takes so many bytes at the quality that is asked for."""
    rate.spend_motion(int(count) + headers, int(count), rate.quality)


def test_distance_is_in_pixels_of_256() -> None:
    a = np.zeros((30, 3), np.float32)
    b = a + np.array([3 * PIXEL, 4 * PIXEL, 9], np.float32)  # depth does not show
    assert distance(a, b) == pytest.approx(5.0)


def test_finer_motion_at_higher_rates() -> None:
    qualities = [motion_quality(kbps) for kbps in (1, 2, 4, 8, 64)]
    assert [q.level for q in qualities] == sorted((q.level for q in qualities), reverse=True)
    assert [q.components for q in qualities] == sorted(q.components for q in qualities)


def test_motion_that_takes_too_much_is_coded_coarser_and_finer_again_when_it_is_quiet() -> None:
    rate = RateControl(4)
    finest, frame = rate.quality, 0

    def seconds(count: int, share: float) -> None:
        nonlocal frame
        for _ in range(25 * count):
            rate.advance(frame / 25)
            motion(rate, share * rate.bytes_per_second / 25)
            frame += 1

    seconds(5, MOTION_SHARE[0])
    assert rate.quality == finest
    seconds(5, 1.2 * MOTION_SHARE[1])
    coarse = rate.quality
    assert coarse.level > finest.level
    seconds(5, (MOTION_SHARE[0] + MOTION_SHARE[1]) / 2)
    assert rate.quality == coarse
    seconds(12, 0.5 * MOTION_SHARE[0])
    assert rate.quality == finest


@pytest.mark.parametrize("start", [-1000.0, 1e6])
def test_time_may_begin_anywhere(start: float) -> None:
    def qualities(start: float) -> list[int]:
        rate, levels = RateControl(4), []
        for frame in range(150):
            rate.advance(start + frame / 32)
            motion(rate, (1.2 * MOTION_SHARE[1] if frame < 75 else 0.5 * MOTION_SHARE[0]) * rate.bytes_per_second / 32)
            levels.append(rate.quality.level)
        return levels

    assert qualities(start) == qualities(0.0) and len(set(qualities(start))) > 2


def test_a_new_target_forgets_nothing_of_what_was_sent_and_seen() -> None:
    rate = RateControl(8, preset=7)
    for frame in range(51):  # two seconds at the target
        rate.advance(frame / 25)
        rate.spend(40)
    rate.sent_key(900)
    rate.affords_picture(FAR)
    costs, key = rate.picture_bytes, rate.key_bytes
    rate.target_kbps = 4
    assert rate.target_kbps == 4 and rate.bytes_per_second == 500 and rate.preset == 7
    assert rate.room < -900  # of a window of 1,090 bytes, 2,000 are taken
    assert not rate.affords_picture(FAR)
    assert rate.picture_bytes == costs  # of the same chain
    assert rate.key_bytes < key
    rate.target_kbps = 8
    assert abs(rate.key_bytes - key) <= 1
    with pytest.raises(ValueError, match="target_kbps is 0"):
        rate.target_kbps = 0
    assert rate.target_kbps == 8


@pytest.mark.parametrize("kbps", [0, -1, float("nan"), 1e9])
def test_impossible_targets_are_refused(kbps: float) -> None:
    with pytest.raises(ValueError, match="expected 0.5 to 1000"):
        RateControl(kbps)


def paid(rate: RateControl) -> float:
    """Seconds until the next picture can be paid in full."""
    return rate.picture_bytes / rate.bytes_per_second + 1e-6


def test_the_purse_pays_a_picture_when_the_head_is_far_and_waits_when_it_is_near() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    assert not rate.affords_picture(FAR)
    rate.advance(PAID * paid(rate))
    assert rate.affords_picture(FAR) and not rate.affords_picture((CLOSE + FAR) / 2)
    assert not rate.affords_picture(CLOSE - 0.01)
    rate.spend(int(rate.picture_bytes) + 1)
    assert not rate.affords_picture(FAR)


def test_what_an_update_takes_is_foretold_from_how_far_the_head_has_gone() -> None:
    rate, dice = RateControl(4), np.random.default_rng(5)
    rate.advance(0.0)
    rate.sent_key(1000)
    for _ in range(20):
        drift = float(dice.uniform(0.3, 40))
        rate.affords_picture(drift)
        rate.sent_update(round(80 * math.sqrt(drift + DRIFT_LEAST)))
    expected = {}
    for drift in (0.5, 30.0, 2 * DRIFT_MOST, float("inf")):
        rate.affords_picture(drift)
        expected[drift] = rate.picture_bytes
        assert rate.next_bytes == pytest.approx(80 * math.sqrt(min(drift, DRIFT_MOST) + DRIFT_LEAST), rel=0.02)
    rate.ended_chain()  # the next one stands on its own, however far the head has gone
    assert rate.picture_bytes == rate.key_bytes != expected[float("inf")]


def test_a_signature_is_no_part_of_what_grows_with_drift() -> None:
    rates = [RateControl(4), RateControl(4)]
    for rate, extra in zip(rates, (0, 64), strict=True):
        rate.sent_key(1000, extra)
        for drift, update in ((20.0, 300), (2.0, 120)):
            rate.affords_picture(drift)
            rate.sent_update(update + extra)
    assert rates[1].picture_bytes == pytest.approx(rates[0].picture_bytes + 64)


def test_a_head_at_rest_gets_what_would_be_lost() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.advance(1.9 * paid(rate))
    assert not rate.affords_picture(0.0)
    rate.advance(2.1 * paid(rate))
    assert rate.affords_picture(0.0)
    rate.spend(int(rate.picture_bytes))
    assert not rate.affords_picture(0.0)


def test_no_picture_goes_out_that_would_show_nothing_new() -> None:
    """Where the error is coding, rate without use is a reason for a finer chain and not for one more picture of it."""
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.note_error(100.0, 100.0)
    rate.advance(60.0)
    assert not rate.affords_picture(0.0) and rate.affords_picture(FAR) and not rate.wants_finer()
    rate.advance(60.0 + 1.1 * IDLE_SECONDS / (1 - IDLE_SHARE))
    assert not rate.affords_picture(0.0)
    assert rate.wants_finer()


@pytest.mark.parametrize(("unused", "finer"), [(0.5 * IDLE_SHARE, False), (2 * IDLE_SHARE, True)])
def test_rate_that_finds_no_use_is_a_reason_for_a_finer_chain(unused: float, finer: bool) -> None:
    """Pictures come with every frame and leave this share of the rate."""
    rate = RateControl(32)
    rate.advance(0.0)
    rate.sent_key(1000)
    for frame in range(1, 250):  # so long that the smaller share alone comes to more than IDLE_SECONDS
        rate.advance(frame / 25)
        rate.affords_picture(FAR)
        size = round((1 - unused) * rate.bytes_per_second / 25)
        rate.sent_update(size)
        rate.spend(size)
    assert rate.wants_finer() is finer
    assert not rate.wants_finer()  # once


def test_a_long_pause_does_not_pay_for_a_burst() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.advance(3600.0)
    for _ in range(2):
        assert rate.affords_picture(FAR)
        rate.spend(int(rate.picture_bytes))
    assert not rate.affords_picture(FAR)


def checked(rate: RateControl, coding: float, shown: float, checks: int) -> bool:
    """Whether a finer chain is wanted after so many checks that found these errors."""
    for _ in range(checks):
        rate.note_error(coding, shown)
    return rate.wants_finer()


def test_a_finer_chain_begins_where_most_of_the_error_is_coding() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(rate.key_bytes)
    before = rate.key_bytes
    assert not checked(rate, 100.0, 100.0, int(EVIDENCE / (1 - CODING_SHARE)))
    assert checked(rate, 100.0, 100.0, 1) and before < rate.key_bytes <= 2 * before
    rate.sent_key(rate.key_bytes)
    assert not rate.wants_finer()


def test_a_finer_key_that_does_not_go_out_leaves_the_next_as_it_would_have_been() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(700)
    before = rate.key_bytes
    assert checked(rate, 100.0, 100.0, 10)
    rate.keeps_chain()
    assert rate.key_bytes == before
    assert checked(rate, 100.0, 100.0, 10)
    finer = rate.key_bytes
    rate.sent_key(finer)
    rate.target_kbps = 2
    rate.keeps_chain()
    assert RateControl(2).key_bytes < rate.key_bytes < finer


def test_the_first_key_leaves_room_for_the_headers_of_many_frames_a_second() -> None:
    sizes = [RateControl(4, motion_every=1 / fps).first_bytes for fps in (5, 25, 30, 60)]
    assert sizes[0] == sizes[1] and [sizes[1] - size for size in sizes[2:]] == [20, 140]  # two seconds of two bytes


def test_a_head_that_moves_wants_no_finer_chain() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(rate.key_bytes)
    assert not checked(rate, 0.9 * CODING_SHARE, 1.0, 200)


def test_the_finest_chain_is_the_last() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    finer = [rate.key_bytes for _ in range(20) if checked(rate, 1.0, 1.0, 10)]
    assert finer == sorted(finer) and finer[-1] == REFERENCE_BYTES[1] and len(finer) < 20


def test_motion_that_is_fine_enough_makes_room_for_pictures() -> None:
    """Between the bounds of its share, motion gets coarser while its error is small, and only then."""
    between = (MOTION_SHARE[0] + MOTION_SHARE[1]) / 2
    for error, coarser in ((0.5 * MOTION_ERROR, True), (2 * MOTION_ERROR, False)):
        rate = RateControl(4)
        finest = rate.quality
        for frame in range(250):
            rate.advance(frame / 25)
            motion(rate, between * rate.bytes_per_second / 25)
            rate.note_motion(error)
        assert (rate.quality.level > finest.level) is coarser


def test_where_pictures_do_not_age_motion_stays_at_its_finest_and_leaves_them_the_rest() -> None:
    rates = {ageless: RateControl(4, ageless=ageless) for ageless in (False, True)}
    for frame in range(250):
        for rate in rates.values():
            rate.advance(frame / 25)
            motion(rate, 0.7 * rate.bytes_per_second / 25)
            rate.note_motion(0.5 * MOTION_ERROR)
    assert rates[True].quality.level == 0 < rates[False].quality.level
    keys = [rates[True].key_bytes]
    while rates[True].wants_finest():
        keys.append(rates[True].key_bytes)
    assert keys == sorted(set(keys)) and keys[1] > 2 * keys[0] and keys[-1] == REFERENCE_BYTES[1]


def test_while_a_finer_key_is_on_its_way_only_a_far_head_gets_a_picture() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.advance(10.0)
    assert rate.affords_picture(0.9 * FAR) and not rate.affords_picture(0.9 * FAR, waiting=True)
    assert rate.affords_picture(FAR, waiting=True)


@pytest.mark.parametrize("kbps", [2, 4, 8, 16, 32])
def test_long_run_rate_is_the_target(kbps: float) -> None:
    """A head that never rests: pictures of changing size and motion together come to the target over a minute."""
    rate, sent = RateControl(kbps), 0
    rate.sent_key(rate.first_bytes)
    for frame in range(1500):
        rate.advance(frame / 25)
        cost = 6
        if rate.affords_picture(FAR):
            update = int(rate.bytes_per_second * (0.04 + 0.03 * (frame % 5)))
            rate.sent_update(update)
            cost += update
        rate.spend(cost)
        motion(rate, 6)
        sent += cost
    assert sent * 8 / 60_000 == pytest.approx(kbps, rel=0.05)


def test_picture_sizes_stay_in_bounds_and_rise_with_the_rate() -> None:
    rates = [RateControl(kbps) for kbps in (0.5, 4, 1000)]
    for sizes in ([r.first_bytes for r in rates], [r.still_bytes for r in rates]):
        assert sizes == sorted(sizes) and REFERENCE_BYTES[0] <= sizes[0] and sizes[-1] <= REFERENCE_BYTES[1]
    live, ahead = ([RateControl(kbps, ahead=a).preset for kbps in (0.5, 8, 1000)] for a in (False, True))
    assert live == sorted(live) and ahead == sorted(ahead) and all(a < b for a, b in zip(ahead, live, strict=True))
    few, usual, with_every_frame = (r.updates_coarser for r in rates)
    assert few < with_every_frame < usual


def test_headers_take_of_the_rate_what_they_really_take() -> None:
    for datagrams in (25, 10):  # a second, of the 25 that were expected
        rate = RateControl(8, 28 * 25 / 125)
        assert rate.bytes_per_second == pytest.approx(300)
        for frame in range(250):
            rate.advance(frame / 25)
            if frame * datagrams // 25 != (frame - 1) * datagrams // 25:
                rate.spend_headers(28)
        assert rate.bytes_per_second == pytest.approx(1000 - 28 * datagrams, rel=0.05)
        assert rate.headers_kbps == pytest.approx(28 * datagrams / 125, rel=0.1)
    rate = RateControl(1, 5)  # the least there is
    assert rate.bytes_per_second == LOWEST_KBPS * 125


@pytest.mark.parametrize("seconds", [WINDOW_SECONDS, 6.0])
@pytest.mark.parametrize("kbps", [2, 4, 8, 16, 32])
def test_no_window_takes_more_than_the_target_allows(kbps: float, seconds: float) -> None:
    """A key, motion, and pictures of any size as soon as there is room for them."""
    rate, dice, sent = RateControl(kbps, window=seconds), np.random.default_rng(3), []
    finest = 0.3 * rate.bytes_per_second / 25 / SIZES[QUALITIES.index(rate.quality)]
    for frame in range(500):
        rate.advance(frame / 25)
        picture = int(dice.integers(1, rate.bytes_per_second))
        size = rate.first_bytes + START_BYTES if frame == 0 else picture if picture <= rate.room else 0
        rate.spend(size)
        count = int(finest * (1.0 if frame % 100 < 50 else 1.5) * SIZES[QUALITIES.index(rate.quality)])
        motion(rate, count)
        rate.spend(count)
        sent.append(size + count)
    until = np.cumsum([0, *sent])

    def fullest(seconds: float) -> float:
        frames = round(25 * seconds)
        return float((until[frames:] - until[:-frames]).max() / (seconds * rate.bytes_per_second))

    assert 1.0 < fullest(seconds) <= 1 + rate.excess + 0.01  # motion came a little late to be reckoned with
    assert seconds == WINDOW_SECONDS or fullest(WINDOW_SECONDS) > 1.3, "a longer window lets parts of it be fuller"


def test_a_full_window_makes_motion_coarser_for_as_long_as_it_is_full() -> None:
    rate, levels = RateControl(4), []
    for frame in range(150):
        rate.advance(frame / 25)
        levels.append(rate.quality.level)
        motion(rate, 4)
        rate.spend(4)
        if frame == 25:
            rate.spend(int(WINDOW_SECONDS * rate.bytes_per_second) - 26 * 4)
    assert min(levels[:26]) == max(levels[:26]) < min(levels[27:74]) and levels[-1] == levels[0]


def test_headers_of_motion_are_not_taken_for_what_coarser_motion_would_save() -> None:
    """Of two calls that take the same, that whose headers take more of it has less to gain from coarser motion."""
    levels = []
    for headers in (0, 6):
        rate, seen = RateControl(4), []
        for frame in range(40):
            rate.advance(frame / 25)
            if frame == 5:
                rate.spend(int(0.62 * WINDOW_SECONDS * rate.bytes_per_second))
            motion(rate, (13 - headers) * SIZES[QUALITIES.index(rate.quality)], headers)
            rate.spend(9)
            seen.append(rate.quality.level)
        levels.append(float(np.mean(seen[10:])))
    assert RateControl(4).quality.level < levels[0] < levels[1] - 0.5


def test_a_key_leaves_room_for_the_motion_that_is_expected() -> None:
    """A head that hardly moves leaves more of the first two seconds to its key than a lively one."""
    sizes = []
    for finest in (0.0, 150.0, 400.0):
        rate = RateControl(2)
        rate.begin_with_motion(finest)
        sizes.append(rate.key_bytes)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2] >= REFERENCE_BYTES[0]
    assert sizes[0] > RateControl(2).key_bytes  # where nothing is known
    rate.target_kbps = 16
    fresh = RateControl(16)
    fresh.begin_with_motion(400.0)
    assert rate.key_bytes == pytest.approx(fresh.key_bytes, rel=0.3)


def test_motion_that_is_seen_coming_counts_before_it_comes() -> None:
    """It is coded more coarsely, and leaves pictures less room, as soon as frames wait that will take more."""
    levels, rooms = [], []
    for coming in (0.0, 600.0):
        rate = RateControl(4)
        for frame in range(20):
            rate.advance(frame / 25)
            motion(rate, 3)
            rate.spend(3)
        rate.spend(int(0.6 * WINDOW_SECONDS * rate.bytes_per_second))
        rate.expect_motion(coming)
        levels.append(rate.quality.level)
        rooms.append(rate.room)
    assert levels[0] < levels[1] and rooms[0] > rooms[1]


def test_motion_that_waits_and_takes_more_than_was_expected_leaves_pictures_less_room() -> None:
    rate = RateControl(4, motion_every=0.32)
    for frame in range(40):
        rate.advance(frame / 25)
        if frame % 8 == 0:
            motion(rate, 24)
            rate.spend(24)
    expected, room = 7, rate.room
    rate.expect_waiting(expected)
    assert rate.room == room
    rate.expect_waiting(150)
    assert room - 150 < rate.room < room - 100


def test_a_gap_is_no_time_in_which_motion_is_yet_to_come() -> None:
    """After it there is room for a picture at once, and motion is expected to go on as before."""
    rate = RateControl(8)
    for frame in range(50):
        rate.advance(frame / 25)
        motion(rate, 8)
        rate.spend(8)
    rates = rate._finest_motion
    for now in (12.0, 12.04):
        rate.advance(now)
        rate.spend(30)
        assert rate.room > 0.6 * WINDOW_SECONDS * rate.bytes_per_second and rate.quality.level < 3
        motion(rate, 8)
    rate.advance(12.08)
    assert rate._finest_motion > 0.3 * rates


def test_no_picture_is_begun_that_its_window_has_no_room_for() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.affords_picture(FAR)  # so far it is
    rate.spend(int((1 + rate.excess) * WINDOW_SECONDS * rate.bytes_per_second - 0.5 * rate.next_bytes))
    rate._purse = 1000.0
    assert not rate.affords_picture(FAR)
    rate.advance(WINDOW_SECONDS)
    assert rate.affords_picture(FAR)


def test_the_key_of_a_coarser_chain_takes_the_place_of_a_dear_update() -> None:
    """Where hardly anything of the error is coding, and not before; and only an update that costs as much."""
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(rate.key_bytes)
    before, near, far = rate.key_bytes, 4.0, 36.0

    def update(drift: float) -> None:
        """One that takes half a key at 16 pixels."""
        rate.affords_picture(drift)
        assert not rate.wants_coarser()
        rate.sent_update(int(0.5 * before * math.sqrt((drift + DRIFT_LEAST) / (16 + DRIFT_LEAST))))

    for _ in range(10):
        update(far)
    for _ in range(int(PLENTY / PLENTY_SHARE) + 1):
        rate.note_error(0.0, 100.0)
    update(near)
    rate.affords_picture(far)
    rate.spend(int(rate.room) - before // 2)
    assert not rate.wants_coarser(), "its window has no room for a key in one go"
    rate.advance(WINDOW_SECONDS)
    rate.affords_picture(far)
    assert rate.wants_coarser() and 0.5 * before < rate.key_bytes < before
    rate.sent_key(rate.key_bytes)
    assert not rate.wants_coarser()


def test_the_quality_of_motion_changes_step_by_step() -> None:
    rate, changes, before = RateControl(4), [0.0], None
    for frame in range(25 * 12):
        rate.advance(frame / 25)
        motion(rate, (1.5 * MOTION_SHARE[1] if frame < 50 else 0.5 * MOTION_SHARE[0]) * rate.bytes_per_second / 25)
        if rate.quality != before:
            before, changes = rate.quality, [*changes, frame / 25]
    steps = np.diff(changes[1:])
    coarser, finer = steps[np.array(changes[2:]) <= 2], steps[np.array(changes[2:]) > 2][1:]
    assert len(coarser) >= 2 and coarser.min() >= COARSER_SECONDS - 1e-6
    assert len(finer) >= 2 and finer.min() >= FINER_SECONDS - 1e-6


def test_only_what_headers_leave_is_there_to_spend() -> None:
    rate = RateControl(4, headers_kbps=2)
    rate.advance(0.0)
    rate.advance(0.04)
    assert rate.purse == pytest.approx(0.04 * 250, rel=0.05)


def test_what_waits_for_its_frames_is_kept_beside_what_can_be_saved() -> None:
    at_once, later = RateControl(4), RateControl(4, lag=0.5)
    for seconds in (0.0, 100.0):
        for rate in (at_once, later):
            rate.advance(seconds)
        owed = 0.5 * START_MOTION * 500 if seconds == 0 else 0
        assert at_once.purse - later.purse == pytest.approx(owed)


def test_no_check_counts_for_more_than_all_and_none_is_owed() -> None:
    enough = int(EVIDENCE / (1 - CODING_SHARE))
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(rate.key_bytes)
    assert not checked(rate, 1000.0, 1.0, enough)  # an error smaller than that of coding alone
    rate.sent_key(rate.key_bytes)  # another chain
    assert not checked(rate, 1.0, 1.0, enough) and not checked(rate, 0.0, 1.0, 200)
    assert checked(rate, 1.0, 1.0, enough + 1)  # however long it had moved
    for _ in range(200):
        rate.note_error(1.0, 1.0)
    for _ in range(int(PLENTY / PLENTY_SHARE) + 1):
        rate.note_error(0.0, 1.0)
    rate.affords_picture(FAR)
    rate.sent_update(50 * rate.key_bytes)
    assert rate.picture_bytes > rate.key_bytes > rate.next_bytes  # a coarser key takes the place of such an update


def test_only_where_pictures_do_not_age_a_key_that_goes_out_at_once_is_a_coarse_one_again() -> None:
    for ageless in (False, True):
        rate = RateControl(4, ageless=ageless)
        first = rate.key_bytes
        assert rate.wants_finest() and rate.key_bytes > first
        rate.begin_at_once()
        assert (rate.key_bytes == first) is ageless


def test_a_picture_larger_than_a_window_comes_all_the_same() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.affords_picture(FAR)
    rate.sent_update(50_000)
    rate.advance(3600.0)
    assert rate.next_bytes > 2 * WINDOW_SECONDS * rate.bytes_per_second and rate.affords_picture(FAR)


def test_a_far_head_gets_a_picture_beside_a_finer_key_when_it_is_paid() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    assert not rate.affords_picture(FAR, waiting=True)
    rate.advance(paid(rate))
    assert rate.affords_picture(FAR, waiting=True)


def test_the_lowest_rate_saves_up_for_a_part_of_a_key_and_for_the_least_motion() -> None:
    rate = RateControl(LOWEST_KBPS)
    rate.advance(0.0)
    rate.sent_key(300)
    for _ in range(30):
        rate.affords_picture(CLOSE)
        rate.sent_update(1)
    rate.advance(100.0)
    assert rate.part_bytes == PART_BYTES_MIN and rate.purse == pytest.approx(PART_BYTES_MIN + PART_HEADER)
    rate = RateControl(2)
    rate.begin_with_motion(0.0)
    window = (1 + rate.excess) * WINDOW_SECONDS * 250
    assert rate.key_bytes == int(window - START_BYTES - WINDOW_SECONDS * LEAST_MOTION * 250)


def test_time_since_a_picture_counts_from_the_last_one() -> None:
    rate = RateControl(4)
    assert rate.since_picture == float("inf")
    for at, sent in ((5.0, rate.sent_key), (7.0, rate.sent_update)):
        rate.advance(at)
        sent(500)
        rate.advance(at + 0.5)
        assert rate.since_picture == 0.5


def test_rate_is_kept_while_a_picture_waits_for_its_window() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.sent_key(1000)
    rate.affords_picture(FAR)
    rate.spend(int((1 + rate.excess) * WINDOW_SECONDS * 500 - 0.5 * rate.next_bytes))
    rate._purse = full = rate._full
    rate.advance(1.0)
    assert rate.purse == pytest.approx(full + 500)
    rate.advance(WINDOW_SECONDS)
    assert rate.purse == pytest.approx(full)  # there is room: what pictures did not take is lost


def test_rate_is_kept_while_a_part_of_a_finer_key_waits_for_its_window() -> None:
    kept = []
    for waiting in (False, True):
        rate = RateControl(4)
        rate.advance(0.0)
        rate.sent_key(300)
        for _ in range(30):
            rate.affords_picture(FAR, waiting=waiting)
            rate.sent_update(60)
        rate.spend(int(rate.room) - 120)  # an update fits, a part does not
        rate._purse = rate._full
        rate.advance(0.2)
        kept.append(rate.purse > rate._full)
    assert kept == [False, True]


def test_only_a_full_window_makes_motion_coarser_than_usual() -> None:
    rate = RateControl(4)
    for frame in range(25 * 5):
        rate.advance(frame / 25)
        rate.spend_motion(12, 0, rate.quality)  # too large a share of the rate, whatever its quality
    assert rate.quality == QUALITIES[USUAL - 1]
    rate.spend(int(WINDOW_SECONDS * rate.bytes_per_second))
    rate.begin_with_motion(500.0)
    assert rate.quality == QUALITIES[-1]


def test_what_takes_more_than_a_window_is_saved_for_while_a_finer_key_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rate = RateControl(1)
    rate.advance(0.0)
    rate.sent_key(5000)
    for _ in range(20):
        rate.affords_picture(30.0)
        rate.sent_update(1200)
    monkeypatch.setattr(RateControl, "part_bytes", 10000)  # no part of it fits
    for second in range(60):
        rate.advance(float(second))
        affords = rate.affords_picture(30.0, waiting=True)
    assert affords and rate.picture_bytes > 1.1 * 2 * rate.bytes_per_second


def test_numbers_of_numpy_are_numbers() -> None:
    """In float32 the time of day would stand still for minutes."""
    rates = [RateControl(kbps, window=window) for kbps, window in ((4, 4), (np.float32(4), np.float32(4)))]
    for rate in rates:
        for frame in range(200):
            rate.advance(1.7e9 + frame / 25)
            if frame % 25 == 0:
                rate.spend(200)
    assert rates[0].room == rates[1].room

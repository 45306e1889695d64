import numpy as np
import pytest

from neuralcodec.rate import CLOSE, FAR, PIXEL, REFERENCE_BYTES, RateControl, distance, motion_quality


def test_distance_is_in_pixels_of_256() -> None:
    a = np.zeros((30, 3), np.float32)
    b = a + np.array([3 * PIXEL, 4 * PIXEL, 9], np.float32)  # depth does not show
    assert distance(a, b) == pytest.approx(5.0)


def test_finer_motion_at_higher_rates() -> None:
    qualities = [motion_quality(kbps) for kbps in (1, 2, 4, 8, 64)]
    assert [q.level for q in qualities] == sorted((q.level for q in qualities), reverse=True)
    assert [q.components for q in qualities] == sorted(q.components for q in qualities)


@pytest.mark.parametrize("kbps", [0, -1, float("nan"), 1e9])
def test_impossible_targets_are_refused(kbps: float) -> None:
    with pytest.raises(ValueError, match="expected 0.5 to 1000"):
        RateControl(kbps)


def test_the_purse_pays_a_reference_when_the_head_is_far_and_waits_when_it_is_near() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    assert not rate.affords_reference(FAR)
    rate.advance(rate.reference_bytes / 500 + 1e-6)  # 4 kbit/s are 500 bytes a second
    assert rate.affords_reference(FAR) and not rate.affords_reference((CLOSE + FAR) / 2)
    assert not rate.affords_reference(CLOSE - 0.01)
    rate.spend(rate.reference_bytes)
    assert not rate.affords_reference(FAR)


def test_a_long_pause_does_not_pay_for_a_burst() -> None:
    rate = RateControl(4)
    rate.advance(0.0)
    rate.advance(3600.0)
    for _ in range(2):
        assert rate.affords_reference(FAR)
        rate.spend(rate.reference_bytes)
    assert not rate.affords_reference(FAR)


def test_long_run_rate_is_the_target() -> None:
    """A head that never rests: references and motion together come to the target within 5 % over a minute."""
    rate, sent = RateControl(4), 0
    for frame in range(1500):
        rate.advance(frame / 25)
        cost = 8 + (rate.reference_bytes if rate.affords_reference(FAR) else 0)
        rate.spend(cost)
        sent += cost
    assert sent * 8 / 60_000 == pytest.approx(4, rel=0.05)


def test_reference_sizes_stay_in_bounds() -> None:
    for kbps in (0.5, 4, 1000):
        rate = RateControl(kbps)
        for size in (rate.first_bytes, rate.reference_bytes):
            assert REFERENCE_BYTES[0] <= size <= REFERENCE_BYTES[1]

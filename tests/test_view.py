from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcodec.face import Square
from neuralcodec.motion import MotionParams, View
from neuralcodec.view import EASE, ViewControl, ViewRange

RANGE = ViewRange(yaw=20, pitch=15, roll=20, x=0.1, y=0.1)
numbers = st.floats(-90, 90)


def face(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, x: float = 0.0) -> MotionParams:
    place = np.array([x, 0, 0], np.float32)
    return MotionParams(yaw, pitch, roll, place, 0.7, np.zeros((3, 3), np.float32))


def angles(motion: MotionParams) -> np.ndarray:
    return np.array([motion.yaw, motion.pitch, motion.roll])


def test_no_view_changes_nothing_at_all() -> None:
    motion = face(55, -30, 10)
    seen = ViewControl(RANGE).apply(View(), motion, face(), 0.0)
    assert seen.motion is motion and not seen.clamped


def test_a_view_within_the_range_is_exact_and_at_once_at_the_start() -> None:
    motion = face(5, 2, -3)
    seen = ViewControl(RANGE).apply(View(10, -4, 2, 0.08, 0.0), motion, motion, 0.0)
    assert not seen.clamped
    assert np.allclose(angles(seen.motion), angles(motion.turned(View(10, -4, 2))), atol=1e-4)
    assert np.allclose(seen.motion.neck - motion.neck, [0.16, 0], atol=1e-5)


def test_what_is_out_of_range_is_clamped_and_said() -> None:
    control = ViewControl(RANGE)
    seen = control.apply(View(yaw=60, x=0.5), face(), face(), 0.0)
    assert seen.clamped and np.isclose(seen.motion.yaw, 20, atol=1e-3)
    assert np.allclose(seen.motion.neck - face().neck, [0.2, 0], atol=1e-5)


def test_the_range_is_about_the_reference_and_never_turns_the_sender_back() -> None:
    reference = face(yaw=-15)
    seen = ViewControl(RANGE).apply(View(yaw=60), face(), reference, 0.0)
    assert np.isclose(seen.motion.yaw, 5, atol=1e-3), "20 degrees from the reference, not from the coded pose"
    far = face(yaw=30)  # the sender is beyond the range already: further is refused, back is not
    assert np.isclose(ViewControl(RANGE).apply(View(yaw=5), far, reference, 0.0).motion.yaw, 30, atol=1e-3)
    assert np.isclose(ViewControl(RANGE).apply(View(yaw=-5), far, reference, 0.0).motion.yaw, 25, atol=1e-3)


@given(st.tuples(numbers, numbers, numbers), st.booleans(), st.tuples(*[st.floats(-40, 40)] * 3))
def test_nothing_leaves_the_range(turn: tuple[float, ...], absolute: bool, own: tuple[float, ...]) -> None:
    motion, reference = face(*own), face()
    seen = ViewControl(RANGE).apply(View(*turn, absolute=absolute), motion, reference, 0.0).motion
    highest = np.maximum(RANGE.limits[:3], np.abs(angles(motion)))
    assert (np.abs(angles(seen)) <= highest + 0.05).all()


def test_a_frontal_view_holds_the_head_still_while_the_sender_moves() -> None:
    control = ViewControl(RANGE)
    for frame in range(20):
        sender = face(yaw=8 * np.sin(frame), pitch=4 * np.cos(frame))
        seen = control.apply(View(absolute=True), sender, face(), frame / 25)
        assert np.allclose(angles(seen.motion), 0, atol=1e-4)


def test_a_new_view_is_reached_smoothly_whatever_the_frame_rate() -> None:
    for rate in (10, 25, 60):
        control = ViewControl(RANGE)
        control.apply(View(), face(), face(), 0.0)
        yaws = [control.apply(View(yaw=15), face(), face(), frame / rate).motion.yaw for frame in range(1, rate + 1)]
        steps = np.diff([0.0, *yaws])
        assert (steps >= -1e-3).all() and np.isclose(yaws[-1], 15, atol=0.05)
        at = yaws[round(0.2 * rate) - 1]
        assert np.isclose(at, 15 * (1 - np.exp(-0.2 / EASE)), atol=0.01), (rate, at)
        back = [control.apply(View(), face(), face(), 1 + frame / rate).motion for frame in range(1, 3 * rate)]
        assert back[0].yaw > 5 and back[-1].yaw == 0 and control.idle


def test_leaving_a_clamped_view_starts_from_what_was_seen() -> None:
    control = ViewControl(RANGE)
    control.apply(View(yaw=80), face(), face(), 0.0)
    seen = control.apply(View(), face(), face(), 0.01)
    assert 17 < seen.motion.yaw <= 20 and not seen.clamped


def test_a_view_beyond_the_range_is_reached_no_faster_than_its_end() -> None:
    ends, far = ViewControl(RANGE), ViewControl(RANGE)
    for frame, (end, beyond) in enumerate([(0, 0), *[(20, 90)] * 8, *[(-20, -90)] * 8]):
        a = ends.apply(View(yaw=end), face(), face(), frame / 25).motion
        b = far.apply(View(yaw=beyond, x=0.5 * (beyond != 0)), face(), face(), frame / 25)
        assert np.allclose(angles(a), angles(b.motion), atol=1e-3) and b.clamped == (beyond != 0)
        assert frame != 1 or 0.05 < (b.motion.neck - face().neck)[0] < 0.07, "x: of 0.2 the first 28 %"


def test_a_new_reference_moves_a_clamped_head_smoothly() -> None:
    """A sender who turns away and back while the receiver asks for a frontal view."""
    control, away, nearer = ViewControl(RANGE), face(yaw=30), face(yaw=10)  # as the references show it
    heads = [away] * 20 + [nearer] * 20 + [away] * 20
    yaws = [control.apply(View(absolute=True), own, own, frame / 25).motion.yaw for frame, own in enumerate(heads)]
    assert np.isclose(yaws[19], 10, atol=1e-3) and abs(yaws[39]) < 0.05 and np.isclose(yaws[59], 10, atol=0.05)
    assert np.abs(np.diff(yaws)).max() < 3, "of 10 degrees"


def test_a_new_picture_that_allows_more_is_made_use_of_smoothly() -> None:
    control = ViewControl(RANGE)
    control.apply(View(yaw=80), face(), face(), 0.0)
    yaws = [control.apply(View(yaw=80), face(), face(yaw=15), at).motion.yaw for at in (0.001, 2.0)]
    assert 20 <= yaws[0] < 21 and np.isclose(yaws[1], 35, atol=0.05)


def test_time_that_stands_still_or_runs_back_moves_nothing() -> None:
    control = ViewControl(RANGE)
    control.apply(View(), face(), face(), 5.0)
    for seconds in (5.0, 3.0, 3.0):
        assert abs(control.apply(View(yaw=10), face(), face(), seconds).motion.yaw) < 1e-3


def test_size_and_expression_are_the_senders() -> None:
    motion = replace(face(4), scale=0.9, delta=np.ones((3, 3), np.float32))
    for view in (View(10), View(80), View(absolute=True)):
        seen = ViewControl(RANGE).apply(view, motion, face(), 0.0).motion
        assert seen.scale == 0.9 and np.array_equal(seen.delta, motion.delta)


def test_a_range_is_read_and_written() -> None:
    assert ViewRange.parse(RANGE.as_dict()) == RANGE
    whole = RANGE.as_dict()
    assert ViewRange.parse({**whole, "yaw": 0, "roll": 90, "gaze": 1}) == replace(RANGE, yaw=0, roll=90, gaze=1)
    for wrong in (None, [], {}, {"yaw": 20}, {**whole, "z": 1}, {**whole, "yaw": "20"}, {**whole, "yaw": True},
                  {**whole, "pitch": -1}, {**whole, "x": 2}, {**whole, "roll": float("nan")},
                  {**whole, "yaw": 91}):  # fmt: skip
        with pytest.raises(ValueError, match="'view'"):
            ViewRange.parse(wrong)


def test_a_view_stays_where_it_is_when_the_square_changes() -> None:
    """The head stands elsewhere in the new square, the wish is about its place there."""
    control, view = ViewControl(RANGE), View(yaw=10, x=0.1)
    before, after = face(x=0.0), face(x=-0.3)
    control.apply(view, before, before, 0.0, Square(0, 0, 256))
    seen = control.apply(view, after, after, 0.04, Square(38, 0, 256)).motion
    assert np.allclose(seen.neck - after.turned(View(yaw=10)).neck, [0.2, 0], atol=1e-4)
    assert np.isclose(seen.yaw, 10, atol=1e-3)
    eased = control.apply(View(), after, after, 0.08, Square(76, 0, 256)).motion  # a new wish begins from there
    assert 5 < eased.yaw < 10

"""What a sender does about pictures that a receiver lacks: no networks, no pictures, only who holds what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neuralcodec.cuts import Shot, half, squared_error
from neuralcodec.face import Square
from neuralcodec.motion import Array
from neuralcodec.packet import Feedback, StreamHeader, Update
from neuralcodec.rate import RateControl
from neuralcodec.sender import AROUND_SECONDS, ASKED_AGAIN, OVERDUE, STUCK_SECONDS, Held, PictureSender, _Coming
from neuralcodec.stats import EncoderStats

OLD, NEW = object(), object()  # chains


def picture(
    key: int, chain: Any, *, update: bool = True, since: int = 5, at: float = 0.0, after: int | None = None
) -> Held:
    nothing: Any = None
    packets = [Update(key, 0, 1, bytes(4), b"x" * 50)] if update else []
    after = key - 1 if after is None else after
    return Held(nothing, None, Square(0, 0, 256), 0.0, since, at, at, chain, packets, after)


def sender(*pictures: tuple[int, Held]) -> PictureSender:
    nothing: Any = None
    pictures_of = PictureSender(nothing, nothing, EncoderStats(), RateControl(4))
    pictures_of.held = dict(pictures)
    pictures_of.active, last = pictures[-1] if pictures else (0, picture(0, None))
    pictures_of._chain = last.chain
    pictures_of.rate.sent_key(900)
    return pictures_of


def tell(pictures: PictureSender, *held: int, seconds: float = 1.0) -> None:
    """Frame 10 has been seen, 12 comes next."""
    pictures.on_feedback(Feedback(10, 0, held, need_reference=True), seconds, 12)


def test_updates_that_a_receiver_lacks_are_sent_again_and_not_used_until_they_have_come() -> None:
    pictures = sender((0, picture(0, NEW, update=False)), *((n, picture(n, NEW)) for n in (1, 2, 3)))
    tell(pictures, 0, 1)
    assert [packet.reference for packet in pictures.again if isinstance(packet, Update)] == [2, 3]
    assert [key for key, held in pictures.held.items() if held.lost] == [2, 3] and pictures.active == 1
    pictures.again = []
    tell(pictures, 0, 1, seconds=1.1)
    assert not pictures.again  # they are on their way
    tell(pictures, 0, 1, 2, 3, seconds=1.2)
    assert not any(held.lost for held in pictures.held.values()) and pictures._chain is NEW


@pytest.mark.parametrize(("since", "at", "again"), [(11, 0.95, 0), (10, 0.95, 1), (11, 0.99 - OVERDUE, 1)])
def test_what_may_still_be_on_its_way_is_not_sent_again(since: int, at: float, again: int) -> None:
    pictures = sender((0, picture(0, NEW, update=False)), (1, picture(1, NEW, since=since, at=at)))
    tell(pictures, 0)
    assert len(pictures.again) == again


@pytest.mark.parametrize(
    ("since", "at", "sent"), [(11, 0.99 - OVERDUE, 0), (11, 1.01 - OVERDUE, 2), (10, 0.99 - OVERDUE, 2)]
)
def test_the_first_parts_of_an_update_are_sent_again_where_nothing_since_has_come(
    since: int, at: float, sent: int
) -> None:
    nothing: Any = None
    pictures = sender((0, picture(0, NEW, update=False)))
    parts = [Update(1, index, 3, bytes(4), b"x" * 60) for index in range(3)]
    pictures._late = coming = _Coming(1, nothing, nothing, nothing, 200, since, at, parts, sent=2)
    tell(pictures, 0)
    assert coming.sent == sent
    assert coming.next(100) == parts[sent : sent + 1]
    tell(pictures, 0)  # said again: it is on its way
    assert coming.next(1000) == parts[sent + 1 :]


def test_with_its_key_a_chain_is_lost_and_what_stands_before_it_is_used() -> None:
    """An update of it that is on its way is of no use either."""
    new = (4, picture(4, NEW, update=False)), (5, picture(5, NEW, since=12, at=0.99))
    pictures = sender((0, picture(0, OLD, update=False)), *new)
    update = pictures.rate.picture_bytes
    tell(pictures, 0)
    assert list(pictures.held) == [0] and pictures.active == 0 and not pictures.again and pictures._chain is None
    assert pictures.rate.picture_bytes == pictures.rate.key_bytes > update  # the next one is a key


def test_updates_of_a_lost_key_are_not_sent_again_after_the_last_picture_of_another_chain() -> None:
    pictures = sender((3, picture(3, OLD, update=False)), (4, picture(4, NEW, update=False)), (5, picture(5, NEW)))
    tell(pictures, 3)
    assert not pictures.again and list(pictures.held) == [3] and pictures._chain is None


def test_an_update_behind_one_that_never_came_does_not_help() -> None:
    pictures = sender((0, picture(0, NEW, update=False)), (2, picture(2, NEW)), (3, picture(3, NEW)))
    tell(pictures, 0)  # 1 has been forgotten at this end
    assert not pictures.again and list(pictures.held) == [0] and pictures._chain is None


def test_an_update_that_follows_across_the_id_of_a_key_given_up_is_sent_again() -> None:
    pictures = sender((0, picture(0, NEW, update=False)), (2, picture(2, NEW, after=0)))  # 1 never went out whole
    tell(pictures, 0)
    assert [packet.reference for packet in pictures.again if isinstance(packet, Update)] == [2]
    assert pictures._chain is NEW


def test_what_a_receiver_holds_is_shown_though_its_chain_goes_on_no_more() -> None:
    pictures = sender(*((n, picture(n, NEW)) for n in range(1, 8)))
    pictures.held[7].packets = [Update(7, 0, 1, bytes(4), b"x" * 1100)]  # dearer than a key
    tell(pictures, *range(1, 7))
    assert list(pictures.held) == [*range(1, 7)] and pictures.active == 6 and pictures._chain is None


def test_a_receiver_that_has_seen_no_frame_gets_a_picture_and_not_one_for_every_report() -> None:
    pictures, wanted = sender(), []
    for seconds in (1.0, 1.0 + 0.9 * ASKED_AGAIN, 1.0 + 1.1 * ASKED_AGAIN):
        pictures.wanted = False
        pictures.on_feedback(Feedback(need_reference=True), seconds, 0)
        wanted.append(pictures.wanted)
    assert wanted == [True, False, True]


@pytest.mark.parametrize(
    ("ways", "changes", "best"),
    [
        ((10.0, 9.5), (0, 0), 0),  # not another for little
        ((10.0, 8.9), (0, 0), 1),
        ((10.0, 10.0), (1, 0), 1),  # as near, and more alike
        ((10.0, 8.0), (0, 2), 0),
    ],
)
def test_a_frame_is_shown_from_the_picture_that_it_looks_most_like(
    ways: tuple[float, float], changes: tuple[float, float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of keypoints, and grey levels of all else."""
    shot: Any = None
    pictures = sender((0, picture(0, NEW, update=False)), (1, picture(1, NEW)))
    grey = {id(held): change for held, change in zip(pictures.held.values(), changes, strict=True)}
    monkeypatch.setattr(pictures, "_change", lambda _, held: grey[id(held)])
    assert pictures._best(shot, dict(enumerate(ways)), 0) == best


def test_a_picture_in_other_light_is_less_like_a_frame_than_its_pixels_say(portrait_clip: list[Array]) -> None:
    """Motion makes up for a head that has moved, and for no light."""
    tile, square = portrait_clip[0], Square(0, 0, 256)
    shot, pictures = Shot(tile, tile, square, None, 1.0), sender()
    moved, dimmed = picture(0, NEW), picture(1, NEW)
    for held, image in ((moved, np.roll(tile, 9, axis=1)), (dimmed, (tile * 0.85).astype(np.uint8))):
        features: Any = SimpleNamespace(picture=image)
        held.features = features
    off = [float(np.sqrt(squared_error(half(tile), held.half))) for held in (moved, dimmed)]
    assert off[0] > off[1] and pictures._change(shot, moved) == off[0]
    assert pictures._change(shot, dimmed) > off[0]


def test_reports_without_end_do_not_make_the_sender_send_without_end() -> None:
    """Not even those that name a frame which was never sent, or that come many times a frame."""
    pictures = sender((0, picture(0, NEW, update=False)), *((n, picture(n, NEW)) for n in (1, 2, 3)))
    for frame in range(50):
        for report in (frame + 11, frame + 12, frame + 13):  # the newest frame sent is the first of these
            pictures.on_feedback(Feedback(report % 256, 0, (0,), need_reference=True), 1.0 + frame / 25, frame + 12)
    assert len(pictures.again) == 3 * 17  # each of three updates once in 0.1 s, which is every third frame


def test_a_receiver_that_asks_for_more_than_the_rate_can_ever_bring_is_not_heard() -> None:
    pictures = sender((0, picture(0, NEW, update=False)), (1, picture(1, NEW)))
    pictures.rate.advance(0.0)
    pictures.rate.spend(100_000)
    tell(pictures, 0)
    assert not pictures.again and pictures.rate.owes_much


def test_a_receiver_that_has_only_just_seen_the_header_gets_no_second_first_picture() -> None:
    pictures = sender((0, picture(0, NEW, update=False, at=1.0)))
    pictures.on_feedback(Feedback(need_reference=True), 1.0 + 0.9 * OVERDUE, 0)
    assert not pictures.wanted
    pictures.on_feedback(Feedback(need_reference=True), 1.0 + 1.1 * OVERDUE, 0)
    assert pictures.wanted


def test_surroundings_of_a_head_that_walks_come_every_two_seconds_and_at_once_where_it_is_elsewhere() -> None:
    def renews(seconds: float, x: int, *, moved: bool = True) -> bool:
        nothing: Any = None
        shot = Shot(nothing, nothing, Square(x, 0, 256), None, seconds)
        return pictures.renews_surroundings(shot, moved=moved)

    pictures = sender((0, picture(0, NEW)))
    pictures._newest, pictures._around_at = 0, 1.0
    assert not renews(1.0 + 2 * AROUND_SECONDS, 60)  # nobody wants them
    pictures._full_frame = True
    assert not renews(1.1, 60, moved=False)
    assert not renews(1.2, 60) and not renews(1.3, 60, moved=False) and not renews(0.99 + AROUND_SECONDS, 120)
    assert renews(1.0 + AROUND_SECONDS, 60, moved=False)  # it has come to rest meanwhile
    assert renews(1.1, 130)  # more than half of its side away
    pictures.begin_shot()
    assert renews(1.1, 0, moved=False)


def test_surroundings_wait_until_those_before_are_paid_for_unless_the_source_has_another_size() -> None:
    nothing: Any = None
    pictures, shot = sender((0, picture(0, NEW))), Shot(nothing, nothing, Square(0, 0, 256), None, 9.0)
    pictures._full_frame = True
    assert pictures.renews_surroundings(shot, moved=True)
    pictures.rate.spend(int(pictures.rate.purse) + 3 * pictures.rate.key_bytes - 1)
    assert pictures.renews_surroundings(shot, moved=True)
    pictures.rate.spend(3)
    assert not pictures.renews_surroundings(shot, moved=True)
    pictures.begin_size(StreamHeader(bytes(8), 640, 480, (1, 25), 1, 256))
    assert pictures.wanted and pictures.renews_surroundings(shot, moved=False)


def test_an_update_whose_parts_fit_no_window_gives_way_to_a_small_key() -> None:
    nothing: Any = None
    pictures, parts = sender((0, picture(0, NEW))), [Update(1, 0, 8, bytes(4), b"x" * 4000)]
    pictures._late = late = _Coming(1, nothing, nothing, nothing, 4000, 10, 1.0, parts, went=1.0)
    pictures.rate.key_bytes = 5000
    for seconds in (1.0, 0.9 + STUCK_SECONDS):
        pictures._now = seconds
        assert pictures._send_late(late) == [] and pictures._late is late and not pictures.wanted
    pictures._now = 1.0 + STUCK_SECONDS
    pictures.rate.spend(int(pictures.rate.purse) + 1)
    assert pictures._send_late(late) == [] and pictures._late is late  # so much is owed that nothing would fit
    pictures.rate.spend(-2)
    assert pictures._send_late(late) == [] and pictures._late is None and pictures.wanted
    assert pictures.rate.key_bytes == pictures.rate.first_bytes


def test_a_square_that_jumps_hurries_no_picture_and_another_shot_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers follow the head; a picture in the middle of a movement is soon of no use."""
    nothing: Any = None
    pictures, sent = sender((0, picture(0, NEW))), []  # type: ignore[var-annotated]
    monkeypatch.setattr(pictures, "_send_update", lambda shot: (sent.append(shot), [])[1])
    for name in ("affords_picture", "wants_finer", "wants_coarser"):
        monkeypatch.setattr(pictures.rate, name, lambda *_, **__: False)
    shot = Shot(nothing, nothing, Square(90, 0, 256), None, 1.0)
    for moved in (True, False):
        pictures.refresh(shot, 1.0, 10, as_is=False, moved=moved, doubtful=False)
    assert not sent
    pictures.begin_shot()
    pictures.refresh(shot, 1.04, 11, as_is=False, moved=False, doubtful=False)
    assert sent == [shot]

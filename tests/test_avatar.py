from __future__ import annotations

import inspect
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import portrait as drawn_portrait

import neuralcodec as nc
from neuralcodec.avatar import MOUTH, AvatarDriver
from neuralcodec.concealment import Concealment
from neuralcodec.cuts import squared_error
from neuralcodec.face import Square, resize
from neuralcodec.gaze import EYES
from neuralcodec.inference import Inference, MotionEstimate
from neuralcodec.lids import openings
from neuralcodec.motion import Array, MotionParams, euler_angles, rotation_matrix
from neuralcodec.packet import Motion, ReferencePart, StreamHeader
from neuralcodec.rate import RateControl

CONSENT = "a public domain portrait"


@pytest.fixture(scope="module")
def portrait() -> Array:
    return drawn_portrait(1)[0]


def estimate(
    yaw: float = 0.0, x: float = 0.0, y: float = 0.0, scale: float = 0.5, smile: float = 0.0, shape: float = 0.0
) -> MotionEstimate:
    """Of somebody whose canonical keypoints are ``shape`` everywhere."""
    delta = np.full((30, 3), smile, np.float32)
    motion = MotionParams(yaw, 0, 0, np.array([x, y, 0], np.float32), scale, delta)
    return MotionEstimate(motion, np.full((30, 3), shape, np.float32), 0.9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"picture": None, "consent": CONSENT}, "found NoneType"),
        ({"picture": np.zeros((9, 9), np.uint8), "consent": CONSENT}, r"found uint8 \(9, 9\)"),
        ({"picture": np.zeros((9, 9, 3)), "consent": CONSENT}, "found float64"),
        ({"picture": np.zeros((9, 9, 3), np.uint8), "consent": ""}, "needs consent"),
        ({"picture": np.zeros((9, 9, 3), np.uint8), "consent": " \n"}, "needs consent"),
        ({"picture": np.zeros((9, 9, 3), np.uint8), "consent": True}, "needs consent"),
        ({"picture": np.zeros((9, 9, 3), np.uint8), "consent": CONSENT, "transfer": "deep"}, "or 'absolute'"),
    ],
)
def test_an_avatar_is_a_picture_and_somebodys_consent(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nc.Avatar(**arguments)


def test_an_avatar_is_the_picture_that_was_consented_to() -> None:
    picture = np.zeros((9, 9, 3), np.uint8)
    avatar = nc.Avatar(picture, CONSENT)
    picture[:] = 255
    assert not avatar.picture.any()


def test_a_picture_without_a_face_is_refused(networks: Inference) -> None:
    with pytest.raises(nc.NoFaceError, match="No face was found in the avatar's picture"):
        AvatarDriver(nc.Avatar(np.full((256, 256, 3), 90, np.uint8), CONSENT), networks)


def test_relative_motion_starts_at_the_avatars_own_but_for_the_mouth(networks: Inference, portrait: Array) -> None:
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT), networks)
    here = Square(0, 0, 256)
    own = driver.driven(estimate(yaw=8, x=0.3, smile=0.2), here, 0.0).motion
    assert np.allclose(own.delta[MOUTH], 0.2, atol=1e-5), "the sender's: it may be open"
    picture = driver._own.motion
    delta = np.concatenate([picture.delta[:16], own.delta[MOUTH], picture.delta[26:]])
    assert np.allclose(own.flat(), replace(picture, delta=delta).flat(), atol=1e-4)
    after = driver.driven(estimate(yaw=18, x=0.4, smile=0.25, scale=0.55), here, 0.0).motion
    turn = own.rotation.T @ after.rotation
    assert np.allclose(turn, rotation_matrix(10, 0, 0), atol=1e-4)
    assert np.allclose((after.delta - own.delta)[:16], 0.05, atol=1e-5)  # lips: see below
    assert np.isclose(after.scale / own.scale, 1.1, atol=1e-5)
    assert np.isclose((after.translation - own.translation)[0], 0.1 * own.scale / 0.5, atol=1e-5)
    driver.recenter()
    again = driver.driven(estimate(yaw=-9, smile=0.2), here, 0.0).motion
    assert np.allclose(again.flat(), own.flat(), atol=1e-4)


def test_a_sender_who_begins_with_a_blink_does_not_make_the_avatar_stare(networks: Inference, portrait: Array) -> None:
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT), networks)
    here, own = Square(0, 0, 256), driver._own
    shut = replace(own, motion=replace(own.motion, delta=own.motion.delta.copy()))
    face = own.canonical + own.motion.delta
    for _, _, upper, lower, _ in EYES:
        shut.motion.delta[upper, 1] += 0.9 * (face[lower, 1] - face[upper, 1])
    before = openings(own.motion, own.canonical)
    first = openings(driver.driven(shut, here, 0.0).motion, own.canonical)
    assert np.allclose(first, before, atol=1e-4)  # nobody can know yet
    for frame in range(1, 200):
        later = openings(driver.driven(own, here, frame / 25).motion, own.canonical)
    assert np.all(np.array(later) < 1.25 * np.array(before)), "1.9 times without"
    blink = openings(driver.driven(shut, here, 8.0).motion, own.canonical)
    assert np.all(np.array(blink) < 0.4 * np.array(before))


def test_absolute_motion_is_the_senders(networks: Inference, portrait: Array) -> None:
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT, "absolute"), networks)
    here = Square(0, 0, 256)
    first = driver.driven(estimate(yaw=20, smile=0.1), here, 0.0).motion
    assert np.isclose(first.yaw, 20, atol=1e-3) and np.allclose(first.delta, 0.1, atol=1e-5)
    # what the motion network takes for another shape of the same face is expression
    assert np.allclose(driver.driven(estimate(shape=0.02), here, 0.0).motion.delta, 0.02, atol=1e-5)


def test_a_crop_that_follows_the_camera_moves_nothing(networks: Inference, portrait: Array) -> None:
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT), networks)
    first = driver.driven(estimate(x=0.2), Square(0, 0, 200), 0.0).motion
    moved = driver.driven(estimate(x=0.0), Square(20, 0, 200), 0.0).motion  # the same place in the camera's picture
    assert np.allclose(first.translation, moved.translation, atol=1e-5)


def test_the_avatar_stays_in_the_picture(networks: Inference, portrait: Array) -> None:
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT), networks)
    here = Square(0, 0, 256)
    driver.driven(estimate(), here, 0.0)
    own = driver._own
    for x, y in ((5.0, 5.0), (-5.0, -5.0)):
        far = driver.driven(estimate(x=x, y=y), here, 0.0).motion.keypoints(own.canonical)[:, :2]
        assert np.abs(far).max() <= max(0.95, np.abs(own.keypoints[:, :2]).max()) + 1e-5
        assert np.allclose(np.abs(far).max(0), 0.95, atol=1e-5)  # no nearer to the middle than it takes
    close = replace(own.motion, scale=1.3 * own.motion.scale)  # a picture with more of a face in it
    driver._own = replace(own, motion=close)
    large = driver.driven(estimate(scale=3.0), here, 0.0).motion
    assert np.isclose(large.scale, 1.6 * close.scale)
    face = large.keypoints(own.canonical)[:, :2]
    assert np.ptp(face[:, 1]) > 1.9 and np.isclose(face[:, 1].min(), -face[:, 1].max(), atol=1e-5)


def test_relative_turns_end_where_the_pack_no_longer_shows_them_well(networks: Inference, portrait: Array) -> None:
    here, limits = Square(0, 0, 256), networks.pack.view_range
    for transfer, turned in (("relative", limits.yaw), ("absolute", 60.0)):
        driver = AvatarDriver(nc.Avatar(portrait, CONSENT, transfer), networks)
        own = driver._own.motion.rotation if transfer == "relative" else np.eye(3)
        driver.driven(estimate(), here, 0.0)
        for sign in (-1, 1):
            turn = own.T @ driver.driven(estimate(yaw=60.0 * sign), here, 0.0).motion.rotation
            assert np.allclose(turn, rotation_matrix(sign * turned, 0, 0), atol=1e-4)


def test_heads_do_not_rest_turned_far(networks: Inference, portrait: Array) -> None:
    """Sender or picture begin 24 degrees aside: they have turned by 14 of them."""
    here = Square(0, 0, 256)
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT), networks)
    own = driver._own.motion.rotation
    assert all(abs(angle) < 10 for angle in euler_angles(own))
    first = driver.driven(estimate(yaw=24), here, 0.0).motion.rotation
    assert np.allclose(own.T @ first, rotation_matrix(14, 0, 0), atol=1e-4)
    later = driver.driven(estimate(yaw=10), here, 1.0).motion.rotation
    assert np.allclose(later, own, atol=1e-4)
    turned = MotionParams.from_matrix(rotation_matrix(-24, 0, 0), np.zeros(3), 0.5, driver._own.motion.delta)
    driver._own = replace(driver._own, motion=turned)
    driver.recenter()
    assert np.isclose(driver.driven(estimate(), here, 2.0).motion.yaw, -10, atol=1e-3)
    assert np.isclose(driver.driven(estimate(yaw=-14), here, 3.0).motion.yaw, -24, atol=1e-3)
    limit = networks.pack.view_range.yaw  # from the picture, whatever the rest
    assert np.isclose(driver.driven(estimate(yaw=60), here, 4.0).motion.yaw, limit - 24, atol=1e-3)


def test_lips_that_move_a_little_are_driven_further(networks: Inference, portrait: Array) -> None:
    driver = AvatarDriver(nc.Avatar(portrait, CONSENT), networks)
    here = Square(0, 0, 256)
    start = driver.driven(estimate(), here, 0.0).motion.delta
    little, wide = (driver.driven(estimate(smile=by), here, 0.0).motion.delta - start for by in (0.01, 0.1))
    assert np.allclose(little[16:26], 0.0125, atol=1e-5) and np.allclose(little[:16], 0.01, atol=1e-5)
    assert np.allclose(wide, 0.1, atol=1e-5)  # sizes of 0.05 and 0.55 head units


def test_only_the_avatars_picture_is_ever_sent(portrait_clip: list[Array], portrait: Array) -> None:
    """The camera shows a mirrored, darker person; what arrives is the portrait, once, whatever the head does."""
    camera = [np.ascontiguousarray(image[:, ::-1] // 2) for image in portrait_clip[:8]]
    sender = nc.Encoder(6, device="cpu", threads=1, avatar=nc.Avatar(portrait, CONSENT))
    receiver = nc.Decoder(device="cpu", threads=1)
    packets = [packet for pts, image in enumerate(camera) for packet in sender.encode(image, pts)]
    shown = [frame for packet in packets for frame in receiver.decode(bytes(packet))]
    headers = [p for p in packets if isinstance(p, StreamHeader)]
    assert {(h.width, h.height) for h in headers} == {(256, 256)} and sender.stats.references == 1
    assert sum(isinstance(p, Motion) for p in packets) == len(shown) == len(camera)
    assert all(p.crop == (0, 0, 256) for p in packets if isinstance(p, ReferencePart))
    mean = np.mean([frame.image.mean() for frame in shown])
    assert abs(mean - portrait.mean()) < 12 < abs(mean - np.mean(camera))
    sender.send_reference()
    again = sender.encode(camera[-1], len(camera))
    assert sum(isinstance(p, ReferencePart) and p.index == 0 for p in again) == 1
    sender.recenter_avatar()


def test_while_the_face_is_lost_both_ends_stay_where_they_were(portrait_clip: list[Array], portrait: Array) -> None:
    """Also in the intra frames that come in that time."""
    sender = nc.Encoder(4, device="cpu", threads=1, avatar=nc.Avatar(portrait, CONSENT), time_base=Fraction(1, 5))
    receiver, blank, intra = nc.Decoder(device="cpu", threads=1), np.full((256, 256, 3), 90, np.uint8), 0
    camera = [*portrait_clip[:6], *[blank] * 24, *portrait_clip[6:9]]
    for pts, image in enumerate(camera):
        for packet in sender.encode(image, pts):
            receiver.decode(bytes(packet), wanted=lambda _: False)
            intra += isinstance(packet, Motion) and packet.intra
        assert receiver._quantizer.state == sender._quantizer.state
    assert intra >= 3 and sender.stats.face_lost_frames >= 20


def test_an_avatars_picture_gets_finer_with_what_motion_leaves(portrait_clip: list[Array], portrait: Array) -> None:
    sender = nc.Encoder(24, device="cpu", threads=1, avatar=nc.Avatar(portrait, CONSENT))
    receiver = nc.Decoder(device="cpu", threads=1)
    spent, errors, states = 0, {}, set()
    for pts in range(75):
        packets = [bytes(packet) for packet in sender.encode(portrait_clip[pts % len(portrait_clip)], pts)]
        shown = [f for packet in packets for f in receiver.decode(packet, wanted=lambda pts: False)]
        spent += sum(map(len, packets))
        states |= {frame.state for frame in shown}
        held = receiver._pictures.get(shown[-1].reference)
        assert held is not None and np.array_equal(held.features.picture, sender._pictures.current.features.picture)
        errors[shown[-1].reference] = squared_error(portrait, held.features.picture)
    assert list(errors) == list(range(len(errors))) and len(errors) >= 2  # each once, and nothing goes back
    assert list(errors.values()) == sorted(errors.values(), reverse=True) and errors[1] < 0.7 * errors[0]
    assert states == {Concealment.RECEIVED}  # the parts of the next one are in nobody's way
    assert spent < 1.1 * 75 / 25 * 24 * 125
    sender.send_reference()  # somebody joins: a coarse one for now, not all the bytes of the finest at once
    again = [p for p in sender.encode(portrait_clip[0], 75) if isinstance(p, ReferencePart)]
    assert 0 < sum(len(p.payload) for p in again) <= sender._rate.first_bytes < sender._rate._window_bytes / 2


def test_a_camera_that_changes_its_size_moves_no_avatar(portrait_clip: list[Array], portrait: Array) -> None:
    sender, motions = nc.Encoder(8, device="cpu", threads=1, avatar=nc.Avatar(portrait, CONSENT)), []
    for pts, side in enumerate((512, 512, 256, 256, 384)):
        sender.encode(resize(portrait_clip[0], side, side), pts)
        assert sender._quantizer.last is not None
        motions.append((*sender._quantizer.last.translation, np.log(sender._quantizer.last.scale)))
    assert np.ptp(motions, axis=0).max() < 0.03


def test_an_avatars_picture_gets_finer_although_a_part_of_it_is_lost(
    portrait_clip: list[Array], portrait: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("purse", "room"):
        monkeypatch.setattr(RateControl, name, 1200.0)  # each in a few frames
    sender = nc.Encoder(8, device="cpu", threads=1, avatar=nc.Avatar(portrait, CONSENT), preset=13)
    receiver, lost, errors = nc.Decoder(device="cpu", threads=1), False, []
    for pts in range(20):
        for packet in sender.encode(portrait_clip[pts], pts):
            if isinstance(packet, ReferencePart) and packet.reference == 1 and not lost:
                lost = True
                continue
            receiver.decode(bytes(packet), wanted=lambda _: False)
        if receiver.wants_feedback(pts / 25):
            sender.on_feedback(bytes(receiver.feedback()))
        errors.append(sender._pictures.current.error)
    assert lost and not receiver.wants_reference and max(receiver._pictures.ids) == sender._pictures.active
    assert errors[-1] < 0.7 * errors[0]


def test_a_receiver_cannot_choose_whom_it_sees(portrait: Array) -> None:
    assert not {"avatar", "picture", "reference"} & set(inspect.signature(nc.Decoder.__init__).parameters)
    with pytest.raises(ValueError, match="no surroundings"):
        nc.Encoder(device="cpu", avatar=nc.Avatar(portrait, CONSENT), full_frame=True)
    with pytest.raises(ValueError, match="there is no avatar"):
        nc.Encoder(device="cpu").recenter_avatar()

import gc
import io
import math
import weakref
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import exposed, somebody_else, there_and_back

import neuralcodec as nc
from neuralcodec import encoder as encoder_module
from neuralcodec.concealment import Concealment
from neuralcodec.container import FILE_MAGIC, ContainerWriter
from neuralcodec.cuts import JUMP, squared_error
from neuralcodec.encoder import FLASH_SECONDS, WAITING_LIVE
from neuralcodec.errors import LimitError
from neuralcodec.face import CropFollower, Square, crop
from neuralcodec.film_rate import FilmRate
from neuralcodec.fragments import PART_BYTES
from neuralcodec.gaze import EYES
from neuralcodec.inference import Inference, MotionEstimate
from neuralcodec.motion import Array
from neuralcodec.packet import End, Feedback, Motion, Parity, ReferencePart, StreamHeader, Update, parse_packet
from neuralcodec.quality import psnr
from neuralcodec.rate import PART_HEADER, QUALITIES, RateControl
from neuralcodec.reference import BACKDROP, PICTURE
from neuralcodec.sender import OVERDUE, PictureSender
from neuralcodec.signing import SIGNATURE_BYTES

Coded = tuple[nc.Encoder, list[list[object]]]
ROOM = np.full((256, 256, 3), 90, np.uint8)  # with nobody in it


def test_the_first_frame_brings_header_reference_and_intra_motion(coded: Coded) -> None:
    first = coded[1][0]
    kinds = [type(packet) for packet in first]
    assert kinds[0] is StreamHeader and kinds[-1] is Motion and set(kinds[1:-1]) == {ReferencePart}
    assert isinstance(first[-1], Motion) and first[-1].intra and first[-1].pts == 0


def test_later_frames_are_a_few_bytes(coded: Coded) -> None:
    alone = [packets[0] for packets in coded[1][1:] if len(packets) == 1]
    assert len(alone) >= 15
    assert np.mean([len(bytes(packet)) for packet in alone]) <= 12  # type: ignore[call-overload]


def test_every_packet_fits_a_datagram_and_parses_to_itself(coded: Coded) -> None:
    for packet in (packet for packets in coded[1] for packet in packets):
        data = bytes(packet)  # type: ignore[call-overload]
        assert len(data) <= PART_BYTES + 30 and parse_packet(data) == packet


def test_every_byte_is_counted(coded: Coded) -> None:
    encoder, frames = coded
    sent = sum(len(bytes(packet)) for packets in frames for packet in packets)  # type: ignore[call-overload]
    assert encoder.stats.bytes_total == sent
    assert encoder.stats.frames == len(frames) and encoder.stats.face_lost_frames == 0
    assert encoder.stats.provider == "CPUExecutionProvider"
    assert {"face", "motion", "reference", "entropy"} <= encoder.stats.stage_ms.keys()


def test_quantization_moves_keypoints_less_than_a_pixel(coded: Coded) -> None:
    assert 0 < coded[0].stats.keypoint_error_px < 0.7


def test_sequence_numbers_count_frames(coded: Coded) -> None:
    motions = [p for packets in coded[1] for p in packets if isinstance(p, Motion)]
    assert [m.sequence for m in motions] == list(range(len(coded[1])))
    assert coded[0].stats.intra_frames == sum(m.intra for m in motions) > 0


def test_asking_for_a_reference_or_an_intra_frame_gives_one(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(2, device="cpu", threads=1)
    encoder.encode(portrait_clip[0], 0)
    assert not any(isinstance(p, ReferencePart) for p in encoder.encode(portrait_clip[1], 1))
    encoder.send_intra()
    (motion,) = encoder.encode(portrait_clip[2], 2)
    assert isinstance(motion, Motion) and motion.intra
    encoder.send_reference()
    packets = encoder.encode(portrait_clip[3], 3)
    assert isinstance(packets[0], StreamHeader) and any(isinstance(p, ReferencePart) for p in packets)
    assert encoder.stats.references == 2
    assert encoder.flush() == encoder.flush() == [End(4)]
    with pytest.raises(ValueError, match="has ended its stream with flush"):
        encoder.encode(portrait_clip[4], 4)


def test_an_encoder_that_nobody_has_any_more_is_gone_at_once(portrait_clip: list[np.ndarray]) -> None:
    """It holds some forty megabytes, which must not wait until Python looks for circles."""
    encoder = nc.Encoder(device="cpu", threads=1, preset=13)
    encoder.encode(portrait_clip[0], 0)
    gone = weakref.ref(encoder)
    gc.disable()
    try:
        del encoder
        assert gone() is None
    finally:
        gc.enable()


def test_frames_before_the_first_face_are_kept_for_it(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(device="cpu", threads=1)
    empty = np.full((256, 256, 3), 200, np.uint8)  # as bright as the wall behind the face
    assert [type(p) for p in encoder.encode(empty, 0)] == [StreamHeader]
    assert encoder.encode(empty, 1) == []
    packets = encoder.encode(portrait_clip[0], 2)
    assert [p.sequence for p in packets if isinstance(p, Motion)] == [0, 1, 2]
    assert encoder.stats.face_lost_frames == 2


@pytest.mark.parametrize("live", [True, False])
def test_of_the_frames_before_the_first_face_a_live_stream_sends_those_of_a_second(
    portrait_clip: list[np.ndarray], live: bool
) -> None:
    encoder, empty = nc.Encoder(device="cpu", threads=1, repeat_header=live), np.full((64, 64, 3), 90, np.uint8)
    for pts in range(WAITING_LIVE + 5):
        encoder.encode(empty, pts)
    packets = encoder.encode(portrait_clip[0], WAITING_LIVE + 5)
    assert sum(isinstance(packet, Motion) for packet in packets) == WAITING_LIVE + (1 if live else 6)


@pytest.mark.parametrize(("constant", "least", "most"), [(0.2, 10, 20), (1e9, 26, 26), (1e-3, 2, 2)])
def test_a_call_begins_when_the_camera_has_set_its_exposure_and_waits_no_longer_than_a_second(
    portrait_clip: list[Array], constant: float, least: int, most: int
) -> None:
    """From a tenth of the light: within half a second; ever more; at once. The first frame is too dark for a face."""
    encoder, decoder = nc.Encoder(device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    begun, shown = None, []
    for pts, image in enumerate(there_and_back(portrait_clip, 30)):
        seconds = pts / 25
        gain = 0.1 * 6**seconds if constant > 1 else 1 - 0.9 * np.exp(-seconds / constant)
        packets = encoder.encode(exposed(image, gain), pts)
        begun = pts if begun is None and any(isinstance(p, ReferencePart) for p in packets) else begun
        shown += [frame.pts for packet in packets for frame in decoder.decode(bytes(packet))]
    assert begun is not None and least <= begun <= most
    assert shown == list(range(max(0, begun - WAITING_LIVE), 30)) and encoder.stats.face_lost_frames == 1


@pytest.mark.parametrize("frames", [1, 4])
def test_a_call_that_ends_while_it_waits_for_the_camera_shows_what_there_was(
    portrait_clip: list[Array], frames: int
) -> None:
    encoder, decoder = nc.Encoder(device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    camera, film = np.empty_like(portrait_clip[0]), [exposed(image, 0.3) for image in portrait_clip[:frames]]
    packets = []
    for pts, image in enumerate(film):
        camera[:] = image  # what holds a frame is used again
        packets += encoder.encode(camera, pts)
    camera[:] = 0
    assert [type(packet) for packet in packets] == [StreamHeader]
    shown = [frame for p in [*packets, *encoder.flush()] for frame in decoder.decode(bytes(p))]
    assert [frame.pts for frame in shown] == list(range(frames))
    assert psnr(shown[-1].image, film[-1]) > 24 and encoder.flush()[-1] == End(frames)


def test_a_call_in_usual_light_begins_with_its_first_frame_and_a_film_however_dark(
    portrait_clip: list[Array],
) -> None:
    for gain, how in ((1.0, {}), (0.3, {"lookahead": 1}), (0.3, {"film": True})):
        frames = [exposed(image, gain) for image in portrait_clip[:2]]
        film = {"film": nc.Film(enumerate(frames))} if how.pop("film", False) else how
        encoder = nc.Encoder(device="cpu", threads=1, preset=13, **film)  # type: ignore[arg-type]
        packets = [p for pts, image in enumerate(frames) for p in encoder.encode(image, pts)]
        assert sum(isinstance(p, StreamHeader) for p in packets) == 1 and encoder.stats.references == 1


def shown_of(frames: list[Array], **how: Any) -> tuple[nc.Encoder, list[nc.DecodedFrame]]:
    """A film as a receiver sees it."""
    encoder = nc.Encoder(
        device="cpu", threads=1, preset=13, crop="none", repeat_header=False, film=nc.Film(enumerate(frames)), **how
    )
    decoder = nc.Decoder(device="cpu", threads=1)
    packets = [p for pts, image in enumerate(frames) for p in encoder.encode(image, pts)]
    shown = [frame for p in [*packets, *encoder.flush()] for frame in decoder.decode(bytes(p))]
    return encoder, shown


def test_a_film_that_begins_without_a_face_begins_with_what_it_shows(portrait_clip: list[Array]) -> None:
    """And the first face is another shot's, with a picture of its own."""
    title = np.full((256, 256, 3), 20, np.uint8)
    title[100:140, 60:200] = (200, 180, 40)
    encoder, shown = shown_of([*[title] * 12, *portrait_clip[:12]], lookahead=4)
    assert [frame.pts for frame in shown] == list(range(24)) and encoder.stats.references == 2
    assert all(psnr(frame.image, title) > 30 for frame in shown[:12]) and all(frame.as_is for frame in shown[1:12])
    assert all(psnr(frame.image, image) > 24 for frame, image in zip(shown[12:], portrait_clip, strict=False))
    assert encoder.stats.face_lost_frames == 12


def test_a_face_that_is_not_seen_at_once_is_what_a_film_begins_with(portrait_clip: list[Array]) -> None:
    encoder, shown = shown_of([*[ROOM] * 5, *portrait_clip[:6]])
    assert encoder.stats.references == 1 and len(shown) == 11
    assert all(psnr(frame.image, portrait_clip[0]) > 24 for frame in shown[:6])


def test_a_film_that_fades_in_has_bytes_left_for_what_it_comes_to(portrait_clip: list[Array]) -> None:
    """The key of a chain says how fine its updates are, and a dark one is fine for few bytes."""
    film = there_and_back(portrait_clip, 75)
    fade = [exposed(image, min(1.0, 0.08 + pts / 20)) for pts, image in enumerate(film)]
    encoder, shown = shown_of(fade, lookahead=4)
    quality = [psnr(frame.image, image) for frame, image in zip(shown, fade, strict=True)]
    assert np.mean(quality[25:]) > 20 and encoder.stats.updates >= 2  # 6 dB without, and no updates
    assert encoder.stats.bytes_total * 8 / 3 < 4400


@pytest.mark.parametrize("ahead", [False, True])
def test_at_a_constant_rate_motion_that_is_chosen_together_takes_no_more_than_what_its_window_has_room_for(
    portrait_clip: list[Array], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is what frame by frame took. Over a film what counts is the rate on average."""
    frames = portrait_clip[:18]
    film = nc.Film(enumerate(frames)) if ahead else None
    encoder = nc.Encoder(4 if ahead else 16, device="cpu", threads=1, preset=13, frames_per_packet=4, film=film)
    tried: list[tuple[int, int]] = []
    trellis, length = encoder._trellis, lambda some: len(encoder._coder.encode(some))
    assert trellis is not None
    settled = trellis.settled

    def spoken_of(group: Any, *how: Any) -> Any:
        found = settled(group, *how)
        tried.append((length(group), length(found[0])))
        return found

    monkeypatch.setattr(trellis, "settled", spoken_of)
    packets = [packet for pts, image in enumerate(frames) for packet in encoder.encode(image, pts)]
    sent = [len(packet.payload) for packet in packets if isinstance(packet, Motion) and packet.frames == 4]
    assert len(sent) == len(tried) > 2 and (ahead or any(after > before for before, after in tried))
    assert sent == [after if ahead else min(before, after) for before, after in tried]


def test_a_lost_face_is_held_not_raised(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(device="cpu", threads=1, preset=13)
    encoder.encode(portrait_clip[0], 0)
    (held,) = encoder.encode(np.full((256, 256, 3), 90, np.uint8), 1)
    assert isinstance(held, Motion) and len(held.payload) <= 2 and encoder.stats.face_lost_frames == 1
    assert encoder.encode(portrait_clip[1], 2) and encoder.stats.face_lost_frames == 1


def test_the_same_frames_give_the_same_bytes(coded: Coded, portrait_clip: list[np.ndarray]) -> None:
    again = nc.Encoder(target_kbps=6, device="cpu", threads=1)
    for pts, image in enumerate(portrait_clip[:4]):
        assert [bytes(p) for p in again.encode(image, pts)] == [bytes(p) for p in coded[1][pts]]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="A frame is a uint8 RGB"):
        nc.Encoder(device="cpu").encode(image, 0)


def test_time_must_rise(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(device="cpu", threads=1)
    encoder.encode(portrait_clip[0], 5)
    with pytest.raises(ValueError, match="pts 5 does not follow 5"):
        encoder.encode(portrait_clip[1], 5)


def test_reports_from_before_the_first_frame_change_nothing(portrait_clip: list[np.ndarray]) -> None:
    """Those of a receiver that has followed another stream, say; times below zero are as good as others."""
    reports = [
        Feedback(None, need_reference=True, need_intra=True),
        *(Feedback(sequence, 200, held, need_reference=True) for sequence in (0, 255) for held in ((), (0, 7))),
    ]
    streams = []
    for given in ([], reports, [bytes(report) for report in reports]):
        encoder = nc.Encoder(device="cpu", threads=1, preset=13)
        for report in given:
            encoder.on_feedback(report)
        packets = [p for pts, image in enumerate(portrait_clip[:4], -2) for p in encoder.encode(image, pts)]
        streams.append([bytes(packet) for packet in packets])
    assert streams[0] == streams[1] == streams[2]
    receiver = nc.Decoder(device="cpu", threads=1)
    assert [frame.pts for data in streams[0] for frame in receiver.decode(data)] == [-2, -1, 0, 1]


def test_a_moving_crop_does_not_send_a_reference_for_every_frame(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(4, device="cpu", threads=1, preset=13)
    height, width = 300, 700
    for pts in range(40):  # the portrait slides across a wide picture
        scene = np.full((height, width, 3), 128, np.uint8)
        left = 10 + 10 * pts
        scene[22:278, left : left + 256] = portrait_clip[pts // 2 % len(portrait_clip)]
        encoder.encode(scene, pts)
    assert encoder.stats.face_lost_frames <= 2
    assert 1 <= encoder.stats.references <= 6


def test_a_fixed_crop_is_about_the_person_in_it(portrait_clip: list[np.ndarray]) -> None:
    """A larger face elsewhere in the picture must not be looked for inside the square."""
    scene = np.full((512, 900, 3), 100, np.uint8)
    scene[:, :512] = portrait_clip[0].repeat(2, 0).repeat(2, 1)
    scene[200:456, 600:856] = portrait_clip[0]
    encoder = nc.Encoder(4, device="cpu", threads=1, crop=(600, 200, 256))
    assert encoder.encode(scene, 0) and encoder.stats.references == 1


@pytest.mark.parametrize("square", [(9000, 0, 256), (0, 0, 20000), (0, 0, 2)])
def test_a_crop_that_no_stream_can_carry_is_refused(square: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is out of range: 8 to 8192 pixels"):
        nc.Encoder(4, device="cpu", crop=square)


def test_a_crop_that_no_decoder_shows_is_refused(portrait_clip: list[np.ndarray]) -> None:
    """A square that is far larger than the picture: decoders drop what was cut from it."""
    picture, encoder = portrait_clip[0], nc.Encoder(4, device="cpu", threads=1, crop="-300,-300,513")
    for _ in range(2):
        with pytest.raises(LimitError, match="a side of 513 pixels; of pictures of 256 x 256 .* more than 512"):
            encoder.encode(picture, 0)
    assert encoder.encode(np.pad(picture, ((0, 0), (0, 1), (0, 0))), 0)  # a frame that is refused counts for nothing
    encoder, decoder = nc.Encoder(4, device="cpu", threads=1, crop=(-100, -100, 512)), nc.Decoder(device="cpu")
    assert [frame.pts for packet in encoder.encode(picture, 0) for frame in decoder.decode(bytes(packet))] == [0]


def test_motion_keeps_its_place_when_the_square_moves(portrait_clip: list[np.ndarray]) -> None:
    """The same face seen in two squares of the source lands on the same source pixels."""
    encoder = nc.Encoder(4, device="cpu", threads=1)
    scene = np.full((300, 400, 3), 128, np.uint8)
    scene[20:276, 60:316] = portrait_clip[0]
    here, there = Square(60, 20, 256), Square(40, 10, 280)
    seen = encoder._networks.motion(crop(scene, here, 256), np.array([0, -0.1, 0.7], np.float32))
    moved = seen.placed(here, there)
    for square, estimate in ((here, seen), (there, moved)):
        place = np.array(square.center) + estimate.keypoints[:, :2] * square.side / 2
        if square is here:
            wanted = place
    assert np.allclose(place, wanted, atol=1e-3)


def test_pictures_after_the_first_are_updates_of_it(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(64, device="cpu", threads=1)
    packets = [p for pts, image in enumerate(portrait_clip[:12]) for p in encoder.encode(image, pts)]
    key = sum(len(p.payload) for p in packets if isinstance(p, ReferencePart))
    updates = [p for p in packets if isinstance(p, Update)]
    assert encoder.stats.references == 1 and encoder.stats.updates == len(updates) >= 2
    assert np.mean([len(p.payload) for p in updates]) < 0.5 * key
    assert [p.reference for p in updates] == list(range(1, len(updates) + 1))
    named = [p.reference for p in packets if isinstance(p, Motion) and p.reference is not None]
    assert set(range(1, len(updates) + 1)) <= set(named)


def test_an_update_says_where_it_was_cut(portrait_clip: list[np.ndarray]) -> None:
    encoder, decoder = nc.Encoder(200, device="cpu", threads=1, crop="none"), nc.Decoder(device="cpu", threads=1)
    for pts, image in enumerate(portrait_clip[:6]):
        if pts == 3:
            encoder._watcher._follower = CropFollower("fixed", Square(16, 8, 224))
        for packet in encoder.encode(image, pts):
            decoder.decode(bytes(packet), wanted=lambda _: False)
    crops = {key: picture.crop for key, picture in encoder._pictures.held.items()}
    assert encoder.stats.references == 1 and len(set(crops.values())) == 2
    assert all((held := decoder._pictures.get(key)) and held.crop == crop for key, crop in crops.items())


def test_without_updates_every_picture_stands_on_its_own(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(4, device="cpu", threads=1, updates=False, preset=13)
    packets = encoder.encode(portrait_clip[0], 0)
    encoder.send_reference()
    packets += encoder.encode(portrait_clip[1], 1)
    assert {p.codec for p in packets if isinstance(p, ReferencePart)} == {PICTURE}
    assert encoder.stats.references == 2 and encoder.stats.updates == 0


def test_frames_share_packets(portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateControl, "quality", QUALITIES[1])  # whatever headers take
    alone, shared = (nc.Encoder(8, device="cpu", threads=1, frames_per_packet=n, preset=13) for n in (1, 4))
    streams = []
    for encoder in (alone, shared):
        packets = [p for pts, image in enumerate(portrait_clip[:18]) for p in encoder.encode(image, pts)]
        packets += encoder.flush()
        streams.append([p for p in packets if isinstance(p, Motion)])
        decoder = nc.Decoder(device="cpu", threads=1)
        for packet in packets:
            decoder.decode(bytes(packet), wanted=lambda _: False)
        assert decoder._quantizer.state == encoder._quantizer.state
    assert [p.frames for p in streams[0]] == [1] * 18
    assert [p.frames for p in streams[1]] == [1, 4, 4, 4, 4, 1]  # intra; full ones; what was left at the end
    ends = [np.array(encoder._quantizer.state.values) for encoder in (alone, shared)]
    assert np.abs(ends[0] - ends[1]).max() < 4 * alone.pack.tables.levels[QUALITIES[1].level]  # chosen together
    assert shared.stats.keypoint_error_px < alone.stats.keypoint_error_px
    assert [p.sequence for p in streams[1]] == [0, 1, 5, 9, 13, 17]
    sizes = [sum(len(bytes(packet)) for packet in stream) for stream in streams]
    headers = [sum(len(bytes(packet)) - len(packet.payload) for packet in stream) for stream in streams]
    assert headers[1] < headers[0] - 15 and sizes[1] <= sizes[0] - 15  # a byte a frame, and nearer for it
    with pytest.raises(ValueError, match="frames_per_packet is 0"):
        nc.Encoder(2, device="cpu", frames_per_packet=0)


def test_frames_of_one_packet_have_one_quality(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the rate asks for another one with every frame: a change in the middle would begin another packet."""
    wishes = iter(100 * QUALITIES[:2])
    monkeypatch.setattr(RateControl, "quality", property(lambda rate: next(wishes)))
    encoder = nc.Encoder(8, device="cpu", threads=1, frames_per_packet=3, preset=13)
    packets = [p for pts, image in enumerate(portrait_clip[:10]) for p in encoder.encode(image, pts)]
    motion = [p for p in packets if isinstance(p, Motion)]
    assert [p.frames for p in motion] == [1, 3, 3, 3] and len({p.level for p in motion}) == 2


def test_a_packet_begun_by_an_odd_step_gets_a_quality_of_its_own(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As films of 30 frames a second in milliseconds have one in three times."""
    wishes, asked = iter(100 * QUALITIES[:2]), []
    monkeypatch.setattr(RateControl, "quality", property(lambda rate: asked.append(1) or next(wishes)))
    encoder = nc.Encoder(
        8, device="cpu", threads=1, preset=13, frames_per_packet=8, time_base=Fraction(1, 1000), frame_duration=33
    )
    motion = [p for n, image in enumerate(portrait_clip[:12]) for p in encoder.encode(image, n * 100 // 3)
              if isinstance(p, Motion)]  # fmt: skip
    motion += [p for p in encoder.flush() if isinstance(p, Motion)]
    assert [p.frames for p in motion] == [1, 2, 3, 3, 3] and len(asked) == len(motion) + 1  # one before the first frame


def test_frames_that_wait_tell_what_motion_is_coming(portrait_clip: list[np.ndarray]) -> None:
    """More for a head that moves more, and nothing once no face is to be seen."""
    expected = {}
    for name, clip in {"still": portrait_clip[:1] * 8, "moving": portrait_clip[:8]}.items():
        encoder = nc.Encoder(4, device="cpu", threads=1, lookahead=6, preset=13)
        for pts, image in enumerate([*clip, *[np.zeros_like(clip[0])] * 7]):
            encoder.encode(image, pts)
            if pts == len(clip) - 1:
                expected[name] = encoder._rate._coming
        assert encoder._rate._coming == 0
    assert expected["still"] < 0.2 * expected["moving"]


def test_no_two_seconds_of_a_film_take_a_tenth_more_than_the_target(portrait_clip: list[Array]) -> None:
    """Key, updates, motion, headers and record lengths together, at a rate where the first picture alone takes most."""
    encoder = nc.Encoder(2, device="cpu", threads=1, repeat_header=False, frames_per_packet=8, lookahead=12)
    file, until, writer = io.BytesIO(), [0], None
    for pts, image in enumerate(there_and_back(portrait_clip, 75)):
        for packet in encoder.encode(image, pts):
            if writer is None:
                writer = ContainerWriter(file, packet)  # type: ignore[arg-type]
            else:
                writer.write(packet)
        until.append(file.tell())
        if pts == 40:  # lengths of records are counted like the rest
            assert sum(count for _, count in encoder._rate._sent) == file.tell() - len(FILE_MAGIC)
    windows = np.subtract(until[50:], until[:-50]) / 500
    assert 0.9 < windows.max() <= 1.1


def test_an_end_may_be_asked_for_twice(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(6, device="cpu", threads=1, lookahead=4, preset=13)
    for pts, image in enumerate(portrait_clip[:6]):
        encoder.encode(image, pts)
    assert sum(isinstance(p, Motion) for p in encoder.flush()) >= 4
    assert encoder.flush() == [End(6)]


@pytest.mark.parametrize("tick", [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 10**9)])
def test_the_tick_of_a_clock_is_not_taken_for_a_frame_rate(portrait_clip: list[np.ndarray], tick: Fraction) -> None:
    """Who gives no frame_duration pays the headers of frames, and not of as many as there are ticks."""
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "preset": 13, "packet_overhead": 40}
    firsts = [
        [p.payload for p in encoder.encode(portrait_clip[0], 0) if isinstance(p, ReferencePart | Motion)]
        for encoder in (nc.Encoder(20, **options), nc.Encoder(20, time_base=tick, **options))
    ]
    assert firsts[0] == firsts[1] and len(firsts[0][0]) > 1000


def test_a_gap_longer_than_a_step_can_be_is_told_by_an_intra_frame(portrait_clip: list[np.ndarray]) -> None:
    """Nanoseconds, and the camera away for three of the seconds in which no face was to be seen."""
    encoder = nc.Encoder(6, device="cpu", threads=1, time_base=Fraction(1, 10**9), frame_duration=40_000_000)
    decoder, blank, shown = nc.Decoder(device="cpu", threads=1), np.full((256, 256, 3), 90, np.uint8), []
    times = [*range(0, 200_000_000, 40_000_000), *range(3_200_000_000, 3_300_000_000, 40_000_000)]
    for number, pts in enumerate(times):
        for packet in encoder.encode(portrait_clip[number] if number < 3 else blank, pts):
            shown += [frame.pts for frame in decoder.decode(bytes(packet), wanted=lambda _: False)]
    assert shown == times and encoder.stats.face_lost_frames > 3
    for wrong in (0.2, None, float("nan"), 1 << 62):
        with pytest.raises(ValueError, match="pts is"):
            encoder.encode(portrait_clip[0], wrong)  # type: ignore[arg-type]
    assert encoder.encode(portrait_clip[0], times[-1] + 40_000_000)  # none of them has left anything behind


@pytest.mark.parametrize(
    "wrong",
    [{"frame_duration": 1.5}, {"time_base": 0}, {"time_base": -1}, {"lookahead": 1.5}, {"packet_overhead": -5},
     {"frames_per_packet": 0}, {"crop": (0, 0)}, {"crop": (0.5, 0, 100)}, {"preset": 14}, {"preset": -1}, {"loss": 1},
     {"loss": -0.1}, {"frames_per_packet": 17}, {"lookahead": 17}, {"lookahead": -1}, {"frame_duration": 0},
     {"packet_overhead": 1201}, {"film": 5}, {"signing_context": "x"}, {"time_base": 1 << 40},
     {"window": 0.9}, {"window": "2"}, {"window": float("nan")}, {"full_frame": "no"}, {"gray": 1}, {"updates": None},
     {"repeat_header": 0}, {"focus": "yes"}, {"pack": 5}],
)  # fmt: skip
def test_wrong_options_are_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
        nc.Encoder(2, device="cpu", **wrong)  # type: ignore[arg-type]


def test_numbers_of_numpy_count_as_those_of_python(portrait_clip: list[np.ndarray]) -> None:
    """Two headers of 200 bytes are more than a uint8 holds."""
    given = {"packet_overhead": 200, "frame_duration": 2, "frames_per_packet": 1, "lookahead": 0}
    plain = nc.Encoder(64, device="cpu", threads=1, time_base=0.5, **given)  # type: ignore[arg-type]
    numpy = nc.Encoder(
        64, device="cpu", threads=1, time_base=np.float32(0.5),  # type: ignore[arg-type]
        **{name: np.uint8(value) for name, value in given.items()},  # type: ignore[arg-type]
    )  # fmt: skip
    first = plain.encode(portrait_clip[0], 0)
    assert len(first) > 2 and numpy.encode(portrait_clip[0], 0) == first
    assert numpy._rate.headers_kbps == plain._rate.headers_kbps > 0 and type(numpy.frame_duration) is int


def test_with_lookahead_a_picture_serves_the_frames_before_it(portrait_clip: list[np.ndarray]) -> None:
    """Motion comes four frames later, none is lost, and frames are shown from the nearer of two pictures."""
    encoder = nc.Encoder(48, device="cpu", threads=1, lookahead=4, preset=13)
    decoder = nc.Decoder(device="cpu", threads=1)
    film, shown, taken_with, early = portrait_clip[:20], [], {0: 0}, 0
    for pts, image in enumerate([*film, None]):
        packets = encoder.flush() if image is None else encoder.encode(image, pts)
        for packet in packets:
            if isinstance(packet, Update):
                taken_with[packet.reference] = pts
            for frame in decoder.decode(bytes(packet), wanted=lambda _: False):
                assert frame.state is Concealment.RECEIVED
                early += taken_with[frame.reference] > frame.pts
                shown.append(frame.pts)
        assert image is None or len(shown) == max(0, pts - 3)
    assert shown == list(range(len(film))) and len(taken_with) > 2 and early > 0
    with pytest.raises(ValueError, match="lookahead is 17; expected a whole number from 0 to 16"):
        nc.Encoder(lookahead=17, device="cpu")


def test_a_film_does_not_begin_with_a_blink(portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture is the middle one of those that wait, but not of a frame whose eyes are hardly open."""

    def first_picture(shut: int | None) -> int:
        looked = iter(range(6))
        monkeypatch.setattr(encoder_module, "openings", lambda *_: [0.1 if next(looked) == shut else 0.3, 0.3])
        encoder = nc.Encoder(4, device="cpu", threads=1, lookahead=5, preset=13)
        for pts, image in enumerate(portrait_clip[:6]):
            encoder.encode(image, pts)
        return round(encoder._pictures.current.of / float(encoder.time_base))

    middle = first_picture(shut=None)
    assert first_picture(shut=middle) != middle


def test_frames_that_waited_survive_a_picture_that_takes_their_place(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture with every frame, eight held; every frame names the oldest and waits to share a packet."""

    def oldest(self: PictureSender, shot: object, then: int, last: int, *, as_is: bool) -> int:
        return next(iter(self.held))

    monkeypatch.setattr(PictureSender, "best_for", oldest)
    monkeypatch.setattr(RateControl, "affords_picture", lambda self, drift, waiting=False: True)
    encoder = nc.Encoder(500, device="cpu", threads=1, frames_per_packet=16, lookahead=2, preset=13)
    decoder = nc.Decoder(device="cpu", threads=1)
    packets = [p for pts, image in enumerate(portrait_clip) for p in encoder.encode(image, pts)]
    shown = [f for p in [*packets, *encoder.flush()] for f in decoder.decode(bytes(p), wanted=lambda _: False)]
    assert encoder.stats.updates > 12 and [f.pts for f in shown] == list(range(len(portrait_clip)))
    assert {f.state for f in shown} == {Concealment.RECEIVED}


def test_no_frame_waits_until_its_own_picture_is_gone(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture with every frame, eight held, and twelve frames of lookahead."""
    monkeypatch.setattr(RateControl, "affords_picture", lambda self, drift, waiting=False: True)
    encoder = nc.Encoder(500, device="cpu", threads=1, lookahead=12, preset=13)
    for pts, image in enumerate([*portrait_clip, *portrait_clip[::-1]]):
        encoder.encode(image, pts)
    encoder.flush()
    assert encoder.stats.as_is_frames > 0.75 * encoder.stats.updates > 18


def test_what_shows_its_own_picture_needs_no_motion(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture with every frame: nothing else is coded, and a turned head still moves as the camera saw it."""
    monkeypatch.setattr(RateControl, "affords_picture", lambda self, drift, waiting=False: True)
    encoder, decoder = nc.Encoder(500, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    decoder.view = nc.View(yaw=10)
    packets = [[*encoder.encode(image, pts)] for pts, image in enumerate(portrait_clip)]
    shown = [f for each in packets for p in each for f in decoder.decode(bytes(p))]
    as_is = [p.as_is for each in packets for p in each if isinstance(p, Motion)]
    assert sum(as_is) > 0.8 * len(portrait_clip) and [f.pts for f in shown] == list(range(len(as_is)))
    assert not any(p.payload for each in packets for p in each if isinstance(p, Motion) and p.as_is)
    looked = [Inference.estimate(decoder._networks, image).motion for image in portrait_clip]
    coded, seen, true = (
        np.array([(m.yaw, *m.translation[:2]) for m, still in zip(motions, as_is, strict=True) if still])
        for motions in ([f.motion for f in shown], [f.shown for f in shown], looked)
    )
    assert np.ptp(true[:, 1:], 0).max() > 0.02 > 5 * np.ptp(coded[:, 1:], 0).max()
    assert np.abs(seen[:, 0] - 10 - true[:, 0]).max() < 2
    assert np.abs(np.ptp(seen[:, 1:], 0) - np.ptp(true[:, 1:], 0)).max() < 0.01


def test_a_head_shown_as_it_is_turns_smoothly_to_a_view_and_back(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateControl, "affords_picture", lambda self, drift, waiting=False: True)
    encoder, decoder = nc.Encoder(500, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    yaws, still = [], []
    for pts, image in enumerate([*portrait_clip, *portrait_clip[::-1]]):
        if pts in (6, 16):
            decoder.view = nc.View(yaw=12 * (pts == 6))
        shown = [f for packet in encoder.encode(image, pts) for f in decoder.decode(bytes(packet))]
        for frame in shown:  # as it is, it is turned by nothing
            yaws.append(0 if frame.as_is else frame.shown.yaw - Inference.estimate(decoder._networks, image).motion.yaw)
        still += [f.as_is for f in shown]
    assert all(still[1:6]) and not any(still[6:30]) and all(still[-3:]), "a picture again once the head is back"
    assert np.abs(np.diff(yaws[5:])).max() < 0.6 * 12 and np.abs(np.array(yaws[14:16]) - 12).max() < 2.5


def test_motion_goes_on_from_a_picture_that_was_shown_as_it_is(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head crosses the picture while every frame has one of its own, which no motion tells of."""
    frames, every = 12, [True]
    monkeypatch.setattr(RateControl, "affords_picture", lambda self, drift, waiting=False: every[0])
    encoder = nc.Encoder(500, device="cpu", threads=1, preset=13, crop="none")
    film = [np.roll(portrait_clip[0], 3 * i, axis=1) for i in range(frames + 4)]
    sent = []
    for pts, image in enumerate(film):
        every[0] = pts < frames
        sent.append([bytes(packet) for packet in encoder.encode(image, pts)])
    moved = Inference.estimate(encoder._networks, film[frames]).motion.translation[0]
    step = 3 / 128

    def shown(lost: int | None) -> list[float]:
        decoder = nc.Decoder(device="cpu", threads=1)
        found = [f for i, packets in enumerate(sent) if i != lost for p in packets for f in decoder.decode(p)]
        return [*(float(f.shown.translation[0]) for f in found), float(decoder.conceal(99).shown.translation[0])]

    whole = shown(None)
    assert whole[frames - 1] < moved - 6 * step, "what is shown as it is carries no motion"
    assert np.abs(np.diff(whole[frames:]) - step).max() < 0.6 * step, "then it moves as the head does, and is concealed"
    guessed = shown(frames - 1)[frames - 1 :]  # nothing can be followed until an intra frame
    assert len(guessed) == 5 and np.abs(np.array(guessed) - moved).max() < 3 * step


def test_nobody_is_turned_where_there_is_no_face(portrait_clip: list[np.ndarray]) -> None:
    sender = nc.Encoder(64, device="cpu", threads=1)
    straight, turned = nc.Decoder(device="cpu", threads=1), nc.Decoder(device="cpu", threads=1, view=nc.View(yaw=15))
    noise = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    film = [*portrait_clip[:2], *[np.roll(noise, 9 * i, 1) for i in range(8)]]
    sent = [bytes(packet) for pts, image in enumerate(film) for packet in sender.encode(image, pts)]
    a, b = ([f for data in sent for f in decoder.decode(data)] for decoder in (straight, turned))
    assert all(f.as_is for f in b[-3:]) and not b[1].as_is
    assert psnr(a[1].image, b[1].image) < 32 and np.array_equal(a[-1].image, b[-1].image)


def test_a_frame_is_shown_from_the_picture_that_looks_like_it(portrait_clip: list[np.ndarray]) -> None:
    """The same head before two walls: keypoints cannot tell the pictures apart."""
    encoder, other = nc.Encoder(64, device="cpu", threads=1, crop="none"), portrait_clip[0].copy()
    other[:60] = other[60:120]
    named = []
    for pts, image in enumerate((portrait_clip[0], other, portrait_clip[0])):
        if pts == 1:
            encoder.send_reference()
        named += [p.reference for p in encoder.encode(image, pts) if isinstance(p, Motion)]
    assert encoder.stats.references == 2 and named == [0, 1, 0]
    pictures, shot = encoder._pictures, encoder._watcher._cuts._before
    assert shot is not None and pictures._nearest(shot, as_is=False)[0] == 0
    pictures.held[0].lost = True  # a receiver says
    assert pictures._nearest(shot, as_is=False)[0] == 1


def test_a_lost_face_is_followed_in_pixels_and_comes_back(portrait_clip: list[np.ndarray]) -> None:
    """A hand, a wall, a sheet of paper: pictures of it go out as fast as the rate allows and are shown as they are."""
    sender, receiver = nc.Encoder(64, device="cpu", threads=1), nc.Decoder(device="cpu", threads=1)
    noise = np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    film = [*portrait_clip[:3], *[np.roll(noise, 3 * i, 1) for i in range(12)], *portrait_clip[3:6]]
    shown = [f for t, x in enumerate(film) for p in sender.encode(x, t) for f in receiver.decode(bytes(p))]
    assert [f.pts for f in shown] == list(range(len(film)))
    assert sender.stats.face_lost_frames == 12
    wall = [psnr(a, b.image) for a, b in zip(film[3:15], shown[3:15], strict=True)]
    assert max(wall[4:]) > psnr(film[14], film[2]) + 3  # it is seen, where motion alone would freeze the face
    assert psnr(film[-1], shown[-1].image) > 20  # and the face is back
    assert receiver.stats.as_is_frames >= 12


def test_a_renderer_that_does_worse_than_the_picture_is_passed_over(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = nc.Encoder(4, device="cpu", threads=1, preset=13)
    grey = np.full((256, 256, 3), 128, np.uint8)
    monkeypatch.setattr(encoder._networks, "render", lambda *_: grey)
    flags = []
    for pts in range(30):
        packets = encoder.encode(portrait_clip[pts % 4], pts * 5)  # at five pictures a second a check at every twelfth
        flags += [p.as_is for p in packets if isinstance(p, Motion)]
    assert not flags[0] and flags[-1] and encoder.stats.as_is_frames >= 10
    monkeypatch.setattr(encoder, "_drawn", lambda shot, *_: shot.tile)  # from now on it does better
    moved = []
    for pts in range(30, 90):
        packets = encoder.encode(portrait_clip[pts % 4 + 8], pts * 5)
        moved += [p for p in packets if isinstance(p, Motion) and not p.as_is]
    assert moved and moved[0].intra and [p.sequence for p in moved] == list(range(moved[0].sequence, 90))


def receiver_of(
    encoder: nc.Encoder, clip: list[np.ndarray], lose: object, delay: int = 0
) -> tuple[nc.Decoder, list[nc.DecodedFrame]]:
    """A call with feedback after every frame, ``delay`` frames old; ``lose(pts, packet)``: what does not arrive."""
    decoder, frames, back = nc.Decoder(device="cpu", threads=1), [], []
    for pts, image in enumerate(clip):
        for packet in encoder.encode(image, pts):
            if not lose(pts, packet):  # type: ignore[operator]
                frames += decoder.decode(bytes(packet), wanted=lambda _: False)
        back.append(bytes(decoder.feedback(0.0)))
        if pts >= delay:
            encoder.on_feedback(back[pts - delay])
    return decoder, frames


@pytest.mark.parametrize("delay", [0, 2])
def test_a_lost_update_is_sent_again(
    portrait_clip: list[np.ndarray], delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateControl, "wants_finer", lambda self: False)  # one chain, so that a second is a failure
    encoder, lost = nc.Encoder(200, device="cpu", threads=1, preset=13), []

    def lose(pts: int, packet: object) -> bool:
        if isinstance(packet, Update) and pts > 2 and len(lost) < 2:
            lost.append((packet.reference, packet.index))
            return True
        return False

    decoder, frames = receiver_of(encoder, portrait_clip[:12], lose, delay)
    assert len(lost) == 2 and encoder.stats.references == 1  # the chain went on
    assert not any(picture.lost for picture in encoder._pictures.held.values())  # as has been told
    assert not decoder.wants_reference and decoder.stats.updates == encoder.stats.updates
    assert [f.pts for f in frames] == list(range(12)) and frames[-1].state is Concealment.RECEIVED


def test_an_update_that_no_packets_can_carry_gives_way_to_a_key(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralcodec.sender.UPDATE_MAX", 1)
    encoder = nc.Encoder(200, device="cpu", threads=1, preset=13)
    decoder, frames = receiver_of(encoder, portrait_clip[:8], lambda pts, packet: isinstance(packet, Update))
    assert encoder.stats.references == decoder.stats.references > 1 and encoder.stats.updates == 0
    assert [f.pts for f in frames] == list(range(8)) and frames[-1].reference == encoder._pictures.active > 0


def test_a_lost_key_begins_another_chain(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(200, device="cpu", threads=1, preset=13)
    decoder, frames = receiver_of(
        encoder, portrait_clip[:6], lambda pts, packet: pts == 0 and isinstance(packet, ReferencePart)
    )
    assert encoder.stats.references == 2 and not decoder.wants_reference
    assert frames[-1].state is Concealment.RECEIVED and frames[-1].pts == 5


def test_pictures_are_sent_twice_where_packets_are_lost(portrait_clip: list[np.ndarray]) -> None:
    encoder = nc.Encoder(200, device="cpu", threads=1, loss=0.05)
    sent = [encoder.encode(image, pts) for pts, image in enumerate(portrait_clip[:8])]
    assert not any(isinstance(p, Parity) for p in sent[0]) and any(isinstance(p, Parity) for p in sent[1])
    first = [{p for p in packets if isinstance(p, Update)} for packets in sent]
    for number in range(1, 7):
        assert first[number] - first[number - 1] <= first[number + 1]
    assert encoder.stats.updates >= 2


def test_signatures_are_part_of_the_rate(portrait_clip: list[np.ndarray]) -> None:
    pytest.importorskip("cryptography")
    plain = nc.Encoder(4, device="cpu", threads=1, preset=13)
    signed = nc.Encoder(4, device="cpu", threads=1, preset=13, signing_key=bytes(32))
    for encoder in (plain, signed):
        for pts, image in enumerate(portrait_clip):
            for packet in encoder.encode(image, 4 * pts):
                assert not isinstance(packet, Update) or packet.signed == (encoder is signed)
    pictures = signed.stats.bytes_reference - SIGNATURE_BYTES * (signed.stats.references + signed.stats.updates)
    assert signed.stats.updates > 0 and pictures < plain.stats.bytes_reference
    assert signed.stats.bytes_total <= 4 * 125 * 4 * len(portrait_clip) / 25


@pytest.mark.skipif(not nc.load_pack().scene, reason="the bundled pack has no scene")
def test_the_scene_is_looked_for_unless_the_picture_is_of_this_very_frame(portrait_clip: list[np.ndarray]) -> None:
    """Frame numbers come again after 256 frames; a picture of then is not one of now."""
    sender = nc.Encoder(2, device="cpu", threads=1, crop="none")
    sender.encode(portrait_clip[0], 0)
    assert sender._quantizer.last is not None and not sender._quantizer.last.scene.any()
    sender._coded = 256  # so the next has the number that the picture's own frame had
    packets = sender.encode(np.roll(portrait_clip[0], -6, axis=1), 1)
    assert [type(packet) for packet in packets] == [Motion]
    assert np.median(sender._quantizer.last.scene[:, 0]) > 0.4 * 6 / 128


def test_a_head_at_rest_brings_a_finer_key_in_parts_while_the_old_picture_is_in_use(
    portrait_clip: list[np.ndarray],
) -> None:
    """The picture gets finer, no frame's packets take more than a tenth of a second, none is lost."""
    kbps, encoder, decoder = 40, nc.Encoder(40, device="cpu", threads=1), nc.Decoder(device="cpu", threads=1)
    sizes, errors, parts = [], [], []
    for pts in range(250):
        packets = encoder.encode(portrait_clip[0], pts)
        parts.append(sum(len(bytes(packet)) for packet in packets if isinstance(packet, ReferencePart)))
        sizes.append(sum(len(bytes(packet)) for packet in packets))
        for packet in packets:
            for frame in decoder.decode(bytes(packet), wanted=lambda _: False):
                assert frame.state is Concealment.RECEIVED and frame.pts == pts
        errors.append(encoder._pictures.current.error)
        if encoder.stats.references == 2:
            break
    coming = [pts for pts, count in enumerate(parts) if count and pts]
    assert encoder.stats.references == 2 and len(coming) > 2 and not decoder.wants_reference
    assert max(parts[1:]) <= 2 * kbps * 125 * 0.1 and max(sizes[1:]) <= 2 * (kbps * 125 * 0.1 + PART_HEADER)
    assert errors[-1] < errors[coming[0]] and decoder.stats.references == 2


def test_an_update_too_large_for_its_window_comes_in_parts_and_is_named_after_the_last(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateControl, "room", property(lambda self: 100.0))
    monkeypatch.setattr(RateControl, "next_bytes", 50.0)
    encoder, decoder = nc.Encoder(32, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    frames_with: dict[int, list[int]] = {}
    for pts, image in enumerate(portrait_clip * 2):
        for packet in encoder.encode(image, pts):
            frames = decoder.decode(bytes(packet), wanted=lambda _: False)
            if isinstance(packet, Update):
                assert len(bytes(packet)) <= 100
                frames_with.setdefault(packet.reference, []).append(pts)
            elif isinstance(packet, Motion):
                assert [f.pts for f in frames] == [pts] and frames[0].state is Concealment.RECEIVED
                named = packet.reference
                assert not named or frames_with[named][-1] <= pts and named in encoder._pictures.held
    late = [pts for pts in frames_with.values() if pts[-1] > pts[0]]
    assert late and decoder.stats.updates >= len(frames_with) - 1 and not decoder.wants_reference


def test_headers_of_the_transport_are_part_of_the_rate(portrait_clip: list[np.ndarray]) -> None:
    wire = {}
    for overhead in (0, 28):
        encoder = nc.Encoder(7, device="cpu", threads=1, preset=13, packet_overhead=overhead)
        sizes = [len(bytes(packet)) for i, image in enumerate(portrait_clip) for packet in encoder.encode(image, i)]
        wire[overhead] = sum(sizes) + 28 * len(portrait_clip)
        assert encoder.target_kbps == 7
    assert wire[28] < wire[0]
    encoder.target_kbps = 1  # less than the headers alone: the least there is
    assert encoder.target_kbps == 1
    with pytest.raises(ValueError, match="target_kbps is 0.1"):
        encoder.target_kbps = 0.1


@pytest.mark.parametrize(
    ("kbps", "options", "fits"),
    [(8, {}, "8.00; .* frames_per_packet=2"), (8, {"time_base": Fraction(1, 1000)}, "8.00; .* frames_per_packet=2"),
     (0.9, {"frames_per_packet": 4}, "2.00; raise it."),
     (2, {"time_base": Fraction(1, 1000), "frame_duration": 20}, "16.00; .* frames_per_packet=11")],
)  # fmt: skip
def test_headers_that_leave_nothing_of_the_rate_are_refused(kbps: float, options: dict[str, Any], fits: str) -> None:
    with pytest.raises(ValueError, match=f"target_kbps is {kbps}, of which headers alone .* take {fits}"):
        nc.Encoder(kbps, device="cpu", packet_overhead=40, **options)


def test_headers_that_leave_little_are_none_of_the_encoders_business() -> None:
    for kbps, share in ((8.1, 1), (2.5, 4)):
        nc.Encoder(kbps, device="cpu", packet_overhead=40, frames_per_packet=share)


def test_lids_are_sent_as_closed_as_they_are_to_be_seen(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where eyes are half closed to the motion network, the receiver's keypoints are shut."""
    found = Inference.motion

    def half_closed(self: Inference, image: Array, box: Array) -> MotionEstimate:
        seen = found(self, image, box)
        delta = seen.motion.delta.copy()
        if closing:
            for _, _, upper, lower, _ in EYES:
                gap = (seen.canonical + delta)[lower, 1] - (seen.canonical + delta)[upper, 1]
                delta[upper, 1] += 0.55 * gap
        return replace(seen, motion=replace(seen.motion, delta=delta))

    monkeypatch.setattr(Inference, "motion", half_closed)
    sender, receiver = nc.Encoder(8, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    gaps = []
    for pts in range(12):
        closing = 6 <= pts
        for packet in sender.encode(portrait_clip[0], pts):
            for frame in receiver.decode(bytes(packet), wanted=lambda _: False):
                held = receiver._pictures.get(frame.reference)
                assert held is not None
                points = held.features.canonical + frame.motion.delta
                gaps.append(np.mean([points[lower, 1] - points[upper, 1] for _, _, upper, lower, _ in EYES]))
    assert len(gaps) == 12 and gaps[5] > 0.02
    assert abs(np.mean(gaps[8:])) < 0.15 * gaps[5]  # sent as found they would be open by 0.45 of it


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("target_kbps", None, "target_kbps is None"),
        ("target_kbps", "4", "target_kbps is '4'"),
        ("loss", "x", "loss is 'x'"),
        ("time_base", "1/25", "time_base is '1/25'"),
        ("time_base", 1e-10, "fraction of whole numbers"),
        ("time_base", 12.3456789, "fraction of whole numbers"),
        ("crop", None, "crop is None"),
        ("crop", 5, "crop is 5"),
    ],
)
def test_arguments_of_a_wrong_kind_are_value_errors(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nc.Encoder(**{name: value})


@pytest.mark.parametrize("data", [None, "a packet", 5])
def test_packets_of_a_wrong_kind_are_value_errors(data: Any) -> None:
    with pytest.raises(ValueError, match="A packet is bytes"):
        nc.Decoder().decode(data)


def test_pictures_that_no_header_can_tell_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8192 pixels"):
        nc.Encoder().encode(np.zeros((16, 9000, 3), np.uint8), 0)


def finer_once(monkeypatch: pytest.MonkeyPatch, at: int, part_bytes: int) -> None:
    """A finer key is wanted with the picture sender's ``at``-th frame and no other, in parts of so many bytes."""
    asked = iter(range(1, 10_000))
    monkeypatch.setattr(RateControl, "wants_finer", lambda self: next(asked) == at)
    monkeypatch.setattr(RateControl, "part_bytes", part_bytes)


@pytest.mark.parametrize("another", [False, True])
def test_a_finer_key_of_somebody_who_has_left_is_not_shown(
    portrait_clip: list[Array], another: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody or somebody else is to be seen when its last part has gone out."""
    finer_once(monkeypatch, at=3, part_bytes=120)
    sender, receiver = nc.Encoder(32, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", steady=False)
    after = somebody_else(portrait_clip[0]) if another else ROOM
    shown: list[nc.DecodedFrame] = []
    for pts in range(28):
        for packet in sender.encode(portrait_clip[0] if pts < 6 else after, pts):
            shown += receiver.decode(bytes(packet))
        if pts == 5:
            coming = sender._pictures._coming
    assert coming is not None and coming.id not in {frame.reference for frame in shown}
    seen = [psnr(after, frame.image) > 18 for frame in shown]
    assert seen[-1] and seen == sorted(seen)  # once the other is shown it stays so


def test_parity_of_a_finer_key_follows_its_last_part(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver never has a key that the sender does not go on from."""
    finer_once(monkeypatch, at=3, part_bytes=120)
    for name in ("purse", "room"):
        monkeypatch.setattr(RateControl, name, 300.0)  # two parts a frame
    sender, receiver = nc.Encoder(8, device="cpu", threads=1, loss=0.2), nc.Decoder(device="cpu", threads=1)
    parts: dict[type, list[int]] = {ReferencePart: [], Parity: []}
    for pts in range(12):
        for packet in sender.encode(portrait_clip[0], pts):
            receiver.decode(bytes(packet), wanted=lambda _: False)
            if isinstance(packet, ReferencePart | Parity) and packet.reference:
                parts[type(packet)].append(pts)
        assert set(receiver._pictures.ids) <= set(sender._pictures.held)
    assert len(parts[Parity]) == 2 and len(set(parts[ReferencePart])) > 1
    assert min(parts[Parity]) > max(parts[ReferencePart])


def test_with_lookahead_the_caller_may_use_its_array_again(portrait_clip: list[Array]) -> None:
    """As a camera does that has one buffer; surroundings are cut out of a frame that has waited."""
    streams = []
    for reused in (False, True):
        encoder = nc.Encoder(8, device="cpu", threads=1, lookahead=3, full_frame=True, preset=13)
        buffer, packets = np.empty((300, 400, 3), np.uint8), []
        for pts, image in enumerate(portrait_clip[:5]):
            buffer = buffer if reused else buffer.copy()
            buffer[:] = 30 + 40 * pts
            buffer[20:276, 60:316] = image
            packets += encoder.encode(buffer, pts)
        streams.append([bytes(packet) for packet in packets + encoder.flush()])
    assert streams[0] == streams[1]


def test_another_size_brings_its_surroundings_at_once(portrait_clip: list[Array]) -> None:
    encoder, decoder = nc.Encoder(16, device="cpu", threads=1, full_frame=True, preset=13), nc.Decoder(device="cpu")
    sizes = [(300, 400)] * 3 + [(400, 300)] * 3
    shown = []
    for pts, (height, width) in enumerate(sizes):
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[20:276, 20:276] = portrait_clip[pts]
        shown += [f.image.shape[:2] for p in encoder.encode(picture, pts) for f in decoder.decode(bytes(p))]
    assert shown == sizes


def test_checks_do_not_wait_for_a_time_above_zero(portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(encoder_module, "CHECK_FRAMES", 3)
    for start in (0, -1000, 10**6):
        encoder, checked = nc.Encoder(4, device="cpu", threads=1, preset=13), []
        for pts, image in enumerate(portrait_clip[:8]):
            encoder.encode(image, start + pts)
            checked.append(encoder._checked)
        assert checked == [0, 0, 0, 4, 4, 4, 7, 7]


@pytest.mark.parametrize("first", [np.uint8(200), np.int16(20_000), np.int32(1_500_000_000)])
def test_times_may_be_whole_numbers_of_numpy(portrait_clip: list[Array], first: Any) -> None:
    streams = []
    for kind in (int, type(first)):
        encoder = nc.Encoder(4, device="cpu", threads=1, preset=13)
        packets = [p for i in range(3) for p in encoder.encode(portrait_clip[i], kind(int(first) + i))]
        streams.append([bytes(packet) for packet in packets])
    assert streams[0] == streams[1]


@pytest.mark.parametrize("reports", [True, False])
def test_a_picture_shown_as_it_is_is_named_again(
    portrait_clip: list[Array], reports: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packet that named it is lost, nobody is to be seen, so that no intra frame comes, and no other picture."""
    due, rate = [True], 8  # frames a second
    monkeypatch.setattr(RateControl, "affords_picture", lambda self, drift, waiting=False: due[0])
    monkeypatch.setattr(RateControl, "wants_finer", lambda self: False)
    sender = nc.Encoder(64, device="cpu", threads=1, preset=13, time_base=Fraction(1, rate))
    receiver, names, shown, lost = nc.Decoder(device="cpu", threads=1), set(), {}, 0
    for pts in range(40):
        packets = sender.encode(portrait_clip[0] if pts < 2 else ROOM, pts)
        names.add(round(rate * sender._named_at))
        if not lost and sender._pictures.current.estimate is None:
            assert isinstance(packets[-1], Motion) and packets[-1].as_is
            lost, due[0] = pts, False
            del packets[-1]
        for packet in packets:
            shown |= {f.pts: f.reference for f in receiver.decode(bytes(packet), wanted=lambda _: False)}
        if reports and receiver.wants_feedback(pts / rate):
            sender.on_feedback(bytes(receiver.feedback()))
    pause = math.ceil(OVERDUE * rate) if reports else 2 * rate
    assert set(np.diff(sorted(pts for pts in names if pts >= lost))) == {pause}
    assert shown[lost + pause - 1] != shown[lost + pause] == sender._pictures.active == shown[39]


def cuts_of(encoder: nc.Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames with which it finds that another shot begins, as it goes on."""
    found: list[int] = []
    cut = encoder._pictures.cut
    monkeypatch.setattr(
        encoder._pictures, "cut", lambda at, **how: (found.append(round(at / encoder.time_base)), cut(at, **how))
    )
    return found


@pytest.mark.parametrize("lookahead", [0, 5])
@pytest.mark.parametrize("between", [0, 4])
def test_nobodys_motion_drives_the_face_of_another_shot(
    portrait_clip: list[Array], lookahead: int, between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a cut on frames are shown as they are until a picture of the new shot is there. between: frames in which one
    shot turns into the other and no face is found."""
    monkeypatch.setattr(RateControl, "room", 150.0)  # so that the update with that picture comes in parts
    encoder = nc.Encoder(8, device="cpu", threads=1, lookahead=lookahead, preset=13)
    decoder, cuts, begins = nc.Decoder(device="cpu", threads=1), cuts_of(encoder, monkeypatch), 8 + between
    watcher, here, there = encoder._watcher, portrait_clip[7], somebody_else(portrait_clip[8])
    look = watcher._look
    monkeypatch.setattr(watcher, "_look", lambda *a: None if 8 <= (encoder._given or 0) < begins else look(*a))
    mixed = [np.uint8(here + (there - here.astype(float)) * n / (between + 1)) for n in range(1, between + 1)]
    film = [*portrait_clip[:8], *mixed, *map(somebody_else, portrait_clip[8:])]
    taken: dict[int, int] = {}
    shown: list[tuple[int, bool]] = []  # time of its picture, and whether that is shown as it is
    for pts, image in enumerate([*film, None]):
        packets = encoder.flush() if image is None else encoder.encode(image, pts)
        taken |= {key: round(held.of / encoder.time_base) for key, held in encoder._pictures.held.items()}
        for packet in packets:
            for frame in decoder.decode(bytes(packet), wanted=lambda _: False):
                assert isinstance(packet, Motion) and frame.pts == len(shown)
                assert frame.state is Concealment.RECEIVED
                shown.append((taken[frame.reference], packet.as_is))
        if (shot := encoder._watcher._cuts._before) and shot.estimate:  # nor is it told how far away it is
            assert all((taken[key] >= begins) == (pts >= begins) for key in encoder._pictures._distances(shot))
    assert cuts == [begins] and len(shown) == len(film)
    assert all(of < 8 and not as_is for of, as_is in shown[:8])
    first = next(number for number, (of, _) in enumerate(shown) if of >= begins)
    assert all(of < begins and as_is for of, as_is in shown[8:first]) and begins < first < len(film)
    assert all(of >= begins and not as_is for of, as_is in shown[first:])


@pytest.mark.parametrize("ahead", [False, True])
def test_a_shot_begins_with_an_update_in_a_call_and_with_a_key_in_a_film(
    portrait_clip: list[Array], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has been planned for, and shows nothing of the shot before. An update comes in parts, and sooner."""
    monkeypatch.setattr(FilmRate, "_best_key", lambda *_: 300)  # as coarse as the first of a call
    frames = [*portrait_clip[:8], *map(somebody_else, portrait_clip[8:16])]
    film = nc.Film(enumerate(frames)) if ahead else None
    encoder = nc.Encoder(8, device="cpu", threads=1, preset=13, repeat_header=False, film=film)
    cuts, keys = cuts_of(encoder, monkeypatch), list[int]()
    for pts, image in enumerate(frames):
        packets = encoder.encode(image, pts)
        keys += [pts] * any(isinstance(packet, ReferencePart) for packet in packets)
    assert cuts == [8] and keys == ([0, 8] if ahead else [0]) and encoder.stats.references == len(keys)
    assert ahead or encoder.stats.updates


def with_flashlights(clip: list[Array]) -> list[Array]:
    """Two of them; the first fades."""
    frames = list(clip)
    for number, more in ((6, 80), (7, 45), (11, 80)):
        frames[number] = np.minimum(frames[number].astype(int) + more, 255).astype(np.uint8)
    return frames


def test_a_flashlight_in_a_call_costs_no_picture_and_shows_none(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks like a cut, after which a picture would go out at once; frames are drawn again as soon as it is over."""
    monkeypatch.setattr(RateControl, "affords_picture", lambda *a, **how: False)
    encoder = nc.Encoder(8, device="cpu", threads=1, preset=13)
    cuts, frames = cuts_of(encoder, monkeypatch), with_flashlights(portrait_clip[:16])
    as_is = []
    for pts, image in enumerate(frames):
        as_is += [p.as_is for p in encoder.encode(image, pts) if isinstance(p, Motion)]
    assert cuts and set(cuts) <= {6, 7, 11} and encoder.stats.references == 1 and not encoder.stats.updates
    assert as_is == [pts in (6, 7, 11) for pts in range(16)] and not encoder._pictures._cuts


def test_a_flashlight_in_a_film_costs_no_picture(portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    frames = with_flashlights(portrait_clip[:16])
    encoder = nc.Encoder(4, device="cpu", threads=1, preset=13, film=nc.Film(enumerate(frames)))
    cuts = cuts_of(encoder, monkeypatch)
    for pts, image in enumerate(frames):
        encoder.encode(image, pts)
    assert not cuts and encoder.stats.references == 1


@pytest.mark.parametrize("ahead", [False, True])
def test_hands_that_wave_are_no_cut(
    portrait_clip: list[Array], ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They change as much, but not all there is."""
    film = [image.copy() for image in portrait_clip[:12]]
    for image in film[4:8]:
        image[180:] = 255 - image[180:]
    encoder = nc.Encoder(8, device="cpu", threads=1, preset=13, film=nc.Film(enumerate(film)) if ahead else None)
    cuts = cuts_of(encoder, monkeypatch)
    as_is = [p.as_is for i, image in enumerate(film) for p in encoder.encode(image, i) if isinstance(p, Motion)]
    assert squared_error(film[4], film[3]) > 2 * JUMP**2
    assert len(as_is) == 12 and not any(as_is) and not cuts and not encoder.stats.face_lost_frames


def test_a_lively_head_is_no_cut_nor_is_a_hand_before_the_face(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, changes = nc.Encoder(8, device="cpu", threads=1, preset=13, crop="none"), []
    cuts, film = cuts_of(encoder, monkeypatch), [np.roll(portrait_clip[0], 10 * (i // 2 % 2), axis=1) for i in range(8)]
    for pts, image in enumerate([*film, ROOM, ROOM, film[0], film[0]]):
        encoder.encode(image, pts)
        changes.append(squared_error(image, film[max(0, pts - 1)]) if pts < len(film) else 0.0)
    assert sum(change > JUMP**2 for change in changes) == 3 and not cuts
    assert encoder.stats.face_lost_frames == 2
    encoder.encode(somebody_else(film[0]), 12)
    assert cuts == [12]


@pytest.mark.parametrize("share", [1, 4])
def test_frames_that_wait_are_not_put_into_new_surroundings(portrait_clip: list[Array], share: int) -> None:
    """The head is elsewhere of a sudden, with all of the picture sent to paste it into."""
    encoder = nc.Encoder(
        16, device="cpu", threads=1, lookahead=3, full_frame=True, preset=13, frames_per_packet=share
    )
    film, coded = [], []  # with the first of the frames in which it is elsewhere its square has yet to be found
    for pts, image in enumerate(portrait_clip[:10]):
        film.append(np.full((300, 700, 3), 90, np.uint8))
        left = 20 if pts < 6 else 420
        film[-1][20:276, left : left + 256] = image
        coded += encoder.encode(film[-1], pts)
    coded += encoder.flush()
    begins = [n for n, p in enumerate(coded) if isinstance(p, ReferencePart) and p.codec == BACKDROP and not p.index]
    assert [frames_in(coded[:begin]) for begin in begins] == [0, 7] and frames_in(coded) == len(film)


def frames_in(packets: list[Any]) -> int:
    return sum(packet.frames for packet in packets if isinstance(packet, Motion))


def test_nor_are_those_of_the_shot_before(portrait_clip: list[Array]) -> None:
    frames = [*portrait_clip[:6], *map(somebody_else, portrait_clip[6:10])]
    wide = [np.pad(image, ((20, 20), (90, 90), (0, 0)), constant_values=90) for image in frames]
    encoder = nc.Encoder(
        16, device="cpu", threads=1, lookahead=3, full_frame=True, preset=13, frames_per_packet=4,
        film=nc.Film(enumerate(wide)),
    )  # fmt: skip
    coded = [packet for pts, image in enumerate(wide) for packet in encoder.encode(image, pts)] + encoder.flush()
    begins = [n for n, p in enumerate(coded) if isinstance(p, ReferencePart) and p.codec == BACKDROP and not p.index]
    assert [frames_in(coded[:begin]) for begin in begins] == [0, 6] and frames_in(coded) == len(wide)


def test_frames_without_a_face_are_shown_from_their_picture_however_many_follow(portrait_clip: list[Array]) -> None:
    encoder, decoder = nc.Encoder(300, device="cpu", threads=1, preset=13, lookahead=12), nc.Decoder(device="cpu")
    frames = [*portrait_clip[:4], *[ROOM] * 4, *portrait_clip[4:]]
    packets = [packet for pts, image in enumerate(frames) for packet in encoder.encode(image, pts)]
    shown = [frame for packet in [*packets, *encoder.flush()] for frame in decoder.decode(bytes(packet))]
    assert len(shown) == len(frames) and encoder.stats.updates >= 16
    assert all(psnr(frame.image, ROOM) > 28 for frame in shown[6:8])  # from the first picture of none on


def test_the_end_counts_the_frames_in_the_stream(portrait_clip: list[Array]) -> None:
    """Of those before the first face a call sends the latest only."""
    encoder = nc.Encoder(4, device="cpu", threads=1, preset=13)
    packets = [p for pts in range(60) for p in encoder.encode(ROOM if pts < 50 else portrait_clip[pts - 50], pts)]
    end = encoder.flush()[-1]
    assert encoder.stats.frames == 60
    assert end == End(sum(p.frames for p in packets if isinstance(p, Motion))) and 10 < end.frames < 60


@pytest.mark.parametrize("first", [3, 9])
def test_a_cut_among_the_frames_that_wait_for_the_first_picture_is_seen(
    portrait_clip: list[Array], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a constant rate there is room for one picture, of whoever is to be seen longer; a film has one of each."""
    images = [*portrait_clip[:first], *map(somebody_else, portrait_clip[first:12])]
    for film in (None, nc.Film(enumerate(images), 0.5)):
        encoder = nc.Encoder(8, device="cpu", threads=1, lookahead=12, preset=13, film=film)
        cuts, shown = cuts_of(encoder, monkeypatch), dict[int, Motion]()
        taken: dict[int, float] = {}
        decoder, seen = nc.Decoder(device="cpu", threads=1), list[Array]()
        for pts, image in enumerate([*images, None]):
            packets = encoder.flush() if image is None else encoder.encode(image, pts)
            frames = [f for packet in packets for f in decoder.decode(bytes(packet), wanted=lambda shown: shown < 2)]
            seen += [frame.image for frame in frames]
            taken |= {key: held.of / encoder.time_base for key, held in encoder._pictures.held.items()}
            motions = [packet for packet in packets if isinstance(packet, Motion)]
            shown |= {len(shown) + index: motion for index, motion in enumerate(motions)}
        assert cuts == [first] and len(shown) == 12
        key = 0
        for pts, motion in shown.items():
            key = key if motion.reference is None else motion.reference
            own = (taken[key] >= first) == (pts >= first)
            assert own or motion.as_is or motion.intra
        assert min(taken.values()) < first if film else all(of >= first for of in taken.values())
        assert psnr(seen[0], seen[1]) > 30  # the first, which cannot be told to show a picture, shows it none the less


def test_frames_before_the_first_face_do_not_take_the_place_of_those_that_wait(portrait_clip: list[Array]) -> None:
    encoder = nc.Encoder(8, device="cpu", threads=1, lookahead=4, preset=13, repeat_header=False)
    counts = []
    for pts in range(14):
        packets = encoder.encode(ROOM if pts < 6 else portrait_clip[pts], pts)
        counts.append(sum(isinstance(packet, Motion) for packet in packets))
    assert counts == [0] * 10 + [7, 1, 1, 1] and 6 <= encoder._pictures.current.of / encoder.time_base <= 10


def test_an_error_costs_the_frame_it_came_with_and_nothing_else(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first frame's must not take the header along, nor one in the middle of a picture the pictures after it."""
    encoder, decoder = nc.Encoder(200, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    shown: list[int] = []

    def fail(*_: object) -> Any:
        raise nc.InferenceError("no memory")

    for pts, image in enumerate(portrait_clip[:10]):
        with monkeypatch.context() as patch:
            if pts == 0:
                patch.setattr(encoder._watcher, "see", fail)
            if pts == 5:
                patch.setattr(encoder._pictures._chain, "code", fail)
            try:
                packets = encoder.encode(image, pts)
            except nc.InferenceError:
                assert pts in (0, 5)
                continue
        shown += [frame.pts for p in packets for frame in decoder.decode(bytes(p), wanted=lambda _: False)]
    assert shown == [1, 2, 3, 4, 6, 7, 8, 9] and not decoder.wants_reference
    assert encoder.stats.references == 2 and encoder.stats.updates > 3


@pytest.mark.parametrize("room", [150.0, 5000.0])
def test_an_update_that_would_take_more_than_a_key_gives_way_to_it(
    portrait_clip: list[Array], room: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the light goes on: in parts it would keep every other picture back for seconds."""
    monkeypatch.setattr(RateControl, "room", room)
    monkeypatch.setattr(RateControl, "affords_picture", lambda *_, **__: True)
    encoder = nc.Encoder(8, device="cpu", threads=1, preset=13)
    dark = 6  # frames, after which the camera is taken to have set its exposure
    stays = dark + math.ceil(25 * FLASH_SECONDS)  # by then it is no flashlight
    for pts, image in enumerate([*[portrait_clip[0] // 6] * dark, *portrait_clip[1 : stays + 3 - dark]]):
        packets = encoder.encode(image, pts)
        assert not any(isinstance(packet, Update) for packet in packets)
        if pts < dark - 1:
            continue
        assert encoder._pictures.wanted == (pts == stays) and encoder._pictures._late is None
    assert encoder.stats.references == 2


def test_frames_that_wait_go_out_before_the_header_of_another_size(portrait_clip: list[Array]) -> None:
    encoder = nc.Encoder(8, device="cpu", threads=1, lookahead=4, frames_per_packet=3, preset=13)
    packets = []
    for pts, image in enumerate(portrait_clip[:9]):
        packets += encoder.encode(image if pts < 7 else image[8:-8, 8:-8], pts)
    header = next(i for i, p in enumerate(packets) if isinstance(p, StreamHeader) and p.width == 240)
    assert sum(p.frames for p in packets[:header] if isinstance(p, Motion)) == 7
    assert encoder.flush()[-1] == End(9)


def test_somebody_who_comes_back_is_shown_from_the_pictures_before_he_left(
    portrait_clip: list[Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in use by then is a picture of the room, of which nobody can be drawn."""
    encoder = nc.Encoder(64, device="cpu", threads=1, preset=13)
    cuts = cuts_of(encoder, monkeypatch)
    monkeypatch.setattr(
        RateControl, "affords_picture", lambda *a, **how: encoder._now > 0.1 and not encoder.stats.updates
    )
    monkeypatch.setattr(RateControl, "wants_finer", lambda self: False)
    for pts in range(20):
        encoder.encode(portrait_clip[0] if pts < 2 else ROOM, pts)
    assert encoder._pictures.current.estimate is None
    encoder.encode(portrait_clip[1], 20)
    assert not cuts and encoder._named == 0


@pytest.mark.parametrize(("kbps", "as_is"), [(8, True), (16, False)])
def test_where_nothing_is_softened_a_wall_does_not_stop_the_face(
    portrait_clip: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, kbps: float, as_is: bool
) -> None:
    """Drawn, the head is right and the wall has lost its grain; the picture as it is has the grain, and an old face."""
    asked: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patch:
        patch.setattr(nc.Encoder, "_check", lambda _, *of, as_is: asked.append(of))
        encoder = nc.Encoder(kbps, device="cpu", threads=1, crop="none")
        encoder.encode(portrait_clip[0], 0)
    frame, estimate, scene, _ = asked[0]
    tile = frame.shot.tile.clip(20, 235)
    frame = replace(frame, shot=replace(frame.shot, tile=tile, seconds=9.0))
    grain = (np.indices(tile.shape[:2]).sum(0) % 2 * 40 - 20)[..., None]
    wall = np.abs(np.indices(tile.shape[:2]) - 128).max(0)[..., None] > 90  # away from the head
    old = tile.copy()
    old[60:150, 80:170] = np.roll(tile, 6, axis=1)[60:150, 80:170]
    drawn = (tile + wall * grain).astype(np.uint8)
    assert squared_error(tile, drawn) > 1.3 * squared_error(tile, old) > 30
    monkeypatch.setattr(encoder, "_drawn", lambda *_: drawn)
    held: Any = SimpleNamespace(crop=frame.shot.square, error=1.0, features=SimpleNamespace(picture=old))
    for _ in range(3):
        encoder._check_at = 0.0
        encoder.stats.frames += 99
        encoder._check(frame, estimate, scene, held, as_is=False)
    assert encoder._as_is == as_is


def test_a_picture_in_which_another_face_is_found_is_shown_as_it_is(portrait_clip: list[Array]) -> None:
    """Of two people beside each other both ends may find the one that is not followed."""
    sender, followed = (nc.Encoder(4, device="cpu", threads=1) for _ in range(2))
    for encoder in (sender, followed):
        encoder.encode(portrait_clip[0], 0)
    for key, held in sender._pictures.held.items():
        assert held.estimate is not None
        motion, side = held.estimate.motion, 2 * float(held.estimate.box[2])
        beside = replace(motion, translation=motion.translation + np.float32([side, 0, 0]))
        sender._pictures.held[key] = replace(held, estimate=replace(held.estimate, motion=beside))
    for pts in range(1, 5):
        a, b = (encoder.encode(portrait_clip[pts], pts) for encoder in (sender, followed))
        assert a[-1].as_is and not b[-1].as_is  # type: ignore[union-attr]

"""What is shown of the source: a view that glides after the squares of pictures, and after the head."""

from __future__ import annotations

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec.face import DEAD_ZONE, HEAD_SCALE, HEAD_Y, Face, Square, away, box_of, place_of, placed
from neuralcodec.framing import SLACK, STEP, Framing, seen_in
from neuralcodec.inference import MotionEstimate, ReferenceFeatures
from neuralcodec.motion import Array, MotionParams
from neuralcodec.pictures import HeldPicture
from neuralcodec.scene import mesh_in

SOURCE = (1280, 720)
HERE, THERE = Square(400, 200, 256), Square(480, 200, 256)
NEAR = 0.5  # half sides to the right of where HERE expects a head: not far from where THERE does


def room(seed: int = 0) -> Array:
    """Blocks of 16 pixels: uint8 RGB of SOURCE's size."""
    blocks = np.random.default_rng(seed).integers(0, 256, (SOURCE[1] // 16, SOURCE[0] // 16, 3), dtype=np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def head(square: Square, x: float = 0.0) -> MotionParams:
    """One as far to the right of where HERE expects it, in half sides, told in a square; nothing else moves."""
    there = np.array([x, HEAD_Y, 0], np.float32)
    motion = MotionParams(0, 0, 0, there, HEAD_SCALE, np.zeros((3, 3), np.float32), np.zeros((16, 2), np.float32))
    return placed(motion, HERE, square)


def in_room(square: Square, x: float = 0.0) -> MotionEstimate:
    return MotionEstimate(head(square, x), np.zeros((3, 3), np.float32), 1.0)


def held(key: int, square: Square, source: Array | None = None, x: float = 0.0) -> HeldPicture:
    source = room() if source is None else source
    picture = source[square.y : square.y + square.side, square.x : square.x + square.side]
    features = ReferenceFeatures(picture, None, in_room(square, x))  # type: ignore[arg-type]
    return HeldPicture(key, bytes(4), features, square, 1)


def follow(view: Framing, picture: HeldPicture, seconds: float, x: float = 0.0) -> tuple[HeldPicture, Array]:
    """The picture that a frame is drawn from, and what is shown; the head is so far to the right."""
    cut, _, place = view.follow(picture, head(picture.crop, x), SOURCE, seconds)
    return cut, place


def glide(view: Framing, picture: HeldPicture, fps: float, x: float = 0.0, begin: float = 1.0) -> Array:
    """(frames, 3): what is shown in two seconds of frames from one picture."""
    return np.array([follow(view, picture, begin + (n + 1) / fps, x)[1] for n in range(round(2 * fps))])


def test_pictures_of_one_square_are_shown_as_they_are() -> None:
    view = Framing()
    for key in range(3):
        picture = held(key, HERE)
        shown, place = follow(view, picture, key / 25, 0.1)
        assert shown is picture and place.tolist() == place_of(HERE).tolist()


def test_the_view_glides_to_the_square_of_a_new_picture_and_rests_there() -> None:
    view, before, after = Framing(), held(7, HERE), held(8, THERE)
    follow(view, before, 1.0)
    x = glide(view, after, 25, NEAR)[:, 0]
    steps = np.diff([HERE.center[0], *x])
    assert (steps >= 0).all() and steps[0] < 4 and steps.max() < 10 and x[-1] == THERE.center[0]
    shown, place = follow(view, after, 4.0, NEAR)
    assert shown is after and place.tolist() == place_of(THERE).tolist()


def test_the_glide_does_not_depend_on_the_frame_rate() -> None:
    ways = []
    for fps in (10, 50):
        view = Framing()
        follow(view, held(7, HERE), 1.0)
        ways.append(glide(view, held(8, THERE), fps, NEAR)[fps // 10 - 1 :: fps // 10, 0])
    assert np.abs(ways[0] - ways[1]).max() < 1e-6


def test_on_the_way_pictures_are_cut_anew_for_every_few_pixels() -> None:
    view, after = Framing(), held(8, THERE, x=0.29)
    follow(view, held(7, HERE), 1.0)
    cuts = []
    for n in range(25):
        cut, place = follow(view, after, 1 + (n + 1) / 25, NEAR)
        assert max(away(place, place_of(cut.crop))) <= STEP
        box, there = (Face.from_box(one.crop, one.features.estimate.box) for one in (cut, after))
        assert abs(box.center_x - there.center_x) < 1e-3 and abs(box.half_side - there.half_side) < 1e-3
        inside = max(0, cut.crop.x - THERE.x), min(256, 256 - THERE.x + cut.crop.x)
        columns = slice(max(0, THERE.x - cut.crop.x), max(0, THERE.x - cut.crop.x) + inside[1] - inside[0])
        assert (cut.features.picture[:, columns] == after.features.picture[:, slice(*inside)]).all()
        cuts.append(cut)
    assert 3 <= len({id(cut) for cut in cuts}) <= 10


def test_frames_from_an_older_picture_stay_where_the_view_is() -> None:
    view, before, after = Framing(), held(255, HERE, x=NEAR), held(0, THERE)  # numbers go round
    follow(view, before, 1.0)
    glide(view, after, 25, NEAR)
    first, place = follow(view, before, 5.0, NEAR)
    again, _ = follow(view, before, 5.1, NEAR)
    assert place.tolist() == place_of(THERE).tolist() and first.crop == THERE and again is first
    edge = before.features.picture[:, -1:]
    assert (first.features.picture[:, : 256 - 80] == before.features.picture[:, 80:]).all()
    assert (first.features.picture[:, 256 - 80 :] == edge).all()


@pytest.mark.parametrize(("x", "moves"), [(DEAD_ZONE - 0.01, False), (SLACK * DEAD_ZONE - 0.02, False), (0.4, True)])
def test_the_view_follows_a_head_that_leaves_its_place_before_a_picture_comes(x: float, moves: bool) -> None:
    view, picture = Framing(), held(7, HERE)
    follow(view, picture, 1.0)
    shown = glide(view, picture, 25, x)
    assert bool(shown[-1, 0] - HERE.center[0] > 0.35 * HERE.side / 2) is moves
    assert glide(view, picture, 25, 0.1, begin=3.0)[-1].tolist() == place_of(HERE).tolist()


def test_another_shot_is_shown_at_once() -> None:
    for after in (held(8, THERE, room(1)), held(8, Square(900, 200, 256))):
        view = Framing()
        follow(view, held(7, HERE), 1.0)
        shown, place = follow(view, after, 1.04, (after.crop.x - HERE.x) / 128)
        assert shown is after and place.tolist() == place_of(after.crop).tolist()


def test_a_face_that_takes_its_room_along_is_still_the_same_shot() -> None:
    """What lies around the face is alike, though nothing is in its place."""
    view, source = Framing(), room()
    before = held(7, HERE)
    after = held(8, THERE, np.roll(source, THERE.x - HERE.x, 1))
    after.features._known = in_room(HERE)
    follow(view, before, 1.0)
    assert follow(view, after, 1.04)[1][0] < HERE.center[0] + 3


def test_a_picture_that_takes_the_number_of_another_is_cut_itself() -> None:
    view, after = Framing(), held(8, THERE)
    follow(view, held(7, HERE), 1.0)
    cut, _ = follow(view, after, 1.04)
    other = held(8, THERE, 255 - room())
    assert follow(view, other, 1.05)[0].features.picture[0, 0, 0] != cut.features.picture[0, 0, 0]


def test_seen_in_shifts_scales_and_repeats_edges() -> None:
    picture = held(7, HERE).features.picture
    place = place_of(HERE)
    assert (seen_in(picture, place, place) == picture).all()
    moved = seen_in(picture, place, place_of(Square(HERE.x + 10, HERE.y - 20, 256)))
    assert (moved[20:, :-10] == picture[:-20, 10:]).all() and (moved[:20, :-10] == picture[:1, 10:]).all()
    near = seen_in(picture, place, place_of(Square(HERE.x + 64, HERE.y + 64, 128)))
    assert (near[2:14, 4:28] == picture[66, 66]).all()  # inside of a block of its own colour
    assert moved.flags.c_contiguous and moved.dtype == np.uint8


def test_motion_and_scene_are_told_in_what_is_cut() -> None:
    view, before, after = Framing(), held(7, HERE, x=NEAR), held(8, THERE)
    follow(view, before, 1.0)
    glide(view, after, 25, NEAR)
    rng = np.random.default_rng(2)
    motion = MotionParams(
        3, 4, 5, np.array([0.4, -0.2, 0.3], np.float32), 0.6, np.zeros((3, 3), np.float32),
        rng.uniform(-0.1, 0.1, (16, 2)).astype(np.float32),
    )  # fmt: skip
    cut, told, _ = view.follow(before, motion, SOURCE, 3.0)
    assert cut.crop == THERE
    face, same = Face.from_box(HERE, box_of(motion)), Face.from_box(THERE, box_of(told))
    assert np.allclose([face.center_x, face.center_y, face.half_side], [same.center_x, same.center_y, same.half_side])
    assert np.allclose(told.scene, mesh_in(motion.scene, np.array([80 / 128, 0]), 1.0))
    assert view.follow(after, motion, SOURCE, 3.0)[1] is motion


def test_a_head_far_from_its_picture_is_drawn_from_all_of_it() -> None:
    """The head would be cut off in a picture cut from what is shown; the scene is told to have moved by the rest."""
    view, picture = Framing(), held(7, HERE)
    follow(view, picture, 1.0)
    glide(view, picture, 25, 1.5)  # it stands where two pictures of its square would still overlap
    cut, told, place = view.follow(picture, head(HERE, 1.5), SOURCE, 3.0)
    assert place.tolist() == place_of(cut.crop).tolist() and cut.crop.x - HERE.x > 180
    box = Face.from_box(cut.crop, cut.features.estimate.box)  # in the picture, as if that were of what is shown
    moved = float(told.scene[0, 0]) * cut.crop.side / 2  # pixels: from where it is shown to where it is there
    assert np.ptp(told.scene[:, 0]) < 1e-6 and moved > 50
    face = Face.from_box(HERE, box_of(head(HERE)))
    pixels = cut.crop.x - moved
    assert abs(box.center_x - (face.center_x + moved)) < 1e-2
    assert pixels == pytest.approx(face.center_x - face.half_side, abs=1)
    columns = round(pixels) - HERE.x
    assert (cut.features.picture[:, : 256 - columns] == picture.features.picture[:, columns:]).all()
    shown, _, _ = view.follow(picture, head(HERE, 1.5), SOURCE, 3.0, as_is=True)  # nobody is drawn: what is there
    columns = cut.crop.x - HERE.x
    assert (shown.features.picture[:, : 256 - columns] == picture.features.picture[:, columns:]).all()


def test_a_head_that_walks_is_followed_without_a_jolt(portrait_clip: list[Array]) -> None:
    """A portrait moves across a wide picture; what is shown of it moves on softly, and shows it whole."""
    encoder, decoder = nc.Encoder(8, device="cpu", threads=1, preset=13), nc.Decoder(device="cpu", threads=1)
    shown, cut_from, heads = [], set(), []
    for pts in range(60):
        image = np.full((320, 640, 3), (120, 110, 100), np.uint8)
        left = round(np.interp(pts, [10, 40], [60, 260]))
        image[64:, left : left + 256] = portrait_clip[pts % len(portrait_clip)]
        for packet in encoder.encode(image, pts):
            for frame in decoder.decode(bytes(packet)):
                assert frame.square is not None
                shown.append([*frame.square.center, frame.square.side])
                heads.append(left + 128)
                cut_from.add(decoder._pictures.get(frame.reference).crop.x)  # type: ignore[union-attr]
    places = np.array(shown)
    assert len(places) == 60 and np.diff(sorted(cut_from)).max() > 30
    assert np.abs(np.diff(places, 2, axis=0)).max() < 4
    assert np.abs(places[:, 0] - heads).max() < 0.7 * places[0, 2] / 2  # the face is half as wide as the square
    assert abs(places[-1, 0] - heads[-1]) < 0.3 * places[0, 2] / 2

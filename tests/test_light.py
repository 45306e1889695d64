"""What the light on everything does, from the camera to what is shown."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import exposed, there_and_back
from test_avatar import CONSENT
from test_call_bitstream_js import node

import neuralcodec as nc
from neuralcodec.entropy import EntropyCoder
from neuralcodec.film import Film
from neuralcodec.light import MOST, LightMeter, relit
from neuralcodec.motion import Array
from neuralcodec.packet import Bundle, Motion, ReferencePart, StreamHeader, parse_packet
from neuralcodec.protection import Aggregator
from neuralcodec.quality import psnr
from neuralcodec.quantizer import Quantizer

TOLD = [0, 0, 6, 12, 12, 12, 12, 4, 4]  # light of frames, as a sender's camera sees it


def told_of(film: list[Array], fps: float = 25) -> list[int]:
    meter = LightMeter()
    return [meter.follow(image, pts / fps) for pts, image in enumerate(film)]


def swinging(film: list[Array]) -> list[Array]:
    """As by a camera that sets its exposure again and again: up and down by a quarter, within a second."""
    return [exposed(image, 1 - 0.25 * np.sin(np.pi * pts / 25) ** 2) for pts, image in enumerate(film)]


# --- pictures ---


def test_light_and_back_is_the_picture_again(portrait_clip: list[Array]) -> None:
    image = portrait_clip[0]
    assert relit(image, 0) is image
    for light in (-MOST, -5, 1, MOST):
        there = relit(image, light)
        assert (there.mean() > image.mean()) == (light > 0)
        whole = there.max(2) < 255  # no channel was cut
        back = relit(there, -light)[whole].astype(int)
        assert whole.mean() > 0.7 and np.abs(back - image[whole]).max() <= 3


def test_black_and_hues_stay_and_light_adds_up() -> None:
    colours = np.array([[[0, 0, 0], [40, 20, 10], [120, 60, 30], [60, 60, 60]]], np.uint8)
    out = relit(colours, 20).astype(float)
    assert (out[0, 0] == 0).all()
    np.testing.assert_allclose(out[0, 1:3, :1] / out[0, 1:3], [[1, 2, 4], [1, 2, 4]], rtol=0.06)
    np.testing.assert_allclose(relit(relit(colours, 8), 12), out, atol=1)
    brighter = [relit(colours, light)[0, 3, 0] for light in range(-128, 128)]
    assert all(a <= b for a, b in pairwise(brighter)) and brighter[0] < 20 and brighter[-1] > 150


def test_the_page_does_the_same(portrait_clip: list[Array]) -> None:
    image = portrait_clip[0][::8, ::8]
    rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    lights = [-128, -20, 0, 7, 127]
    found = node(
        """
        const { relight } = await import(given.module);
        result = given.lights.map((light) => Array.from(relight(Uint8ClampedArray.from(given.picture), light)));
        """,
        {
            "picture": rgba.ravel().tolist(),
            "lights": lights,
            "module": (Path(nc.__file__).parent / "call" / "web" / "light.mjs").as_uri(),
        },
    )
    for light, got in zip(lights, found, strict=True):
        picture = np.array(got).reshape(rgba.shape)
        assert (picture[..., 3] == 255).all()
        assert np.abs(picture[..., :3] - relit(image, light).astype(int)).max() <= (1 if light else 0)


# --- the camera ---


def test_what_moves_is_not_taken_for_light(portrait_clip: list[Array]) -> None:
    film = there_and_back(portrait_clip, 60)
    assert not any(told_of(film))
    assert not any(told_of([np.roll(image, 3 * pts, axis=1) for pts, image in enumerate(film)]))  # a pan
    for pts, image in enumerate(film):
        film[pts] = image.copy()
        film[pts][: 4 * pts] = 30  # something dark comes before half of the picture
    assert not any(told_of(film[:32]))


@pytest.mark.parametrize("fps", [25, 50])
def test_a_flashlight_or_a_lamp_that_goes_on_is_left_to_pictures(portrait_clip: list[Array], fps: int) -> None:
    film = there_and_back(portrait_clip, 40)
    flash = [exposed(image, 1.4 if 10 <= pts < 12 else 1) for pts, image in enumerate(film)]
    lamp = [exposed(image, 0.7 if pts < 10 else 1) for pts, image in enumerate(film)]
    assert not any(told_of(flash, fps)) and not any(told_of(lamp, fps))


@pytest.mark.parametrize("fps", [10, 25, 50])
def test_an_exposure_that_changes_is_followed_and_slowly_forgotten(portrait_clip: list[Array], fps: int) -> None:
    gains = [1.0] * fps + list(np.linspace(1, 0.8, fps // 2)) + [0.8] * (fps // 2)
    film = there_and_back(portrait_clip, len(gains))
    dim = [exposed(image, gain) for image, gain in zip(film, gains, strict=True)]
    meter = LightMeter()
    told = [meter.follow(image, pts / fps) for pts, image in enumerate(dim)]
    assert not any(told[:fps]) and -MOST <= told[-1] <= -10
    for image, darker, light in list(zip(film, dim, told, strict=True))[fps + fps // 2 :: 3]:
        left = relit(darker, -light).mean() - image.mean()
        assert abs(left) < 0.3 * abs(darker.mean() - image.mean())
    still = [meter.follow(dim[-1], 2 + second / 4) for second in range(4 * MOST + 12)]  # nothing changes any more
    assert still[8] < -8 and still == sorted(still) and still[-1] == 0


@pytest.mark.parametrize("fps", [10, 25, 50])
@pytest.mark.parametrize("begins", [0.1, 0.3, 2.5])
def test_a_camera_is_settling_while_it_sets_its_exposure(portrait_clip: list[Array], begins: float, fps: int) -> None:
    """It comes to within a tenth of where it goes in less than a second, as cameras do that have been switched on."""
    seconds = np.arange(2 * fps) / fps
    gains = 1 + (begins - 1) * np.exp(-seconds / 0.25)
    meter, settled = LightMeter(), []
    for at, gain, image in zip(seconds, gains, there_and_back(portrait_clip, len(gains)), strict=True):
        meter.follow(exposed(image, gain), at)
        settled.append(not meter.settling)
    first = settled.index(True)
    assert all(settled[first:]) and first >= 2 and 0.85 < gains[first] < 1.25 and seconds[first] <= 0.9


def test_nothing_settles_in_a_room_whatever_its_light(portrait_clip: list[Array]) -> None:
    for gain, least in ((1.0, 0.0), (0.3, 0.2)):  # what is dark is looked at for a moment
        meter = LightMeter()
        assert not meter.settling
        for pts, image in enumerate(there_and_back(portrait_clip, 30)):
            meter.follow(exposed(image, gain), pts / 25)
            assert meter.settling == (pts / 25 < least - 1e-9)
    meter = LightMeter()
    for pts in range(20):  # a pan
        meter.follow(np.roll(portrait_clip[pts], 5 * pts, axis=1), pts / 25)
        assert not meter.settling


def test_pictures_can_begin_in_the_light_of_any_frame(portrait_clip: list[Array]) -> None:
    gains = np.concatenate([np.linspace(1, 0.8, 13), np.linspace(0.8, 0.9, 13)[1:]])
    film = [exposed(image, gain) for image, gain in zip(there_and_back(portrait_clip, 25), gains, strict=True)]
    whole, late = LightMeter(), LightMeter()
    for pts in range(13):
        before = whole.follow(film[pts], pts / 25)
        late.follow(film[pts], pts / 25)
    late.begin()
    after = [(whole.follow(film[pts], pts / 25), late.follow(film[pts], pts / 25)) for pts in range(13, 25)]
    assert before < -8 and all(told - before == pytest.approx(now, abs=2.5) for told, now in after)
    assert after[-1][1] > 5


def test_frames_of_another_size_or_of_nothing_are_compared_with_none(portrait_clip: list[Array]) -> None:
    bright, dim = portrait_clip[0], exposed(portrait_clip[0], 0.9)
    meter = LightMeter()
    assert [meter.follow(bright, 0), meter.follow(dim, 0.04)][1] < -5
    meter = LightMeter()
    meter.follow(bright, 0)
    meter.forget()
    assert meter.follow(dim, 0.04) == 0
    night = np.zeros_like(bright)
    assert told_of([bright, night, dim, night]) == [0] * 4


# --- the wire ---


def packets_of(
    lights: list[int], intras: tuple[int, ...], *, again: int, share: int, pack: nc.Pack, since: int = 0
) -> list[bytes]:
    """Motion that rests, in so many frames a packet, each of which repeats some since a frame."""
    quantizer, aggregator = Quantizer(pack.tables), Aggregator(EntropyCoder(pack.tables), share)
    rest, out = pack.tables.motion(pack.tables.mean), []
    for number, light in enumerate(lights):
        intra = number in intras
        symbols = quantizer.forward(rest, level=0, components=0, intra=intra)
        head = Motion(
            number, 0, 0, b"", intra, reference=0 if intra else None, pts=number if intra else None, light=light
        )
        out += aggregator.add(head, symbols, again if number >= since else 0)
    return [*map(bytes, [*out, *aggregator.close(again)])]


def said(data: bytes) -> list[int | None]:
    packet = parse_packet(data)
    return [p.light for p in (packet.packets if isinstance(packet, Bundle) else (packet,)) if isinstance(p, Motion)]


def test_light_is_told_when_it_changes_and_after_intra_motion(scene_pack: nc.Pack) -> None:
    plain = packets_of([0] * 9, (0, 5), again=0, share=1, pack=scene_pack)
    assert [said(data) for data in plain] == [[None]] * 9
    told = packets_of(TOLD, (0, 5), again=0, share=1, pack=scene_pack)
    assert [said(data) for data in told] == [[None], [None], [6], [12], [None], [None], [12], [4], [None]]
    assert [len(a) - len(b) for a, b in zip(told, plain, strict=True)] == [0, 0, 2, 2, 0, 0, 2, 2, 0]
    ends = packets_of([0, 6, 0, 0, 0], (0, 3), again=0, share=1, pack=scene_pack)
    assert [said(data) for data in ends] == [[None], [6], [0], [None], [0]]  # one that lost the second 0 must know


def test_what_is_lost_is_told_again_with_its_frames(scene_pack: nc.Pack) -> None:
    told = packets_of(TOLD, (0,), again=1, share=1, pack=scene_pack)
    assert [said(data) for data in told] == [[None], [None, None], [6], [12], [12], [None], [None], [4], [4]]
    for lost in range(1, len(told) - 1):
        last = None
        for data in (data for number, data in enumerate(told) if number != lost):
            last = next((light for light in reversed(said(data)) if light is not None), last)
        assert last == 4, lost
    assert [said(data) for data in packets_of(TOLD, (0,), again=0, share=4, pack=scene_pack)] == [[None], [12], [4]]


def test_light_is_told_again_where_frames_begin_to_be_repeated(scene_pack: nc.Pack) -> None:
    told = packets_of([0, 0, 6, 6, 6], (0,), again=1, share=1, pack=scene_pack, since=3)
    assert [said(data) for data in told] == [[None], [None], [6], [6], [None]]


# --- the receiver ---


def receiver(pack: nc.Pack, coded: tuple[nc.Encoder, list[list[Any]]]) -> nc.Decoder:
    """One that has a picture, and shows it unsteadied."""
    decoder = nc.Decoder(device="cpu", threads=1, steady=False)
    for packet in (p for packets in coded[1] for p in packets if isinstance(p, StreamHeader | ReferencePart)):
        decoder.decode(bytes(packet))
    return decoder


def test_frames_of_one_packet_go_there_in_equal_steps(coded: tuple[nc.Encoder, list[list[Any]]]) -> None:
    pack = coded[0].pack
    decoder = receiver(pack, coded)
    first, *rest = packets_of([0, 10, 20, 20, 20, 20, 20, 20, 20], (0,), again=0, share=4, pack=pack)
    plain = decoder.decode(first)[0].image
    shown = [frame.image for data in rest for frame in decoder.decode(data)]
    for image, light in zip(shown, [5, 10, 15, 20, 20, 20, 20, 20], strict=True):
        assert np.abs(image.astype(int) - relit(plain, light)).max() <= 6 and abs(image.mean() - plain.mean()) > 0.5
    assert all(a.mean() < b.mean() for a, b in pairwise(shown[:4]))
    assert decoder._light == 20  # exactly: the last bits would have every picture lit anew
    concealed = decoder.conceal(20).image
    assert abs(concealed.mean() - shown[-1].mean()) < 1


def test_light_of_the_newest_packet_counts_however_it_comes(coded: tuple[nc.Encoder, list[list[Any]]]) -> None:
    pack = coded[0].pack
    data = packets_of([0, 0, 20, 0, -20, -20], (0,), again=0, share=1, pack=pack)
    for order, light in (
        ((0, 1, 2, 3, 4), -20),
        ((0, 1, 3, 2), 0),
        ((0, 1, 4, 2, 3, 5), -20),
        ((0, 1, 2, 2, 1), 20),
        ((0, 1, 5, 2, 3, 4), -20),
    ):
        decoder = receiver(pack, coded)
        images = [frame.image for number in order for frame in decoder.decode(data[number])]
        images.append(decoder.conceal(30).image)
        difference = images[-1].mean() - images[0].mean()
        assert np.sign(round(difference)) == np.sign(light), order


# --- from end to end ---


def shown_of(packets: list[bytes]) -> list[Array]:
    decoder = nc.Decoder(device="cpu", threads=1)
    return [frame.image for data in packets for frame in decoder.decode(data)]


def lights_of(packets: list[bytes]) -> list[int]:
    return [light for data in packets for light in said(data) if light is not None]


def test_a_call_in_light_that_changes_shows_it(portrait_clip: list[Array]) -> None:
    film = swinging(there_and_back(portrait_clip, 50))
    encoder = nc.Encoder(4, device="cpu", threads=1)
    packets = [bytes(p) for pts, image in enumerate(film) for p in encoder.encode(image, pts)]
    lights = lights_of(packets)
    assert min(lights) < -12 and len(lights) > 6
    shown = shown_of(packets)
    assert np.mean([psnr(a, b) for a, b in zip(film, shown, strict=True)]) > 25
    assert np.max([abs(a.mean() - b.mean()) for a, b in zip(film, shown, strict=True)]) < 8
    untold = [
        bytes(replace(p, light=None)) if isinstance(p := parse_packet(data), Motion) else data for data in packets
    ]
    assert np.max([abs(a.mean() - b.mean()) for a, b in zip(film, shown_of(untold), strict=True)]) > 15


def test_films_frames_that_wait_and_avatars_are_told_no_light(portrait_clip: list[Array]) -> None:
    film = swinging(there_and_back(portrait_clip, 30))
    for how in ({"film": Film(enumerate(film), 2)}, {"avatar": nc.Avatar(portrait_clip[0], CONSENT)}, {"lookahead": 4}):
        encoder = nc.Encoder(4, device="cpu", threads=1, **how)
        packets = [bytes(p) for pts, image in enumerate(film) for p in encoder.encode(image, pts)]
        assert packets and not lights_of(packets)


def test_surroundings_and_whole_frames_are_in_the_same_light(portrait_clip: list[Array]) -> None:
    scenes = []
    for image in there_and_back(portrait_clip, 40):
        scene = np.full((320, 480, 3), 120, np.uint8)
        scene[::7] = 80  # something to be seen around the square
        scene[32:288, 112:368] = image
        scenes.append(scene)
    film = swinging(scenes)
    encoder = nc.Encoder(12, device="cpu", threads=1, full_frame=True)
    packets = [bytes(p) for pts, image in enumerate(film) for p in encoder.encode(image, pts)]
    assert min(lights_of(packets)) < -12
    shown = shown_of(packets)
    assert shown[-1].shape == scenes[0].shape
    for a, b in zip(film[10::5], shown[10::5], strict=True):
        assert abs(a[:, :60].mean() - b[:, :60].mean()) < 8 and abs(a.mean() - b.mean()) < 8

import numpy as np
import pytest

import neuralcodec as nc
from neuralcodec.focus import soften
from neuralcodec.packet import ReferencePart
from neuralcodec.rate import RateControl

HEAD = (0.0, 0.0, 0.4)
NOISE = np.random.default_rng(3).integers(0, 256, (256, 256, 3), np.uint8)


def roughness(picture: np.ndarray) -> float:
    return float(np.abs(np.diff(picture.astype(int), axis=1)).mean())


def test_the_head_stays_as_it_is_and_the_rest_gets_soft() -> None:
    soft = soften(NOISE, HEAD, 5)
    assert soft.dtype == np.uint8 and soft.shape == NOISE.shape
    assert np.array_equal(soft[108:148, 108:148], NOISE[108:148, 108:148])  # well inside the ellipse
    assert roughness(soft[:40]) < 0.4 * roughness(NOISE[:40])
    assert abs(soft[:40].mean() - NOISE[:40].mean()) < 0.5  # and no darker
    assert roughness(soften(NOISE, HEAD, 7)[:40]) < roughness(soft[:40]) < roughness(soften(NOISE, HEAD, 3)[:40])


@pytest.mark.parametrize("axis", [0, 1])
def test_stripes_in_either_direction_get_soft(axis: int) -> None:
    stripes = (np.indices((256, 256))[axis] % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert np.ptp(soften(stripes, HEAD, 5)[:20]) < 128


def test_the_mask_follows_the_head() -> None:
    soft = soften(NOISE, (0.5, -0.25, 0.2), 5)
    assert np.array_equal(soft[92:100, 188:196], NOISE[92:100, 188:196])
    assert not np.array_equal(soft[108:148, 108:148], NOISE[108:148, 108:148])


def test_a_head_is_taller_than_wide_and_mostly_above_its_place() -> None:
    kept = (soften(NOISE, HEAD, 5) == NOISE).all(2)
    column, row = kept[:, 128], kept[128]
    up, down, left, right = (line.argmin() for line in (column[127::-1], column[128:], row[127::-1], row[128:]))
    assert up > down > left == right


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_an_even_picture_is_left_alone_and_so_is_any_at_width_one(value: int) -> None:
    flat = np.full((64, 64, 3), value, np.uint8)
    assert np.array_equal(soften(flat, HEAD, 7), flat)
    assert soften(NOISE, HEAD, 1) is NOISE


def test_the_lower_the_rate_the_softer() -> None:
    widths = [RateControl(kbps).softness for kbps in (1, 2, 4, 8, 64)]
    assert widths == sorted(widths, reverse=True) and widths[0] > widths[2] > widths[-1] == 1
    assert RateControl(11.9).softness > RateControl(12).softness == 1


def test_an_encoder_can_leave_the_surroundings_alone(portrait_clip: list[np.ndarray]) -> None:
    """At the same budget the softened picture is nearer to the camera's in the face: over three rates, as a step of
    the quantizer may leave a fifth of one budget unused."""
    error = {}
    for focus in (True, False):
        error[focus] = 0.0
        for kbps in (3, 4, 6):
            encoder = nc.Encoder(kbps, device="cpu", threads=1, crop="none", focus=focus)
            decoder = nc.Decoder(device="cpu", threads=1)
            packets = encoder.encode(portrait_clip[0], 0)
            assert any(isinstance(packet, ReferencePart) for packet in packets)
            for packet in packets:
                decoder.decode(bytes(packet))
            face, shown = slice(70, 150), encoder._pictures.current.features.picture
            error[focus] += float(((shown[face, face].astype(int) - portrait_clip[0][face, face]) ** 2).mean())
    assert error[True] < 0.95 * error[False]

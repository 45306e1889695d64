"""The SEI study: bits by hand, both forms there and back, and bytes that are no payload."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.gfv_sei import (
    PAYLOAD_TYPE,
    POINT_BITS,
    GfvReader,
    GfvWriter,
    Parameters,
    convert,
    from_motion,
    from_state,
    main,
    sei_message,
    to_state,
)
from neuralcodec.container import ContainerWriter
from neuralcodec.errors import BitstreamError, LimitError, PackMismatchError
from neuralcodec.motion import MotionParams
from neuralcodec.quantizer import MotionTables, Quantizer

VECTORS = Path(__file__).parent / "vectors"
URI = "urn:neuralcodec:pack:0123456789abcdef"


def motions(count: int = 60) -> list[MotionParams]:
    return [MotionParams.from_flat(row) for row in np.load(VECTORS / "track_a.npz")["flat"][:count].astype(np.float64)]


def test_a_predicted_payload_bit_by_bit() -> None:
    writer = GfvWriter(URI)
    writer.write(Parameters(np.array([[0, 5, -3]]), None))
    payload = writer.write(Parameters(np.array([[1, 5, -5]]), None))
    #      id cnt   fusion sure points pred  dx=1 +   dy=0  |dz|=2 -  matrix, stop, zeros
    bits = "1" "010" "0" "0" "1" "1" "010" "0" "1" "011" "1" "0" "1" "00000"  # fmt: skip
    assert f"{int.from_bytes(payload, 'big'):0{8 * len(payload)}b}" == bits.ljust(8 * len(payload), "0")


def test_the_integers_come_back_exactly() -> None:
    quantizer = Quantizer(MotionTables.load(VECTORS / "tables.json"))
    writer, reader = GfvWriter(URI), GfvReader(URI)
    sizes = []
    for number, motion in enumerate(motions()):
        quantizer.forward(motion, level=2, components=5, intra=number % 25 == 0)
        payload = writer.write(from_state(quantizer.state.values), base=number % 25 == 0)
        assert to_state(reader.read(payload)) == quantizer.state.values
        sizes.append(len(payload))
    assert np.mean(sizes[1:25]) < sizes[0] / 2


def test_keypoints_come_back_within_their_rounding() -> None:
    writer, reader = GfvWriter(URI), GfvReader(URI)
    for motion in motions(30):
        canonical = np.linspace(-0.5, 0.5, motion.delta.size, dtype=np.float32).reshape(-1, 3)
        found = reader.read(writer.write(from_motion(motion, canonical)))
        assert found.points is not None and found.matrix is not None and found.sure
        assert np.abs(found.points / 2**POINT_BITS - motion.keypoints(canonical)).max() <= 0.5001 / 2**POINT_BITS
        assert np.abs(found.matrix / 2**found.matrix_bits - motion.rotation).max() < 2e-4


def test_message_header() -> None:
    assert sei_message(bytes(3))[:2] == bytes((PAYLOAD_TYPE, 3))
    assert sei_message(bytes(300))[:3] == bytes((PAYLOAD_TYPE, 255, 45))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes(data: bytes, warm: bool) -> None:
    reader = GfvReader(URI)
    good = GfvWriter(URI).write(from_state(range(40)))
    if warm:
        reader.read(good)
    for payload in (data, good[:-1], good[: len(data)]):
        try:
            assert isinstance(reader.read(payload), Parameters)
        except (BitstreamError, PackMismatchError) as error:
            assert str(error)


def test_numbers_that_no_array_holds() -> None:
    huge = Parameters(None, np.array([[(1 << 32) - 2, -5]], object) << 32, 32)
    with pytest.raises(LimitError, match="a matrix of numbers beyond"):
        GfvReader(URI).read(GfvWriter(URI).write(huge))


def test_a_picture_needs_its_base() -> None:
    writer = GfvWriter(URI)
    writer.write(from_state(range(5)))
    with pytest.raises(BitstreamError, match="wait for one"):
        GfvReader(URI).read(writer.write(from_state(range(5))))


def test_parameters_of_another_pack_are_refused() -> None:
    payload = GfvWriter(URI).write(from_state(range(5)))
    other = URI.replace("0123", "3210")
    with pytest.raises(PackMismatchError, match=f"for '{URI}', loaded is '{other}': give that pack"):
        GfvReader(other).read(payload)


def test_a_stream_of_another_pack_is_one_sentence(coded: Any, tmp_path: Path, capsys: Any) -> None:
    with open(tmp_path / "a.ncv", "wb") as file:
        ContainerWriter(file, replace(coded[1][0][0], pack_id=bytes(8)))
    assert main([str(tmp_path / "a.ncv")]) == 1
    assert "a.ncv needs the model pack 0000000000000000, loaded is" in capsys.readouterr().err


def test_a_stream_there_and_back(coded: Any, tmp_path: Path) -> None:
    """A chain of pictures and several references; ``convert`` itself holds what it reads back to what was sent."""
    first, *rest = (packet for packets in coded[1] for packet in packets)
    with open(tmp_path / "a.ncv", "wb") as file:
        writer = ContainerWriter(file, first)
        for packet in rest:
            writer.write(packet)
    figures = convert(tmp_path / "a.ncv", None, tmp_path / "a.sei")
    assert figures["frames"] == coded[0].stats.frames and figures["worst_px"] <= 0.51 * 128 / 2**POINT_BITS
    assert (tmp_path / "a.sei").read_bytes()[0] == PAYLOAD_TYPE
    assert 0 < figures["stream"] < figures["coefficients"]


@pytest.mark.parametrize("content", [None, b"no stream"])
def test_what_is_no_stream_is_one_sentence(content: bytes | None, tmp_path: Path, capsys: Any) -> None:
    if content is not None:
        (tmp_path / "a.ncv").write_bytes(content)
    assert main([str(tmp_path / "a.ncv"), "--out", str(tmp_path / "a.sei")]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "a.sei").exists()


def test_a_stream_without_motion_leaves_no_file(coded: Any, tmp_path: Path) -> None:
    with open(tmp_path / "a.ncv", "wb") as file:
        ContainerWriter(file, coded[1][0][0])
    with pytest.raises(BitstreamError, match="holds no motion"):
        convert(tmp_path / "a.ncv", None, tmp_path / "a.sei")
    assert not (tmp_path / "a.sei").exists()

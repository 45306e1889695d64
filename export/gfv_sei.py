"""A study: the motion of a stream as Generative Face Video SEI payloads (ITU-T H.274) and back.

``python -m export.gfv_sei FILE.ncv`` writes every frame's motion both ways that the syntax allows, reads it back, and
prints what each costs beside the stream itself. ``--out FILE.sei`` keeps the messages of the first way.

- **coefficients**: the decoder's integers (FORMAT.md section 5) as one 1 x N matrix of a free type. Nothing is lost: a
  receiver with the pack renders the same pictures. The generator is named by a URI with the pack's id.
- **keypoints**: the points the renderer is driven by, as 3-D coordinates, and the head's rotation as a 3 x 3 matrix:
  what a generator other than ours could use, at 1/4 pixel. The scene around the head stays behind.

What does not map. The syntax has no arithmetic coding, so residuals cost Exp-Golomb bits; no frame numbers, loss or
reference ids: order, loss and random access are the host codec's, and one base picture stands where a stream here holds
eight references; prediction is from the frame before or from the base picture, without momentum; quantizer levels
become one fixed precision; signatures, pixel frames and receiver-side turns of the head have no place in it. References
travel as the host codec's base pictures. Checked against the public syntax only, not against a decoder of others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.files import reason
from neuralcodec.errors import BitstreamError, LimitError, NeuralCodecError, PackMismatchError, TruncatedError
from neuralcodec.motion import MotionParams
from neuralcodec.runtime.engine import write_whole

Array = NDArray[Any]

PAYLOAD_TYPE = 223  # generative_face_video in the drafts implemented so far; 224 is its enhancement message
URI_TAG = "tag:neuralcodec,2026:pack"
TYPE_FREE = 8  # gfv_matrix_type_idx from 7 on: any number of matrices of any size
POINT_BITS = 9  # of a coordinate's fraction: 1/512 of half a picture, a quarter of a pixel at 256
MATRIX_BITS = 12  # of a rotation's fraction
INTEGER_BITS = 1  # the least the syntax allows; integers waste it
POINTS_MAX, ELEMENTS_MAX, Z_MAX = 1024, 1024, 4  # what this reader takes; the syntax allows more
VALUE_MAX = 1 << 48  # of a matrix, in units of its fraction


@dataclass(frozen=True)
class Parameters:
    """One picture's face. All numbers are integers in units of their fraction.

    points: int (K, 3) in 1/2**POINT_BITS, or None. matrix: int (H, W) in 1/2**matrix_bits, or None.
    """

    points: Array | None
    matrix: Array | None
    matrix_bits: int = INTEGER_BITS
    sure: bool = True  # the face was seen well (gfv_low_confidence_face_parameter_flag is zero)


@dataclass
class _Memory:
    """What prediction needs: the base picture's parameters and the previous ones."""

    previous: Parameters | None = None
    base_shape: tuple[int, int] = (0, 0)
    count: int = 0


class GfvWriter:
    """Parameters to SEI payloads. ``uri`` names the generator, in base pictures."""

    def __init__(self, uri: str, *, identity: int = 0) -> None:
        self.uri, self.identity = uri, identity
        self._memory = _Memory()

    def write(self, now: Parameters, *, base: bool = False) -> bytes:
        """The payload of one picture; the first is a base picture."""
        memory, bits = self._memory, _BitWriter()
        base = base or memory.previous is None
        before = None if base else memory.previous
        memory.count = 0 if base else memory.count + 1
        bits.ue(self.identity)
        bits.ue(memory.count)
        if base:
            bits.flag(True)  # gfv_base_picture_flag; present because the count is 0
            bits.flag(True)  # gfv_nn_present_flag
            bits.ue(1)  # mode: a URI follows
            bits.align()
            bits.text(URI_TAG)
            bits.text(self.uri)
            bits.flag(False)  # no chroma key
        else:
            bits.flag(False)  # gfv_drive_picture_fusion_flag
        bits.flag(not now.sure)
        bits.flag(now.points is not None)
        if now.points is not None:
            self._points(bits, now.points, None if before is None else before.points)
        bits.flag(now.matrix is not None)
        if now.matrix is not None:
            self._matrix(bits, now, before)
        memory.previous = now
        return bits.bytes()

    @staticmethod
    def _points(bits: _BitWriter, points: Array, before: Array | None) -> None:
        bits.flag(before is not None)  # predicted
        if before is None:
            bits.ue(POINT_BITS - 1)
            bits.ue(len(points) - 1)
            bits.flag(True)  # z is present
            bits.ue(Z_MAX - 1)
        for value in (points if before is None else points - before).reshape(-1).tolist():
            bits.signed(value)

    @staticmethod
    def _matrix(bits: _BitWriter, now: Parameters, before: Parameters | None) -> None:
        assert now.matrix is not None
        old = None if before is None else before.matrix
        if before is not None:
            bits.flag(old is not None)  # predicted
        if old is None:
            bits.ue(now.matrix_bits - 1)
            bits.ue(0)  # one type of matrix
            bits.code(TYPE_FREE, 6)
            bits.ue(0)  # one matrix of that type
            height, width = now.matrix.shape
            bits.ue(width - 1)
            bits.ue(height - 1)
        one = 1 << now.matrix_bits
        for value in (now.matrix if old is None else now.matrix - old).reshape(-1).tolist():
            whole, part = divmod(abs(value), one)
            bits.ue(whole)
            if old is None:
                bits.code(part, now.matrix_bits)
            else:
                bits.ue(part)
            if value:
                bits.flag(value < 0)


class GfvReader:
    """SEI payloads of :class:`GfvWriter`'s kind to parameters. Any bytes give parameters or a BitstreamError; those for
    another generator than ``uri``, a PackMismatchError."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._memory = _Memory()

    def read(self, payload: bytes) -> Parameters:
        bits = _BitReader(payload)
        bits.ue()
        count = bits.ue()
        base = bits.flag() if count == 0 else False
        if base:
            if bits.flag():
                if bits.ue() != 1:
                    raise BitstreamError("a generator sent as bytes cannot be used; expected one named by a URI")
                bits.align()
                tag, uri = bits.text(), bits.text()
                if tag != URI_TAG:
                    raise BitstreamError(f"a generator of another kind, {tag!r}; expected {URI_TAG!r}")
                if uri != self.uri:
                    raise PackMismatchError(f"these are for {uri!r:.80}, loaded is {self.uri!r}: give that pack")
            if bits.flag():
                raise BitstreamError("a chroma key, which means nothing to this generator")
        else:
            bits.flag()
            if self._memory.previous is None:
                raise BitstreamError("a picture before the first base picture; wait for one")
        before = None if base else self._memory.previous
        sure = not bits.flag()
        points = self._points(bits, before) if bits.flag() else None
        matrix, matrix_bits = self._matrix(bits, before) if bits.flag() else (None, INTEGER_BITS)
        self._memory.previous = Parameters(points, matrix, matrix_bits, sure)
        return self._memory.previous

    @staticmethod
    def _points(bits: _BitReader, before: Parameters | None) -> Array:
        predicted, old = bits.flag(), None if before is None else before.points
        if not predicted:
            if (found := bits.ue() + 1) != POINT_BITS:
                raise BitstreamError(f"coordinates of {found} fraction bits; expected {POINT_BITS}")
            count = bits.ue() + 1
            if count > POINTS_MAX or not bits.flag():
                raise LimitError(f"{count} points or no depth; allowed are {POINTS_MAX}, with depth")
            bits.ue()
            return np.array([bits.signed() for _ in range(3 * count)]).reshape(count, 3)
        if old is None:
            raise BitstreamError("predicted coordinates without any before them")
        return old + np.array([bits.signed() for _ in range(old.size)]).reshape(old.shape)

    @staticmethod
    def _matrix(bits: _BitReader, before: Parameters | None) -> tuple[Array, int]:
        predicted = bits.flag() if before is not None else False
        old = before.matrix if before is not None else None
        if predicted:
            if before is None or old is None:
                raise BitstreamError("a predicted matrix without one before it")
            height, width, fraction = *old.shape, before.matrix_bits
        else:
            fraction = bits.ue() + 1
            if fraction > 32 or bits.ue() or bits.code(6) < 7 or bits.ue():
                raise BitstreamError("a matrix other than one of a free type")
            width, height = bits.ue() + 1, bits.ue() + 1
            if width * height > ELEMENTS_MAX:
                raise LimitError(f"a matrix of {height} x {width}; at most {ELEMENTS_MAX} elements are read")
        values = []
        for _ in range(width * height):
            whole, part = bits.ue(), bits.ue() if predicted else bits.code(fraction)
            value = (whole << fraction) + part
            values.append(-value if value and bits.flag() else value)
        found = np.array(values, object).reshape(height, width)  # ints of any size, until they have been checked
        found = found if old is None or not predicted else old + found
        if np.abs(found).max() > VALUE_MAX:
            raise LimitError(f"a matrix of numbers beyond {VALUE_MAX}; no larger ones are read")
        return found.astype(np.int64), fraction


def from_state(values: Sequence[int]) -> Parameters:
    """Coefficients form: the decoder's integers, exactly."""
    return Parameters(None, np.array(values, np.int64)[None] << INTEGER_BITS)


def to_state(found: Parameters) -> tuple[int, ...]:
    """Inverse of :func:`from_state`."""
    if found.matrix is None or found.matrix.shape[0] != 1:
        raise BitstreamError("these parameters hold no row of coefficients")
    return tuple((found.matrix[0] >> found.matrix_bits).tolist())


def from_motion(motion: MotionParams, canonical: Array) -> Parameters:
    """Keypoints form: driving points and rotation, rounded."""
    points = np.rint(motion.keypoints(canonical).astype(np.float64) * (1 << POINT_BITS)).astype(np.int64)
    rotation = np.rint(motion.rotation.astype(np.float64) * (1 << MATRIX_BITS)).astype(np.int64)
    return Parameters(points, rotation, MATRIX_BITS)


def sei_message(payload: bytes) -> bytes:
    """Type and size in front (H.274 / H.266 7.3.6), for a SEI NAL unit that the host codec wraps and escapes."""
    size = len(payload)
    return bytes((PAYLOAD_TYPE,)) + b"\xff" * (size // 255) + bytes((size % 255,)) + payload


# --- bits ------------------------------------------------------------------------------------------------------------


class _BitWriter:
    def __init__(self) -> None:
        self._bits: list[str] = []
        self._count = 0

    def code(self, value: int, count: int) -> None:
        self._bits.append(f"{value:0{count}b}")
        self._count += count

    def flag(self, value: bool) -> None:
        self.code(int(value), 1)

    def ue(self, value: int) -> None:
        length = (value + 1).bit_length()
        self.code(value + 1, 2 * length - 1)

    def signed(self, value: int) -> None:
        """Magnitude, then a sign unless it is zero."""
        self.ue(abs(value))
        if value:
            self.flag(value < 0)

    def align(self) -> None:
        self.code(0, -self._count % 8) if self._count % 8 else None

    def text(self, value: str) -> None:
        for byte in value.encode() + b"\0":
            self.code(byte, 8)

    def bytes(self) -> bytes:
        text = "".join(self._bits) + "1"  # payload_bit_equal_to_one, then zeros
        text += "0" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big")


class _BitReader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._end = int.from_bytes(data, "big"), 0, 8 * len(data)

    def code(self, count: int) -> int:
        self._at += count
        if self._at > self._end:
            raise TruncatedError("the SEI payload ends inside a field", offset=self._end // 8)
        return self._data >> (self._end - self._at) & ((1 << count) - 1)

    def flag(self) -> bool:
        return bool(self.code(1))

    def ue(self) -> int:
        zeros = 0
        while not self.code(1):
            zeros += 1
            if zeros > 32:
                raise LimitError("an Exp-Golomb number of more than 32 bits", offset=self._at // 8)
        return (1 << zeros | self.code(zeros)) - 1

    def signed(self) -> int:
        value = self.ue()
        return -value if value and self.flag() else value

    def align(self) -> None:
        self.code(-self._at % 8)

    def text(self) -> str:
        found = bytearray()
        while byte := self.code(8):
            found.append(byte)
        return found.decode("utf-8", "replace")


# --- a stream --------------------------------------------------------------------------------------------------------


def convert(path: Path, pack_source: str | None, out: Path | None) -> dict[str, Any]:
    """Both forms of a stream's motion, read back and compared; figures in bytes a frame."""
    from neuralcodec.container import ContainerReader
    from neuralcodec.entropy import EntropyCoder
    from neuralcodec.inference import Inference
    from neuralcodec.pack import load_pack
    from neuralcodec.packet import Motion, ReferencePart, StreamHeader, Update
    from neuralcodec.pictures import Pictures
    from neuralcodec.quantizer import Quantizer, start_state
    from neuralcodec.stats import DecoderStats

    pack = load_pack(pack_source)
    tables, pictures = pack.tables, Pictures(pack, Inference(pack, device="cpu"), DecoderStats())
    quantizer, coder = Quantizer(tables), EntropyCoder(tables)
    uri = f"urn:neuralcodec:pack:{pack.id.hex()}"
    writers, readers = [GfvWriter(uri), GfvWriter(uri)], [GfvReader(uri), GfvReader(uri)]
    sizes: list[list[int]] = [[], [], []]
    header: StreamHeader | None = None
    messages, worst, active = [], 0.0, 0
    with open(path, "rb") as file:
        for packet in ContainerReader(file):
            header = packet if isinstance(packet, StreamHeader) else header
            if header is not None and header.pack_id != pack.id:
                raise PackMismatchError(
                    f"{path} needs the model pack {header.pack_id.hex()}, loaded is {pack.id.hex()}: give that one"
                )
            if isinstance(packet, ReferencePart | Update):
                assert header is not None, "a container begins with it"
                pictures.add(packet, header)
            if not isinstance(packet, Motion):
                continue
            if packet.reference is not None:
                active = packet.reference
                quantizer.new_reference()
            if (held := pictures.get(active)) is None:
                raise BitstreamError(f"{path} has motion for the picture {active}, which it does not hold")
            canonical = held.features.canonical
            state = start_state(tables) if packet.intra else quantizer.state
            group = coder.decode_group(
                packet.payload, packet.frames, level=packet.level, components=packet.components, intra=packet.intra,
                state=state,
            )  # fmt: skip
            sizes[0] += [len(bytes(packet)) // packet.frames] * packet.frames
            for symbols in group:
                motion = quantizer.inverse(symbols)
                forms = from_state(quantizer.state.values), from_motion(motion, canonical)
                for k, form in enumerate(forms):
                    payload = writers[k].write(form, base=packet.intra)
                    found = readers[k].read(payload)
                    sizes[k + 1].append(len(payload))
                    if k == 0:
                        messages.append(sei_message(payload))
                        assert to_state(found) == quantizer.state.values, "the integers must come back exactly"
                    else:
                        assert found.points is not None
                        error = found.points / (1 << POINT_BITS) - motion.keypoints(canonical)
                        worst = max(worst, float(np.abs(error[:, :2]).max()) * 128)
    if not messages:
        raise BitstreamError(f"{path} holds no motion")
    if out:
        write_whole(out, b"".join(messages))
    stream, coefficients, keypoints = (float(np.mean(s)) for s in sizes)
    return {"frames": len(messages), "stream": stream, "coefficients": coefficients, "keypoints": keypoints,
            "worst_px": worst}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A stream's motion as Generative Face Video SEI payloads and back.")
    parser.add_argument("stream", type=Path, metavar="FILE.ncv")
    parser.add_argument("--out", type=Path, metavar="FILE.sei", help="SEI messages of the coefficients form, joined")
    parser.add_argument("--pack")
    options = parser.parse_args(arguments)
    try:
        figures = convert(options.stream, options.pack, options.out)
    except (NeuralCodecError, OSError) as error:
        print(f"export.gfv_sei: {reason(error)}", file=sys.stderr)
        return 1
    print(f"{figures['frames']} frames, bytes a frame: motion packets {figures['stream']:.1f}, SEI coefficients "
          f"{figures['coefficients']:.1f} (exact), SEI keypoints {figures['keypoints']:.1f} "
          f"(within {figures['worst_px']:.2f} px of 256)")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""References as pictures of one slow AV1 stream: each is predicted from those before it and costs a tenth of a still.

Both ends keep the state of the AV1 decoder. The first picture is a key; every further one is an *update*, which follows
only the picture it was made after, and a digest over the whole chain says whether it does (FORMAT.md section 7.1).
SVT-AV1 runs at constant quality, one picture in and one out: it cannot be told a byte budget in the middle of a stream,
so a rate is kept by how often pictures are taken, not by how well. Knows no networks, packets or when to send.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from .errors import BitstreamError, InferenceError, LimitError, TruncatedError
from .frame_header import HeaderCoder
from .reference import (
    DECODER,
    ENCODER,
    OBU_FRAME,
    OBU_SEQUENCE,
    PAYLOAD_MAX,
    TEMPORAL_DELIMITER,
    obu,
    obus,
    open_codec,
    open_encoder,
    picture_of,
    planes_from_rgb,
    rgb_from_planes,
    size_bits,
    video_frame,
    whole_bytes,
)

if TYPE_CHECKING:
    import av

Array = NDArray[Any]

HASH_BYTES = 4  # of a digest that an update carries
CRF_WORST, CRF_BEST = 70, 20  # of SVT-AV1: its coarsest; and one past which renders gain nothing
PROBE_PRESET = 8  # finds the quality for a byte budget; keys of slower presets are a tenth smaller
PROBE_RATIO = 0.88
# Left alone SVT-AV1 spends in layers: of four updates the first and third came out 1.8 dB coarser than the fourth and
# 3.5 coarser than the key, and shown as references they were dark blocks on faces. So every update has one quantizer
# index, ``coarser`` (of AV1's 255) above that of the key, whose quality all of them build on (rate.UPDATES_COARSER).
# hierarchical-levels now only says which pictures an update is predicted from; 2 is from before, 0 is refused, and
# others were not compared.
_PARAMETERS = (
    "pred-struct=1:keyint=-1:scd=0:tune=1:lp=1:hierarchical-levels=2:use-fixed-qindex-offsets=1"
    ":qindex-offsets=[0,0,0,0,0,0]"
)
# What follows the picture size in the AV1 sequence header (spec 5.5.1); x marks the tools that the flags speak of:
# use_128x128_superblock, filter_intra, intra_edge_filter, interintra_compound, masked_compound, warped_motion,
# dual_filter | jnt_comp, ref_frame_mvs | superres, cdef, restoration | separate_uv_delta_q. Order hints have 7 bits.
_TAIL = "0" + "xxxxxxx" + "1" + "xx" + "11" + "110" + "xxx" + "000000" + "x" + "0" + "1"
_FLAG_BITS = _TAIL.count("x")
CODED_HEADERS = 1 << _FLAG_BITS  # a further flag: frame_header.py has coded those of the updates


class ChainDecoder:
    """The receiving end. ``digest`` names the last picture, which the next update must follow; empty before a key."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.digest = b""
        self._context: Any = None
        self._headers: HeaderCoder | None = None

    def key(self, coded: bytes) -> Array:
        """Start a chain: uint8 RGB (S, S, 3) of a coded key picture."""
        self.digest = b""
        if len(coded) < 3:
            raise TruncatedError(f"A coded key picture has at least 3 bytes; {len(coded)} found.", offset=len(coded))
        flags = int.from_bytes(coded[:2], "big")
        if flags >= 2 * CODED_HEADERS:
            raise BitstreamError("The key was coded in a way this version does not know: it sets reserved flags.")
        self._context = open_codec(DECODER, "r")
        self._context.thread_count = 1  # with more, a picture would come out only when the next one goes in
        tools = flags % CODED_HEADERS
        self._headers = HeaderCoder(self.size, tools) if flags & CODED_HEADERS else None
        sequence = obu(OBU_SEQUENCE, sequence_header(self.size, tools))
        picture = self._decode(sequence + obu(OBU_FRAME, coded[2:]))
        self.digest = chain_digest(b"", coded)
        return picture

    def follows(self, coded: bytes, hash: bytes) -> bool:
        """Whether these are the bytes of the next picture of this chain; ``hash``: the start of its digest."""
        return bool(self.digest) and chain_digest(self.digest, coded)[:HASH_BYTES] == hash

    def update(self, coded: bytes, hash: bytes) -> Array:
        """The next picture, uint8 RGB (S, S, 3). Bad bytes raise BitstreamError and end the chain."""
        if not self.follows(coded, hash):
            raise BitstreamError("The update does not follow the last picture of its chain.")
        digest, self.digest = chain_digest(self.digest, coded), b""  # until it has proved good
        frame = coded if self._headers is None else self._headers.restore(coded)
        picture = self._decode(obu(OBU_FRAME, frame))
        self.digest = digest
        return picture

    def _decode(self, units: bytes) -> Array:
        import av

        if len(units) > PAYLOAD_MAX:
            raise LimitError(f"A coded reference of {len(units)} bytes exceeds the limit of {PAYLOAD_MAX}.")
        try:
            frames = self._context.decode(av.Packet(TEMPORAL_DELIMITER + units))
        except av.FFmpegError as error:
            raise BitstreamError("The coded reference is damaged: the AV1 decoder cannot read it.") from error
        if len(frames) != 1:
            raise BitstreamError(f"A coded reference must show one picture; {len(frames)} found.")
        return rgb_from_planes(picture_of(frames[0], self.size))


class ChainEncoder:
    """The sending end: one picture in, its bytes and what the receiver sees out. coarser: see `start_chain`."""

    def __init__(self, size: int, crf: int, preset: int, coarser: int) -> None:
        self.size = size
        self._receiver = ChainDecoder(size)
        self._context = _svt(size, crf, preset, coarser)
        self._pictures = 0
        self._headers: HeaderCoder | None = None  # from the key on

    @property
    def digest(self) -> bytes:
        """Of the last picture coded."""
        return self._receiver.digest

    def code(self, image: Array) -> tuple[bytes, Array]:
        """Code the next uint8 RGB (S, S, 3) picture; the first is the key."""
        sequence, coded = _coded(self._context, planes_from_rgb(image), self._pictures)
        self._pictures += 1
        if self._headers is None:
            tools = _flags(sequence, self.size)
            self._headers = HeaderCoder(self.size, tools)
            coded = (tools | CODED_HEADERS).to_bytes(2, "big") + coded
            return coded, self._receiver.key(coded)
        coded = self._headers.shorten(coded)
        return coded, self._receiver.update(coded, chain_digest(self.digest, coded)[:HASH_BYTES])


def start_chain(
    image: Array, *, max_bytes: int, preset: int, coarser: int, typical: Array | None = None
) -> tuple[ChainEncoder, bytes, Array]:
    """A chain whose key takes ``max_bytes`` or a little less; with it the key's bytes and what the receiver sees.

    The key's budget sets the quality of the whole chain, ``coarser`` how much less updates have: quantizer indices.
    typical: one of the pictures to come, in which there is much more or less. The quality is then the one at which that
    would take ``max_bytes`` as a key; the key itself takes twice as much at most.
    """
    crf = 0
    if typical is not None:
        crf, max_bytes = _finest(typical, max_bytes, coarser), 2 * max_bytes
    crf = max(crf, _finest(image, max_bytes, coarser))
    while True:  # slower presets mostly save PROBE_RATIO, but not on every picture
        chain = ChainEncoder(image.shape[0], crf, preset, coarser)
        coded, shown = chain.code(image)
        if len(coded) <= max_bytes or crf == CRF_WORST:
            return chain, coded, shown
        crf += 1


def _finest(image: Array, max_bytes: int, coarser: int) -> int:
    """The finest quality at which a picture is expected to take so many bytes as a key."""
    planes, low, high = planes_from_rgb(image), CRF_BEST, CRF_WORST
    while low < high:
        middle = (low + high) // 2
        length = len(_coded(_svt(image.shape[0], middle, PROBE_PRESET, coarser), planes, 0)[1])
        low, high = (low, middle) if length * PROBE_RATIO <= max_bytes else (middle + 1, high)
    return low


def chain_digest(before: bytes, coded: bytes) -> bytes:
    """32 bytes that name a picture and, through the digest before it (empty for a key), all it was built on."""
    return hashlib.sha256(before + coded).digest()


# --- AV1 through PyAV ------------------------------------------------------------------------------------------------


def _svt(size: int, crf: int, preset: int, coarser: int) -> av.VideoCodecContext:
    return open_encoder(size, preset, f"{_PARAMETERS}:key-frame-qindex-offset=-{coarser}:crf={crf}")


def _coded(context: av.VideoCodecContext, planes: list[Array], index: int) -> tuple[bytes, bytes]:
    """Sequence header (of a key, else empty) and frame payload of the next picture."""
    import av

    frame = video_frame(planes)
    frame.pts = index
    try:
        packets = context.encode(frame)
    except av.FFmpegError as error:
        raise InferenceError(f"The AV1 encoder {ENCODER} failed on a reference picture ({error}).") from error
    units = obus(b"".join(bytes(packet) for packet in packets))
    frames = [payload for kind, payload in units if kind == OBU_FRAME]
    if len(frames) != 1:
        raise InferenceError(
            f"This PyAV's {ENCODER} gave {len(frames)} pictures for one; neuralcodec was tested with PyAV 18.1."
        )
    return dict(units).get(OBU_SEQUENCE, b""), frames[0]


def sequence_header(size: int, flags: int) -> bytes:
    """AV1 sequence header (spec 5.5) of a chain: main profile, level 31, 8 bit, 4:2:0, square."""
    values = iter(f"{flags:0{_FLAG_BITS}b}")
    bits = "0" * 24 + "11111" + "0"  # main profile, moving pictures, one operating point; level "any size", main tier
    return whole_bytes(bits + size_bits(size) + "".join(next(values) if bit == "x" else bit for bit in _TAIL))


def _flags(sequence: bytes, size: int) -> int:
    """The tools that our own encoder's sequence header speaks of."""
    bits = "".join(f"{byte:08b}" for byte in sequence)
    level = "(?:00[01]{3}|[01]{5}0)"  # a tier bit follows levels above 7
    match = re.fullmatch("0{24}" + level + size_bits(size) + _TAIL.replace("x", "([01])") + "0*", bits)
    if match is None:
        raise InferenceError(
            f"This PyAV's {ENCODER} wrote an AV1 sequence header ({sequence.hex()}) that a chain of references cannot "
            "use; neuralcodec was tested with PyAV 18.1."
        )
    return int("".join(match.groups()), 2)

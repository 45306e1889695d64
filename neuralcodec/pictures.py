"""The reference pictures a receiver holds: put together, checked, decoded, each in its place (FORMAT.md 3.2, 3.6, 12).

A picture that arrives is a still, the key of a chain, an update of the chain's last picture, or the surroundings. None
is shown, and none advances the chain, before its hash is right and, where one sender is trusted, its signature.
Nothing here waits or asks: an update that is missing stops the chain until it comes, or until another key does.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .chain import ChainDecoder
from .face import Square, resize
from .fragments import Assembler, Part
from .inference import Inference, ReferenceFeatures
from .motion import Array
from .pack import Pack
from .packet import DIMENSION_MAX, REFERENCES_MAX, SIGNED, Parity, StreamHeader, Update
from .reference import BACKDROP, KEY, PICTURE, UPDATE, decode_reference
from .signing import SIGNATURE_BYTES, check_context, public_key, statement, verify
from .stats import DecoderStats, timed

KNOWN_MAX = 64  # keys and stills remembered, so that a late double is known as one
EARLY_MAX = 8  # updates that came before the one they follow

Crop = tuple[int, int, int]


@dataclass(frozen=True)
class HeldPicture:
    """One that can be rendered from. ``id`` is the whole one; it stands in place ``id`` modulo REFERENCES_MAX. shot:
    counts keys, stills and crops; pictures of one shot show the same person from the same place."""

    id: int
    hash: bytes
    features: ReferenceFeatures
    crop: Square
    shot: int


class Pictures:
    """All pictures of one stream.

    trusted: an Ed25519 public key in any form signing.py reads, or None. context: what was signed besides.
    max_side: of a crop, source pixels; a picture cut from a larger square is dropped.
    """

    def __init__(
        self, pack: Pack, networks: Inference, stats: DecoderStats, trusted: Any = None, context: bytes = b"", *,
        max_side: int = 2 * DIMENSION_MAX,
    ) -> None:  # fmt: skip
        self.networks = networks
        self.backdrop: Array | None = None  # uint8 RGB, of the source's size
        self._pack, self._stats, self._max_side = pack, stats, max_side
        check_context(context)
        self._trusted, self._context = None if trusted is None else public_key(trusted), context
        self._held: dict[int, HeldPicture] = {}  # by place
        self._known: deque[tuple[int, bytes]] = deque(maxlen=KNOWN_MAX)  # id and hash of keys and stills that were held
        self._shot = 0
        self._assembler = Assembler()
        self._chain = ChainDecoder(pack.size)
        self._chain_crop: Crop = (0, 0, 1)  # of its last picture
        self._early: list[tuple[Update, bytes]] = []

    def get(self, reference: int) -> HeldPicture | None:
        """The picture of this id, unless it never came or another has taken its place."""
        held = self._held.get(reference % REFERENCES_MAX)
        return held if held is not None and held.id == reference else None

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all that are held, rising."""
        return tuple(sorted(held.id for held in self._held.values()))

    def add(self, part: Part, header: StreamHeader, *, lacking: bool = True) -> None:
        """One packet more. lacking: motion names a picture that is not here. Raises BitstreamError for a picture that
        cannot be decoded; its chain then ends."""
        codec, signed = _coding(part)
        if not isinstance(part, Update) and codec not in (PICTURE, BACKDROP, KEY):
            return
        side = min(Square.side_most(header.width, header.height, header.size), self._max_side)
        if part.crop is not None and part.crop[2] > side:
            return  # a square far larger than the source has no use but to fill the memory
        if self._trusted is not None and not signed:
            self._stats.rejected_references += part.index == 0 and not isinstance(part, Parity)
            return
        held = None if codec == BACKDROP else self.get(part.reference)
        double = held is not None and held.hash == part.hash
        if double and not isinstance(part, Update):
            return
        if not lacking and (part.reference, part.hash) in self._known:
            return  # late: a newer picture has its place, and the chain that goes on must not end for it
        damaged = self._assembler.damaged
        coded = self._assembler.add(part)
        self._stats.damaged_references += self._assembler.damaged - damaged
        if held is not None and not double and self._trusted is None:
            # its id is taken by another; motion that names it must not show the old one
            del self._held[part.reference % REFERENCES_MAX]
        if coded is None:
            return
        if isinstance(part, Update):
            if (part, coded) not in self._early and not (double and not self._follows(part, coded)):
                self._early.append((part, coded))
            self._follow(header)
            del self._early[:-EARLY_MAX]
            return
        picture = self._accepted(part, coded, part.crop, header)
        if picture is None:
            return
        with self._timed():
            if codec == BACKDROP:
                self.backdrop = resize(decode_reference(picture, header.size), header.width, header.height)
                return
            if codec == PICTURE:
                pixels = decode_reference(picture, header.size)
            else:
                self._chain, self._chain_crop = ChainDecoder(header.size), part.crop
                pixels = self._chain.key(picture)
            self._shot += 1
            self._hold(part.reference, part.hash, pixels, part.crop)
        self._known.append((part.reference, part.hash))
        self._stats.references += 1
        self._follow(header)

    def _follow(self, header: StreamHeader) -> None:
        """Decode every update that is here and follows the last picture of the chain."""
        while found := next((early for early in self._early if self._follows(*early)), None):
            self._early.remove(found)
            part, coded = found
            crop = part.crop or self._chain_crop
            picture = self._accepted(part, coded, crop, header, self._chain.digest)
            if picture is None:
                continue
            with self._timed():
                pixels = self._chain.update(picture, part.hash)
                self._shot += crop != self._chain_crop
                self._chain_crop = crop
                self._hold(part.reference, part.hash, pixels, crop)
            self._stats.updates += 1

    def _follows(self, part: Update, coded: bytes) -> bool:
        return self._chain.follows(_bare(part, coded), part.hash)

    def _accepted(
        self, part: Part, coded: bytes, crop: Crop, header: StreamHeader, before: bytes = b""
    ) -> bytes | None:
        """The picture without its signature; None where that is not the trusted sender's."""
        codec, picture = _coding(part)[0], _bare(part, coded)
        if self._trusted is not None:
            source = header.width, header.height
            said = statement(self._pack.id, source, part.reference, codec, crop, picture, self._context, before)
            if not verify(self._trusted, coded[:SIGNATURE_BYTES], said):
                self._stats.rejected_references += 1
                return None
        return picture

    def _hold(self, reference: int, hash: bytes, pixels: Array, crop: Crop) -> None:
        held = HeldPicture(reference, hash, self.networks.reference(pixels), Square(*crop), self._shot)
        self._held[reference % REFERENCES_MAX] = held
        self._stats.provider = self.networks.provider

    def _timed(self) -> AbstractContextManager[None]:
        return timed(self._stats.stage_seconds, "reference")


def _coding(part: Part) -> tuple[int, bool]:
    """Codec number, and whether a signature precedes the picture."""
    return (UPDATE, part.signed) if isinstance(part, Update) else (part.codec & ~SIGNED, bool(part.codec & SIGNED))


def _bare(part: Part, coded: bytes) -> bytes:
    return coded[SIGNATURE_BYTES:] if _coding(part)[1] else coded

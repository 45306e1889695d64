"""Coded pictures in pieces: split into packets that fit a datagram, XOR parity, and joined again (FORMAT.md 3.2, 3.7).

Knows no pictures and no networks. Nothing is kept for a picture beyond ARRIVING_MAX of them and PICTURE_MAX bytes each.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from .fields import FRAGMENTS_MAX
from .packet import PACKET_MAX, UPDATE_FRAGMENTS_MAX, Parity, ReferencePart, Update

PART_BYTES = 1150  # of a picture in one packet, so that it fits a datagram with room for headers
ARRIVING_MAX = 4  # pictures in pieces at a time
PICTURE_MAX = PACKET_MAX

UPDATE_MAX = UPDATE_FRAGMENTS_MAX * PART_BYTES  # bytes of a coded update, signature included

Part = ReferencePart | Parity | Update
_Key = tuple[int, int, bool, int, bytes, tuple[int, int, int] | None]


def split(
    coded: bytes, *, reference: int, codec: int, crop: tuple[int, int, int], parity: int = 0,
    part_bytes: int = PART_BYTES,
) -> list[ReferencePart | Parity]:
    """Packets of a coded picture: equally long fragments, then up to ``parity`` XORs of them.

    One parity packet makes up for any one lost fragment (a picture of one fragment is simply sent twice); g of them
    for one in each of g interleaved groups. part_bytes: of a fragment at most, where FRAGMENTS_MAX of them are enough.
    """
    pieces = _pieces(coded, part_bytes, FRAGMENTS_MAX)
    digest, count, groups = hashlib.sha256(coded).digest()[:4], len(pieces), min(parity, len(pieces))
    parts = [ReferencePart(reference, i, count, codec, digest, crop, piece) for i, piece in enumerate(pieces)]
    sums = [_xor(pieces[i::groups], len(pieces[0])) for i in range(groups)]
    return parts + [
        Parity(reference, i, groups, count, codec, digest, crop, len(coded), value) for i, value in enumerate(sums)
    ]


def split_update(
    coded: bytes, *, reference: int, hash: bytes, crop: tuple[int, int, int] | None = None, signed: bool = False,
    part_bytes: int = PART_BYTES,
) -> list[Update]:
    """Packets of a coded update of at most UPDATE_MAX bytes, the signature in front of it included.

    part_bytes: of a fragment at most, where UPDATE_FRAGMENTS_MAX of them are enough.
    """
    pieces = _pieces(coded, part_bytes, UPDATE_FRAGMENTS_MAX)
    return [Update(reference, i, len(pieces), hash, piece, crop, signed) for i, piece in enumerate(pieces)]


def _pieces(coded: bytes, part_bytes: int, most: int) -> list[bytes]:
    """Equally long but the last, which may be shorter; of ``part_bytes`` where ``most`` of them are enough."""
    part_bytes = min(PART_BYTES, max(part_bytes, -(-len(coded) // most)))
    size = -(-len(coded) // -(-len(coded) // part_bytes))
    return [coded[i : i + size] for i in range(0, len(coded), size)]


@dataclass
class _Arriving:
    pieces: dict[int, bytes] = field(default_factory=dict)
    sums: dict[tuple[int, int], Parity] = field(default_factory=dict)  # (index, groups)

    def size(self) -> int:
        return sum(map(len, self.pieces.values())) + sum(len(p.payload) for p in self.sums.values())

    def restore(self) -> None:
        """Fill in every fragment that is the only one missing in a parity's group."""
        for (index, groups), parity in self.sums.items():
            missing = [i for i in range(index, parity.count, groups) if i not in self.pieces]
            if len(missing) == 1:
                size = len(parity.payload)
                others = [self.pieces[i] for i in range(index, parity.count, groups) if i in self.pieces]
                if all(len(piece) <= size for piece in others):
                    left = parity.length - missing[0] * size  # of the picture, from this fragment on
                    self.pieces[missing[0]] = _xor([parity.payload, *others], size)[:left]


class Assembler:
    """Collects the pieces of pictures in any order. ``damaged`` counts pictures whose pieces do not fit together.

    The hash of an update can be checked only by who knows the picture before it: it is taken as it comes.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self._arriving: dict[_Key, _Arriving] = {}

    def add(self, part: Part) -> bytes | None:
        """The whole coded picture when this part completes it, else None."""
        codec, signed = (0, part.signed) if isinstance(part, Update) else (part.codec, False)
        key = (part.reference, codec, signed, part.count, part.hash, part.crop)
        arriving = self._arriving.setdefault(key, _Arriving())
        if isinstance(part, Parity):
            arriving.sums[part.index, part.groups] = part
        else:
            arriving.pieces[part.index] = part.payload
        if arriving.size() > PICTURE_MAX:
            self._drop(key)
            return None
        arriving.restore()
        if len(arriving.pieces) < part.count:
            while len(self._arriving) > ARRIVING_MAX:  # pictures that never become whole must not fill the memory
                self._arriving.pop(next(iter(self._arriving)))
            return None
        coded = b"".join(arriving.pieces[i] for i in range(part.count))
        if not isinstance(part, Update) and hashlib.sha256(coded).digest()[:4] != part.hash:
            self._drop(key)
            return None
        del self._arriving[key]
        return coded

    def _drop(self, key: _Key) -> None:
        del self._arriving[key]
        self.damaged += 1


def _xor(pieces: list[bytes], size: int) -> bytes:
    value = 0
    for piece in pieces:
        value ^= int.from_bytes(piece.ljust(size, b"\0"), "big")
    return value.to_bytes(size, "big")

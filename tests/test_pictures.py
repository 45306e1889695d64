"""Held pictures: chains that wait, catch up and start again; doubles; and what is not the trusted sender's."""

from dataclasses import replace

import numpy as np
import pytest

from neuralcodec.chain import HASH_BYTES, chain_digest, start_chain
from neuralcodec.errors import BitstreamError
from neuralcodec.fragments import Part, split, split_update
from neuralcodec.inference import Inference
from neuralcodec.pack import Pack, load_pack
from neuralcodec.packet import SIGNED, ReferencePart, StreamHeader, Update, parse_packet
from neuralcodec.pictures import EARLY_MAX, Pictures
from neuralcodec.reference import KEY, UPDATE
from neuralcodec.signing import private_key, public_hex, sign, statement
from neuralcodec.stats import DecoderStats

PLACE = (0, 0, 256)
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack()


@pytest.fixture(scope="module")
def networks(pack: Pack) -> Inference:
    return Inference(pack, device="cpu", threads=1)


@pytest.fixture(scope="module")
def coded(portrait_clip: list[np.ndarray]) -> list[tuple[bytes, bytes, np.ndarray]]:
    """A key and nine updates: bytes, digest, picture."""
    chain, key, shown = start_chain(portrait_clip[0], max_bytes=1200, preset=8, coarser=44)
    found = [(key, chain.digest, shown)]
    for image in portrait_clip[1:10]:
        update, shown = chain.code(image)
        found.append((update, chain.digest, shown))
    return found


def packets(coded: list[tuple[bytes, bytes, np.ndarray]], pack: Pack, secret: bytes = b"") -> list[list[Part]]:
    out: list[list[Part]] = []
    for number, (data, digest, _) in enumerate(coded):
        codec, before, signature = (UPDATE, coded[number - 1][1], b"") if number else (KEY, b"", b"")
        if secret:
            said = statement(pack.id, (256, 256), number, codec, PLACE, data, b"", before)
            signature = sign(private_key(secret), said)
        if number:
            hash = digest[:HASH_BYTES]
            out.append([*split_update(signature + data, reference=number, hash=hash, signed=bool(signature))])
        else:
            codec |= SIGNED * bool(signature)
            out.append([*split(signature + data, reference=number, codec=codec, crop=PLACE)])
    return out


class Receiver:
    def __init__(self, pack: Pack, networks: Inference, **options: object) -> None:
        self.header = StreamHeader(pack.id, 256, 256, (1, 25), 1, pack.size)
        self.stats = DecoderStats()
        self.pictures = Pictures(pack, networks, self.stats, **options)  # type: ignore[arg-type]

    def take(self, parts: list[Part]) -> None:
        for part in parts:
            data = parse_packet(bytes(part))
            assert isinstance(data, ReferencePart | Update)
            self.pictures.add(data, self.header)


def test_a_chain_is_followed_to_the_same_pictures(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver = Receiver(pack, networks)
    for number, parts in enumerate(packets(coded, pack)):
        receiver.take(parts)
        held = receiver.pictures.get(number)
        assert held is not None and np.array_equal(held.features.picture, coded[number][2])
        assert held.crop.side == 256 and held.shot == 1
    assert receiver.pictures.ids == tuple(range(2, 10)) and receiver.pictures.get(1) is None
    assert (receiver.stats.references, receiver.stats.updates) == (1, 9)


def test_a_missing_update_stops_the_chain_until_it_comes(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    for parts in [*sent[:3], *sent[4:8]]:
        receiver.take(parts)
    assert receiver.pictures.ids == (0, 1, 2)
    receiver.take(sent[3])
    assert receiver.pictures.ids == tuple(range(8)) and receiver.stats.updates == 7
    held = receiver.pictures.get(7)
    assert held is not None and np.array_equal(held.features.picture, coded[7][2])


def test_updates_before_their_key_and_in_any_order(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    for number in (3, 1, 2, 0):
        receiver.take(sent[number])
    assert receiver.pictures.ids == (0, 1, 2, 3)


def test_a_late_double_of_a_key_does_not_end_the_chain(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    for parts in sent[:9]:
        receiver.take(parts)
    for part in sent[0]:
        receiver.pictures.add(part, receiver.header, lacking=False)
    assert receiver.pictures.ids == tuple(range(1, 9))
    receiver.take(sent[9])
    receiver.take(sent[0])  # it may be what motion waits for
    assert receiver.pictures.get(0) is not None and receiver.pictures.get(9) is not None


def test_a_square_too_large_to_draw_is_dropped(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver = Receiver(pack, networks, max_side=255)
    receiver.take(packets(coded, pack)[0])
    assert receiver.pictures.ids == ()


def test_doubles_change_nothing(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    """A key that comes again must not start its chain over."""
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    for parts in sent[:8]:
        receiver.take(parts)
        receiver.take(parts)
    for parts in reversed(sent[:8]):
        receiver.take(parts)
    assert receiver.pictures.ids == tuple(range(8)) and receiver.stats.updates == 7
    receiver.take(sent[8])
    assert receiver.pictures.get(8) is not None and receiver.stats.references == 1


def test_a_stream_that_starts_again_is_followed_again(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    for parts in [*sent, *sent]:
        receiver.take(parts)
    assert receiver.pictures.ids == tuple(range(2, 10)) and receiver.stats.references == 2


def test_a_new_key_starts_over(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]], portrait_clip: list[np.ndarray]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    for parts in [sent[0], *sent[2:5]]:  # an update that never comes
        receiver.take(parts)
    chain, key, _ = start_chain(portrait_clip[12], max_bytes=900, preset=8, coarser=44)
    receiver.take([*split(key, reference=5, codec=KEY, crop=PLACE)])
    update, shown = chain.code(portrait_clip[13])
    receiver.take([*split_update(update, reference=6, hash=chain.digest[:4], crop=(8, 8, 200))])
    held = receiver.pictures.get(6)
    assert held is not None and np.array_equal(held.features.picture, shown) and held.crop.side == 200
    assert receiver.pictures.ids == (0, 5, 6)
    update, _ = chain.code(portrait_clip[14])
    receiver.take([*split_update(update, reference=7, hash=chain.digest[:4])])  # cut from where the one before was
    shots = [receiver.pictures.get(number).shot for number in (0, 5, 6, 7)]  # type: ignore[union-attr]
    assert shots == [1, 2, 3, 3]


def test_hostile_updates_fill_no_memory_and_do_not_block_the_true_one(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    receiver.take(sent[0])
    (true,) = sent[1]
    assert isinstance(true, Update)
    for number in range(50):
        receiver.take([replace(true, payload=bytes([number]) + true.payload)])
    assert len(receiver.pictures._early) <= EARLY_MAX and receiver.pictures.ids == (0,)
    receiver.take(sent[1])
    assert receiver.pictures.ids == (0, 1)


def test_an_update_of_garbage_ends_its_chain_only(
    pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]
) -> None:
    receiver, sent = Receiver(pack, networks), packets(coded, pack)
    receiver.take(sent[0])
    garbage = b"\x10\x00\xff" * 20
    with pytest.raises(BitstreamError):
        receiver.take([*split_update(garbage, reference=1, hash=chain_digest(coded[0][1], garbage)[:4])])
    receiver.take(sent[1])
    assert receiver.pictures.ids == (0,)


def test_signed_chains(pack: Pack, networks: Inference, coded: list[tuple[bytes, bytes, np.ndarray]]) -> None:
    """Nothing but what the trusted key signed is shown, and nothing else moves the chain."""
    pytest.importorskip("cryptography")
    signed, plain = packets(coded, pack, SECRET), packets(coded, pack)
    trusted = public_hex(private_key(SECRET).public_key())
    receiver = Receiver(pack, networks, trusted=trusted)
    for parts in plain[:3]:
        receiver.take(parts)
    assert receiver.pictures.ids == () and receiver.stats.rejected_references == 3
    receiver.take(signed[0])
    digest = receiver.pictures._chain.digest
    (true,) = signed[1]
    assert isinstance(true, Update)
    attacks = [
        replace(true, payload=bytes(64) + true.payload[64:]),  # right picture, no signature
        replace(true, crop=(9, 9, 99)),  # elsewhere
        replace(true, reference=7),  # as another
        replace(true, payload=packets(coded, pack, bytes(32))[1][0].payload),  # by another key
    ]
    for number, attack in enumerate(attacks, 4):
        receiver.take([attack])
        assert receiver.stats.rejected_references == number and receiver.pictures._chain.digest == digest
    for parts in signed[1:]:
        receiver.take(parts)
    assert receiver.pictures.ids == tuple(range(2, 10)) and receiver.stats.updates == 9
    anybody = Receiver(pack, networks)
    for parts in signed:
        anybody.take(parts)
    assert anybody.pictures.ids == receiver.pictures.ids

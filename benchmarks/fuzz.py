"""Hostile bytes into the receiver: nothing but frames or BitstreamError may come out, fast, in flat memory.

``python -m benchmarks.fuzz --packets 10000000 --seed 1``. Three depths, each on mutated and on random packets:

    parse     parse_packet and back: what parses must give the same bytes again             all packets
    decode    a Decoder with everything but its networks: states, pictures in pieces, AV1    one in --decode-every
    render    a Decoder as it is, networks and all                                           one in --render-every

A warm stream runs in between, so that packets meet a decoder that holds references and follows motion. A failure is
printed with the packet in hex; the exit code is 1. ``--minutes`` stops early and says how far it came.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from neuralcodec.chain import HASH_BYTES, chain_digest, start_chain
from neuralcodec.decoder import DecodedFrame, Decoder
from neuralcodec.entropy import EntropyCoder
from neuralcodec.errors import BitstreamError, PackMismatchError
from neuralcodec.fields import signed_varint, varint
from neuralcodec.fragments import split
from neuralcodec.inference import MotionEstimate, ReferenceFeatures
from neuralcodec.motion import POSE_SIZE, MotionParams
from neuralcodec.pack import Pack, load_pack
from neuralcodec.packet import (
    Bundle,
    End,
    Extension,
    Feedback,
    Motion,
    Packet,
    ReferencePart,
    StreamHeader,
    Update,
    parse_packet,
)
from neuralcodec.protection import Aggregator
from neuralcodec.quantizer import Quantizer
from neuralcodec.reference import BACKDROP, KEY, PICTURE, encode_reference

HANG_SECONDS = 2.0  # of processor time for a packet that shows nothing; showing may take this long a frame
WARM_EVERY = 200  # hostile packets between two runs of the warm stream
WARM = 44  # its packets
GROWTH_MB = 48  # after the first tenth: what an allocator may keep for itself


class Outputs:
    """What a network would give, at once: the decode depth asks for the bits, not for the picture."""

    provider = "none"

    def __init__(self, size: int) -> None:
        self._picture = np.zeros((size, size, 3), np.uint8)

    def reference(self, picture: Any) -> Any:
        frontal = MotionParams.from_flat(np.zeros(POSE_SIZE + 3))
        return ReferenceFeatures(picture, self, MotionEstimate(frontal, frontal.delta, 1.0))  # type: ignore[arg-type]

    def features(self, picture: Any, estimate: Any) -> dict[str, Any]:
        return {}

    def place(self, features: Any) -> Any:
        return features

    def render(self, features: Any, motion: MotionParams) -> Any:
        return self._picture.copy()

    def render_each(self, frames: Sequence[tuple[Any, MotionParams]]) -> list[Any]:
        return [self.render(*frame) for frame in frames]


@dataclass(frozen=True)
class Pictures:
    """Coded pictures of about a datagram, to be bent and sent under a hash that is right."""

    still: bytes
    key: bytes
    update: bytes  # predicted from the key

    def bent(self, dice: random.Random) -> Packet:
        """One of them with some bytes changed: past the hash, into the AV1 decoder."""
        codec, coded = dice.choice(((PICTURE, self.still), (BACKDROP, self.still), (KEY, self.key), (0, self.update)))
        data = bytearray(coded)
        for _ in range(dice.choice((0, 1, 1, 2, 20))):
            data[dice.randrange(min(len(data), dice.choice((8, 40, len(data)))))] = dice.randrange(256)
        if dice.random() < 0.1:
            del data[dice.randrange(1, len(data)) :]
        crop = (dice.choice((80, -8192, 8192)), 0, dice.choice((480, 1, 1280, 16384)))
        if not codec:
            hash = _hash(bytes(data), chain_digest(b"", self.key))
            return Update(5, 0, 1, hash, bytes(data), dice.choice((None, crop)))
        return ReferencePart(dice.randrange(256), 0, 1, codec, _hash(bytes(data)), crop, bytes(data))


def _hash(coded: bytes, before: bytes = b"") -> bytes:
    return chain_digest(before, coded)[:HASH_BYTES]


def stream(pack: Pack, seed: int) -> tuple[list[Packet], Pictures]:
    """Every kind of packet a sender can make, in the order it would send them: no network is asked."""
    dice = np.random.default_rng(seed)
    tables = pack.tables
    quantizer, coder = Quantizer(tables), EntropyCoder(tables)
    header = StreamHeader(pack.id, 640, 480, (1, 25), 1, pack.size, full_frame=True)
    ramp = np.linspace(0, 255, pack.size).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (pack.size, 1)), np.tile(ramp[:, None], (1, pack.size)),
                        np.full((pack.size, pack.size), 128, np.uint8)], -1)  # fmt: skip
    coded = [encode_reference(np.roll(picture, 31 * i, 1), max_bytes=2500) for i in range(3)]
    packets: list[Packet] = [header]
    packets += split(coded[0], reference=0, codec=BACKDROP, crop=(80, 0, 480))
    chain, key, _ = start_chain(picture, max_bytes=900, preset=8, coarser=44)
    update = chain.code(np.roll(picture, 2, 1))[0]
    packets += split(key, reference=4, codec=KEY, crop=(80, 0, 480))
    packets.append(Update(5, 0, 1, chain.digest[:HASH_BYTES], update))
    aggregator, values = Aggregator(coder), np.zeros(tables.size)
    for frame in range(60):
        reference = frame // 20
        if frame % 20 == 0:
            packets += split(coded[reference], reference=reference, codec=1, crop=(80, 0, 480), parity=2)
        values = 0.97 * values + dice.normal(0, 12, tables.size)
        motion, level = tables.motion(tables.mean + values @ tables.synthesis), frame // 13 % 8
        names = frame % 20 == 0 or frame % 7 == 3
        if names:
            quantizer.new_reference()
        symbols = quantizer.forward(motion, level=level, components=frame // 7 % 8, intra=frame % 20 == 0)
        light = frame // 8 * 30 - 128
        if symbols.intra:
            head = Motion(frame, level, symbols.components, b"", True, reference, frame, light=light)
        else:
            named = reference if names else None
            head = Motion(frame, level, symbols.components, b"", reference=named, as_is=frame % 20 > 17, light=light)
        packets += aggregator.add(head, symbols, frame % 3)
    packets += [
        Update(1, 0, 2, bytes(dice.bytes(4)), bytes(dice.bytes(80)), (80, 0, 480)),
        Feedback(7, 12, (0, 1, 2), True, True),
        Feedback(need_intra=True),
        Extension(0x21, b"private"),
        Bundle((End(60), Extension(0x20, b""))),
        End(60),
    ]
    return packets, Pictures(encode_reference(picture, max_bytes=900), key, update)


def hostile(pool: list[bytes], pictures: Pictures, dice: random.Random) -> Iterator[bytes]:
    """Without end: valid packets bent in one to four places, spliced or cut, and random ones, half with a true kind."""
    kinds = bytes((1, 2, 3, 4, 5, 6, 7, 8, 0x20, 0x40, 0x7F, 0x80, 0x81, 0xFF))
    numbers = [0, 1, 63, 64, 127, 128, 255, 8192, 8193, 1 << 20, 1 << 31, (1 << 62) - 1, (1 << 63) - 1]
    pick, below, some = dice.choice, dice.randrange, dice.random
    while True:
        roll = some()
        if roll < 0.25:
            yield dice.randbytes(below(40))
        elif roll < 0.45:
            yield bytes((pick(kinds),)) + dice.randbytes(below(60))
        elif roll < 0.5:  # a chain of lengths and packets that looks like a bundle
            inside = [pick(pool) for _ in range(below(20))]
            yield b"\x06" + b"".join(varint(len(data) + (some() < 0.1)) + data for data in inside)
        elif roll < 0.54:
            yield pick(pool)
        elif roll < 0.55:
            yield bytes(pictures.bent(dice))
        else:
            data = bytearray(pick(pool))
            if len(data) > 600 and some() < 0.8:
                del data[below(40) + 20 :]  # long payloads are all alike
            for _ in range(below(4) + 1):
                at, what = below(len(data)) if data else 0, some()
                if some() < 0.5:
                    at = min(at, below(16))  # fields stand in front
                if what < 0.5 and data:
                    data[at] = below(256)
                elif what < 0.7 and data:
                    data[at] ^= 1 << below(8)
                elif what < 0.8:
                    number = pick(numbers)
                    data[at:at] = varint(number) if some() < 0.5 else signed_varint(number >> 1)
                elif what < 0.9:
                    del data[at : at + below(5)]
                else:
                    data[at:] = pick(pool)[at:]
            yield bytes(data)


def attempt(call: Callable[[bytes], Any], data: bytes, counts: Counter[str], depth: str, failures: list[Any]) -> None:
    """One packet into one depth; anything but a result or the errors that are allowed is a failure."""
    start, shown = time.process_time(), 0  # of this process, so that a busy machine is not taken for a hang
    try:
        result = call(data)
        shown = len(result) if isinstance(result, list) else 0
        counts[f"{depth} taken"] += 1
        counts[f"{depth} frames"] += shown
    except (BitstreamError, PackMismatchError) as error:
        counts[f"{depth} refused"] += 1
        if not str(error) or (depth == "parse" and not error.rule):  # type: ignore[union-attr]
            failures.append((depth, "an error without words or rule", data.hex()))
    except Exception as error:  # noqa: BLE001  # what we look for
        failures.append((depth, f"{type(error).__name__}: {error}", data.hex()))
    if (spent := time.process_time() - start) > HANG_SECONDS * (1 + shown):
        failures.append((depth, f"took {spent:.1f} s for {shown} frames", data.hex()))


def parse_and_back(data: bytes) -> None:
    packet = parse_packet(data)
    if bytes(packet) != data:
        raise AssertionError(f"{packet} is written in another way than it was read")


def checked(decoder: Decoder) -> Callable[[bytes], list[DecodedFrame]]:
    def decode(data: bytes) -> list[DecodedFrame]:
        frames = decoder.decode(data)
        assert all(isinstance(f, DecodedFrame) and f.image.dtype == np.uint8 for f in frames)
        bytes(decoder.feedback())
        return frames

    return decode


def resident_mb() -> float:
    """Memory of this process now, MB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return 0.0
    return pages * 4096 / 1e6


def run(options: argparse.Namespace) -> dict[str, Any]:
    pack = load_pack(options.pack)
    dice = random.Random(options.seed)
    packets, pictures = stream(pack, options.seed)
    pool = [bytes(packet) for packet in packets]
    bits = Decoder(pack=pack, device="cpu", threads=1, full_frame=False)  # pasting is what costs
    whole = Decoder(pack=pack, device="cpu", threads=1)
    bits._networks = bits._pictures.networks = Outputs(pack.size)  # type: ignore[assignment]
    counts: Counter[str] = Counter()
    failures: list[Any] = []
    source, begin, level_mb, number = hostile(pool, pictures, dice), time.monotonic(), 0.0, 0
    depths = {"decode": (options.decode_every, checked(bits)), "render": (options.render_every, checked(whole))}
    for depth, (every, call) in depths.items():
        for good in pool[:WARM] if every else ():
            attempt(call, good, counts, f"{depth}, warm stream", failures)
    for number in range(1, options.packets + 1):
        data = next(source)
        attempt(parse_and_back, data, counts, "parse", failures)
        for depth, (every, call) in depths.items():
            if not every or number % every:
                continue
            attempt(call, data, counts, depth, failures)
            if number // every % WARM_EVERY == 0:
                for good in pool[:WARM]:
                    attempt(call, good, counts, f"{depth}, warm stream", failures)
        if number % 50_000 == 0 or number == options.packets // 10:
            if number <= options.packets // 10:
                level_mb = resident_mb()
            minutes = (time.monotonic() - begin) / 60
            print(f"\r{number:,} packets, {minutes:.1f} min, {resident_mb():.0f} MB, {len(failures)} failures", end="",
                  file=sys.stderr)  # fmt: skip
            if minutes > options.minutes or len(failures) > 20:
                break
    print(file=sys.stderr)
    growth = resident_mb() - level_mb if level_mb else 0.0
    if growth > GROWTH_MB:
        failures.append(("memory", f"grew by {growth:.0f} MB after the first tenth", ""))
    return {
        "packets": number, "seed": options.seed, "minutes": (time.monotonic() - begin) / 60, "memory_mb": resident_mb(),
        "memory_growth_mb": growth, "counts": dict(sorted(counts.items())), "failures": failures,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutated and random packets into the receiver.")
    parser.add_argument("--packets", type=report.count, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decode-every", type=int, default=10, metavar="N", help="0: never (default: 10)")
    parser.add_argument("--render-every", type=int, default=20_000, metavar="N", help="0: never (default: 20000)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--pack")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    machine = report.machine()
    result = run(options)
    for name, count in result["counts"].items():
        print(f"{name:<28} {count:>12,}")
    print(f"memory: {result['memory_mb']:.0f} MB, {result['memory_growth_mb']:.1f} MB more than after the first tenth")
    for depth, what, data in result["failures"][:20]:
        print(f"FAILED at {depth}: {what}\n  {data}")
    print(f"{result['packets']:,} packets in {result['minutes']:.1f} min, {len(result['failures'])} failures")
    if options.json:
        report.save(options.json, {"machine": machine, "pack": load_pack(options.pack).id.hex(), **result})
    return bool(result["failures"])


if __name__ == "__main__":
    report.run(main)

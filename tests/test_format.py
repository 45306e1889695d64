"""FORMAT.md is true: its worked packets come out again, and a decoder written from its text alone reads them."""

import json
import re
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuralcodec
from neuralcodec import chain
from neuralcodec.entropy import ALPHABET, EntropyCoder
from neuralcodec.fragments import Assembler
from neuralcodec.light import relit
from neuralcodec.motion import MotionParams
from neuralcodec.pack import load_pack
from neuralcodec.packet import Bundle, Feedback, Motion, Parity, ReferencePart, StreamHeader, Update, parse_packet
from neuralcodec.quantizer import MotionTables, Quantizer
from neuralcodec.reference import _sequence_header

VECTORS = Path(__file__).parent / "vectors"
TEXT = (Path(neuralcodec.__file__).parent / "FORMAT.md").read_text("utf-8")
BLOCKS = [bytes.fromhex(line) for line in re.findall(r"^    ((?:[0-9a-f]{2} )+[0-9a-f]{2})$", TEXT, re.MULTILINE)]
HEADER, INTRA, GROUP, PARITY, UPDATE, BUNDLE, FEEDBACK = BLOCKS
FOLLOWER = bytes.fromhex(re.findall(r"`(a4 01(?: [0-9a-f]{2})*)`", TEXT)[0])


@pytest.fixture(scope="module")
def tables() -> MotionTables:
    return MotionTables.load(VECTORS / "tables.json")


@pytest.fixture(scope="module")
def frames() -> list[MotionParams]:
    return [MotionParams.from_flat(row) for row in np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)]


class PaperDecoder:
    """Sections 5 and 6 of FORMAT.md in plain integers, sharing no code with the SDK."""

    def __init__(self, tables: MotionTables) -> None:
        self.t = tables
        self.v = self.o = self.a = [0] * tables.size

    def decode(
        self, payload: bytes, level: int, c: int, intra: bool, frames: int = 1, *, names: bool = False
    ) -> list[list[int]]:
        if names and not intra:
            self.v, self.o = ([0 if i in self.t.scene_components else x for i, x in enumerate(u)]
                              for u in (self.v, self.o))  # fmt: skip
        stream = int.from_bytes(payload + bytes(8192), "big")
        total, position = 8 * (len(payload) + 8192), 64
        d, r = stream >> (total - 64), (1 << 64) - 1

        def symbol(bounds: list[int]) -> int:
            nonlocal d, r, position
            scale = r >> 24
            x = d // scale
            assert x < 1 << 24, "R19"
            s = next(k for k in range(len(bounds) - 1) if bounds[k] <= x < bounds[k + 1])
            d, r = d - scale * bounds[s], scale * (bounds[s + 1] - bounds[s])
            if r < 1 << 32:
                position += 32
                r, d = r << 32, (d << 32) + (stream >> (total - position) & 0xFFFFFFFF)
            return s

        out = []
        for _ in range(frames):
            step, n = self.t.levels[level], 7 + self.t.components[c]
            q: list[int] = []
            for i in range(n):
                own = sum(t * step <= self.a[i] for t in self.t.own_thresholds)
                around = sum(min(abs(v), 4) for v in q[max(0, i - 12) : i])
                near = sum(t <= around for t in self.t.near_thresholds)
                context = own * (len(self.t.near_thresholds) + 1) + near
                row = self.t.bank[self.t.intra[level][i] if intra else self.t.predicted[level][i][context]]
                cumulative = accumulate(row[:-1], initial=0)
                b = symbol([(x * ((1 << 24) - 37) >> 15) + k for k, x in enumerate(cumulative)] + [1 << 24])
                k = (b - 1) // 2
                size = 0 if not b else k + 1
                if k > 3:
                    bits = k - 3
                    size = 3 + 2**bits + symbol([s << (24 - bits) for s in range((1 << bits) + 1)])
                q.append(size if b % 2 else -size)
            self._advance(q, step, level, intra)
            out.append(q)
            intra = False
        return out

    def _advance(self, q: list[int], step: int, level: int, intra: bool) -> None:
        m, n, v, o, a = self.t.momentum[level], len(q), list(self.v), list(self.o), list(self.a)
        if intra:
            v = [x * step for x in q] + [0] * (len(v) - n)
            self.v, self.o, self.a = v, list(v), [8 * step] * len(v)
            return
        for i in range(len(v)):
            if i < n:
                old = v[i]
                v[i] = max(-131072, min(131072, old + ((m[i] * (old - o[i]) + 32) >> 6) + q[i] * step))
                o[i], a[i] = old, a[i] + ((min(abs(q[i]), 15) * 16 * step - a[i]) >> 2)
            else:
                v[i] -= (v[i] + 4) >> 3
                o[i] = v[i]
        self.v, self.o, self.a = v, o, a


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.replace("|", " ").split()]


def test_worked_header() -> None:
    header = StreamHeader(bytes.fromhex("0123456789abcdef"), 1280, 720, (1, 25), 1, 256, full_frame=True)
    assert bytes(header) == HEADER
    assert parse_packet(HEADER) == header


def test_worked_motion_packets_are_what_the_sdk_writes(tables: MotionTables, frames: list[MotionParams]) -> None:
    quantizer, coder = Quantizer(tables), EntropyCoder(tables)
    symbols = [quantizer.forward(f, level=2, components=2, intra=i == 0) for i, f in enumerate(frames[:4])]
    assert bytes(Motion(0, 2, 2, coder.encode(symbols[0]), True, 1, 0)) == INTRA
    assert bytes(Motion(1, 2, 2, coder.encode(symbols[1]))) == FOLLOWER
    assert bytes(Motion(2, 2, 2, coder.encode(symbols[2:]), frames=2)) == GROUP
    texts = re.findall(r"(?<=[\s(])(-?\d+(?: -?\d+){6} \|(?:\s-?\d+){8})", TEXT)
    assert [numbers(t) for t in texts] == [list(s.values) for s in symbols]


def test_worked_motion_packets_with_the_paper_decoder(tables: MotionTables, frames: list[MotionParams]) -> None:
    paper, quantizer = PaperDecoder(tables), Quantizer(tables)
    got = paper.decode(INTRA[4:], 2, 2, True) + paper.decode(FOLLOWER[2:], 2, 2, False)
    got += paper.decode(GROUP[4:], 2, 2, False, 2)
    expected = [quantizer.forward(f, level=2, components=2) for f in frames[:4]]
    assert got == [list(s.values) for s in expected]
    assert tuple(paper.v) == quantizer.state.values
    assert tuple(paper.a) == quantizer.state.activity
    told = {name: json.loads(text) for name, text in re.findall(r"\b([voa]) = (\[-?\d+, [^]]*\])", TEXT)}
    assert told == {"v": paper.v, "o": paper.o, "a": paper.a}


def test_worked_packets_of_a_bad_network() -> None:
    picture = bytes.fromhex("0a0b0c0d0e0f10")
    first, last = picture[:4], picture[4:]
    digest, place = sha256(picture).digest()[:4], (-5, 12, 640)
    payload = bytes(a ^ b for a, b in zip(first, last + b"\0", strict=True))
    assert parse_packet(PARITY) == Parity(9, 0, 1, 2, 1, digest, place, len(picture), payload)
    for kept, index in ((first, 0), (last, 1)):
        assembler = Assembler()
        assert assembler.add(ReferencePart(9, index, 2, 1, digest, place, kept)) is None
        assert assembler.add(parse_packet(PARITY)) == picture
    hashed = sha256(sha256(picture).digest() + bytes((1, 2, 3))).digest()[:4]
    assert parse_packet(UPDATE) == Update(10, 0, 1, hashed, bytes((1, 2, 3)))
    assert parse_packet(BUNDLE) == Bundle((parse_packet(INTRA), parse_packet(FOLLOWER)))
    assert parse_packet(FEEDBACK) == Feedback(2, 26, (7, 9), need_reference=True)
    assert all(bytes(parse_packet(data)) == data for data in BLOCKS)


def test_the_sequence_header_of_the_text(tables: MotionTables) -> None:
    size, flags, width = 256, 0b0110010, 8
    bits = "000" + "11" + "11111" + f"{width - 1:04b}" * 2 + f"{size - 1:0{width}b}" * 2
    bits += "".join(str(flags >> i & 1) for i in range(6)) + "000000" + str(flags >> 6 & 1) + "0" + "1"
    bits += "0" * (-len(bits) % 8)
    assert _sequence_header(size, flags) == int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_the_pack_id_of_the_text() -> None:
    pack = load_pack()
    coding = (p for p in pack.folder.iterdir() if p.name != "manifest.json" and p.suffix != ".md")
    hashes = {p.name: sha256(p.read_bytes()).hexdigest() for p in coding}
    line = "{" + ",".join(f'"{name}":"{hashes[name]}"' for name in sorted(hashes)) + "}"
    assert sha256(line.encode()).digest()[:8] == pack.id


def test_paper_decoder_over_changing_settings(tables: MotionTables, frames: list[MotionParams]) -> None:
    paper, quantizer, coder = PaperDecoder(tables), Quantizer(tables), EntropyCoder(tables)
    for i, frame in enumerate(frames[:80]):
        level, components = i * 5 % 8, i * 3 % 8
        symbols = quantizer.forward(frame, level=level, components=components, intra=i % 25 == 0)
        assert paper.decode(coder.encode(symbols), level, components, symbols.intra) == [list(symbols.values)]
        assert tuple(paper.v) == quantizer.state.values
        assert tuple(paper.o) == quantizer.state.older


def test_paper_decoder_resets_the_scene_at_named_references(
    scene_tables: dict[str, Any], scene_tracks: dict[str, np.ndarray]
) -> None:
    tables = MotionTables.load(scene_tables)
    paper, quantizer, coder = PaperDecoder(tables), Quantizer(tables), EntropyCoder(tables)
    forgot = 0
    for i, row in enumerate(scene_tracks["track_b"][:80]):
        level, components, names = i * 5 % 8, i * 3 % 8, i % 6 == 1
        if names:
            forgot += any(quantizer.state.values[k] for k in tables.scene_components)
            quantizer.new_reference()
        symbols = quantizer.forward(tables.motion(row), level=level, components=components, intra=i % 25 == 0)
        payload = coder.encode(symbols)
        assert paper.decode(payload, level, components, symbols.intra, names=names) == [list(symbols.values)]
        assert (tuple(paper.v), tuple(paper.o), tuple(paper.a)) == (
            quantizer.state.values, quantizer.state.older, quantizer.state.activity,
        )  # fmt: skip
    assert forgot > 8


def test_the_scene_of_the_text_is_the_one_that_is_found_and_read() -> None:
    """Nodes, order, direction and unit, with a mesh written from section 5: the picture it explains is found again."""
    from neuralcodec.scene import Pyramid, register

    g, side = 3, 256
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    node = [(-1 + 2 * j / (g - 1), -1 + 2 * i / (g - 1)) for i in range(g) for j in range(g)]
    d = np.array([(0.03 + 0.02 * x, -0.02 + 0.015 * y) for x, y in node])  # linear, so bilinear between nodes as well
    y, x = np.meshgrid(axis, axis, indexing="ij")

    def shows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        grey = 128 + 50 * np.sin(9 * x + 2 * y) + 50 * np.cos(8 * y - 3 * x)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)

    reference, picture = shows(x, y), shows(x + 0.03 + 0.02 * x, y - 0.02 + 0.015 * y)
    found = register(Pyramid(reference), Pyramid(picture), None, None, g)
    assert np.abs(found - d).max() < 0.5 * 2 / 64  # half a pixel of the pictures that are compared


def test_light_by_the_text() -> None:
    white, units = map(int, re.findall(r"multiplied by (\d+) e / .*?, e = exp\(l / (\d+)\)", TEXT)[0])
    colours = np.random.default_rng(4).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    r, g, b = np.moveaxis(colours.astype(int), 2, 0)
    y = ((77 * r + 150 * g + 29 * b) >> 8)[..., None]
    for light in (-128, -9, 0, 31, 127):
        e = np.exp(light / units)
        shown = np.clip(np.rint(colours * (white * e / (white + (e - 1) * y))), 0, 255)
        assert np.abs(shown - relit(colours, light)).max() <= 1


def test_every_rule_of_the_text_is_numbered_once_in_order() -> None:
    rules = re.findall(r"^- \*\*R(\d+)", TEXT, re.MULTILINE)
    assert rules == [str(i) for i in range(1, len(rules) + 1)]
    assert ALPHABET == 37


@pytest.mark.parametrize("flags", [0, 0b0011010010110, (1 << 13) - 1])
def test_the_sequence_header_of_a_chain_by_the_text(flags: int) -> None:
    """Section 7.1, bit by bit."""
    bit = [str(flags >> i & 1) for i in range(13)]
    width = f"{8 - 1:04b}" * 2 + f"{256 - 1:08b}" * 2
    bits = "0" * 24 + "11111" + "0" + width + "0" + "".join(bit[12:5:-1]) + "1" + bit[5] + bit[4] + "11" + "110"
    bits += bit[3] + bit[2] + bit[1] + "000000" + bit[0] + "0" + "1"
    bits += "0" * (-len(bits) % 8)
    assert int(bits, 2).to_bytes(len(bits) // 8, "big") == chain.sequence_header(256, flags)

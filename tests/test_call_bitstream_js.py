"""The page's JavaScript port of the bitstream against Python, in node: packets, symbols, motion, colours, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from neuralcodec import motion as motion_module
from neuralcodec.chain import sequence_header
from neuralcodec.entropy import EntropyCoder
from neuralcodec.errors import BitstreamError
from neuralcodec.motion import MotionParams
from neuralcodec.packet import (
    Bundle,
    End,
    Feedback,
    Motion,
    Packet,
    Parity,
    ReferencePart,
    StreamHeader,
    Update,
    parse_packet,
)
from neuralcodec.quantizer import MotionTables, Quantizer
from neuralcodec.reference import _sequence_header, planes_from_rgb, rgb_from_planes

WEB = ROOT / "neuralcodec" / "call" / "web"
SIZES = (64, 256, 272, 512, 1024)
VECTORS = Path(__file__).parent / "vectors"

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def node(script: str, given: Any) -> Any:
    """Run a module script that has ``given`` and the page's modules and must set ``result``."""
    code = f"""
        import * as bitstream from {json.dumps((WEB / "bitstream.mjs").as_uri())};
        import * as reference from {json.dumps((WEB / "reference.mjs").as_uri())};
        import {{ ClosedEyes, withEyes }} from {json.dumps((WEB / "closed_eyes.mjs").as_uri())};
        import * as face from {json.dumps((WEB / "face.mjs").as_uri())};
        import {{ Loan, Networks }} from {json.dumps((WEB / "networks.mjs").as_uri())};
        import {{ Steady }} from {json.dumps((WEB / "steady.mjs").as_uri())};
        import {{ MotionStream }} from {json.dumps((WEB / "stream.mjs").as_uri())};
        import fs from "node:fs";
        const given = JSON.parse(fs.readFileSync(0, "utf8"));
        const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (byte) => parseInt(byte, 16));
        let result;
        {script}
        console.log(JSON.stringify(result));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], input=json.dumps(given), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def tables() -> MotionTables:
    return MotionTables.load(VECTORS / "tables.json")


@pytest.mark.parametrize("track", ["track_a", "track_b"])
def test_frozen_tracks_give_the_same_symbols_and_motion(tables: MotionTables, track: str) -> None:
    frames = [MotionParams.from_flat(row) for row in np.load(VECTORS / f"{track}.npz")["flat"].astype(np.float64)][:90]
    quantizer, coder = Quantizer(tables), EntropyCoder(tables)
    packets, symbols, flats = [], [], []
    i = 0
    while i + 3 < len(frames):  # every level, component count, intra frames and groups
        level, components, intra, size = i * 5 % 8, i * 3 % 8, i % 25 == 0, 1 if i % 25 == 0 else 1 + i % 3
        group = []
        for frame in frames[i : i + size]:
            group.append(quantizer.forward(frame, level=level, components=components, intra=intra))
            symbols.append(list(group[-1].values))
            flats.append((tables.mean + np.array(quantizer.state.values) @ tables.synthesis).tolist())
        payload = coder.encode(group)
        packets.append(bytes(Motion(i % 256, level, components, payload, True, 1, i) if intra else
                             Motion(i % 256, level, components, payload, frames=size)).hex())  # fmt: skip
        i += size
    found = node(
        """
        const motion = new bitstream.MotionDecoder(given.tables);
        const frames = given.packets.flatMap((packet) => motion.decode(bitstream.parsePacket(unhex(packet))));
        result = { symbols: frames.map((f) => f.symbols), flats: frames.map((f) => Array.from(f.flat)),
                   state: [motion.values, motion.older, motion.activity] };
        """,
        {"tables": json.loads((VECTORS / "tables.json").read_text("utf-8")), "packets": packets},
    )
    assert found["symbols"] == symbols
    np.testing.assert_allclose(found["flats"], flats, rtol=0, atol=1e-9)
    state = quantizer.state
    assert found["state"] == [list(state.values), list(state.older), list(state.activity)]


def test_a_scene_starts_anew_with_every_reference(
    scene_tables: dict[str, Any], scene_tracks: dict[str, np.ndarray]
) -> None:
    tables = MotionTables.load(scene_tables)
    frames = [tables.motion(row) for row in scene_tracks["track_a"][:90]]
    quantizer, coder = Quantizer(tables), EntropyCoder(tables)
    packets, symbols, flats = [], [], []
    i = reset = 0
    while i + 3 < len(frames):  # references named by intra frames, by predicted frames alone and at the head of groups
        intra, names, size = i % 40 == 0, i % 7 < 3, 1 if i % 40 == 0 else 1 + i % 3
        if names and not intra:
            reset += any(quantizer.state.values[k] for k in tables.scene_components)
            quantizer.new_reference()
        group = []
        for frame in frames[i : i + size]:
            group.append(quantizer.forward(frame, level=1, components=4 + i % 4, intra=intra))
            symbols.append(list(group[-1].values))
            flats.append((tables.mean + np.array(quantizer.state.values) @ tables.synthesis).tolist())
        head = Motion(i % 256, 1, 4 + i % 4, coder.encode(group), intra, i % 256 if intra or names else None,
                      i if intra else None, frames=size)  # fmt: skip
        packets.append(bytes(head).hex())
        i += size
    assert reset > 5, "every reset had something to forget"
    found = node(
        """
        const motion = new bitstream.MotionDecoder(given.tables);
        const canonical = new Float32Array(3 * given.tables.keypoints);
        const frames = given.packets.flatMap((packet) => motion.decode(bitstream.parsePacket(unhex(packet))));
        result = { symbols: frames.map((f) => f.symbols), flats: frames.map((f) => Array.from(f.flat)),
                   scenes: frames.map((f) => Array.from(bitstream.unpacked(f.flat, canonical.length).scene)),
                   state: [motion.values, motion.older, motion.activity] };
        """,
        {"tables": scene_tables, "packets": packets},
    )
    assert found["symbols"] == symbols
    np.testing.assert_allclose(found["flats"], flats, rtol=0, atol=1e-9)
    state = quantizer.state
    assert found["state"] == [list(state.values), list(state.older), list(state.activity)]
    scenes = [tables.motion(np.array(flat)).scene.ravel() for flat in flats]
    assert max(np.abs(scene).max() for scene in scenes) > 0.01
    np.testing.assert_allclose(found["scenes"], scenes, rtol=0, atol=1e-6)


def test_a_refused_packet_that_names_a_reference_keeps_the_scene(scene_tables: dict[str, Any]) -> None:
    kept, after = node(
        """
        const motion = new bitstream.MotionDecoder(given);
        motion.values.fill(500); motion.older.fill(400);
        const state = () => [motion.values, motion.older, motion.activity].map((list) => [...list]);
        const kept = state(), packet = { level: 0, components: 7, intra: false, frames: 1, reference: 3 };
        let refused = 0;
        try { motion.decode({ ...packet, payload: new Uint8Array(40).fill(255) }); }
        catch (error) { refused = error instanceof bitstream.BitstreamError; }
        result = [kept, refused && state()];
        """,
        scene_tables,
    )
    assert after == kept


def test_keypoints_and_turned_views_are_the_same(tables: MotionTables) -> None:
    from neuralcodec.motion import View

    flat = np.load(VECTORS / "track_a.npz")["flat"].astype(np.float64)[7]
    canonical = np.linspace(-1, 1, 3 * tables.keypoints).reshape(-1, 3)
    motion = MotionParams.from_flat(flat).turned(View(12, -7, 3))
    found = node(
        "const [flat, canonical] = [Float64Array.from(given.flat), Float32Array.from(given.canonical)];"
        "const p = bitstream.posed(bitstream.unpacked(flat, canonical.length), canonical, given.view, given.neck);"
        "result = { rotation: Array.from(p.rotation), keypoints: Array.from(p.keypoints) };",
        {
            "flat": flat.tolist(),
            "canonical": canonical.ravel().tolist(),
            "view": {"yaw": 12, "pitch": -7, "roll": 3},
            "neck": [float(value) for value in getattr(motion_module, "NECK", (0, 0, 0))],
        },
    )
    np.testing.assert_allclose(found["rotation"], motion.rotation.ravel(), atol=1e-6)
    np.testing.assert_allclose(found["keypoints"], motion.keypoints(canonical).ravel(), atol=1e-5)


def test_the_same_packets_are_refused_by_the_same_rule() -> None:
    rng = np.random.default_rng(8)
    good: list[Packet] = [
        StreamHeader(bytes(range(8)), 1280, 720, (1, 25), 1, 256),
        ReferencePart(3, 0, 2, 1, b"abcd", (-5, 6, 700), b"payload"),
        Motion(9, 2, 3, b"\x01\x02\x03", True, 1, -77),
        Motion(9, 2, 3, b"\x01\x02", False, 2, None, 5, 3),
        Motion(9, 2, 3, b"", as_is=True),
        Motion(9, 2, 3, b"\x07", frames=2, light=-3),
        Update(7, 1, 3, b"abcd", b"payload", (-5, 6, 700)),
        Update(7, 0, 1, b"abcd", b"payload"),
        Parity(3, 1, 2, 3, 0x81, b"abcd", (0, 0, 256), 20, b"7 bytes"),
        Feedback(9, 30, (1, 4, 200), need_intra=True),
        Feedback(need_reference=True),
        End(300),
    ]
    good += [Bundle((good[4], good[2])), Bundle((good[6], good[5], good[3]))]
    cases = [b"", b"\x01", *map(bytes, good)]
    for packet in map(bytes, good):
        cases += [packet[:n] for n in range(1, len(packet))]
        for _ in range(120):
            changed = bytearray(packet)
            changed[rng.integers(len(changed))] = rng.integers(256)
            cases.append(bytes(changed))
    cases += [rng.bytes(int(n)) for n in rng.integers(1, 24, 300)]
    expected = []
    for case in cases:
        try:
            expected.append(type(parse_packet(case)).__name__)
        except BitstreamError as error:
            expected.append(error.rule)
    found = node(
        """
        const names = { header: "StreamHeader", reference: "ReferencePart", update: "Update", end: "End",
                        extension: "Extension", motion: "Motion", bundle: "Bundle", parity: "Parity",
                        feedback: "Feedback" };
        result = given.map((packet) => {
          try { return names[bitstream.parsePacket(unhex(packet)).kind]; }
          catch (error) {
            if (!(error instanceof bitstream.BitstreamError)) throw error;
            return error.message.split(":")[0];
          }
        });
        """,
        [case.hex() for case in cases],
    )
    wrong = [(case.hex(), a, b) for case, a, b in zip(cases, expected, found, strict=True) if a != b]
    assert not wrong, wrong[:5]
    assert len(set(expected)) > 20  # many rules and every kind were met


def test_damaged_motion_is_refused_and_leaves_the_state(tables: MotionTables) -> None:
    rng = np.random.default_rng(1)
    coder = EntropyCoder(tables)
    payloads = [rng.bytes(int(n)) + b"\x01" for n in rng.integers(1, 40, 60)] + [b"\xff" * 12]
    expected: list[Any] = []
    from neuralcodec.quantizer import start_state

    for payload in payloads:
        try:
            state = start_state(tables)
            symbols = coder.decode(payload, level=1, components=7, intra=True, state=state)
            expected.append(list(symbols.values))
        except BitstreamError as error:
            expected.append(error.rule)
    found = node(
        """
        result = given.payloads.map((payload) => {
          const motion = new bitstream.MotionDecoder(given.tables);
          const packet = { payload: unhex(payload), level: 1, components: 7, intra: true, frames: 1 };
          try { return motion.decode(packet)[0].symbols; }
          catch (error) { return error.message.split(":")[0]; }
        });
        """,
        {
            "tables": json.loads((VECTORS / "tables.json").read_text("utf-8")),
            "payloads": [payload.hex() for payload in payloads],
        },
    )
    assert found == expected
    assert "R19" in expected


def test_reference_headers_and_colours_are_the_same(portrait_clip: list[np.ndarray]) -> None:
    small = np.ascontiguousarray(portrait_clip[0][64:192, 64:192])
    noise = np.random.default_rng(2).integers(0, 256, small.shape, np.uint8)
    pictures = [planes_from_rgb(picture) for picture in (small, noise)]
    found = node(
        """
        result = { headers: given.cases.map(([size, flags]) => bitstream.hex(reference.sequenceHeader(size, flags))),
                   chains: given.chains.map(([size, flags]) => bitstream.hex(reference.chainHeader(size, flags))),
                   pictures: given.planes.map((planes) => Array.from(reference.rgba(unhex(planes), 128))) };
        """,
        {
            "cases": [[size, flags] for size in SIZES for flags in (0, 1, 85, 127)],
            "chains": [[size, flags] for size in SIZES for flags in (0, 1, 0b1010101010101, (1 << 13) - 1)],
            "planes": [b"".join(plane.tobytes() for plane in planes).hex() for planes in pictures],
        },
    )
    assert found["headers"] == [_sequence_header(s, flags).hex() for s in SIZES for flags in (0, 1, 85, 127)]
    assert found["chains"] == [
        sequence_header(s, flags).hex() for s in SIZES for flags in (0, 1, 0b1010101010101, (1 << 13) - 1)
    ]
    for planes, pixels in zip(pictures, found["pictures"], strict=True):
        rgba = np.array(pixels, np.uint8).reshape(128, 128, 4)
        np.testing.assert_array_equal(rgba[..., :3], rgb_from_planes(planes))

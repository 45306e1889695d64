"""The page's receiver against Python's Decoder, in node: motion lost, doubled, late, with frames sent again."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from typing import Any

import numpy as np
import pytest
from conftest import VECTORS
from test_call_bitstream_js import node

import neuralcodec as nc
from neuralcodec.concealment import Concealment
from neuralcodec.entropy import EntropyCoder
from neuralcodec.fragments import split
from neuralcodec.packet import Feedback, Motion, StreamHeader, parse_packet
from neuralcodec.protection import Aggregator
from neuralcodec.quantizer import Quantizer
from neuralcodec.reference import PICTURE, encode_reference

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

FOLLOW = """
    const stream = new MotionStream(given.tables);
    const taken = (work) => {
      try { return work(); } catch (error) { if (!(error instanceof bitstream.BitstreamError)) throw error; }
    };
    result = given.packets.map((data) => {
      const packet = taken(() => bitstream.parsePacket(unhex(data)));
      const packets = packet ? packet.packets ?? [packet] : [];
      const frames = packets.flatMap((one) => taken(() => stream.take(one, 2)) ?? []);
      stream.counted();
      return { broken: stream.broken, light: stream.light, report: bitstream.hex(stream.report([9, 2], false)),
               frames: frames.map(({ pts, flat }) => ({ pts, flat: flat && Array.from(flat) })) };
    });
"""
# From the track of FORMAT.md section 10, frozen on 2026-11-26: intra frame 0, frame 1, frames 1 and 2 in one packet,
# frames 2 and 3 in one.
AGAIN = ("520001008f8c1d081fea258ead", "a401ff599c712f", "a5010402ff599c712f4be3b3", "a5020402dc3d674aea")


def packets(pack: nc.Pack, rows: np.ndarray, dice: np.random.Generator) -> list[bytes]:
    """One datagram a frame: intra now and then, two pictures in turn, some as they are, up to three frames again."""
    quantizer, sender = Quantizer(pack.tables), Aggregator(EntropyCoder(pack.tables))
    datagrams, named = [], -1
    for number, row in enumerate(rows):
        intra, reference = number % 40 == 0, number // 17 % 2
        names = intra or reference != named
        if names:
            quantizer.new_reference()
        symbols = quantizer.forward(pack.tables.motion(row), level=number // 30 % 3, components=7, intra=intra)
        head = Motion(
            number % 256, number // 30 % 3, 7, b"", intra, reference=reference if names else None,
            pts=2 * number if intra else None, as_is=not intra and number % 11 < 2,
            light=number // 7 % 3 * 30 - 40,
        )  # fmt: skip
        named = reference
        (packet,) = sender.add(head, symbols, int(dice.integers(0, 4)))
        datagrams.append(bytes(packet))
    return datagrams


def badly_delivered(datagrams: list[bytes], dice: np.random.Generator) -> list[bytes]:
    """A fifth lost, a tenth twice, a tenth up to six places late."""
    places = [(number + dice.random() * (7 if dice.random() < 0.1 else 0), data)
              for number, data in enumerate(datagrams) for _ in range(1 + (dice.random() < 0.1))
              if dice.random() > 0.2]  # fmt: skip
    return [data for _, data in sorted(places, key=lambda place: place[0])]


@pytest.mark.parametrize("seed", range(6))
def test_frames_are_found_as_python_finds_them(
    seed: int, scene_pack: nc.Pack, scene_tables: dict[str, Any], scene_tracks: dict[str, np.ndarray]
) -> None:
    dice = np.random.default_rng(seed)
    decoder = nc.Decoder(pack=scene_pack, device="cpu", threads=1)
    decoder.decode(bytes(StreamHeader(scene_pack.id, 256, 256, (1, 50), 2, 256)))
    picture = encode_reference(np.full((256, 256, 3), 90, np.uint8), max_bytes=400)
    for reference in (0, 1):
        for part in split(picture, reference=reference, codec=PICTURE, crop=(0, 0, 256)):
            decoder.decode(bytes(part))
    came = badly_delivered(packets(scene_pack, np.concatenate([*scene_tracks.values()] * 2), dice), dice)
    came[50] = came[50][:3] + b"\xff" * 30  # one is damaged
    expected, wants, reports, lights = [], [], [], []
    for data in came:
        try:
            found = decoder.decode(data, wanted=lambda _: False)
        except nc.BitstreamError:
            found = []
        expected.append([frame for frame in found if frame.state is Concealment.RECEIVED])
        wants.append(decoder._broken)
        reports.append(decoder.feedback())
        lights.append(decoder._light_to)
    given = {"tables": scene_tables, "packets": [data.hex() for data in came]}
    got = node(FOLLOW, given)
    assert [step["broken"] for step in got] == wants
    assert [step["light"] for step in got] == lights and {*lights} - {0} == {-40, -10, 20}  # 0: none is known yet
    for step, wants_intra, theirs in zip(got, wants, reports, strict=True):
        ours = Feedback(theirs.sequence, theirs.lost, (2, 9), need_intra=wants_intra)
        assert parse_packet(bytes.fromhex(step["report"])) == ours
    assert [[f["pts"] for f in step["frames"]] for step in got] == [[f.pts for f in frames] for frames in expected]
    for frame, seen in zip(chain(*expected), chain(*(step["frames"] for step in got)), strict=True):
        if seen["flat"]:
            np.testing.assert_allclose(seen["flat"], frame.motion.flat(), atol=2e-5)
    shown = [frame.pts // 2 for frame in chain(*expected)]
    assert len(shown) > 200 and any(wants) and len(set(shown)) == len(shown)


def test_a_frozen_packet_that_begins_with_a_frame_sent_before() -> None:
    tables = json.loads((VECTORS / "tables.json").read_text("utf-8"))
    lost, whole, late = (
        node(FOLLOW, {"tables": tables, "packets": [AGAIN[i] for i in order]})
        for order in ((0, 2, 3), (0, 1, 3), (0, 3, 1, 2))
    )
    assert [[f["pts"] for f in step["frames"]] for step in lost] == [[0], [2, 4], [6]]
    assert lost[2]["frames"] == whole[2]["frames"][1:]  # the same integers, whichever packet brought them
    assert [len(step["frames"]) for step in late] == [1, 0, 0, 0] and not late[-1]["broken"]
    assert late[1]["broken"] and late[2]["broken"] is False


def test_motion_before_the_header_is_told_as_python_tells_it(scene_pack: nc.Pack, scene_tables: dict[str, Any]) -> None:
    script = """
        const stream = new MotionStream(given.tables);
        const early = given.packets.map((data) => data && bitstream.parsePacket(unhex(data)));
        result = early.map((packet) => bitstream.hex(stream.report([], true, packet)));
    """
    got = node(script, {"tables": scene_tables, "packets": [None, *AGAIN]})
    expected = []
    for data in [None, *AGAIN]:
        decoder = nc.Decoder(pack=scene_pack, device="cpu", threads=1)
        if data is not None:
            assert decoder.decode(bytes.fromhex(data)) == []
        expected.append(decoder.feedback())
    assert [parse_packet(bytes.fromhex(report)) for report in got] == expected
    assert [report.sequence for report in expected] == [None, 0, 1, 2, 3]

"""The page's receiver as a whole, in node: what it draws from which datagrams. Networks and AV1 have stand-ins."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_call_bitstream_js import WEB, node

import neuralcodec as nc
from neuralcodec import frame_header
from neuralcodec.closed_eyes import CLOSING, SHUT
from neuralcodec.concealment import Concealment
from neuralcodec.entropy import EntropyCoder
from neuralcodec.fragments import split
from neuralcodec.gaze import EYES
from neuralcodec.inference import Inference
from neuralcodec.lids import openings
from neuralcodec.motion import NECK, Array, MotionParams
from neuralcodec.pack import load_pack
from neuralcodec.packet import Motion, StreamHeader, Update
from neuralcodec.quantizer import Quantizer
from neuralcodec.reference import KEY, PICTURE, decode_reference, encode_reference

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

NETWORKS = """
    export { Loan } from "./networks_whole.mjs";
    export class Networks {
      static async open() { return new Networks(); }
      async estimate([number]) {
        const face = given.faces[number], delta = Float32Array.from(face.delta);
        const canonical = Float32Array.from(face.canonical), box = [0, -0.1, 0.7];
        return { number, canonical, motion: { ...face, delta }, sure: true, box };
      }
      follow(pixels) { return this.estimate(pixels); }
      async features({ number }) { clock += given.slow ?? 0; return number; }
      async picture(number) { drawn.push(number); return new Uint8ClampedArray(4 * 256 * 256); }
    }
"""
PAGE = """
    import fs from "node:fs";
    globalThis.given = JSON.parse(fs.readFileSync(0, "utf8"));
    [globalThis.drawn, globalThis.clock] = [[], 0];
    performance.now = () => clock;
    const shown = [];
    let problem = null, opened = null, decoded = 0;
    const ready = new Promise((resolve) => { opened = resolve; });
    globalThis.self = {
      postMessage(data) {
        if (data.picture) shown.push({ pts: data.pts, drawn: drawn.splice(0) });
        if (data.problem) problem = data.problem;
        if (data.problem || data.ready) opened();
      },
    };
    const files = { "/pack/pack.json": given.pack, "/pack/tables.json": given.tables };
    globalThis.fetch = async (address) => ({ ok: !given.refused, json: async () => given.refused ?? files[address] });
    globalThis.EncodedVideoChunk = class {};
    globalThis.VideoDecoder = class {
      static async isConfigSupported({ codec }) { return { supported: given.av1 && codec.startsWith("av01") }; }
      constructor({ output }) { this.output = output; }
      configure() {}
      close() {}
      decode() {
        const grey = decoded++, copyTo = async (planes) => { planes.fill(128); planes.fill(grey, 0, 256 * 256); };
        setTimeout(() => this.output({ format: "I420", codedWidth: 256, copyTo, close() {} }));
      }
    };
    await import(`${given.folder}/receiver.mjs`);
    self.onmessage({ data: { open: true } });
    await ready;
    if (given.view) self.onmessage({ data: { view: given.view } });
    for (const group of given.packets) {
      for (const data of group) self.onmessage({ data: { data: Uint8Array.from(data).buffer } });
      for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setTimeout(resolve, 2));
    }
    console.log(JSON.stringify({ shown, problem }));
    process.exit();
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, with other networks."""
    folder = tmp_path_factory.mktemp("page")
    for path in WEB.glob("*.mjs"):
        (folder / path.name).write_text(path.read_text("utf-8").replace("`/ort/ort.", "`./ort."), "utf-8")
    (folder / "networks.mjs").rename(folder / "networks_whole.mjs")
    (folder / "networks.mjs").write_text(NETWORKS, "utf-8")
    (folder / "ort.wasm.min.mjs").write_text("export const env = { wasm: {} };", "utf-8")
    return folder


def receive(page: Path, packets: list[list[bytes]], pack: nc.Pack, **given: Any) -> dict[str, Any]:
    """What the page has shown of these datagrams, which come in groups, and its problem."""
    given = {"av1": True, "faces": [], **given} | {
        "folder": page.as_uri(), "packets": [[list(data) for data in group] for group in packets],
        "tables": json.loads((pack.folder / "tables.json").read_text("utf-8")),
        "pack": {"id": pack.id.hex(), "size": 256, "neck": NECK.tolist(),
                 "frame_header": json.loads(frame_header.TABLE.read_text("utf-8"))},
    }  # fmt: skip
    done = subprocess.run(
        ["node", "--input-type=module", "-e", PAGE], input=json.dumps(given), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_why_the_server_refuses_a_file_is_said(page: Path) -> None:
    sentence = "render.onnx has SHA-256 00.., its manifest says 11..: install the pack again."
    found = receive(page, [], load_pack(), refused={"error": sentence})
    assert found["problem"] == f"The receiver in the browser stopped: {sentence}"


def face(motion: MotionParams, canonical: Array) -> dict[str, Any]:
    """As the stand-in's networks find it."""
    return {
        "canonical": canonical.ravel().tolist(), "delta": motion.delta.ravel().tolist(), "scale": motion.scale,
        "translation": motion.translation.tolist(), "rotation": motion.rotation.ravel().tolist(),
    }  # fmt: skip


class Sender:
    """Motion packets, one frame each."""

    def __init__(self, pack: nc.Pack) -> None:
        self.header = bytes(StreamHeader(pack.id, 640, 480, (1, 25), 1, 256))
        self._quantizer, self._coder, self._number = Quantizer(pack.tables), EntropyCoder(pack.tables), 0

    def motion(self, motion: MotionParams, reference: int | None = None, *, as_is: bool = False) -> bytes:
        number, intra = self._number, self._number == 0
        self._number += 1
        if reference is not None:
            self._quantizer.new_reference()
        symbols = self._quantizer.forward(motion, level=0, components=7, intra=intra)
        return bytes(Motion(
            number, 0, 7, self._coder.encode([symbols]), intra, reference=reference, pts=number if intra else None,
            as_is=as_is,
        ))  # fmt: skip


def test_a_browser_without_av1_says_so(page: Path) -> None:
    found = receive(page, [], load_pack(), av1=False)
    assert "no AV1 decoder" in found["problem"] and found["problem"].endswith(".")
    assert receive(page, [], load_pack())["problem"] is None


def test_a_picture_that_comes_after_the_wait_for_it_is_closed() -> None:
    """Browsers lend few pictures of a decoder at a time."""
    found = node(
        """
        const frames = [], wait = globalThis.setTimeout;
        globalThis.setTimeout = (work, delay) => wait(work, delay / 100); // in place of three seconds
        globalThis.EncodedVideoChunk = class {};
        globalThis.VideoDecoder = class {
          constructor({ output }) { this.output = output; }
          configure() {}
          close() {}
          decode() {
            const frame = { closed: false, close() { this.closed = true; } };
            frames.push(frame);
            wait(() => this.output(frame), 60);
          }
        };
        const said = await reference.decodeStill(Uint8Array.of(0, 1, 2), 256).catch((error) => error.message);
        await new Promise((resolve) => wait(resolve, 200));
        result = [said, frames.map(({ closed }) => closed)];
        """,
        None,
    )
    assert found == ["the AV1 decoder gave no picture", [True]]


@pytest.mark.parametrize("as_is", [False, True])
@pytest.mark.parametrize(("jump", "shown"), [(0.6, False), (0.05, True)])
def test_motion_for_a_picture_that_is_not_here_is_shown_where_python_shows_it(
    page: Path, portrait_clip: list[Array], as_is: bool, jump: float, shown: bool
) -> None:
    pack = load_pack()
    sender, picture = Sender(pack), encode_reference(portrait_clip[0], max_bytes=3000)
    seen = Inference(pack, device="cpu", threads=1).estimate(decode_reference(picture, 256))
    here = replace(seen.motion, scene=pack.tables.motion(pack.tables.mean).scene)
    there = replace(here, translation=here.translation + np.array([jump, 0, 0], np.float32))
    packets = [sender.header, *map(bytes, split(picture, reference=0, codec=PICTURE, crop=(0, 0, 256)))]
    packets += [sender.motion(here, 0), sender.motion(here, as_is=as_is)]
    packets += [sender.motion(there, 1 if number == 0 else None) for number in range(3)]
    decoder, expected = nc.Decoder(pack=pack, device="cpu", threads=1), []
    for data in packets:
        frames = decoder.decode(data, wanted=lambda _: False)
        expected += [f.pts for f in frames if f.state in (Concealment.RECEIVED, Concealment.BORROWED)]
    assert expected == [0, 1, *([2, 3, 4] if shown else [])]
    found = receive(page, [[data] for data in packets], pack, faces=[face(seen.motion, seen.canonical)])
    assert found["problem"] is None and [frame["pts"] for frame in found["shown"]] == expected


@pytest.mark.parametrize(("as_is", "slow"), [(False, 0), (True, 0), (False, 130), (True, 130)])
def test_a_picture_with_closed_eyes_is_remembered_however_it_was_drawn(page: Path, as_is: bool, slow: int) -> None:
    """The head is turned. slow: ms that features take, so that those of the first picture are lent to the others."""
    pack = load_pack()
    opened, canonical = pack.tables.motion(pack.tables.mean), np.zeros((30, 3), np.float32)
    delta = opened.delta.copy()
    for outer, inner, upper, lower, _ in EYES:
        for point, place in ((outer, (-0.1, 0)), (inner, (0.1, 0)), (upper, (0, -0.03)), (lower, (0, 0.03))):
            canonical[point, :2] = place - opened.delta[point, :2]
        delta[[upper, lower], 1] += 0.03, -0.03
    closed = replace(opened, delta=delta)
    assert max(openings(closed, canonical)) < min(SHUT, CLOSING) * min(openings(opened, canonical))

    sender, digest = Sender(pack), hashlib.sha256(key := bytes((0, 0, 1))).digest()
    updates = []
    for number in (1, 2):
        digest = hashlib.sha256(digest + bytes([number])).digest()
        updates.append(bytes(Update(number, 0, 1, digest[:4], bytes([number]))))
    packets = [
        [sender.header, *map(bytes, split(key, reference=0, codec=KEY, crop=(0, 0, 256))), sender.motion(opened, 0)],
        [updates[0], sender.motion(closed, 1, as_is=as_is)],
        [updates[1], sender.motion(closed, 2)],
    ]
    found = receive(
        page, packets, pack, slow=slow, view={"yaw": 10, "pitch": 0, "roll": 0},
        faces=[face(motion, canonical) for motion in (opened, closed, opened)],
    )  # fmt: skip
    assert found["problem"] is None
    assert [frame["drawn"] for frame in found["shown"]] == [[0], [0 if slow else 1], [0 if slow else 2, 1]]

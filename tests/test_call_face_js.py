"""The page's JavaScript finds the face of a reference as Python does: in node, networks with onnxruntime-web."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_call_bitstream_js import node

from neuralcodec.face import Face, Square, crop, decode_faces, resize
from neuralcodec.inference import SURE, Inference
from neuralcodec.motion import Array
from neuralcodec.pack import load_pack
from neuralcodec.reference import decode_reference, encode_reference
from neuralcodec.smoothing import PictureSmoother

ORT = Path(os.environ.get("NEURALCODEC_ORT_WEB") or ROOT / "node_modules" / "onnxruntime-web" / "dist")
CANONICAL = 1e-3  # coded-picture units: an eighth of a pixel of 256

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def hexed(picture: Array) -> str:
    return np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2).tobytes().hex()


@pytest.mark.parametrize(
    ("square", "size"),
    [
        (Square(0, 0, 256), 160),  # the first look
        (Square(40, 30, 160), 160),
        (Square(70, 60, 97), 160),  # a closer one
        (Square(-60, 130, 200), 160),  # over the edge
        (Square(-140, -100, 420), 160),  # area means
        (Square(-40, 300, 64), 32),  # outside
    ],
)
def test_squares_are_cut_as_in_python(portrait_clip: list[Array], square: Square, size: int) -> None:
    found = node(
        "const pixels = Uint8ClampedArray.from(unhex(given.picture));"
        "result = bitstream.hex(face.crop(pixels, 256, given, given.out));",
        {"picture": hexed(portrait_clip[3]), "x": square.x, "y": square.y, "side": square.side, "out": size},
    )
    cut = np.frombuffer(bytes.fromhex(found), np.uint8).reshape(size, size, 4)[..., :3].astype(int)
    difference = np.abs(cut - crop(portrait_clip[3], square, size))
    assert difference.max() <= 2 and difference.mean() < 0.5


def test_pictures_are_steadied_as_in_python(portrait_clip: list[Array]) -> None:
    dice, smoother = np.random.default_rng(2), PictureSmoother()
    noise = dice.normal(0, 3, (5, *portrait_clip[0].shape))
    film = list(np.clip(portrait_clip[:5] + noise, 0, 255).astype(np.uint8))
    found = node(
        "const steady = new Steady(256);"
        "result = given.map((picture) => bitstream.hex(steady.smooth(Uint8ClampedArray.from(unhex(picture)))));",
        [hexed(picture) for picture in film],
    )
    for before, picture in zip(film, found, strict=True):
        shown = np.frombuffer(bytes.fromhex(picture), np.uint8).reshape(256, 256, 4)
        ours = smoother.smooth(before)
        difference = np.abs(shown[..., :3].astype(int) - ours)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3 and (shown[..., 3] == 255).all()
    assert (ours != before).mean() > 0.3, "there was something to steady"


def test_faces_are_read_from_a_heat_map_as_in_python() -> None:
    dice = np.random.default_rng(4)
    cases, expected = [], []
    for number in range(60):
        heat = dice.random((20, 20)).astype(np.float32) ** 2
        if number % 2:
            heat = np.round(heat, 1).astype(np.float32)  # with equals
        box = dice.normal(0, [[[0.5]], [[0.5]], [[1.0]]], (3, 20, 20)).astype(np.float32)
        cases.append({"heat": heat.ravel().tolist(), "box": box.ravel().tolist()})
        expected.append(decode_faces(heat, box, 0.6))
    found = node(
        "result = given.map(({ heat, box }) => "
        "face.decodeFaces(Float32Array.from(heat), Float32Array.from(box), 20, 0.6));",
        cases,
    )
    assert sum(map(len, expected)) > 100
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(np.reshape(theirs, (-1, 4)), ours, atol=1e-5)
    squares = [(10.5, 11.5, 7.0), (-3.25, 4.5, 31.5), (0.5, -0.5, 32.5), (100.0, 90.0, 12.49)]
    around = [Square.around(*square) for square in squares]
    assert node("result = given.map((square) => face.around(...square));", squares) == [
        {"x": s.x, "y": s.y, "side": s.side} for s in around
    ]


def pictures(clip: list[Array]) -> list[Array]:
    """The portrait near, far, aside and small, coded coarsely as a stream would; and one with nobody in it."""
    wide = np.pad(clip[0], ((120, 120), (120, 120), (0, 0)), mode="edge")
    squares = [
        Square(120, 120, 256), Square(140, 100, 230), Square(60, 60, 380), Square(150, 160, 210), Square(20, 90, 330),
        Square(0, 0, 496), Square(90, 140, 256),
    ]  # fmt: skip
    views = [crop(wide, square, 256) for square in squares] + [clip[-1], resize(clip[7][:, 40:220], 256, 256)]
    views.append(np.linspace(0, 255, 256 * 256 * 3).reshape(256, 256, 3).astype(np.uint8))
    return [decode_reference(encode_reference(view, max_bytes=1500), 256) for view in views]


@pytest.mark.skipif(not (ORT / "ort.node.min.mjs").is_file(), reason="npm install onnxruntime-web was not run")
def test_canonical_keypoints_of_a_reference_are_those_of_python(portrait_clip: list[Array]) -> None:
    pack = load_pack()
    networks, references = Inference(pack, device="cpu", threads=1), pictures(portrait_clip)
    given = {"ort": (ORT / "ort.node.min.mjs").as_uri(), "pack": str(pack.folder)}
    found: list[dict[str, Any]] = node(
        """
        const ort = await import(given.ort);
        [ort.env.wasm.numThreads, ort.env.logLevel] = [1, "error"];
        const load = async (name) => new Uint8Array(fs.readFileSync(`${given.pack}/${name}.onnx`));
        const networks = await Networks.open(ort, load, 256);
        result = [];
        for (const picture of given.pictures) {
          const { canonical, box } = await networks.estimate(Uint8ClampedArray.from(unhex(picture)));
          result.push({ canonical: Array.from(canonical), box });
        }
        const followed = [], looks = { motion: 0, detector: 0 };
        for (const name of ["motion", "detector"]) {
          const session = networks[name], run = session.run.bind(session);
          session.run = (feeds) => { looks[name]++; return run(feeds); };
        }
        for (const picture of given.pictures) {
          const pixels = Uint8ClampedArray.from(unhex(picture)), { box: [x, y, half] } = result[followed.length];
          Object.assign(looks, { motion: 0, detector: 0 });
          const near = await networks.follow(pixels, [x + 0.02, y - 0.02, half * 0.98]), spent = { ...looks };
          const far = await networks.follow(pixels, [x + 0.6, y + 0.5, half * 0.5]);
          followed.push({ near: near.box, far: far.box, sure: near.sure, spent });
        }
        result.forEach((found, i) => Object.assign(found, followed[i]));
        const { canonical, motion } = await networks.estimate(Uint8ClampedArray.from(unhex(given.pictures[0])));
        const { rotation, keypoints } = bitstream.posed({ ...motion, scene: [] }, canonical);
        Object.assign(result[0], { rotation: Array.from(rotation), keypoints: Array.from(keypoints) });
        """,
        given | {"pictures": list(map(hexed, references))},
    )
    whole, boxes = Square(0, 0, 256), []
    for picture, theirs in zip(references, found, strict=True):
        ours = networks.estimate(picture)
        np.testing.assert_allclose(theirs["canonical"], ours.canonical.ravel(), atol=CANONICAL)
        np.testing.assert_allclose(theirs["box"], ours.box, atol=CANONICAL)
        # a look from where the face was a moment ago ends where they do; one from elsewhere is not believed
        if theirs["sure"]:
            np.testing.assert_allclose(theirs["near"], theirs["box"], atol=0.012)
            assert theirs["spent"] == {"motion": 1, "detector": 0}
        np.testing.assert_allclose(theirs["far"], theirs["box"], atol=0.02)
        boxes.append(Face.from_box(whole, ours.box).half_side)
    first = networks.estimate(references[0])
    np.testing.assert_allclose(found[0]["keypoints"], first.keypoints.ravel(), atol=CANONICAL)
    np.testing.assert_allclose(found[0]["rotation"], first.motion.rotation.ravel(), atol=CANONICAL)
    sure = [theirs["sure"] for theirs in found]
    assert sure == [networks.estimate(picture).confidence >= SURE for picture in references] and not all(sure)
    assert max(boxes) > 1.5 * min(boxes), "faces of several sizes were looked for"


def test_slow_features_are_lent_to_the_same_face_of_the_same_shot_for_half_a_second() -> None:
    found = node(
        """
        const loan = new Loan(), seen = { box: [0, 0, 0.5], sure: true }, near = { box: [0.1, 0, 0.5] };
        const taken = (...asked) => loan.take(...asked)?.features ?? null;
        loan.offer(1, "features", seen, 1000, 1126);
        result = [taken(1, near, 1499), taken(1, near, 1500), taken(2, near, 1200)];
        result.push(taken(1, { box: [0.2, 0, 0.5] }, 1200));
        loan.offer(1, "quick", seen, 1000, 1124);
        result.push(taken(1, near, 1200));
        loan.offer(1, "nobody", { ...seen, sure: false }, 1000, 1126);
        result.push(taken(1, near, 1200));
        """,
        None,
    )
    assert found == ["features", None, None, None, None, None]

"""Training end to end on a tiny data folder made here: real networks, real losses, a resumed run."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from neuralcodec.errors import MediaError, PackError  # noqa: E402
from neuralcodec.inference import Inference  # noqa: E402
from neuralcodec.models import ModelConfig, MotionOutput, Networks, build  # noqa: E402
from neuralcodec.motion import rotation_matrix  # noqa: E402
from neuralcodec.pack import load_pack  # noqa: E402
from neuralcodec.training import detector  # noqa: E402
from neuralcodec.training import train as training  # noqa: E402
from neuralcodec.training.blend import blend  # noqa: E402
from neuralcodec.training.blend import main as blend_files  # noqa: E402
from neuralcodec.training.data import (  # noqa: E402
    MIRRORED,
    PORTRAIT_POINTS,
    Frames,
    as_decoded,
    decode,
    load_clips,
    load_stills,
    random_pairs,
    similarity,
)
from neuralcodec.training.feature_networks import read_weights  # noqa: E402
from neuralcodec.training.losses import gradient_loss  # noqa: E402
from neuralcodec.training.phases import Perception, Phase, face_weight, psnr, witnessed  # noqa: E402
from neuralcodec.training.received import code, photographed, received, store  # noqa: E402
from neuralcodec.training.start import freeze_norms, load_graphs  # noqa: E402
from neuralcodec.training.train import Options, Run, train  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, portrait_clip: list[np.ndarray]) -> Path:
    """One clip a split, with labels of a rigid head: the format of `training.prepare`."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    (root / "landmarks.json").write_text(json.dumps({"mesh_index": PORTRAIT_POINTS}))
    shape = random.normal(0, 0.4, (30, 3)).astype(np.float32)
    for split in ("train", "val"):
        (root / split / "256").mkdir(parents=True)
        (root / split / "labels").mkdir()
        with av.open(str(root / split / "256" / "one.mp4"), "w") as film:
            stream = film.add_stream("libx264", rate=25)
            stream.width = stream.height = 256
            for image in portrait_clip[:10]:
                film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            film.mux(stream.encode(None))
        turns = np.stack([rotation_matrix(yaw, 0, 0) for yaw in np.linspace(-10, 10, 10)])
        place = np.tile(np.array([0, -0.1, -0.9], np.float32), (10, 1))
        points = 0.7 * (shape @ turns) + place[:, None]
        np.savez(root / split / "labels" / "one.npz", landmarks=points.astype(np.float16), found=np.ones(10, bool),
                 rotation=turns.astype(np.float32), scale=np.full(10, 0.7, np.float32), translation=place)  # fmt: skip
    return root


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes whenever training asks for the time, twice a step: runs are as long on every machine."""
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=count().__next__))


def minutes(steps: int) -> float:
    """That those many steps take by such a clock."""
    return 2 * steps / 60


def test_labels_compose_to_their_landmarks(data: Path, tmp_path: Path) -> None:
    (clip,) = load_clips(data, "train", tmp_path)
    composed = clip.scale[:, None, None] * (clip.shape @ clip.rotation)
    composed[..., :2] += clip.translation[:, None]
    assert torch.allclose(composed, clip.keypoints, atol=2e-3)  # labels are half precision
    assert clip.frames.shape == (10, 256, 256, 3)


def test_small_frames_are_means(data: Path, tmp_path: Path) -> None:
    full, small = (load_clips(data, "train", tmp_path, size=s)[0].frames for s in (256, 128))
    assert np.abs(full[3].reshape(128, 2, 128, 2, 3).mean((1, 3)) - small[3]).max() <= 0.51


def test_moved_pictures_keep_their_labels(data: Path, tmp_path: Path) -> None:
    """A bright spot at a keypoint is still under it after a similarity and a flip, and labels still compose."""
    (clip,) = load_clips(data, "train", tmp_path)
    image = torch.zeros(2, 3, 256, 256)
    for i in range(2):
        x, y = ((clip.keypoints[i, 16, :2] + 1) * 128).long().tolist()
        image[i, :, y - 2 : y + 3, x - 2 : x + 3] = 1
    frames = Frames(image, clip.keypoints[:2], clip.rotation[:2], clip.scale[:2], clip.translation[:2],
                    clip.shape.expand(2, -1, -1))  # fmt: skip
    mirror = torch.tensor([False, True])
    moved = similarity(
        frames, 256, torch.tensor([[0.1, -0.1]] * 2), torch.tensor([0.8, 1.1]), torch.tensor([0.2, -0.3]), mirror
    )
    for i, k in enumerate((16, MIRRORED[16])):
        y, x = divmod(int(moved.image[i, 0].argmax()), 256)
        spot = (moved.keypoints[i, k, :2] + 1) * 128
        assert abs(x - spot[0]) < 6 and abs(y - spot[1]) < 6
    composed = moved.scale[:, None, None] * (moved.shape @ moved.rotation)
    composed[..., :2] += moved.translation[:, None]
    assert torch.allclose(composed, moved.keypoints, atol=4e-3)


def test_photographs_are_pairs_of_one_moved_picture(data: Path, tmp_path: Path) -> None:
    """Both sides show the same points in different places, and each side's labels compose to its own."""
    folder = tmp_path / "stills" / "labels"
    folder.mkdir(parents=True)
    (tmp_path / "landmarks.json").write_bytes((data / "landmarks.json").read_bytes())
    (clip,) = load_clips(data, "train", tmp_path)
    with av.open(str(folder.parent / "she.jpg"), "w", format="image2") as film:
        stream = film.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuvj420p"
        film.mux(stream.encode(av.VideoFrame.from_ndarray(clip.frames[0], format="rgb24").reformat(format="yuvj420p")))
        film.mux(stream.encode(None))
    with np.load(data / "train" / "labels" / "one.npz") as label:
        np.savez(folder / "she.npz", **{key: label[key][:1] for key in label})
    stills = load_stills(tmp_path)
    assert [len(still) for still in stills] == [1] and not stills[0].received
    networks = Inference(load_pack(), device="cpu", threads=1)
    coarse, fine = (photographed(stills[0].frames[0], kbps, networks) for kbps in (1.0, 24.0))
    errors = [np.square(picture.astype(float) - stills[0].frames[0]).mean() for picture in (coarse, fine)]
    assert 0 < 1.5 * errors[1] < errors[0] < 400
    store(tmp_path / "she.npz", [0], [coarse])
    (held,) = load_stills(tmp_path, received=tmp_path)
    assert [(row, np.array_equal(picture, coarse)) for row, picture in held.received] == [(0, True)]
    a, b = random_pairs([clip, *stills], 8, torch.Generator().manual_seed(0), still=1.0)
    assert (a.keypoints - b.keypoints).abs().amax((1, 2)).min() > 0.01
    for side in (a, b):
        composed = side.scale[:, None, None] * (side.shape @ side.rotation)
        composed[..., :2] += side.translation[:, None]
        assert torch.allclose(composed, side.keypoints, atol=4e-3)


def test_scenes_move_behind_heads_that_rest(data: Path, tmp_path: Path) -> None:
    """What is not the head moved as the mesh says, and the head is where it was but for a few pixels."""
    (clip,) = load_clips(data, "train", tmp_path)
    a, b = random_pairs([clip], 8, torch.Generator().manual_seed(0), before=1.0)
    assert b.scene is not None and b.scene.abs().amax((1, 2)).max() > 0.1
    assert (128 * (a.translation - b.translation)).abs().max() < 12
    axis = torch.linspace(-1, 1, 256)
    plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    mesh = F.interpolate(b.scene.mT.reshape(8, 2, 4, 4), size=256, mode="bilinear", align_corners=True)
    there = plane + mesh.permute(0, 2, 3, 1)
    moved = F.grid_sample(a.image, there, padding_mode="border", align_corners=True)
    far = ((plane[None] - b.translation[:, None, None]) / b.scale[:, None, None, None]).norm(dim=3) > 1.8
    away = ((there - a.translation[:, None, None]) / a.scale[:, None, None, None]).norm(dim=3) > 1.8
    outside = far & away & (there.abs().amax(3) < 1)  # and not from beyond the picture
    assert outside.sum() > 1000
    followed, stayed = (((x - b.image) ** 2).mean(1)[outside].mean() for x in (moved, a.image))
    assert followed < 0.1 * stayed


def test_mirroring_is_its_own_inverse() -> None:
    assert [MIRRORED[i] for i in MIRRORED] == list(range(30))


def test_decoded_motion_is_close_but_not_equal(data: Path, tmp_path: Path) -> None:
    clips = load_clips(data, "train", tmp_path)
    _, driving = random_pairs(clips, 2, torch.Generator().manual_seed(0))
    driving.shape = driving.shape * 0 + clips[0].shape
    seen = as_decoded(driving, load_pack().tables, torch.Generator().manual_seed(0), roundings=2)
    assert seen.keypoints is driving.keypoints and seen.image is driving.image
    assert len(seen.decoded) == 2 and not torch.equal(seen.decoded[0][0], seen.decoded[1][0])
    assert 0 < (seen.decoded[0][1] - driving.rotation).abs().max() < 0.05
    assert 0 < (seen.decoded[0][0] - driving.keypoints).abs().mean() < driving.keypoints.abs().mean()


def test_sources_are_what_receivers_hold(data: Path, tmp_path: Path) -> None:
    """Of the frames that the encoder sends as pictures, and nearer to those frames than to others."""
    numbers, pictures = received(decode(data / "train" / "256" / "one.mp4"), 16.0)
    assert numbers[0] == 0 and len(numbers) == len(pictures)
    np.savez(tmp_path / "one.npz", frames=np.array(numbers), pictures=np.stack(pictures))
    (clip,) = load_clips(data, "train", tmp_path, received=tmp_path)
    assert [row for row, _ in clip.received] == numbers
    (whole,) = load_clips(data, "train", tmp_path)
    assert not whole.received
    coded, _ = random_pairs([clip], 4, torch.Generator().manual_seed(0), coded=1.0)
    plain, _ = random_pairs([clip], 4, torch.Generator().manual_seed(0), coded=0.0)
    assert coded.image.shape == plain.image.shape and not torch.equal(coded.image, plain.image)
    for number, picture in clip.received:
        errors = [np.square(frame.astype(float) - picture).mean() for frame in clip.frames]
        assert int(np.argmin(errors)) == number


def test_clips_made_anew_are_decoded_anew(data: Path, tmp_path: Path) -> None:
    """Frames once decoded are not handed out with the labels of another clip of that name."""
    before = load_clips(data, "train", tmp_path / "c")[0].frames
    other = tmp_path / "other"
    shutil.copytree(data, other)
    film = other / "train" / "256" / "one.mp4"
    frames = decode(film)[::-1]
    with av.open(str(film), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 256
        for image in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        out.mux(stream.encode(None))
    (clip,) = load_clips(other, "train", tmp_path / "c")
    near, far = (np.abs(clip.frames[0].astype(float) - before[i]).mean() for i in (-1, 0))
    assert near < far
    for path, wanted in ((film, clip.frames[0]), (data / "train" / "256" / "one.mp4", before[0])):
        ((_, picture),) = detector.clip_frames(path, [0], tmp_path / "c" / "train")
        assert np.array_equal(picture, wanted)


def test_data_that_do_not_fit_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"landmarks\.json is not there; give a folder that neuralcodec"):
        load_clips(tmp_path, "train", tmp_path)
    with pytest.raises(MediaError, match="nowhere holds no pictures of receivers"):
        load_clips(data, "train", tmp_path, received=tmp_path / "nowhere")
    short, wide = tmp_path / "short", tmp_path / "wide"
    for folder in (short, wide):
        shutil.copytree(data, folder)
    label = short / "train" / "labels" / "one.npz"
    with np.load(label) as whole:
        cut = {key: whole[key][:9] for key in whole}
    np.savez(label, **cut)
    with pytest.raises(MediaError, match=r"one\.mp4 has 10 frames and .*one\.npz labels 9; label it again"):
        load_clips(short, "train", tmp_path)
    with av.open(str(wide / "train" / "256" / "one.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=25)
        stream.width, stream.height = 320, 256
        film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((256, 320, 3), np.uint8), format="rgb24")))
        film.mux(stream.encode(None))
    with pytest.raises(MediaError, match=r"one\.mp4 is 320 x 256; expected 256 x 256"):
        load_clips(wide, "train", tmp_path)
    (wide / "train" / "256" / "one.mp4").write_bytes(b"no film")
    with pytest.raises(MediaError, match=r"one\.mp4 cannot be read as a clip"):
        load_clips(wide, "train", tmp_path)


def changed_label(label: dict[str, np.ndarray], name: str) -> bytes:
    held = io.BytesIO()
    changes = {"nan": {"scale": label["scale"] * np.nan}, "few": {"landmarks": label["landmarks"][:, :9]},
               "flat": {"rotation": label["rotation"][:, 0]}}  # fmt: skip
    np.savez(held, **{**label, **changes.get(name, {})})
    whole = held.getvalue()
    return {"empty": b"", "cut": whole[: len(whole) // 2], "junk": b"junk"}.get(name, whole)


@pytest.mark.parametrize("damage", ["empty", "cut", "junk", "nan", "few", "flat"])
def test_labels_that_cannot_be_used_are_named(data: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(data, tmp_path / "d")
    path = tmp_path / "d" / "train" / "labels" / "one.npz"
    with np.load(path) as label:
        whole = dict(label)
    path.write_bytes(changed_label(whole, damage))
    with pytest.raises(MediaError, match=r"one\.npz holds no usable labels \(.+\); label it again"):
        load_clips(tmp_path / "d", "train", tmp_path / "c")


@pytest.mark.parametrize("text", ["[1]", "{", '{"mesh_index": [1, 2]}'])
def test_a_list_of_landmarks_that_is_none_is_named(data: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "landmarks.json").write_text(text)
    with pytest.raises(MediaError, match=r"landmarks\.json does not name the face-mesh points"):
        load_stills(tmp_path)


def test_pictures_of_receivers_that_cannot_be_read_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "one.npz").write_bytes(b"half")
    with pytest.raises(MediaError, match=r"one\.npz holds no usable pictures .* remove it and run neuralcodec"):
        load_clips(data, "train", tmp_path / "c", received=tmp_path)


@pytest.mark.parametrize(
    "flags",
    [("--minutes", "nan"), ("--rate", "-1"), ("--rate", "inf"), ("--workers", "-1"), ("--limit", "0"),
     ("--save-every", "0"), ("--steady", "-1"), ("--batch", "0"), ("--near", "nan")],
)  # fmt: skip
def test_numbers_of_no_run_are_refused(
    flags: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", str(tmp_path), "--out", str(tmp_path / "run"), *flags])
    with pytest.raises(SystemExit) as caught:
        training.main()
    assert caught.value.code == 2 and f"error: {flags[0]} is {flags[1]}; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--minutes", "nan"), "--minutes is nan; expected a number of more than 0"),
        (("--rate", "inf"), "--rate is inf; expected a number of more than 0"),
        (("--batch", "0"), "--batch is 0; expected 1 or more"),
        (("--seed", "-1"), "--seed is -1; expected 0 or more"),
        (("--stills", "nowhere"), "--stills nowhere holds no .jpg or .png"),
    ],
)
def test_a_detector_is_not_trained_with_what_cannot_be(
    flags: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        detector.main([str(tmp_path), "--out", str(tmp_path / "d.safetensors"), *flags])
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_a_detector_names_footage_that_cannot_be_read(data: Path, tmp_path: Path) -> None:
    for name in ("clip.mp4", "photograph.jpg"):
        (tmp_path / name).write_bytes(b"no film")
    with pytest.raises(MediaError, match="photograph.jpg cannot be read as a clip or photograph"):
        detector.label_stills(detector.Detector().eval(), tmp_path)
    with pytest.raises(MediaError, match="clip.mp4 cannot be read as a clip or photograph"):
        list(detector.clip_frames(tmp_path / "clip.mp4", [0], None))
    frames = dict(detector.clip_frames(data / "train" / "256" / "one.mp4", [2, 7, 90], None))
    assert sorted(frames) == [2, 7] and frames[7].shape == (256, 256, 3)


def test_a_detector_whose_loss_is_no_number_is_not_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "detection_loss", lambda heat, *_: heat.sum() * float("nan"))
    monkeypatch.setattr(detector, "backgrounds", lambda *_: torch.zeros(2, 3, detector.SIZE, detector.SIZE).byte())
    with pytest.raises(SystemExit, match="The loss is nan at step 0; lower --rate"):
        detector.main([str(data), "--batch", "2", "--out", str(tmp_path / "d.safetensors")])
    assert not (tmp_path / "d.safetensors").exists()


def test_a_photograph_is_not_stored_in_place_of_a_clip(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "d")
    (tmp_path / "d" / "stills").mkdir()
    (tmp_path / "d" / "stills" / "one.jpg").write_bytes(b"")
    with pytest.raises(MediaError, match=r"one\.mp4 and .*one\.jpg would both be stored as one\.npz; rename"):
        code(tmp_path / "d", tmp_path / "out", [4.0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("phase", ["motion", "render", "joint", "adversarial"])
def test_every_phase_gives_gradients_to_what_it_trains(data: Path, tmp_path: Path, phase: str) -> None:
    clips = load_clips(data, "train", tmp_path, size=256 if phase == "motion" else 128)
    nets = build(ModelConfig.preset("portrait"))
    steps = Phase(phase, nets, Perception())
    a, b = steps.batch(clips, 2, torch.Generator().manual_seed(0))
    terms = steps.terms(a, b)
    loss = sum(v for k, v in terms.items() if k not in ("psnr", "rendered"))
    loss.backward()
    for part in steps.trained:
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        assert gradients and all(torch.isfinite(g).all() for g in gradients)
        assert sum(float(g.abs().sum()) for g in gradients) > 0
    if steps.critic is not None:
        assert torch.isfinite(steps.critic_loss(b.image, terms["rendered"], b.keypoints))


def test_pairs_are_drawn_twice_to_be_steady(data: Path, tmp_path: Path) -> None:
    """What two roundings of one motion change is a loss, nothing where they agree; both drawings are judged."""
    clips = load_clips(data, "train", tmp_path, size=128)
    nets = build(ModelConfig.preset("portrait"))
    load_graphs(nets, load_pack().folder)
    nets.eval()
    steps = Phase("joint", nets, Perception(), tables=load_pack().tables, steady=2.0)
    a, b = steps.batch(clips, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = steps.terms(a, b)
        b.decoded = (b.decoded[0], b.decoded[0])
        alike = steps.terms(a, b)
    assert float(apart["steady"]) > 1e-4 and float(alike["steady"]) < 1e-6
    assert apart["rendered"].shape == b.image.shape
    assert "steady" not in Phase("joint", nets, Perception()).terms(a, b)


def test_a_frozen_motion_network_witnesses(data: Path, tmp_path: Path) -> None:
    """It finds nothing wrong in the true picture, and something in one whose face looks elsewhere."""
    clips = load_clips(data, "train", tmp_path)
    nets = build(ModelConfig.preset("portrait"))
    load_graphs(nets, load_pack().folder)
    witness = Phase("joint", nets, Perception()).witness
    _, b = random_pairs(clips, 2, torch.Generator().manual_seed(0))
    for name, value in witnessed(witness, b.image, b, torch.ones(30)).items():
        assert float(value) == 0, name
    mirrored = b.image.flip(3).requires_grad_()
    terms = witnessed(witness, mirrored, b, torch.ones(30))
    assert float(terms["seen"].detach()) > 0.01
    sum(terms.values()).backward()
    assert mirrored.grad.abs().sum() > 0 and not any(p.requires_grad for p in witness.parameters())


def test_losses_know_their_values() -> None:
    a, b = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)
    assert float(psnr(a, b)) == pytest.approx(20.0, abs=1e-4)
    weight = torch.ones(1, 1, 16, 16)
    assert float(gradient_loss(a, b, 3, weight)) == 0  # a constant offset has no edges
    step = a.clone()
    step[..., 8:] = 1
    assert float(gradient_loss(step, a, 1, weight)) == pytest.approx(1 / 30)
    assert float(gradient_loss(step, a, 1, 3 * weight)) == pytest.approx(1 / 10)
    points = torch.zeros(1, 30, 3)
    points[0, 4, 0] = 0.5
    points[0, 16:26, 1] = 0.5
    heavy = face_weight(points, 128)[0, 0]
    assert heavy[96, 64] == pytest.approx(7, abs=0.1) and heavy[4, 4] < 1.01


def test_a_pack_is_a_start_with_its_own_function() -> None:
    """Networks filled from the bundled graphs give the graphs' outputs, in training mode too once norms are frozen."""
    import onnx

    from export.to_onnx import example_inputs, graph_modules
    from neuralcodec.runtime.dequantize import dequantize
    from neuralcodec.runtime.session import open_session

    pack = load_pack()
    nets = build(ModelConfig.preset("portrait"))
    load_graphs(nets, pack.folder)
    nets.train()
    freeze_norms(nets)
    inputs = example_inputs(nets)
    for name, module in graph_modules(nets).items():
        graph = onnx.load(pack.folder / f"{name}.onnx")
        dequantize(graph)  # weights are rounded to 8 bits there, and so they are in the networks; activations are not
        session = open_session(graph.SerializeToString(), device="cpu", threads=1)
        wanted = session.run({key: value.numpy() for key, value in inputs[name].items()})
        with torch.no_grad():
            found = module(*inputs[name].values())
        for key, value in zip(session.output_names, [found] if name == "render" else found, strict=True):
            assert np.abs(wanted[key] - value.numpy()).max() < 1e-4, (name, key)


def test_a_pack_of_other_networks_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="--start takes the folder of a pack"):
        load_graphs(build(ModelConfig.preset("portrait")), tmp_path)
    (tmp_path / "motion.onnx").write_bytes((load_pack().folder / "motion.onnx").read_bytes()[:-1000])
    with pytest.raises(PackError, match="motion.onnx is not an ONNX file"):
        load_graphs(build(ModelConfig.preset("portrait")), tmp_path)
    smaller = replace(ModelConfig.preset("portrait"), keypoints=20)
    with pytest.raises(PackError, match="same preset"):
        load_graphs(build(smaller), load_pack().folder)


def test_a_run_learns_saves_and_resumes(data: Path, tmp_path: Path, ticks: None) -> None:
    options = Options(data, tmp_path / "run", phase="motion", minutes=minutes(steps=5), batch=2,
                      cache=tmp_path / "c", workers=0, save_every=5)  # fmt: skip
    result = train(options)
    assert {"psnr", "gain", "px"} <= result.keys()
    first = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()][-1]["step"]
    train(options)
    last = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()][-1]["step"]
    assert last > first > 0
    assert not list((tmp_path / "run").glob("*.part"))
    assert (tmp_path / "run" / f"motion-{last:06d}.png").stat().st_size > 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_saves_first(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, or a machine going down, which the processes that make batches hear as well."""
    command = [sys.executable, "-m", "neuralcodec.training.train", str(data), "--phase", "motion", "--batch", "2",
               "--out", str(tmp_path), "--cache", str(tmp_path / "c"), "--sample-every", "1"]  # fmt: skip
    around = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=around, start_new_session=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a test run in the background ignores Ctrl-C
    ) as run:  # fmt: skip
        while run.poll() is None and not list(tmp_path.glob("motion-*.png")):
            time.sleep(0.1)
        os.killpg(run.pid, number)
        try:
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 1 and "Stopped and saved at step" in said and "Traceback" not in said, said
    saved = int(load_file(tmp_path / "motion.safetensors")["step"])
    assert f"at step {saved}; the same command goes on from there." in said and saved > 0
    assert (tmp_path / "average.safetensors").exists() and not list(tmp_path.glob("*.part"))


def test_an_error_nobody_expected_ends_the_run(data: Path, tmp_path: Path) -> None:
    """And its workers, which ignore the signal by which Python would end them."""
    code = f"""
from pathlib import Path
from neuralcodec.training.train import Options, Run, train
def learn(*_):
    raise RuntimeError("out of memory")
Run.learn = learn
data, out, cache = map(Path, {[str(data), str(tmp_path), str(tmp_path / "c")]})
train(Options(data, out, phase="motion", batch=1, cache=cache))
"""
    around = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=around, start_new_session=True
    ) as run:
        try:
            _, said = run.communicate(timeout=90)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 1 and "RuntimeError: out of memory" in said, said


def test_losses_that_are_no_numbers_end_a_run_and_say_what_is_kept(data: Path, tmp_path: Path) -> None:
    run = Run(Options(data, tmp_path, phase="motion", cache=tmp_path / "c", workers=0))
    with pytest.raises(SystemExit, match=r"'points': nan.* and there is no checkpoint yet: lower --rate"):
        run.read({"points": torch.tensor(float("nan"))})
    run.save()
    with pytest.raises(SystemExit, match="and the last checkpoint there is good: lower --rate"):
        run.read({"points": torch.tensor(float("nan"))})
    assert run.read({"points": torch.tensor(2.0)}) == {"points": 2.0}


def test_a_run_saves_by_the_clock(
    data: Path, tmp_path: Path, ticks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 steps can take a processor more than an hour."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    saved: list[int] = []
    monkeypatch.setattr(Run, "save", lambda run: saved.append(run.step))
    train(Options(data, tmp_path, phase="motion", minutes=minutes(steps=3), batch=2, cache=tmp_path / "c", workers=0))
    assert len(saved) > 1 and saved[0] == 1, "only at the end without"


class Stub(torch.nn.Module):
    """Stands for the published networks, 126 million parameters, in joint training: draws the source's picture."""

    def __init__(self) -> None:
        super().__init__()
        self.points = torch.nn.Parameter(torch.randn(20, 3) / 4)

    def forward(self, image: torch.Tensor, *features: Any, **poses: torch.Tensor) -> Any:
        found = self.points.expand(len(image), 20, 3)
        if poses:
            return image * poses["driving_keypoints"].mean().sigmoid()
        turn, one = torch.eye(3).expand(len(image), 3, 3), torch.ones(len(image), 1)
        return MotionOutput(turn, torch.zeros(len(image), 3), one, found, 0 * found, one) if features else (image,)


def test_a_discriminator_goes_on_with_what_it_remembers(
    data: Path, tmp_path: Path, ticks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's sees the keypoints that were found, 20 and not the labels' 30; its optimizer is resumed as well."""
    config = ModelConfig.preset("paper")
    monkeypatch.setattr(training, "build", lambda _: Networks(config, Stub(), Stub(), Stub()))
    options = Options(data, tmp_path, preset="paper", phase="joint", minutes=minutes(steps=1), size=128,
                      batch=1, cache=tmp_path / "c", workers=0)  # fmt: skip
    train(options)
    run = Run(options)
    assert run.judge is not None and run.step > 0
    states = run.judge.state_dict()["state"]
    assert len(states) == len(run.judged) and all(int(state["step"]) == run.step for state in states.values())
    assert max(float(state["exp_avg"].abs().max()) for state in states.values()) > 0


def test_a_run_may_train_other_parts_when_it_goes_on(data: Path, tmp_path: Path, ticks: None) -> None:
    """What an optimizer remembers is a parameter's own, however many are trained."""
    options = Options(
        data, tmp_path, phase="motion", minutes=minutes(steps=2), batch=1, cache=tmp_path / "c", workers=0
    )
    train(options)
    run = Run(replace(options, only=["motion.delta"]))
    run.learn(*run.phase.batch(run.clips, 1, torch.Generator().manual_seed(0)), 1e-4)
    whole = load_file(tmp_path / "motion.safetensors")
    remembered = run.optimizer.state_dict()["state"]
    assert run.names == ["motion.delta.weight", "motion.delta.bias"]
    assert [int(state["step"]) for state in remembered.values()] == [int(whole["motion.delta.bias/step"]) + 1] * 2
    run.save()
    saved = load_file(tmp_path / "motion.safetensors")
    changed = {name for name in whole if not torch.equal(whole[name], saved[name])}
    assert saved.keys() == whole.keys() and "motion.delta.bias/step" in changed
    assert all(name.startswith(("motion.delta.", "step")) for name in changed)


def test_folded_norms_stay_at_rest_in_later_runs(data: Path, tmp_path: Path) -> None:
    """A run that goes on from a pack's weights needs no --start to know that their norms are folded in."""
    options = Options(data, tmp_path, phase="render", minutes=1e-6, size=128, cache=tmp_path / "c", workers=0)
    train(replace(options, start=load_pack().folder))
    norms = [m for m in Run(options).nets.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    fresh = Run(replace(options, out=tmp_path / "fresh")).nets
    assert all(m.training for m in fresh.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_checkpoints_of_something_else_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(data, tmp_path, phase="motion", minutes=1e-6, cache=tmp_path / "c", workers=0)
    save_file({"w": torch.ones(2)}, tmp_path / "networks.safetensors")
    with pytest.raises(PackError, match=r"networks\.safetensors holds the weights of other networks; give the"):
        train(options)
    (tmp_path / "networks.safetensors").write_bytes(b"half")
    with pytest.raises(PackError, match=r"networks\.safetensors: damaged or not a safetensors file"):
        train(options)
    half = str(tmp_path / "networks.safetensors")
    monkeypatch.setattr(sys, "argv", ["blend", half, half, "--out", str(tmp_path / "b")])
    with pytest.raises(SystemExit):
        blend_files()
    assert "damaged or not a safetensors file" in capsys.readouterr().err and not (tmp_path / "b").exists()
    (tmp_path / "log.jsonl").write_text("{}")
    with pytest.raises(PackError, match=r"log\.jsonl: not a file of tensors; expected \.safetensors or a saved state"):
        read_weights(tmp_path / "log.jsonl")
    start = ["--start", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "d.safetensors")]
    assert detector.main([str(data), *start]) == 1
    assert "none.safetensors: no such weights file" in capsys.readouterr().err


def test_tables_of_other_networks_are_refused_at_once(data: Path, tmp_path: Path) -> None:
    tables = json.loads((load_pack().folder / "tables.json").read_text())
    width = 7 + 3 * tables["keypoints"]
    tables |= {"scene": 0, "mean": tables["mean"][:width]}
    tables |= {name: [row[:width] for row in tables[name]] for name in ("analysis", "synthesis")}
    (tmp_path / "t.json").write_text(json.dumps(tables))
    with pytest.raises(PackError, match=r"t\.json is for 30 keypoints and a scene of 0 nodes a side; the preset 'port"):
        Run(Options(data, tmp_path / "run", tables=tmp_path / "t.json", cache=tmp_path / "c"))
    assert not (tmp_path / "run").exists()


def test_several_gpus_train_the_same_networks_and_end_together(data: Path, tmp_path: Path) -> None:
    """Two processes here: equal weights after steps on batches of their own, though one has longer to go."""
    script = tmp_path / "rank.py"
    script.write_text(f"""
import os
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from safetensors.torch import save_file
from neuralcodec.training import train as training  # noqa: E402

rank = os.environ["RANK"]
smooth = training.Run._smooth
def kept(run):
    smooth(run)
    weights = {{name: p.contiguous() for name, p in run.nets.motion.named_parameters()}}
    save_file(weights, Path({str(tmp_path)!r}) / f"{{rank}}.safetensors")
training.Run._smooth = kept
training.time = SimpleNamespace(monotonic=count().__next__)  # two seconds a step
training.LOOK_EVERY = 3  # and at the clocks of the others
data, out, cache = map(Path, {[str(data), str(tmp_path / "run"), str(tmp_path / "c")]})
training.train(training.Options(
    data, out, phase="motion", batch=1, workers=0, minutes=(0.05, 9.0)[int(rank)], cache=cache
))
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    around = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=around)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in "01")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_trains_only_what_it_is_told_to(data: Path, tmp_path: Path) -> None:
    options = Options(data, tmp_path, phase="render", minutes=0.001, size=128, batch=1, cache=tmp_path, workers=0)
    torch.manual_seed(options.seed)
    before = build(ModelConfig.preset("portrait")).state_dict()
    train(replace(options, only=["render.g3.1", "render.up"]))
    after = load_file(tmp_path / "networks.safetensors")
    parameters = [name for name, _ in build(ModelConfig.preset("portrait")).named_parameters()]
    learned = [name for name in parameters if not torch.equal(before[name], after[name])]
    assert any(n.startswith("render.g3.1") for n in learned) and any(n.startswith("render.up") for n in learned)
    assert all(name.startswith(("render.g3.1", "render.up")) for name in learned), learned
    with pytest.raises(SystemExit, match=r"No parameter of phase render has a name that begins with motion\."):
        train(replace(options, out=tmp_path / "none", only=["motion"]))


def test_blends_lie_between_two_runs() -> None:
    a, b = ({"render.field.w": torch.full((2,), x), "render.g0.w": torch.full((2,), x), "steps": torch.tensor(int(x))}
            for x in (1.0, 5.0))  # fmt: skip
    blended = blend(a, b, 0.25, "render.field")
    assert torch.equal(blended["render.field.w"], torch.full((2,), 2.0))
    assert torch.equal(blended["render.g0.w"], a["render.g0.w"]) and blended["steps"] == 1
    assert torch.equal(a["render.field.w"], torch.ones(2))  # untouched
    with pytest.raises(ValueError, match="no weight's name begins with 'motion'"):
        blend(a, b, 0.5, "motion")
    with pytest.raises(ValueError, match="different networks"):
        blend(a, {"render.field.w": torch.ones(3)}, 0.5)
    with pytest.raises(ValueError, match="render.field.w is torch.float32 in one file and torch.float16 in the other"):
        blend(a, {name: weight.half() for name, weight in b.items()}, 0.5)

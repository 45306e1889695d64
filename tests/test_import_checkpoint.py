"""Importing other people's checkpoints, without their code: files with their names and shapes and invented weights.

vectors/checkpoints.json.gz holds, for each family at three keypoints, the names and shapes of the original file, and
what our networks made of the invented weights on the day the original code gave the same
(benchmarks/results/import_parity.json says how nearly).
"""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
safetensors_torch = pytest.importorskip("safetensors.torch")

import neuralcodec as nc  # noqa: E402
from export.checkpoints import fold_spectral_norms, read_checkpoint, read_checkpoints  # noqa: E402
from export.families import FAMILIES, configure, detect, rename  # noqa: E402
from export.import_checkpoint import Gauge, Regauged, import_checkpoint, main, see_faces  # noqa: E402
from neuralcodec.errors import PackError  # noqa: E402
from neuralcodec.face import HEAD_SCALE, HEAD_Y  # noqa: E402
from neuralcodec.inference import as_tensor  # noqa: E402
from neuralcodec.models import MotionOutput, build  # noqa: E402
from neuralcodec.pack import load_pack  # noqa: E402
from neuralcodec.runtime.session import open_session  # noqa: E402

VECTORS = Path(__file__).parent / "vectors" / "checkpoints.json.gz"
SIZE = 128
BASE = np.random.default_rng(5).standard_normal(65_521).astype(np.float32)
GAINS = {"fc_exp": 0.03, "fc_delta": 0.03, "fc_t": 0.05, "fc_kp": 0.3, "fc_scale": 0.05, "fc_yaw": 2.0, "fc_pitch": 2.0,
         "fc_roll": 2.0, "mask": 3.0, "mask_conv": 3.0, "conv3": 0.3, "pwconv2": 0.3, "kp": 1.5}  # fmt: skip
SHIFTS = {"fc_scale": 1.2, "generator.out_conv": 0.5}  # of biases: a positive scale, a picture in the middle of 0..1


def invented(names: Mapping[str, list[int]]) -> dict[str, Any]:
    """Weights that a name decides, such that every layer matters and nothing saturates."""
    tensors = {}
    for name, shape in names.items():
        count = math.prod(shape)
        values = np.resize(np.roll(BASE, -(zlib.crc32(name.encode()) % len(BASE))), count)
        *_, layer, leaf = ["", *name.split(".")]
        if leaf == "num_batches_tracked":
            tensors[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if leaf == "running_var":
            values = 0.5 + np.abs(values) / 2
        elif leaf == "running_mean" or leaf == "bias":
            values = 0.05 * values + next((shift for end, shift in SHIFTS.items() if name.endswith(f"{end}.bias")), 0)
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        elif leaf in ("gamma", "beta"):
            values = 0.2 * values
        elif name.endswith("down.weight") and shape[-1] == 13:  # the keypoint detector's fixed blur
            line = np.exp(-(np.arange(-6, 7) ** 2) / 4.5)
            values = np.resize(np.outer(line, line) / line.sum() ** 2, count).astype(np.float32)
        else:
            last = ".layers.2.layers.0." in name or name == "generator.out_conv.weight"  # of a branch, of a network
            values = values * ((0.3 if last else GAINS.get(layer, 1.2)) / math.sqrt(math.prod(shape[1:])))
        tensors[name] = torch.from_numpy(values.astype(np.float32).reshape(shape))
    for name in [n for n in names if n.endswith(".weight_orig")]:  # one power iteration, as training leaves it
        base, matrix = name.removesuffix("orig"), tensors[name].flatten(1)
        u = torch.nn.functional.normalize(tensors[base + "u"], dim=0)
        v = torch.nn.functional.normalize(matrix.T @ u, dim=0)
        tensors[base + "v"], tensors[base + "u"] = v, torch.nn.functional.normalize(matrix @ v, dim=0)
    return tensors


def pictures() -> tuple[Any, Any]:
    """Two pictures (1, 3, SIZE, SIZE) with structure at several scales."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
    waves = [((9, 4, p), (31, -17, 2 * p), (5, 23, 3 * p)) for p in (1, 2)]
    return tuple(0.5 + 0.4 * torch.stack([torch.sin(a * x + b * y + c) for a, b, c in w])[None] for w in waves)


def outcome(networks: Any) -> tuple[Any, Any, Any]:
    """Source keypoints, driving keypoints, picture."""
    first, second = pictures()
    with torch.inference_mode():
        source, driving = networks.motion(first), networks.motion(second)
        at, to = source.keypoints(), driving.keypoints(source.canonical)
        poses = {"source_keypoints": at, "source_rotation": source.rotation,
                 "driving_keypoints": to, "driving_rotation": driving.rotation}  # fmt: skip
        return at, to, networks.render(first, *networks.reference(first), **poses)


@pytest.fixture(scope="module")
def vectors() -> Any:
    return json.loads(gzip.decompress(VECTORS.read_bytes()))


def load(names: Mapping[str, list[int]]) -> tuple[str, Any]:
    tensors = fold_spectral_norms(invented(names))
    family = detect(tensors)
    config = configure(family, tensors, SIZE)
    with pytest.MonkeyPatch.context() as patch:  # each weight is replaced at once: the dice need not be thrown for it
        for name in ("kaiming_uniform_", "uniform_", "normal_", "trunc_normal_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
        networks = build(config)
    networks.load_state_dict(rename(family, tensors, config)[0])
    return family, networks.eval()


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_is_told_and_gives_the_pictures_of_its_own_code(family: str, vectors: Any) -> None:
    known = vectors[family]
    found, networks = load(known["names"])
    assert found == family
    source, driving, picture = outcome(networks)
    small = torch.nn.functional.adaptive_avg_pool2d(picture, 8)
    assert float(small.std()) > 0.01 and float((source - driving).abs().max()) > 1e-3  # something is seen, and it moves
    assert float((source - torch.tensor(known["source"])).abs().max()) <= 1e-4
    assert float((driving - torch.tensor(known["driving"])).abs().max()) <= 1e-4
    assert float((small - torch.tensor(known["picture"])).abs().max()) <= 1e-3


def thin(names: Mapping[str, list[int]]) -> dict[str, Any]:
    """The same names and shapes with one number behind each tensor: what telling families apart needs."""
    return {name: torch.zeros(()).expand(shape) for name, shape in names.items()}


def test_names_that_say_too_little_or_nothing_are_refused(vectors: Any) -> None:
    portrait = plain(thin(vectors["liveportrait"]["names"]))
    some = {n: t for n, t in portrait.items() if not n.startswith("detector.")}
    with pytest.raises(PackError, match="like LivePortrait without motion_extractor: give them all"):
        detect(some)
    silent = {n: t for n, t in thin(vectors["sadtalker"]["names"]).items() if not n.startswith("he_estimator.")}
    with pytest.raises(PackError, match="without he_estimator.*give a zhanglonghao1992 checkpoint as a second file"):
        detect(silent)
    with pytest.raises(PackError, match="No family .* has these tensors .1, under encoder.; known are zhanglonghao"):
        detect({"encoder.weight": torch.zeros(1)})
    with pytest.raises(PackError, match="No family is called 'dlib'"):
        detect(portrait, "dlib")


def test_the_second_file_completes_the_first(vectors: Any) -> None:
    talker, other = thin(vectors["sadtalker"]["names"]), thin(vectors["zhanglonghao"]["names"])
    both = {n: t for n, t in talker.items() if not n.startswith("he_estimator.")}
    for name, tensor in other.items():
        both.setdefault(name, tensor)
    assert detect(both) == "sadtalker"


def test_other_shapes_and_missing_tensors_are_named(vectors: Any) -> None:
    tensors = thin(vectors["zhengkw"]["names"])
    config = configure("zhengkw", tensors, SIZE)
    wrong = {**tensors, "afe.mid_conv.weight": torch.zeros(()).expand(256, 256, 1, 1)}
    with pytest.raises(PackError, match=r"afe.mid_conv.weight is \(256, 256, 1, 1\) where .* has \(512, 256, 1, 1\)"):
        rename("zhengkw", plain(wrong), config)
    del tensors["ckd.mid_conv.bias"]
    with pytest.raises(PackError, match="lack 1 of .* tensors, first those that become motion.canonical.fold.bias"):
        rename("zhengkw", plain(tensors), config)
    with pytest.raises(PackError, match=r"mfe.mask_conv.weight is \(4, 99, 7, 7, 7\); a motion field of K keypoints"):
        configure("zhengkw", {**tensors, "mfe.mask_conv.weight": torch.zeros(()).expand(4, 99, 7, 7, 7)})
    with pytest.raises(PackError, match=r"mfe.mask_conv.weight is \(\); a motion field"):
        configure("zhengkw", {**tensors, "mfe.mask_conv.weight": torch.zeros(())})
    flat = plain(thin(vectors["zhengkw"]["names"])) | {"mfe.occlusion_conv.weight": torch.zeros(())}
    with pytest.raises(PackError, match=r"mfe.occlusion_conv.weight is \(\) where"):
        rename("zhengkw", flat, config)
    blur = thin(vectors["zhanglonghao"]["names"]) | {"kp_detector.down.weight": torch.zeros(())}
    with pytest.raises(PackError, match=r"detector's Gaussian is \(\); known are 13 and 5 wide ones"):
        configure("zhanglonghao", blur)
    bad = plain(thin(vectors["zhengkw"]["names"])) | {"afe.mid_conv.bias": torch.full((512,), float("nan"))}
    with pytest.raises(PackError, match="afe.mid_conv.bias holds NaN or infinity"):
        rename("zhengkw", bad, config)


def plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Spectral norms folded as if their largest singular value were 1."""
    kept = {n.replace("weight_orig", "weight"): t for n, t in tensors.items()}
    return {n: t for n, t in kept.items() if not n.endswith(("weight_u", "weight_v"))}


def test_spectral_norms_are_folded_as_a_network_in_eval_mode_does() -> None:
    torch.manual_seed(3)
    layer = torch.nn.utils.spectral_norm(torch.nn.Conv2d(4, 6, 3)).train()
    for _ in range(3):
        layer(torch.rand(1, 4, 8, 8))
    layer.eval()
    x = torch.rand(1, 4, 8, 8)
    state = fold_spectral_norms({f"net.{n}": t for n, t in layer.state_dict().items()})
    assert sorted(state) == ["net.bias", "net.weight"]
    assert torch.allclose(torch.nn.functional.conv2d(x, state["net.weight"], state["net.bias"]), layer(x), atol=1e-6)
    newer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Conv2d(4, 6, 3)).eval()
    state = fold_spectral_norms({f"net.{n}": t for n, t in newer.state_dict().items()})
    assert sorted(state) == ["net.bias", "net.weight"]
    assert torch.allclose(state["net.weight"], newer.weight, atol=1e-6)
    with pytest.raises(PackError, match="vectors u and v are missing"):
        fold_spectral_norms({"net.weight_orig": torch.zeros(2, 2)})


class Malice:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("container", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_not_executed(container: str, tmp_path: Path, capsys: Any) -> None:
    path, proof = tmp_path / "00000189-checkpoint.pth.tar", tmp_path / "executed"
    content = {"generator": {"first.conv.weight": torch.zeros(2)}, "epoch": Malice(proof)}
    if container == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    assert main([str(path), "--out", str(tmp_path / "pack")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(path) in message
    asks = "asks to load the Python object" if container != "bare" else "holds more than tensors need"
    assert f"is refused: it {asks}" in message and "Nothing in it was executed" in message
    assert "weights_only" not in message  # torch advises to switch the protection off
    assert not proof.exists() and not (tmp_path / "pack").exists()
    pickle.loads(pickle.dumps(Malice(proof)))  # the bait works
    assert proof.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(PackError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(PackError, match="is not there"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(PackError, match="is not a safetensors file"):
        read_checkpoint(tmp_path / "file.safetensors")


def test_an_old_checkpoint_cut_anywhere_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(PackError, match="old.pth is"):
            read_checkpoint(path)
    key = re.search(rb"\d{9,}", whole)  # of a storage, which stands in the file twice
    assert key
    path.write_bytes(whole.replace(key[0], b"0" * len(key[0]), 1))
    with pytest.raises(PackError, match="is not a PyTorch checkpoint"):
        read_checkpoint(path)


def sections() -> dict[str, Any]:
    """A file that holds itself."""
    content: dict[str, Any] = {"w": torch.ones(1)}
    content["more"] = content
    return content


NORMS = {"a.weight_u": torch.ones(4), "a.weight_v": torch.ones(9)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (sections(), "nests sections more than 16 deep"),
        ({"a.weight": torch.ones(4, 9).to_sparse()}, "a.weight in .* is no array of numbers"),
        ({"a.weight": torch.ones(4, 9, device="meta")}, "a.weight in .* is no array of numbers"),
        ({"a.weight": torch.ones(4, 9, dtype=torch.complex64)}, "a.weight in .* is no array of numbers"),
        ({"a.weight_orig": torch.zeros(1).half().expand(10**6, 10**6)}, r"\(1000000, 1000000\), which is more than"),
        ({"a.weight_orig": torch.tensor(1.0), **NORMS}, r"a.weight_orig is \(\), .* vectors \(4,\) and \(9,\)"),
        ({"a.weight_orig": torch.ones(4, 9), **NORMS, "a.weight_u": torch.ones(2, 2)}, "do not belong together"),
    ],
)
def test_tensors_that_are_no_weights_are_named(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(PackError, match=words):
        read_checkpoint(tmp_path / "odd.pth")


def test_files_are_flat_names_without_wrappers_and_training(tmp_path: Path) -> None:
    one = {"generator": {"module.first.weight": torch.ones(2)}, "epoch": 3, "discriminator": {"a": torch.ones(1)},
           "optimizer_generator": {"state": {0: {"exp_avg": torch.ones(1)}}}}  # fmt: skip
    torch.save(one, tmp_path / "one.pth")
    safetensors_torch.save_file({"generator.first.weight": torch.zeros(2), "kp.bias": torch.ones(1)}, tmp_path / "two")
    assert sorted(read_checkpoint(tmp_path / "one.pth")) == ["generator.first.weight"]
    both = read_checkpoints([tmp_path / "one.pth", tmp_path / "two"])  # told by content, whatever the name
    assert sorted(both) == ["generator.first.weight", "kp.bias"]
    assert both["generator.first.weight"].tolist() == [1, 1]  # the first file that has it


def test_the_gauge_moves_no_keypoint() -> None:
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.rand(2, 3, 3, generator=generator)).Q
    said = MotionOutput(turn, torch.rand(2, 3, generator=generator), 1 + torch.rand(2, 1, generator=generator),
                        torch.rand(2, 5, 3, generator=generator), torch.rand(2, 5, 3, generator=generator),
                        torch.ones(2, 1))  # fmt: skip

    class Said(torch.nn.Module):
        def forward(self, image: Any, box: Any = None) -> MotionOutput:
            return said

    gauge = Gauge.fitted([np.array([0.1, -0.2, 0.6])] * 3, [np.array([0.3, 0.1, 1.2])] * 3)
    assert gauge.factor == pytest.approx(0.5) and gauge.shift == pytest.approx((-0.2, -0.3))
    moved = Regauged(Said(), gauge)(torch.empty(0))
    assert torch.allclose(moved.keypoints(), said.keypoints(), atol=1e-6)
    assert torch.allclose(moved.translation, said.translation + torch.tensor([-0.2, -0.3, 0.0]))
    assert torch.allclose(moved.scale, said.scale / 2)
    assert Gauge.fitted([], []) == Gauge()


def test_confidence_becomes_what_the_detector_says_of_the_same_picture(tmp_path: Path, portrait_clip: Any) -> None:
    pack, path = load_pack(), tmp_path / "motion.onnx"
    path.write_bytes(pack.graph("motion"))
    see_faces(path, pack.graph("detector"))
    session, before = open_session(path, threads=1), open_session(pack.graph("motion"), threads=1)
    assert session.input_shapes == before.input_shapes and session.output_names == before.output_names
    blank = np.full((256, 256, 3), 90, np.uint8)
    image = np.concatenate([as_tensor(portrait_clip[0]), as_tensor(blank)])
    feeds = {"image": image, "box": np.array([[0, HEAD_Y, HEAD_SCALE]] * 2, np.float32)}
    found, wanted = session.run(feeds), before.run(feeds)
    assert found["confidence"].shape == (2, 1)
    assert found["confidence"][0] > 0.7 and found["confidence"][1] < 0.3  # the face, and no face, of one batch
    for name in set(found) - {"confidence"}:
        assert np.array_equal(found[name], wanted[name])


@pytest.mark.skipif(not os.environ.get("NEURALCODEC_SLOW"), reason="two CPU minutes; NEURALCODEC_SLOW=1 runs it")
def test_an_imported_pack_encodes_and_decodes(vectors: Any, tmp_path: Path, portrait_clip: Any) -> None:
    sections: dict[str, dict[str, Any]] = {}
    for name, tensor in invented(vectors["zhengkw"]["names"]).items():
        section, _, rest = name.partition(".")
        sections.setdefault(section, {})[rest] = tensor
    path, out = tmp_path / "00000003-checkpoint.pth.tar", tmp_path / "packs" / "theirs"
    torch.save({**sections, "epoch": 3}, path)
    pack = import_checkpoint([path], out, size=SIZE, seconds=0.6)
    assert (pack.size, pack.keypoints, pack.name) == (SIZE, 3, "theirs")
    text = (out / "MODEL_CARD.md").read_text()
    assert "zhengkw18" in text and str(tmp_path) not in text
    encoder = nc.Encoder(8, pack=out, device="cpu", crop="none", threads=1)
    decoder = nc.Decoder(pack=out, device="cpu", threads=1)
    frames = [f for pts in range(2) for p in encoder.encode(portrait_clip[pts], pts) for f in decoder.decode(bytes(p))]
    assert [f.pts for f in frames] == [0, 1] and encoder.stats.references == 1
    assert all(f.image.shape == (256, 256, 3) and f.image.std() > 2 for f in frames)
    blank = np.full((256, 256, 3), 90, np.uint8)
    encoder.encode(blank, 2)
    assert encoder.stats.face_lost_frames == 1  # the detector inside the motion graph says so
    with pytest.raises(PackError, match="exists; --force replaces it"):
        import_checkpoint([path], out, size=SIZE)
    with pytest.raises(PackError, match="--size is 200"):
        import_checkpoint([path], tmp_path / "x", size=200)
    assert [p.name for p in out.parent.iterdir()] == ["theirs"]


@pytest.mark.parametrize("seconds", ["0", "-1", "0.08", "nan", "inf"])
def test_a_length_of_no_clip_is_refused(seconds: str, tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path / "a.pth"), "--out", str(tmp_path / "pack"), "--seconds", seconds]) == 1
    assert "--seconds is" in capsys.readouterr().err


def test_force_on_a_folder_that_is_no_pack_is_refused_at_once(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path / "a.pth"), "--out", str(tmp_path), "--force"]) == 1
    assert "is no model pack, and --force replaces nothing else" in capsys.readouterr().err

"""Export, verify and pack building on the real `portrait` networks, with weights that make every branch matter."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.parametrizations import spectral_norm  # noqa: E402

from export import build_pack, clip_loss, int8, to_onnx, verify  # noqa: E402
from export.clip_loss import ClipLoss  # noqa: E402
from export.half import to_half  # noqa: E402
from export.to_onnx import example_inputs, export_graphs, graph_modules, load_networks, store_half  # noqa: E402
from neuralcodec.errors import PackError  # noqa: E402
from neuralcodec.inference import Inference  # noqa: E402
from neuralcodec.media import VideoWriter  # noqa: E402
from neuralcodec.models import Networks  # noqa: E402
from neuralcodec.pack import load_pack  # noqa: E402
from neuralcodec.runtime.dequantize import float_graph  # noqa: E402
from neuralcodec.runtime.session import open_session  # noqa: E402
from neuralcodec.training import start  # noqa: E402

BOUNDS = json.loads(verify.BOUNDS.read_text())


@pytest.fixture(scope="module")
def networks() -> Networks:
    """The portrait networks as if trained a little: batch norms off their defaults, no head left at zero."""
    torch.manual_seed(7)
    nets = load_networks("portrait")
    with torch.no_grad():
        for module in nets.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.8, 1.2)
                module.bias.normal_(0, 0.1)
            elif isinstance(module, nn.Conv2d) and not module.weight.any():
                module.weight.normal_(0, 0.02)
    return nets


@pytest.fixture(scope="module")
def exported(networks: Networks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx")
    export_graphs(networks, out)
    return out


def test_graphs_are_straight_named_and_free_in_the_batch_only(exported: Path) -> None:
    names = {
        "motion": (["image", "box"], list(to_onnx.MOTION_OUTPUTS)),
        "reference": (["image"], list(to_onnx.FEATURES)),
        "render": (["image", *to_onnx.FEATURES, *to_onnx.POSES, to_onnx.SCENE], ["picture"]),
    }
    for name, (inputs, outputs) in names.items():
        model = onnx.load(exported / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.graph.name == name
        assert model.opset_import[0].version == 20
        assert [i.name for i in model.graph.input] == inputs
        assert [o.name for o in model.graph.output] == outputs
        for value in [*model.graph.input, *model.graph.output]:
            sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert sizes[0] == "batch" and all(isinstance(s, int) and s > 0 for s in sizes[1:]), (value.name, sizes)
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"If", "Loop", "Scan", "BatchNormalization"}
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        assert b".py" not in model.SerializeToString()  # no stack traces of the machine that exported


def test_onnx_runtime_gives_what_torch_gives(networks: Networks, exported: Path) -> None:
    findings = verify.verify(networks, exported, rounds=3, bounds=BOUNDS)
    assert [f.output for f in findings] == [*to_onnx.MOTION_OUTPUTS, *to_onnx.FEATURES, "picture"]
    assert [f for f in findings if not f.passed] == []
    assert all(f.provider == "CPUExecutionProvider" for f in findings)


def test_example_inputs_move_the_picture(networks: Networks) -> None:
    """The comparison above would prove little if the renderer ignored its inputs."""
    inputs = example_inputs(networks, batch=1)["render"]
    render = graph_modules(networks)["render"]
    with torch.inference_mode():
        first = render(*inputs.values())
        inputs["driving_keypoints"] = inputs["driving_keypoints"] + 0.1
        second = render(*inputs.values())
        inputs[to_onnx.SCENE] = inputs[to_onnx.SCENE] + 0.1
        third = render(*inputs.values())
    assert float((first - second).abs().max()) > 0.05 and float(first.std()) > 0.05
    assert float((second - third).abs().max()) > 0.05


def test_flat_sampling_is_the_same_function_without_rank_5(networks: Networks, exported: Path, tmp_path: Path) -> None:
    path = export_graphs(networks, tmp_path, graphs=["render"], volumetric=False)["render"]
    assert [p.name for p in tmp_path.iterdir()] == ["render.onnx"]
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*model.graph.value_info, *model.graph.input]}
    samples = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(samples) > 4 and all(ranks[node.input[1]] == 4 for node in samples)
    cases = list(verify.input_cases(networks, 2))
    bound = BOUNDS["flat"]["render"]
    finding = verify.twin_finding(exported / "render.onnx", path, cases, device="cpu", bound=bound)
    assert finding.passed and 0 < finding.worst <= bound == 1e-3
    assert not verify.twin_finding(exported / "render.onnx", path, cases, device="cpu", bound=0.0).passed


def test_half_storage_halves_the_file_and_keeps_float32_arithmetic(
    networks: Networks, exported: Path, tmp_path: Path
) -> None:
    for name in to_onnx.GRAPHS:
        model = onnx.load(exported / f"{name}.onnx")
        before = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        saved = store_half(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, tmp_path / f"{name}.onnx")
        assert (tmp_path / f"{name}.onnx").stat().st_size < 0.6 * (exported / f"{name}.onnx").stat().st_size
        assert saved > 0.4 * (exported / f"{name}.onnx").stat().st_size
        kept = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
        assert all(before[n].ndim < 2 or before[n].size < 1024 or n in kept or f"{n}.half" not in kept for n in before)
        stored = verify.storage(tmp_path / f"{name}.onnx")
        assert stored == "float16" and verify.storage(exported / f"{name}.onnx") == "float32"
        # The same rounding done on the float32 graph gives the same numbers to float32 accuracy.
        rounded = onnx.load(exported / f"{name}.onnx")
        halved = {t.name.removesuffix(".half") for t in model.graph.initializer if t.name.endswith(".half")}
        for tensor in rounded.graph.initializer:
            if tensor.name in halved:
                tensor.CopyFrom(
                    numpy_helper.from_array(before[tensor.name].astype(np.float16).astype(np.float32), tensor.name)
                )
        inputs = {k: v.numpy() for k, v in example_inputs(networks, batch=1, seed=4)[name].items()}
        ours = open_session(tmp_path / f"{name}.onnx").run(inputs)
        same = open_session(rounded.SerializeToString()).run(inputs)
        for output in ours:
            np.testing.assert_allclose(ours[output], same[output], atol=1e-5, rtol=1e-4)
    assert all(f.passed for f in verify.verify(networks, tmp_path, rounds=1, bounds=BOUNDS))


def test_spectral_norm_becomes_plain_weights_in_the_copy_only() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(spectral_norm(nn.Conv2d(3, 5, 3)), nn.ReLU(), spectral_norm(nn.Conv2d(5, 2, 1))).eval()
    x = torch.rand(1, 3, 8, 8)
    before = net(x)
    plain = copy.deepcopy(net)
    to_onnx._fold_parametrizations(plain)
    assert [type(m) for m in plain] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert torch.equal(plain(x), before) and torch.equal(net(x), before)
    assert sorted(plain.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_verify_notices_other_weights(networks: Networks, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(exported, folder)
    model = onnx.load(folder / "render.onnx")
    (last,) = (t for t in model.graph.initializer if t.name.endswith("g3.1.weight"))
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(1.05), last.name))
    onnx.save(model, folder / "render.onnx")
    missed = [f.output for f in verify.verify(networks, folder, rounds=1, bounds=BOUNDS) if not f.passed]
    assert missed == ["picture"]


def test_the_bundled_pack_is_within_its_bounds_and_far_ones_are_not() -> None:
    networks = load_networks("portrait")
    start.load_graphs(networks, load_pack().folder)
    findings = verify.verify(networks, load_pack().folder, rounds=1, bounds=BOUNDS)
    assert all(f.passed for f in findings), findings
    with torch.no_grad():
        next(networks.motion.parameters()).mul_(1.02)
    missed = {f.graph for f in verify.verify(networks, load_pack().folder, rounds=0, bounds=BOUNDS) if not f.passed}
    assert missed == {"motion"}, "float16 bounds catch weights that are 2 % off"


def test_verify_names_the_graph_that_lacks_an_output(networks: Networks, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported / "motion.onnx")
    (node,) = (node for node in model.graph.node if "delta" in node.output)
    (shown,) = (value for value in model.graph.output if value.name == "delta")
    shown.name = node.output[list(node.output).index("delta")] = "offsets"
    onnx.save(model, tmp_path / "motion.onnx")
    with pytest.raises(PackError, match=r"motion\.onnx has the outputs .*offsets.* and lacks delta; write it with"):
        verify.verify(networks, tmp_path, rounds=0, bounds=BOUNDS)


def test_verify_names_what_no_bound_excuses() -> None:
    picture = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    assert verify.fault(picture, picture, picture=True) == ""
    assert verify.fault(picture * 0, picture, picture=True) == "black picture"
    assert verify.fault(picture * 0 + 0.5, picture, picture=True) == "flat picture"
    assert verify.fault(picture * 0, picture * 0, picture=True) == ""  # torch's is black too
    assert verify.fault(picture * np.nan, picture, picture=False) == "NaN or infinity"
    assert "shape (1, 3, 8, 8) instead" in verify.fault(picture[:1], picture, picture=False)
    assert verify.difference(picture * np.nan, picture) == float("inf")


def test_verify_command_exits_1_on_a_miss(
    networks: Networks, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in networks.state_dict().items()}, weights)
    command = ["--onnx", str(exported), "--checkpoint", str(weights), "--device", "cpu", "--rounds", "0"]
    assert verify.main(command) == 0
    assert capsys.readouterr().out.count(" ok\n") == 11
    strict = tmp_path / "strict.json"
    strict.write_text(json.dumps({**BOUNDS, "float32": {"motion": 1e-4, "reference": 1e-3, "render": 0.0}}))
    assert verify.main([*command, "--bounds", str(strict)]) == 1
    assert "MISS" in capsys.readouterr().out
    assert verify.main([*command[:1], str(tmp_path), *command[2:]]) == 1
    assert "motion.onnx is not there" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"not safetensors"])
def test_a_checkpoint_that_cannot_be_read_is_one_sentence(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert to_onnx.main(["--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and str(path) in message
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"something.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(PackError, match="does not fit the preset 'portrait'") as caught:
        load_networks("portrait", tmp_path / "other.safetensors")
    assert len(str(caught.value)) < 500


def test_an_opset_without_volumes_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        to_onnx.main(["--out", str(tmp_path), "--opset", "17"])
    assert caught.value.code == 2


def test_an_opset_that_torch_does_not_write_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_onnx.main(["--out", str(tmp_path / "o"), "--graph", "reference", "--opset", "99"]) == 1
    assert "Opset 99 was asked for and torch wrote" in capsys.readouterr().err and not (tmp_path / "o").exists()


# half precision, and variants on clips


@pytest.fixture(scope="module")
def half(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The render graph in float16 arithmetic."""
    out = tmp_path_factory.mktemp("half")
    onnx.save(to_half(onnx.load(exported / "render.onnx")), out / "render.onnx")
    return out


def test_half_arithmetic_of_the_bundled_pack(portrait_clip: list[Any]) -> None:
    """Trained weights drive what is summed and divided far beyond float16; between float32 nodes nothing is rounded."""
    pack = load_pack()
    model = onnx.load_model_from_string(float_graph(pack.graph("render")))
    before = open_session(model.SerializeToString())
    half = to_half(model)
    after = open_session(half.SerializeToString())
    kinds = {t.name: t.data_type for t in half.graph.initializer}
    convolutions = [n for n in half.graph.node if n.op_type == "Conv"]
    assert {kinds[n.input[1]] for n in convolutions} == {TensorProto.FLOAT16}
    networks = Inference(pack, device="cpu", threads=1)
    for picture in portrait_clip[5:20:5]:
        reference = networks.reference(portrait_clip[0])
        motion = networks.motion(picture, reference.estimate.box).relative_to(reference.canonical)
        feeds = {**reference.arrays, **networks.driving([reference], [motion])}
        wanted, found = (session.run(feeds)["picture"] for session in (before, after))
        assert -10 * np.log10(np.square(wanted - found).mean()) > 60
    casts = {n.output[0]: n for n in half.graph.node if n.op_type == "Cast"}
    assert not any(n.input[0] in casts for n in casts.values())


def test_half_arithmetic_keeps_coordinates_and_ports_in_float32(networks: Networks, exported: Path, half: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(half / "render.onnx"))
    types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.input]}
    weights = {t.name: t.data_type for t in model.graph.initializer}
    samples = [node for node in model.graph.node if node.op_type == "GridSample"]
    assert len(samples) >= 4 and all(types[node.input[1]] == TensorProto.FLOAT for node in samples)
    kinds = [weights[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    assert kinds and set(kinds) == {TensorProto.FLOAT16}
    ports = [*model.graph.input, *model.graph.output]
    assert {v.type.tensor_type.elem_type for v in ports} == {TensorProto.FLOAT}
    assert verify.storage(half / "render.onnx") == "half" == verify.variant_kind(half)
    cases = verify.input_cases(networks, 1)
    finding = verify.twin_finding(exported / "render.onnx", half / "render.onnx", cases, device="cpu", bound=0.1)
    assert finding.passed and finding.worst > 1e-6
    stored = onnx.load(exported / "render.onnx")
    store_half(stored)
    with pytest.raises(PackError, match="stores float16 weights already"):
        to_half(stored)
    with pytest.raises(PackError, match="holds none of motion.onnx"):
        verify.variant_kind(exported.parent / "nowhere")


def test_variants_are_judged_on_clips(
    exported: Path, half: Path, tmp_path: Path, portrait_clip: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    clips, black = tmp_path / "clips", tmp_path / "black"
    clips.mkdir()
    black.mkdir()
    with VideoWriter(clips / "one.mp4", 256, 256, Fraction(1, 25)) as film:
        for pts, picture in enumerate(portrait_clip[:6]):
            film.write(picture, pts)
    model = onnx.load(exported / "render.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith(("g3.1.weight", "g3.1.bias")):  # before the last sigmoid: nothing generated or copied
            level = np.float32(-90 if tensor.name.endswith("bias") else 0)
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, level), tensor.name))
    onnx.save(model, black / "render.onnx")
    assert clip_loss._pack(exported).scene == clip_loss._pack(black, exported).scene == 4  # it is found and shown
    command = ["--onnx", str(exported), "--device", "cpu", "--clips", str(clips), "--frames", "2", "--variant"]
    assert verify.main([*command, str(half)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{half}: 2 frames") and out.endswith(" ok\n")
    assert verify.main([*command, str(black)]) == 1
    assert capsys.readouterr().out.endswith("MISS black or flat picture in one.mp4\n")
    assert not ClipLoss("int8", 2, psnr=30.0, loss=0.31, worst=0.5, bound=0.3, fault="").passed
    assert verify.main([*command[:4], "--clips", str(black), "--variant", str(half)]) == 1
    assert "is no folder with clips" in capsys.readouterr().err
    nothing = [*command, str(half), "--frames", "0"]
    for wrong in (command[:6], [*command[:4], "--variant", str(half)], command[:2], nothing):
        with pytest.raises(SystemExit):
            verify.main(wrong)


# int8

INPUT = {"x": ("batch", 8, 16, 16)}  # of the next graph


@pytest.fixture
def convolution_graph(tmp_path: Path) -> Path:
    """x -> 3x3 convolution, ReLU, 3x3 convolution named like a final one -> picture."""
    random = np.random.default_rng(0)
    shapes = {"body.weight": (16, 8, 3, 3), "final.weight": (3, 16, 3, 3)}
    weights = [numpy_helper.from_array(random.normal(0, 0.1, s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "body.weight"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "final.weight"], ["picture"], name="second", pads=[1, 1, 1, 1]),
    ]
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", c, 16, 16]) for n, c in (("x", 8), ("picture", 3))
    ]
    net = helper.make_graph(nodes, "render", values[:1], values[1:], weights)
    path = tmp_path / "render.onnx"
    onnx.save(helper.make_model(net, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def stored_inputs(folder: Path, count: int = 10) -> Path:
    folder.mkdir()
    random = np.random.default_rng(1)
    for index in range(count):
        np.savez(folder / f"{index:02d}.npz", x=random.random((1, 8, 16, 16), np.float32))
    return folder


@pytest.mark.parametrize("signed", [False, True])
def test_int8_quantizes_all_but_the_named_convolutions(convolution_graph: Path, tmp_path: Path, signed: bool) -> None:
    kept, held = int8.split(int8.load_inputs(stored_inputs(tmp_path / "inputs"), INPUT))
    assert (len(kept), len(held)) == (8, 2)
    out = tmp_path / "int8" / "render.onnx"
    assert int8.quantize(convolution_graph, kept, out, signed=signed) == 1
    assert [p.name for p in out.parent.iterdir()] == ["render.onnx"]
    model = onnx.load(out)
    assert verify.storage(out) == "int8"
    convolutions = {n.name: n for n in model.graph.node if n.op_type == "Conv"}
    assert convolutions["second"].input[1] == "final.weight"
    assert convolutions["first"].input[1] != "body.weight"
    makers = {output: node for node in model.graph.node for output in node.output}
    restored = makers[convolutions["second"].input[0]]
    relu = makers[makers[restored.input[0]].input[0]]
    assert (relu.op_type, list(relu.input)) == ("Relu", ["a"])  # rounding follows it, and nothing rounds before
    zeros = {t.data_type for t in model.graph.initializer if t.name == "x_zero_point"}
    assert zeros == {TensorProto.INT8 if signed else TensorProto.UINT8}
    errors = [
        np.square(open_session(convolution_graph).run(feed)["picture"] - open_session(out).run(feed)["picture"]).mean()
        for feed in held
    ]
    assert 1e-9 < max(errors) < 1e-3  # close, and yet not the float graph


def test_int8_takes_stored_halves_and_wants_matching_inputs(convolution_graph: Path, tmp_path: Path) -> None:
    inputs = stored_inputs(tmp_path / "inputs", 1)
    with pytest.raises(PackError, match="holds 1 .npz files"):
        int8.load_inputs(inputs, INPUT)
    with pytest.raises(PackError, match="holds x; the graph takes image"):
        int8.load_inputs(inputs, {"image": (1, 3, 8, 8)})
    model = onnx.load(convolution_graph)
    assert store_half(model) > 0
    int8.widen(model)
    plain = {t.name: numpy_helper.to_array(t) for t in onnx.load(convolution_graph).graph.initializer}
    for tensor in model.graph.initializer:
        assert tensor.data_type == TensorProto.FLOAT
        np.testing.assert_allclose(numpy_helper.to_array(tensor), plain[tensor.name], rtol=1e-3, atol=1e-6)
    assert int8.convolutions(model, int8.KEEP_FLOAT) == ["first"]


def test_int8_with_nothing_to_quantize_is_refused(convolution_graph: Path, tmp_path: Path) -> None:
    feeds = int8.load_inputs(stored_inputs(tmp_path / "inputs", 2), INPUT)
    with pytest.raises(PackError, match=r"--keep-float '\.\*' leaves no convolution of .*render\.onnx to quantize"):
        int8.quantize(convolution_graph, feeds, tmp_path / "out" / "render.onnx", keep_float=".*")
    assert not (tmp_path / "out").exists()


def test_int8_calibrates_as_it_is_told(convolution_graph: Path, tmp_path: Path) -> None:
    feeds = int8.load_inputs(stored_inputs(tmp_path / "inputs", 4), INPUT)
    for method in ("minmax", "percentile"):
        int8.quantize(convolution_graph, feeds, tmp_path / f"{method}.onnx", method=method)
    assert (tmp_path / "minmax.onnx").read_bytes() != (tmp_path / "percentile.onnx").read_bytes()


@pytest.fixture(scope="module")
def eight_bits(networks: Networks, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference and render of the portrait networks in 8 bits, motion as it was."""
    folder = tmp_path_factory.mktemp("int8")
    inputs = folder / "inputs"
    inputs.mkdir()
    for seed in range(3):
        feeds = example_inputs(networks, batch=1, seed=seed)["render"]
        np.savez(inputs / f"{seed}.npz", **{name: value.numpy() for name, value in feeds.items()})
    counts, loss = int8.quantize_folder(exported, inputs, folder / "graphs")
    assert counts == {"reference": 13, "render": 22}
    assert 25 < loss.worst <= loss.psnr < 90
    return folder / "graphs"


def test_int8_pairs_are_smaller_and_leave_motion_alone(exported: Path, eight_bits: Path) -> None:
    sizes = {p.stem: p.stat().st_size / (exported / p.name).stat().st_size for p in eight_bits.iterdir()}
    assert sizes.keys() == {"motion", "reference", "render"} and max(sizes["reference"], sizes["render"]) < 0.35
    assert (eight_bits / "motion.onnx").read_bytes() == (exported / "motion.onnx").read_bytes()
    with pytest.raises(PackError, match="is the folder of the float graphs"):
        int8.quantize_folder(exported, exported, exported)


def test_a_quantization_that_is_stopped_leaves_the_folder_as_it_was(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8-bit graphs of two exports side by side would make one pack."""
    out = tmp_path / "out"
    written: list[Path] = []

    def quantize(graph: Path, feeds: Any, out: Path, **_: Any) -> int:
        if stop and written:
            raise KeyboardInterrupt
        shutil.copyfile(graph, out)
        written.append(out)
        return 1

    monkeypatch.setattr(int8, "quantize", quantize)
    monkeypatch.setattr(int8, "load_inputs", lambda *_: [{}, {}])
    monkeypatch.setattr(int8, "compare", lambda *_: None)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        int8.quantize_folder(exported, tmp_path, out)
    assert not out.exists()
    out.mkdir()
    for name in ("reference.onnx", "notes.txt"):
        (out / name).write_text("before")
    written.clear()
    with pytest.raises(KeyboardInterrupt):
        int8.quantize_folder(exported, tmp_path, out)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"reference.onnx": "before", "notes.txt": "before"}
    stop = False
    int8.quantize_folder(exported, tmp_path, out)
    assert {p.name for p in out.iterdir()} == {"motion.onnx", "reference.onnx", "render.onnx", "notes.txt"}
    assert (out / "reference.onnx").read_bytes() == (exported / "reference.onnx").read_bytes()


def test_an_export_that_is_stopped_leaves_the_folder_as_it_was(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def to_model(module: Any, inputs: Any, outputs: tuple[str, ...], *_: Any) -> onnx.ModelProto:
        made.append(outputs[0])
        if len(made) == 2:
            raise KeyboardInterrupt
        return onnx.ModelProto(graph=onnx.GraphProto())

    monkeypatch.setattr(to_onnx, "_to_model", to_model)
    monkeypatch.setattr(to_onnx, "_check", lambda *_: None)
    (tmp_path / "motion.onnx").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        export_graphs(networks, tmp_path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("motion.onnx", "before")]


@pytest.mark.parametrize("command", [to_onnx, int8])
def test_what_the_system_refuses_is_a_sentence(
    command: Any, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("a file")
    arguments = ["--out", str(tmp_path / "out")]
    if command is int8:
        arguments = ["quantize", "--onnx", str(exported), "--inputs", str(tmp_path), *arguments]
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error == f"{command.__name__}: {tmp_path / 'out'} cannot be used (File exists).\n"


def test_int8_joins_large_inputs_of_convolutions_in_8_bits(exported: Path, eight_bits: Path) -> None:
    plain = onnx.shape_inference.infer_shapes(onnx.load(exported / "render.onnx"), data_prop=True)
    joins = int8.large_joins(plain)
    model = onnx.load(eight_bits / "render.onnx")
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    read = {node.name: {makers[name] for name in node.input if name in makers} for node in model.graph.node}
    assert len(joins) == 3 and all(read[name] == {"DequantizeLinear"} for name in joins)  # nothing in floats


@pytest.mark.parametrize("name", ["reference", "render"])
def test_a_gpu_gets_8_bit_graphs_in_floats(networks: Networks, exported: Path, eight_bits: Path, name: str) -> None:
    quantized = (eight_bits / f"{name}.onnx").read_bytes()
    model = onnx.load_model_from_string(float_graph(quantized))
    onnx.checker.check_model(model, full_check=True)
    plain = onnx.load(exported / f"{name}.onnx")
    assert Counter(n.op_type for n in model.graph.node) == Counter(n.op_type for n in plain.graph.node)
    assert {t.name for t in model.graph.initializer} == {t.name for t in plain.graph.initializer}
    inputs = {n: v.numpy() for n, v in example_inputs(networks, batch=2, seed=5)[name].items()}
    float32, int8_, floats = (open_session(g).run(inputs) for g in
                              (exported / f"{name}.onnx", quantized, model.SerializeToString()))  # fmt: skip
    for output, wanted in float32.items():
        rounded, exact = (np.sqrt(np.square(o[output] - wanted).mean()) for o in (int8_, floats))
        assert 0 < exact < rounded < 0.2 * wanted.std()  # the weights are rounded, activations no more
    untouched = (exported / f"{name}.onnx").read_bytes()
    assert float_graph(untouched) is untouched


def test_training_starts_from_8_bit_graphs(exported: Path, eight_bits: Path) -> None:
    for name in int8.QUANTIZED:
        exact, rounded = (start._initializers(folder / f"{name}.onnx") for folder in (exported, eight_bits))
        assert exact.keys() == rounded.keys() and len(exact) > 20
        for weight, values in exact.items():
            assert np.abs(values - rounded[weight]).max() <= 0.01 * np.abs(values).max() + 1e-4, weight


# build_pack


def sources(folder: Path, exported: Path) -> dict[str, Any]:
    for name in ("detector.onnx", "tables.json"):
        shutil.copyfile(load_pack().folder / name, folder / name)
    (folder / "card.md").write_text("# Model card\n")
    return {
        "graphs": exported, "tables": folder / "tables.json", "detector": folder / "detector.onnx",
        "card": folder / "card.md", "out": folder / "packs" / "face", "name": "face", "version": "1.2.3",
    }  # fmt: skip


def test_a_built_pack_opens_and_says_what_it_is(exported: Path, tmp_path: Path) -> None:
    pack = build_pack.build_pack(**sources(tmp_path, exported))
    again = load_pack(tmp_path / "packs" / "face")
    assert (again.name, again.version, again.size, again.keypoints, again.id) == ("face", "1.2.3", 256, 30, pack.id)
    assert set(again.files) == {
        "motion.onnx", "reference.onnx", "render.onnx", "detector.onnx", "tables.json", "MODEL_CARD.md",
    }  # fmt: skip
    assert again.graph("render") == (exported / "render.onnx").read_bytes()
    assert [p.name for p in (tmp_path / "packs").iterdir()] == ["face"]  # no scratch folder is left


def test_an_existing_pack_is_replaced_only_by_force(exported: Path, tmp_path: Path) -> None:
    given = sources(tmp_path, exported)
    first = build_pack.build_pack(**given)
    given["card"].write_text("# Another card\n")
    with pytest.raises(PackError, match="exists; --force replaces it"):
        build_pack.build_pack(**given)
    assert load_pack(given["out"]).files == first.files
    assert build_pack.build_pack(**given, force=True).files != first.files
    assert (given["out"] / "MODEL_CARD.md").read_text() == "# Another card\n"


def test_a_failed_build_leaves_the_old_pack_alone(exported: Path, tmp_path: Path) -> None:
    given = sources(tmp_path, exported)
    first = build_pack.build_pack(**given)
    given["tables"].write_text(json.dumps({"keypoints": 20}))
    with pytest.raises(PackError, match="fitted to 20 keypoints and the graphs have 30"):
        build_pack.build_pack(**given, force=True)
    for scene, found in (({}, "0 x 0"), ({"scene": 3}, "3 x 3")):
        given["tables"].write_text(json.dumps({"keypoints": 30, **scene}))
        with pytest.raises(PackError, match=f"a scene of {found} nodes and render.onnx takes 4 x 4; run export.mot"):
            build_pack.build_pack(**given, force=True)
    given["tables"].write_text(json.dumps({"keypoints": 30, "scene": 4}))  # fits, and nothing else is in it
    with pytest.raises(PackError, match=r"tables\.json is not a table file of .*: .*not usable as motion tables"):
        build_pack.build_pack(**given, force=True)
    other = {**given, "tables": load_pack().folder / "tables.json", "detector": exported / "motion.onnx"}
    with pytest.raises(PackError, match=r"motion\.onnx takes image, box and gives .*; a face detector takes image"):
        build_pack.build_pack(**other, force=True)
    assert load_pack(given["out"]).id == first.id
    assert [p.name for p in (tmp_path / "packs").iterdir()] == ["face"]


def test_graphs_that_are_no_pack_are_refused(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sources(tmp_path, exported)
    wrong = tmp_path / "wrong"
    shutil.copytree(exported, wrong)
    shutil.copy(exported / "reference.onnx", wrong / "render.onnx")
    with pytest.raises(PackError, match="render.onnx lacks the tensors driving_keypoints, .*picture"):
        build_pack.build_pack(**{**given, "graphs": wrong})
    (wrong / "render.onnx").unlink()
    command = ["--onnx", str(wrong), "--tables", str(given["tables"]), "--detector", str(given["detector"]),
               "--card", str(given["card"]), "--out", str(given["out"])]  # fmt: skip
    assert build_pack.main(command) == 1
    assert "render.onnx cannot be found" in capsys.readouterr().err
    assert not given["out"].exists()


def test_a_pack_that_could_not_be_used_is_not_built(
    exported: Path, tmp_path: Path, convolution_graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = sources(tmp_path, exported)
    for detector in (given["card"], tmp_path / "junk.onnx"):
        detector.write_text("# no graph\n")
        with pytest.raises(PackError, match=f"{detector.name} is not an ONNX file"):
            build_pack.build_pack(**{**given, "detector": detector})
    with pytest.raises(PackError, match="render.onnx takes x and gives picture; a face detector takes image"):
        build_pack.build_pack(**{**given, "detector": convolution_graph})
    for text in ('{"format": 1, "keypoints": 30, "scene": 4}', '{"keypoints": Infinity}', "[" * 100_000):
        given["tables"].write_text(text)
        with pytest.raises(PackError, match="tables.json is not a table file of export.fit_tables"):
            build_pack.build_pack(**given)
    assert not given["out"].exists()


def test_force_replaces_a_pack_and_nothing_else(exported: Path, tmp_path: Path) -> None:
    given = sources(tmp_path, exported)
    given["out"].mkdir(parents=True)
    (given["out"] / "thesis.txt").write_text("years")
    for out in (given["out"], given["out"] / "thesis.txt"):
        with pytest.raises(PackError, match="is no model pack, and --force replaces nothing else"):
            build_pack.build_pack(**{**given, "out": out}, force=True)
    assert (given["out"] / "thesis.txt").read_text() == "years"


def test_a_checkpoint_with_nan_is_refused(networks: Networks, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    damaged = next(name for name in state if name.startswith("render.") and name.endswith(".weight"))
    state[damaged].view(-1)[0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    assert to_onnx.main(["--checkpoint", str(tmp_path / "nan.safetensors"), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(PackError, match=f"{damaged} in .*nan.safetensors holds NaN or infinity"):
        load_networks("portrait", tmp_path / "nan.safetensors")


def test_verify_and_int8_refuse_what_they_cannot_read(
    exported: Path, half: Path, eight_bits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "motion.onnx").write_text("no graph")
    with pytest.raises(PackError, match="motion.onnx is not an ONNX file"):
        verify.storage(tmp_path / "motion.onnx")
    wrong = ("[1]", "{", json.dumps({**BOUNDS, "clips": {}}), json.dumps({**BOUNDS, "half": {"motion": "x"}}))
    command = ["--onnx", str(exported), "--clips", str(tmp_path), "--variant", str(half)]
    what = ("for motion of float32", "is not JSON", "for float32 of clips", "for motion of half")
    for text, words in zip(wrong, what, strict=True):
        (tmp_path / "b.json").write_text(text)
        assert verify.main([*command, "--bounds", str(tmp_path / "b.json")]) == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "b.json" in message and words in message

    inputs, out = stored_inputs(tmp_path / "inputs", 2), tmp_path / "out"
    for graph, words in ((half / "render.onnx", "in float16"), (eight_bits / "render.onnx", "in 8 bits already")):
        with pytest.raises(PackError, match=f"computes {words}"):
            int8.quantize(graph, [], out / "render.onnx")
    with pytest.raises(PackError, match="motion.onnx is not there"):
        int8.quantize_folder(half, inputs, out)
    np.savez(inputs / "01.npz", x=np.full((1, 8, 16, 16), np.nan, np.float32))
    with pytest.raises(PackError, match="01.npz holds NaN"):
        int8.load_inputs(inputs, INPUT)
    for other in (np.zeros((1, 8, 16, 8), np.float32), np.zeros((1, 8, 16, 16)), np.zeros(3, np.float32)):
        np.savez(inputs / "01.npz", x=other)
        with pytest.raises(PackError, match=r"01.npz: the graph was given 'x' as .*; it takes float32 \(batch, 8,"):
            int8.load_inputs(inputs, INPUT)
    np.savez_compressed(inputs / "01.npz", x=np.random.default_rng(0).random((1, 8, 16, 16), np.float32))
    packed = bytearray((inputs / "01.npz").read_bytes())
    packed[60:80] = bytes(20)  # inside the compressed numbers
    for content in (b"", b"junk", (inputs / "00.npz").read_bytes()[:300], packed):
        (inputs / "01.npz").write_bytes(content)
        with pytest.raises(PackError, match="01.npz is no .npz of export.int8 collect, or it is cut short"):
            int8.load_inputs(inputs, INPUT)
    assert not out.exists()
    with pytest.raises(SystemExit):
        int8.main(["quantize", "--onnx", "x", "--inputs", "x", "--out", "x", "--keep-float", "("])
    (tmp_path / "clips").mkdir()
    collect = ["collect", "--pack", str(load_pack().folder), "--clips", str(tmp_path / "clips"), "--out", str(out)]
    assert int8.main(collect) == 1
    assert "clips is no folder with clips" in capsys.readouterr().err
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    assert int8.main([*collect, "--limit", "0"]) == 1
    assert "--limit 0; both must be at least 1" in capsys.readouterr().err

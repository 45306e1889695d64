"""The model repository, held against Triton's own published schema (in the wheel tritonclient) and against the pack."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")
text_format = pytest.importorskip("google.protobuf.text_format")

from onnx import TensorProto, helper  # noqa: E402

from export.to_triton import Options, main, ports_of, write_repository  # noqa: E402
from neuralcodec.errors import PackError  # noqa: E402
from neuralcodec.pack import load_pack  # noqa: E402
from neuralcodec.runtime.dequantize import float_graph  # noqa: E402


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's model_config.proto as its client ships it, loaded without the client, which would want gRPC."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the wheel tritonclient is not installed")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_repository_is_what_the_schema_and_the_pack_say(schema: Any, tmp_path: Path) -> None:
    pack, out = load_pack(), tmp_path / "models"
    options = Options(max_batch=16, queue_us=500, kind="gpu", instances=2, tensorrt=True)
    folders = write_repository(pack, out, options)
    assert [f.name for f in folders] == [f"portrait_{n}" for n in ("motion", "reference", "render", "show")]
    configs = {}
    for folder in folders:
        config = schema.ModelConfig()
        text_format.Parse((folder / "config.pbtxt").read_text(), config)  # unknown fields and wrong types raise
        assert config.name == folder.name and config.max_batch_size == 16
        assert (folder / "1").is_dir()
        configs[folder.name.removeprefix("portrait_")] = config
    for name in ("motion", "reference", "render"):
        config, graph = configs[name], onnx.load_model_from_string(pack.graph(name)).graph
        assert (out / f"portrait_{name}" / "1" / "model.onnx").read_bytes() == float_graph(pack.graph(name))
        for declared, values in ((config.input, graph.input), (config.output, graph.output)):
            shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim][1:] for v in values}
            assert {t.name: list(t.dims) for t in declared} == shapes
            assert {t.data_type for t in declared} == {schema.TYPE_FP32}
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert [(g.kind, g.count) for g in config.instance_group] == [(schema.ModelInstanceGroup.KIND_GPU, 2)]
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        wanted = ("cuda", {"use_tf32": "0"}) if name == "motion" else ("tensorrt", {})
        assert (accelerator.name, dict(accelerator.parameters)) == wanted
        warm = config.model_warmup[0]
        assert set(warm.inputs) == {t.name for t in config.input} and all(v.zero_data for v in warm.inputs.values())
    show = configs["show"]
    known = {t.name: (t.data_type, list(t.dims)) for t in show.input}
    for step in show.ensemble_scheduling.step:  # each finds its inputs among what came before, of the same shape
        member = configs[step.model_name.removeprefix("portrait_")]
        assert set(step.input_map) == {t.name for t in member.input}
        for port in member.input:
            assert known[step.input_map[port.name]] == (port.data_type, list(port.dims))
        known |= {step.output_map[t.name]: (t.data_type, list(t.dims)) for t in member.output}
    assert [t.name for t in show.output] == ["picture"] and known["picture"] == (schema.TYPE_FP32, [3, 256, 256])
    assert not {"volume", "probe"} & {t.name for t in show.input}


def test_a_wrong_field_would_be_noticed(schema: Any) -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse('name: "x" dynamic_batching { max_delay: 3 }', schema.ModelConfig())


def test_nothing_is_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "models"
    assert main(["--out", str(out)]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    (out / "mine").write_text("kept")
    assert main(["--out", str(out)]) == 1
    assert "exists; --force replaces it" in capsys.readouterr().err and (out / "mine").exists()
    assert main(["--out", str(out), "--force", "--max-batch", "8"]) == 0
    assert "max_batch_size: 8" in (out / "portrait_render" / "config.pbtxt").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["models"]
    assert main(["--out", str(tmp_path / "other"), "--max-batch", "0"]) == 1
    assert "must be at least 1" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_motion_alone_is_kept_from_tf32(tmp_path: Path) -> None:
    for kind, switched in (("gpu", True), ("auto", True), ("cpu", False)):
        write_repository(load_pack(), tmp_path / kind, Options(kind=kind))
        texts = {n: (tmp_path / kind / f"portrait_{n}" / "config.pbtxt").read_text() for n in ("motion", "render")}
        assert ('key: "use_tf32" value: "0"' in texts["motion"]) == switched
        assert "tf32" not in texts["render"]


def test_a_graph_that_cannot_be_batched_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])
    net = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "net", [value], [other])
    model = helper.make_model(net, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(PackError, match=r"'x' of motion.onnx has the shape \[1, 3\]; Triton batches along a first"):
        ports_of(model.SerializeToString(), "motion")


@pytest.mark.parametrize("name", ["../../elsewhere", 'a" backend: "python', ""])
def test_a_name_that_is_no_plain_word_makes_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(PackError, match="models can be named of letters"):
        write_repository(replace(load_pack(), name=name), tmp_path / "deep" / "models", Options())
    assert [p.name for p in tmp_path.rglob("*")] == ["deep"]


def test_force_replaces_a_repository_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(PackError, match="is no model repository, and --force replaces nothing else"):
        write_repository(load_pack(), tmp_path, Options(), force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_tensorrt_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="TensorRT runs on GPUs only and kind is 'cpu'"):
        Options(kind="cpu", tensorrt=True)

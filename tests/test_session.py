"""Sessions on real ONNX graphs, made here with a handful of nodes; nothing of ONNX Runtime is replaced."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuralcodec.runtime.ort as ort_backend
import neuralcodec.runtime.trt as trt_backend
from neuralcodec import inference
from neuralcodec.errors import BackendUnavailableError, InferenceError, PackError
from neuralcodec.pack import load_pack
from neuralcodec.runtime.ort import (
    PLANS_KEPT,
    PROVIDERS,
    RECORDED,
    UNRECORDED,
    OrtSession,
    check_placement,
    cuda_usable,
    placement,
    providers,
)
from neuralcodec.runtime.session import (
    DEVICES,
    Port,
    check_feeds,
    check_outputs,
    open_session,
    present_devices,
)

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


def graph() -> bytes:
    """named "toy": total = sum over pixels of image * gain, ratio = image / gain; the batch is free and shared."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])
    gain = helper.make_tensor_value_info("gain", TensorProto.FLOAT, ["batch", 3, 1, 1])
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch", 3])
    ratio = helper.make_tensor_value_info("ratio", TensorProto.FLOAT, ["batch", 3, 4, 4])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "axes"], ["total"], keepdims=0),
        helper.make_node("Div", ["image", "gain"], ["ratio"]),
    ]
    toy = helper.make_graph(nodes, "toy", [image, gain], [total, ratio], [axes])
    model = helper.make_model(toy, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


GRAPH = graph()


def feeds(batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.random((batch, 3, 4, 4), np.float32),
        "gain": 1 + random.random((batch, 3, 1, 1), np.float32),
    }


def expected(f: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"total": (f["image"] * f["gain"]).sum((2, 3)), "ratio": f["image"] / f["gain"]}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_runs_a_graph_by_name_for_any_batch(batch: int) -> None:
    session = open_session(GRAPH)
    f = feeds(batch)
    out = session.run(f)
    assert list(out) == ["total", "ratio"] == list(session.output_names)
    for name, wanted in expected(f).items():
        np.testing.assert_allclose(out[name], wanted, rtol=1e-6)


def test_says_what_it_takes_and_what_runs_it() -> None:
    session = open_session(GRAPH, device="cpu", threads=1)
    assert session.input_shapes == {"image": ("batch", 3, 4, 4), "gain": ("batch", 3, 1, 1)}
    assert session.provider == "CPUExecutionProvider"


def test_a_path_and_bytes_are_the_same_network(tmp_path: Path) -> None:
    path = tmp_path / "toy.onnx"
    path.write_bytes(GRAPH)
    f = feeds()
    a, b = open_session(path).run(f), open_session(GRAPH).run(f)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_auto_takes_the_best_device_that_answers() -> None:
    wanted = "CUDAExecutionProvider" if cuda_usable() else "CPUExecutionProvider"
    assert open_session(GRAPH, device="auto").provider == wanted


def test_placed_inputs_give_the_same_results_and_serve_many_runs() -> None:
    session = open_session(GRAPH)
    f = feeds()
    kept = session.place({"gain": f["gain"]})
    for seed in range(3):
        image = feeds(seed=seed)["image"]
        out = session.run({"image": image, **kept})
        np.testing.assert_allclose(out["ratio"], image / f["gain"], rtol=1e-6)


@pytest.mark.parametrize("fixed", [False, True])
def test_bound_inputs_may_change_from_run_to_run(fixed: bool) -> None:
    """What a GPU session does, on the CPU's memory: bind placed inputs, or with CUDA graphs copy them to one place."""
    session = OrtSession(GRAPH)
    session._graphs = fixed
    first, second = feeds(seed=1), feeds(seed=2)
    a, b = (session._to_device({"gain": f["gain"]})["gain"] for f in (first, second))
    kept = []
    for f, gain, plain in ((first, a, first), (second, a, first), (second, b, second), (first, b, second)):
        out = session.run({"image": f["image"], "gain": gain})
        kept.append((out, expected({"image": f["image"], "gain": plain["gain"]})))
    f = feeds(seed=3)
    kept.append((session.run({"image": session._to_device(f)["image"], "gain": f["gain"]}), expected(f)))
    f = feeds(batch=5, seed=4)  # another shape has buffers of its own
    kept.append((session.run({"image": f["image"], "gain": session._to_device(f)["gain"]}), expected(f)))
    for out, wanted in kept:  # no later run wrote into an earlier result
        for name in wanted:
            np.testing.assert_allclose(out[name], wanted[name], rtol=1e-5)
    assert len(session._plans) == 2
    for size in range(6, 6 + 2 * PLANS_KEPT):
        f = feeds(batch=size)
        session.run({"image": f["image"], **session._to_device({"gain": f["gain"]})})
    assert len(session._plans) == PLANS_KEPT


def test_recordings_are_bounded_and_stay_with_their_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps each gpu_graph_id's recording for the life of a session, and it reads from fixed addresses."""
    made: list[tuple[int, str]] = []

    class Noted(ort_backend._Bound):
        def __init__(self, ort: Any, session: Any, device: str, inputs: Any, outputs: Any, graph_id: str) -> None:
            super().__init__(ort, session, device, inputs, outputs, graph_id)
            made.append((inputs["image"][1][0], graph_id))

    monkeypatch.setattr(ort_backend, "_Bound", Noted)
    session = OrtSession(GRAPH)
    session._graphs = True
    for _ in range(2):
        for batch in range(1, RECORDED + 4):
            f = feeds(batch=batch)
            out = session.run({"image": f["image"], **session._to_device({"gain": f["gain"]})})
            np.testing.assert_allclose(out["total"], expected(f)["total"], rtol=1e-5)
    recorded = [(batch, graph_id) for batch, graph_id in made if graph_id != UNRECORDED]
    assert recorded == [(batch, str(batch)) for batch in range(1, RECORDED + 1)]  # each once, under an id of its own
    assert [batch for batch, graph_id in made if graph_id == UNRECORDED] == [RECORDED + n for n in (1, 2, 3, 1, 2, 3)]
    assert len(session._plans) == PLANS_KEPT


def test_where_each_operator_runs_is_read_from_onnx_runtime() -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(GRAPH, options, providers=["CPUExecutionProvider"])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime does not tell")
    assert sorted(placement(session)["CPUExecutionProvider"]) == ["Div", "Mul", "ReduceSum"]


def test_a_gpu_that_leaves_the_work_to_the_cpu_is_refused() -> None:
    found = {"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Shape", "GridSample", "GridSample", "Conv"]}
    with pytest.raises(BackendUnavailableError, match=r"CUDA\S+ does not run 3 operators of render .Conv, GridSample."):
        check_placement("render", "CUDAExecutionProvider", found)
    with pytest.raises(BackendUnavailableError, match="Tensorrt\\S+ was loaded and runs no operator of render"):
        check_placement("render", "TensorrtExecutionProvider", {"CUDAExecutionProvider": ["Conv"]})
    shapes = {"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Shape", "Gather"]}
    check_placement("render", "CUDAExecutionProvider", shapes)
    check_placement("render", "CUDAExecutionProvider", {})


def test_present_devices_are_those_that_open() -> None:
    for device in present_devices():
        assert open_session(GRAPH, device=device).provider
    assert present_devices()[0] == "cpu"


def test_providers_come_with_their_fallbacks_in_order() -> None:
    assert [name for name, _ in providers("ort-tensorrt")] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip
    assert dict(providers("cuda", cuda_graphs=True))["CUDAExecutionProvider"]["enable_cuda_graph"] == "1"
    recorded = dict(providers("ort-tensorrt", cuda_graphs=True))  # it would replay one shape's recording for all others
    assert recorded["TensorrtExecutionProvider"]["trt_cuda_graph_enable"] == "0"
    assert providers("cpu") == [("CPUExecutionProvider", {})]
    assert set(PROVIDERS) == set(DEVICES) - {"auto", "tensorrt"}


@pytest.mark.parametrize(("exact", "tf32"), [(True, "0"), (False, "1")])
def test_an_exact_network_does_not_multiply_in_tf32(exact: bool, tf32: str) -> None:
    assert dict(providers("cuda", exact=exact))["CUDAExecutionProvider"]["use_tf32"] == tf32
    assert open_session(GRAPH, exact=exact).provider in PROVIDERS.values()  # a CPU knows no TF32 and runs both


def test_onnx_runtimes_tensorrt_leaves_exact_networks_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[str, bool]] = []
    monkeypatch.setattr(ort_backend, "OrtSession", lambda graph, *, device, exact, **_: opened.append((device, exact)))
    for exact in (True, False):
        open_session(GRAPH, device="ort-tensorrt", exact=exact)
    assert opened == [("cuda", True), ("ort-tensorrt", False)]
    with pytest.raises(ValueError, match="no switch for TF32"):
        OrtSession(GRAPH, device="ort-tensorrt", exact=True)


def test_tensorrt_builds_exact_networks_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[bool] = []
    monkeypatch.setattr(trt_backend, "TensorRTSession", lambda graph, *, options, **_: built.append(options.tf32))
    for exact in (True, False):
        open_session(GRAPH, device="tensorrt", exact=exact)
    assert built == [False, True]


def test_of_a_packs_networks_motion_alone_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(inference, "open_session", lambda graph, *, exact, **_: asked.append(exact))
    networks = inference.Inference(load_pack())
    assert (networks._motion, networks._reference, networks._render) == (None, None, None)
    assert asked == [True, False, False]


def test_inputs_bound_on_a_device_run_through_io_binding() -> None:
    session = OrtSession(GRAPH)
    f = feeds()
    bound = session._to_device({"gain": f["gain"]})  # on a GPU this is what place() does; here the device is the CPU
    out = session.run({"image": f["image"][:, :, ::-1], **bound})  # not contiguous on purpose
    np.testing.assert_allclose(out["ratio"], f["image"][:, :, ::-1] / f["gain"], rtol=1e-6)
    with pytest.raises(InferenceError, match="'gain' as float32 .1, 3, 1, 1.; .* batch = 2"):
        session.run({"image": f["image"], **session._to_device({"gain": f["gain"][:1]})})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": np.zeros((2, 3, 4, 4))}, r"toy was given 'image' as float64 \(2, 3, 4, 4\); it takes float32"),
        ({"image": np.zeros((2, 3, 4, 5), np.float32)}, r"\(2, 3, 4, 5\); it takes float32 \(batch, 3, 4, 4\)"),
        ({"image": np.zeros((3, 4, 4), np.float32)}, r"\(3, 4, 4\); it takes"),
        ({"gain": np.ones((1, 3, 1, 1), np.float32)}, r"'gain' as float32 \(1, 3, 1, 1\); .*batch = 2"),
        ({"Image": np.zeros((2, 3, 4, 4), np.float32)}, r"the inputs Image, gain, image; it takes exactly gain, image"),
    ],
)
def test_a_wrong_input_is_named_in_one_sentence(change: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(InferenceError, match=sentence) as caught:
        open_session(GRAPH).run({**feeds(), **change})
    assert "\n" not in str(caught.value)


def test_a_missing_input_is_an_error() -> None:
    with pytest.raises(InferenceError, match="the inputs gain; it takes exactly gain, image"):
        open_session(GRAPH).run({"gain": feeds()["gain"]})


def test_nan_is_found_only_when_asked_for() -> None:
    f = feeds()
    f["gain"][0] = 0
    f["image"][0] = 0
    assert np.isnan(open_session(GRAPH).run(f)["ratio"]).any()
    with pytest.raises(InferenceError, match="toy gave NaN or infinity in 48 of 96 values of 'ratio'"):
        open_session(GRAPH, check_finite=True).run(f)


@pytest.mark.parametrize("damage", [b"", b"not a graph", GRAPH[: len(GRAPH) // 2]])
def test_a_damaged_graph_is_refused_in_one_sentence(damage: bytes) -> None:
    with pytest.raises(PackError, match="cannot be loaded by ONNX Runtime") as caught:
        open_session(damage)
    assert "\n" not in str(caught.value)


def test_an_opset_that_the_runtime_does_not_know_is_refused_in_one_sentence() -> None:
    model = onnx.load_model_from_string(GRAPH)
    model.opset_import[0].version = 99
    with pytest.raises(PackError, match="cannot be loaded by ONNX Runtime .*99") as caught:
        open_session(model.SerializeToString())
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"render\.onnx is not there"):
        open_session(tmp_path / "render.onnx")


@pytest.mark.skipif(cuda_usable(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "ort-tensorrt"])
def test_a_gpu_that_cannot_be_had_raises_instead_of_falling_back(device: str) -> None:
    with pytest.raises(BackendUnavailableError, match=f"device '{device}'"):
        open_session(GRAPH, device=device)


def test_an_unknown_device_and_no_threads_are_refused() -> None:
    with pytest.raises(
        BackendUnavailableError, match="device 'gpu' is unknown; it is one of auto, cpu, cuda, tensorrt"
    ):
        open_session(GRAPH, device="gpu")
    for threads in (0, -1, True, 1.0, 1025, 10**10):
        with pytest.raises(ValueError, match=f"threads is {threads}; it must be a whole number of 1 to 1024"):
            open_session(GRAPH, threads=threads)  # type: ignore[arg-type]


def test_without_onnxruntime_the_error_names_the_command() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from neuralcodec.errors import BackendUnavailableError\n"
        "from neuralcodec.runtime.ort import cuda_usable\n"
        "from neuralcodec.runtime.session import open_session\n"
        "assert not cuda_usable()\n"
        "try: open_session(b'', device='auto')\n"
        "except BackendUnavailableError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.stdout == (
        "onnxruntime is not installed: pip install 'neuralcodec[cpu]', or 'neuralcodec[gpu]' for NVIDIA GPUs.\n"
    ), done.stderr


def test_an_onnxruntime_that_is_there_and_broken_is_told_from_a_missing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"cannot be loaded \(libcudart.so.13: cannot open"):
        open_session(GRAPH)
    assert not cuda_usable()


def test_one_session_serves_several_threads() -> None:
    session = open_session(GRAPH, threads=1)
    cases = [feeds(batch=1 + seed % 3, seed=seed) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        for f, out in zip(cases, pool.map(session.run, cases), strict=True):
            np.testing.assert_allclose(out["total"], expected(f)["total"], rtol=1e-5)


def test_checks_are_usable_by_any_backend() -> None:
    ports = {"x": Port(np.dtype(np.float16), ("n", "n", 2))}
    half = np.dtype(np.float16)
    check_feeds("net", ports, {"x": (half, (5, 5, 2))})
    with pytest.raises(InferenceError, match="n = 5"):
        check_feeds("net", ports, {"x": (half, (5, 6, 2))})
    check_outputs("net", {"count": np.array([1, 2])})  # integers have no NaN
    with pytest.raises(InferenceError, match="1 of 2 values of 'y'"):
        check_outputs("net", {"y": np.array([1.0, np.inf])})

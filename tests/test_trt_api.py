"""Checks runtime/trt.py and engine.py against the real bindings of TensorRT and cuda-python. Runs no engine.

The bindings are the true Python API: their signatures are compiled in. They load where their C++ libraries are missing
too, because they import nine functions only; empty stand-ins satisfy the loader and are never called. What we read is
which classes, methods, arguments and enum members exist. Every use in our two files is found by walking their syntax
trees. Needs no GPU, and says nothing about what an engine would compute on one.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export import to_tensorrt
from neuralcodec.errors import BackendUnavailableError, InferenceError, PackError
from neuralcodec.pack import load_pack
from neuralcodec.runtime import engine
from neuralcodec.runtime import ort as ort_backend
from neuralcodec.runtime import trt as trt_backend
from neuralcodec.runtime.engine import (
    EngineOptions,
    EngineTag,
    load_cuda,
    load_tensorrt,
    pack_engine,
    prepare_cache,
    unpack_engine,
    unreadable,
    write_whole,
)

RUNTIME = Path(__file__).parent.parent / "neuralcodec" / "runtime"
# What our local names stand for in engine.py and trt.py.
CLASS_OF = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "problem": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "levels": "HardwareCompatibilityLevel",
}
LIBRARIES = {
    "libnvinfer.so.11": [
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry", "getPluginRegistry",
    ],
    "libnvonnxparser.so.11": [
        "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion",
    ],
    "libnvinfer_plugin.so.11": ["initLibNvInferPlugins"],
}  # fmt: skip
DUMP = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
out = {"version": trt.__version__, "classes": {}}
def kind(value):
    if isinstance(value, property): return {"property": True}
    return {"doc": getattr(value, "__doc__", None) or ""} if callable(value) else {"value": True}
for name in dir(trt):
    value = getattr(trt, name)
    if isinstance(value, type):
        out["classes"][name] = {n: kind(getattr(value, n)) for n in dir(value)}
    elif callable(value):
        out["classes"][name] = {"__init__": kind(value)}
out["dims"] = list(trt.Dims([2, 3]))
out["float"] = trt.nptype(trt.DataType.FLOAT).__name__
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every class and function of TensorRT's Python module, as the bindings describe themselves."""
    if importlib.util.find_spec("tensorrt") is not None:
        return _dump("tensorrt", {})
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("the wheel tensorrt-cu13-bindings is not installed")
    folder = _stand_ins(tmp_path_factory.mktemp("libraries"), LIBRARIES)
    return _dump("tensorrt_bindings", {"LD_LIBRARY_PATH": str(folder)})


def _stand_ins(folder: Path, libraries: dict[str, list[str]]) -> Path:
    """Empty libraries that satisfy the loader and are never called."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the empty libraries that let the bindings load")
    for name, functions in libraries.items():
        source = folder / (name + ".c")
        source.write_text("".join(f"void *{f}(void) {{ return 0; }}\n" for f in functions))
        subprocess.run([compiler, "-shared", "-fPIC", source, "-o", folder / name, f"-Wl,-soname,{name}"], check=True)
    return folder


def _dump(module: str, more: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", DUMP, module], env={**os.environ, **more}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _uses() -> list[tuple[str, ast.Attribute, ast.Call | None, str]]:
    """(name, attribute read from it, the call if it is called, where) for every attribute in our two files."""
    found = []
    for path in (RUNTIME / "engine.py", RUNTIME / "trt.py"):
        tree = ast.parse(path.read_text())
        called = {id(n.func): n for n in ast.walk(tree) if isinstance(n, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                root = node.value
                name = root.id if isinstance(root, ast.Name) else root.attr if isinstance(root, ast.Attribute) else ""
                found.append((name.lstrip("_"), node, called.get(id(node)), f"{path.name}:{node.lineno}"))
    return found


def _signatures(doc: str) -> list[list[tuple[str, bool]]]:
    """Parameters (name, has a default) without self of each signature in a binding's docstring."""
    out = []
    for line in doc.splitlines():
        match = re.match(r"^(?:\d+\. )?\w+\((.*)\) -> ", line.strip())
        if match and "*args" not in match[1]:
            text, depth, parts = match[1], 0, [""]
            for c in text:
                depth += (c in "[(<") - (c in "])>")
                if c == "," and not depth:
                    parts.append("")
                else:
                    parts[-1] += c
            parameters = [(p.split(":")[0].strip(), "=" in p) for p in parts if p.strip()]
            out.append([p for p in parameters if p[0] != "self"])
    return out


def _takes(signature: list[tuple[str, bool]], call: ast.Call) -> bool:
    keywords = {k.arg for k in call.keywords}
    if any(isinstance(a, ast.Starred) for a in call.args):
        return len(signature) >= len(call.args)
    if len(call.args) + len(keywords) > len(signature) or not keywords <= {n for n, _ in signature[len(call.args) :]}:
        return False
    return all(default or name in keywords for name, default in signature[len(call.args) :])


def test_every_tensorrt_name_we_use_exists(bindings: dict[str, Any]) -> None:
    classes, checked = bindings["classes"], 0
    for root, node, _, where in _uses():
        if root == "trt" and node.attr != "__version__":
            assert node.attr in classes, f"{where}: tensorrt.{node.attr}"
            checked += 1
        elif root in CLASS_OF or root in classes:
            owner = CLASS_OF.get(root, root)
            assert node.attr in classes[owner], f"{where}: {owner}.{node.attr}"
            checked += 1
    assert checked >= 45  # the walk really finds our uses


def test_every_tensorrt_call_has_arguments_that_the_binding_takes(bindings: dict[str, Any]) -> None:
    classes, checked = bindings["classes"], 0
    for root, node, call, where in _uses():
        owner = CLASS_OF.get(root)
        if owner is not None:
            entry = classes[owner][node.attr]
            assert (call is not None) == ("doc" in entry), f"{where}: {owner}.{node.attr} is {entry}"
        elif root == "trt" and call is not None:
            entry = classes[node.attr]["__init__"]
        else:
            continue
        if call is not None and node.attr != "nptype":  # a function in plain Python, without a signature in its text
            signatures = _signatures(entry["doc"])
            assert any(_takes(s, call) for s in signatures), f"{where}: {ast.unparse(call)} against {signatures}"
            checked += 1
    assert checked >= 30


def test_a_wrong_name_or_argument_would_be_noticed(bindings: dict[str, Any]) -> None:
    classes = bindings["classes"]
    assert "FP16" not in classes["BuilderFlag"]  # what TensorRT 11 took away
    assert "execute_async_v2" not in classes["IExecutionContext"]
    signatures = _signatures(classes["IBuilderConfig"]["set_timing_cache"]["doc"])
    assert signatures == [[("cache", False), ("ignore_mismatch", False)]]
    call = ast.parse("config.set_timing_cache(cache)", mode="eval").body
    assert isinstance(call, ast.Call) and not _takes(signatures[0], call)


def test_the_lean_runtime_has_all_that_running_an_engine_takes(
    bindings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where engines come ready built, the lean wheels do, a tenth of the size."""
    if importlib.util.find_spec("tensorrt_lean_bindings") is None:
        pytest.skip("the wheel tensorrt-lean-cu13-bindings is not installed")
    functions = ["createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "getPluginRegistry"]
    folder = _stand_ins(tmp_path_factory.mktemp("lean"), {"libnvinfer_lean.so.11": functions})
    lean = _dump("tensorrt_lean_bindings", {"LD_LIBRARY_PATH": str(folder)})
    assert lean["version"].split(".")[:2] == bindings["version"].split(".")[:2]
    tree, checked = ast.parse((RUNTIME / "trt.py").read_text()), 0
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for owner in ("Runtime", "ICudaEngine", "IExecutionContext", "TensorIOMode"):
        for name in used & bindings["classes"][owner].keys():
            assert lean["classes"][owner].get(name, {}).keys() == bindings["classes"][owner][name].keys(), name
            whole, ours = (b["classes"][owner][name].get("doc", "") for b in (bindings, lean))
            assert _signatures(whole) == _signatures(ours), f"{owner}.{name}"
            checked += 1
    assert checked >= 12 and "Builder" not in lean["classes"]


def test_tensorrt_shapes_and_types_convert_as_we_rely_on(bindings: dict[str, Any]) -> None:
    assert bindings["dims"] == [2, 3]
    assert bindings["float"] == "float32"
    assert int(bindings["version"].split(".")[0]) >= 11


def test_every_cuda_name_we_use_exists() -> None:
    cuda: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    checked = 0
    for root, node, call, where in _uses():
        owner = cuda if root == "cuda" else getattr(cuda, root, None) if root.startswith("cuda") else None
        if owner is None or node.attr.startswith("_"):
            continue
        assert hasattr(owner, node.attr), f"{where}: {root}.{node.attr}"
        if call is not None:
            names = [
                p.split("=")[0] for p in getattr(owner, node.attr).__doc__.splitlines()[0].split("(")[1].split(",")
            ]
            taken = [n for n in names if n.strip(" )")]
            assert len(call.args) == len(taken), f"{where}: {ast.unparse(call)} against {taken}"
        checked += 1
    assert checked >= 20
    assert {"name", "major", "minor"} <= set(dir(cuda.cudaDeviceProp))


def test_a_parser_that_cannot_sample_volumes_is_told_from_other_trouble() -> None:
    problem = "GridSample 'node_grid_sample': input must be of rank 4"
    assert unreadable("11.1.0.106", problem) == (
        f"TensorRT 11.1.0.106 cannot read the graph: {problem}. This TensorRT cannot sample volumes; export the graph "
        "with --no-volumetric."
    )
    assert "--no-volumetric" not in unreadable("11.4.0.106", problem)  # this one can, so it is something else
    assert "--no-volumetric" not in unreadable("11.1.0.106", "Foo 'x': no importer")


TAG = EngineTag("ab" * 32, "NVIDIA H200", "9.0", "11.4.0.106", EngineOptions(max_batch=32))


def test_an_engine_file_gives_back_its_tag_and_plan() -> None:
    assert unpack_engine(pack_engine(TAG, b"\x00plan\nwith\nlines")) == (TAG, b"\x00plan\nwith\nlines")


@pytest.mark.parametrize(
    "data", [b"", b"ONNX", b"neuralcodec engine 1\n", b"neuralcodec engine 1\n{}\nplan", b"neuralcodec engine 1\n[\n"]
)
def test_anything_else_is_refused_in_one_sentence(data: bytes) -> None:
    with pytest.raises(PackError, match="build"):
        unpack_engine(data)


@pytest.mark.parametrize(
    ("options", "machine", "reason"),
    [
        ({}, {}, None),
        ({}, {"gpu": "NVIDIA L4", "capability": "8.9"}, "built for NVIDIA H200"),
        ({}, {"tensorrt": "11.5.0.1"}, "built by TensorRT 11.4.0.106"),
        ({"version_compatible": True}, {"tensorrt": "11.5.0.1"}, None),
        ({"version_compatible": True}, {"tensorrt": "11.3.0.99"}, "this is 11.3.0.99"),
        ({"version_compatible": True}, {"tensorrt": "12.0.0.1"}, "this is 12.0.0.1"),
        ({"hardware": "capability"}, {"gpu": "NVIDIA H100"}, None),
        ({"hardware": "capability"}, {"gpu": "NVIDIA B200", "capability": "10.0"}, "(10.0)"),
        ({"hardware": "ampere+"}, {"gpu": "NVIDIA B200", "capability": "10.0"}, None),
        ({"hardware": "ampere+"}, {"gpu": "Tesla T4", "capability": "7.5"}, "(7.5)"),
    ],
)
def test_an_engine_runs_only_where_it_was_built_for(
    options: dict[str, Any], machine: dict[str, str], reason: str | None
) -> None:
    here = {"gpu": TAG.gpu, "capability": TAG.capability, "tensorrt": TAG.tensorrt}
    built = EngineTag("ab" * 32, **here, options=EngineOptions(**options))
    found = built.unfit(EngineTag("", **{**here, **machine}, options=EngineOptions()))
    assert found == reason if reason is None else found is not None and reason in found


def test_an_engine_in_tf32_does_not_run_a_network_that_must_be_exact() -> None:
    fast, exact = (EngineTag("", TAG.gpu, TAG.capability, TAG.tensorrt, EngineOptions(tf32=tf32)) for tf32 in (1, 0))
    assert "TF32" in (fast.unfit(exact) or "")
    assert exact.unfit(exact) is exact.unfit(fast) is fast.unfit(fast) is None


def test_the_motion_engine_is_built_without_tf32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With stand-ins for what needs a GPU: which options each graph is built with."""
    built: dict[bytes, EngineOptions] = {}
    monkeypatch.setattr(to_tensorrt, "here", lambda graph, options: replace(TAG, options=options))
    monkeypatch.setattr(to_tensorrt, "build_engine", lambda graph, o, timing: built.update({graph: o}) or b"")
    for name in ("motion", "render"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    for path in to_tensorrt.build_folder(tmp_path, tmp_path / "out", EngineOptions(max_batch=32)):
        assert unpack_engine(path.read_bytes())[0].options == built[path.stem.encode()]
    assert built == {b"motion": EngineOptions(max_batch=32, tf32=False), b"render": EngineOptions(max_batch=32)}
    built.clear()
    with pytest.raises(OSError):
        to_tensorrt.build_folder(tmp_path, tmp_path / "motion.onnx", EngineOptions())
    assert not built  # for a folder that cannot be there


def test_a_machine_without_tensorrt_keeps_no_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def here(graph: bytes, options: EngineOptions) -> EngineTag:
        raise BackendUnavailableError("TensorRT is not installed")

    monkeypatch.setattr(to_tensorrt, "here", here)
    (tmp_path / "motion.onnx").write_bytes(b"graph")
    assert to_tensorrt.main(["--onnx", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


def test_the_cache_name_depends_on_everything_in_the_tag() -> None:
    others = [
        EngineTag("cd" * 32, TAG.gpu, TAG.capability, TAG.tensorrt, TAG.options),
        EngineTag(TAG.graph, "NVIDIA H100", TAG.capability, TAG.tensorrt, TAG.options),
        EngineTag(TAG.graph, TAG.gpu, "8.0", TAG.tensorrt, TAG.options),
        EngineTag(TAG.graph, TAG.gpu, TAG.capability, "11.5.0.1", TAG.options),
        EngineTag(TAG.graph, TAG.gpu, TAG.capability, TAG.tensorrt, EngineOptions(max_batch=32, tf32=False)),
    ]
    assert len({tag.file_name for tag in [TAG, *others]}) == 6


class Cuda:
    """What ``here`` asks of cuda-python, for the GPU of TAG."""

    class cudaError_t:
        cudaSuccess = 0

    def cudaGetDevice(self) -> tuple[int, int]:
        return 0, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(name=TAG.gpu.encode(), major=9, minor=0)


def test_an_engine_is_named_after_the_float_graph_that_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of a float graph that dequantize.py made otherwise must not be taken from the cache."""
    pytest.importorskip("onnx")
    monkeypatch.setattr(engine, "load_tensorrt", lambda: SimpleNamespace(__version__=TAG.tensorrt))
    monkeypatch.setattr(engine, "load_cuda", Cuda)
    stored = load_pack().graph("reference")
    floats = engine.float_graph(stored)
    assert floats != stored
    tags = [engine.here(graph, TAG.options) for graph in (stored, floats)]
    assert tags[0] == tags[1] == replace(TAG, graph=hashlib.sha256(floats).hexdigest())
    monkeypatch.setattr(engine, "float_graph", lambda graph: floats + b"mended")
    assert engine.here(stored, TAG.options).file_name != tags[0].file_name


def test_a_cache_that_cannot_be_written_is_one_sentence_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(trt_backend, "here", lambda graph, options: TAG)
    monkeypatch.setattr(trt_backend, "build_engine", lambda *_: pytest.fail("built before the folder was tried"))
    session = object.__new__(trt_backend.TensorRTSession)
    with pytest.raises(BackendUnavailableError, match=r"Engines are kept in .*cannot be written \(Not a directory\)"):
        session._from_cache(b"", TAG.options, tmp_path / "file" / "engines")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(BackendUnavailableError, match="Engines are kept in"):
        ort_backend._load(pytest.importorskip("onnxruntime"), b"", "ort-tensorrt", None)
    prepare_cache(tmp_path / "new" / "engines")
    assert list((tmp_path / "new" / "engines").iterdir()) == []


def test_an_engine_that_has_no_memory_to_run_in_is_one_sentence() -> None:
    engine = SimpleNamespace(create_execution_context=lambda: None)
    with pytest.raises(InferenceError, match="no memory for another set of input shapes"):
        trt_backend._Plan(None, engine, {}, {}, {})  # type: ignore[arg-type]


def test_a_user_without_a_home_is_told_so_and_needs_none_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(BackendUnavailableError, match="set XDG_CACHE_HOME"):
        ort_backend.providers("ort-tensorrt")
    assert ort_backend.providers("cpu") == [("CPUExecutionProvider", {})]


def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="hardware is 'any'"):
        EngineOptions(hardware="any")
    with pytest.raises(ValueError, match="batch is 9"):
        EngineOptions(batch=9, max_batch=8)
    for wrong in ({"effort": 6}, {"workspace_mib": 0}, {"workspace_mib": -5}):
        with pytest.raises(ValueError, match="0 to 5 and at least 1 are needed"):
            EngineOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        to_tensorrt.main(["--onnx", "x", "--out", "x", "--workspace-mib", "-5"])
    assert "--workspace-mib -5 must be at least 1" in capsys.readouterr().err


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a.engine", b"plan")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.engine"]
    with pytest.raises(IsADirectoryError) as told:
        write_whole(tmp_path / "new", b"plan")
    assert told.value.filename == str(tmp_path / "new") and [p.name for p in tmp_path.iterdir()] == ["new"]


def test_a_link_to_a_file_that_is_written_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "a.engine")  # to nothing yet
    for data in (b"plan", b"another"):
        write_whole(tmp_path / "link", data)
        files = {path.name: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
        assert (tmp_path / "link").is_symlink() and files == {"a.engine": data}


def test_two_threads_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sessions that build the same engine, which takes both of them minutes."""
    rename, path = os.replace, tmp_path / "a.engine"

    def meet(partial: Path, whole: Path) -> None:
        monkeypatch.setattr(os, "replace", rename)
        write_whole(path, b"other")
        rename(partial, whole)

    monkeypatch.setattr(os, "replace", meet)
    write_whole(path, b"plan")
    assert path.read_bytes() == b"plan" and list(tmp_path.iterdir()) == [path]


def test_without_the_libraries_the_error_names_the_command() -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(BackendUnavailableError, match=r"pip install 'neuralcodec\[tensorrt\]'"):
        load_tensorrt()


def test_without_a_gpu_the_error_says_so() -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is an NVIDIA GPU here")
    with pytest.raises(BackendUnavailableError, match="No NVIDIA GPU|cuda-python is not installed"):
        load_cuda()

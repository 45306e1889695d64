"""Networks in ONNX Runtime, on the CPU or an NVIDIA GPU. Knows no network by name and never falls back in silence.

The CUDA provider has run on an H100 (ONNX Runtime 1.31.1 for CUDA 13), before there were ``exact`` and RECORDED. NOT
RUN BY US: those and the TensorRT provider, driven as their documentation says. What the CPU wheel has of both (binding,
device values, copies between them, where each node runs) is tested on the CPU.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralcodec.errors import BackendUnavailableError, InferenceError, PackError
from neuralcodec.motion import Array
from neuralcodec.runtime.dequantize import float_graph
from neuralcodec.runtime.engine import cache_folder, prepare_cache
from neuralcodec.runtime.session import Port, check_feeds, check_outputs

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",  # engines inside ONNX Runtime; runtime/trt.py is TensorRT without it
}
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "GridSample"}  # on a GPU, one of these on the CPU spoils everything
PLANS_KEPT = 16  # sets of input shapes a GPU session keeps buffers for
# Of those, the sets it records a CUDA graph for: the first ones, for good. ONNX Runtime releases a recording with the
# session only, and a recording needs the buffers that it was made with.
RECORDED = PLANS_KEPT - 1
UNRECORDED = "-1"  # the gpu_graph_id that turns recording off for one run
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}
ERRORS_ONLY = 3  # ONNX Runtime's log severity; its warnings about providers are ours to put in a sentence


class OrtSession:
    """A :class:`neuralcodec.runtime.session.Session` in ONNX Runtime.

    cuda_graphs: on CUDA, record the kernels of each set of input shapes once and replay them: same outputs to the bit,
    and a renderer's frame four times sooner on an H100.
    exact: float32 products with full mantissas, see :func:`neuralcodec.runtime.session.open_session`.
    """

    def __init__(
        self,
        graph: bytes | Path,
        *,
        device: str = "cpu",
        threads: int | None = None,
        check_finite: bool = False,
        cuda_graphs: bool = True,
        exact: bool = False,
    ) -> None:
        if exact and device == "ort-tensorrt":
            raise ValueError("exact networks cannot run on device 'ort-tensorrt', which has no switch for TF32.")
        ort = _onnxruntime()
        wanted = PROVIDERS[device]
        if wanted not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"device {device!r} needs {wanted}, and the installed onnxruntime {ort.__version__} has only "
                f"{', '.join(ort.get_available_providers())}: pip uninstall onnxruntime, "
                "then pip install 'neuralcodec[gpu]'."
            )
        if device != "cpu":
            _preload_cuda(ort)
        self._ort = ort
        self._device = "cpu" if device == "cpu" else "cuda"  # where its memory is
        self._check_finite = check_finite
        # The TensorRT provider does not know gpu_graph_id: it would replay the first shape's recording for all others.
        self._graphs = cuda_graphs and device == "cuda"
        self._lock = threading.Lock()
        self._plans: dict[tuple[tuple[int, ...], ...], _Bound] = {}
        self._session = _load(ort, graph, device, threads, cuda_graphs=self._graphs, exact=exact)
        found = self._session.get_providers()
        if found[:1] != [wanted]:
            raise BackendUnavailableError(
                f"device {device!r} was asked for, ONNX Runtime {ort.__version__} loaded {', '.join(found)} instead: "
                "the NVIDIA driver, CUDA or cuDNN is missing or of another version; 'neuralcodec doctor' lists them."
            )
        self.provider: str = wanted
        self._name: str = self._session.get_modelmeta().graph_name or "the network"
        if device != "cpu":
            check_placement(self._name, wanted, placement(self._session))
        self._ports = {i.name: _port(i) for i in self._session.get_inputs()}
        self._results = {o.name: _port(o) for o in self._session.get_outputs()}
        self.input_shapes = {name: port.shape for name, port in self._ports.items()}
        self.output_names: tuple[str, ...] = tuple(self._results)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        described = {name: self._describe(value) for name, value in feeds.items()}
        check_feeds(self._name, self._ports, described)
        placed = any(isinstance(value, Placed) for value in feeds.values())
        try:
            if placed or self._device != "cpu":
                with self._lock:
                    arrays = self._plan({name: described[name][1] for name in self._ports}).run(feeds)
            else:
                arrays = self._session.run(self.output_names, dict(feeds))
        except Exception as error:  # ONNX Runtime raises a dozen types of its own, all derived from Exception alone
            raise InferenceError(f"{self._name} failed in {self.provider}: {_first_line(error)}") from error
        outputs = dict(zip(self.output_names, arrays, strict=True))
        if self._check_finite:
            check_outputs(self._name, outputs)
        return outputs

    def place(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        if self._device == "cpu":
            return dict(arrays)  # they are there already
        return self._to_device(arrays)

    def _to_device(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        make = self._ort.OrtValue.ortvalue_from_numpy
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return {name: Placed(array, make(array, self._device, 0)) for name, array in whole.items()}

    def _plan(self, shapes: Mapping[str, tuple[int, ...]]) -> _Bound:
        key = tuple(shapes.values())
        if key not in self._plans:
            if len(self._plans) == PLANS_KEPT:
                del self._plans[next(key for key, plan in self._plans.items() if not plan.recorded)]
            graph_id = None
            if self._graphs:
                graph_id = str(len(self._plans) + 1) if len(self._plans) < RECORDED else UNRECORDED
            sizes = {n: v for name, port in self._ports.items() for n, v in zip(port.shape, shapes[name], strict=True)}
            self._plans[key] = _Bound(
                self._ort,
                self._session,
                self._device,
                {name: (port.dtype, shapes[name]) for name, port in self._ports.items()},
                {
                    name: (port.dtype, tuple(n if isinstance(n, int) else sizes.get(n) for n in port.shape))
                    for name, port in self._results.items()
                },
                graph_id,
            )
        return self._plans[key]

    def _describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
        array = value.array if isinstance(value, Placed) else np.asarray(value)
        return array.dtype, array.shape


@dataclass(frozen=True, eq=False)
class Placed:
    """An input that lies in device memory already, and where it came from."""

    array: Array
    value: Any  # an OrtValue


class _Bound:
    """Device buffers and bindings for one set of input shapes.

    A placed input (the features of a reference) is bound where it lies. A recorded CUDA graph reads from fixed
    addresses, so with graphs it is copied into the buffer instead, once for the many frames it serves.
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        device: str,
        inputs: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
        outputs: Mapping[str, tuple[np.dtype[Any], tuple[int | None, ...]]],
        graph_id: str | None,
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        make = ort.OrtValue.ortvalue_from_shape_and_type
        self._inputs = {name: make(list(shape), dtype, device, 0) for name, (dtype, shape) in inputs.items()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, (dtype, shape) in outputs.items():
            if None in shape:  # a size that no input tells: let ONNX Runtime make room at each run
                self._binding.bind_output(name, device)
            else:
                self._binding.bind_ortvalue_output(name, make(list(shape), dtype, device, 0))
        self._held: dict[str, Placed] = {}
        self.recorded = graph_id not in (None, UNRECORDED)
        self._options = ort.RunOptions()
        if graph_id is not None:
            self._options.add_run_config_entry("gpu_graph_id", graph_id)

    def run(self, feeds: Mapping[str, Any]) -> list[Array]:
        for name, buffer in self._inputs.items():
            value, held = feeds[name], self._held.get(name)
            if isinstance(value, Placed):
                if held is not value and self.recorded:
                    buffer.update_inplace(value.array)
                elif held is not value:
                    self._binding.bind_ortvalue_input(name, value.value)
                self._held[name] = value
                continue
            if held is not None and not self.recorded:
                self._binding.bind_ortvalue_input(name, buffer)
            self._held.pop(name, None)
            buffer.update_inplace(np.ascontiguousarray(value))
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return [np.array(value.numpy()) for value in self._binding.get_outputs()]


def placement(session: Any) -> dict[str, list[str]]:
    """Operators by the provider that runs them; empty where this ONNX Runtime does not tell (before 1.24)."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return {}
    found: dict[str, list[str]] = {}
    for part in tell():
        found.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return found


def check_placement(network: str, provider: str, found: Mapping[str, Sequence[str]]) -> None:
    """Raise :class:`BackendUnavailableError` where a GPU provider runs nothing or leaves heavy work to the CPU."""
    if found and provider not in found:
        raise BackendUnavailableError(
            f"{provider} was loaded and runs no operator of {network} ({', '.join(found)} would): its libraries are "
            "missing or of another version; 'neuralcodec doctor' lists what there is."
        )
    left = sorted(HEAVY.intersection(found.get(PROVIDERS["cpu"], ())))
    if left:
        count = sum(op in HEAVY for op in found[PROVIDERS["cpu"]])
        raise BackendUnavailableError(
            f"{provider} does not run {count} operators of {network} ({', '.join(left)}), they would run on the CPU: "
            "update onnxruntime-gpu to 1.25 or later, or export the graph with --no-volumetric."
        )


def cuda_usable() -> bool:
    """Whether ONNX Runtime has its CUDA provider and a GPU answers. False when ONNX Runtime itself is missing."""
    try:
        ort = _onnxruntime()
        if PROVIDERS["cuda"] not in ort.get_available_providers():
            return False
        _preload_cuda(ort)
        ort.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception:  # no driver, no device, no library: each its own type, and each means no
        return False
    return True


def tensorrt_usable() -> bool:
    """Whether ONNX Runtime's own TensorRT provider finds the TensorRT it was built against; without, it loads another.

    ONNX Runtime 1.31 wants TensorRT 10: next to TensorRT 11, use device "tensorrt".
    """
    ort = _onnxruntime()
    if PROVIDERS["ort-tensorrt"] not in ort.get_available_providers():
        return False
    _preload_cuda(ort)
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"))
    except OSError:
        return False
    return True


def provider_names() -> list[str]:
    """Execution providers that the installed ONNX Runtime was built with."""
    return list(_onnxruntime().get_available_providers())


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        if error.name != "onnxruntime":  # something in it, or below it
            raise BackendUnavailableError(
                f"onnxruntime is installed and cannot be loaded ({_first_line(error)}): install it again."
            ) from error
        raise BackendUnavailableError(
            "onnxruntime is not installed: pip install 'neuralcodec[cpu]', or 'neuralcodec[gpu]' for NVIDIA GPUs."
        ) from error
    return onnxruntime


def _preload_cuda(ort: Any) -> None:
    # CUDA and cuDNN installed by pip are on no loader path; ONNX Runtime finds them itself only when told to.
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()


def _load(
    ort: Any, graph: bytes | Path, device: str, threads: int | None, *, cuda_graphs: bool = False, exact: bool = False
) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Threads that spin while they wait steal the cores from camera, coder and the other networks. Measured on two cores
    # shared with another busy process, render at 256: 64 ms a frame and 61 ms of CPU without, 106 and 111 with.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = ERRORS_ONLY
    if device != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device == "ort-tensorrt":
        engines = cache_folder() / "onnxruntime"
        if not engines.is_dir():  # one that is there may be finished and read-only
            prepare_cache(engines)
    source: Any = graph if isinstance(graph, bytes) else str(graph)
    if isinstance(graph, Path) and not graph.is_file():
        raise PackError(f"{graph} is not there; a model pack holds its networks as .onnx files.")
    if device != "cpu":
        source = float_graph(graph.read_bytes() if isinstance(graph, Path) else graph)
    try:
        return ort.InferenceSession(source, options, providers=providers(device, cuda_graphs=cuda_graphs, exact=exact))
    except Exception as error:
        what = str(graph) if isinstance(graph, Path) else f"The network ({len(graph)} bytes)"
        raise PackError(f"{what} cannot be loaded by ONNX Runtime {ort.__version__}: {_first_line(error)}") from error


def providers(device: str, *, cuda_graphs: bool = False, exact: bool = False) -> list[tuple[str, dict[str, str]]]:
    """Execution providers for a device, the wanted one first, with their options."""
    cpu: tuple[str, dict[str, str]] = (PROVIDERS["cpu"], {})
    if device == "cpu":
        return [cpu]
    cuda = (
        PROVIDERS["cuda"],
        {
            "enable_cuda_graph": "1" if cuda_graphs else "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "0" if exact else "1",  # known since ONNX Runtime 1.18; 1 is the default
        },
    )
    if device == "cuda":
        return [cuda, cpu]
    engines = cache_folder() / "onnxruntime"
    trt = (
        PROVIDERS["ort-tensorrt"],
        {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engines),
            "trt_cuda_graph_enable": "0",
        },
    )
    return [trt, cuda, cpu]


def _port(value: Any) -> Port:
    if value.type not in DTYPES:
        raise PackError(f"The tensor {value.name!r} is a {value.type}; networks here take {', '.join(DTYPES)}.")
    shape = tuple(
        size if isinstance(size, int) else str(size or f"{value.name}_{axis}") for axis, size in enumerate(value.shape)
    )
    return Port(np.dtype(DTYPES[value.type]), shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Networks in ONNX Runtime, on the CPU or an NVIDIA GPU. Knows no network by name and never falls back in silence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuralcodec.errors import BackendUnavailableError, InferenceError, PackError
from neuralcodec.motion import Array
from neuralcodec.runtime.session import Port, check_feeds, check_outputs

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
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
    """A :class:`neuralcodec.runtime.session.Session` in ONNX Runtime."""

    def __init__(
        self, graph: bytes | Path, *, device: str = "cpu", threads: int | None = None, check_finite: bool = False
    ) -> None:
        ort = _onnxruntime()
        wanted = PROVIDERS[device]
        if wanted not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"device {device!r} needs {wanted}, and the installed onnxruntime {ort.__version__} has only "
                f"{', '.join(ort.get_available_providers())}: pip uninstall onnxruntime, "
                "then pip install 'neuralcodec[gpu]'."
            )
        if device == "cuda":
            _preload_cuda(ort)
        self._ort = ort
        self._device = device
        self._check_finite = check_finite
        self._session = _load(ort, graph, wanted, threads)
        found = self._session.get_providers()
        if found[:1] != [wanted]:
            raise BackendUnavailableError(
                f"device {device!r} was asked for, ONNX Runtime {ort.__version__} loaded {', '.join(found)} instead: "
                "the NVIDIA driver, CUDA or cuDNN is missing or of another version; 'neuralcodec doctor' lists them."
            )
        self.provider: str = wanted
        self._name: str = self._session.get_modelmeta().graph_name or "the network"
        self._ports = {i.name: _port(i) for i in self._session.get_inputs()}
        self.input_shapes = {name: port.shape for name, port in self._ports.items()}
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        check_feeds(self._name, self._ports, {name: self._describe(value) for name, value in feeds.items()})
        placed = {name: value for name, value in feeds.items() if isinstance(value, self._ort.OrtValue)}
        try:
            if placed:
                arrays = self._run_bound(feeds, placed)
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
        return {name: make(np.ascontiguousarray(array), self._device, 0) for name, array in arrays.items()}

    def _run_bound(self, feeds: Mapping[str, Any], placed: Mapping[str, Any]) -> list[Array]:
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if name in placed:
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self.output_names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())

    def _describe(self, value: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
        if isinstance(value, self._ort.OrtValue):
            return np.dtype(DTYPES[value.data_type()]), tuple(value.shape())
        array = np.asarray(value)
        return array.dtype, array.shape


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


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            "onnxruntime is not installed: pip install 'neuralcodec[cpu]', or 'neuralcodec[gpu]' for NVIDIA GPUs."
        ) from error
    return onnxruntime


def _preload_cuda(ort: Any) -> None:
    # CUDA and cuDNN installed by pip are on no loader path; ONNX Runtime finds them itself only when told to.
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:
        preload()


def _load(ort: Any, graph: bytes | Path, provider: str, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Threads that spin while they wait steal the cores from camera, coder and the other networks. Measured on two cores
    # shared with another busy process, render at 256: 64 ms a frame and 61 ms of CPU without, 106 and 111 with.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = ERRORS_ONLY
    providers = [provider] if provider == PROVIDERS["cpu"] else [provider, PROVIDERS["cpu"]]
    source: Any = graph if isinstance(graph, bytes) else str(graph)
    if isinstance(graph, Path) and not graph.is_file():
        raise PackError(f"{graph} is not there; a model pack holds its networks as .onnx files.")
    try:
        return ort.InferenceSession(source, options, providers=providers)
    except Exception as error:
        what = str(graph) if isinstance(graph, Path) else f"The network ({len(graph)} bytes)"
        raise PackError(f"{what} cannot be loaded by ONNX Runtime {ort.__version__}: {_first_line(error)}") from error


def _port(value: Any) -> Port:
    if value.type not in DTYPES:
        raise PackError(f"Input {value.name!r} is a {value.type}; networks here take {', '.join(DTYPES)}.")
    shape = tuple(
        size if isinstance(size, int) else str(size or f"{value.name}_{axis}") for axis, size in enumerate(value.shape)
    )
    return Port(np.dtype(DTYPES[value.type]), shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

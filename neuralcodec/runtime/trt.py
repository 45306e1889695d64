"""Networks on TensorRT: engines from the cache, CUDA graphs, buffers that stay on the GPU. Knows no network by name.

NOT RUN ON HARDWARE BY US. Neither TensorRT's libraries nor a GPU were at hand when this was written. Every class,
method, argument and enum member used here and in engine.py is checked against the bindings of TensorRT 11.4 and of
cuda-python by tests/test_trt_api.py; nothing else is known. Please report what happens on your machine.

TensorRT 11 types every network strongly: precision is what the ONNX graph says. Volumes are sampled natively from
11.2.1; for older releases export the graph with ``--no-volumetric``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuralcodec.errors import InferenceError, PackError
from neuralcodec.motion import Array
from neuralcodec.runtime.engine import (
    MAGIC,
    EngineOptions,
    build_engine,
    cache_folder,
    done,
    here,
    load_cuda,
    load_tensorrt,
    make_logger,
    pack_engine,
    prepare_cache,
    unpack_engine,
    write_whole,
)
from neuralcodec.runtime.session import Port, check_feeds, check_outputs

PLANS_KEPT = 8  # sets of input shapes a session keeps buffers and a CUDA graph for


class TensorRTSession:
    """A :class:`neuralcodec.runtime.session.Session` on TensorRT. ``graph``: ONNX, or an engine file built before."""

    provider = "TensorRT"

    def __init__(
        self,
        graph: bytes | Path,
        *,
        options: EngineOptions | None = None,
        cache: Path | None = None,
        check_finite: bool = False,
    ) -> None:
        self._trt = trt = load_tensorrt()
        self._gpu = _Gpu()
        self._check_finite = check_finite
        self._lock = threading.Lock()
        options = options or EngineOptions()
        if isinstance(graph, Path) and not graph.is_file():
            raise PackError(f"{graph} is not there.")
        data = graph.read_bytes() if isinstance(graph, Path) else graph
        if data.startswith(MAGIC):
            tag, plan = unpack_engine(data)
            reason = tag.unfit(here(b"", options))
            if reason is not None:
                raise PackError(
                    f"{graph if isinstance(graph, Path) else 'The engine'} cannot run: {reason}; build it again."
                )
            engine = self._deserialize(plan, tag.options)
        else:
            engine = self._from_cache(data, options, cache or cache_folder())
        if engine is None:
            raise PackError(f"TensorRT {trt.__version__} refuses the engine: {self._logger.last or 'no reason given'}.")
        self._engine = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._ports = {name: self._port(name) for name in inputs}
        self.input_shapes = {name: port.shape for name, port in self._ports.items()}
        self.output_names: tuple[str, ...] = tuple(n for n in names if n not in inputs)
        self._plans: dict[tuple[tuple[int, ...], ...], _Plan] = {}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        found = {n: (v.dtype, v.shape) if isinstance(v, Placed) else _describe(v) for n, v in feeds.items()}
        check_feeds("the engine", self._ports, found)
        with self._lock:
            plan = self._plan({name: found[name][1] for name in self._ports})
            for name in self._ports:
                plan.feed(name, feeds[name])
            outputs = plan.execute()
        if self._check_finite:
            check_outputs("the engine", outputs)
        return outputs

    def place(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        return {name: self._gpu.place(array) for name, array in arrays.items()}

    def _from_cache(self, graph: bytes, options: EngineOptions, folder: Path) -> Any:
        tag = here(graph, options)
        path = folder / tag.file_name
        if path.is_file():
            try:
                stored, plan = unpack_engine(path.read_bytes())
                engine = self._deserialize(plan, options) if stored == tag else None
            except (PackError, OSError):  # perhaps somebody else's file
                engine = None
            if engine is not None:
                return engine
        prepare_cache(folder)
        timing = folder / f"{hashlib.sha256(f'{tag.gpu} {tag.tensorrt}'.encode()).hexdigest()[:24]}.timing"
        plan = build_engine(graph, options, timing)
        write_whole(path, pack_engine(tag, plan))
        return self._deserialize(plan, options)

    def _deserialize(self, plan: bytes, options: EngineOptions) -> Any:
        self._logger = make_logger(self._trt)
        self._runtime = runtime = self._trt.Runtime(self._logger)
        runtime.engine_host_code_allowed = options.version_compatible  # such plans carry their own lean runtime
        return runtime.deserialize_cuda_engine(plan)

    def _port(self, name: str) -> Port:
        engine = self._engine
        shape = tuple("batch" if d < 0 else int(d) for d in engine.get_tensor_shape(name))
        return Port(np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))), shape)

    def _plan(self, shapes: Mapping[str, tuple[int, ...]]) -> _Plan:
        key = tuple(shapes.values())
        if key not in self._plans:
            if len(self._plans) == PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            outputs = {name: self._port(name).dtype for name in self.output_names}
            dtypes = {name: port.dtype for name, port in self._ports.items()}
            self._plans[key] = _Plan(self._gpu, self._engine, shapes, dtypes, outputs)
        return self._plans[key]


@dataclass(frozen=True)
class Placed:
    """An input that already lies in GPU memory."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    memory: _Memory


class _Plan:
    """Buffers and CUDA graph for one set of input shapes, with a context of its own so that the graph stays valid."""

    def __init__(
        self,
        gpu: _Gpu,
        engine: Any,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, np.dtype[Any]],
        outputs: Mapping[str, np.dtype[Any]],
    ) -> None:
        self._gpu = gpu
        self._context = context = engine.create_execution_context()
        if context is None:  # how the binding passes on that there is no memory for it
            raise InferenceError("TensorRT has no memory for another set of input shapes; nvidia-smi shows who has it.")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise InferenceError(f"The engine does not take {name!r} as {shape}; build it with a larger max_batch.")
        missing = context.infer_shapes()
        if missing:
            raise InferenceError(f"The engine left the shapes of {', '.join(missing)} open; report its graph to us.")
        full = {name: (dtypes[name], shape) for name, shape in shapes.items()}
        self._outputs = {name: (dtype, tuple(context.get_tensor_shape(name))) for name, dtype in outputs.items()}
        self._memory = {}
        for name, (dtype, shape) in {**full, **self._outputs}.items():
            self._memory[name] = memory = _Memory(gpu.cuda, dtype.itemsize * max(1, int(np.prod(shape))))
            if not context.set_tensor_address(name, memory.address):
                raise InferenceError(f"TensorRT does not take the buffer of {name!r}; report the graph to us.")
        self._held: dict[str, Placed] = {}  # which placed input each buffer holds: a reference serves many frames
        self._sources: dict[str, Array] = {}  # host arrays stay alive until their copy is certainly over
        self._enqueue()  # a first run outside capture lets TensorRT allocate what it needs
        gpu.wait()
        self._graph = gpu.capture(self._enqueue)

    def feed(self, name: str, value: Any) -> None:
        if isinstance(value, Placed):
            if self._held.get(name) is not value:
                self._gpu.copy(self._memory[name].address, value.memory.address, value.memory.nbytes)
                self._held[name] = value
            return
        self._held.pop(name, None)
        self._sources[name] = array = np.ascontiguousarray(value)
        self._gpu.upload(self._memory[name].address, array)

    def execute(self) -> dict[str, Array]:
        if self._graph is not None:
            self._gpu.replay(self._graph)
        else:
            self._enqueue()
        arrays = {name: np.empty(shape, dtype) for name, (dtype, shape) in self._outputs.items()}
        for name, array in arrays.items():
            self._gpu.download(array, self._memory[name].address)
        self._gpu.wait()
        self._sources.clear()
        return arrays

    def __del__(self) -> None:
        if getattr(self, "_graph", None) is not None:
            self._gpu.cuda.cudaGraphExecDestroy(self._graph)

    def _enqueue(self) -> None:
        context = self._context
        if not context.execute_async_v3(int(self._gpu.stream)):
            raise InferenceError("TensorRT could not start the network; run again with device='cuda' to compare.")


class _Memory:
    """A block of GPU memory, freed with the object."""

    def __init__(self, cuda: Any, nbytes: int) -> None:
        self._cuda, self.nbytes = cuda, nbytes
        (self.address,) = done(cuda, cuda.cudaMalloc(nbytes))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._cuda.cudaFree(self.address)


class _Gpu:
    """The CUDA calls we need, on one stream of our own."""

    def __init__(self) -> None:
        self.cuda = cuda = load_cuda()
        (self.stream,) = done(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))

    def place(self, array: Array) -> Placed:
        array = np.ascontiguousarray(array)
        memory = _Memory(self.cuda, max(1, array.nbytes))
        self.upload(memory.address, array)
        self.wait()
        return Placed(array.dtype, array.shape, memory)

    def upload(self, address: int, array: Array) -> None:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(address, array.ctypes.data, array.nbytes, kind)

    def download(self, array: Array, address: int) -> None:
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, address, array.nbytes, kind)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self._copy(to, source, nbytes, self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    def wait(self) -> None:
        done(self.cuda, self.cuda.cudaStreamSynchronize(self.stream))

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Record what ``enqueue`` puts on the stream as a CUDA graph; None where the network cannot be recorded."""
        cuda = self.cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        done(cuda, cuda.cudaStreamBeginCapture(self.stream, mode))
        try:
            enqueue()
        except InferenceError:
            cuda.cudaStreamEndCapture(self.stream)
            return None
        error, graph = cuda.cudaStreamEndCapture(self.stream)
        if error != cuda.cudaError_t.cudaSuccess:
            return None
        (executable,) = done(cuda, cuda.cudaGraphInstantiate(graph, 0))
        cuda.cudaGraphDestroy(graph)
        return executable

    def replay(self, executable: Any) -> None:
        done(self.cuda, self.cuda.cudaGraphLaunch(executable, self.stream))

    def __del__(self) -> None:
        if hasattr(self, "stream"):
            self.cuda.cudaStreamDestroy(self.stream)

    def _copy(self, to: int, source: int, nbytes: int, kind: Any) -> None:
        done(self.cuda, self.cuda.cudaMemcpyAsync(to, source, nbytes, kind, self.stream))


def _describe(value: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    array = np.asarray(value)
    return array.dtype, array.shape

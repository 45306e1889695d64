"""What a TensorRT engine is: how it is built, from what and for what, and its file. Runs nothing.

Not run on hardware by us: see trt.py, and tests/test_trt_api.py for what is checked instead.

An engine is native code for one GPU and one TensorRT, so use only engines that you built. Our file is a tag, which says
what the engine was built from and for, and TensorRT's plan behind it. A tag that does not fit this machine is refused
(a file given by name) or built again (the cache).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from neuralcodec.errors import BackendUnavailableError, InferenceError, PackError
from neuralcodec.runtime.dequantize import float_graph

MAGIC = b"neuralcodec engine 1\n"
NATIVE_VOLUMES = (11, 2, 1)  # first TensorRT whose GridSample takes rank 5
HARDWARE = ("exact", "capability", "ampere+")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is built. The defaults suit one receiver on the machine that builds."""

    batch: int = 1  # the batch size that kernels are chosen for
    max_batch: int = 16
    effort: int = 3  # builder_optimization_level 0..5; 5 may take several times longer
    workspace_mib: int = 2048
    tf32: bool = True  # float32 products with 10-bit mantissas, TensorRT's own default; False costs speed
    version_compatible: bool = False  # also runs on later releases of the same major version; slower
    hardware: str = "exact"  # the GPU model it was built on; "capability": any of its generation; "ampere+": any since

    def __post_init__(self) -> None:
        if self.hardware not in HARDWARE:
            raise ValueError(f"hardware is {self.hardware!r}; it is one of {', '.join(HARDWARE)}.")
        if not 1 <= self.batch <= self.max_batch:
            raise ValueError(
                f"batch is {self.batch} and max_batch {self.max_batch}; 1 <= batch <= max_batch is needed."
            )
        if self.effort not in range(6) or self.workspace_mib < 1:
            raise ValueError(
                f"effort is {self.effort} and workspace_mib {self.workspace_mib}; 0 to 5 and at least 1 are needed."
            )


@dataclass(frozen=True)
class EngineTag:
    """What an engine was built from and for; written in front of its plan."""

    graph: str  # sha256 of the ONNX graph that was built, which is a float one
    gpu: str
    capability: str  # "9.0"
    tensorrt: str
    options: EngineOptions

    @property
    def file_name(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.engine"

    def unfit(self, here: EngineTag) -> str | None:
        """Why an engine with this tag must not run ``here`` (of ``here.options`` only ``tf32`` is looked at, and not
        ``here.graph``)."""
        if self.options.tf32 and not here.options.tf32:
            return "it multiplies in TF32 and this network must not"
        same_release = self.tensorrt == here.tensorrt
        if not same_release and not (self.options.version_compatible and _later_release(self.tensorrt, here.tensorrt)):
            return f"it was built by TensorRT {self.tensorrt} and this is {here.tensorrt}"
        fits = {
            "exact": (self.gpu, self.capability) == (here.gpu, here.capability),
            "capability": self.capability == here.capability,
            "ampere+": _numbers(here.capability) >= (8, 0),
        }[self.options.hardware]
        if not fits:
            return f"it was built for {self.gpu} ({self.capability}) and this is {here.gpu} ({here.capability})"
        return None


def pack_engine(tag: EngineTag, plan: bytes) -> bytes:
    return MAGIC + json.dumps(asdict(tag), sort_keys=True).encode() + b"\n" + plan


def unpack_engine(data: bytes) -> tuple[EngineTag, bytes]:
    """Inverse of :func:`pack_engine`; raises :class:`PackError` for anything else."""
    end = data.find(b"\n", len(MAGIC))
    if not data.startswith(MAGIC) or end < 0:
        raise PackError("This is no engine of ours: build one with python -m export.to_tensorrt.")
    try:
        fields = json.loads(data[len(MAGIC) : end])
        tag = EngineTag(**{**fields, "options": EngineOptions(**fields["options"])})
    except (ValueError, TypeError, KeyError) as error:
        raise PackError(f"The engine's tag cannot be read ({error}); build it again.") from error
    return tag, data[end + 1 :]


def build_engine(graph: bytes, options: EngineOptions, timing: Path | None = None) -> bytes:
    """Compile an ONNX graph for this machine's GPU, which takes minutes; a ``timing`` file speeds up later ones."""
    trt = load_tensorrt()
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(float_graph(graph)):
        problems = "; ".join(_parser_error(parser.get_error(i)) for i in range(min(parser.num_errors, 3)))
        raise PackError(unreadable(trt.__version__, problems))
    config = builder.create_builder_config()
    config.builder_optimization_level = options.effort
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    levels = trt.HardwareCompatibilityLevel
    config.hardware_compatibility_level = {
        "exact": levels.NONE, "capability": levels.SAME_COMPUTE_CAPABILITY, "ampere+": levels.AMPERE_PLUS,
    }[options.hardware]  # fmt: skip
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = [[n if d < 0 else d for d in tensor.shape] for n in (1, options.batch, options.max_batch)]
        profile.set_shape(tensor.name, *(trt.Dims(size) for size in sizes))
    config.add_optimization_profile(profile)
    known = timing.read_bytes() if timing is not None and timing.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):  # written by another TensorRT or GPU: start afresh
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise PackError(f"TensorRT {trt.__version__} could not build the engine: {logger.last or 'no reason given'}.")
    if timing is not None:
        write_whole(timing, bytes(cache.serialize()))
    return bytes(plan)


def unreadable(version: str, problems: str) -> str:
    """The sentence for a graph that TensorRT's parser refuses, with what to do where we know it."""
    hint = ""
    if "GridSample" in problems and _numbers(version)[:3] < NATIVE_VOLUMES:
        hint = " This TensorRT cannot sample volumes; export the graph with --no-volumetric."
    return f"TensorRT {version} cannot read the graph: {problems}.{hint}"


def here(graph: bytes, options: EngineOptions) -> EngineTag:
    """The tag of an engine built now, from ``graph``, on this machine."""
    built = float_graph(graph)  # not the 8-bit graph: a float one made of it differently is another engine
    trt, cuda = load_tensorrt(), load_cuda()
    (device,) = done(cuda, cuda.cudaGetDevice())
    (properties,) = done(cuda, cuda.cudaGetDeviceProperties(device))
    name = properties.name.decode(errors="replace").rstrip("\0")
    capability = f"{properties.major}.{properties.minor}"
    return EngineTag(hashlib.sha256(built).hexdigest(), name, capability, trt.__version__, options)


def cache_folder() -> Path:
    """Where engines are kept: $XDG_CACHE_HOME/neuralcodec/engines, usually under ~/.cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuralcodec" / "engines"
    except RuntimeError as error:  # a user without a home, as in containers
        raise BackendUnavailableError(
            "There is no home folder to keep engines in: set XDG_CACHE_HOME to a folder that can be written."
        ) from error


def prepare_cache(folder: Path) -> None:
    """Raise :class:`BackendUnavailableError` unless ``folder`` takes files, before minutes go into building one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BackendUnavailableError(
            f"Engines are kept in {folder}, which cannot be written ({error.strerror}): make it writable, or set "
            "XDG_CACHE_HOME to another folder."
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears complete or not at all. A link stays one, to the new file."""
    file = Path(os.path.realpath(path))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.{token_hex(4)}.part")  # another thread may write it, too
    try:
        partial.write_bytes(data)
        os.replace(partial, file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # nobody asked for the other name
    finally:
        with suppress(OSError):  # it is still there only where something went wrong
            partial.unlink()


def load_tensorrt() -> Any:
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"TensorRT cannot be loaded ({error}): pip install 'neuralcodec[tensorrt]' on a machine with an NVIDIA GPU."
        ) from error
    if _numbers(tensorrt.__version__)[0] < 11:
        raise BackendUnavailableError(
            f"TensorRT {tensorrt.__version__} is installed, 11 or later is needed: pip install 'neuralcodec[tensorrt]'."
        )
    return tensorrt


def load_cuda() -> Any:
    try:
        from cuda.bindings import runtime as cuda
    except ImportError as error:
        raise BackendUnavailableError("cuda-python is not installed: pip install 'neuralcodec[tensorrt]'.") from error
    error_code, count = cuda.cudaGetDeviceCount()
    if error_code != cuda.cudaError_t.cudaSuccess or not count:
        raise BackendUnavailableError(f"No NVIDIA GPU answers ({error_code.name}): check the driver with nvidia-smi.")
    return cuda


def done(cuda: Any, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of a CUDA call, or :class:`InferenceError` with CUDA's reason."""
    error, *values = result
    if error != cuda.cudaError_t.cudaSuccess:
        raise InferenceError(f"The GPU reported {error.name}; nvidia-smi shows its state and free memory.")
    return tuple(values)


def make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error for our own sentence instead of printing it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = msg.strip().splitlines()[0][:300] if msg.strip() else ""

    return Logger()


def _parser_error(problem: Any) -> str:
    return f"{problem.node_operator()} {problem.node_name()!r}: {problem.desc().strip()}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _later_release(built: str, running: str) -> bool:
    a, b = _numbers(built), _numbers(running)
    return a[:1] == b[:1] and a <= b

"""What a loaded network looks like to the codec, and the one function that opens one. Knows no runtime library's types.

A session maps named numpy arrays to named numpy arrays. Which library runs it, and on what, ends in this folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neuralcodec.errors import BackendUnavailableError, InferenceError
from neuralcodec.motion import Array

DEVICES = ("auto", "cpu", "cuda", "tensorrt", "ort-tensorrt")
THREADS_MAX = 1024  # ONNX Runtime starts as many as it is told to, at once


class Session(Protocol):
    """A network ready to run. Sessions may be used from several threads unless ``provider`` is "TensorRT"."""

    @property
    def input_shapes(self) -> Mapping[str, tuple[int | str, ...]]:
        """Shape of every input; a name stands for a size that may vary, and one name is one size within a call."""

    @property
    def output_names(self) -> tuple[str, ...]: ...

    @property
    def provider(self) -> str:
        """What really runs the network, for example "CPUExecutionProvider"."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """All outputs by name. ``feeds`` holds every input: an array, or what :meth:`place` returned for it."""

    def place(self, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """Copy inputs that many runs will share to where the network runs; pass the result on in ``feeds``."""


@dataclass(frozen=True)
class Port:
    """One input of a network as its file declares it."""

    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))})"


def open_session(
    graph: bytes | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    check_finite: bool = False,
    exact: bool = False,
) -> Session:
    """Load an ONNX graph onto a device.

    device: "cpu" and "cuda" run in ONNX Runtime, "tensorrt" builds (or finds) an engine for the GPU in this machine,
    "ort-tensorrt" leaves that to ONNX Runtime's own TensorRT provider, "auto" takes CUDA where it works and the CPU
    elsewhere. What was asked for is checked: a device that is not there, or a provider that leaves convolutions to the
    CPU, raises :class:`BackendUnavailableError`; nothing falls back in silence.
    threads: CPU threads of this session, None for one per physical core. Ignored on a GPU.
    check_finite: raise :class:`InferenceError` when an output holds NaN or infinity. Costs a pass over the outputs.
    exact: multiply float32 numbers in full. GPUs since Ampere otherwise round them to 10-bit mantissas (TF32), which is
    faster and may do for pictures, not for what both ends of a stream compute from the same pixels. ONNX Runtime's
    TensorRT provider has no such switch, so "ort-tensorrt" leaves an exact network to the CUDA provider.
    """
    check_asked(device, threads)
    if device == "tensorrt":
        from neuralcodec.runtime.engine import EngineOptions
        from neuralcodec.runtime.trt import TensorRTSession

        return TensorRTSession(graph, options=EngineOptions(tf32=not exact), check_finite=check_finite)
    from neuralcodec.runtime.ort import OrtSession, cuda_usable

    if device == "auto":
        device = "cuda" if cuda_usable() else "cpu"
    if device == "ort-tensorrt" and exact:
        device = "cuda"
    return OrtSession(graph, device=device, threads=threads, check_finite=check_finite, exact=exact)


def check_asked(device: str, threads: int | None) -> None:
    """BackendUnavailableError for a device that there is not, ValueError for threads that cannot be."""
    if device not in DEVICES:
        raise BackendUnavailableError(f"device {device!r} is unknown; it is one of {', '.join(DEVICES)}.")
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= THREADS_MAX):
        raise ValueError(f"threads is {threads!r}; it must be a whole number of 1 to {THREADS_MAX}, or None.")


def cores() -> int:
    """Processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def present_devices() -> list[str]:
    """The devices of this machine that networks can run on, the CPU first."""
    from neuralcodec.runtime.engine import load_cuda
    from neuralcodec.runtime.ort import cuda_usable, tensorrt_usable

    devices = ["cpu"]
    if cuda_usable():
        devices.append("cuda")
        devices += ["ort-tensorrt"] * tensorrt_usable()
    if find_spec("tensorrt") is not None:
        try:
            load_cuda()
            devices.append("tensorrt")
        except BackendUnavailableError:
            pass
    return devices


def check_feeds(
    network: str, ports: Mapping[str, Port], feeds: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
) -> None:
    """Raise :class:`InferenceError` unless ``feeds`` (dtype and shape by name) are exactly what ``ports`` declare."""
    if feeds.keys() != ports.keys():
        raise InferenceError(f"{network} was given the inputs {_names(feeds)}; it takes exactly {_names(ports)}.")
    sizes: dict[str, int] = {}
    for name, port in ports.items():
        dtype, shape = feeds[name]
        fits = dtype == port.dtype and len(shape) == len(port.shape)
        if fits:
            for found, wanted in zip(shape, port.shape, strict=True):
                fits = fits and found == (sizes.setdefault(wanted, found) if isinstance(wanted, str) else wanted)
        if not fits:
            known = "".join(f", {k} = {v}" for k, v in sizes.items() if k in port.shape)
            raise InferenceError(f"{network} was given {name!r} as {Port(dtype, shape)}; it takes {port}{known}.")


def check_outputs(network: str, outputs: Mapping[str, Array]) -> None:
    """Raise :class:`InferenceError` when an output holds NaN or infinity."""
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise InferenceError(
                f"{network} gave NaN or infinity in {bad} of {array.size} values of {name!r}: "
                "its weights or its inputs are damaged."
            )


def _names(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "(none)"

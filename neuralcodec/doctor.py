"""What this machine can run: packages, codecs, network backends, the bundled pack. Says what it really tried."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import numpy as np

from . import __version__
from .errors import NeuralCodecError

GOOD, ABSENT, BAD = "ok", "--", "!!"
UNTRIED = "this path has not been run on hardware by us yet"
Line = tuple[str, str]

NEEDED = ("numpy", "av", "constriction", "rich")
OPTIONAL = {
    "onnxruntime": "cpu", "onnxruntime-gpu": "gpu", "tensorrt-cu13": "tensorrt", "scikit-image": "demo",
    "aiortc": "webrtc", "aiohttp": "webrtc", "cryptography": "sign",
}  # fmt: skip
CODECS = (("libsvtav1", "w"), ("libdav1d", "r"), ("libx264", "w"), ("h264", "r"))


def examine(say: Callable[[str], object]) -> bool:
    """Say one line for each thing looked at; True when encoding and decoding can run."""
    fine = True
    for look in (_packages, _codecs, _backends, _pack, _tensorrt):
        for mark, text in _to_the_end(look()):
            say(f"{mark}  {text}")
            fine &= mark != BAD
    return fine


def _to_the_end(lines: Iterator[Line]) -> Iterator[Line]:
    """The lines of one look, and one for whatever broke it: half an installation fails in ways that nobody foresees,
    and is what people call the doctor for."""
    try:
        yield from lines
    except NeuralCodecError as error:
        yield BAD, str(error)
    except Exception as error:
        yield BAD, f"{type(error).__name__}: {(str(error).splitlines() or ['without a reason'])[0]}"


def _packages() -> Iterator[Line]:
    yield GOOD, f"neuralcodec {__version__}, Python {platform.python_version()}, {platform.platform()}"
    for name in NEEDED:
        try:
            yield GOOD, f"{name} {version(name)}"
        except PackageNotFoundError:
            yield BAD, f"{name} is missing: pip install {name}"
    for name, extra in OPTIONAL.items():
        try:
            yield GOOD, f"{name} {version(name)}"
        except PackageNotFoundError:
            yield ABSENT, f'{name} is not installed (optional: pip install "neuralcodec[{extra}]")'


def _codecs() -> Iterator[Line]:
    try:
        import av
    except (ImportError, OSError) as error:  # OSError: a wheel whose libraries are cut short
        yield BAD, f"PyAV cannot be loaded, so no picture can be coded ({error}): pip install --force-reinstall av"
        return
    for name, mode in CODECS:
        direction = "encoder" if mode == "w" else "decoder"
        try:
            av.Codec(name, mode)  # type: ignore[arg-type]
            yield GOOD, f"PyAV has the {direction} {name}"
        except av.codec.codec.UnknownCodecError:
            yield BAD, f"PyAV lacks the {direction} {name}: pip install -U av (the wheel has it)"
    from .reference import decode_reference, encode_reference

    try:
        grey = np.full((64, 64, 3), 128, np.uint8)
        worst = int(np.abs(decode_reference(encode_reference(grey), 64).astype(int) - 128).max())
        yield (GOOD if worst <= 4 else BAD), f"a reference picture was coded and decoded, off by {worst} of 255 at most"
    except NeuralCodecError as error:
        yield BAD, f"a reference picture could not be coded: {error}"


def _backends() -> Iterator[Line]:
    if find_spec("onnxruntime") is None:
        yield BAD, 'onnxruntime is missing, so no network can run: pip install "neuralcodec[cpu]" or "neuralcodec[gpu]"'
        return
    from .runtime.ort import PROVIDERS, cuda_usable, provider_names, tensorrt_usable

    try:
        built = provider_names()
    except Exception as error:  # it is there and broken: by a library that is missing, or one build over another
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        yield BAD, (
            f"onnxruntime is installed and cannot be used ({reason}): pip uninstall onnxruntime onnxruntime-gpu, then "
            'pip install "neuralcodec[cpu]" or "neuralcodec[gpu]"'
        )
        return
    yield GOOD, f"ONNX Runtime runs on the CPU; it was built with {', '.join(built)}"
    if cuda_usable():
        yield GOOD, "ONNX Runtime runs on CUDA"
        if tensorrt_usable():
            yield GOOD, f"ONNX Runtime has its own TensorRT provider (--device ort-tensorrt); {UNTRIED}"
            yield from _engines()
    elif PROVIDERS["cuda"] in built:
        yield ABSENT, "ONNX Runtime has its CUDA provider, but no GPU answers: check the driver with nvidia-smi"
    else:
        yield ABSENT, 'ONNX Runtime cannot use CUDA here (it needs an NVIDIA GPU and "neuralcodec[gpu]")'


def _pack() -> Iterator[Line]:
    from .pack import DEFAULT, load_pack

    try:
        pack = load_pack()
        yield GOOD, f"pack {pack.name} {pack.version}, id {pack.id.hex()}: {len(pack.files)} files match the manifest"
    except NeuralCodecError as error:
        yield BAD, f"the bundled pack '{DEFAULT}' cannot be used: {error}"
        return
    from .runtime.dequantize import is_quantized
    from .runtime.session import open_session

    if is_quantized(pack.graph("render")):
        lacking = "" if find_spec("onnx") else ", which needs the package onnx: pip install onnx"
        yield GOOD, f"the pack renders in 8 bits on a CPU, and in float32 on a GPU{lacking}"
    try:
        session = open_session(pack.graph("motion"), device="auto", exact=True)
        yield GOOD, f"the pack's motion network opened on {session.provider}"
    except NeuralCodecError as error:
        yield BAD, f"the pack's networks cannot be opened: {error}"


def _tensorrt() -> Iterator[Line]:
    if find_spec("tensorrt") is None:
        yield ABSENT, f"TensorRT is not installed; {UNTRIED}"
    else:
        yield GOOD, f"TensorRT is installed; {UNTRIED}, so compare its pictures with --device cuda"
        yield from _engines()


def _engines() -> Iterator[Line]:
    from .runtime.engine import cache_folder, prepare_cache

    try:
        folder = cache_folder()
        prepare_cache(folder)
        yield GOOD, f"engines are kept in {folder}"
    except NeuralCodecError as error:  # encoding and decoding run without, on other devices
        yield ABSENT, str(error)

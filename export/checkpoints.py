"""Reads other people's checkpoint files as flat named tensors. Runs no code from them; knows no network.

Two containers: safetensors, and PyTorch's zip or older pickle format through its weights-only reader, which builds
tensors and plain containers and refuses everything else. A refused file has not been executed.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralcodec.errors import PackError
from neuralcodec.training.feature_networks import DAMAGED

Tensors = dict[str, Tensor]
NEWER = ".parametrizations.weight.original"  # spectral norm as torch writes it since 1.9
TRAINING_ONLY = ("optimizer", "discriminator")  # what training leaves in a file, by how its sections begin
DEEPEST = 16  # sections inside sections; a file may also hold itself
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8)


def read_checkpoints(paths: Sequence[Path]) -> Tensors:
    """The tensors of all files by dotted name, without "module." prefixes; the first file that has a name wins."""
    tensors: Tensors = {}
    for path in paths:
        for name, tensor in read_checkpoint(path).items():
            tensors.setdefault(name, tensor)
    return tensors


def read_checkpoint(path: Path) -> Tensors:
    """The tensors of one file by dotted name. Raises PackError for a file that holds none or wants code to run."""
    if not path.is_file():
        raise PackError(f"{path} is not there; give the checkpoint files to import.")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    tensors: Tensors = {}
    _flatten(content, "", tensors, path)
    if not tensors:
        raise PackError(f"{path} holds no tensors; a checkpoint of network weights is needed.")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHTS or tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
            raise PackError(f"{name} in {path} is no array of numbers but {tensor.dtype} on {tensor.device.type}, "
                            f"{tensor.layout}; a checkpoint holds plain weights.")  # fmt: skip
        if tensor.numel() * tensor.element_size() > size:  # one number, repeated
            raise PackError(f"{name} in {path} is said to be {tuple(tensor.shape)}, which is more than the file holds.")
    return fold_spectral_norms(tensors)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:] == b"{" and head[6:8] == b"\0\0")


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise PackError(f"{path} is not a safetensors file: {error}.") from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle versions; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = str(error).partition("GLOBAL ")[2].split()  # torch's own advice is to switch the protection off
        what = f"asks to load the Python object {asked[0].strip('`,.')}" if asked else "holds more than tensors need"
        raise PackError(
            f"{path} is refused: it {what}, and a checkpoint may hold tensors only. "
            "Nothing in it was executed; if you trust its author, convert it to safetensors elsewhere."
        ) from error
    except DAMAGED as error:
        raise PackError(f"{path} is not a PyTorch checkpoint, or it is cut short: {_first_line(error)}") from error


def _flatten(content: Any, prefix: str, tensors: Tensors, path: Path, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise PackError(f"{path} nests sections more than {DEEPEST} deep; a checkpoint names its tensors flatly.")
    if isinstance(content, Tensor):
        tensors[".".join(part for part in prefix.split(".") if part != "module")] = content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if prefix or not str(key).startswith(TRAINING_ONLY):
                _flatten(value, f"{prefix}.{key}" if prefix else str(key), tensors, path, depth + 1)


def fold_spectral_norms(tensors: Mapping[str, Tensor]) -> Tensors:
    """Plain weights in place of spectral norm's parts: weight / (u . W v), as a network in eval mode computes it."""
    plain: Tensors = {}
    for name, tensor in tensors.items():
        base, _, leaf = name.rpartition(".")
        if leaf == "weight_orig":
            plain[f"{base}.weight"] = _folded(
                tensor, tensors.get(f"{base}.weight_u"), tensors.get(f"{base}.weight_v"), name
            )
        elif name.endswith(NEWER):
            base = name.removesuffix(NEWER)
            at = f"{base}.parametrizations.weight.0"
            plain[f"{base}.weight"] = _folded(tensor, tensors.get(f"{at}._u"), tensors.get(f"{at}._v"), name)
        elif leaf not in ("weight_u", "weight_v", "_u", "_v"):
            plain[name] = tensor
    return plain


def _folded(weight: Tensor, u: Tensor | None, v: Tensor | None, name: str) -> Tensor:
    if u is None or v is None:
        raise PackError(f"{name} is spectrally normalised and its vectors u and v are missing; the file is incomplete.")
    if (u.dim(), v.dim()) != (1, 1) or weight.shape[:1] != u.shape or weight.numel() != u.numel() * v.numel():
        raise PackError(
            f"{name} is {tuple(weight.shape)}, its spectral norm's vectors {tuple(u.shape)} and {tuple(v.shape)}: "
            "they do not belong together."
        )
    matrix = weight.float().reshape(len(u), len(v))
    return weight / torch.dot(u.float(), matrix @ v.float())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

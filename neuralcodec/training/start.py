"""Networks from the graphs of a finished pack, to train on from there. The graphs are all that a pack ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neuralcodec.errors import BackendUnavailableError, PackError
from neuralcodec.runtime.dequantize import dequantize

GRAPHS = ("motion", "reference", "render")


def load_graphs(nets: nn.Module, folder: Path) -> None:
    """Copy the weights of ``folder``'s graphs (written by `export.to_onnx`) into ``nets``.

    The graphs have their batch norms folded into the convolutions; here the norms become the identity plus an offset,
    so train on with :func:`freeze_norms`. Raises PackError where graphs and networks do not fit.
    """
    state = nets.state_dict()
    missing = set(state)
    for graph in GRAPHS:
        for name, values in _initializers(folder / f"{graph}.onnx").items():
            key, folded = f"{graph}.{name.removeprefix('net.').removesuffix('_bias')}", name.endswith(".weight_bias")
            if folded:  # of the norm behind the convolution that this was folded into
                norm = key.removesuffix("0.weight") + "1"
                size = len(values)
                new = {"weight": np.ones(size), "bias": values, "running_mean": np.zeros(size),
                       "running_var": np.full(size, 1 - nn.BatchNorm2d(1).eps)}  # fmt: skip
                found = {f"{norm}.{part}": part_values for part, part_values in new.items()}
                missing.discard(f"{norm}.num_batches_tracked")
            else:
                found = {key: values}
            for target, content in found.items():
                if target in state:
                    if state[target].shape != content.shape:
                        raise PackError(
                            f"{folder / graph}.onnx has {target} as {content.shape}; these networks have "
                            f"{tuple(state[target].shape)}: start from a pack of the same preset."
                        )
                    state[target].copy_(torch.from_numpy(np.array(content, np.float32)))
                    missing.discard(target)
    if missing:
        raise PackError(f"{folder} lacks {len(missing)} weights of these networks, {min(missing)} among them.")


def freeze_norms(nets: nn.Module) -> None:
    """Batch norms that `load_graphs` made the identity as they are at rest, whatever mode the rest is in: what a batch
    has for mean and deviation says nothing to weights that have their norms folded in. Checkpoints of such networks are
    known by them, so later runs need not be told."""
    for module in nets.modules():
        if isinstance(module, nn.BatchNorm2d) and _folded(module):
            module.eval()


def _folded(norm: nn.BatchNorm2d) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or mean.any():
        return False
    return bool((variance == variance.new_tensor(1 - norm.eps)).all())


def _initializers(path: Path) -> dict[str, Any]:
    """The constant tensors of a graph by name, float32 whatever they are stored as."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from onnx import numpy_helper
    except ImportError as error:
        raise BackendUnavailableError('Starting from a pack needs onnx: pip install "neuralcodec[export]"') from error
    if not path.is_file():
        raise PackError(f"{path} is not there; --start takes the folder of a pack.")
    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise PackError(f"{path} is not an ONNX file ({error}); --start takes the folder of a pack.") from error
    dequantize(model)  # graphs that a pack stores in 8 bits
    tensors = model.graph.initializer
    return {t.name.removesuffix(".half"): numpy_helper.to_array(t) for t in tensors if t.name.startswith("net.")}

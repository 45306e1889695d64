"""LPIPS and DISTS, by their authors' own packages, where these and their trunks are on the machine. Knows no codec.

LPIPS (Zhang et al., CVPR 2018) stands on torchvision's AlexNet, DISTS (Ding et al., 2020) on its VGG-16, and neither
trunk comes with a package: torch's hub folder has to hold it. A benchmark fetches nothing; without them ST-LPIPS
(perceptual.py), whose package is whole, stands alone. 0 for equal pictures.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import Clip
from benchmarks.perceptual import spaced, tensor

Array = NDArray[Any]


@dataclass(frozen=True)
class Judge:
    """package, module: its authors' code, as pip and as Python name it. trunk: its file in torch's hub folder. once:
    Python that fetches it. load: a function of two (1, 3, H, W) in 0..1."""

    package: str
    module: str
    trunk: str
    once: str
    load: Callable[[], Callable[[Any, Any], Any]]


def _lpips() -> Callable[[Any, Any], Any]:
    import lpips

    return partial(lpips.LPIPS(net="alex", verbose=False).eval(), normalize=True)


def _dists() -> Callable[[Any, Any], Any]:
    from DISTS_pytorch import DISTS

    return DISTS().eval()


JUDGES = {
    "lpips": Judge(
        "lpips", "lpips",
        "alexnet-owt-7be5be79.pth", "import lpips; lpips.LPIPS(net='alex')", _lpips,
    ),
    "dists": Judge(
        "DISTS-pytorch", "DISTS_pytorch",
        "vgg16-397923af.pth", "import DISTS_pytorch; DISTS_pytorch.DISTS()", _dists,
    ),
}  # fmt: skip


def unavailable(name: str) -> str:
    """Why a figure cannot be measured here, in one sentence; empty when it can."""
    judge = JUDGES[name]
    if any(importlib.util.find_spec(module) is None for module in (judge.module, "torchvision")):
        return f"{name.upper()} needs its authors' package: pip install {judge.package} torchvision."
    if not (_hub() / judge.trunk).exists():
        return f'{name.upper()} needs {judge.trunk} in torch\'s hub folder; once, online: python -c "{judge.once}".'
    return ""


def figures(name: str, original: Clip, decoded: Sequence[Array]) -> dict[str, float]:
    """Mean over the frames of :func:`perceptual.spaced`."""
    import torch

    apart = _loaded(name)
    with torch.inference_mode():
        pairs = [(tensor(original.frames[i]) / 255, tensor(decoded[i]) / 255) for i in spaced(len(decoded))]
        return {name: float(np.mean([float(apart(a, b)) for a, b in pairs]))}


@cache
def _loaded(name: str) -> Callable[[Any, Any], Any]:
    return JUDGES[name].load()


def _hub() -> Path:
    """As torch.hub.get_dir has it; torch itself takes seconds to import."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(home, "hub", "checkpoints").expanduser()

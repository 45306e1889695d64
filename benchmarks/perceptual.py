"""ST-LPIPS: how different two pictures look to a network taught by people's judgements. Knows no codec.

Shift-tolerant LPIPS (Ghildyal and Liu, "Shift-tolerant perceptual similarity metric", ECCV 2022) on AlexNet, because
its PyPI package carries all of its weights (LPIPS and DISTS load a trunk from a hub: pretrained.py). Only the weights
are used (``stlpips-pytorch``, BSD 2-Clause), and the figures equal those of the authors' own code to the last digit. 0
for equal pictures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.clips import Clip

Array = NDArray[Any]

WEIGHTS = Path("weights", "vST0.0", "alex_shift_tolerant.pth")
PICTURES = 3  # of a clip


def unavailable() -> str:
    """Why it cannot be measured here, in one sentence; empty when it can."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("stlpips_pytorch") is None:
        return "ST-LPIPS needs torch and its weights: pip install 'neuralcodec[perceptual]'."
    return ""


def figures(original: Clip, decoded: Sequence[Array]) -> dict[str, float]:
    """Mean over ``PICTURES`` frames, evenly spaced: a pair costs a core a quarter of a second."""
    chosen = spaced(len(decoded))
    kept = [_original(original.sha256, index, _Picture(original.frames[index])) for index in chosen]
    return {"st_lpips": float(np.mean([_apart(a, _seen(decoded[i])) for a, i in zip(kept, chosen, strict=True)]))}


def spaced(count: int) -> list[int]:
    """Middles of ``PICTURES`` equal parts of 0..count-1."""
    return [int((i + 0.5) * count / PICTURES) for i in range(min(PICTURES, count))]


def distance(a: Array, b: Array) -> float:
    """Of two uint8 RGB pictures (H, W, 3)."""
    return _apart(_seen(a), _seen(b))


class _Picture:
    """A picture as an argument of a cached function: clip hash and frame number say which it is."""

    def __init__(self, picture: Array) -> None:
        self.picture = picture

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Picture)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=2 * PICTURES)
def _original(sha256: str, index: int, picture: _Picture) -> list[Any]:
    return _seen(picture.picture)


def _seen(picture: Array) -> list[Any]:
    import torch

    with torch.inference_mode():
        return _features(_normalised(tensor(picture)))


def _apart(first: Sequence[Any], second: Sequence[Any]) -> float:
    layers = zip(first, second, _weights()["lin"], strict=True)
    return float(sum((((x - y) ** 2) * w).sum(1).mean() for x, y, w in layers))


def tensor(picture: Array) -> Any:
    """Float (1, 3, H, W) in 0..255 of a uint8 RGB picture (H, W, 3)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].float()


def _normalised(values: Any) -> Any:
    """As the trunk was trained."""
    return (values / 127.5 - 1 - _weights()["scaling_layer.shift"]) / _weights()["scaling_layer.scale"]


def _features(x: Any) -> list[Any]:
    """AlexNet's five activations, each position of unit length over channels: every stride taken by a blur (filters of
    1-2-1, reflected borders) so that a picture moved by one sample gives nearly the same numbers."""
    import torch.nn.functional as F

    w = _weights()

    def blur(x: Any, name: str) -> Any:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), w[f"{name}.filt"], stride=2, groups=x.shape[1])

    def conv(x: Any, name: str, padding: int) -> Any:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    first = F.relu(blur(conv(x, "net.slice1.0", 2), "net.slice1.1"))
    second = F.relu(conv(blur(F.max_pool2d(first, 3, 1), "net.slice2.4"), "net.slice2.5", 2))
    third = F.relu(conv(blur(F.max_pool2d(second, 3, 1), "net.slice3.8"), "net.slice3.9", 1))
    fourth = F.relu(conv(third, "net.slice4.11", 1))
    fifth = F.relu(conv(fourth, "net.slice5.13", 1))
    return [y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in (first, second, third, fourth, fifth)]


@cache
def _weights() -> dict[str, Any]:
    import torch

    spec = importlib.util.find_spec("stlpips_pytorch")
    assert spec is not None and spec.submodule_search_locations, unavailable()
    loaded = torch.load(Path(spec.submodule_search_locations[0]) / WEIGHTS, map_location="cpu", weights_only=True)
    return {**loaded, "lin": [loaded[f"lin{i}.model.1.weight"] for i in range(5)]}

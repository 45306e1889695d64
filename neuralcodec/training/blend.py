"""Weights between those of two runs, parameter by parameter: where one run forgot what the other still knew.

    python -m neuralcodec.training.blend run/average.safetensors older/average.safetensors --share 0.6 \
        --part render.field --out blend.safetensors

Works for runs of which one began with the other's weights; others have nothing in common.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from neuralcodec.errors import NeuralCodecError
from neuralcodec.runtime.engine import write_whole
from neuralcodec.training.feature_networks import read_weights


def blend(weights: dict[str, Tensor], other: dict[str, Tensor], share: float, part: str = "") -> dict[str, Tensor]:
    """``weights`` with ``share`` of ``other`` in everything whose name begins with ``part``. ValueError where the two
    are not of the same networks, or nothing has such a name."""
    if weights.keys() != other.keys() or any(weights[name].shape != other[name].shape for name in weights):
        raise ValueError("the two files hold weights of different networks")
    if apart := [name for name in weights if weights[name].dtype != other[name].dtype]:
        a, b = weights[apart[0]].dtype, other[apart[0]].dtype
        raise ValueError(f"{apart[0]} is {a} in one file and {b} in the other; blend checkpoints of the same kind")
    chosen = [name for name in weights if name.startswith(part) and weights[name].is_floating_point()]
    if not chosen:
        raise ValueError(f"no weight's name begins with {part!r}; the first is {min(weights)!r}")
    return weights | {name: weights[name].lerp(other[name], share) for name in chosen}


def main() -> None:
    p = argparse.ArgumentParser(prog="neuralcodec.training.blend", description="Weights between those of two runs.")
    p.add_argument("weights", type=Path, help=".safetensors of one run")
    p.add_argument("other", type=Path, help=".safetensors of the other")
    p.add_argument("--share", type=float, default=0.5, help="of the other's, 0 to 1")
    p.add_argument("--part", default="", help="only weights whose names begin so, render.field for example")
    p.add_argument("--out", type=Path, required=True)
    o = p.parse_args()
    if not 0 <= o.share <= 1:
        p.error(f"--share is {o.share}; expected 0 to 1")
    try:
        blended = blend(read_weights(o.weights), read_weights(o.other), o.share, o.part)
        write_whole(o.out, save(blended))
    except (NeuralCodecError, OSError, ValueError) as error:
        p.error(str(error))


if __name__ == "__main__":
    main()

"""Other people's receivers, timed as they come: their code from a folder you give, with random weights.

Speed does not depend on weights. Known are zhanglonghao1992's face-vid2vid (SPADE head; its receiver runs the whole
generator on the source picture for every frame) and LivePortrait (warping and decoding of kept features).
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from neuralcodec.errors import MediaError

FIELD = {"block_expansion": 32, "max_features": 1024, "num_blocks": 5, "reshape_depth": 16, "compress": 4}
SHARED = {"block_expansion": 64, "max_features": 512, "num_down_blocks": 2, "reshape_channel": 32}


@dataclass(frozen=True)
class Peer:
    """A receiver: one call renders one 256x256 frame (LivePortrait 512x512) from keypoints."""

    name: str
    render: Callable[[], Any]


def load_peer(folder: Path) -> Peer:
    """The receiver whose source lies in ``folder``, found by the files it has."""
    warnings.filterwarnings("ignore")  # theirs, about versions of torch
    if (folder / "modules" / "generator.py").is_file() and (folder / "sync_batchnorm").is_dir():
        return _zhanglonghao(folder)
    if (folder / "src" / "modules" / "warping_network.py").is_file():
        return _liveportrait(folder)
    raise MediaError(
        f"{folder} holds neither zhanglonghao1992's modules/generator.py nor LivePortrait's src/modules; give the root "
        "of a checkout."
    )


def time_peer(peer: Peer, frames: int, threads: int) -> list[float]:
    """Milliseconds of each frame after one to warm up."""
    import torch

    torch.set_num_threads(threads)
    spent = []
    with torch.inference_mode():
        for _ in range(frames + 1):
            start = perf_counter()
            peer.render()
            spent.append(1000 * (perf_counter() - start))
    return spent[1:]


def _zhanglonghao(folder: Path) -> Peer:
    import torch

    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("modules.generator")
    finally:
        sys.path.remove(str(folder))
    generator = module.OcclusionAwareSPADEGenerator(
        image_channel=3, feature_channel=32, num_kp=15, reshape_depth=16, num_resblocks=6,
        estimate_occlusion_map=True, dense_motion_params=FIELD, **SHARED,
    ).eval()  # fmt: skip
    image = torch.rand(1, 3, 256, 256)
    source, driving = ({"value": torch.rand(1, 15, 3) - 0.5} for _ in range(2))
    return Peer("zhanglonghao1992", lambda: generator(image, kp_source=source, kp_driving=driving))


def _liveportrait(folder: Path) -> Peer:
    import torch

    package = types.ModuleType("liveportrait_modules")  # its own package file wants what timing does not
    package.__path__ = [str(folder / "src" / "modules")]
    sys.modules[package.__name__] = package
    warping = importlib.import_module("liveportrait_modules.warping_network")
    decoder = importlib.import_module("liveportrait_modules.spade_generator")
    warp = warping.WarpingNetwork(num_kp=21, estimate_occlusion_map=True, dense_motion_params=FIELD, **SHARED).eval()
    decode = decoder.SPADEDecoder(upscale=2, block_expansion=64, max_features=512, num_down_blocks=2).eval()
    volume = torch.rand(1, 32, 16, 64, 64)
    source, driving = (torch.rand(1, 21, 3) - 0.5 for _ in range(2))
    return Peer("LivePortrait", lambda: decode(warp(volume, kp_source=source, kp_driving=driving)["out"]))

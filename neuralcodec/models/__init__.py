"""The networks (PyTorch; needed for training and export only, never by the SDK itself). ``build`` makes either preset.

Both presets have the same three parts, named after the pipeline: F, L, H, Delta, M, G are the paper's boxes (Fig. 12).

    motion      L, H, Delta   picture -> pose, expression, canonical keypoints     sender, every frame
    reference   F             picture -> features                                  once per reference
    render      M, G          features, keypoints -> picture                       receiver, every frame
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from neuralcodec.models.config import ModelConfig
from neuralcodec.models.layers import MotionOutput

__all__ = ["ModelConfig", "MotionOutput", "Networks", "build"]


class Networks(nn.Module):
    """One preset's networks.

    ``motion(image, box)``: (B, 3, S, S) RGB 0..1 and (B, 3) or None -> MotionOutput.
    ``reference(image)``: tuple of feature tensors, to be passed on as they are.
    ``render(image, *features, source_keypoints, source_rotation, driving_keypoints, driving_rotation)``: (B, 3, S, S).
    """

    def __init__(self, config: ModelConfig, motion: nn.Module, reference: nn.Module, render: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.motion = motion
        self.reference = reference
        self.render = render

    def render_full(self, image: Tensor, *features: Tensor, **poses: Tensor) -> Any:
        """As ``render``, with the renderer's inner results for the losses."""
        inner: Any = self.render
        return inner.render_full(image, *features, **poses)

    def set_volumetric(self, volumetric: bool) -> None:
        """False: sample volumes with 2-D GridSample only, for engines that refuse rank 5. Same results."""
        for module in self.modules():
            if hasattr(module, "volumetric"):
                module.volumetric = volumetric  # type: ignore[assignment]


def build(config: ModelConfig) -> Networks:
    """Networks with fresh weights: the small ones for the name "portrait", the paper's pipeline for any other."""
    if config.name == "portrait":
        from neuralcodec.models.portrait import PortraitMotion, PortraitReference, PortraitRenderer

        return Networks(config, PortraitMotion(config), PortraitReference(config), PortraitRenderer(config))
    from neuralcodec.models.extractor import PaperMotion
    from neuralcodec.models.synthesis import AppearanceFeatures, PaperRenderer

    return Networks(config, PaperMotion(config), AppearanceFeatures(config), PaperRenderer(config))

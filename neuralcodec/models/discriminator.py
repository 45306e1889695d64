"""D of the paper: a patch discriminator at one or two picture scales. Used in training only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from neuralcodec.models.config import ModelConfig
from neuralcodec.models.layers import gaussians

WIDTHS = (64, 128, 256, 512)


class PatchDiscriminator(nn.Module):
    """D, "patch discriminator" (appendix A): (B, n, S, S) -> scores (B, 1, S/8, S/8) and four feature maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers = []
        for index, width in enumerate(WIDTHS):
            stride = 2 if index < len(WIDTHS) - 1 else 1
            block: list[nn.Module] = [spectral_norm(nn.Conv2d(channels, width, 3, stride, 1))]
            if index > 0:
                block.append(nn.InstanceNorm2d(width, affine=True))
            layers.append(nn.Sequential(*block, nn.LeakyReLU(0.2)))
            channels = width
        self.layers = nn.ModuleList(layers)
        self.score = spectral_norm(nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x)
        return self.score(x), features


class Discriminator(nn.Module):
    """D at every scale (1 at 256, 2 at 512 in the paper): picture (B, 3, S, S) -> list of (scores, features)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heatmaps = config.discriminator_heatmaps
        self.variance = config.heatmap_variance
        channels = 3 + (config.keypoints if self.heatmaps else 0)
        self.scales = nn.ModuleList(PatchDiscriminator(channels) for _ in range(config.discriminator_scales))

    def forward(self, picture: Tensor, keypoints: Tensor | None = None) -> list[tuple[Tensor, list[Tensor]]]:
        """``keypoints`` (B, K, 3) of the real picture, for real and rendered alike; not trained through D."""
        x = picture
        if self.heatmaps:
            if keypoints is None:
                raise ValueError("this discriminator sees keypoints; pass them, or set discriminator_heatmaps=False")
            heat = gaussians(keypoints.detach()[..., :2], tuple(picture.shape[2:]), self.variance)  # (B, K, S, S)
            x = torch.cat([picture, heat.to(picture.dtype)], 1)
        results = []
        for scale in self.scales:
            results.append(scale(x))
            x = F.avg_pool2d(x, 2)
        return results

"""The unified motion extractor of later systems: one ConvNeXt-V2 tiny in place of L, H and Delta. Knows no geometry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.models.config import ModelConfig
from neuralcodec.models.extractor import Estimate, HeadPose

DEPTHS = (3, 3, 9, 3)
WIDTHS = (96, 192, 384, 768)
EPSILON = 1e-6


class UnifiedMotion(nn.Module):
    """L, H and Delta in one network (B, 3, S, S) -> Estimate with canonical keypoints and a scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        down: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 4), ChannelNorm(WIDTHS[0]))]
        for a, b in zip(WIDTHS, WIDTHS[1:], strict=False):
            down.append(nn.Sequential(ChannelNorm(a), nn.Conv2d(a, b, 2, 2)))
        self.down = nn.ModuleList(down)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(depth))) for width, depth in zip(WIDTHS, DEPTHS, strict=True)
        )
        self.norm = nn.LayerNorm(WIDTHS[-1], EPSILON)
        self.pose = HeadPose(WIDTHS[-1], config)
        self.canonical = nn.Linear(WIDTHS[-1], 3 * config.keypoints)
        self.delta = nn.Linear(WIDTHS[-1], 3 * config.keypoints)
        self.scale = nn.Linear(WIDTHS[-1], 1) if config.scale else None

    def forward(self, image: Tensor) -> Estimate:
        x = image
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(x))  # (B, 96, S/4, S/4) ... (B, 768, S/32, S/32)
        features = self.norm(x.mean((2, 3)))  # (B, 768)
        angles, translation = self.pose(features)
        canonical = self.canonical(features).reshape(-1, self.canonical.out_features // 3, 3)
        scale = torch.ones_like(translation[:, :1]) if self.scale is None else self.scale(features)
        # with a scale, x = s (x_c R + delta) + t: delta is still added after the rotation
        return Estimate(angles, translation, self.delta(features).reshape_as(canonical), canonical, scale)


class Block(nn.Module):
    """ConvNeXt-V2 block: 7x7 depthwise, layer norm, 4x wide GELU with response norm, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, EPSILON)
        self.widen = nn.Linear(channels, 4 * channels)
        self.response = ResponseNorm(4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, h, w, C)
        y = self.narrow(self.response(F.gelu(self.widen(y))))
        return x + y.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response norm over (B, h, w, C): each channel's energy relative to the mean channel's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.square().sum((1, 2), keepdim=True).sqrt()  # (B, 1, 1, C)
        return self.gamma * (x * (energy / (energy.mean(3, keepdim=True) + EPSILON))) + self.beta + x


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

"""F, M and G of the paper: appearance volume, motion field, generator. Knows keypoints, not where they come from.

Shapes: B batch, K keypoints, S picture side, h = S/4, D = 16 depths. Pictures are RGB 0..1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.models.config import ModelConfig
from neuralcodec.models.layers import (
    ConvNorm,
    Residual,
    SpadeResidual,
    UpConvNorm,
    convolution,
    coordinate_grid,
    gaussians,
    grid_sample_3d,
    upsample,
)


class AppearanceFeatures(nn.Module):
    """F, "appearance feature extractor" (Fig. 12): (B, 3, S, S) -> one volume (B, 32, 16, S/4, S/4), in a tuple."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.channels, self.depth = config.volume_channels, config.volume_depth
        self.first = ConvNorm(3, 64, config.first_kernel)
        self.down = nn.Sequential(ConvNorm(64, 128, pool=2), ConvNorm(128, 256, pool=2))
        self.fold = nn.Conv2d(256, self.channels * self.depth, 1)
        self.residuals = nn.Sequential(*(Residual(self.channels, dims=3) for _ in range(6)))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = self.fold(self.down(self.first(image)))  # (B, 512, S/4, S/4)
        x = x.reshape(x.shape[0], self.channels, self.depth, *x.shape[2:])  # (B, 32, 16, S/4, S/4)
        return (self.residuals(x),)


class Hourglass(nn.Module):
    """3-D U-Net inside M (Fig. 12): (B, n, D, h, h) -> (B, 32 + n, D, h, h); five levels, depth never shrinks."""

    WIDTHS = (64, 128, 256, 512, 1024)

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        widths, stride = self.WIDTHS, config.volume_shrink == "stride"
        self.skips = config.field_skips
        self.down = nn.ModuleList(
            ConvNorm(a, b, dims=3, pool=2, stride=stride) for a, b in zip((channels, *widths), widths, strict=False)
        )
        seen = 2 if self.skips else 1  # after the first, each sees the skip of its level too
        inputs = (1024, seen * 512, seen * 256, seen * 128, seen * 64)
        outputs = (512, 256, 128, 64, 32)
        grow = config.volume_grow
        self.up = nn.ModuleList(UpConvNorm(a, b, dims=3, grow=grow) for a, b in zip(inputs, outputs, strict=True))
        self.out_channels = 32 + channels
        self.last: nn.Module = nn.Identity()
        if self.skips:
            self.last = ConvNorm(self.out_channels, self.out_channels, dims=3)

    def forward(self, x: Tensor) -> Tensor:
        skips = [x]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()  # (B, 1024, D, h/32, h/32)
        for up in self.up:
            x = up(x)
            if self.skips or len(skips) == 1:
                x = torch.cat([x, skips[-1]], 1)
            skips.pop()
        return self.last(x)  # (B, 32 + n, D, h, h)


class Motion(NamedTuple):
    """What M says: where each voxel of the driving volume comes from, and how much of the result to trust."""

    flow: Tensor  # (B, D, h, h, 3), source coordinates in -1..1
    occlusion: Tensor  # (B, 1, h, h), 0 hidden .. 1 visible
    masks: Tensor  # (B, K + 1, D, h, h), sum to 1 without a floor; slot 0 is the background


class MotionField(nn.Module):
    """M, "motion field estimator" (Fig. 12): volume and keypoints of both pictures -> Motion (Eq. 4).

    K + 1 candidate flows (one per keypoint and the identity) each warp a thin copy of the volume; a U-Net looks at the
    results beside the difference of keypoint heat maps and weighs the candidates for every voxel.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        slots = config.keypoints + 1
        self.config = config
        self.volumetric = True
        self.squeeze: nn.Module = ConvNorm(config.volume_channels, config.motion_channels, 1, dims=3)
        if not config.squeeze_norm:
            self.squeeze = nn.Conv3d(config.volume_channels, config.motion_channels, 1)
        self.hourglass = Hourglass(slots * (config.motion_channels + 1), config)
        channels = self.hourglass.out_channels
        self.mask = nn.Conv3d(channels, slots, 7, padding=3)
        self.occlusion = nn.Conv2d(channels * config.volume_depth, 1, 7, padding=3)

    def forward(
        self, volume: Tensor, source: Tensor, source_rotation: Tensor, driving: Tensor, driving_rotation: Tensor
    ) -> Motion:
        batch, _, depth, height, width = volume.shape
        flows = self.candidate_flows((depth, height, width), source, source_rotation, driving, driving_rotation)
        slots = flows.shape[1]
        warped = self._warp_each(self.squeeze(volume), flows)  # (B, K+1, 4, D, h, h)
        heat = self._heat((depth, height, width), source, driving)  # (B, K+1, 1, D, h, h)
        x = torch.cat([heat, warped], 2).reshape(batch, -1, depth, height, width)  # (B, 5(K+1), D, h, h)
        x = self.hourglass(x)  # (B, 32 + 5(K+1), D, h, h)
        masks = self.mask(x).softmax(1)  # (B, K+1, D, h, h)
        if self.config.mask_floor:
            masks = torch.where(masks < self.config.mask_floor, torch.zeros_like(masks), masks)
        flow = (masks.reshape(batch, slots, -1, 1) * flows).sum(1)  # (B, D*h*h, 3)
        occlusion = torch.sigmoid(self.occlusion(x.flatten(1, 2)))  # (B, 1, h, h)
        return Motion(flow.reshape(batch, depth, height, width, 3), occlusion, masks)

    def candidate_flows(
        self,
        shape: tuple[int, int, int],
        source: Tensor,
        source_rotation: Tensor,
        driving: Tensor,
        driving_rotation: Tensor,
    ) -> Tensor:
        """Source coordinates (B, K+1, D*h*h, 3) of every voxel by the identity (slot 0) and each keypoint (Eq. 4)."""
        batch = source.shape[0]
        grid = coordinate_grid(*shape, like=source).reshape(1, -1, 3)  # (1, N, 3)
        turned, centre = grid, driving
        if self.config.flow_rotation:
            turn = driving_rotation.transpose(1, 2) @ source_rotation  # the paper's R_s R_d^-1, transposed
            turned, centre = grid @ turn, driving @ turn
        flows = turned[:, None] + (source - centre)[:, :, None]  # (B, K, N, 3)
        return torch.cat([grid[:, None].expand(batch, 1, -1, 3), flows], 1)

    def _warp_each(self, thin: Tensor, flows: Tensor) -> Tensor:
        batch, channels, *shape = thin.shape
        slots = flows.shape[1]
        copies = thin[:, None].expand(batch, slots, channels, *shape).reshape(batch * slots, channels, *shape)
        grid = flows.reshape(batch * slots, *shape, 3)
        warped = grid_sample_3d(copies, grid, self.volumetric, self.config.align_corners)
        return warped.reshape(batch, slots, channels, *shape)

    def _heat(self, shape: tuple[int, int, int], source: Tensor, driving: Tensor) -> Tensor:
        variance = self.config.heatmap_variance
        heat = gaussians(driving, shape, variance) - gaussians(source, shape, variance)  # (B, K, D, h, h)
        return F.pad(heat, (0, 0) * 3 + (1, 0))[:, :, None]  # (B, K+1, 1, D, h, h): zeros for the background


class WarpedFeatures(nn.Module):
    """First part of G (Fig. 12): the warped volume (B, 32, 16, h, h), depth folded away -> (B, 256, h, h)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, spectral = config.volume_channels * config.volume_depth, config.spectral_norm
        self.third = ConvNorm(channels, 256, slope=config.leaky_slope, spectral=spectral)
        self.fourth = convolution(256, 256, 1, spectral=spectral)

    def forward(self, volume: Tensor, occlusion: Tensor) -> Tensor:
        x = self.fourth(self.third(volume.flatten(1, 2)))  # (B, 512, h, h) -> (B, 256, h, h)
        return x * occlusion


class OriginalHead(nn.Module):
    """Second part of G as published (Fig. 12): (B, 256, h, h) -> picture (B, 3, 4h, 4h)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        spectral = config.spectral_norm
        self.residuals = nn.Sequential(*(Residual(256, spectral=spectral) for _ in range(6)))
        self.up = nn.Sequential(UpConvNorm(256, 128, spectral=spectral), UpConvNorm(128, 64, spectral=spectral))
        self.final = convolution(64, 3, 7, spectral=spectral)
        self.clip = config.output == "clip"

    def forward(self, x: Tensor) -> Tensor:
        x = self.final(self.up(self.residuals(x)))
        return x.clamp(0, 1) if self.clip else torch.sigmoid(x)


class SpadeHead(nn.Module):
    """Second part of G in later systems: (B, 256, h, h) -> picture (B, 3, 4h, 4h), or 8h with ``shuffle``.

    Every block is normalised by the features themselves, so they reach the last layers at full strength.
    """

    def __init__(self, config: ModelConfig, *, shuffle: bool) -> None:
        super().__init__()
        spectral = config.spectral_norm
        self.first = nn.Conv2d(256, 512, 3, padding=1)
        self.middle = nn.ModuleList(SpadeResidual(512, 512, 256, spectral=spectral) for _ in range(6))
        self.up_0 = SpadeResidual(512, 256, 256, spectral=spectral)
        self.up_1 = SpadeResidual(256, 64, 256, spectral=spectral)
        self.shuffle = 2 if shuffle else 1
        self.final = nn.Conv2d(64, 3 * self.shuffle**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.first(features)  # (B, 512, h, h)
        for block in self.middle:
            x = block(x, features)
        x = self.up_0(upsample(x), features)  # (B, 256, 2h, 2h)
        x = self.up_1(upsample(x), features)  # (B, 64, 4h, 4h)
        x = self.final(F.leaky_relu(x, 0.2))  # (B, 3 or 12, 4h, 4h)
        return torch.sigmoid(F.pixel_shuffle(x, self.shuffle) if self.shuffle > 1 else x)


class Rendering(NamedTuple):
    """A picture and what led to it, for training."""

    picture: Tensor  # (B, 3, S, S), 0..1
    motion: Motion


class PaperRenderer(nn.Module):
    """M and G (Fig. 12) behind the interface all presets share. The reference picture itself is not looked at."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.align_corners = config.align_corners
        self.volumetric = True
        self.motion_field = MotionField(config)
        self.warped = WarpedFeatures(config)
        shuffle = config.head == "spade+shuffle"
        self.head = OriginalHead(config) if config.head == "original" else SpadeHead(config, shuffle=shuffle)

    def forward(
        self,
        image: Tensor,
        volume: Tensor,
        source_keypoints: Tensor,
        source_rotation: Tensor,
        driving_keypoints: Tensor,
        driving_rotation: Tensor,
    ) -> Tensor:
        """Picture (B, 3, S, S) of the reference in the driving pose; keypoints (B, K, 3), rotations (B, 3, 3)."""
        poses = source_keypoints, source_rotation, driving_keypoints, driving_rotation
        return self.render_full(image, volume, *poses).picture

    def render_full(
        self,
        image: Tensor,
        volume: Tensor,
        source_keypoints: Tensor,
        source_rotation: Tensor,
        driving_keypoints: Tensor,
        driving_rotation: Tensor,
    ) -> Rendering:
        motion = self.motion_field(volume, source_keypoints, source_rotation, driving_keypoints, driving_rotation)
        warped = grid_sample_3d(volume, motion.flow, self.volumetric, self.align_corners)  # (B, 32, 16, h, h)
        return Rendering(self.head(self.warped(warped, motion.occlusion)), motion)

"""Blocks and geometry that several networks share. Knows no preset, no file and no loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class MotionOutput(NamedTuple):
    """What a sender knows of one frame; x = scale * ((canonical + delta) @ rotation) + translation (motion.py)."""

    rotation: Tensor  # (B, 3, 3), for row vectors
    translation: Tensor  # (B, 3)
    scale: Tensor  # (B, 1)
    canonical: Tensor  # (B, K, 3)
    delta: Tensor  # (B, K, 3), in the head's own frame
    confidence: Tensor  # (B, 1), 0..1

    def keypoints(self, canonical: Tensor | None = None) -> Tensor:
        """Keypoints (B, K, 3) in the picture; ``canonical`` of the source picture drives another face (Eq. 2)."""
        points = (self.canonical if canonical is None else canonical) + self.delta
        return self.scale[..., None] * (points @ self.rotation) + self.translation[:, None]


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation, then average pooling by ``pool``: Same and Down blocks of Fig. 13.

    (B, C, [D,] H, W) -> (B, out, [D,] H/pool, W/pool); depth is never pooled. ``stride`` True: the convolution itself
    steps by ``pool`` and nothing is averaged.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 3,
        *,
        dims: int = 2,
        pool: int = 1,
        stride: bool = False,
        slope: float = 0.0,
        spectral: bool = False,
    ) -> None:
        super().__init__()
        step = (1, pool, pool)[-dims:] if stride else 1
        self.conv = convolution(channels, out, kernel, dims=dims, stride=step, spectral=spectral)
        self.norm = batch_norm(out, dims)
        self.slope = slope
        self.pool = 1 if stride else pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.conv(x)), self.slope) if self.slope else F.relu(self.norm(self.conv(x)))
        if self.pool == 1:
            return x
        if x.dim() == 5:
            return F.avg_pool3d(x, (1, self.pool, self.pool))
        return F.avg_pool2d(x, self.pool)


class UpConvNorm(ConvNorm):
    """Up block of Fig. 13: x2 in height and width (nearest, or ``grow`` "trilinear"), convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, out: int, *, dims: int = 2, grow: str = "nearest", spectral: bool = False
    ) -> None:
        super().__init__(channels, out, dims=dims, spectral=spectral)
        self.grow = grow

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(upsample(x, self.grow))


class Residual(nn.Module):
    """ResBlock2D / ResBlock3D of Fig. 13: (norm, ReLU, convolution) twice, added to the input."""

    def __init__(self, channels: int, *, dims: int = 2, spectral: bool = False) -> None:
        super().__init__()
        self.norm1 = batch_norm(channels, dims)
        self.conv1 = convolution(channels, channels, 3, dims=dims, spectral=spectral)
        self.norm2 = batch_norm(channels, dims)
        self.conv2 = convolution(channels, channels, 3, dims=dims, spectral=spectral)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class Bottleneck(nn.Module):
    """ResBottleneck of Fig. 13: 1x1 to a quarter of ``out``, 3x3, 1x1; (B, C, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, channels: int, stride: int = 1, out: int | None = None) -> None:
        super().__init__()
        out = out or channels
        inner = out // 4
        self.conv1, self.norm1 = nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, stride, 1), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, out, 1), nn.BatchNorm2d(out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or out != channels:
            self.skip = nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.skip(x))


class Spade(nn.Module):
    """Spatially adaptive norm: instance norm whose gain and offset come from a (B, L, h, w) map, resized to fit."""

    HIDDEN = 128

    def __init__(self, channels: int, label_channels: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels, affine=False)
        self.shared = nn.Conv2d(label_channels, self.HIDDEN, 3, padding=1)
        self.gamma = nn.Conv2d(self.HIDDEN, channels, 3, padding=1)
        self.beta = nn.Conv2d(self.HIDDEN, channels, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        label = F.interpolate(label, size=x.shape[2:], mode="nearest")  # (B, L, H, W)
        hidden = F.relu(self.shared(label))
        return self.norm(x) * (1 + self.gamma(hidden)) + self.beta(hidden)


class SpadeResidual(nn.Module):
    """Residual block with SPADE norms: (B, C, H, W) and a label map -> (B, out, H, W)."""

    def __init__(self, channels: int, out: int, label_channels: int, *, spectral: bool) -> None:
        super().__init__()
        middle = min(channels, out)
        self.norm_0 = Spade(channels, label_channels)
        self.conv_0 = convolution(channels, middle, 3, spectral=spectral)
        self.norm_1 = Spade(middle, label_channels)
        self.conv_1 = convolution(middle, out, 3, spectral=spectral)
        self.learned_skip = channels != out
        if self.learned_skip:
            self.norm_s = Spade(channels, label_channels)
            self.conv_s = convolution(channels, out, 1, spectral=spectral, bias=False)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        skip = self.conv_s(self.norm_s(x, label)) if self.learned_skip else x
        y = self.conv_0(F.leaky_relu(self.norm_0(x, label), 0.2))
        y = self.conv_1(F.leaky_relu(self.norm_1(y, label), 0.2))
        return skip + y


def convolution(
    channels: int,
    out: int,
    kernel: int,
    *,
    dims: int = 2,
    stride: int | tuple[int, ...] = 1,
    spectral: bool = False,
    bias: bool = True,
) -> nn.Module:
    """Same-padded convolution in 2 or 3 dimensions, spectrally normalised where asked."""
    kind: Any = nn.Conv3d if dims == 3 else nn.Conv2d
    layer: nn.Module = kind(channels, out, kernel, stride, kernel // 2, bias=bias)
    return spectral_norm(layer) if spectral else layer


def batch_norm(channels: int, dims: int) -> nn.Module:
    return nn.BatchNorm3d(channels) if dims == 3 else nn.BatchNorm2d(channels)


def upsample(x: Tensor, mode: str = "nearest") -> Tensor:
    """Twice the height and width, depth is kept: "nearest" or, for volumes, "trilinear" (pixel centres aligned)."""
    if mode == "trilinear":  # bilinear in the plane, because depth does not change: what every runtime has
        flat = x.flatten(1, 2)  # (B, C * D, H, W)
        flat = F.interpolate(flat, scale_factor=(2.0, 2.0), mode="bilinear", align_corners=False)
        return flat.reshape(*x.shape[:3], *flat.shape[2:])
    return F.interpolate(x, scale_factor=(1.0, 2.0, 2.0) if x.dim() == 5 else (2.0, 2.0), mode="nearest")


def ramp(count: int, like: Tensor) -> Tensor:
    """(count,) from -1 to 1, both ends included: the spacing all of the paper's grids have."""
    return torch.linspace(-1.0, 1.0, count, device=like.device, dtype=like.dtype)


def coordinate_grid(depth: int, height: int, width: int, like: Tensor) -> Tensor:
    """(D, H, W, 3) of x, y, z in -1..1."""
    z, y, x = torch.meshgrid(ramp(depth, like), ramp(height, like), ramp(width, like), indexing="ij")
    return torch.stack([x, y, z], -1)


def gaussians(keypoints: Tensor, shape: tuple[int, ...], variance: float) -> Tensor:
    """exp(-distance^2 / 2 variance) around each keypoint (B, K, n): (B, K, [D,] H, W); n = 2 or 3 axes, x first."""
    heat: Tensor | None = None
    for axis, count in enumerate(reversed(shape)):
        distance = ramp(count, keypoints) - keypoints[..., axis, None]  # (B, K, count)
        line = torch.exp(distance.square() * (-0.5 / variance))
        line = line.reshape(*line.shape[:2], *[1] * (len(shape) - 1 - axis), count, *[1] * axis)
        heat = line if heat is None else heat * line
    assert heat is not None
    return heat


def grid_sample_3d(
    volume: Tensor, grid: Tensor, volumetric: bool = True, align_corners: bool = True, padding: str = "zeros"
) -> Tensor:
    """Trilinear samples of (B, C, D, H, W) at (B, d, h, w, 3) in -1..1, x y z: (B, C, d, h, w).

    ``padding``: "zeros" or "border". ``volumetric`` False gives the same numbers with 2-D GridSample only, for engines
    that refuse rank 5: the volume is seen as one tall picture (C, D*H, W), sampled at the two neighbouring depths with
    border padding, and the two are blended. Outside, a sample with zero padding is the border's value times the weight
    left on each axis. Keep this form in float32: a row of the tall picture needs more digits than float16 has.
    """
    if volumetric:
        return F.grid_sample(volume, grid, mode="bilinear", padding_mode=padding, align_corners=align_corners)
    return sample_planes(volume, grid.unbind(-1), align_corners, padding)


def sample_planes(volume: Tensor, at: Sequence[Tensor], align_corners: bool = True, padding: str = "zeros") -> Tensor:
    """The form of :func:`grid_sample_3d` that samples planes only; ``at``: x, y and z apart, (B, d, h, w) each."""
    batch, channels, depth, height, width = volume.shape
    d, h, w = at[0].shape[1:]
    sizes = (width, height, depth)
    x, y, z = (_to_index(axis, size, align_corners) for axis, size in zip(at, sizes, strict=True))
    column, row, layer = (u.clamp(0, size - 1) for u, size in zip((x, y, z), sizes, strict=True))
    near = layer.floor()
    far = (near + 1).clamp(max=depth - 1)
    tall = volume.reshape(batch, channels, depth * height, width)
    samples = []
    for index in (near, far):
        # inside the centres of the outermost pixels, so neither padding nor corners matter: the fastest of kernels
        xy = torch.stack([_to_unit(column, width), _to_unit(index * height + row, depth * height)], -1)
        flat = F.grid_sample(tall, xy.reshape(batch, d * h, w, 2), padding_mode="zeros", align_corners=False)
        samples.append(flat.reshape(batch, channels, d, h, w))
    out = samples[0] + (layer - near)[:, None] * (samples[1] - samples[0])  # torch.lerp exports as seven nodes
    if padding == "zeros":
        inside = torch.ones_like(x)
        for u, size in zip((x, y, z), sizes, strict=True):
            inside = inside * torch.minimum(1 + u, size - u).clamp(0, 1)
        out = out * inside[:, None]
    return out


def _to_index(u: Tensor, size: int, align_corners: bool) -> Tensor:
    return (u + 1) * (0.5 * (size - 1)) if align_corners else (u + 1) * (0.5 * size) - 0.5


def _to_unit(index: Tensor, size: int) -> Tensor:
    return index * (2.0 / size) + (1.0 / size - 1.0)

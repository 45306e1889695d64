"""L, H and Delta of the paper: canonical keypoints, head pose, expression. Knows nothing of rendering.

Shapes: B batch, K keypoints, S picture side. Pictures are RGB 0..1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.models.config import ModelConfig
from neuralcodec.models.layers import Bottleneck, ConvNorm, MotionOutput, UpConvNorm, ramp

TRUNK_FEATURES = 2048


class CanonicalKeypoints(nn.Module):
    """L, "canonical keypoint detector" (Fig. 12): (B, 3, S, S) -> (B, K, 3) in -1..1.

    A 2-D encoder, its channels folded into 16 depths, a 3-D decoder, then soft-argmax of one heat volume per keypoint.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.depth = config.volume_depth
        self.temperature = config.keypoint_temperature
        widths = (64, 128, 256, 512, 1024)
        self.shrink = shrinking(config)
        self.down = nn.Sequential(*(ConvNorm(a, b, pool=2) for a, b in zip((3, *widths), widths, strict=False)))
        self.fold = nn.Conv2d(1024, 1024 * self.depth, 1)
        out = (1024, 512, 256, 128, 64, 32)
        grow = config.volume_grow
        self.up = nn.Sequential(*(UpConvNorm(a, b, dims=3, grow=grow) for a, b in zip(out, out[1:], strict=False)))
        kernel = config.keypoint_kernel
        self.heat = nn.Conv3d(32, config.keypoints, kernel, padding=kernel // 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.down(self.shrink(image))  # (B, 1024, s/32, s/32) with s = S * keypoint_input_scale
        x = self.fold(x)  # (B, 1024 * 16, s/32, s/32)
        x = x.reshape(x.shape[0], 1024, self.depth, *x.shape[2:])  # (B, 1024, 16, s/32, s/32)
        return soft_argmax(self.heat(self.up(x)), self.temperature)  # heat (B, K, 16, s, s)


def shrinking(config: ModelConfig) -> nn.Module:
    """What makes L's input picture smaller."""
    if config.keypoint_shrink == "gaussian":
        return AntiAliasedShrink(config.keypoint_input_scale)
    if config.keypoint_input_scale != 0.25:
        raise ValueError(f"a bilinear shrink is known for a quarter only, not for {config.keypoint_input_scale}")
    return MiddleOfFour()


class MiddleOfFour(nn.Module):
    """Bilinear interpolation to a quarter the side: the mean of the middle 2 x 2 pixels of every 4 x 4."""

    def forward(self, image: Tensor) -> Tensor:
        side = image.shape[-1]
        return F.avg_pool2d(image[..., 1 : side - 1, 1 : side - 1], 2, 4)


class AntiAliasedShrink(nn.Module):
    """Gaussian blur, then every n-th pixel: (B, 3, S, S) -> (B, 3, S/n, S/n) for a scale of 1/n; 1 does nothing."""

    weight: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.step = round(1 / scale)
        if abs(self.step * scale - 1) > 1e-6:
            raise ValueError(f"keypoint_input_scale is {scale}; expected 1 over a whole number")
        if self.step > 1:
            sigma = (self.step - 1) / 2
            half = round(sigma * 4)
            line = torch.exp(-torch.arange(-half, half + 1).float().square() / (2 * sigma * sigma))
            kernel = line[:, None] * line / line.sum().square()
            self.register_buffer("weight", kernel.expand(3, 1, -1, -1).clone())

    def forward(self, image: Tensor) -> Tensor:
        if self.step == 1:
            return image
        return F.conv2d(image, self.weight, stride=self.step, padding=self.weight.shape[-1] // 2, groups=3)


class HeadPose(nn.Module):
    """Heads of H (Fig. 12): trunk features (B, n) -> yaw, pitch, roll in degrees (B, 3) and translation (B, 3)."""

    def __init__(self, features: int, config: ModelConfig) -> None:
        super().__init__()
        self.yaw = nn.Linear(features, config.angle_bins)
        self.pitch = nn.Linear(features, config.angle_bins)
        self.roll = nn.Linear(features, config.angle_bins)
        self.translation = nn.Linear(features, 3)
        self.offset = config.angle_offset
        self.swap = config.swap_yaw_roll
        mask = torch.tensor([float(axis in config.translation_mask) for axis in "xyz"])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        angles = [self._degrees(head(features)) for head in (self.yaw, self.pitch, self.roll)]
        if self.swap:
            angles.reverse()
        return torch.stack(angles, 1), self.translation(features) * self.mask

    def _degrees(self, bins: Tensor) -> Tensor:
        index = torch.arange(bins.shape[1], device=bins.device, dtype=bins.dtype)
        return (bins.softmax(1) * index).sum(1) * 3 - self.offset  # (B,)


class Trunk(nn.Module):
    """ResNet-50-like trunk of H and Delta (Fig. 12): (B, 3, S, S) -> (B, 2048)."""

    def __init__(self, blocks: str = "even") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3)
        self.norm = nn.BatchNorm2d(64)
        stages: list[nn.Module] = []
        channels = 64
        for width, count, stride in ((256, 3, 1), (512, 4, 2), (1024, 6, 2), (2048, 3, 2)):
            if blocks == "even":
                stages += [ConvNorm(channels, width, 1), Bottleneck(width, stride)]
            else:
                stages += [Bottleneck(channels, stride, width)] + [Bottleneck(width) for _ in range(stride == 1)]
            stages += [Bottleneck(width) for _ in range(count - 1)]
            channels = width
        self.stages = nn.Sequential(*stages)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(image))), 3, 2, 1)  # (B, 64, S/4, S/4)
        return self.stages(x).mean((2, 3))  # (B, 2048, S/32, S/32) -> (B, 2048)


class Estimate(NamedTuple):
    """What H and Delta (and, when unified, L) say about one picture, still in the paper's terms."""

    angles: Tensor  # (B, 3) yaw, pitch, roll in degrees
    translation: Tensor  # (B, 3)
    delta: Tensor  # (B, K, 3), added after the rotation
    canonical: Tensor | None = None  # (B, K, 3), unified trunk only
    scale: Tensor | None = None  # (B, 1), unified trunk only


class PoseExpression(nn.Module):
    """H "head pose estimator" and Delta "expression deformation estimator" (Fig. 12): (B, 3, S, S) -> Estimate.

    They share one trunk, or have one each where ``motion_trunk`` is "split".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config.trunk_blocks)
        self.own_trunk = Trunk(config.trunk_blocks) if config.motion_trunk == "split" else None
        self.pose = HeadPose(TRUNK_FEATURES, config)
        self.delta = nn.Linear(TRUNK_FEATURES, 3 * config.keypoints)

    def forward(self, image: Tensor) -> Estimate:
        features = self.trunk(image)  # (B, 2048)
        angles, translation = self.pose(features)
        delta = self.delta(features if self.own_trunk is None else self.own_trunk(image))  # (B, 3K)
        return Estimate(angles, translation, delta.reshape(delta.shape[0], -1, 3))


class PaperMotion(nn.Module):
    """L + H + Delta behind the interface all presets share: (B, 3, S, S) -> MotionOutput.

    A sender that already knows the canonical keypoints of the face needs only ``pose`` for each further frame.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        unified = config.motion_trunk == "unified"
        if config.scale and not unified:
            raise ValueError("scale is estimated by the unified trunk only; set motion_trunk='unified' or scale=False")
        if unified:
            from neuralcodec.models.convnext import UnifiedMotion

            self.pose: nn.Module = UnifiedMotion(config)
        else:
            self.canonical = CanonicalKeypoints(config)
            self.pose = PoseExpression(config)

    def forward(self, image: Tensor, box: Tensor | None = None) -> MotionOutput:  # noqa: ARG002 - sees the whole crop
        found: Estimate = self.pose(image)
        canonical = self.canonical(image) if found.canonical is None else found.canonical
        rotation = rotation_from_degrees(found.angles, self.config)
        one = torch.ones_like(found.translation[:, :1])
        scale = one if found.scale is None else found.scale
        # the paper adds delta after the rotation, x = x_c R + t + delta; ours turns with the head
        delta = found.delta @ rotation.transpose(1, 2)
        return MotionOutput(rotation, found.translation, scale, canonical, delta, one)


def soft_argmax(heat: Tensor, temperature: float) -> Tensor:
    """Expected position of each heat volume (B, K, D, H, W), softmax over its voxels: (B, K, 3), x y z in -1..1."""
    probability = (heat.flatten(2) / temperature).softmax(2).reshape(heat.shape)
    x = probability.sum((2, 3)) @ ramp(heat.shape[4], heat)  # (B, K)
    y = probability.sum((2, 4)) @ ramp(heat.shape[3], heat)
    z = probability.sum((3, 4)) @ ramp(heat.shape[2], heat)
    return torch.stack([x, y, z], -1)


def rotation_from_degrees(angles: Tensor, config: ModelConfig) -> Tensor:
    """Row-vector rotations (B, 3, 3) from yaw, pitch, roll in degrees (B, 3), in the order the weights learned.

    Column vectors: turn(p) = R p with R = Rx(pitch) Ry(yaw) Rz(roll) for "xyz", Rz Ry Rx for "zyx", and for "beta" the
    angles go to other axes: Rx(roll) Ry(pitch) Rz(yaw). Ours is the transpose.
    """
    yaw, pitch, roll = (angles * (config.pi / 180)).unbind(1)
    about = {"xyz": (pitch, yaw, roll), "zyx": (pitch, yaw, roll), "beta": (roll, pitch, yaw)}[config.euler]
    x, y, z = (_axis_rotation(angle, axis) for axis, angle in enumerate(about))
    column = z @ y @ x if config.euler == "zyx" else x @ y @ z
    return column.transpose(1, 2)


def _axis_rotation(angle: Tensor, axis: int) -> Tensor:
    """Right-handed rotation of column vectors about axis 0, 1 or 2: (B,) -> (B, 3, 3)."""
    c, s = torch.cos(angle), torch.sin(angle)
    o, i = torch.zeros_like(c), torch.ones_like(c)
    rows = {
        0: (i, o, o, o, c, -s, o, s, c),
        1: (c, o, s, o, i, o, -s, o, c),
        2: (c, -s, o, s, c, o, o, o, i),
    }[axis]
    return torch.stack(rows, 1).reshape(-1, 3, 3)

"""The `portrait` preset: the paper's pipeline cut down until two CPU cores render it in real time.

Shapes: B batch, K keypoints, S picture side, h = S / 8, D = 8 depth slices. Coordinates as in `neuralcodec.motion`.
Knows nothing of training or files; every module can be exported to ONNX without control flow.

What makes it cheaper than the paper's layout: all K flows share one rotation (Eq. 4, R_s R_d^-1 is common to every
keypoint), so composing them is two small matrix products and no warped copies of the volume exist; one coarse warp from
Gaussian keypoint weights feeds a 2-D U-Net (depth folded into channels) that refines the masks; the composed flow also
warps 2-D skip features and the reference picture itself, so that fine texture is copied instead of imagined.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.models.layers import MotionOutput, sample_planes

DEPTH = 8  # slices of the appearance volume
DEPTH_RANGE = 0.6  # the slices span z in [-0.6, 0.6]: a face of scale 0.86 needs +-0.45
VOLUME, PROBE = 16, 8  # channels per slice: appearance, and the thin copy that the motion field looks at
PATCH = 128  # side of the tight face picture that the motion network sees
PATCH_DOWN, PATCH_GROW = (
    0.12,
    1.25,
)  # the patch's centre below the pose centre and its half side, in units of the box's half side
LOGIT_MAX = 60.0  # e to the power of it is far from what float32 can hold
EYES, MOUTH = slice(0, 10), slice(16, 26)  # keypoint order: data.PORTRAIT_POINTS


def conv(inside: int, outside: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class Residual(nn.Module):
    """Two 3x3 convolutions around an identity, (B, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), conv(channels, channels, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def rotation_from_6d(a: Tensor) -> Tensor:
    """(B, 6) to row-vector rotations (B, 3, 3) by Gram-Schmidt (Zhou et al. 2019); two rows span the input."""
    x = F.normalize(a[:, :3], dim=1)
    y = F.normalize(a[:, 3:] - (x * a[:, 3:]).sum(1, keepdim=True) * x, dim=1)
    z = torch.stack(
        [
            x[:, 1] * y[:, 2] - x[:, 2] * y[:, 1],
            x[:, 2] * y[:, 0] - x[:, 0] * y[:, 2],
            x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0],
        ],
        1,
    )
    return torch.stack([x, y, z], 1)


class PortraitMotion(nn.Module):
    """L, H and Delta of the paper's figure with one trunk: canonical keypoints, head pose, expression.

    A tight 128x128 face picture is sampled from the coded picture around `box`, so precision does not depend on how
    large the face stands in the picture; outputs are in the coded picture's coordinates.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        k = self.keypoints = int(config.keypoints)
        self.trunk = nn.Sequential(
            conv(3, 24, stride=2),  # 64
            conv(24, 48, stride=2),  # 32
            Residual(48),
            conv(48, 96, stride=2),  # 16
            Residual(96),
            Residual(96),
            conv(96, 160, stride=2),  # 8
            Residual(160),
            Residual(160),
            conv(160, 192, stride=2),  # 4
            Residual(192),
            conv(192, 96, 1),
            nn.Flatten(),
            nn.Linear(96 * 16, 256),
            nn.ReLU(),
        )
        self.pose = nn.Linear(256, 6 + 2 + 1)  # rotation, translation, log scale
        self.canonical = nn.Linear(256, 3 * k)
        self.delta = nn.Linear(256, 3 * k)
        self.face = nn.Linear(256, 1)
        self.register_buffer("mean_shape", torch.zeros(k, 3))  # set from the training labels before the first step

    def forward(self, image: Tensor, box: Tensor) -> MotionOutput:
        """image (B, 3, S, S) in 0..1; box (B, 3): centre x, y and half side of the face, in picture units."""
        half = box[:, 2:] * PATCH_GROW  # B,1
        centre = torch.cat([box[:, :1], box[:, 1:2] + PATCH_DOWN * box[:, 2:]], 1)  # B,2
        axis = (torch.arange(PATCH, device=image.device, dtype=torch.float32) + 0.5) * (2 / PATCH) - 1
        plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]  # 1,P,P,2
        grid = plane * half[:, None, None] + centre[:, None, None]
        patch = F.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
        rotation, shift, size, canonical, delta, face = self.on_patch(patch)
        place = centre + half * shift
        return MotionOutput(rotation, F.pad(place, (0, 1)), half * size, canonical, delta, torch.sigmoid(face))

    def on_patch(self, patch: Tensor) -> tuple[Tensor, ...]:
        """The network proper on (B, 3, 128, 128), in the patch's own coordinates; confidence as a logit."""
        x = self.trunk((patch - 0.5) * 4).float()
        pose = self.pose(x)
        identity = torch.tensor([1.0, 0, 0, 0, 1, 0], device=x.device)
        k = self.keypoints
        return (
            rotation_from_6d(pose[:, :6] + identity),
            pose[:, 6:8],
            torch.exp(pose[:, 8:]) * 0.8,  # a box that fits gives 1 / PATCH_GROW
            self.mean_shape + 0.1 * self.canonical(x).view(-1, k, 3),
            0.1 * self.delta(x).view(-1, k, 3),
            self.face(x),
        )


class PortraitReference(nn.Module):
    """F of the paper's figure: what the receiver keeps of a reference picture, computed once.

    (B, 3, S, S) to volume (B, 16, 8, h, h), probe (B, 8, 8, h, h), skip_quarter (B, 48, 2h, 2h), skip_half (B, 24,
    4h, 4h).
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.at_full = conv(3, 24)
        self.at_half = nn.Sequential(conv(24, 48, stride=2), Residual(48))
        self.at_quarter = nn.Sequential(conv(48, 96, stride=2), Residual(96))
        self.at_eighth = nn.Sequential(conv(96, 192, stride=2), Residual(192))
        self.volume, self.probe = nn.Conv2d(192, VOLUME * DEPTH, 1), nn.Conv2d(192, PROBE * DEPTH, 1)
        self.skip_quarter, self.skip_half = nn.Conv2d(96, 48, 1), nn.Conv2d(48, 24, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = self.at_half(self.at_full(image))
        quarter = self.at_quarter(half)
        eighth = self.at_eighth(quarter)
        b, _, h, w = eighth.shape
        return (
            self.volume(eighth).reshape(b, VOLUME, DEPTH, h, w),
            self.probe(eighth).reshape(b, PROBE, DEPTH, h, w),
            self.skip_quarter(quarter),
            self.skip_half(half),
        )


class MotionField(nn.Module):
    """M of the paper's figure: K+1 softmax masks over the keypoint flows, composed into one 3-D flow, plus occlusion.
    The paper's background flow is the identity; here it is the scene's mesh.

    Returns flow (B, 3, D * h * h), its front view flow2 (B, 2, h, h) and occlusion (B, 2, h, h).
    """

    def __init__(self, keypoints: int, scene: int) -> None:
        super().__init__()
        self.volumetric = True  # see Networks.set_volumetric
        self.scene = scene  # nodes a side of the mesh that moves what is not the head
        self.d1 = nn.Sequential(conv(PROBE * DEPTH + 2 * keypoints, 96), conv(96, 96))
        self.d2 = nn.Sequential(conv(96, 128, stride=2), conv(128, 128))
        self.d3 = nn.Sequential(conv(128, 192, stride=2), conv(192, 192), conv(192, 128))
        self.u2, self.u1 = conv(256, 96), conv(192, 96)
        self.mask, self.depth = nn.Conv2d(96, (keypoints + 1) * DEPTH, 1), nn.Conv2d(96, DEPTH, 1)
        self.residual, self.occlusion = nn.Conv2d(96, 2, 3, padding=1), nn.Conv2d(96, 2, 3, padding=1)
        for head in (self.mask, self.residual):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(
        self, probe: Tensor, xs: Tensor, rs: Tensor, xd: Tensor, rd: Tensor, scene: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, h, k = probe.shape[0], probe.shape[-1], xs.shape[1]
        points = volume_grid(h, probe.device)  # 3,N: coordinates first, so that every product runs along the voxels
        turn = rd.transpose(1, 2) @ rs  # B,3,3: the same for every keypoint
        offset = xs - xd @ turn  # B,K,3: flow_k(p) = p @ turn + offset_k (paper Eq. 4)
        turned = turn.transpose(1, 2) @ points  # B,3,N
        # |p - x|^2 = |p|^2 - 2 p.x + |x|^2 as one product instead of K differences per voxel
        squared = (points**2).sum(0) - 2 * (xd @ points) + (xd**2).sum(2, keepdim=True)  # B,K,N
        logits = 4 - squared * (1 / (2 * 0.15**2))  # of each keypoint against what is not the head

        moved = scene.float().transpose(1, 2) @ mesh_weights(self.scene, h, probe.device).T  # B,2,h*h
        around = points + F.pad(moved.repeat(1, 1, DEPTH), (0, 0, 0, 1))  # where what is not the head was in the source
        shares = torch.cat([offset.transpose(1, 2), torch.ones_like(offset[:, None, :, 0])], 1)  # B,4,K

        def compose(logits: Tensor) -> Tensor:
            """All flows weighted by the softmax of 0 and these (B, K, N), with one division at the end: (B, 3, N)."""
            moving = shares @ torch.exp(logits.clamp(max=LOGIT_MAX))  # B,4,N: weighted offsets, and the weights' sum
            return (around + moving[:, 3:] * turned + moving[:, :3]) / (1 + moving[:, 3:])

        seen = sample_volume(probe, compose(logits), self.volumetric)
        plane = plane_grid(h, probe.device)
        heat_d, heat_s = heat(plane, xd, 0.1), heat(plane, xs, 0.1)
        a1 = self.d1(torch.cat([seen, heat_d - heat_s, heat_d], 1))
        a2 = self.d2(a1)
        a2 = self.u2(torch.cat([double(self.d3(a2)), a2], 1))
        a1 = self.u1(torch.cat([double(a2), a1], 1))
        masks = self.mask(a1).float().reshape(b, k + 1, -1)
        flow = compose(logits + (masks[:, 1:] - masks[:, :1]))
        front = self.depth(a1).float().softmax(1)[:, None]  # B,1,D,h,h
        flow2 = (front * flow[:, :2].view(b, 2, DEPTH, h, h)).sum(2) + 0.1 * torch.tanh(self.residual(a1).float())
        return flow, flow2, torch.sigmoid(self.occlusion(a1).float())


class PortraitRenderer(nn.Module):
    """M and G of the paper's figure: reference features, both frames' keypoints and rotations, and how the scene around
    the head moved (B, M, 2; see `neuralcodec.scene`), to a picture (B, 3, S, S) in 0..1."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        fine = (EYES.stop - EYES.start) + (MOUTH.stop - MOUTH.start)
        self.volumetric = True
        self.field = MotionField(int(config.keypoints), int(config.scene))
        self.g0, self.up1 = nn.Sequential(conv(VOLUME * DEPTH, 128), Residual(128), Residual(128)), conv(128, 64)
        self.g1, self.up2 = nn.Sequential(conv(64 + 48 + 2 * fine, 64), Residual(64)), conv(64, 32)
        self.refine = nn.Conv2d(64, 3, 3, padding=1)  # flow residual and occlusion at a quarter of the picture
        nn.init.zeros_(self.refine.weight)
        nn.init.zeros_(self.refine.bias)  # type: ignore[arg-type]
        self.g2 = nn.Sequential(conv(32 + 24, 32), conv(32, 32))
        self.g3 = nn.Sequential(conv(32 + 12, 32), nn.Conv2d(32, 16, 3, padding=1))

    def forward(
        self,
        image: Tensor,
        volume: Tensor,
        probe: Tensor,
        skip_quarter: Tensor,
        skip_half: Tensor,
        # fmt: skip
        source_keypoints: Tensor,
        source_rotation: Tensor,
        driving_keypoints: Tensor,
        driving_rotation: Tensor,
        driving_scene: Tensor,
    ) -> Tensor:
        return self.render_full(image, volume, probe, skip_quarter, skip_half, source_keypoints, source_rotation,
                                driving_keypoints, driving_rotation, driving_scene)[0]  # fmt: skip

    def render_full(self, image: Tensor, volume: Tensor, probe: Tensor, skip_quarter: Tensor, skip_half: Tensor,
                    xs: Tensor, rs: Tensor, xd: Tensor, rd: Tensor,
                    scene: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Picture, the warped reference it copies from (B, 3, S, S), and the share copied (B, 1, S, S)."""
        flow, flow2, seen = self.field(probe.float(), xs, rs, xd, rd, scene)
        h = volume.shape[-1]
        x = double(self.up1(self.g0(sample_volume(volume.float(), flow, self.volumetric))))  # 2h
        flow4 = grow(flow2, 2)
        plane = plane_grid(2 * h, x.device)
        face = [part for s in (EYES, MOUTH) for part in (heat(plane, xd[:, s], 0.05), heat(plane, xs[:, s], 0.05))]
        x = self.g1(torch.cat([x, sample(skip_quarter.float(), flow4) * grow(seen[:, :1], 2), *face], 1))
        more = self.refine(x).float()
        flow4 = flow4 + 0.05 * torch.tanh(more[:, :2])
        x = double(self.up2(x))  # 4h
        x = self.g2(torch.cat([x, sample(skip_half.float(), grow(flow4, 2)) * torch.sigmoid(grow(more[:, 2:], 2))], 1))
        copied = sample(image.float(), grow(flow4, 4))  # 8h
        x = F.pixel_shuffle(self.g3(torch.cat([x, quarters(copied)], 1)).float(), 2)  # B,4,8h,8h
        share = torch.sigmoid(x[:, 3:])
        return torch.sigmoid(x[:, :3]) * (1 - share) + copied * share, copied, share


def volume_grid(h: int, device: torch.device) -> Tensor:
    """Centres of the (D, h, h) voxels as (3, N): x, y, z."""
    axis = torch.linspace(-1, 1, h, device=device)
    z, y, x = torch.meshgrid(torch.linspace(-DEPTH_RANGE, DEPTH_RANGE, DEPTH, device=device), axis, axis, indexing="ij")
    return torch.stack([x, y, z]).view(3, -1)


def mesh_weights(nodes: int, h: int, device: torch.device) -> Tensor:
    """Bilinear share (h * h, nodes * nodes) that every node has in every cell; corner nodes lie in corner cells."""
    at = torch.linspace(0, nodes - 1, h, device=device)
    axis = (1 - (at[:, None] - torch.arange(nodes, device=device)).abs()).clamp_min(0)  # h,nodes
    return torch.kron(axis, axis)


def plane_grid(h: int, device: torch.device) -> Tensor:
    axis = torch.linspace(-1, 1, h, device=device)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), 0)  # 2,h,h as x, y


def heat(plane: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Gaussian spots (B, K, h, h) of unit height at points (B, K, 3), as a product of two 1-D bells."""
    dx = torch.exp((plane[0, 0] - points[:, :, :1]) ** 2 * (-1 / (2 * sigma**2)))  # B,K,h
    dy = torch.exp((plane[1, :, 0] - points[:, :, 1:2]) ** 2 * (-1 / (2 * sigma**2)))  # B,K,h
    return dy[..., None] * dx[..., None, :]


def sample_volume(volume: Tensor, flow: Tensor, volumetric: bool) -> Tensor:
    """volume (B, C, D, h, h) read at flow (B, 3, D * h * h), depth folded into channels: (B, C * D, h, h)."""
    b, c, d, h, w = volume.shape
    x, y, z = flow.view(b, 3, d, h, w).unbind(1)
    at = (x, y, z * (1 / DEPTH_RANGE))
    if volumetric:
        read = F.grid_sample(volume, torch.stack(at, -1), padding_mode="border", align_corners=True)
    else:
        read = sample_planes(volume, at, padding="border")
    return read.reshape(b, c * d, h, w)


def sample(picture: Tensor, flow: Tensor) -> Tensor:
    return F.grid_sample(picture, flow.permute(0, 2, 3, 1), padding_mode="border", align_corners=True)


def grow(x: Tensor, times: int) -> Tensor:
    return F.interpolate(x, size=(times * x.shape[-2], times * x.shape[-1]), mode="bilinear", align_corners=True)


def quarters(picture: Tensor) -> Tensor:
    """F.pixel_unshuffle(picture, 2) in steps that runtimes have fast kernels for."""
    parts = [picture[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.stack(parts, 2).flatten(1, 2)

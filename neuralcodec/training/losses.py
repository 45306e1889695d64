"""The losses of face-vid2vid (paper section 3.3, appendix A), as small functions. Knows no network of ours and no data.

Coordinates and the motion convention are those of ``neuralcodec.motion``. Every loss is a mean over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.models.layers import coordinate_grid
from neuralcodec.quality import C1, C2, KERNEL, LUMA, MID, SCALE_WEIGHTS, scales
from neuralcodec.training.feature_networks import FaceNetwork, RecognitionNetwork, Vgg19

FACE_CROP = 120  # pixels; what the face network was trained on
# where recognition networks are trained to have eyes, nose tip and corners of the mouth, pixels of 112 x 112
RECOGNITION_SIDE = 112
RECOGNITION_POINTS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
VGG_WEIGHTS = (0.03125, 0.0625, 0.125, 0.25, 1.0)  # of relu1_1 .. relu5_1
VGG_SCALES = 4  # the picture itself and three times half the side
SIGMA_AFFINE, SIGMA_TPS, TPS_POINTS = 0.05, 0.005, 5  # random warps of the equivariance loss
PRIOR_DISTANCE, PRIOR_DEPTH = 0.1, 0.33  # D_t (a squared distance) and z_t of the keypoint prior


@dataclass(frozen=True)
class LossWeights:
    """Published weights (section 4); feature matching is part of the GAN loss and carries that family's usual 10."""

    perceptual: float = 10.0  # P
    adversarial: float = 1.0  # G
    equivariance: float = 20.0  # E
    keypoint_prior: float = 10.0  # L
    head_pose: float = 20.0  # H
    expression: float = 5.0  # Delta
    feature_matching: float = 10.0


class FaceFeatureLoss(nn.Module):
    """Perceptual term from a face network: relative L1 between its features at five depths.

    Takes the place of the paper's VGG-Face term in L_P; the network's licence is clear. Each depth is divided by the
    target's own mean feature, so every depth counts alike and the value does not depend on the network's scale:
    0 for equal pictures, about 0.8 for unrelated ones.
    """

    def __init__(self, weights_path: str | Path, *, enlarge: float = 1.25) -> None:
        super().__init__()
        self.network = FaceNetwork(weights_path)
        self.enlarge = enlarge

    def forward(self, prediction: Tensor, target: Tensor, keypoints: Tensor) -> Tensor:
        """prediction, target: RGB 0..1 (B, 3, S, S); keypoints: (B, K, 3) of the target, x and y in -1..1."""
        with torch.no_grad():
            grid = face_grid(keypoints, self.enlarge)  # (B, 120, 120, 2)
            wanted = self.network(sample_face(target, grid))
        found = self.network(sample_face(prediction, grid))
        terms = [(f - w).abs().mean() / (w.abs().mean() + 1e-6) for f, w in zip(found, wanted, strict=True)]
        return torch.stack(terms).mean()


class IdentityLoss(nn.Module):
    """1 - cosine between what a recognition network says of two pictures' faces: 0 for the same, 1 for two people.

    Not in the paper. ``weights_path``: see RecognitionNetwork; the user supplies them, nothing is downloaded.
    """

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        self.network = RecognitionNetwork(weights_path)

    def forward(self, prediction: Tensor, target: Tensor, points: Tensor) -> Tensor:
        """prediction, target: RGB 0..1 (B, 3, S, S); points (B, 5, 2): eyes, nose tip, corners of the mouth, -1..1."""
        with torch.no_grad():
            grid = recognition_grid(points)
            wanted = self.network(_sampled(target, grid))
        return 1 - (self.network(_sampled(prediction, grid)) * wanted).sum(1).mean()


class PerceptualLoss(nn.Module):
    """L_P: weighted L1 of VGG-19 features at relu1_1..relu5_1, at four picture scales.

    ``weights_path``: torchvision's vgg19 state dict, which the user supplies; nothing is downloaded.
    """

    def __init__(self, weights_path: str | Path, *, scales: int = VGG_SCALES) -> None:
        super().__init__()
        self.network = Vgg19(weights_path)
        self.scales = scales

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """prediction, target: RGB 0..1 (B, 3, S, S)."""
        total = prediction.new_zeros(())
        for scale in range(self.scales):
            if scale:
                prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
            with torch.no_grad():
                wanted = self.network(target)
            found = self.network(prediction)
            for weight, f, w in zip(VGG_WEIGHTS, found, wanted, strict=True):
                total = total + weight * F.l1_loss(f, w)
        return total


def gradient_loss(prediction: Tensor, target: Tensor, scales: int = 4, weight: Tensor | None = None) -> Tensor:
    """L1 between horizontal and vertical differences at several scales: sharpness without any network's weights.

    ``weight``: (B, 1, S, S), of each pixel; None for 1 everywhere.
    """
    error = prediction - target
    weight = torch.ones_like(error[:, :1]) if weight is None else weight
    terms = []
    for scale in range(scales):
        if scale:
            error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
        terms += [(error.diff(dim=-1).abs() * weight[..., 1:]).mean()]
        terms += [(error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()]
    return torch.stack(terms).mean()


def ms_ssim_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - MS-SSIM of the luma of RGB pictures 0..1 (B, 3, S, S), exactly as `neuralcodec.quality.ms_ssim` counts it."""
    count = scales(*prediction.shape[-2:])
    shares = torch.tensor(SCALE_WEIGHTS[:count], device=prediction.device)
    luma = torch.tensor(LUMA, device=prediction.device)[:, None, None] * 255
    terms = []
    with torch.autocast(prediction.device.type, enabled=False):  # differences of squares need float32
        pair = torch.stack([(x.float() * luma).sum(1) - MID for x in (prediction, target)], 1)  # (B, 2, S, S)
        for index in range(count):
            x, y = pair.unbind(1)
            planes = torch.stack([x, y, x * x, y * y, x * y], 1).flatten(0, 1)
            rows, columns = (blur(length, planes.device) for length in planes.shape[-2:])
            mean_x, mean_y, xx, yy, xy = (rows @ planes @ columns.T).unflatten(0, (-1, 5)).unbind(1)
            similar = (2 * (xy - mean_x * mean_y) + C2) / (xx + yy - mean_x**2 - mean_y**2 + C2)
            if index == count - 1:  # luminance counts at the coarsest scale alone
                mean_x, mean_y = mean_x + MID, mean_y + MID
                similar = similar * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
            terms.append(similar.mean((1, 2)).clamp_min(1e-4))  # a power's slope at 0 is infinite
            pair = F.avg_pool2d(pair, 2)
        return 1 - (torch.stack(terms, 1) ** (shares / shares.sum())).prod(1).mean()


def blur(length: int, device: torch.device) -> Tensor:
    """The filter of MS-SSIM where it covers a line of ``length`` values, as a matrix (length - taps + 1, length): on a
    processor far faster than a convolution of one channel, whose gradients took a third of a training step."""
    bell = torch.tensor(KERNEL, device=device)
    out = torch.zeros(length - len(bell) + 1, length, device=device)
    for shift, tap in enumerate(bell):
        out.diagonal(shift).copy_(tap.expand(len(out)))
    return out


def discriminator_hinge(real: Tensor, rendered: Tensor) -> Tensor:
    """L_G for D: scores of real pictures above 1, of rendered ones (detached by the caller) below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + rendered).mean()


def generator_hinge(rendered: Tensor) -> Tensor:
    """L_G for the generator: the higher D scores its pictures, the better."""
    return -rendered.mean()


def feature_matching(rendered: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Feature matching part of L_G: mean L1 between D's features of the rendered and of the real picture."""
    terms = [F.l1_loss(found, wanted.detach()) for found, wanted in zip(rendered, real, strict=True)]
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class RandomWarp:
    """A small random affine and thin-plate-spline warp T per picture, for the equivariance loss.

    ``image(x)`` shows at p what x shows at T(p), so a point found at q in the warped picture belongs at ``points(q)``
    in the original.
    """

    affine: Tensor  # (B, 2, 3), applied to (x, y, 1)
    bend: Tensor  # (B, n * n), thin-plate weights at an n x n grid of control points

    @classmethod
    def sample(
        cls,
        batch: int,
        *,
        sigma_affine: float = SIGMA_AFFINE,
        sigma_tps: float = SIGMA_TPS,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> RandomWarp:
        affine = torch.eye(2, 3) + sigma_affine * torch.randn(batch, 2, 3, generator=generator)
        bend = sigma_tps * torch.randn(batch, TPS_POINTS**2, generator=generator)
        return cls(affine.to(device), bend.to(device))

    def points(self, xy: Tensor) -> Tensor:
        """T of points (B, N, 2)."""
        count = round(self.bend.shape[1] ** 0.5)
        control = coordinate_grid(1, count, count, xy)[..., :2].reshape(-1, 2)  # (n * n, 2)
        moved = xy @ self.affine[:, :, :2].transpose(1, 2) + self.affine[:, None, :, 2]
        distance = (xy[:, :, None] - control).abs().sum(-1)  # (B, N, n * n); city block, as usual here
        bend = (distance.square() * torch.log(distance + 1e-6)) @ self.bend[:, :, None]  # (B, N, 1)
        return moved + bend

    def image(self, picture: Tensor) -> Tensor:
        """The warped picture, (B, 3, S, S) to the same shape; what leaves the frame is mirrored in."""
        batch, _, height, width = picture.shape
        theta = torch.eye(2, 3, dtype=picture.dtype, device=picture.device).expand(batch, 2, 3)
        grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)  # (B, H, W, 2), pixel centres
        warped = self.points(grid.reshape(batch, -1, 2)).reshape(grid.shape)
        return F.grid_sample(picture, warped, padding_mode="reflection", align_corners=False)


def equivariance_loss(keypoints: Tensor, warped_keypoints: Tensor, warp: RandomWarp) -> Tensor:
    """L_E: keypoints (B, K, 3) against those found in the warped picture and mapped back, x and y only (L1)."""
    return F.l1_loss(keypoints[..., :2], warp.points(warped_keypoints[..., :2]))


def keypoint_prior(keypoints: Tensor, distance: float = PRIOR_DISTANCE, depth: float | None = PRIOR_DEPTH) -> Tensor:
    """L_L: keypoints (B, K, 3) at least sqrt(``distance``) apart, and their mean z at ``depth`` (None: anywhere)."""
    apart = (keypoints[:, :, None] - keypoints[:, None]).square().sum(-1)  # (B, K, K)
    others = ~torch.eye(keypoints.shape[1], dtype=torch.bool, device=keypoints.device)
    crowding = (F.relu(distance - apart) * others).sum((1, 2)).mean()
    if depth is None:
        return crowding
    return crowding + (keypoints[..., 2].mean(1) - depth).abs().mean()


def head_pose_loss(rotation: Tensor, label: Tensor, found: Tensor | None = None) -> Tensor:
    """L_H: L1 in degrees between the Euler angles of two row-vector rotations (B, 3, 3), where ``found`` (B,)."""
    return _mean_where((euler_degrees(rotation) - euler_degrees(label)).abs().mean(1), found)


def expression_loss(delta: Tensor) -> Tensor:
    """L_Delta: mean absolute expression offset (B, K, 3), so that the canonical keypoints carry the identity."""
    return delta.abs().mean()


def landmark_loss(keypoints: Tensor, labels: Tensor, weights: Tensor, found: Tensor | None = None) -> Tensor:
    """Landmark guidance (not in the paper): weighted L1 of composed keypoints (B, K, 3) against labelled points.

    ``weights``: (K,) or (K, 3), 0 for a keypoint (or its z) without a label. ``found``: (B,), who has labels.
    """
    weights = (weights if weights.dim() == 2 else weights[:, None]).expand(labels.shape[1], 3)
    error = ((keypoints - labels).abs() * weights).sum((1, 2)) / weights.sum().clamp(min=1e-6)
    return _mean_where(error, found)


def euler_degrees(rotation: Tensor) -> Tensor:
    """Yaw, pitch, roll in degrees (B, 3) of row-vector rotations, as ``motion.euler_angles`` but with gradients."""
    pitch = torch.asin(rotation[:, 1, 2].clamp(-0.99999, 0.99999))  # the slope of asin is infinite at 1
    yaw = torch.atan2(rotation[:, 0, 2], rotation[:, 2, 2])
    roll = torch.atan2(-rotation[:, 1, 0], rotation[:, 1, 1])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], 1))


def face_grid(keypoints: Tensor, enlarge: float) -> Tensor:
    """Sampling grid (B, 120, 120, 2) of the square around the keypoints (B, K, 3), ``enlarge`` times their extent."""
    xy = keypoints[..., :2].detach().float()
    low, high = xy.amin(1), xy.amax(1)
    centre = (low + high) / 2  # (B, 2)
    half = (high - low).amax(1) * (0.5 * enlarge)  # (B,)
    ramp = (torch.arange(FACE_CROP, device=xy.device, dtype=torch.float32) + 0.5) * (2 / FACE_CROP) - 1
    y, x = torch.meshgrid(ramp, ramp, indexing="ij")
    square = torch.stack([x, y], -1)  # (120, 120, 2)
    return centre[:, None, None] + half[:, None, None, None] * square


def recognition_grid(points: Tensor) -> Tensor:
    """Sampling grid (B, 112, 112, 2) that brings points (B, 5, 2) nearest to RECOGNITION_POINTS by a similarity."""
    here = points.float()
    wanted = torch.tensor(RECOGNITION_POINTS, device=here.device)
    centre, goal = here.mean(1, keepdim=True), wanted.mean(0)
    p, q = here - centre, wanted - goal
    straight, across = (p * q).sum((1, 2)), (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(1)
    back = torch.stack([straight, -across, across, straight], 1).view(-1, 2, 2)  # a turn times |p| |q|, for row vectors
    back = back * (p.square().sum((1, 2)) / (straight**2 + across**2))[:, None, None]
    axis = torch.arange(RECOGNITION_SIDE, device=here.device, dtype=torch.float32)
    cells = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2) - goal
    return (cells @ back + centre).view(-1, RECOGNITION_SIDE, RECOGNITION_SIDE, 2)


def sample_face(image: Tensor, grid: Tensor) -> Tensor:
    """Face crop (B, 3, 120, 120) of pictures (B, 3, S, S); large pictures are halved first so that nothing aliases."""
    while image.shape[-1] >= 2 * FACE_CROP:
        image = F.avg_pool2d(image.float(), 2)
    return _sampled(image, grid)


def _sampled(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _mean_where(error: Tensor, found: Tensor | None) -> Tensor:
    if found is None:
        return error.mean()
    chosen = found.to(error.dtype)
    return (error * chosen).sum() / chosen.sum().clamp(min=1)

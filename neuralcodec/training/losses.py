"""The losses of face-vid2vid (paper section 3.3 and appendix A) as small functions. Knows no network of ours and no data set."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.training.feature_networks import FaceNetwork

FACE_CROP = 120  # pixels; what the face network was trained on


class FaceFeatureLoss(nn.Module):
    """Perceptual term from a face network: relative L1 between its features at five depths.

    Takes the place of the paper's VGG-Face term (Eq. 6); the network's licence is clear. Each depth is divided by the
    target's own mean feature, so every depth counts alike and the value does not depend on the network's scale:
    0 for equal pictures, about 1 for unrelated ones.
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


def sample_face(image: Tensor, grid: Tensor) -> Tensor:
    """Face crop (B, 3, 120, 120) of pictures (B, 3, S, S); large pictures are halved first so that nothing aliases."""
    image = image.float()
    while image.shape[-1] >= 2 * FACE_CROP:
        image = F.avg_pool2d(image, 2)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)

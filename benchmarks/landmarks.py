"""Does the decoded face look the same way and speak with the same mouth? An outside face network, before and after.

The network is 3DDFA_V2's MobileNet (MIT licence); its weights are a file you name, nothing is bundled or downloaded.
Checked on 1,400 frames of 20 people against another landmark program: eye and mouth corners lie 1.3 to 3.3 pixels of
256 apart on 19 of 20 (the two programs define them differently), mouth openings correlate at 0.89. Its eyelids do not
move with blinks (correlation 0.26), so blinks are not measured here. Knows no codec.

Not independent of a renderer that was trained with a loss on this same network: say so beside such figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from benchmarks import report
from neuralcodec.training.feature_networks import FaceNetwork, read_weights

Array = NDArray[Any]

CROP = 120  # pixels, the network's input
BATCH = 32
SETTLING = 4  # rounds of finding the face from its own landmarks, starting from the middle of the first picture
INNER_LIPS = ((61, 67), (62, 66), (63, 65))  # upper and lower, in the 68-point numbering
BRIDGE, CHIN = 27, 8


@dataclass(frozen=True)
class Faces:
    """One clip seen by the network. landmarks: float64 (N, 68, 2) pixels; params: float64 (N, 62), see FaceNetwork."""

    landmarks: Array
    params: Array
    width: int

    @property
    def aperture(self) -> Array:
        """(N,): inner lip distance over face height."""
        gaps = [np.linalg.norm(self.landmarks[:, a] - self.landmarks[:, b], axis=1) for a, b in INNER_LIPS]
        height = np.linalg.norm(self.landmarks[:, BRIDGE] - self.landmarks[:, CHIN], axis=1)
        return np.asarray(np.mean(gaps, axis=0) / height)

    @property
    def rotations(self) -> Array:
        """(N, 3, 3): orthonormal head rotations, from the 3x4 pose."""
        rows = self.params[:, :12].reshape(-1, 3, 4)[:, :, :3]
        u, _, v = np.linalg.svd(rows)
        return np.asarray(u @ v)


class Meter:
    """Finds the face once per frame on the original and looks at both pictures through the same window."""

    def __init__(self, weights: str | Path) -> None:
        tensors = read_weights(weights)
        self.network = FaceNetwork(weights)
        self.head = nn.Linear(512, 136)
        self.head.load_state_dict({"weight": tensors["fc_lm.weight"], "bias": tensors["fc_lm.bias"]})
        self.head.requires_grad_(False)

    def look(self, original: Sequence[Array], decoded: Sequence[Array]) -> tuple[Faces, Faces]:
        """Landmarks of both clips (uint8 RGB (H, W, 3) lists of one length), frame by frame."""
        if len(original) != len(decoded) or original[0].shape != decoded[0].shape:
            raise ValueError(
                f"Clips differ: {len(original)} frames of {original[0].shape} and {len(decoded)} of {decoded[0].shape}."
            )
        first, before = self._follow(original)
        windows = np.concatenate([first[None], _windows(before.landmarks)[:-1]])
        return self._see(original, windows), self._see(decoded, windows)

    def _follow(self, frames: Sequence[Array]) -> tuple[Array, Faces]:
        """The first frame's window, and a rough pass that only serves to place the other windows."""
        height, width = frames[0].shape[:2]
        window = np.array([width / 2, height / 2, 0.8 * min(height, width)])
        for _ in range(SETTLING):
            window = _windows(self._see(frames[:1], window[None]).landmarks)[0]
        placed, faces = window, []
        for frame in frames:
            faces.append(self._see([frame], placed[None]))
            placed = _windows(faces[-1].landmarks)[0]
        return window, Faces(
            np.concatenate([face.landmarks for face in faces]), np.concatenate([face.params for face in faces]), width
        )

    @torch.inference_mode()
    def _see(self, frames: Sequence[Array], windows: Array) -> Faces:
        """windows: (N, 3) = centre x, centre y, side, in pixels."""
        landmarks, params = [], []
        for start in range(0, len(frames), BATCH):
            window = torch.from_numpy(windows[start : start + BATCH])
            stack = np.ascontiguousarray(np.stack(frames[start : start + BATCH]).transpose(0, 3, 1, 2))
            picture = torch.from_numpy(stack).float() / 255  # (B, 3, H, W)
            height, width = picture.shape[2:]
            steps = (torch.arange(CROP) + 0.5) / CROP - 0.5
            x = window[:, 0, None] + window[:, 2, None] * steps  # (B, CROP) pixels
            y = window[:, 1, None] + window[:, 2, None] * steps
            grid = torch.stack(
                [
                    (2 * x / width - 1)[:, None, :].expand(-1, CROP, -1),
                    (2 * y / height - 1)[:, :, None].expand(-1, -1, CROP),
                ],
                dim=3,
            )
            crop = F.grid_sample(picture, grid.float(), padding_mode="border", align_corners=False)
            deepest = self.network._walk(crop)[1].mean((2, 3))  # (B, 512)
            points = self.head(deepest).reshape(-1, 2, 68).transpose(1, 2).double()  # -1..1 over the window
            landmarks.append((points * window[:, None, 2:] / 2 + window[:, None, :2]).numpy())
            normalised = self.network.fc_param(deepest)
            params.append((normalised * self.network.param_std + self.network.param_mean).double().numpy())
        return Faces(np.concatenate(landmarks), np.concatenate(params), frames[0].shape[1])


def distances(before: Faces, after: Faces) -> dict[str, float]:
    """Means over the frames of one clip.

    landmark_px: distance of the 68 landmarks, in pixels of a picture 256 wide. pose_degrees: angle between the two head
    rotations. expression: root mean square difference of the 10 expression numbers, in the network's own units.
    aperture_error, aperture_range: see :func:`aperture_share`.
    """
    apart = np.linalg.norm(before.landmarks - after.landmarks, axis=2).mean() * 256 / before.width
    turn = before.rotations @ after.rotations.transpose(0, 2, 1)
    cosine = np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1)
    expression = before.params[:, 52:] - after.params[:, 52:]
    low, high = np.percentile(before.aperture, [1, 99])
    return {
        "landmark_px": float(apart),
        "pose_degrees": float(np.rad2deg(np.arccos(cosine)).mean()),
        "expression": float(np.sqrt((expression**2).mean(axis=1)).mean()),
        "aperture_error": float(np.abs(before.aperture - after.aperture).mean()),
        "aperture_range": float(high - low),
    }


def aperture_share(clips: Sequence[Mapping[str, float]]) -> float:
    """Mean mouth error over the mean range (1st to 99th percentile) of the originals: ratio of means, because a clip
    of a closed mouth has no range of its own to divide by."""
    return float(np.mean([c["aperture_error"] for c in clips]) / np.mean([c["aperture_range"] for c in clips]))


def _windows(landmarks: Array) -> Array:
    """(N, 3) windows from (N, 68, 2) landmarks by 3DDFA's rule: box centre, side as long as the box's diagonal."""
    low, high = landmarks.min(axis=1), landmarks.max(axis=1)
    side = np.linalg.norm(high - low, axis=1, keepdims=True)
    return np.concatenate([(low + high) / 2, side], axis=1)


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks import clips

    parser = argparse.ArgumentParser(prog="python -m benchmarks.landmarks", description=__doc__)
    parser.add_argument("original", type=Path, help="video file")
    parser.add_argument("decoded", type=Path, help="video file of the same size and frame count")
    parser.add_argument("--weights", type=Path, required=True, help="3DDFA_V2 mb05 network as safetensors")
    options = parser.parse_args(arguments)
    original, decoded = clips.read(options.original), clips.read(options.decoded)
    print(json.dumps(distances(*Meter(options.weights).look(original.frames, decoded.frames)), indent=2))


if __name__ == "__main__":
    report.run(main)

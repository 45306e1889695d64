"""The face detector: a heatmap of face centres and a box per cell, cheap enough for every frame. Knows no footage.

Not in the paper, which starts from cropped faces. Trained by `neuralcodec.training.detector`, read out by
`neuralcodec.face.decode_faces`.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 160  # side of the input picture
STRIDE = 8  # pixels per cell of the maps


class Conv(nn.Sequential):
    """Convolution, batch norm and, unless ``linear``, ReLU: (B, C, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(
        self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        layers = [
            nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out, momentum=0.03),
        ]
        super().__init__(*layers, *([] if linear else [nn.ReLU()]))


class Bottleneck(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; (B, C, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, channels: int, out: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Conv(channels, wide), Conv(wide, wide, 3, stride, groups=wide), Conv(wide, out, linear=True)
        )
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class Detector(nn.Module):
    """image (B, 3, 160, 160) RGB 0..1 -> heatmap (B, 1, 20, 20) 0..1, box (B, 3, 20, 20).

    ``box`` is, in cells: offset of the face's centre from the middle of the cell (x, y), and log of its half side.
    Features are taken at 1/8, 1/16 and 1/32, so that a face of 8 % of the picture and one that fills it are seen alike,
    and merged at 1/8.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Conv(3, 16, 3, 2), Conv(16, 16, 3, 2, groups=16), Conv(16, 24), Bottleneck(24, 24, 72)
        )
        self.eighth = nn.Sequential(Bottleneck(24, 40, 72, 2), Bottleneck(40, 40, 120), Bottleneck(40, 40, 120))
        self.sixteenth = nn.Sequential(Bottleneck(40, 64, 120, 2), Bottleneck(64, 64, 128), Bottleneck(64, 64, 128))
        self.thirtysecond = nn.Sequential(Bottleneck(64, 80, 128, 2), Conv(80, 80, 3, groups=80))
        self.from_80 = Conv(80, 40, linear=True)
        self.from_64 = Conv(64, 40, linear=True)
        self.from_40 = Conv(40, 40, linear=True)
        self.merge_16 = nn.Sequential(nn.ReLU(), Conv(40, 40, 3, groups=40))
        self.merge_8 = nn.Sequential(nn.ReLU(), Conv(40, 40, 3, groups=40), Conv(40, 48), Conv(48, 48, 3, groups=48))
        self.head = nn.Conv2d(48, 4, 1)
        self.head.bias = nn.Parameter(torch.tensor([-4.0, 0.0, 0.0, 0.7]))  # faces are rare, and of about two cells

    def maps(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Heatmap logits (B, 1, 20, 20) and box (B, 3, 20, 20)."""
        eighth = self.eighth(self.stem(image * 2 - 1))
        sixteenth = self.sixteenth(eighth)
        coarse = self.from_80(self.thirtysecond(sixteenth))
        middle = self.merge_16(F.interpolate(coarse, scale_factor=2.0) + self.from_64(sixteenth))
        out = self.head(self.merge_8(F.interpolate(middle, scale_factor=2.0) + self.from_40(eighth)))
        return out[:, :1], out[:, 1:]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        heat, box = self.maps(image)
        return heat.sigmoid(), box


def export_onnx(model: Detector, path: Path) -> None:
    """Write the ONNX graph: `image` -> `heatmap`, `box`; batch size free, opset 20, float32."""
    partial = path.with_suffix(".part.onnx")
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 3, SIZE, SIZE),),
        str(partial),
        input_names=["image"],
        output_names=["heatmap", "box"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
        opset_version=20,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    partial.replace(path)

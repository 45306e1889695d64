"""Frozen networks whose inner features the losses compare. Loads weights from a path; never downloads, never trains."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from neuralcodec.errors import PackError

# name, output channels, stride: 3DDFA_V2's MobileNet-V1 of width 0.5 after its first 3x3/2 convolution to 16 channels
_FACE_BLOCKS = (
    ("dw2_1", 32, 1),
    ("dw2_2", 64, 2),
    ("dw3_1", 64, 1),
    ("dw3_2", 128, 2),
    ("dw4_1", 128, 1),
    ("dw4_2", 256, 2),
    ("dw5_1", 256, 1),
    ("dw5_2", 256, 1),
    ("dw5_3", 256, 1),
    ("dw5_4", 256, 1),
    ("dw5_5", 256, 1),
    ("dw5_6", 512, 2),
    ("dw6", 512, 1),
)
_FACE_DEPTHS = ("dw2_1", "dw3_1", "dw4_1", "dw5_3", "dw6")  # last block at 60, 30, 15, 8 and 4 pixels of a 120 crop


# channels that leave a stage, expansion, blocks, stride of the first: MobileFaceNet's inverted residuals
_RECOGNITION_STAGES = ((64, 2, 5, 2), (128, 4, 1, 2), (128, 2, 6, 1), (128, 4, 1, 2), (128, 2, 2, 1))
# what torch.load raises for a file that is cut short or damaged, besides pickle.UnpicklingError for one that wants code
DAMAGED = (
    RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError, AssertionError, struct.error,
)  # fmt: skip


class FrozenNetwork(nn.Module):
    """A network in evaluation mode for good: no gradients for its weights, ``train()`` does not reach it."""

    def freeze(self) -> None:
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenNetwork:  # noqa: ARG002 - a frozen network has one mode
        return self


class ImageNetInput(FrozenNetwork):
    """A frozen network that was trained on RGB 0..1 less ImageNet's mean, over its deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))

    def normalised(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std


class FaceNetwork(FrozenNetwork):
    """3DDFA_V2's MobileNet-V1 x0.5 (MIT licence), batch norm folded into its convolutions.

    In: RGB 0..1 (B, 3, 120, 120), the face filling about two thirds. Out: five feature maps,
    (B, 32, 60, 60), (B, 64, 30, 30), (B, 128, 15, 15), (B, 256, 8, 8), (B, 512, 4, 4).
    """

    param_mean: Tensor
    param_std: Tensor

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        weights = read_weights(weights_path)
        self.layers = nn.ModuleDict()
        try:
            self.layers["conv1"] = _folded(weights, "conv1", "bn1", stride=2, groups=1)
            channels = 16
            for name, out_channels, stride in _FACE_BLOCKS:
                depthwise = _folded(weights, f"{name}.conv_dw", f"{name}.bn_dw", stride=stride, groups=channels)
                pointwise = _folded(weights, f"{name}.conv_sep", f"{name}.bn_sep", stride=1, groups=1)
                self.layers[name] = nn.Sequential(depthwise, nn.ReLU(), pointwise, nn.ReLU())
                channels = out_channels
            self.fc_param = nn.Linear(channels, 62)
            self.fc_param.load_state_dict({"weight": weights["fc_param.weight"], "bias": weights["fc_param.bias"]})
            self.register_buffer("param_mean", weights["param_mean"].float())
            self.register_buffer("param_std", weights["param_std"].float())
        except (KeyError, RuntimeError) as error:
            what = f"no tensor {error}" if isinstance(error, KeyError) else "tensors of other shapes"
            raise PackError(f"{weights_path}: {what}; expected 3DDFA_V2's mb05 network as safetensors") from None
        self.freeze()

    def forward(self, face: Tensor) -> list[Tensor]:
        return self._walk(face)[0]

    def parameters_3dmm(self, face: Tensor) -> Tensor:
        """(B, 62): 12 pose (3x4, row-major), 40 shape, 10 expression, de-normalised."""
        deepest = self._walk(face)[1]
        normalised: Tensor = self.fc_param(deepest.mean((2, 3)))
        return normalised * self.param_std + self.param_mean

    def _walk(self, face: Tensor) -> tuple[list[Tensor], Tensor]:
        x = (face.flip(1) * 255.0 - 127.5) / 128.0  # the network was trained on BGR bytes
        x = F.relu(self.layers["conv1"](x))
        features = []
        for name, _, _ in _FACE_BLOCKS:
            x = self.layers[name](x)
            if name in _FACE_DEPTHS:
                features.append(x)
        return features, x


class RecognitionNetwork(ImageNetInput):
    """MobileFaceNet (Chen et al. 2018): whose a face is. Weights of foamliu/MobileFaceNet (Apache 2.0), norms folded.

    In: RGB 0..1 (B, 3, 112, 112), aligned to five points (`losses.IdentityLoss`). Out: unit vectors (B, 128).
    """

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        weights = read_weights(weights_path)
        relu, relu6 = nn.ReLU(), nn.ReLU6()
        try:
            self.first = nn.Sequential(
                _folded(weights, "conv1.0", "conv1.1", stride=2, groups=1), relu6,
                _folded(weights, "dw_conv.depthwise", "dw_conv.bn1", stride=1, groups=64), relu,
                _folded(weights, "dw_conv.pointwise", "dw_conv.bn2", stride=1, groups=1), relu,
            )  # fmt: skip
            self.blocks, inside, index = nn.ModuleList(), 64, 0
            for channels, expansion, count, stride in _RECOGNITION_STAGES:
                for step in (stride, *[1] * (count - 1)):
                    key, inside = f"features.{index}.conv", inside * expansion
                    self.blocks.append(nn.Sequential(
                        _folded(weights, f"{key}.0.0", f"{key}.0.1", stride=1, groups=1), relu6,
                        _folded(weights, f"{key}.1.0", f"{key}.1.1", stride=step, groups=inside), relu6,
                        _folded(weights, f"{key}.2", f"{key}.3", stride=1, groups=1),
                    ))  # fmt: skip
                    inside, index = channels, index + 1
            self.last = nn.Sequential(
                _folded(weights, "conv2.0", "conv2.1", stride=1, groups=1), relu6,
                _folded(weights, "gdconv.depthwise", "gdconv.bn", stride=1, groups=512, padding=0),
                _folded(weights, "conv3", "bn", stride=1, groups=1),
            )  # fmt: skip
        except (KeyError, RuntimeError) as error:
            raise PackError(f"{weights_path}: {error}; expected the weights of foamliu/MobileFaceNet") from None
        self.freeze()

    def forward(self, face: Tensor) -> Tensor:
        x = self.first(self.normalised(face))
        for block in self.blocks:
            y = block(x)
            x = x + y if x.shape == y.shape else y
        return F.normalize(self.last(x).flatten(1).float())


class Vgg19(ImageNetInput):
    """VGG-19 up to relu5_1 (L_P): RGB 0..1 (B, 3, S, S) -> relu1_1 (B, 64, S, S) .. relu5_1 (B, 512, S/16, S/16)."""

    WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512)  # 0 is a 2x2 max pooling
    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        weights = read_weights(weights_path)
        self.layers = nn.ModuleList()
        channels, index = 3, 0  # index: position in torchvision's ``features``
        for width in self.WIDTHS:
            if width == 0:
                self.layers.append(nn.MaxPool2d(2))
                index += 1
                continue
            layer = nn.Conv2d(channels, width, 3, padding=1)
            try:
                layer.load_state_dict({name: weights[f"features.{index}.{name}"] for name in ("weight", "bias")})
            except (KeyError, RuntimeError) as error:
                raise PackError(f"{weights_path}: {error}; expected torchvision's vgg19 state dict") from None
            self.layers.append(layer)
            channels, index = width, index + 2  # convolution and ReLU
        self.freeze()

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.normalised(image)
        features = []
        first_of_block = True
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                x, first_of_block = layer(x), True
                continue
            x = F.relu(layer(x))
            if first_of_block:
                features.append(x)
            first_of_block = False
        return features


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A flat state dict from .safetensors or from a torch file that holds tensors only (no pickled code is run)."""
    path = Path(path)
    if not path.is_file():
        raise PackError(f"{path}: no such weights file; pass the path of one that exists")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise PackError(f"{path}: damaged or not a safetensors file ({error})") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED, pickle.UnpicklingError):  # torch's own advice is to switch the protection off
        raise PackError(f"{path}: not a file of tensors; expected .safetensors or a saved state dict") from None
    if not isinstance(loaded, dict):
        raise PackError(f"{path}: holds a {type(loaded).__name__}, expected a state dict of tensors")
    if other := [f"{type(value).__name__} {name!r}" for name, value in loaded.items() if not isinstance(value, Tensor)]:
        raise PackError(f"{path}: holds the {other[0]}, expected a flat state dict of tensors")
    return loaded


def _folded(
    weights: dict[str, Tensor], conv: str, norm: str, *, stride: int, groups: int, padding: int | None = None
) -> nn.Conv2d:
    """One convolution that computes conv then batch norm in evaluation mode."""
    kernel = weights[f"{conv}.weight"].float()
    gain = weights[f"{norm}.weight"].float() / torch.sqrt(weights[f"{norm}.running_var"].float() + 1e-5)
    before = weights.get(f"{conv}.bias", torch.zeros(1)).float()
    bias = weights[f"{norm}.bias"].float() + gain * (before - weights[f"{norm}.running_mean"].float())
    size = kernel.shape[-1]
    around = size // 2 if padding is None else padding
    layer = nn.Conv2d(kernel.shape[1] * groups, kernel.shape[0], size, stride, around, groups=groups)
    layer.load_state_dict({"weight": kernel * gain[:, None, None, None], "bias": bias})
    return layer

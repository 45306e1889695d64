"""One description of every network we can build. Knows numbers and switches, no layers and no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """What to build: ``ModelConfig.preset("paper")``, ``.preset("portrait")`` or ``.community("liveportrait")``.

    Everything after ``keypoints`` concerns the paper's pipeline only. Its defaults are the paper; the other values are
    what community checkpoints of the same pipeline were trained with.
    """

    name: str
    size: int = 256  # pixels a side of the coded picture
    keypoints: int = 20  # K
    scene: int = 0  # nodes a side of the mesh that moves what is not the head (neuralcodec.scene); `portrait` only

    # widths (paper Fig. 12)
    volume_channels: int = 32  # the appearance volume is 32 x 16 x S/4 x S/4
    volume_depth: int = 16
    first_kernel: int = 7  # first convolution of F; 3 in SPADE checkpoints

    # L: canonical keypoints
    keypoint_input_scale: float = 1.0  # 0.25 looks at a picture a quarter the side: 16 times cheaper
    keypoint_shrink: Literal["gaussian", "bilinear"] = "gaussian"  # how that smaller picture is made
    keypoint_kernel: int = 3  # last convolution of L; the paper's figure says 7 (+0.2 M), every public checkpoint has 3
    keypoint_temperature: float = 0.1  # of the softmax before soft-argmax

    # H and Delta
    motion_trunk: Literal["shared", "split", "unified"] = "shared"  # unified: L, H, Delta in one ConvNeXt-V2 tiny
    trunk_blocks: Literal["even", "projecting"] = "even"  # projecting: a stage's first bottleneck widens
    angle_bins: int = 66  # 3 degrees each
    angle_offset: float = 99.0  # degrees of bin 0, negated; 97.5 in LivePortrait
    pi: float = 3.141592653589793  # 3.14 in several checkpoints
    euler: Literal["xyz", "zyx", "beta"] = "xyz"  # see extractor.rotation_from_degrees
    swap_yaw_roll: bool = False  # the head named yaw gives roll and the other way round
    scale: bool = False  # a face size is estimated; only with the unified trunk
    translation_mask: Literal["xyz", "xy", "y"] = "xyz"  # components of t that are used, the others are zero

    # M: motion field
    motion_channels: int = 4  # the volume is squeezed to this before it is warped K + 1 times
    squeeze_norm: bool = True  # batch norm and ReLU follow the squeeze
    field_skips: bool = True  # the U-Net has skips at every level and a last convolution; False: at the input only
    volume_shrink: Literal["pool", "stride"] = "pool"  # how volumes are halved in the U-Net
    volume_grow: Literal["nearest", "trilinear"] = "nearest"  # how volumes are doubled, in L too
    mask_floor: float = 0.0  # mask values below it count as 0 in the flow
    heatmap_variance: float = 0.01
    flow_rotation: bool = True  # Eq. 4; False: pure translation per keypoint
    align_corners: bool = True  # of every GridSample; False keeps the half-voxel mismatch some checkpoints learned with

    # G: generator
    head: Literal["original", "spade", "spade+shuffle"] = "original"  # +shuffle doubles the output side
    spectral_norm: bool = True  # on G while training; an importer folds it into the weights and says False
    leaky_slope: float = 0.01  # of the first activation after the warp
    output: Literal["sigmoid", "clip"] = "sigmoid"  # what keeps the original head's picture in 0..1

    # D: discriminator
    discriminator_scales: int = 1  # the paper: 1 at 256, 2 at 512
    discriminator_heatmaps: bool = True  # the discriminator also sees a Gaussian per keypoint

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ModelConfig:
        """The two networks we train: "paper" (published sizes) and "portrait" (small, the default pack)."""
        return cls._named(_PRESETS, "preset", name, changes)

    @classmethod
    def community(cls, name: str, **changes: Any) -> ModelConfig:
        """What a public checkpoint of the paper's pipeline was trained as; its file decides the rest."""
        return cls._named(_COMMUNITY, "community variant", name, changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of ``to_dict``; a field this version does not know is an error, not a silent default."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown model settings {', '.join(unknown)}: written by a newer neuralcodec? Update it")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def _named(
        cls, table: Mapping[str, Mapping[str, Any]], kind: str, name: str, changes: Mapping[str, Any]
    ) -> ModelConfig:
        if name not in table:
            raise ValueError(f"no {kind} called {name!r}; there are {', '.join(sorted(table))}")
        return cls(**{"name": name, **table[name], **changes})


_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "portrait": {"size": 256, "keypoints": 30, "scene": 4},
}

_ZHANGLONGHAO: dict[str, Any] = {
    "keypoints": 15,
    "pi": 3.14,
    "swap_yaw_roll": True,
    "flow_rotation": False,
    "align_corners": False,
    "spectral_norm": False,
    "discriminator_heatmaps": False,
}
_BETA = {**_ZHANGLONGHAO, "euler": "beta", "volume_shrink": "stride", "volume_grow": "trilinear"}
_COMMUNITY: dict[str, dict[str, Any]] = {
    "zhanglonghao": {**_ZHANGLONGHAO, "head": "spade", "first_kernel": 3, "keypoint_input_scale": 0.25},
    "zhanglonghao-original": {**_ZHANGLONGHAO, "keypoint_input_scale": 0.25},
    "zhanglonghao-beta": _BETA,
    "sadtalker": {
        **_ZHANGLONGHAO,
        "head": "spade",
        "first_kernel": 3,
        "keypoint_input_scale": 0.25,
        "translation_mask": "y",
        "mask_floor": 1e-3,
    },
    "gfvc": _BETA,
    "zhengkw": {
        "keypoints": 15,
        "keypoint_input_scale": 0.25,
        "keypoint_shrink": "bilinear",
        "trunk_blocks": "projecting",
        "squeeze_norm": False,
        "field_skips": False,
        "spectral_norm": False,
        "leaky_slope": 0.2,
        "output": "clip",
    },
    "liveportrait": {
        "keypoints": 21,
        "first_kernel": 3,
        "motion_trunk": "unified",
        "angle_offset": 97.5,
        "euler": "zyx",
        "scale": True,
        "translation_mask": "xy",
        "flow_rotation": False,
        "align_corners": False,
        "head": "spade+shuffle",
        "spectral_norm": False,
        "discriminator_heatmaps": False,
    },
}

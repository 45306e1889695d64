"""What public checkpoints of the paper's pipeline look like: how to tell them apart, and their tensors under our names.

A family is a row of ``ModelConfig.community`` (its arithmetic) and a list of rename rules (its file). Sizes that may
differ between files of one family, such as the number of keypoints, are read off the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralcodec.errors import PackError
from neuralcodec.models import ModelConfig, build

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint."""

    title: str
    licence: str  # of the published weights
    needs: Mapping[str, str]  # part of the system: a tensor that shows it is there
    rules: Rules  # regular expression of a whole name: our name; the first that matches counts
    mask: str  # the tensor that tells the number of keypoints
    crop: str  # one sentence: how its faces were cropped, and what that means here


_VOX = (
    "Trained on loose VoxCeleb head crops whose square stands still; the codec's own crop is about as loose, so "
    "pictures cropped much tighter or wider come out worse."
)
_FIELD: Rules = (
    (r"compress\.(.*)", r"render.motion_field.squeeze.conv.\1"),
    (r"norm\.(.*)", r"render.motion_field.squeeze.norm.\1"),
    (r"hourglass\.encoder\.down_blocks\.(.*)", r"render.motion_field.hourglass.down.\1"),
    (r"hourglass\.decoder\.up_blocks\.(.*)", r"render.motion_field.hourglass.up.\1"),
    (r"hourglass\.decoder\.(.*)", r"render.motion_field.hourglass.last.\1"),
    (r"(mask|occlusion)\.(.*)", r"render.motion_field.\1.\2"),
)
_APPEARANCE: Rules = (
    (r"first\.(.*)", r"reference.first.\1"),
    (r"down_blocks\.(.*)", r"reference.down.\1"),
    (r"second\.(.*)", r"reference.fold.\1"),
    (r"resblocks_3d\.3dr(\d)\.(.*)", r"reference.residuals.\1.\2"),
)
_WARPED: Rules = ((r"(third|fourth)\.(.*)", r"render.warped.\1.\2"),)
_ORIGINAL: Rules = (
    (r"resblocks_2d\.2dr(\d)\.(.*)", r"render.head.residuals.\1.\2"),
    (r"up_blocks\.(.*)", r"render.head.up.\1"),
    (r"final\.(.*)", r"render.head.final.\1"),
)
_SPADE: Rules = (
    (r"fc\.(.*)", r"render.head.first.\1"),
    (r"conv_img\.(?:0\.)?(.*)", r"render.head.final.\1"),
    (r"G_middle_(\d)\.norm_(\w)\.mlp_shared\.0\.(.*)", r"render.head.middle.\1.norm_\2.shared.\3"),
    (r"G_middle_(\d)\.norm_(\w)\.mlp_(\w+)\.(.*)", r"render.head.middle.\1.norm_\2.\3.\4"),
    (r"G_middle_(\d)\.(.*)", r"render.head.middle.\1.\2"),
    (r"up_(\d)\.norm_(\w)\.mlp_shared\.0\.(.*)", r"render.head.up_\1.norm_\2.shared.\3"),
    (r"up_(\d)\.norm_(\w)\.mlp_(\w+)\.(.*)", r"render.head.up_\1.norm_\2.\3.\4"),
    (r"up_(\d)\.(.*)", r"render.head.up_\1.\2"),
)


def _under(prefix: str, rules: Rules) -> Rules:
    return tuple((re.escape(prefix) + pattern, ours) for pattern, ours in rules)


def _keypoint_rules(prefix: str) -> Rules:
    return _under(
        prefix,
        (
            (r"predictor\.down_blocks\.down(\d)\.(.*)", r"motion.canonical.down.\1.\2"),
            (r"predictor\.up_blocks\.up(\d)\.(.*)", r"motion.canonical.up.\1.\2"),
            (r"predictor\.conv\.(.*)", r"motion.canonical.fold.\1"),
            (r"kp\.(.*)", r"motion.canonical.heat.\1"),
            (r"down\.weight", r"motion.canonical.shrink.weight"),
        ),
    )


def _pose_rules() -> Rules:
    """zhanglonghao1992's estimator numbers its layers one by one; ours are one list of stages."""
    trunk = "motion.pose.trunk"
    rules: list[tuple[str, str]] = [(r"(conv|norm)1\.(.*)", rf"{trunk}.\1.\2")]
    at = 0
    for layer, (single, several, count) in {2: (0, 1, 3), 3: (2, 3, 3), 4: (4, 5, 5), 5: (6, 7, 2)}.items():
        rules.append((rf"(conv|norm){layer}\.(.*)", rf"{trunk}.stages.{at}.\1.\2"))
        at += 1
        if single:
            rules += _bottleneck(rf"block{single}", f"{trunk}.stages.{at}")
            at += 1
        for index in range(count):
            rules += _bottleneck(rf"block{several}\.b{several}_{index}", f"{trunk}.stages.{at}")
            at += 1
    rules += [
        (r"fc_(yaw|pitch|roll)\.(.*)", r"motion.pose.pose.\1.\2"),
        (r"fc_t\.(.*)", r"motion.pose.pose.translation.\1"),
        (r"fc_exp\.(.*)", r"motion.pose.delta.\1"),
    ]
    return _under("he_estimator.", tuple(rules))


def _bottleneck(theirs: str, ours: str) -> list[tuple[str, str]]:
    return [
        (theirs + r"\.skip\.(.*)", rf"{ours}.skip.0.\1"),
        (theirs + r"\.norm4\.(.*)", rf"{ours}.skip.1.\1"),
        (theirs + r"\.(.*)", rf"{ours}.\1"),
    ]


def _zhanglonghao(keypoints: str, head: Rules) -> Rules:
    generator = _under("dense_motion_network.", _FIELD) + _APPEARANCE + _WARPED + head
    return _under("generator.", generator) + _keypoint_rules(keypoints) + _pose_rules()


_LIVEPORTRAIT: Rules = (
    _under("dense_motion_network.", _FIELD)
    + _APPEARANCE
    + _WARPED
    + _SPADE
    + _under(
        "detector.",
        (
            (r"downsample_layers\.(.*)", r"motion.pose.down.\1"),
            (r"stages\.(\d)\.(\d)\.dwconv\.(.*)", r"motion.pose.stages.\1.\2.depthwise.\3"),
            (r"stages\.(\d)\.(\d)\.pwconv1\.(.*)", r"motion.pose.stages.\1.\2.widen.\3"),
            (r"stages\.(\d)\.(\d)\.pwconv2\.(.*)", r"motion.pose.stages.\1.\2.narrow.\3"),
            (r"stages\.(\d)\.(\d)\.grn\.(.*)", r"motion.pose.stages.\1.\2.response.\3"),
            (r"stages\.(\d)\.(\d)\.norm\.(.*)", r"motion.pose.stages.\1.\2.norm.\3"),
            (r"norm\.(.*)", r"motion.pose.norm.\1"),
            (r"fc_(yaw|pitch|roll)\.(.*)", r"motion.pose.pose.\1.\2"),
            (r"fc_t\.(.*)", r"motion.pose.pose.translation.\1"),
            (r"fc_kp\.(.*)", r"motion.pose.canonical.\1"),
            (r"fc_exp\.(.*)", r"motion.pose.delta.\1"),
            (r"fc_scale\.(.*)", r"motion.pose.scale.\1"),
        ),
    )
)


def _zhengkw() -> Rules:
    rules: list[tuple[str, str]] = []

    def block(theirs: str, ours: str) -> None:
        rules.extend([(theirs + r"\.layers\.0\.(\w+)", rf"{ours}.conv.\g<{_groups(theirs) + 1}>"),
                      (theirs + r"\.layers\.1\.(\w+)", rf"{ours}.norm.\g<{_groups(theirs) + 1}>")])  # fmt: skip

    def residual(theirs: str, ours: str) -> None:  # norm, activation, convolution, twice
        for index in (0, 1):
            for layer, name in ((0, "norm"), (2, "conv")):
                rules.append((rf"{theirs}\.(\d)\.layers\.{index}\.layers\.{layer}\.(\w+)",
                              rf"{ours}.\1.{name}{index + 1}.\2"))  # fmt: skip

    block(r"afe\.in_conv", "reference.first")
    block(r"afe\.down\.(\d)\.layers\.0", r"reference.down.\1")
    rules.append((r"afe\.mid_conv\.(\w+)", r"reference.fold.\1"))
    residual(r"afe\.res", "reference.residuals")
    block(r"ckd\.down\.(\d)\.layers\.0", r"motion.canonical.down.\1")
    rules.append((r"ckd\.mid_conv\.(\w+)", r"motion.canonical.fold.\1"))
    block(r"ckd\.up\.(\d)\.layers\.1", r"motion.canonical.up.\1")
    rules.append((r"ckd\.out_conv\.(\w+)", r"motion.canonical.heat.\1"))
    block(r"hpe_ede\.pre_layers\.0", "motion.pose.trunk")
    stage = r"hpe_ede\.res_layers\.(\d+)"
    for layer, name in ((0, "conv"), (1, "norm")):
        rules.append((rf"{stage}\.layers\.0\.layers\.{layer}\.(\w+)", rf"motion.pose.trunk.stages.\1.{name}1.\2"))
        rules.append((rf"{stage}\.layers\.1\.layers\.{layer}\.(\w+)", rf"motion.pose.trunk.stages.\1.{name}2.\2"))
        rules.append((rf"{stage}\.layers\.2\.layers\.{layer}\.(\w+)", rf"motion.pose.trunk.stages.\1.{name}3.\2"))
        rules.append(
            (rf"{stage}\.down_sample\.layers\.{layer}\.(\w+)", rf"motion.pose.trunk.stages.\1.skip.{layer}.\2")
        )
    rules.append((r"hpe_ede\.fc_(yaw|pitch|roll)\.(\w+)", r"motion.pose.pose.\1.\2"))
    rules.append((r"hpe_ede\.fc_t\.(\w+)", r"motion.pose.pose.translation.\1"))
    rules.append((r"hpe_ede\.fc_delta\.(\w+)", r"motion.pose.delta.\1"))
    rules.append((r"mfe\.compress\.(\w+)", r"render.motion_field.squeeze.\1"))
    block(r"mfe\.down\.(\d)\.layers\.0", r"render.motion_field.hourglass.down.\1")
    block(r"mfe\.up\.(\d)\.layers\.1", r"render.motion_field.hourglass.up.\1")
    rules.append((r"mfe\.(mask|occlusion)_conv\.(\w+)", r"render.motion_field.\1.\2"))
    block(r"generator\.in_conv", "render.warped.third")
    rules.append((r"generator\.mid_conv\.(\w+)", r"render.warped.fourth.\1"))
    residual(r"generator\.res", "render.head.residuals")
    block(r"generator\.up\.(\d)\.layers\.1", r"render.head.up.\1")
    rules.append((r"generator\.out_conv\.(\w+)", r"render.head.final.\1"))
    return tuple(rules)


def _groups(pattern: str) -> int:
    return re.compile(pattern).groups


_GENERATOR = {
    "generator": "generator.dense_motion_network.mask.weight",
    "he_estimator": "he_estimator.fc_exp.weight",
}
_SPADE_HEAD = _under("decoder.", _SPADE)
_ZH_MASK = "generator.dense_motion_network.mask.weight"
_NC = "CC BY-NC 4.0: no commercial use"
_DETECTED = {**_GENERATOR, "kp_detector": "kp_detector.kp.weight"}
FAMILIES: dict[str, Family] = {
    "zhanglonghao": Family(
        title="zhanglonghao1992's face-vid2vid, SPADE head",
        licence=_NC,
        needs=_DETECTED,
        rules=_zhanglonghao("kp_detector.", _SPADE_HEAD),
        mask=_ZH_MASK,
        crop=_VOX,
    ),
    "zhanglonghao-original": Family(
        title="zhanglonghao1992's face-vid2vid, original head",
        licence=_NC,
        needs=_DETECTED,
        rules=_zhanglonghao("kp_detector.", _ORIGINAL),
        mask=_ZH_MASK,
        crop=_VOX,
    ),
    "zhanglonghao-beta": Family(
        title="zhanglonghao1992's first release or GFVC's FV2V, which is the same network",
        licence=f"{_NC} (GFVC gives none)",
        needs=_DETECTED,
        rules=_zhanglonghao("kp_detector.", _ORIGINAL),
        mask=_ZH_MASK,
        crop=_VOX,
    ),
    "sadtalker": Family(
        title="SadTalker's renderer",
        licence="Apache-2.0",
        needs={**_GENERATOR, "kp_extractor": "kp_extractor.kp.weight"},
        rules=_zhanglonghao("kp_extractor.", _SPADE_HEAD),
        mask=_ZH_MASK,
        crop="Its renderer ignores sideways and depth translation, so a head that moves across the crop stays where it "
        "is; keep the face centred.",
    ),
    "zhengkw": Family(
        title="zhengkw18's face-vid2vid",
        licence="none given: ask the author",
        needs={
            "afe": "afe.mid_conv.weight",
            "ckd": "ckd.out_conv.weight",
            "hpe_ede": "hpe_ede.fc_delta.weight",
            "mfe": "mfe.mask_conv.weight",
            "generator": "generator.out_conv.weight",
        },
        rules=_zhengkw(),
        mask="mfe.mask_conv.weight",
        crop=_VOX,
    ),
    "liveportrait": Family(
        title="LivePortrait",
        licence="MIT",
        needs={
            "appearance_feature_extractor": "resblocks_3d.3dr0.conv1.weight",
            "motion_extractor": "detector.fc_kp.weight",
            "warping_module": "dense_motion_network.mask.weight",
            "spade_generator": "G_middle_0.conv_0.weight",
        },
        rules=_LIVEPORTRAIT,
        mask="dense_motion_network.mask.weight",
        crop="Trained on crops turned upright and 2.3 times as large as the face; the codec does not turn its crop, so "
        "a head rolled by more than about 20 degrees comes out worse, and without stitching paste-back shows a seam.",
    ),
}


def detect(tensors: Mapping[str, Tensor], wanted: str | None = None) -> str:
    """The family of a checkpoint, by its names; ``wanted`` is taken as it is when its networks are all there."""
    if wanted == "gfvc":
        wanted = "zhanglonghao-beta"
    if wanted is not None and wanted not in FAMILIES:
        raise PackError(f"No family is called {wanted!r}; there are {', '.join(FAMILIES)}.")
    name = wanted or _likely(tensors)
    missing = [part for part, tensor in FAMILIES[name].needs.items() if tensor not in tensors]
    if missing:
        hint = ""
        if name == "sadtalker" and missing == ["he_estimator"]:
            hint = " SadTalker drives its renderer from audio; give a zhanglonghao1992 checkpoint as a second file."
        raise PackError(
            f"The files look like {FAMILIES[name].title} without {', '.join(missing)}: give them all.{hint}"
        )
    return name


def _likely(tensors: Mapping[str, Tensor]) -> str:
    def has(start: str) -> bool:
        return any(name.startswith(start) for name in tensors)

    if has("afe.") or has("hpe_ede."):
        return "zhengkw"
    if has("kp_extractor.") and has("generator."):
        return "sadtalker"
    if has("generator.decoder.G_middle_0"):
        return "zhanglonghao"
    if has("generator.resblocks_2d."):  # the first release looked at whole pictures and so has no Gaussian for L
        return "zhanglonghao-original" if "kp_detector.down.weight" in tensors else "zhanglonghao-beta"
    if any(tensor in tensors for tensor in FAMILIES["liveportrait"].needs.values()):
        return "liveportrait"
    shown = ", ".join(sorted({name.split(".")[0] for name in tensors})[:6])
    raise PackError(
        f"No family of checkpoints known here has these tensors ({len(tensors)}, under {shown}); known are "
        f"{', '.join(FAMILIES)}."
    )


def configure(family: str, tensors: Mapping[str, Tensor], size: int = 256) -> ModelConfig:
    """The family's settings with the sizes that the tensors have."""
    changes: dict[str, Any] = {"size": size}
    mask = tensors[FAMILIES[family].mask]
    slots = mask.shape[0] if mask.dim() == 5 else 0
    if slots < 2 or mask.shape[1] != 32 + 5 * slots:
        raise PackError(
            f"{FAMILIES[family].mask} is {tuple(mask.shape)}; a motion field of K keypoints has (K + 1, "
            "32 + 5 (K + 1), 7, 7, 7): other widths cannot be imported."
        )
    changes["keypoints"] = slots - 1
    shrink = next((t for n, t in tensors.items() if re.fullmatch(r"kp_(detector|extractor)\.down\.weight", n)), None)
    if family.startswith(("zhanglonghao", "sadtalker")):
        scales = {13: 0.25, 5: 0.5}
        if shrink is not None and shrink.shape[-1:] not in ((13,), (5,)):
            raise PackError(f"The keypoint detector's Gaussian is {tuple(shrink.shape)}; known are 13 and 5 wide ones.")
        changes["keypoint_input_scale"] = 1.0 if shrink is None else scales[shrink.shape[-1]]
    return ModelConfig.community(family, **changes)


def rename(family: str, tensors: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict for ``build(config)``, and the names of tensors that no network of ours uses.

    Raises PackError that names the first tensors that are missing or have another shape.
    """
    rules = [(re.compile(pattern), ours) for pattern, ours in FAMILIES[family].rules]
    with torch.device("meta"):
        wanted = build(config).state_dict()
    state: dict[str, Tensor] = {}
    source: dict[str, str] = {}
    unused = []
    for name, tensor in tensors.items():
        ours = next((match.expand(to) for rule, to in rules if (match := rule.fullmatch(name))), None)
        if ours is None or ours not in wanted:
            unused.append(name)
        else:
            state[ours], source[ours] = tensor, name
    if family == "zhengkw":
        _reorder(state, config.keypoints)
    for name in wanted:
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise PackError(
            f"The files look like {FAMILIES[family].title} but lack {len(missing)} of {len(wanted)} tensors, first "
            f"those that become {', '.join(missing[:3])}: another version of it, or a file cut short."
        )
    for name, value in wanted.items():
        if state[name].shape != value.shape and state[name].numel() == value.numel() and ".response." in name:
            state[name] = state[name].reshape(value.shape)  # (1, 1, 1, C) in the file
        if state[name].shape != value.shape:
            raise PackError(
                f"{source.get(name, name)} is {tuple(state[name].shape)} where {FAMILIES[family].title} with "
                f"{config.keypoints} keypoints has {tuple(value.shape)}: another version of it cannot be imported."
            )
        if state[name].is_floating_point():
            state[name] = state[name].float()
            if not bool(torch.isfinite(state[name]).all()):
                raise PackError(f"{source.get(name, name)} holds NaN or infinity: the checkpoint is damaged.")
    return state, unused


def _reorder(state: dict[str, Tensor], keypoints: int) -> None:
    """zhengkw18 joins (input, U-Net's output), we join them the other way round."""
    seen = 5 * (keypoints + 1)
    field = "render.motion_field"
    for name, repeat in ((f"{field}.mask.weight", 1), (f"{field}.occlusion.weight", 16)):
        if name in state and state[name].dim() > 1:  # a wrong shape is named later
            first = seen * repeat
            state[name] = torch.cat([state[name][:, first:], state[name][:, :first]], 1)

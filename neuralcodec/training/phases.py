"""What each training phase trains, on which batches, against which losses. Knows no files, clocks or optimizers.

motion       L, H, Delta of `portrait` on tight face pictures, guided by landmark labels
render       F, M, G of `portrait`, driven by labels
joint        everything at once on picture pairs: the paper's six losses for `paper`; for `portrait` those of render,
             with landmark guidance in place of the unsupervised ones and rendered faces that must read like true ones
adversarial  joint plus a discriminator (hinge and feature matching)

The last three are quantization-aware where tables are given: the renderer then sees motion as a decoder has it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralcodec.models import MotionOutput, Networks
from neuralcodec.models.discriminator import Discriminator
from neuralcodec.models.portrait import EYES, MOUTH, PATCH, PATCH_DOWN, PATCH_GROW
from neuralcodec.quantizer import MotionTables
from neuralcodec.training.data import PORTRAIT_POINTS, Clip, Frames, gaps, random_pairs, random_patches
from neuralcodec.training.losses import (
    LossWeights,
    RandomWarp,
    discriminator_hinge,
    equivariance_loss,
    expression_loss,
    feature_matching,
    generator_hinge,
    gradient_loss,
    head_pose_loss,
    keypoint_prior,
    landmark_loss,
    ms_ssim_loss,
)

PHASES = ("motion", "render", "joint", "adversarial")
WEIGHTS = LossWeights()
JITTER = 0.004  # picture units (half a pixel of 256): stands in for the motion network's error where labels drive
UNSENT = 0.05  # share of pairs rendered without the scene's mesh, as an avatar is
FINE = torch.ones(len(PORTRAIT_POINTS))  # weight of each keypoint: eyes and lips decide what people see
FINE[EYES], FINE[MOUTH] = 2.5, 2.5
# irises, nose tip, corners of the mouth: what recognition networks are aligned to
RECOGNIZED = [PORTRAIT_POINTS.index(point) for point in (468, 473, 1, 61, 291)]
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Perception:
    """The perceptual networks at hand; any may be missing (nothing can be downloaded on the user's behalf)."""

    face: nn.Module | None = None
    vgg: nn.Module | None = None
    identity: nn.Module | None = None

    def __call__(self, picture: Tensor, target: Tensor, keypoints: Tensor) -> Terms:
        terms = {}
        if self.face is not None:
            terms["face net"] = self.face(picture, target, keypoints)
        if self.vgg is not None:
            terms["vgg"] = WEIGHTS.perceptual * self.vgg(picture, target)
        if self.identity is not None:
            terms["identity"] = 0.8 * self.identity(picture, target, keypoints[:, RECOGNIZED, :2])
        return terms


class Phase:
    """One phase over one set of networks. ``trained`` are its modules, ``critic`` the discriminator if it has one."""

    def __init__(
        self,
        name: str,
        nets: Networks,
        perceive: Perception,
        tables: MotionTables | None = None,
        coded: float = 0.0,
        near: float = 0.3,
        still: float = 0.0,
        before: float = 0.0,
        steady: float = 0.0,
        device: Any = "cpu",
    ) -> None:
        self.name, self.nets, self.perceive, self.tables, self.steady = name, nets, perceive, tables, steady
        self.shares = {"coded": coded, "near": near, "still": still, "before": before}  # of the pairs, see random_pairs
        self.trained: list[nn.Module] = {
            "motion": [nets.motion],
            "render": [nets.reference, nets.render],
        }.get(name, [nets.motion, nets.reference, nets.render])
        gan = name == "adversarial" or (name == "joint" and nets.config.name != "portrait")
        self.critic = Discriminator(nets.config).to(device) if gan else None
        guided = nets.config.name == "portrait"  # then the motion network as it was says how a rendered face reads
        self.witness = deepcopy(nets.motion).eval().requires_grad_(False) if guided else None

    def batch(self, clips: list[Clip], count: int, random: torch.Generator) -> tuple[Any, Any]:
        if self.name == "motion":
            return random_patches(clips, count, PATCH, random, PATCH_GROW, PATCH_DOWN)
        return random_pairs(
            clips, count, random, tables=self.tables, roundings=2 if self.steady else 1, **self.shares
        )

    def terms(self, a: Any, b: Any) -> Terms:
        """Loss terms of the trained modules; "psnr" among them is for the log, "rendered" and, where found ones and not
        labels drove it, "keypoints" for the discriminator."""
        if self.name == "motion":
            return motion_terms(self.nets, a, b)
        if self.name == "render":
            return render_terms(self.nets, a, b, self.perceive)
        if self.nets.config.name == "portrait":
            return guided_terms(self.nets, a, b, self.perceive, self.critic, self.witness, self.steady)
        return joint_terms(self.nets, a, b, self.perceive, self.critic)

    def critic_loss(self, real: Tensor, rendered: Tensor, keypoints: Tensor) -> Tensor:
        assert self.critic is not None
        pairs = zip(self.critic(real, keypoints), self.critic(rendered.detach(), keypoints), strict=True)
        return torch.stack([discriminator_hinge(r[0], f[0]) for r, f in pairs]).mean()


def motion_terms(nets: Networks, frames: Frames, face: Tensor) -> Terms:
    """Landmark guidance on tight patches: composed keypoints, pose, identity shape, confidence."""
    network: Any = nets.motion
    rotation, shift, size, canonical, delta, logit = network.on_patch(frames.image)
    composed = size[:, :, None] * ((canonical + delta) @ rotation) + F.pad(shift, (0, 1))[:, None]
    fine = FINE.to(composed.device)[:, None] * torch.tensor([1.0, 1.0, 0.4], device=composed.device)

    def mean(x: Tensor) -> Tensor:  # over the patches that show a face
        return (x.flatten(1).mean(1) * face).sum() / face.sum().clamp_min(1)

    sizes = (torch.log(size[:, 0].float()) - torch.log(frames.scale)).abs()[:, None]
    return {
        "points": 20 * mean((composed - frames.keypoints).abs() * fine),
        "gaps": 20 * mean((gaps(composed) - gaps(frames.keypoints)).abs()),
        "turn": 5 * mean((rotation - frames.rotation).abs()),
        "place": 5 * mean((shift - frames.translation).abs()) + 5 * mean(sizes),
        "shape": 5 * mean((canonical - frames.shape).abs()),
        "face": 0.2 * F.binary_cross_entropy_with_logits(logit[:, 0].float(), face),
    }


def render_terms(nets: Networks, source: Frames, driving: Frames, perceive: Perception) -> Terms:
    """Rendering one frame from another, driven by labels."""

    def jittered(points: Tensor) -> Tensor:
        return points + JITTER * torch.randn_like(points) * torch.tensor([1.0, 1.0, 0.5], device=points.device)

    points, turn = driving.decoded[0] if driving.decoded else (driving.keypoints, driving.rotation)
    picture, copied, _ = nets.render_full(
        source.image, *nets.reference(source.image),
        xs=jittered(source.keypoints), rs=source.rotation, xd=jittered(points), rd=turn,
        scene=sent_scene(driving),
    )  # fmt: skip
    return {
        **picture_terms(picture, copied, driving, perceive),
        "psnr": psnr(picture.detach(), driving.image),
        "rendered": picture.detach(),
    }


def joint_terms(
    nets: Networks, source: Frames, driving: Frames, perceive: Perception, critic: Discriminator | None = None
) -> Terms:
    """The paper's training step (section 3.3): keypoints from both pictures, the driving one made from the source."""
    found_s, found_d = nets.motion(source.image, None), nets.motion(driving.image, None)
    xs, xd = found_s.keypoints(), found_d.keypoints(found_s.canonical)
    warp = RandomWarp.sample(len(xs), device=xs.device)
    found_w = nets.motion(warp.image(driving.image), None)
    out = nets.render(
        source.image, *nets.reference(source.image), source_keypoints=xs, source_rotation=found_s.rotation,
                      driving_keypoints=xd, driving_rotation=found_d.rotation)  # fmt: skip
    return {
        "equivariance": WEIGHTS.equivariance * equivariance_loss(found_d.keypoints(), found_w.keypoints(), warp),
        "pose": WEIGHTS.head_pose / 20 * head_pose_loss(found_d.rotation, driving.rotation),
        "expression": WEIGHTS.expression * expression_loss(found_d.delta),
        "prior": WEIGHTS.keypoint_prior * keypoint_prior(found_d.keypoints()),
        "edges": 12 * gradient_loss(out, driving.image, 3, face_weight(driving.keypoints, out.shape[-1])),
        **perceive(out, driving.image, driving.keypoints),
        **(judged(critic, out, driving.image, xd) if critic else {}),
        "psnr": psnr(out.detach(), driving.image),
        "rendered": out.detach(),
        "keypoints": xd.detach(),
    }


def guided_terms(
    nets: Networks,
    source: Frames,
    driving: Frames,
    perceive: Perception,
    critic: Discriminator | None = None,
    witness: nn.Module | None = None,
    steady: float = 0.0,
) -> Terms:
    """`portrait` as the codec runs it: found motion drives the renderer, whose error then trains the motion network.

    Labels keep the keypoints where their names say; the picture decides the rest, below what labels can tell. With
    ``steady`` each pair is drawn twice, the motion rounded in two ways, and the two are held to each other: what the
    steps of coded motion change is what a still head trembles by.
    """

    def found(frames: Frames) -> MotionOutput:
        box = frames.box
        jitter = 0.04 * box[:, 2:] * torch.randn_like(box)
        return nets.motion(frames.image, box + jitter)  # as following a face does

    a, b = found(source), found(driving)
    beside = torch.cat([source.translation + away(source.scale), source.scale[:, None]], 1)
    elsewhere = nets.motion(source.image, beside).confidence
    xs, xd, turned = a.keypoints(), b.keypoints(a.canonical), b.rotation
    if driving.decoded:  # just what the quantizer adds, to what was found
        errors = [(points - driving.keypoints, turn - driving.rotation) for points, turn in driving.decoded]
    else:  # about what it adds
        times = 2 if steady else 1
        errors = [(0.5 * JITTER * torch.randn_like(xd), torch.zeros_like(turned)) for _ in range(times)]

    def drawn(value: Tensor) -> Tensor:
        return torch.cat([value] * len(errors))

    picture, copied, _ = nets.render_full(
        drawn(source.image), *map(drawn, nets.reference(source.image)), xs=drawn(xs), rs=drawn(a.rotation),
        xd=torch.cat([xd + off for off, _ in errors]), rd=torch.cat([turned + turn for _, turn in errors]),
        scene=drawn(sent_scene(driving)),
    )  # fmt: skip
    wanted = driving.each(drawn)
    fine, first = FINE.to(xs.device), picture[: len(xs)]
    return {
        **picture_terms(picture, copied, wanted, perceive),
        **({"steady": steady * (first - picture[len(xs) :]).abs().mean()} if steady else {}),
        **(witnessed(witness, picture, driving, fine) if witness else {}),
        **(judged(critic, first, driving.image, driving.keypoints) if critic else {}),
        "points": 10 * (landmark_loss(a.keypoints(), source.keypoints, fine)
                        + landmark_loss(b.keypoints(), driving.keypoints, fine)),
        "gaps": 10 * (gaps(b.keypoints()) - gaps(driving.keypoints)).abs().mean(),
        "turn": 2 * (b.rotation - driving.rotation).abs().mean(),
        "face": 0.1 * (-torch.log(b.confidence.clamp_min(1e-4)) - torch.log((1 - elsewhere).clamp_min(1e-4))).mean(),
        "psnr": psnr(first.detach(), driving.image),
        "rendered": first.detach(),
    }  # fmt: skip


def witnessed(witness: Any, picture: Tensor, driving: Frames, fine: Tensor) -> Terms:
    """Keypoints and openings that a frozen motion network finds in rendered pictures (one or more batches of them,
    joined), held to those in the true ones."""
    times = len(picture) // len(driving.image)
    with torch.no_grad():
        true = witness(driving.image, driving.box).keypoints().repeat(times, 1, 1)
    found = witness(picture, driving.box.repeat(times, 1)).keypoints()
    apart = landmark_loss(found, true, fine)
    return {"seen": 5 * apart, "seen gaps": 20 * (gaps(found) - gaps(true)).abs().mean()}


def picture_terms(picture: Tensor, copied: Tensor, wanted: Frames, perceive: Perception) -> Terms:
    """What a rendered picture is held to: colours and edges, most at eyes and mouth, and a face network's features."""
    weight = face_weight(wanted.keypoints, picture.shape[-1])
    return {
        "picture": 5 * ((picture - wanted.image).abs() * weight).mean(),
        "copied": 1.5 * ((copied - wanted.image).abs() * weight).mean(),
        "edges": 12 * gradient_loss(picture, wanted.image, 3, weight),
        "ms_ssim": 3 * ms_ssim_loss(picture, wanted.image),
        **perceive(picture, wanted.image, wanted.keypoints),
    }


def sent_scene(driving: Frames) -> Tensor:
    """The scene's mesh as a receiver has it: rounded, and now and then not sent at all."""
    assert driving.scene is not None
    rounded = driving.scene + JITTER * torch.randn_like(driving.scene)
    return rounded * (torch.rand(len(rounded), 1, 1, device=rounded.device) > UNSENT)


def away(scale: Tensor) -> Tensor:
    """Steps (B, 2) from a face of this scale (B,) to where it is not, in random directions."""
    aside = torch.randn(len(scale), 2, device=scale.device)
    return F.normalize(aside, dim=1) * (1.5 + torch.rand(len(scale), 1, device=scale.device)) * scale[:, None]


def judged(critic: Discriminator, picture: Tensor, real: Tensor, keypoints: Tensor) -> Terms:
    """L_G for the generator: hinge plus feature matching, over the discriminator's scales."""
    made, wanted = critic(picture, keypoints), critic(real, keypoints)
    hinge = torch.stack([generator_hinge(score) for score, _ in made]).mean()
    match = torch.stack([feature_matching(a[1], b[1]) for a, b in zip(made, wanted, strict=True)]).mean()
    return {"hinge": WEIGHTS.adversarial * 0.1 * hinge, "features": WEIGHTS.feature_matching * 0.1 * match}


def face_weight(points: Tensor, size: int) -> Tensor:
    """Per-pixel weight (B, 1, S, S): 1, rising to 5 at the eyes and 7 at the mouth of keypoints (B, 30, 3)."""
    axis = torch.linspace(-1, 1, 64, device=points.device)
    plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    centres = torch.stack([points[:, 0:4].mean(1), points[:, 4:8].mean(1), points[:, MOUTH].mean(1)], 1)[..., :2]
    reach = (points[:, 0, :2] - points[:, 4, :2]).norm(dim=1).clamp_min(0.1)[:, None, None, None] * 0.3
    bells = torch.exp(-((plane - centres[:, :, None, None]) ** 2).sum(-1) / (2 * reach**2))
    bells = bells * torch.tensor([4.0, 4.0, 6.0], device=points.device)[:, None, None]
    return 1 + F.interpolate(bells.amax(1, keepdim=True), size=(size, size), mode="bilinear")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return (-10 * torch.log10(((a.clamp(0, 1) - b) ** 2).mean((1, 2, 3)))).mean()

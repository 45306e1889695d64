"""Trains a model pack's networks: one loop for every phase, CPU or CUDA, resumable, time-boxed.

    python -m neuralcodec.training.train DATA --phase motion --minutes 30 --out runs/portrait
    python -m neuralcodec.training.train DATA --phase render --size 128 --minutes 60 --out runs/portrait

Phases share one checkpoint (``OUT/networks.safetensors``, its running mean beside it as ``average.safetensors``,
optimizer state in
``OUT/PHASE.safetensors``) and one log (``OUT/log.jsonl``); a phase started again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from neuralcodec.models.portrait import (
    PATCH,
    PATCH_DOWN,
    PATCH_GROW,
    PortraitMotion,
    PortraitReference,
    PortraitRenderer,
)
from neuralcodec.training.data import Clip, Frames, gather, load_clips, mean_shape, random_pairs, random_patches

FINE = torch.ones(30)  # weight of each keypoint in the motion losses: eyes and lips decide what people see
FINE[0:10], FINE[16:26] = 2.5, 2.5


@dataclass(frozen=True)
class Options:
    """What one run needs; see the command's --help for units and defaults."""

    data: Path
    out: Path
    phase: str = "render"
    minutes: float = 10.0
    size: int = 256
    batch: int = 16
    rate: float = 6e-4
    cache: Path = Path("cache")
    face_net: Path | None = None
    seed: int = 0
    save_every: int = 500
    sample_every: int = 2000
    workers: int = 1
    limit: int | None = None


def face_weight(points: Tensor, size: int) -> Tensor:
    """Per-pixel weight (B, 1, S, S): 1, rising to 5 at the eyes and 7 at the mouth of keypoints (B, 30, 3)."""
    axis = torch.linspace(-1, 1, 64, device=points.device)
    plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    centres = torch.stack([points[:, 0:4].mean(1), points[:, 4:8].mean(1), points[:, 16:26].mean(1)], 1)[..., :2]
    reach = (points[:, 0, :2] - points[:, 4, :2]).norm(dim=1).clamp_min(0.1)[:, None, None, None] * 0.3
    bells = torch.exp(-((plane - centres[:, :, None, None]) ** 2).sum(-1) / (2 * reach**2))
    bells = bells * torch.tensor([4.0, 4.0, 6.0], device=points.device)[:, None, None]
    return 1 + F.interpolate(bells.amax(1, keepdim=True), size=(size, size), mode="bilinear")


def gradient_pyramid(a: Tensor, b: Tensor, weight: Tensor, levels: int = 3) -> Tensor:
    """L1 between the horizontal and vertical differences of both pictures over a pyramid: edges in place, no blur."""
    total = a.new_zeros(())
    for _ in range(levels):
        for dim in (2, 3):
            w = weight.narrow(dim, 1, weight.shape[dim] - 1)
            total = total + ((torch.diff(a, dim=dim) - torch.diff(b, dim=dim)).abs() * w).mean()
        a, b, weight = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), F.avg_pool2d(weight, 2)
    return total


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return (-10 * torch.log10(((a.clamp(0, 1) - b) ** 2).mean((1, 2, 3)))).mean()


class Networks(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.motion, self.reference, self.render = (
            PortraitMotion(config),
            PortraitReference(config),
            PortraitRenderer(config),
        )


def motion_loss(nets: Any, frames: Frames, face: Tensor) -> dict[str, Tensor]:
    """Landmark guidance on tight patches: composed keypoints, pose, identity shape, confidence."""
    rotation, shift, size, canonical, delta, logit = nets.motion.on_patch(frames.image)
    composed = size[:, :, None] * ((canonical + delta) @ rotation) + F.pad(shift, (0, 1))[:, None]
    size_, composed = size.float(), composed.float()
    fine = FINE.to(composed.device)[:, None] * torch.tensor([1.0, 1.0, 0.4], device=composed.device)

    def mean(x: Tensor) -> Tensor:  # over the patches that show a face
        return (x.flatten(1).mean(1) * face).sum() / face.sum().clamp_min(1)

    # lid and lip openings are a few pixels: their differences get a term of their own
    gap = lambda x: torch.stack([x[:, a, 1] - x[:, b, 1] for a, b in ((3, 2), (7, 6), (19, 18), (21, 20))], 1)  # noqa: E731
    return {
        "points": 20 * mean((composed - frames.keypoints).abs() * fine),
        "gaps": 20 * mean((gap(composed) - gap(frames.keypoints)).abs()),
        "turn": 5 * mean((rotation - frames.rotation).abs()),
        "place": 5 * mean((shift - frames.translation).abs())
        + 5 * mean((torch.log(size_[:, 0]) - torch.log(frames.scale)).abs()[:, None]),
        "shape": 5 * mean((canonical - frames.shape).abs()),
        "face": 0.2 * F.binary_cross_entropy_with_logits(logit[:, 0].float(), face),
    }


def render_loss(
    nets: Any, source: Frames, driving: Frames, perceive: Callable[..., Tensor] | None, jitter: float
) -> dict[str, Tensor]:
    """Rendering of one frame from another driven by labels; ``jitter`` (picture units) stands in for the motion
    network's error."""
    noise = lambda x: x + jitter * torch.randn_like(x) * torch.tensor([1.0, 1.0, 0.5], device=x.device)  # noqa: E731
    picture, copied, _ = nets.render.render_full(
        source.image,
        *nets.reference(source.image),
        noise(source.keypoints),
        source.rotation,
        noise(driving.keypoints),
        driving.rotation,
    )
    weight = face_weight(driving.keypoints, picture.shape[-1])
    out = {
        "picture": 5 * ((picture - driving.image).abs() * weight).mean(),
        "copied": 1.5 * ((copied - driving.image).abs() * weight).mean(),
        "edges": 2 * gradient_pyramid(picture, driving.image, weight),
    }
    if perceive is not None:
        out["face net"] = perceive(picture, driving.image, driving.keypoints)
    with torch.no_grad():
        out["psnr"] = psnr(picture, driving.image)
    return out


class Supply(torch.utils.data.IterableDataset[Any]):
    """Endless batches of one phase, made in worker processes so that the network never waits."""

    def __init__(self, clips: list[Clip], options: Options) -> None:
        self.clips, self.options = clips, options

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        o = self.options
        rank = int(os.environ.get("RANK", 0))
        random = torch.Generator().manual_seed(
            o.seed + 7919 * (1 + rank) + (info.id if info else 0) * 104729 + time.time_ns() % 10**6
        )
        while True:
            if o.phase == "motion":
                yield random_patches(self.clips, o.batch, PATCH, random, PATCH_GROW, PATCH_DOWN)
            else:
                yield random_pairs(self.clips, o.batch, random)


@torch.no_grad()
def validate(
    nets: Any, clips: list[Clip], device: torch.device, sheet: Path | None, *, motion: bool = False
) -> dict[str, float]:
    """First frame as reference over each clip: PSNR of ours and of repeating it; keypoint error with ``motion``."""
    nets.eval()
    rows, pictures, errors = [], [], []
    for clip in clips:
        times = list(range(5, min(250, len(clip)), 20))
        batch = gather([(clip, 0), *((clip, t) for t in times)]).to(device)
        keypoints, rotation = batch.keypoints, batch.rotation
        if motion:
            box = torch.cat([batch.translation, batch.scale[:, None]], 1)
            r, t, s, c, d, _ = nets.motion(batch.image, box)
            keypoints, rotation = s[:, :, None] * ((c + d) @ r) + t[:, None], r
            errors.append((128 * (keypoints - batch.keypoints)[..., :2].norm(dim=2)).mean(0))
        features = [f.expand(len(times), *f.shape[1:]) for f in nets.reference(batch.image[:1])]
        first = batch.image[:1].expand(len(times), -1, -1, -1)
        drawn = nets.render.render_full(first, *features, keypoints[:1].expand(len(times), -1, -1),
        rotation[:1].expand(len(times), -1, -1),
                                        keypoints[1:], rotation[1:])[0]  # fmt: skip
        rows.append((float(psnr(drawn, batch.image[1:])), float(psnr(first, batch.image[1:]))))
        worst = int((keypoints[1:] - keypoints[:1]).abs().sum((1, 2)).argmax())
        pictures.append(torch.cat([first[0], batch.image[1 + worst], drawn[worst]], 2).cpu())
    nets.train()
    if sheet is not None:
        save_picture(sheet, torch.cat([torch.cat(pictures[i::5], 1) for i in range(5)], 2))
    ours, freeze = (sum(r[i] for r in rows) / len(rows) for i in (0, 1))
    out = {"psnr": ours, "freeze": freeze, "gain": ours - freeze, "wins": sum(a > b for a, b in rows) / len(rows)}
    if errors:
        e = torch.stack(errors)
        out |= {"px": float(e.mean()), "px_eyes_mouth": float(e[:, [*range(10), *range(16, 26)]].mean())}
    return out


def save_picture(path: Path, picture: Tensor) -> None:
    import av

    array = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy()
    with av.open(str(path), "w", format="image2") as file:
        stream: Any = file.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = array.shape[1], array.shape[0], "rgb24"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        file.mux(stream.encode(None))


def train(options: Options) -> dict[str, float]:
    o = options
    console = Console(stderr=True)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(o.seed + rank)
    o.out.mkdir(parents=True, exist_ok=True)
    size = 256 if o.phase == "motion" else o.size
    clips = load_clips(o.data, "train", o.cache, size=size, limit=o.limit)
    checks = load_clips(o.data, "val", o.cache, size=size)

    from types import SimpleNamespace

    nets = Networks(SimpleNamespace(keypoints=30, size=256))
    nets.motion.mean_shape.copy_(mean_shape(clips))
    average = Networks(SimpleNamespace(keypoints=30, size=256))
    latest, smooth, memory = (
        o.out / "networks.safetensors",
        o.out / "average.safetensors",
        o.out / f"{o.phase}.safetensors",
    )
    if latest.exists():
        nets.load_state_dict(load_file(latest))
    average.load_state_dict(load_file(smooth) if smooth.exists() else nets.state_dict())
    nets.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average.to(device).requires_grad_(False)
    parts = [nets.motion] if o.phase == "motion" else [nets.reference, nets.render]
    trained = [p for part in parts for p in part.parameters()]
    model: Any = nets
    optimizer = torch.optim.AdamW(trained, lr=o.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    step = restore(optimizer, memory)
    perceive: Any = None
    if o.face_net and o.phase != "motion":
        from neuralcodec.training.losses import FaceFeatureLoss

        perceive = FaceFeatureLoss(o.face_net).to(device)
    supply = iter(
        torch.utils.data.DataLoader(
            Supply(clips, o), batch_size=None, num_workers=o.workers, prefetch_factor=3 if o.workers else None
        )
    )
    mean: dict[str, float] = {}
    begin, done, first = time.monotonic(), 0.0, step

    def save() -> None:
        if rank == 0:
            for path, content in (
                (latest, nets.state_dict()),
                (smooth, average.state_dict()),
                (memory, optimizer_tensors(optimizer, step)),
            ):
                partial = path.with_suffix(".part")
                save_file({k: v.contiguous() for k, v in content.items()}, partial)
                partial.replace(path)

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=console, disable=rank > 0 or not console.is_terminal) as progress:
        bar = progress.add_task(o.phase, total=1.0, now="")
        while (done := (time.monotonic() - begin) / (60 * o.minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = (
                    o.rate * min(1.0, (step - first + 1) / 200) * (0.5 * (1 + math.cos(math.pi * done)) * 0.97 + 0.03)
                )
            a, b = next(supply)
            with torch.autocast(device.type, torch.bfloat16):
                if o.phase == "motion":
                    terms = motion_loss(model, a.to(device), b.to(device))
                else:
                    terms = render_loss(model, a.to(device), b.to(device), perceive, jitter=0.004)
            loss = torch.stack([v for k, v in terms.items() if k != "psnr"]).sum()
            if not torch.isfinite(loss):
                raise SystemExit(
                    f"The loss became {float(loss)} at step {step}; the last checkpoint in {o.out} is good, "
                    "lower --rate and resume."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if world > 1:
                for p in trained:
                    torch.distributed.all_reduce(p.grad, op=torch.distributed.ReduceOp.AVG)
            torch.nn.utils.clip_grad_norm_(trained, 5.0)
            optimizer.step()
            step += 1
            keep = min(0.999, 1 - 1 / (step - first + 10))
            with torch.no_grad():
                for part, kept in zip(
                    parts, [average.motion] if o.phase == "motion" else [average.reference, average.render], strict=True
                ):
                    torch._foreach_lerp_(list(kept.parameters()), list(part.parameters()), 1 - keep)
                    for x, y in zip(kept.buffers(), part.buffers(), strict=True):
                        x.copy_(y)
            for key, value in terms.items():
                mean[key] = 0.99 * mean.get(key, float(value.detach())) + 0.01 * float(value.detach())
            if step % 50 == 0 and rank == 0:
                rate = (step - first) * o.batch * world / (time.monotonic() - begin)
                record = {
                    "phase": o.phase,
                    "size": o.size,
                    "step": step,
                    "samples_per_s": round(rate, 1),
                    **{k: round(v, 4) for k, v in mean.items()},
                }
                with (o.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
                progress.update(bar, completed=done, now=" ".join(f"{k} {v:.3f}" for k, v in mean.items()))
            if step % o.save_every == 0:
                save()
            if step % o.sample_every == 0 and rank == 0:
                result = validate(
                    average, checks, device, o.out / f"{o.phase}-{step:06d}.png", motion=o.phase == "motion"
                )
                with (o.out / "log.jsonl").open("a") as log:
                    log.write(
                        json.dumps({"phase": o.phase, "step": step, "val": {k: round(v, 3) for k, v in result.items()}})
                        + "\n"
                    )
    save()
    result = validate(average, checks, device, o.out / f"{o.phase}-{step:06d}.png", motion=o.phase == "motion")
    with (o.out / "log.jsonl").open("a") as log:
        log.write(
            json.dumps({"phase": o.phase, "step": step, "val": {k: round(v, 3) for k, v in result.items()}}) + "\n"
        )
    return result


def optimizer_tensors(optimizer: torch.optim.Optimizer, step: int) -> dict[str, Tensor]:
    out = {"step": torch.tensor(step)}
    for index, state in optimizer.state_dict()["state"].items():
        out |= {f"{index}.{key}": value for key, value in state.items()}
    return out


def restore(optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Load an optimizer state written by a run of the same phase; returns its step, 0 without one."""
    if not path.exists():
        return 0
    stored = load_file(path)
    content = optimizer.state_dict()
    for key, value in stored.items():
        if key != "step":
            index, name = key.split(".")
            content["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(content)
    return int(stored["step"])


def main() -> None:
    p = argparse.ArgumentParser(prog="neuralcodec.training.train", description=__doc__.splitlines()[0])
    p.add_argument("data", type=Path, help="folder with train/ and val/ as neuralcodec.training.prepare writes them")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--phase", choices=("motion", "render"), default="render")
    p.add_argument("--minutes", type=float, default=10.0)
    p.add_argument("--size", type=int, default=256, choices=(128, 256))
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--rate", type=float, default=6e-4)
    p.add_argument("--cache", type=Path, default=Path("cache"), help="folder for decoded frames (7 GB for 33,000)")
    p.add_argument("--face-net", type=Path)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--save-every", type=int, default=500)
    p.add_argument("--sample-every", type=int, default=2000)
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--limit", type=int, help="use only this many clips (rehearsals)")
    print(json.dumps(train(Options(**vars(p.parse_args())))))


if __name__ == "__main__":
    main()

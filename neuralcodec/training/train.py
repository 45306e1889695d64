"""Trains a model pack's networks: one loop for every phase, CPU or CUDA, resumable, time-boxed.

    python -m neuralcodec.training.train DATA --phase motion --minutes 30 --out runs/portrait
    python -m neuralcodec.training.train DATA --phase render --size 128 --minutes 60 --out runs/portrait

Phases (see phases.py) share one checkpoint: ``OUT/networks.safetensors``, its running mean beside it as
``average.safetensors`` (export that one), the optimizers' states in ``OUT/PHASE.safetensors``, and ``OUT/log.jsonl``.
A phase started again goes on from these; its learning rate rises and falls anew, and its running mean is soon that of
the new steps. Ctrl-C and SIGTERM save first. Several GPUs: the same command under ``torchrun --nproc-per-node N -m``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.models import ModelConfig, build
from neuralcodec.quantizer import MotionTables
from neuralcodec.runtime.engine import write_whole
from neuralcodec.training.data import Clip, gather, load_clips, load_stills, mean_shape, scenes
from neuralcodec.training.feature_networks import read_weights
from neuralcodec.training.losses import FaceFeatureLoss, IdentityLoss, PerceptualLoss
from neuralcodec.training.phases import PHASES, Perception, Phase, psnr
from neuralcodec.training.start import freeze_norms, load_graphs

NOT_LOSSES = ("psnr", "rendered", "keypoints")  # among a phase's terms
LOOK_EVERY = 10  # steps between readings of the losses: each makes a GPU's host wait for it
SAVE_SECONDS = 600  # between checkpoints at most: on a processor 500 steps can take more than an hour


@dataclass(frozen=True)
class Options:
    """What one run needs; the command's --help says each in words."""

    data: Path
    out: Path
    start: Path | None = None
    preset: str = "portrait"
    phase: str = "render"
    minutes: float = 10.0
    size: int = 256
    batch: int = 16
    rate: float = 6e-4
    cache: Path = Path("cache")
    face_net: Path | None = None
    vgg: Path | None = None
    identity: Path | None = None
    tables: Path | None = None
    coded: float = 0.0
    received: Path | None = None
    near: float = 0.3
    stills: float = 0.0
    only: Sequence[str] = ()
    before: float = 0.0
    steady: float = 0.0
    seed: int = 0
    save_every: int = 500
    sample_every: int = 2000
    workers: int = 1
    limit: int | None = None


class Supply(torch.utils.data.IterableDataset[Any]):
    """Endless batches of one phase, made in worker processes so that the network never waits."""

    def __init__(self, phase: Phase, clips: list[Clip], count: int, seed: int) -> None:
        self.phase, self.clips, self.count, self.seed = phase, clips, count, seed

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        if info is not None:
            torch.set_num_threads(1)
            for number in (signal.SIGINT, signal.SIGTERM):  # heard by the run, which ends its workers itself
                signal.signal(number, signal.SIG_IGN)
        stream = 7919 * (1 + int(os.environ.get("RANK", 0))) + 104729 * (info.id if info else 0)
        random = torch.Generator().manual_seed(self.seed + stream)
        while True:
            yield self.phase.batch(self.clips, self.count, random)


class Run:
    """A phase in progress: networks, their running mean, optimizers, and the files they live in."""

    def __init__(self, options: Options) -> None:
        o = self.options = options
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        local = os.environ.get("LOCAL_RANK", "0")
        self.device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
        if self.world > 1:
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        torch.backends.cudnn.benchmark = True  # batches are all of one shape
        torch.manual_seed(o.seed)  # the same networks on every GPU: only their gradients are exchanged
        config = ModelConfig.preset(o.preset)
        tables = MotionTables.load(o.tables) if o.tables else None
        if tables is not None and (tables.keypoints, tables.scene) != (config.keypoints, config.scene):
            raise PackError(
                f"{o.tables} is for {tables.keypoints} keypoints and a scene of {tables.scene} nodes a side; the "
                f"preset {o.preset!r} has {config.keypoints} and {config.scene}: give tables fitted to its motion."
            )
        o.out.mkdir(parents=True, exist_ok=True)
        size = 256 if o.phase == "motion" else o.size  # the motion network cuts its own picture out of a full one
        self.clips = load_clips(o.data, "train", o.cache, size=size, limit=o.limit, received=o.received)
        self.checks = load_clips(o.data, "val", o.cache, size=size)
        self.nets, self.average = build(config), build(config)
        if o.preset == "portrait":
            self.nets.motion.mean_shape.copy_(mean_shape(self.clips))  # type: ignore[operator]
        if o.stills:
            self.clips += load_stills(o.data, size=size, received=o.received)
        self.latest, self.smooth = o.out / "networks.safetensors", o.out / "average.safetensors"
        if self.latest.exists():
            fill(self.nets, self.latest)
        elif o.start is not None:
            load_graphs(self.nets, o.start)
        if self.smooth.exists():
            fill(self.average, self.smooth)
        else:
            self.average.load_state_dict(self.nets.state_dict())
        self.nets.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._train_mode()
        self.average.to(self.device).requires_grad_(False)
        perceive = Perception(
            FaceFeatureLoss(o.face_net).to(self.device) if o.face_net else None,
            PerceptualLoss(o.vgg).to(self.device) if o.vgg else None,
            IdentityLoss(o.identity).to(self.device) if o.identity else None,
        )
        self.phase = Phase(
            o.phase, self.nets, perceive, tables, o.coded, o.near, o.stills, o.before, o.steady, self.device
        )
        self.nets.requires_grad_(False)
        named = {id(p): name for name, p in self.nets.named_parameters()}
        self.trained = [
            p for part in self.phase.trained for p in part.parameters()
            if not o.only or named[id(p)].startswith(tuple(o.only))
        ]  # fmt: skip
        if not self.trained:
            raise SystemExit(f"No parameter of phase {o.phase} has a name that begins with {' or '.join(o.only)}.")
        for p in self.trained:
            p.requires_grad_(True)
        self.names = [named[id(p)] for p in self.trained]
        self.optimizer = torch.optim.AdamW(self.trained, lr=o.rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.memory = o.out / f"{o.phase}.safetensors"
        self.remembered = read_weights(self.memory) if self.memory.exists() else {}
        restore(self.optimizer, self.names, self.remembered)
        self.step = self.first = int(self.remembered.get("step", 0))
        self.critic_file = o.out / "critic.safetensors"
        self.judge: torch.optim.Optimizer | None = None
        self.judged: list[str] = []
        if self.phase.critic is not None:
            if self.critic_file.exists():
                fill(self.phase.critic, self.critic_file)
            self.judge = torch.optim.AdamW(self.phase.critic.parameters(), lr=2e-4, betas=(0.5, 0.999))
            self.judged = [f"critic.{name}" for name, _ in self.phase.critic.named_parameters()]
            restore(self.judge, self.judged, self.remembered)
        self.done = 0.0
        torch.manual_seed(o.seed + self.step + 7919 * self.rank)  # other noise on every GPU and in every run

    def _train_mode(self) -> None:
        self.nets.train()
        freeze_norms(self.nets)

    def learn(self, a: Any, b: Any, rate: float) -> dict[str, Tensor]:
        """One optimizer step on one batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        a, b = a.to(self.device), b.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            terms = self.phase.terms(a, b)
        loss = torch.stack([v.float() for k, v in terms.items() if k not in NOT_LOSSES]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._agree(self.trained)
        torch.nn.utils.clip_grad_norm_(self.trained, 5.0)
        self.optimizer.step()
        if self.judge is not None and self.phase.critic is not None:
            with torch.autocast(self.device.type, torch.bfloat16):
                keypoints = terms.get("keypoints", b.keypoints)
                verdict = self.phase.critic_loss(b.image, terms["rendered"], keypoints)
            self.judge.zero_grad(set_to_none=True)
            verdict.backward()
            self._agree(list(self.phase.critic.parameters()))
            self.judge.step()
            terms["critic"] = verdict
        self.step += 1
        self._smooth()
        return terms

    def read(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """The terms of the last step as numbers; ends the run, with nothing saved since, where one is not finite."""
        values = {key: float(value.detach()) for key, value in terms.items() if value.dim() == 0}
        if not all(map(math.isfinite, values.values())):
            kept = "the last checkpoint there is good" if self.latest.exists() else "there is no checkpoint yet"
            raise SystemExit(
                f"The losses are {values} at step {self.step} of {self.options.out}, and {kept}: lower --rate "
                "and start the command again."
            )
        return values

    def agreed(self, done: float) -> float:
        """How far the run is, 0 to 1, by the furthest clock: GPUs must take equal steps and end together, for one that
        went on alone would wait for the gradients of the others for good."""
        if self.world == 1:
            return done
        if self.step == self.first or self.step % LOOK_EVERY == 0:
            furthest = torch.tensor(done, device=self.device)
            torch.distributed.all_reduce(furthest, op=torch.distributed.ReduceOp.MAX)
            self.done = float(furthest)
        return self.done

    def _agree(self, parameters: list[Any]) -> None:
        if self.world > 1:
            for p in parameters:
                if p.grad is not None:
                    torch.distributed.all_reduce(p.grad, op=torch.distributed.ReduceOp.AVG)

    @torch.no_grad()
    def _smooth(self) -> None:
        keep = min(0.999, 1 - 1 / (self.step - self.first + 10))
        kept = dict(self.average.named_modules())
        for name, part in self.nets.named_modules():
            if part in self.phase.trained:
                torch._foreach_lerp_(list(kept[name].parameters()), list(part.parameters()), 1 - keep)
                for x, y in zip(kept[name].buffers(), part.buffers(), strict=True):
                    x.copy_(y)

    def save(self) -> None:
        """Each file whole or not at all."""
        if self.rank:
            return
        memory = {
            **self.remembered,  # of parameters that this run does not train: another may
            "step": torch.tensor(self.step),
            **optimizer_tensors(self.optimizer, self.names),
        }
        contents = {self.latest: self.nets.state_dict(), self.smooth: self.average.state_dict(), self.memory: memory}
        if self.phase.critic is not None and self.judge is not None:
            contents[self.critic_file] = self.phase.critic.state_dict()
            memory |= optimizer_tensors(self.judge, self.judged)
        for path, content in contents.items():
            write_whole(path, to_bytes({k: v.contiguous() for k, v in content.items()}))

    def log(self, record: dict[str, Any]) -> None:
        if self.rank == 0:
            head = {"phase": self.options.phase, "size": self.options.size, "step": self.step}
            with (self.options.out / "log.jsonl").open("a") as file:
                file.write(json.dumps({**head, **record}) + "\n")

    def check(self) -> dict[str, float]:
        """Validate the running mean; figures to the log, a contact sheet beside it."""
        if self.options.preset != "portrait":  # its keypoints are not the labels', so labels cannot drive it
            return {}
        sheet = self.options.out / f"{self.options.phase}-{self.step:06d}.png"
        result = validate(self.average, self.checks, self.device, sheet, motion=self.options.phase != "render")
        self.log({"val": {k: round(v, 3) for k, v in result.items()}})
        return result


def train(options: Options) -> dict[str, float]:
    """Run one phase for its minutes; returns the last validation's figures."""
    run, o = Run(options), options
    loader = torch.utils.data.DataLoader(
        Supply(run.phase, run.clips, o.batch, o.seed + run.step),
        batch_size=None,
        num_workers=o.workers,
        prefetch_factor=3 if o.workers else None,
        pin_memory=run.device.type == "cuda",
    )
    mean: dict[str, float] = {}
    terms: dict[str, Tensor] = {}
    begin = saved = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[now]}"))
    disabled = run.rank > 0 or not console.is_terminal
    showing = Progress(*columns, console=console, disable=disabled)
    with stops() as asked, showing as progress, batches(loader) as supply:
        bar = progress.add_task(o.phase, total=1.0, now="")
        while (done := run.agreed(1.0 if asked else (time.monotonic() - begin) / (60 * o.minutes))) < 1:
            warm = min(1.0, (run.step - run.first + 1) / 200)
            a, b = next(supply)
            terms = run.learn(a, b, o.rate * warm * (0.5 * (1 + math.cos(math.pi * done)) * 0.97 + 0.03))
            due = run.step % o.save_every == 0 or time.monotonic() - saved > SAVE_SECONDS
            if run.step % LOOK_EVERY == 0 or due:
                mean = {key: 0.9 * mean.get(key, value) + 0.1 * value for key, value in run.read(terms).items()}
            if run.step % 50 == 0:
                speed = (run.step - run.first) * o.batch * run.world / (time.monotonic() - begin)
                run.log({"samples_per_s": round(speed, 1), **{k: round(v, 4) for k, v in mean.items()}})
                progress.update(bar, completed=done, now=" ".join(f"{k} {v:.3f}" for k, v in mean.items()))
            if due:
                run.save()
                saved = time.monotonic()
            if run.step % o.sample_every == 0 and run.rank == 0:
                run.check()
        if terms:
            run.read(terms)  # what is saved was looked at
        run.save()
    if asked:
        raise SystemExit(f"Stopped and saved at step {run.step}; the same command goes on from there.")
    return run.check() if run.rank == 0 else {}


@contextmanager
def batches(loader: Any) -> Iterator[Iterator[Any]]:
    """What a loader hands out; its workers end with the block, however that ends: they ignore the signal by which
    Python ends them where an error's traceback keeps them alive, and it would wait for them for good."""
    supply = iter(loader)
    try:
        yield supply
    finally:
        if loader.num_workers:
            supply._shutdown_workers()


@contextmanager
def stops() -> Iterator[list[int]]:
    """The signals that asked for an end, Ctrl-C or a machine going down: the step at hand is then finished and saved. A
    second one ends at once."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
            r, t, s, c, d, _ = nets.motion(batch.image, batch.box)
            keypoints, rotation = s[:, :, None] * ((c + d) @ r) + t[:, None], r
            errors.append((128 * (keypoints - batch.keypoints)[..., :2].norm(dim=2)).mean(0))
        features = [f.expand(len(times), *f.shape[1:]) for f in nets.reference(batch.image[:1])]
        first = batch.image[:1].expand(len(times), -1, -1, -1)
        scene = scenes(gather([(clip, 0)] * len(times)), gather([(clip, t) for t in times])).to(device)
        drawn = nets.render(first, *features, keypoints[:1].expand(len(times), -1, -1),
                            rotation[:1].expand(len(times), -1, -1), keypoints[1:], rotation[1:], scene)  # fmt: skip
        rows.append((float(psnr(drawn, batch.image[1:])), float(psnr(first, batch.image[1:]))))
        worst = int((keypoints[1:] - keypoints[:1]).abs().sum((1, 2)).argmax())
        pictures.append(torch.cat([first[0], batch.image[1 + worst], drawn[worst]], 2).cpu())
    nets.train()
    if sheet is not None:
        columns = min(5, len(pictures))
        pictures += [torch.zeros_like(pictures[0])] * (-len(pictures) % columns)
        save_picture(sheet, torch.cat([torch.cat(pictures[i::columns], 1) for i in range(columns)], 2))
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


def fill(networks: nn.Module, path: Path) -> None:
    """Weights that an earlier run saved. PackError where the file is damaged or of other networks."""
    try:
        networks.load_state_dict(read_weights(path))
    except RuntimeError:  # it lists every weight there is
        raise PackError(
            f"{path} holds the weights of other networks; give the --preset it was trained with, or another --out."
        ) from None


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """What an optimizer remembers of its parameters, by their ``names``: which ones a run trains may change."""
    states = optimizer.state_dict()["state"]
    return {f"{names[index]}/{key}": value for index, state in states.items() for key, value in state.items()}


def restore(optimizer: torch.optim.Optimizer, names: Sequence[str], remembered: Mapping[str, Tensor]) -> None:
    """Give back what ``optimizer_tensors`` took of those parameters that it is there for."""
    content, index = optimizer.state_dict(), {name: i for i, name in enumerate(names)}
    for entry, value in remembered.items():
        name, _, key = entry.rpartition("/")
        if name in index:
            content["state"].setdefault(index[name], {})[key] = value
    optimizer.load_state_dict(content)


def main() -> None:
    p = argparse.ArgumentParser(prog="neuralcodec.training.train", description="Train a model pack's networks.")
    p.add_argument("data", type=Path, help="folder with train/ and val/ as neuralcodec.training.prepare writes them")
    p.add_argument("--out", type=Path, required=True, help="folder of the run: checkpoints, log, pictures")
    p.add_argument(
        "--start", type=Path, help="pack folder whose weights a new run begins with; its norms, folded, stay frozen"
    )
    p.add_argument("--preset", choices=("portrait", "paper"), default="portrait")
    p.add_argument("--phase", choices=PHASES, default="render")
    p.add_argument("--minutes", type=float, default=10.0, help="wall-clock time of this run; the rate falls over it")
    p.add_argument("--size", type=int, default=256, choices=(128, 256), help="side of the pictures trained on")
    p.add_argument("--batch", type=int, default=16, help="pairs (or patches) a step and a GPU")
    p.add_argument("--rate", type=float, default=6e-4, help="highest learning rate")
    p.add_argument("--cache", type=Path, default=Path("cache"), help="folder for decoded frames (7 GB for 33,000)")
    p.add_argument("--face-net", type=Path, help="3DDFA MobileNet weights (safetensors) for the face feature loss")
    p.add_argument("--vgg", type=Path, help="torchvision's vgg19 state dict for the paper's perceptual loss")
    p.add_argument("--identity", type=Path, help="weights of foamliu/MobileFaceNet for the identity loss")
    p.add_argument("--tables", type=Path, help="motion tables: the renderer then sees motion as the decoder will")
    p.add_argument("--coded", type=float, default=0.0, help="share of source pictures as receivers hold them")
    p.add_argument(
        "--received", type=Path, help="folder of neuralcodec.training.received: those pictures; otherwise AV1 stills"
    )
    p.add_argument("--near", type=float, default=0.3, help="share of pairs at most half a second apart")
    p.add_argument("--stills", type=float, default=0.0, help="share of pairs made of one photograph (DATA/stills*)")
    p.add_argument(
        "--before", type=float, default=0.0, help="share of pairs that show a resting head before a scene that moves"
    )
    p.add_argument(
        "--steady", type=float, default=0.0, help="weight of what coded motion's steps change; draws every pair twice"
    )
    p.add_argument(
        "--only", nargs="+", default=[], metavar="NAME",
        help="train only parameters whose names begin so, for example render.g render.up; the others stay as they are",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    p.add_argument("--sample-every", type=int, default=2000, help="steps between validations with a contact sheet")
    p.add_argument("--workers", type=int, default=1, help="processes that make batches")
    p.add_argument("--limit", type=int, help="use only this many clips (rehearsals)")
    options = Options(**vars(p.parse_args()))
    shares = {name: getattr(options, name) for name in ("coded", "near", "stills", "before")}
    if wrong := [f"--{name} is {value:g}" for name, value in shares.items() if not 0 <= value <= 1]:
        p.error(f"{wrong[0]}; a share of the pairs is 0 to 1")
    least = {"batch": 1, "save_every": 1, "sample_every": 1, "limit": 1, "workers": 0}
    counts = {name: getattr(options, name) for name in least}
    if few := [name for name, count in counts.items() if count is not None and count < least[name]]:
        p.error(f"--{few[0].replace('_', '-')} is {counts[few[0]]}; expected {least[few[0]]} or more")
    for name, value in (("minutes", options.minutes), ("rate", options.rate)):
        if not 0 < value < math.inf:
            p.error(f"--{name} is {value:g}; expected a number of more than 0")
    if not 0 <= options.steady < math.inf:
        p.error(f"--steady is {options.steady:g}; expected a weight of 0 or more")
    if options.phase == "motion" and options.preset != "portrait":
        p.error("--phase motion is for --preset portrait; the paper's networks train together: --phase joint")
    if options.tables is not None and options.preset != "portrait":
        p.error("--tables is for --preset portrait; the paper's networks learn no motion that could be rounded")
    if options.phase in ("render", "adversarial") and options.preset != "portrait":
        p.error(f"--phase {options.phase} needs keypoints that are labelled; train --preset paper with --phase joint")
    try:
        print(json.dumps(train(options)))
    except (NeuralCodecError, OSError) as error:
        raise SystemExit(f"neuralcodec.training.train: {error}") from error


if __name__ == "__main__":
    main()

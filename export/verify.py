"""Compares every exported graph, on every backend of this machine, with torch. Exits 1 on a miss. Judges numbers only.

    python -m export.verify --onnx build/onnx --preset portrait --checkpoint runs/portrait/average.safetensors \\
        --flat --clips data/val/256 --variant build/fp16 --variant build/int8

Inputs: two fixed cases (a picture on itself, nothing moving; a black picture), then random pictures, poses and scenes
in batches of 1, 2 and 3. Bounds are the largest absolute difference, by how the graph stores its weights (bounds.json,
or ``--bounds``): those of float16 and int8 are two to three times what the bundled pack's networks differ by so stored,
on a CPU. NaN, infinity and a render that turns a picture black or flat are misses whatever the bound. ``--flat`` writes
the render graph in its ``--no-volumetric`` form too and holds the two against each other. ``--clips`` shows real clips
to the graphs and to each ``--variant`` of them, and bounds what the variant loses in dB.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from export.clip_loss import ClipLoss, clip_losses
from export.files import reason
from export.to_onnx import (
    FEATURES,
    SCENE,
    Tensors,
    example_inputs,
    export_graphs,
    graph_modules,
    load_networks,
    output_names,
)
from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.models import Networks
from neuralcodec.motion import Array
from neuralcodec.runtime.session import open_session, present_devices

BOUNDS = Path(__file__).with_name("bounds.json")
BATCHES = (1, 2, 3)
FLAT = 1e-3  # standard deviation under which a picture shows nothing


@dataclass(frozen=True)
class Finding:
    """The worst case of one graph's output on one backend."""

    graph: str
    output: str
    provider: str
    worst: float  # largest absolute difference
    bound: float
    fault: str  # "" or what is wrong whatever the bound

    @property
    def passed(self) -> bool:
        return not self.fault and self.worst <= self.bound


def verify(
    networks: Networks, folder: Path, *, device: str = "cpu", rounds: int = 3, bounds: Mapping[str, Mapping[str, float]]
) -> list[Finding]:
    """One finding per output of each graph. ``rounds``: how many random cases follow the fixed ones."""
    cases = list(input_cases(networks, rounds))
    findings = []
    for name, module in graph_modules(networks).items():
        path = folder / f"{name}.onnx"
        if not path.is_file():
            raise PackError(f"{path} is not there; write it with python -m export.to_onnx --out {folder}.")
        bound = bounds[storage(path)][name]
        session = open_session(path, device=device, exact=name == "motion")
        outputs = output_names(name, sum(n in FEATURES for n in cases[0]["render"]))
        if missing := sorted(set(outputs) - set(session.output_names)):
            raise PackError(
                f"{path} has the outputs {', '.join(session.output_names)} and lacks {missing[0]}; write it with "
                "python -m export.to_onnx, of the same --preset."
            )
        worst, faults = dict.fromkeys(outputs, 0.0), dict.fromkeys(outputs, "")
        for case in cases:
            inputs = case[name]
            with torch.inference_mode():
                wanted = module(*inputs.values())
            expected = [wanted] if isinstance(wanted, torch.Tensor) else list(wanted)
            found = session.run({n: v.numpy() for n, v in inputs.items() if n in session.input_shapes})
            for output, tensor in zip(outputs, expected, strict=True):
                array = found[output]
                worst[output] = max(worst[output], difference(array, tensor.numpy()))
                faults[output] = faults[output] or fault(array, tensor.numpy(), picture=output == "picture")
        findings += [Finding(name, o, session.provider, worst[o], bound, faults[o]) for o in outputs]
    return findings


def input_cases(networks: Networks, rounds: int) -> Iterator[dict[str, Tensors]]:
    """Inputs of the three graphs: the fixed cases, then seeded random ones."""
    still = example_inputs(networks, batch=1, seed=0)
    poses = still["render"]
    poses["driving_keypoints"], poses["driving_rotation"] = poses["source_keypoints"], poses["source_rotation"]
    if SCENE in poses:
        poses[SCENE] = torch.zeros_like(poses[SCENE])
    yield still
    yield example_inputs(networks, batch=1, seed=1, black=True)
    for seed in range(rounds):
        yield example_inputs(networks, batch=BATCHES[seed % len(BATCHES)], seed=100 + seed)


def storage(path: Path) -> str:
    """How a graph keeps its weights: "int8", "half" (and computes in it), "float16" (stored only) or "float32"."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise PackError(f"{path} is not an ONNX file ({error}); write it with python -m export.to_onnx.") from error
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    half = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    if any(node.op_type == "Conv" and node.input[1] in half for node in model.graph.node):
        return "half"
    return "float16" if half else "float32"


def flat_finding(
    networks: Networks, folder: Path, *, device: str, rounds: int, bounds: Mapping[str, Mapping[str, float]]
) -> Finding:
    """The given render graph against the same weights exported with 2-D sampling only."""
    with tempfile.TemporaryDirectory() as scratch:
        flat = export_graphs(networks, Path(scratch), graphs=["render"], volumetric=False)["render"]
        cases = input_cases(networks, rounds)
        return twin_finding(folder / "render.onnx", flat, cases, device=device, bound=bounds["flat"]["render"])


def twin_finding(graph: Path, flat: Path, cases: Iterable[dict[str, Tensors]], *, device: str, bound: float) -> Finding:
    """Two render graphs on the same inputs."""
    session, twin = open_session(graph, device=device), open_session(flat, device=device)
    worst, wrong = 0.0, ""
    for case in cases:
        inputs = {n: v.numpy() for n, v in case["render"].items() if n in session.input_shapes}
        found, wanted = twin.run(inputs)["picture"], session.run(inputs)["picture"]
        worst, wrong = max(worst, difference(found, wanted)), wrong or fault(found, wanted, picture=True)
    return Finding("render", "2-D sampling", twin.provider, worst, bound, wrong)


def read_bounds(path: Path) -> dict[str, dict[str, float]]:
    """A file of bounds, one for every kind of graph that BOUNDS names."""
    try:
        bounds = json.loads(path.read_bytes())
    except ValueError as error:
        raise PackError(f"{path} is not JSON ({error}); give a file like {BOUNDS.name}.") from error
    for kind, names in json.loads(BOUNDS.read_bytes()).items():
        for name in names:
            value = bounds.get(kind) if isinstance(bounds, dict) else None
            value = value.get(name) if isinstance(value, dict) else None
            if not (isinstance(value, int | float) and value >= 0):
                raise PackError(f"{path} must hold a number of 0 or more for {name} of {kind}, as {BOUNDS.name} does.")
    return bounds


def difference(found: Array, wanted: Array) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    worst = np.abs(found.astype(np.float64) - wanted).max()
    return float(worst) if np.isfinite(worst) else float("inf")


def fault(found: Array, wanted: Array, *, picture: bool) -> str:
    """What is wrong with an output whatever its distance from torch's, "" for nothing."""
    if found.shape != wanted.shape:
        return f"shape {found.shape} instead of {wanted.shape}"
    if not np.isfinite(found).all():
        return "NaN or infinity"
    if picture:
        for one, other in zip(found, wanted, strict=True):
            if one.std() < FLAT <= other.std():
                return "black picture" if one.mean() < FLAT else "flat picture"
    return ""


def variant_kind(folder: Path) -> str:
    """The least exact kind among a folder's graphs."""
    kinds = {storage(path) for path in folder.glob("*.onnx") if path.stem in ("motion", "reference", "render")}
    if not kinds:
        raise PackError(f"{folder} holds none of motion.onnx, reference.onnx and render.onnx.")
    return next(kind for kind in ("int8", "half", "float16", "float32") if kind in kinds)


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="export.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="folder with motion.onnx, reference.onnx, render.onnx")
    parser.add_argument("--preset", choices=("portrait", "paper"), default="portrait")
    parser.add_argument("--checkpoint", type=Path, help="the weights that were exported; without it only --clips runs")
    parser.add_argument("--device", action="append", help="cpu, cuda or tensorrt; repeatable; default: all present")
    parser.add_argument("--rounds", type=int, default=6, help="random cases after the fixed ones")
    parser.add_argument(
        "--flat", action="store_true", help="also hold --no-volumetric sampling against the graph's own"
    )
    parser.add_argument("--clips", type=Path, help="folder of clips of the networks' size")
    parser.add_argument(
        "--variant", type=Path, action="append", default=[], help="folder of smaller graphs; repeatable"
    )
    parser.add_argument("--frames", type=int, default=4, help="of each clip")
    parser.add_argument("--bounds", type=Path, default=BOUNDS)
    o = parser.parse_args(arguments)
    if o.checkpoint is None and (o.clips is None or o.flat):
        parser.error("--checkpoint is needed, unless only --clips and --variant are compared")
    if bool(o.clips) != bool(o.variant):
        parser.error("--clips and --variant go together: which graphs to show the clips to")
    if o.frames < 1 or o.rounds < 0:
        parser.error(f"--frames is {o.frames} and --rounds {o.rounds}; at least 1 and 0 are needed")
    findings: list[Finding] = []
    losses: list[ClipLoss] = []
    try:
        bounds = read_bounds(o.bounds)
        networks = load_networks(o.preset, o.checkpoint) if o.checkpoint is not None else None
        for device in o.device or present_devices():
            if networks is not None:
                findings += verify(networks, o.onnx, device=device, rounds=o.rounds, bounds=bounds)
                if o.flat:
                    findings.append(flat_finding(networks, o.onnx, device=device, rounds=o.rounds, bounds=bounds))
            if o.clips is not None:
                variants = [(variant_kind(folder), folder) for folder in o.variant]
                losses += clip_losses(o.onnx, variants, o.clips, bounds=bounds["clips"], device=device, frames=o.frames)
    except (NeuralCodecError, OSError) as error:
        print(f"export.verify: {reason(error)}", file=sys.stderr)
        return 1
    for f in findings:
        verdict = "ok" if f.passed else f"MISS {f.fault}".rstrip()
        print(f"{f.provider:24} {f.graph:10} {f.output:14} {f.worst:.2e} of {f.bound:.0e}  {verdict}")
    for c in losses:
        verdict = "ok" if c.passed else f"MISS {c.fault}".rstrip()
        print(f"{c.variant}: {c.frames} frames, {c.psnr:.2f} dB, {c.loss:+.3f} dB lost of {c.bound:.1f} "
              f"(worst frame {c.worst:+.2f})  {verdict}")  # fmt: skip
    return 0 if all(f.passed for f in findings) and all(c.passed for c in losses) else 1


if __name__ == "__main__":
    raise SystemExit(main())

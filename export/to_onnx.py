"""Writes a preset's networks as the three ONNX graphs of a pack. Knows tensor names, not where weights come from.

    python -m export.to_onnx --preset portrait --checkpoint runs/portrait/average.safetensors --out build/onnx

motion.onnx, reference.onnx and render.onnx have a free batch size, batch norms folded into convolutions, no control
flow, and opset 20, the first whose GridSample reads volumes. ``--no-volumetric`` writes the same function with 2-D
GridSample only: four times faster on a CPU, and for engines that refuse rank 5. ``--fp16-storage`` halves the files and
changes no arithmetic: large weights are stored as float16 behind a Cast that every runtime folds away when it loads the
graph. ``--fp16`` computes in float16 as well (export/half.py); motion stays float32, because its error would be
everybody's.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from export.files import reason, together
from export.half import to_half
from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.models import ModelConfig, Networks, build
from neuralcodec.models.layers import grid_sample_3d
from neuralcodec.motion import rotation_matrix

OPSET = 20
GRAPHS = ("motion", "reference", "render")
MOTION_OUTPUTS = ("rotation", "translation", "scale", "canonical", "delta", "confidence")
FEATURES = ("volume", "probe", "skip_quarter", "skip_half")  # the paper preset has the first only
POSES = ("source_keypoints", "source_rotation", "driving_keypoints", "driving_rotation")
SCENE = "driving_scene"  # the last input of renderers that know a scene
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}
STORED_HALF = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1}  # operator: which input holds weights; never coordinates
HALF_FROM = 1024  # elements; smaller tensors save nothing
HALF_MAX = 65504.0

Tensors = dict[str, Tensor]


class MotionGraph(nn.Module):
    """Picture and face box to the six motion outputs, as a plain tuple."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor, box: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(image, box))


class ReferenceGraph(nn.Module):
    """Reference picture to the features that the receiver keeps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.net(image))


class RenderGraph(nn.Module):
    """Picture, features, two poses and the scene, positional in the order of the graph's inputs, to a picture."""

    def __init__(self, net: nn.Module, scene: bool) -> None:
        super().__init__()
        self.net = net
        self.names = (*POSES, SCENE) if scene else POSES

    def forward(self, *tensors: Tensor) -> Tensor:
        seen, driving = tensors[: -len(self.names)], tensors[-len(self.names) :]
        return self.net(*seen, **dict(zip(self.names, driving, strict=True)))


def load_networks(preset: str, checkpoint: Path | None = None) -> Networks:
    """Networks of a preset in eval mode, with fresh weights or those of a safetensors checkpoint (exactly its keys)."""
    networks = build(ModelConfig.preset(preset))
    if checkpoint is not None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not checkpoint.is_file():
            raise PackError(f"{checkpoint} is not there; --checkpoint takes a .safetensors file written by training.")
        try:
            networks.load_state_dict(load_file(checkpoint))
        except SafetensorError as error:
            raise PackError(f"{checkpoint} is not a safetensors file: {error}.") from error
        except RuntimeError as error:
            raise PackError(f"{checkpoint} does not fit the preset {preset!r}: {_brief(error)}") from error
        for name, tensor in networks.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise PackError(f"{name} in {checkpoint} holds NaN or infinity: the checkpoint is damaged.")
    return networks.eval()


def example_inputs(networks: Networks, *, batch: int = 2, seed: int = 0, black: bool = False) -> dict[str, Tensors]:
    """Seeded inputs of the three graphs by name: smooth or black pictures, heads turned up to 30 degrees, features."""
    random = np.random.default_rng(seed)
    size, k, nodes = networks.config.size, networks.config.keypoints, networks.config.scene
    noise = torch.from_numpy(random.random((batch, 3, 12, 12), np.float32))
    image = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    if black:
        image = torch.zeros_like(image)
    poses: Tensors = {}
    shape = random.uniform(-0.4, 0.4, (batch, k, 3)) * [1.0, 1.0, 0.5]
    for who in ("source", "driving"):
        turns = np.stack([rotation_matrix(*random.uniform(-30, 30, 3)) for _ in range(batch)])
        points = 0.9 * (shape + random.normal(0, 0.02, shape.shape)) @ turns + random.uniform(-0.1, 0.1, (batch, 1, 3))
        poses[f"{who}_keypoints"] = torch.from_numpy(points.astype(np.float32))
        poses[f"{who}_rotation"] = torch.from_numpy(turns)
    scene = {SCENE: torch.from_numpy(random.normal(0, 0.05, (batch, nodes**2, 2)).astype(np.float32))} if nodes else {}
    box = torch.from_numpy(np.column_stack([random.uniform(-0.1, 0.1, (batch, 2)), random.uniform(0.4, 0.6, batch)]))
    with torch.inference_mode():
        features = {name: f.clone() for name, f in zip(FEATURES, networks.reference(image), strict=False)}
    return {
        "motion": {"image": image, "box": box.float()},
        "reference": {"image": image},
        "render": {"image": image, **features, **{name: poses[name] for name in POSES}, **scene},
    }


def graph_modules(networks: Networks) -> dict[str, nn.Module]:
    """The three graphs as torch modules, with positional inputs in the order of :func:`example_inputs`."""
    return {
        "motion": MotionGraph(networks.motion),
        "reference": ReferenceGraph(networks.reference),
        "render": RenderGraph(networks.render, bool(networks.config.scene)),
    }


def output_names(graph: str, features: int) -> tuple[str, ...]:
    return {"motion": MOTION_OUTPUTS, "reference": FEATURES[:features], "render": ("picture",)}[graph]


def export_graphs(
    networks: Networks,
    out: Path,
    *,
    graphs: Collection[str] = GRAPHS,
    volumetric: bool = True,
    fp16_storage: bool = False,
    fp16: bool = False,
    opset: int = OPSET,
) -> dict[str, Path]:
    """Write the graphs into ``out`` and return their paths by name. All of them appear or none does."""
    networks = copy.deepcopy(networks).eval()
    _fold_parametrizations(networks)
    inputs = example_inputs(networks)
    features = sum(name in FEATURES for name in inputs["render"])
    paths = {}
    with together(out) as new:
        for name, module in graph_modules(networks).items():
            if name not in graphs:
                continue
            model = _to_model(module, inputs[name], output_names(name, features), opset, volumetric)
            model.graph.name = name
            if fp16 and name != "motion":
                model = to_half(model)
            elif fp16_storage:
                store_half(model)
            _check(name, model)
            paths[name] = out / f"{name}.onnx"
            (new / paths[name].name).write_bytes(model.SerializeToString())
    return paths


def store_half(model: onnx.ModelProto) -> int:
    """Store the large convolution and matrix weights as float16 behind a Cast to float32; returns the bytes saved."""
    graph = model.graph
    weights = {n.input[i] for n in graph.node for op, i in STORED_HALF.items() if n.op_type == op and len(n.input) > i}
    saved, casts = 0, []
    for tensor in graph.initializer:
        if tensor.name not in weights or tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < HALF_FROM or np.abs(values).max() > HALF_MAX:
            continue
        full, half = tensor.name, tensor.name + ".half"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [full], name=f"widen {full}", to=TensorProto.FLOAT))
        saved += values.size * 2
    for index, cast in enumerate(casts):
        graph.node.insert(index, cast)
    return saved


def _to_model(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], opset: int, volumetric: bool
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    free: tuple[Any, ...] = tuple({0: batch} for _ in inputs)
    if isinstance(module, RenderGraph):
        free = (free,)  # one *tensors parameter
    with _quiet(), warnings.catch_warnings(), torch.no_grad(), _sampling(volumetric):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, tuple(inputs.values()), dynamo=True, opset_version=opset, dynamic_shapes=free,
            input_names=list(inputs), output_names=list(outputs), verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found != opset:
        raise PackError(f"Opset {opset} was asked for and torch wrote {found}, the nearest it knows; ask for {OPSET}.")
    strip_traces(model)
    return model


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove the Python stack that the exporter notes at every node: paths of the exporting machine."""
    for node in model.graph.node:
        node.doc_string = ""
    for part in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
        model.graph,
        model,
    ):
        del part.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""


def _check(name: str, model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    branches = sorted({n.op_type for n in model.graph.node} & CONTROL_FLOW)
    if branches:
        raise PackError(
            f"{name}.onnx came out with control flow ({', '.join(branches)}); engines want straight graphs."
        )


def _fold_parametrizations(networks: nn.Module) -> None:
    """Spectral norm is a rule for training; at rest each weight is a constant.

    Not torch's remove_parametrizations: that edits the class, which the networks we were copied from still use.
    """
    for module in list(networks.modules()):
        if parametrize.is_parametrized(module):
            names = list(module.parametrizations)  # type: ignore[arg-type]
            weights = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = type(module).__mro__[1]
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


@contextmanager
def _sampling(volumetric: bool) -> Iterator[None]:
    """Within it, a volume is read as ``volumetric`` says, by whichever network, and a picture with border padding in
    the form that ONNX Runtime's CPU kernel has a fast path for (8 times: no border padding, no aligned corners)."""
    plain = F.grid_sample

    def sample(
        input: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: Any = None
    ) -> Tensor:
        if input.dim() == 5 and not volumetric:
            return grid_sample_3d(input, grid, False, bool(align_corners), padding_mode)
        if input.dim() == 4 and mode == "bilinear" and padding_mode == "border":
            # Clamped to the centres of the outermost pixels, nothing outside has any weight.
            height, width = input.shape[2:]
            outermost: Any = (width - 1) / width  # one number multiplies twice as fast as a pair
            if width != height:
                outermost = torch.tensor([outermost, (height - 1) / height], device=grid.device)
            grid = grid if align_corners else grid / outermost
            return plain(input, grid.clamp(-1, 1) * outermost, mode, "zeros", False)
        return plain(input, grid, mode, padding_mode, align_corners)

    F.grid_sample = sample
    try:
        yield
    finally:
        F.grid_sample = plain


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter logs each optional package it misses and, where anything listens, every shape it derives."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _brief(error: Exception) -> str:
    """The first two lines of a state-dict error: the rest lists every key of both sides."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    return text if len(text) < 300 else text[:297] + "..."


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="export.to_onnx", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("portrait", "paper"), default="portrait")
    parser.add_argument("--checkpoint", type=Path, help="safetensors file; without it the weights are random")
    parser.add_argument("--out", type=Path, required=True, help="folder for motion.onnx, reference.onnx, render.onnx")
    parser.add_argument("--graph", action="append", choices=GRAPHS, help="only this one; repeatable")
    parser.add_argument("--no-volumetric", action="store_true", help="2-D GridSample only")
    parser.add_argument("--fp16-storage", action="store_true", help="float16 weights in the file, float32 arithmetic")
    parser.add_argument("--fp16", action="store_true", help="float16 arithmetic in reference and render, for GPUs")
    parser.add_argument("--opset", type=int, default=OPSET)
    o = parser.parse_args(arguments)
    if o.opset < OPSET:
        parser.error(f"opset {o.opset} has no volumetric GridSample; {OPSET} is the lowest, also with --no-volumetric")
    try:
        networks = load_networks(o.preset, o.checkpoint)
        paths = export_graphs(
            networks, o.out, graphs=o.graph or GRAPHS, volumetric=not o.no_volumetric,
            fp16_storage=o.fp16_storage, fp16=o.fp16, opset=o.opset,
        )  # fmt: skip
    except (NeuralCodecError, OSError) as error:
        print(f"export.to_onnx: {reason(error)}", file=sys.stderr)
        return 1
    for path in paths.values():
        print(f"{path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

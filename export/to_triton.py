"""Writes a pack as a model repository of Triton Inference Server, for rendering thousands of streams on a cluster.

    python -m export.to_triton --pack neuralcodec/packs/portrait --out models --max-batch 32
    tritonserver --model-repository=models

Models: NAME_motion (a sender's picture to motion), NAME_reference (a reference picture to features, once),
NAME_render (features, two poses and the scene, where the pack has one, to a picture, every frame: requests of many
streams are batched), and the ensemble NAME_show, which takes a reference picture, two poses and the scene and runs
reference and render in one request, for clients that keep no features. Packets stay with the client: it decodes them
and sends poses and scene. Not run on a server by us; the configurations are held against the published
model_config.proto by tests/test_to_triton.py.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from export.build_pack import move_into_place
from export.files import reason
from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.pack import Pack, load_pack
from neuralcodec.runtime.dequantize import float_graph

TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}
MODELS = ("motion", "reference", "render")
KINDS = ("auto", "gpu", "cpu")


@dataclass(frozen=True)
class Tensor:
    """A model's input or output, without its batch axis."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """How the server runs the models. ``queue_us``: how long a request may wait for company; 2 ms is 5 % of a frame at
    25 frames a second."""

    max_batch: int = 32
    queue_us: int = 2000
    kind: str = "auto"
    instances: int = 1
    tensorrt: bool = False  # through ONNX Runtime's TensorRT provider, all but motion

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it is one of {', '.join(KINDS)}.")
        if self.max_batch < 1 or self.instances < 1 or self.queue_us < 0:
            raise ValueError("max_batch and instances must be at least 1, queue_us at least 0.")
        if self.tensorrt and self.kind == "cpu":
            raise ValueError("TensorRT runs on GPUs only and kind is 'cpu'; leave one of them out.")


def write_repository(pack: Pack, out: Path, options: Options, *, force: bool = False) -> list[Path]:
    """Write the model repository; returns its model folders. An existing folder is replaced only with ``force``."""
    if out.exists() and not force:
        raise PackError(f"{out} exists; --force replaces it.")
    if out.exists() and not any(out.glob("*/config.pbtxt")):
        raise PackError(f"{out} is no model repository, and --force replaces nothing else; give --out another name.")
    if not re.fullmatch(r"[\w.-]+", pack.name):  # it becomes a folder, and text between quotes
        raise PackError(f"The pack is called {pack.name!r}; models can be named of letters, digits, '_', '-' and '.'.")
    ports = {name: ports_of(pack.graph(name), name) for name in MODELS}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / "new"
        for name, (inputs, outputs) in ports.items():
            model = folder / f"{pack.name}_{name}"
            (model / "1").mkdir(parents=True)
            graph = pack.graph(name) if options.kind == "cpu" else float_graph(pack.graph(name))
            (model / "1" / "model.onnx").write_bytes(graph)
            config = model_config(model.name, inputs, outputs, options, exact=name == "motion")
            (model / "config.pbtxt").write_text(config, "utf-8")
        show = folder / f"{pack.name}_show"
        (show / "1").mkdir(parents=True)  # an ensemble has a version folder and nothing in it
        (show / "1" / ".keep").write_text("", "utf-8")
        (show / "config.pbtxt").write_text(ensemble_config(pack.name, ports, options), "utf-8")
        move_into_place(folder, out, Path(scratch) / "old")
    return sorted(path for path in out.iterdir() if path.is_dir())


def ports_of(graph: bytes, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a graph; raises PackError unless each has a free batch axis first and no other."""
    model = onnx.load_model_from_string(graph)

    def tensor(value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim]
        if not sizes or sizes[0] or not all(sizes[1:]) or kind.elem_type not in TYPES:
            raise PackError(
                f"{value.name!r} of {name}.onnx has the shape {[d.dim_param or d.dim_value for d in kind.shape.dim]}; "
                "Triton batches along a first axis that is free while all others are fixed: use export.to_onnx."
            )
        return Tensor(value.name, TYPES[kind.elem_type], tuple(sizes[1:]))

    return [tensor(v) for v in model.graph.input], [tensor(v) for v in model.graph.output]


def model_config(
    name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], options: Options, *, exact: bool = False
) -> str:
    """config.pbtxt of one ONNX model with dynamic batching and a warm-up. exact: in float32, not in TF32."""
    parts = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {options.max_batch}"]
    parts += [_tensor("input", t) for t in inputs] + [_tensor("output", t) for t in outputs]
    parts.append(f"instance_group [ {{ kind: KIND_{options.kind.upper()} count: {options.instances} }} ]")
    parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {options.queue_us} }}")
    accelerator = 'name: "tensorrt"' if options.tensorrt else ""
    if exact and options.kind != "cpu":  # the CUDA provider can be told not to multiply in TF32, TensorRT's cannot
        accelerator = 'name: "cuda" parameters { key: "use_tf32" value: "0" }'
    if accelerator:
        accelerators = f"gpu_execution_accelerator [ {{ {accelerator} }} ]"
        parts.append(f"optimization {{ execution_accelerators {{ {accelerators} }} }}")
    zeros = "\n".join(
        f'    inputs {{ key: "{t.name}" value {{ data_type: {t.type} {_dims(t)} zero_data: true }} }}' for t in inputs
    )
    parts.append(f'model_warmup [ {{\n    name: "zeros" batch_size: {options.max_batch}\n{zeros}\n}} ]')
    return "\n".join(parts) + "\n"


def ensemble_config(pack: str, ports: Mapping[str, tuple[Sequence[Tensor], Sequence[Tensor]]], options: Options) -> str:
    """config.pbtxt of the ensemble that goes from a reference picture to a picture in another pose."""
    made = {t.name for t in ports["reference"][1]}
    render_inputs, render_outputs = ports["render"]
    outside = {t.name: t for t in [*ports["reference"][0], *render_inputs] if t.name not in made}
    parts = [f'name: "{pack}_show"', 'platform: "ensemble"', f"max_batch_size: {options.max_batch}"]
    parts += [_tensor("input", t) for t in outside.values()] + [_tensor("output", t) for t in render_outputs]
    steps = [
        _step(f"{pack}_reference", *ports["reference"]),
        _step(f"{pack}_render", render_inputs, render_outputs),
    ]
    parts.append("ensemble_scheduling {\n  step [\n" + ",\n".join(steps) + "\n  ]\n}")
    return "\n".join(parts) + "\n"


def _step(model: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    maps = [f'      input_map {{ key: "{t.name}" value: "{t.name}" }}' for t in inputs]
    maps += [f'      output_map {{ key: "{t.name}" value: "{t.name}" }}' for t in outputs]
    return f'    {{\n      model_name: "{model}" model_version: -1\n' + "\n".join(maps) + "\n    }"


def _tensor(direction: str, tensor: Tensor) -> str:
    return f'{direction} [ {{ name: "{tensor.name}" data_type: {tensor.type} {_dims(tensor)} }} ]'


def _dims(tensor: Tensor) -> str:
    return f"dims: [ {', '.join(map(str, tensor.dims))} ]"


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__
    default = Options()
    parser = argparse.ArgumentParser(prog="export.to_triton", description=__doc__.splitlines()[0])
    parser.add_argument("--pack", help="folder or name of a pack; default: the bundled one")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model repository")
    parser.add_argument("--max-batch", type=int, default=default.max_batch)
    parser.add_argument(
        "--queue-us", type=int, default=default.queue_us, help="microseconds a request waits for others"
    )
    parser.add_argument("--kind", choices=KINDS, default=default.kind, help="where the models run")
    parser.add_argument("--instances", type=int, default=default.instances, help="copies of each model")
    parser.add_argument("--tensorrt", action="store_true", help="ONNX Runtime's TensorRT provider on the server")
    parser.add_argument("--force", action="store_true", help="replace an existing repository")
    o = parser.parse_args(arguments)
    try:
        options = Options(o.max_batch, o.queue_us, o.kind, o.instances, o.tensorrt)
        folders = write_repository(load_pack(o.pack), o.out, options, force=o.force)
    except (NeuralCodecError, OSError, ValueError) as error:
        print(f"export.to_triton: {reason(error)}", file=sys.stderr)
        return 1
    for folder in folders:
        print(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

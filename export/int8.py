"""Quantizes the convolutions of a pack's graphs to 8 bits, calibrated on real clips, and measures the loss.

    python -m export.int8 collect --pack build/float-pack --clips ../data/train/256 --out build/calibration
    python -m export.int8 quantize --onnx build/onnx --inputs build/calibration --out build/int8
    python -m export.build_pack --onnx build/int8 ...

reference.onnx and render.onnx become 8-bit graphs; motion.onnx is copied, because both ends must find the same
keypoints whatever they run on. Convolutions, and what joins large inputs for them, get QuantizeLinear/DequantizeLinear
pairs: weights by output channel, and activations that are unsigned with a zero point for CPU kernels (a GPU gets such
graphs in floats, see runtime/dequantize.py), or signed without one (``--signed``) as TensorRT wants them. Sampling,
softmax and coordinates stay float32, and so do convolutions that make a flow or the final colours, where one step would
be seen.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console
from rich.progress import track

from export.files import reason, together
from neuralcodec.errors import DAMAGED_NPZ, InferenceError, MediaError, NeuralCodecError, PackError
from neuralcodec.motion import Array
from neuralcodec.runtime.session import Port, Session, check_feeds, open_session

# Weights of convolutions whose output is a coordinate, a mask or a colour: portrait.py and synthesis.py name them so.
# And the reference's first one: it amplifies small contrasts, which 8 bits lose, and with 3 channels gains no time.
KEEP_FLOAT = r"(at_full\.0|mask|depth|residual|occlusion|refine|g3\.1|final)\.weight$"
QUANTIZED = ("reference", "render")
JOINING = ("Concat", "Resize")
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm")
LONGEST = 250  # frames of a clip that are looked at
HELD_OUT = 5  # every fifth input is not calibrated on; the loss is measured there

Feeds = dict[str, Array]
Pair = tuple[Session, Session]  # reference and render


@dataclass(frozen=True)
class Loss:
    """8-bit graphs against the float ones on the held-out inputs: reference and render together."""

    psnr: float  # dB between the two pictures, mean
    worst: float  # dB of the worst input
    float_ms: tuple[float, float]  # medians of one run of reference and of render
    int8_ms: tuple[float, float]


def collect(pack_folder: Path, clips: Path, out: Path, *, frames: int = 2, limit: int = 80) -> int:
    """Write the render inputs of ``frames`` frames of every clip as .npz; returns how many.

    The first frame is the reference. Clips must be of the pack's size, as training.prepare writes them; where there are
    more than ``limit`` asks for, every n-th is taken.
    """
    from neuralcodec.inference import Inference
    from neuralcodec.media import read_frames
    from neuralcodec.pack import load_pack

    paths = sorted(p for p in clips.iterdir() if p.suffix in SUFFIXES) if clips.is_dir() else []
    if not paths:
        raise MediaError(f"{clips} is no folder with clips ({', '.join(SUFFIXES)}).")
    if frames < 1 or limit < 1:
        raise PackError(f"--frames is {frames} and --limit {limit}; both must be at least 1.")
    pack = load_pack(pack_folder)
    inference = Inference(pack, device="cpu")
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in track(paths[:: max(1, len(paths) * frames // limit)], "clips", console=Console(stderr=True)):
        pictures = [image for _, image in islice(read_frames(path), LONGEST)]
        if not pictures or pictures[0].shape != (pack.size, pack.size, 3):
            raise MediaError(f"{path} is not a clip of {pack.size}x{pack.size}; prepare it with training.prepare.")
        reference = inference.reference(pictures[0])
        for index in np.linspace(0, len(pictures) - 1, frames + 1).astype(int)[1:]:
            estimate = inference.motion(pictures[index], reference.estimate.box)
            motion = estimate.relative_to(reference.canonical)
            scene = inference.scene(reference, pictures[index], estimate)
            driving = inference.driving([reference], [replace(motion, scene=scene)])
            np.savez_compressed(
                out / f"{path.stem}-{index:05d}.npz", allow_pickle=False, **reference.arrays, **driving
            )
            count += 1
            if count == limit:
                return count
    return count


def load_inputs(folder: Path, shapes: Mapping[str, tuple[int | str, ...]]) -> list[Feeds]:
    """The inputs of a graph (``Session.input_shapes``) of every .npz of a folder, in name order."""
    names, ports = list(shapes), {name: Port(np.dtype(np.float32), shape) for name, shape in shapes.items()}
    feeds = []
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                held = {name: stored[name] for name in stored.files}
        except DAMAGED_NPZ as error:
            raise PackError(
                f"{path} is no .npz of export.int8 collect, or it is cut short or damaged: collect again."
            ) from error
        if not set(names) <= held.keys():
            raise PackError(f"{path} holds {', '.join(held)}; the graph takes {', '.join(names)}: collect again.")
        try:
            check_feeds("the graph", ports, {name: (held[name].dtype, held[name].shape) for name in names})
        except InferenceError as error:
            raise PackError(f"{path}: {error} Collect again, with a pack of these graphs.") from error
        if not all(np.isfinite(held[name]).all() for name in names):
            raise PackError(f"{path} holds NaN or infinity: collect again.")
        feeds.append({name: held[name] for name in names})
    if len(feeds) < 2:
        raise PackError(f"{folder} holds {len(feeds)} .npz files, at least 2 are needed: run export.int8 collect.")
    return feeds


def split(feeds: list[Feeds]) -> tuple[list[Feeds], list[Feeds]]:
    """Inputs to calibrate on, and those held out to measure on."""
    held = feeds[HELD_OUT - 1 :: HELD_OUT] or feeds[-1:]
    kept = [f for f in feeds if not any(f is h for h in held)]
    return kept, held


def quantize(
    graph: Path,
    feeds: list[Feeds],
    out: Path,
    *,
    keep_float: str = KEEP_FLOAT,
    method: str = "minmax",
    signed: bool = False,
) -> int:
    """Write the 8-bit graph to ``out``, calibrated on all ``feeds``; returns how many convolutions were quantized."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self.rest, None)

    model = onnx.load(graph)
    widen(model)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise PackError(f"{graph} computes in 8 bits already; give the float32 graphs of export.to_onnx.")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise PackError(f"{graph} computes in float16; export it again without --fp16.")
    chosen = convolutions(model, keep_float)
    if not chosen:  # quantize_static takes no name for every name
        raise PackError(f"--keep-float {keep_float!r} leaves no convolution of {graph} to quantize; name fewer.")
    methods = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        named, written = Path(scratch) / "named.onnx", Path(scratch) / "int8.onnx"
        shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shaped.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # it is: spares a warning
        onnx.save(shaped, named)
        quantize_static(
            named,
            written,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *JOINING],
            nodes_to_quantize=chosen + large_joins(shaped),
            per_channel=True,
            # CPUs before VNNI add pairs of products in 16 bits: 8-bit weights would overflow there, 7-bit ones do not.
            reduce_range=not signed,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[method],
            extra_options={"ActivationSymmetric": signed, "WeightSymmetric": True},
        )
        result = onnx.load(written)
        round_after_relus(result)
        del result.graph.value_info[:]
        del result.metadata_props[:]
        result.graph.name = model.graph.name
        onnx.checker.check_model(result, full_check=True)
        onnx.save(result, written)
        written.replace(out)
    return len(chosen)


def round_after_relus(model: onnx.ModelProto) -> None:
    """Move the rounding between a convolution and its ReLU behind the ReLU, in place: a runtime then makes one 8-bit
    kernel of the three, and no step is spent on values that the ReLU cuts off."""
    from onnxruntime.quantization.onnx_model import ONNXModel

    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    readers = _readers(graph)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for relu in [node for node in graph.node if node.op_type == "Relu"]:
        restore = makers.get(relu.input[0])
        if restore is None or restore.op_type != "DequantizeLinear" or len(readers[restore.output[0]]) > 1:
            continue
        rounded = makers[restore.input[0]]
        if makers[rounded.input[0]].op_type != "Conv" or len(readers[rounded.input[0]]) > 1:
            continue
        relu.input[0] = rounded.input[0]
        if any(node.op_type != "QuantizeLinear" for node in readers[relu.output[0]]):
            # floats read it: round here, from 0 to the highest value that the old range held
            scale, zero = (numpy_helper.to_array(stored[name]) for name in rounded.input[1:])
            info = np.iinfo(zero.dtype)
            top = (info.max - int(zero)) * scale
            names = [f"{relu.output[0]}_relu_{part}" for part in ("scale", "zero_point")]
            values = ((top / info.max).astype(scale.dtype), np.zeros_like(zero))
            graph.initializer.extend(map(numpy_helper.from_array, values, names))
            plain = f"{relu.output[0]}_plain"
            relu.output[0], shown = plain, relu.output[0]
            rounded.input[:], rounded.output[:] = [plain, *names], [f"{plain}_rounded"]
            restore.input[:], restore.output[:] = [f"{plain}_rounded", *names], [shown]
        else:
            graph.node.remove(rounded)
            graph.node.remove(restore)
    moved = ONNXModel(model)
    moved.clean_initializers()
    moved.topological_sort()


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The nodes that read each value."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def widen(model: onnx.ModelProto) -> None:
    """Undo ``--fp16-storage``: weights stored as float16 behind a Cast become plain float32, as every runtime has them
    after loading."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in stored]:
        tensor = stored[node.input[0]]
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, node.output[0]))
            model.graph.node.remove(node)


def convolutions(model: onnx.ModelProto, keep_float: str) -> list[str]:
    """Names of the Conv nodes to quantize, in order."""
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    return [node.name for node in found if not re.search(keep_float, node.input[1])]


def large_joins(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that only move values of half a picture's size or more, up to the first convolution that reads
    them: in 8 bits they move a quarter of the bytes. The model has its shapes inferred."""
    values = (*model.graph.input, *model.graph.value_info)
    sides = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim][2:] for value in values}
    half = max(sides.get("image", [0])) // 2
    readers = _readers(model.graph)
    found: list[str] = []
    for node in reversed(model.graph.node):
        large = half and min(sides.get(node.output[0], []), default=0) >= half
        read = readers.get(node.output[0], [])
        if node.op_type in JOINING and large and all(r.op_type == "Conv" or r.name in found for r in read):
            found.append(node.name)
    return found[::-1]


def compare(before: Pair, after: Pair, feeds: list[Feeds]) -> Loss:
    """Run reference and render of both pairs on the same inputs."""
    psnrs, times = [], ([], [])  # type: ignore[var-annotated]
    for feed in feeds:
        pictures = []
        for (reference, render), spent in zip((before, after), times, strict=True):
            begin = time.perf_counter()
            features = reference.run({name: feed[name] for name in reference.input_shapes})
            middle = time.perf_counter()
            pictures.append(render.run({n: features.get(n, feed[n]) for n in render.input_shapes})["picture"])
            spent.append((1000 * (middle - begin), 1000 * (time.perf_counter() - middle)))
        error = float(np.mean((pictures[0].astype(np.float64) - pictures[1]) ** 2))
        psnrs.append(-10 * np.log10(max(error, 1e-12)))
    medians = [tuple(np.median(spent, axis=0).tolist()) for spent in times]
    return Loss(float(np.mean(psnrs)), float(np.min(psnrs)), medians[0], medians[1])


def quantize_folder(
    graphs: Path, inputs: Path, out: Path, *, keep_float: str = KEEP_FLOAT, method: str = "minmax", signed: bool = False
) -> tuple[dict[str, int], Loss]:
    """Reference and render graphs of a folder to 8 bits in another, motion.onnx as it is; returns how many convolutions
    of each were quantized and what that costs."""
    if out.resolve() == graphs.resolve():
        raise PackError(f"--out is the folder of the float graphs ({graphs}); give another one.")
    if not (graphs / "motion.onnx").is_file():
        raise PackError(f"{graphs / 'motion.onnx'} is not there; export.to_onnx writes all three graphs.")
    counts = {}
    before, after = [], []
    with together(out) as new:  # each takes minutes; 8-bit graphs of two exports would make one pack
        for name in QUANTIZED:
            path = graphs / f"{name}.onnx"
            before.append(open_session(path))
            kept, _ = split(load_inputs(inputs, before[-1].input_shapes))
            counts[name] = quantize(path, kept, new / path.name, keep_float=keep_float, method=method, signed=signed)
            after.append(open_session(new / path.name))
        shutil.copyfile(graphs / "motion.onnx", new / "motion.onnx")
    _, held = split(load_inputs(inputs, before[-1].input_shapes))
    return counts, compare((before[0], before[1]), (after[0], after[1]), held)


def _collect(o: Any) -> None:
    print(f"{collect(o.pack, o.clips, o.out, frames=o.frames, limit=o.limit)} inputs in {o.out}")


def _quantize(o: Any) -> None:
    counts, loss = quantize_folder(
        o.onnx, o.inputs, o.out, keep_float=o.keep_float, method=o.method, signed=o.signed
    )  # fmt: skip
    for name, count in counts.items():
        path = o.out / f"{name}.onnx"
        print(f"{path}  {path.stat().st_size:,} bytes, {count} convolutions of 8 bits")
    print(f"{o.out / 'motion.onnx'}  copied")
    print(f"against float32 on held-out inputs: {loss.psnr:.1f} dB mean, {loss.worst:.1f} dB worst")
    for name, before, after in zip(QUANTIZED, loss.float_ms, loss.int8_ms, strict=True):
        print(f"{name}: {before:.1f} ms float32, {after:.1f} ms int8")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="export.int8", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    c = verbs.add_parser("collect", help="render inputs of real clips as .npz")
    c.add_argument("--pack", type=Path, required=True)
    c.add_argument("--clips", type=Path, required=True, help="folder of square clips of the pack's size")
    c.add_argument("--out", type=Path, required=True)
    c.add_argument("--frames", type=int, default=2, help="frames of each clip")
    c.add_argument("--limit", type=int, default=80, help="inputs in all")
    c.set_defaults(run=_collect)
    q = verbs.add_parser("quantize", help="8-bit graphs, and their loss on held-out inputs")
    q.add_argument("--onnx", type=Path, required=True, help="folder of motion, reference and render.onnx")
    q.add_argument("--inputs", type=Path, required=True, help="folder of collect")
    q.add_argument("--out", type=Path, required=True)
    q.add_argument("--method", choices=("minmax", "percentile"), default="minmax")
    q.add_argument("--signed", action="store_true", help="symmetric activations, for TensorRT")
    q.add_argument(
        "--keep-float", type=_pattern, default=KEEP_FLOAT, help="regular expression of weight names left in float32"
    )
    q.set_defaults(run=_quantize)
    o = parser.parse_args(arguments)
    try:
        o.run(o)
    except (NeuralCodecError, OSError) as error:
        print(f"export.int8: {reason(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

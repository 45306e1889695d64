"""Quantizes a render graph's convolutions to 8 bits, calibrated on real inputs, and measures the loss. Decides nothing.

    python -m export.int8 collect --pack neuralcodec/packs/portrait --clips ../data/val/256 --out build/calibration
    python -m export.int8 quantize --onnx build/onnx/render.onnx --inputs build/calibration --out build/int8/render.onnx

Convolutions get QuantizeLinear/DequantizeLinear pairs: 8-bit weights per output channel, and activations that are
unsigned with a zero point for CPU kernels, or signed without one (``--signed``) as TensorRT wants them. Sampling,
softmax and coordinates stay float32, and so do convolutions that make a flow or the final colours, where one step
would be seen.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from neuralcodec.errors import MediaError, NeuralCodecError, PackError
from neuralcodec.motion import Array
from neuralcodec.runtime.session import Session, open_session

# Weights of convolutions whose output is a coordinate, a mask or a colour: portrait.py and synthesis.py name them so.
KEEP_FLOAT = r"(mask|depth|residual|occlusion|refine|g3\.1|final)\.weight$"
HELD_OUT = 5  # every fifth input is not calibrated on; the loss is measured there

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Loss:
    """The 8-bit graph against the float one on the held-out inputs."""

    psnr: float  # dB between the two pictures, mean
    worst: float  # dB of the worst input
    float_ms: float  # median of one run
    int8_ms: float


def collect(pack_folder: Path, clips: Path, out: Path, *, frames: int = 4, limit: int = 200) -> int:
    """Write the render inputs of ``frames`` frames of every clip as .npz; returns how many.

    The first frame is the reference. Clips must be of the pack's size, as training.prepare writes them.
    """
    from neuralcodec.inference import Inference
    from neuralcodec.media import read_frames
    from neuralcodec.pack import load_pack

    pack = load_pack(pack_folder)
    inference = Inference(pack, device="cpu")
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(p for p in clips.iterdir() if p.suffix in (".mp4", ".mkv", ".mov", ".webm")):
        pictures = [image for _, image in read_frames(path)]
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


def load_inputs(folder: Path, names: Sequence[str]) -> list[Feeds]:
    """Every .npz of a folder in name order, each holding exactly the inputs ``names``."""
    feeds = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as stored:
            if set(stored.files) != set(names):
                raise PackError(f"{path} holds {', '.join(stored.files)}; the graph takes {', '.join(names)}.")
            feeds.append({name: stored[name] for name in names})
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
    chosen = convolutions(model, keep_float)
    methods = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
               "percentile": CalibrationMethod.Percentile}  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        named, written = Path(scratch) / "named.onnx", Path(scratch) / "int8.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(model), named)
        quantize_static(
            named,
            written,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[method],
            extra_options={"ActivationSymmetric": signed, "WeightSymmetric": True},
        )
        result = onnx.load(written)
        del result.graph.value_info[:]
        del result.metadata_props[:]
        result.graph.name = model.graph.name
        onnx.checker.check_model(result, full_check=True)
        onnx.save(result, written)
        written.replace(out)
    return len(chosen)


def convolutions(model: onnx.ModelProto, keep_float: str) -> list[str]:
    """Names of the Conv nodes to quantize, in order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    found = [node for node in model.graph.node if node.op_type == "Conv"]
    if any(node.input[1] not in stored for node in found):
        raise PackError("The graph's weights lie behind other nodes; export it again without --fp16-storage.")
    return [node.name for node in found if not re.search(keep_float, node.input[1])]


def compare(reference: Session, quantized: Session, feeds: list[Feeds], output: str = "picture") -> Loss:
    """Run both graphs on the same inputs."""
    psnrs, times = [], ([], [])  # type: ignore[var-annotated]
    for feed in feeds:
        pictures = []
        for session, spent in zip((reference, quantized), times, strict=True):
            begin = time.perf_counter()
            pictures.append(session.run(feed)[output].astype(np.float64))
            spent.append(1000 * (time.perf_counter() - begin))
        error = float(np.mean((pictures[0] - pictures[1]) ** 2))
        psnrs.append(-10 * np.log10(max(error, 1e-12)))
    return Loss(float(np.mean(psnrs)), float(np.min(psnrs)), float(np.median(times[0])), float(np.median(times[1])))


def _collect(o: Any) -> None:
    print(f"{collect(o.pack, o.clips, o.out, frames=o.frames, limit=o.limit)} inputs in {o.out}")


def _quantize(o: Any) -> None:
    reference = open_session(o.onnx)
    kept, held = split(load_inputs(o.inputs, list(reference.input_shapes)))
    count = quantize(o.onnx, kept, o.out, keep_float=o.keep_float, method=o.method, signed=o.signed)
    loss = compare(reference, open_session(o.out), held)
    print(f"{o.out}  {o.out.stat().st_size:,} bytes, {count} convolutions of 8 bits")
    print(f"against float32 on {len(held)} held-out inputs: {loss.psnr:.1f} dB mean, {loss.worst:.1f} dB worst; "
          f"{loss.float_ms:.1f} ms float32, {loss.int8_ms:.1f} ms int8")  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="export.int8", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    c = verbs.add_parser("collect", help="render inputs of real clips as .npz")
    c.add_argument("--pack", type=Path, required=True)
    c.add_argument("--clips", type=Path, required=True, help="folder of square clips of the pack's size")
    c.add_argument("--out", type=Path, required=True)
    c.add_argument("--frames", type=int, default=4, help="frames of each clip")
    c.add_argument("--limit", type=int, default=200, help="inputs in all")
    c.set_defaults(run=_collect)
    q = verbs.add_parser("quantize", help="8-bit graph, and its loss on held-out inputs")
    q.add_argument("--onnx", type=Path, required=True, help="float32 render.onnx")
    q.add_argument("--inputs", type=Path, required=True, help="folder of .npz")
    q.add_argument("--out", type=Path, required=True)
    q.add_argument("--method", choices=("minmax", "entropy", "percentile"), default="minmax")
    q.add_argument("--signed", action="store_true", help="symmetric activations, for TensorRT")
    q.add_argument("--keep-float", default=KEEP_FLOAT, help="regular expression of weight names left in float32")
    q.set_defaults(run=_quantize)
    o = parser.parse_args(arguments)
    try:
        o.run(o)
    except (NeuralCodecError, OSError) as error:
        print(f"export.int8: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

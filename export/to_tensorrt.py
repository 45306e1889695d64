"""Builds the TensorRT engines of a folder of ONNX graphs ahead of time. Knows options, not how an engine is built.

    python -m export.to_tensorrt --onnx build/onnx --out build/engines --max-batch 32

Optional: ``open_session(graph, device="tensorrt")`` builds and caches the same engines when it first needs them. Built
here they can be shipped to machines with the same GPU and TensorRT. motion.engine never multiplies in TF32: both ends
of a stream must find the same keypoints. Not run on hardware by us: see runtime/trt.py.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from export.files import reason
from neuralcodec.errors import NeuralCodecError, PackError
from neuralcodec.runtime.engine import HARDWARE, EngineOptions, build_engine, here, pack_engine, write_whole


def build_folder(graphs: Path, out: Path, options: EngineOptions) -> list[Path]:
    """Build ``NAME.engine`` for every ``NAME.onnx``; a file appears only when its engine is complete."""
    found = sorted(graphs.glob("*.onnx"))
    if not found:
        raise PackError(f"{graphs} holds no .onnx file: write them with python -m export.to_onnx --out {graphs}.")
    jobs = []
    for path in found:
        graph, suited = path.read_bytes(), replace(options, tf32=False) if path.stem == "motion" else options
        jobs.append((out / f"{path.stem}.engine", graph, suited, here(graph, suited)))
    out.mkdir(parents=True, exist_ok=True)  # before minutes go into an engine that cannot be written
    for path, graph, suited, tag in jobs:
        write_whole(path, pack_engine(tag, build_engine(graph, suited, timing=out / "kernels.timing")))
    return [path for path, *_ in jobs]


def main(arguments: list[str] | None = None) -> int:
    assert __doc__
    default = EngineOptions()
    parser = argparse.ArgumentParser(prog="export.to_tensorrt", description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="folder of .onnx files")
    parser.add_argument("--out", type=Path, required=True, help="folder for .engine files and the timing cache")
    parser.add_argument("--batch", type=int, default=default.batch, help="batch size that kernels are chosen for")
    parser.add_argument("--max-batch", type=int, default=default.max_batch)
    parser.add_argument("--effort", type=int, default=default.effort, choices=range(6), help="time spent on the search")
    parser.add_argument("--workspace-mib", type=int, default=default.workspace_mib)
    parser.add_argument("--no-tf32", action="store_true", help="float32 products with full mantissas")
    parser.add_argument(
        "--version-compatible", action="store_true", help="also for later releases of this major version"
    )
    parser.add_argument("--hardware", choices=HARDWARE, default=default.hardware, help="GPUs that may run the engine")
    o = parser.parse_args(arguments)
    if not 1 <= o.batch <= o.max_batch:
        parser.error(f"--batch {o.batch} must lie between 1 and --max-batch {o.max_batch}")
    if o.workspace_mib < 1:
        parser.error(f"--workspace-mib {o.workspace_mib} must be at least 1")
    options = EngineOptions(
        batch=o.batch, max_batch=o.max_batch, effort=o.effort, workspace_mib=o.workspace_mib, tf32=not o.no_tf32,
        version_compatible=o.version_compatible, hardware=o.hardware,
    )  # fmt: skip
    try:
        paths = build_folder(o.onnx, o.out, options)
    except (NeuralCodecError, OSError) as error:
        print(f"export.to_tensorrt: {reason(error)}", file=sys.stderr)
        return 1
    for path in paths:
        print(f"{path}  {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

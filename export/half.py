"""Float16 arithmetic baked into a graph, for engines that take precision from the graph (TensorRT 11, CUDA).

Inputs and outputs stay float32. So does everything that makes a coordinate: from the grid of each GridSample backwards
to the convolutions it starts from: a float16 coordinate is off by up to a quarter of a pixel at 256, and the weights of
flows, before they are divided by their sum, can be larger than float16 holds.
"""

from __future__ import annotations

import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from neuralcodec.errors import PackError

STARTS = {"Conv", "ConvTranspose", "Gemm"}  # where the way back from a coordinate ends
FULL = {"Range", "Softmax", "ReduceMean", "ReduceSum", "InstanceNormalization", "LayerNormalization", "Sqrt", "Exp"}
LARGEST = 65504.0


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with float16 inside. Needs float32 weights: not for graphs stored with ``--fp16-storage``."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer):
        raise PackError(f"{model.graph.name} stores float16 weights already; export it again without --fp16-storage.")
    name, own = model.graph.name, {node.name for node in model.graph.node}
    half = convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model), keep_io_types=True, op_block_list=sorted(FULL),
        node_block_list=coordinate_nodes(model), max_finite_val=LARGEST,
    )  # fmt: skip
    _join(half, own)
    ordered = onnx_ir.from_proto(half)
    RemoveUnusedNodesPass()(ordered)  # casts that nothing reads any more
    ordered.graph.sort()  # the converter appends its casts at the end
    half = onnx_ir.to_proto(ordered)
    half.graph.name = name
    del half.graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half


def _join(model: onnx.ModelProto, own: set[str]) -> None:
    """Let float32 nodes that follow each other pass float32 on: the converter rounds to float16 between any two, which
    moves coordinates and turns what is larger than 65504 into infinity. own: names of nodes that it did not add."""
    casts = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast" and n.name not in own}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            back = casts.get(name)
            if back is not None and back.input[0] in casts:
                node.input[index] = casts[back.input[0]].input[0]


def coordinate_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of GridSample nodes and of the nodes between their grids and the convolutions before them."""
    makers = {output: node for node in model.graph.node for output in node.output}
    samples = [node for node in model.graph.node if node.op_type == "GridSample"]
    found = {node.name for node in samples}
    wanted = [node.input[1] for node in samples]
    while wanted:
        node = makers.get(wanted.pop())
        if node is not None and node.op_type not in STARTS and node.name not in found:
            found.add(node.name)
            wanted.extend(node.input)
    return sorted(found)

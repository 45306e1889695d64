"""Float16 arithmetic baked into a graph, for engines that take precision from the graph (TensorRT 11, CUDA).

Inputs and outputs stay float32. So does everything that makes a coordinate: from the grid of each GridSample backwards
to the convolutions it starts from: a float16 coordinate is off by up to a quarter of a pixel at 256, and the weights of
flows, before they are divided by their sum, can be larger than float16 holds.
"""

from __future__ import annotations

import onnx
import onnx_ir

from neuralcodec.errors import PackError

STARTS = {"Conv", "ConvTranspose", "Gemm"}  # where the way back from a coordinate ends
FULL = {"Range", "Softmax", "ReduceMean", "ReduceSum", "InstanceNormalization", "LayerNormalization", "Sqrt", "Exp"}
LARGEST = 65504.0


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with float16 inside. Needs float32 weights: not for graphs stored with ``--fp16-storage``."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if any(t.data_type == onnx.TensorProto.FLOAT16 for t in model.graph.initializer):
        raise PackError(f"{model.graph.name} stores float16 weights already; export it again without --fp16-storage.")
    name = model.graph.name
    half = convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model), keep_io_types=True, op_block_list=sorted(FULL),
        node_block_list=coordinate_nodes(model), max_finite_val=LARGEST,
    )  # fmt: skip
    _join(half)
    ordered = onnx_ir.from_proto(half)
    ordered.graph.sort()  # the converter appends its casts at the end
    half = onnx_ir.to_proto(ordered)
    half.graph.name = name
    del half.graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half


def _join(model: onnx.ModelProto) -> None:
    """Let float32 nodes that follow each other pass float32 on: the converter rounds to float16 between any two, which
    moves coordinates and turns what is larger than 65504 into infinity."""
    graph = model.graph
    casts = {n.output[0]: n for n in graph.node if n.op_type == "Cast"}
    outputs = {output.name for output in graph.output}

    def target(node: onnx.NodeProto) -> int:
        return int(next(a.i for a in node.attribute if a.name == "to"))

    for node in graph.node:
        for index, name in enumerate(node.input):
            back = casts.get(name)
            there = casts.get(back.input[0]) if back is not None and target(back) == onnx.TensorProto.FLOAT else None
            if there is not None and target(there) == onnx.TensorProto.FLOAT16:
                node.input[index] = there.input[0]
    while dead := [n for n in casts.values() if n.output[0] not in outputs and not _read(graph, n.output[0])]:
        for node in dead:
            graph.node.remove(node)
            del casts[node.output[0]]


def _read(graph: onnx.GraphProto, name: str) -> bool:
    return any(name in node.input for node in graph.node)


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

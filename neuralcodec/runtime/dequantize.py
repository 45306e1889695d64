"""Float32 graphs out of 8-bit ones. Packs hold 8-bit graphs for CPU kernels; a GPU wants the same network in floats.

Activations become exact again, weights keep the values that their 8 bits stand for. Knows no network by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neuralcodec.errors import BackendUnavailableError

ACTIVATIONS, WEIGHTS = "QuantizeLinear", "DequantizeLinear"


def is_quantized(graph: bytes) -> bool:
    """Whether an ONNX file computes in 8 bits somewhere."""
    return ACTIVATIONS.encode() in graph


def float_graph(graph: bytes) -> bytes:
    """An ONNX file as a GPU should get it: in float32 where its activations are unsigned 8-bit numbers, the form for
    CPUs that TensorRT cannot read and CUDA has no convolution for; as it is otherwise. Needs the package onnx then."""
    if not is_quantized(graph):
        return graph
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailableError(
            "The pack's graphs are 8-bit graphs for CPUs, and turning them into float ones for a GPU needs onnx: "
            "pip install onnx, or the extra 'neuralcodec[gpu]'."
        ) from error
    model = onnx.load_model_from_string(graph)
    stored = {t.name: t for t in model.graph.initializer}
    points = [stored[n.input[2]] for n in model.graph.node if n.op_type == ACTIVATIONS and len(n.input) > 2]
    if all(point.data_type != onnx.TensorProto.UINT8 for point in points):
        return graph
    dequantize(model)
    return bytes(model.SerializeToString())


def dequantize(model: Any) -> int:
    """Take QuantizeLinear and DequantizeLinear out of an onnx.ModelProto in place; returns how many weights became
    float32 under the names they had before onnxruntime quantized them."""
    from onnx import numpy_helper

    graph = model.graph
    stored = {t.name: t for t in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    outputs = {o.name for o in graph.output}
    renamed: dict[str, str] = {}
    weights, used = {}, set()
    for node in graph.node:
        if node.op_type != WEIGHTS:
            continue
        if node.input[0] in stored:
            name = node.input[0].removesuffix("_quantized")
            weights[name] = numpy_helper.from_array(_real(node, stored), name)
            if node.output[0] != name:
                renamed[node.output[0]] = name
            used.update(node.input)
        else:
            quantize = makers[node.input[0]]
            used.update([*node.input[1:], *quantize.input[1:]])
            if node.output[0] in outputs:
                renamed[quantize.input[0]] = node.output[0]
            else:
                renamed[node.output[0]] = quantize.input[0]
    kept = [node for node in graph.node if node.op_type not in (ACTIVATIONS, WEIGHTS)]
    for node in kept:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                while name in renamed:
                    name = renamed[name]
                names[index] = name
    del graph.node[:]
    graph.node.extend(kept)
    tensors = [t for t in graph.initializer if t.name not in used]
    del graph.initializer[:]
    graph.initializer.extend([*tensors, *weights.values()])
    del graph.value_info[:]
    return len(weights)


def _real(node: Any, stored: Any) -> Any:
    """What a DequantizeLinear of constants gives, float32."""
    from onnx import numpy_helper

    values, scale, *point = (numpy_helper.to_array(stored[name]) for name in node.input if name)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)] if scale.size > 1 else []
    zero = point[0].astype(np.int64).reshape(shape if point[0].size > 1 else []) if point else 0
    return ((values.astype(np.int64) - zero) * scale.reshape(shape)).astype(np.float32)

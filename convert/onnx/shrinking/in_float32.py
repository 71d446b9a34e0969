"""What stays in float32 beside operators in eight bits: the last layers, what a softmax reads, what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from bensemble.errors import ExportError

__all__ = ["CONVOLUTIONS", "PRODUCTS", "before", "refused", "softmax_of_floats"]

#: Operators with a weight, and those of them that only static quantization makes faster.
PRODUCTS, CONVOLUTIONS = ("MatMul", "Gemm"), ("Conv", "ConvTranspose")


def softmax_of_floats(proto: onnx.ModelProto) -> None:
    """Let no softmax read a rounding but through a product or a convolution.

    Between two roundings, with functions of single numbers and changes of shape, tract takes it for element-wise.
    """
    makers = {output: node for node in proto.graph.node for output in node.output}
    waiting, seen = [node for node in proto.graph.node if node.op_type in ("Softmax", "LogSoftmax")], set()
    while waiting:
        node = waiting.pop()
        for place, name in enumerate(node.input):
            maker = makers.get(name)
            if maker is not None and maker.op_type == "DequantizeLinear":
                rounding = makers.get(maker.input[0])
                if rounding is None or rounding.op_type != "QuantizeLinear":  # a constant
                    continue
                name = node.input[place] = rounding.input[0]
                maker = makers.get(name)
            if maker is not None and maker.op_type not in (*PRODUCTS, *CONVOLUTIONS) and name not in seen:
                seen.add(name)
                waiting.append(maker)


def refused(proto: onnx.ModelProto) -> list[str]:
    """The names of transposed convolutions in groups, whose biases ONNX Runtime's quantizer cannot round by channel."""
    transposed = [node for node in proto.graph.node if node.op_type == "ConvTranspose"]
    return [node.name for node in transposed if any(a.name == "group" and a.i > 1 for a in node.attribute)]


def before(proto: onnx.ModelProto, heads: Sequence[np.ndarray]) -> list[str]:
    """The names of the operators that the inputs of the layers with these weights depend on.

    Raises:
        ExportError: The graph does not hold one of these weights, or nothing comes before them.
    """
    makers = {output: node for node in proto.graph.node for output in node.output}
    waiting: list[str] = []
    for head in heads:
        same = {tensor.name for tensor in proto.graph.initializer if _is_weight(tensor, head)}
        readers = [node for node in proto.graph.node if same & set(node.input)]
        if not readers:
            raise ExportError(
                "export_onnx: quantize='int8' must find the last layer in the graph, which stays float32, got none of "
                "its weights; export without quantize."
            )
        waiting += [name for node in readers for name in node.input if name not in same]
    found: dict[str, None] = {}
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = None
            waiting += node.input
    if not found:
        raise ExportError(
            "export_onnx: quantize='int8' must find layers before the last one, which stays float32, got none; export "
            "without quantize."
        )
    return list(found)


def _is_weight(tensor: onnx.TensorProto, weight: np.ndarray) -> bool:
    if sorted(tensor.dims) != sorted(weight.shape) or tensor.data_type != onnx.TensorProto.FLOAT:
        return False
    stored = onnx.numpy_helper.to_array(tensor)
    return any(stored.shape == w.shape and np.array_equal(stored, w) for w in (weight, weight.T))

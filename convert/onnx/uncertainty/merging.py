"""The first drawn layer as one operation: K convolutions or products of one input are one with K times the outputs.

What is read K times is then unfolded, packed and read once, which is where ONNX Runtime spends its time in small first
layers. The result is split into K parts again; activations and pooling that treat channels alike move before the split.
Layers behind it have K different inputs, and one operation per draw is faster there than grouped convolutions and
batched matrix products: ONNX Runtime packs the weights of plain ones ahead of time (measured, see
``benchmarks/onnx_uncertainty.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["merge_siblings"]

#: Operators that treat every channel alike, by whether they need the channels on axis 1.
ELEMENTWISE = {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus"}
ELEMENTWISE |= {"Abs", "Erf", "Exp", "Neg", "Sqrt", "Tanh"}
POOLING = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"}

#: Axis of the stored weight that makes the outputs, and axis of the result that holds them.
Axes = tuple[int, int]


def merge_siblings(proto: onnx.ModelProto) -> None:
    """Merge the convolutions and matrix products that differ in their stored weights only; in place."""
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    groups: dict[tuple[object, ...], list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if _outputs_axes(node, stored) is not None and all(readers[name] == 1 for name in node.input[1:] if name):
            shapes = tuple(tuple(stored[name].dims) for name in node.input[1:] if name)
            groups[node.op_type, node.input[0], _settings(node), shapes].append(node)
    for siblings in groups.values():
        if len(siblings) > 1:
            _merge(graph, stored, siblings)
    del graph.value_info[:]


def _merge(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], siblings: Sequence[onnx.NodeProto]) -> None:
    """Replace siblings by one node and a split."""
    first = siblings[0]
    axes = _outputs_axes(first, stored)
    assert axes is not None
    weight_axis, axis = axes
    joint = onnx.NodeProto()
    joint.CopyFrom(first)
    joint.name, joint.output[:] = f"{first.name}.joint", [f"{first.output[0]}.joint"]
    for place, name in enumerate(first.input[1:], 1):
        if name:
            parts = [node.input[place] for node in siblings]
            joint.input[place] = _joined(graph, stored, parts, weight_axis if place == 1 else 0)
    width = stored[joint.input[1]].dims[weight_axis] // len(siblings)
    split = onnx.helper.make_node(
        "Split",
        [joint.output[0]],
        [node.output[0] for node in siblings],
        f"{first.name}.split",
        axis=axis,
        num_outputs=len(siblings),
    )
    position = next(index for index, node in enumerate(graph.node) if node.output[:1] == first.output[:1])
    for node in siblings:
        graph.node.remove(node)
    graph.node.insert(position, joint)
    graph.node.insert(position + 1, split)
    position += 1
    while _move_before(graph, stored, position, axis, width):
        position += 1


def _move_before(
    graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], position: int, axis: int, width: int
) -> bool:
    """Let the operation that follows on every part work on the whole instead; False where there is none such."""
    split = graph.node[position]
    ends = {value.name for value in graph.output}
    following = []
    for part in split.output:
        found = [node for node in graph.node if part in node.input]
        if len(found) != 1 or part in ends or list(found[0].input).count(part) != 1 or len(found[0].output) != 1:
            return False
        following.append(found[0])
    first = following[0]
    if any(node.op_type != first.op_type or _settings(node) != _settings(first) for node in following):
        return False
    joint = onnx.NodeProto()
    joint.CopyFrom(first)
    joint.name, joint.output[:] = f"{first.name}.joint", [f"{first.output[0]}.joint"]
    if first.op_type in ELEMENTWISE or (first.op_type in POOLING and axis == 1):
        if any(
            list(node.input[1:]) != list(first.input[1:]) or node.input[0] != part
            for node, part in zip(following, split.output, strict=True)
        ):
            return False
        joint.input[0] = split.input[0]
    elif first.op_type == "Add":
        others = [
            next((name for name in node.input if name != part), "")
            for node, part in zip(following, split.output, strict=True)
        ]
        vectors = all(name in stored and list(stored[name].dims) == [width] for name in others)
        if (
            axis != -1
            or not vectors
            or len(set(others)) != len(others)
            or any(_readers(graph)[name] > 1 for name in others)
        ):
            return False
        joint.input[:] = [split.input[0], _joined(graph, stored, others, 0)]
    else:
        return False
    split.input[0] = joint.output[0]
    split.output[:] = [node.output[0] for node in following]
    for node in following:
        graph.node.remove(node)
    graph.node.insert(position, joint)
    return True


def _joined(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], names: Sequence[str], axis: int) -> str:
    """A stored tensor that joins others, which it replaces."""
    whole = np.concatenate([numpy_helper.to_array(stored[name]) for name in names], axis)
    for name in names:
        graph.initializer.remove(stored.pop(name))
    tensor = numpy_helper.from_array(whole, names[0].removesuffix(".draw0") + ".draws")
    graph.initializer.append(tensor)
    stored[tensor.name] = tensor
    return tensor.name


def _outputs_axes(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> Axes | None:
    """Where the outputs lie in weight and result, None where the node cannot be merged with its siblings."""
    if len(node.input) < 2 or node.input[0] in stored or any(name and name not in stored for name in node.input[1:]):
        return None
    settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv" and settings.get("group", 1) == 1:
        return 0, 1
    if node.op_type == "Gemm" and not settings.get("transA", 0):
        bias = stored[node.input[2]].dims if len(node.input) > 2 and node.input[2] else ()
        return (0 if settings.get("transB", 0) else 1, 1) if len(bias) < 2 else None
    if node.op_type == "MatMul" and len(stored[node.input[1]].dims) == 2:
        return 1, -1
    return None


def _settings(node: onnx.NodeProto) -> bytes:
    """The attributes, comparable."""
    return b"".join(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))


def _readers(graph: onnx.GraphProto) -> dict[str, int]:
    """How often each value is read."""
    counts: dict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            counts[name] += 1
    return counts

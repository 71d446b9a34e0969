"""The first drawn layer as one operation: K convolutions or products of one input are one with K times the outputs.

In small first layers ONNX Runtime spends its time on unfolding, packing and reading the input; now it does so once
instead of K times. The result is split into K parts; activations and pooling that treat channels alike move before the
split. The layers after it have K different inputs. There one operation per draw is faster than grouped convolutions and
batched matrix products, because ONNX Runtime packs the weights of plain ones ahead of time (measured in
``benchmarks/onnx_uncertainty.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["merge_siblings"]

#: Operators that treat every channel alike; those of POOLING only where the channels are on axis 1.
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
    inputs = list(first.input)
    for place, name in enumerate(first.input[1:], 1):
        if name:
            parts = [node.input[place] for node in siblings]
            inputs[place] = _joined(graph, stored, parts, weight_axis if place == 1 else 0)
    joint = _joint_node(first, inputs)
    split = onnx.helper.make_node(
        "Split",
        [joint.output[0]],
        [node.output[0] for node in siblings],
        f"{first.name}.split",
        axis=axis,
        num_outputs=len(siblings),
    )
    width = stored[joint.input[1]].dims[weight_axis] // len(siblings)
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
    """Apply the operation that follows on every part to the whole, before the split; False where that is impossible.

    Args:
        graph: The graph; it is changed in place.
        stored: Its initializers by name.
        position: Index of the split among the nodes.
        axis: Axis that is split.
        width: Size of one part along it.
    """
    split = graph.node[position]
    following = _followers(graph, split)
    inputs = _inputs_of_joint(graph, stored, split, following, axis, width) if following else None
    if inputs is None:
        return False
    joint = _joint_node(following[0], inputs)
    split.input[0] = joint.output[0]
    split.output[:] = [node.output[0] for node in following]
    for node in following:
        graph.node.remove(node)
    graph.node.insert(position, joint)
    return True


def _followers(graph: onnx.GraphProto, split: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node that reads each part, where there is exactly one and all are of one kind; else an empty list."""
    ends = {value.name for value in graph.output}
    following = []
    for part in split.output:
        readers = [node for node in graph.node for name in node.input if name == part]
        if part in ends or len(readers) != 1 or len(readers[0].output) != 1:
            return []
        following.append(readers[0])
    kinds = {(node.op_type, _settings(node)) for node in following}
    return following if len(kinds) == 1 else []


def _inputs_of_joint(
    graph: onnx.GraphProto,
    stored: dict[str, onnx.TensorProto],
    split: onnx.NodeProto,
    following: Sequence[onnx.NodeProto],
    axis: int,
    width: int,
) -> list[str] | None:
    """What one node in place of the followers reads; None where one node cannot do their work."""
    kind = following[0].op_type
    if kind in ELEMENTWISE or (kind in POOLING and axis == 1):
        return _inputs_of_same(split, following)
    if kind == "Add" and axis == -1:
        return _inputs_of_sum(graph, stored, split, following, width)
    return None


def _inputs_of_same(split: onnx.NodeProto, following: Sequence[onnx.NodeProto]) -> list[str] | None:
    """The whole, and the settings that all followers read, such as the bounds of Clip."""
    settings = list(following[0].input[1:])
    for node, part in zip(following, split.output, strict=True):
        if list(node.input) != [part, *settings]:
            return None
    return [split.input[0], *settings]


def _inputs_of_sum(
    graph: onnx.GraphProto,
    stored: dict[str, onnx.TensorProto],
    split: onnx.NodeProto,
    following: Sequence[onnx.NodeProto],
    width: int,
) -> list[str] | None:
    """The whole, and the joined biases, where each follower adds a stored vector of its own."""
    biases = []
    for node, part in zip(following, split.output, strict=True):
        biases.append(node.input[1] if node.input[0] == part else node.input[0])
    vectors = all(name in stored and list(stored[name].dims) == [width] for name in biases)
    readers = _readers(graph)
    if not vectors or any(readers[name] > 1 for name in biases):
        return None
    return [split.input[0], _joined(graph, stored, biases, 0)]


def _joint_node(first: onnx.NodeProto, inputs: Sequence[str]) -> onnx.NodeProto:
    """A node like the first of several, with other inputs."""
    joint = onnx.NodeProto()
    joint.CopyFrom(first)
    joint.name, joint.input[:], joint.output[:] = f"{first.name}.joint", inputs, [f"{first.output[0]}.joint"]
    return joint


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

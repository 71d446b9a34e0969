"""The first drawn layer as one operation: K convolutions or products of one input are one with K times the outputs.

In small first layers ONNX Runtime spends its time on unfolding, packing and reading the input; now it does so once
instead of K times. The result is split into K parts; activations and pooling that treat channels alike move before the
split. The layers after it have K different inputs. There one operation per draw is faster than grouped convolutions and
batched matrix products, because ONNX Runtime packs the weights of plain ones ahead of time (measured in
``benchmarks/onnx_uncertainty.py``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import onnx

from ..files.proto import captured

__all__ = ["merge_siblings"]

#: Operators that treat every channel alike; those of POOLING only where the channels are on axis 1.
ELEMENTWISE = {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus"}
ELEMENTWISE |= {"Abs", "Erf", "Exp", "Neg", "Sqrt", "Tanh"}
POOLING = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"}

#: Axis of the stored weight that makes the outputs, and axis of the result that holds them.
Axes = tuple[int, int]


def merge_siblings(proto: onnx.ModelProto) -> None:
    """Merge the convolutions and matrix products that differ in their constant weights only; in place."""
    merger = _Merger(proto)
    readers = merger.readers()
    groups: dict[tuple[object, ...], list[onnx.NodeProto]] = defaultdict(list)
    for node in proto.graph.node:
        if merger.axes(node) is not None and all(readers[name] == 1 for name in node.input[1:] if name):
            shapes = tuple(merger.constant[name] for name in node.input[1:] if name)
            groups[node.op_type, node.input[0], _settings(node), shapes].append(node)
    for siblings in groups.values():
        if len(siblings) > 1:
            merger.merge(siblings)
    merger.close()
    del proto.graph.value_info[:]


class _Merger:
    """Changes a graph in place.

    Attributes:
        graph: The graph; what depends on no input comes first in it.
        constant: The shapes of the values that depend on no input, such as the draws of a weight.
        joins: What joins constants, still to be put behind the first nodes.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = proto.graph
        self.joins: list[onnx.NodeProto] = []
        shapes = {}
        for value in onnx.shape_inference.infer_shapes(proto).graph.value_info:
            dims = value.type.tensor_type.shape.dim
            if all(dim.HasField("dim_value") for dim in dims):
                shapes[value.name] = tuple(dim.dim_value for dim in dims)
        self.constant = {tensor.name: tuple(tensor.dims) for tensor in self.graph.initializer}
        first: list[onnx.NodeProto] = []
        rest: list[onnx.NodeProto] = []
        for node in self.graph.node:
            is_constant = all(name in self.constant for name in captured(node))
            (first if is_constant else rest).append(node)
            if is_constant:
                self.constant |= {name: shapes[name] for name in node.output if name in shapes}
        del self.graph.node[:]
        self.graph.node.extend([*first, *rest])
        self.first = len(first)

    def readers(self) -> Counter[str]:
        """How often each value is read."""
        return Counter(name for node in self.graph.node for name in node.input)

    def axes(self, node: onnx.NodeProto) -> Axes | None:
        """Where the outputs lie in weight and result, None where the node cannot be merged with its siblings."""
        constant, weights = self.constant, node.input[1:]
        if not weights or node.input[0] in constant or any(name and name not in constant for name in weights):
            return None
        settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Conv" and settings.get("group", 1) == 1:
            return 0, 1
        if node.op_type == "Gemm" and not settings.get("transA", 0):
            bias = constant[node.input[2]] if len(node.input) > 2 and node.input[2] else ()
            return (0 if settings.get("transB", 0) else 1, 1) if len(bias) < 2 else None
        if node.op_type == "MatMul" and len(constant[node.input[1]]) == 2:
            return 1, -1
        return None

    def merge(self, siblings: Sequence[onnx.NodeProto]) -> None:
        """Replace siblings by one node and a split."""
        first = siblings[0]
        axes = self.axes(first)
        assert axes is not None
        weight_axis, axis = axes
        inputs = list(first.input)
        for place, name in enumerate(first.input[1:], 1):
            if name:
                inputs[place] = self.joined([node.input[place] for node in siblings], weight_axis if place == 1 else 0)
        joint = _joint_node(first, inputs)
        parts = [node.output[0] for node in siblings]
        name, count = f"{first.name}.split", len(siblings)
        split = onnx.helper.make_node("Split", [joint.output[0]], parts, name, axis=axis, num_outputs=count)
        width = self.constant[first.input[1]][weight_axis]
        position = next(index for index, node in enumerate(self.graph.node) if node.output[:1] == first.output[:1])
        for node in siblings:
            self.graph.node.remove(node)
        self.graph.node.insert(position, joint)
        self.graph.node.insert(position + 1, split)
        position += 1
        while self.move_before(position, axis, width):
            position += 1

    def move_before(self, position: int, axis: int, width: int) -> bool:
        """Apply the operation that follows on every part to the whole, before the split.

        Args:
            position: Index of the split among the nodes.
            axis: Axis that is split.
            width: Size of one part along it.

        Returns:
            False where that is impossible.
        """
        split = self.graph.node[position]
        following = self.followers(split)
        kind = following[0].op_type if following else None
        inputs = None
        if kind in ELEMENTWISE or (kind in POOLING and axis == 1):
            inputs = _inputs_of_same(split, following)
        elif kind == "Add" and axis == -1:
            inputs = self.inputs_of_sum(split, following, width)
        if inputs is None:
            return False
        joint = _joint_node(following[0], inputs)
        split.input[0] = joint.output[0]
        split.output[:] = [node.output[0] for node in following]
        for node in following:
            self.graph.node.remove(node)
        self.graph.node.insert(position, joint)
        return True

    def followers(self, split: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node that reads each part, where there is exactly one and all are of one kind; else an empty list."""
        ends = {value.name for value in self.graph.output}
        following = []
        for part in split.output:
            readers = [node for node in self.graph.node for name in node.input if name == part]
            if part in ends or len(readers) != 1 or len(readers[0].output) != 1:
                return []
            following.append(readers[0])
        kinds = {(node.op_type, _settings(node)) for node in following}
        return following if len(kinds) == 1 else []

    def inputs_of_sum(self, split: onnx.NodeProto, following: Sequence[onnx.NodeProto], width: int) -> list[str] | None:
        """The whole, and the joined biases, where each follower adds a stored vector of its own."""
        biases = []
        for node, part in zip(following, split.output, strict=True):
            biases.append(node.input[1] if node.input[0] == part else node.input[0])
        vectors = all(self.constant.get(name) == (width,) for name in biases)
        readers = self.readers()
        if not vectors or any(readers[name] > 1 for name in biases):
            return None
        return [split.input[0], self.joined(biases, 0)]

    def close(self) -> None:
        """Put what joins constants behind these."""
        nodes = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*nodes[: self.first], *self.joins, *nodes[self.first :]])

    def joined(self, names: Sequence[str], axis: int) -> str:
        """The name of a constant that joins others; a runtime computes it when it loads the file."""
        name = f"{names[0]}.joined"
        self.joins.append(onnx.helper.make_node("Concat", names, [name], name, axis=axis))
        return name


def _inputs_of_same(split: onnx.NodeProto, following: Sequence[onnx.NodeProto]) -> list[str] | None:
    """The whole, and the settings that all followers read, such as the bounds of Clip."""
    settings = list(following[0].input[1:])
    for node, part in zip(following, split.output, strict=True):
        if list(node.input) != [part, *settings]:
            return None
    return [split.input[0], *settings]


def _joint_node(first: onnx.NodeProto, inputs: Sequence[str]) -> onnx.NodeProto:
    """A node like the first of several, with other inputs."""
    joint = onnx.NodeProto()
    joint.CopyFrom(first)
    joint.name, joint.input[:], joint.output[:] = f"{first.name}.joint", inputs, [f"{first.output[0]}.joint"]
    return joint


def _settings(node: onnx.NodeProto) -> bytes:
    """The attributes, comparable."""
    return b"".join(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))

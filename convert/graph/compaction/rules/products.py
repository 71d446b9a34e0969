"""Operations that are linear in one input: Linear, convolutions, transposed convolutions, products with a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from ..atoms.readers import GroupSizes, Reader
from .elementwise import combine
from .lookup import rule

__all__ = ["Geometry", "is_uniform", "read_channels"]

#: Operations with an optional bias as their third argument.
BIASED = frozenset(["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])


@dataclass(frozen=True)
class Geometry:
    """Where an operation keeps its channels.

    Attributes:
        axis: Channel axis of the input; that of the output is the same.
        out_axis: The weight's axis of outputs.
        in_axis: The weight's axis of inputs.
        groups: Number of groups.
        transposed: Whether the weight is (I, O / G, ...) instead of (O, I / G, ...).
        uniform: Whether a constant input gives a constant output: no zero padding, not a transposed convolution.
        selects: Whether unread inputs may be left out by an index.
    """

    axis: int
    out_axis: int = 0
    in_axis: int = 1
    groups: int = 1
    transposed: bool = False
    uniform: bool = True
    selects: bool = False


@rule("linear")
def linear(flow: Flow, call: Call) -> Any:
    """Y = x W^T + b over the last axis."""
    x, weight, bias = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias")
    if weight.ndim != 2:
        return flow.unknown(call, "linear with a vector")
    return read_channels(flow, call, x, weight, bias, Geometry(x.ndim - 1, selects=True))


@rule("addmm")
def addmm(flow: Flow, call: Call) -> Any:
    """Y = b + x W."""
    bias, x, weight = call.get(0, "input"), call.get(1, "mat1"), call.get(2, "mat2")
    if weight.leaf is None or bias.ndim != 1 or any(call.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return flow.unknown(call, "addmm without a weight")
    return read_channels(flow, call, x, weight, bias, Geometry(1, 1, 0))


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(flow: Flow, call: Call) -> Any:
    """Convolution, also transposed; the argument order is that of torch.nn.functional."""
    x, weight, bias, groups = call.get(0, "input"), call.get(1, "weight"), call.get(2, "bias"), call.get(6, "groups", 1)
    if x.ndim != weight.ndim:
        return flow.unknown(call, "a convolution without a batch axis")
    if groups != 1 and weight.leaf is not None and call.node.op == "call_function":
        path = weight.leaf.path

        def change(node: fx.Node, solution: Any) -> None:
            if path in solution.groups and len(node.args) > 6:
                node.update_arg(6, solution.groups[path])
            elif path in solution.groups:
                node.update_kwarg("groups", solution.groups[path])

        flow.edits.append((call.node, change))
    if call.name.startswith("conv_transpose"):
        geometry = Geometry(1, 1, 0, groups=groups, transposed=True, uniform=False)
    else:
        geometry = Geometry(1, groups=groups, uniform=is_uniform(call.get(4, "padding", 0), weight.shape[2:]))
    return read_channels(flow, call, x, weight, bias, geometry)


def is_uniform(padding: Any, kernel: tuple[int, ...]) -> bool:
    """Whether no zero padding takes part: none asked for, or none needed."""
    if padding == "valid":
        return True
    if padding == "same":
        return all(size == 1 for size in kernel)
    return all(amount == 0 for amount in (padding if isinstance(padding, (tuple, list)) else (padding,)))


def read_channels(flow: Flow, call: Call, x: Value, weight: Value, bias: Value | None, geometry: Geometry) -> Any:
    """Register the reader and return its output."""
    if weight.leaf is None or not isinstance(x, Value) or x.leaf is not None:
        return flow.unknown(call, f"the weight of this {call.name} is computed")
    if bias is not None and (bias.leaf is None or bias.ndim != 1):
        return flow.unknown(call, f"the bias of this {call.name} is computed")
    tensor = flow.leaves[weight.leaf.path].tensor
    if tensor.is_complex() or tensor.layout != torch.strided or not tensor.numel():
        return flow.unknown(call, "its weight is not a plain tensor")
    axis = geometry.axis
    x = flow.settled(x)
    out_own, in_own = (weight.leaf.axes[k] for k in (geometry.out_axis, geometry.in_axis))
    matrix = _by_group(tensor.detach().to("cpu", torch.float64), out_own, in_own, geometry)
    selects = geometry.selects and x.from_inputs
    inputs = flow.atoms.fresh(x.shape[axis]) if selects else flow.channels(x, axis, f"{call.name} reads it")
    outputs = flow.atoms.fresh(matrix.shape[0] * matrix.shape[1])
    _tie_weight(flow, weight, inputs, outputs, geometry)
    known, const = x.constants(axis)
    reads = (matrix != 0).any(-1)
    reader = Reader(
        node=call.node,
        weight=weight.leaf.path,
        bias=bias.leaf.path if bias is not None and bias.leaf else None,
        new_bias=flow.place_for_bias(weight.leaf.path) if bias is None and call.name in BIASED else None,
        out_axis=out_own,
        in_axis=in_own,
        inputs=inputs,
        outputs=outputs,
        reads=reads,
        known=known,
        const=torch.where(known, const, 0.0),
        carried=x.patterned or not geometry.uniform,
        selects=selects,
    )
    flow.readers.append(reader)
    return _output(flow, call, reader, matrix.sum(-1), bias, axis)


def _by_group(weight: Tensor, out_axis: int, in_axis: int, geometry: Geometry) -> Tensor:
    """The weight as (G, O / G, I / G, taps)."""
    groups = geometry.groups
    matrix = weight.movedim((out_axis, in_axis), (0, 1))
    matrix = matrix.reshape(*matrix.shape[:2], -1)
    if not geometry.transposed:
        return matrix.reshape(groups, -1, *matrix.shape[1:])
    return matrix.reshape(matrix.shape[0], groups, -1, matrix.shape[2]).transpose(0, 1)


def _tie_weight(flow: Flow, weight: Value, inputs: Tensor, outputs: Tensor, geometry: Geometry) -> None:
    """Unite the axes of the weight with the channels that they produce and read."""
    groups = geometry.groups
    # With groups one axis counts positions within a group, which have no channels of their own: the reader cuts it.
    if groups == 1 or not geometry.transposed:
        flow.atoms.unite(flow.leaf_axis(weight, geometry.out_axis), outputs)
    if groups == 1 or geometry.transposed:
        flow.atoms.unite(flow.leaf_axis(weight, geometry.in_axis), inputs)
    if groups == 1:
        return
    by_group = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
    if by_group[0].shape[1] == by_group[1].shape[1] == 1:
        flow.atoms.unite(inputs, outputs)
    else:
        flow.groups.append(GroupSizes(*by_group))


def _output(flow: Flow, call: Call, reader: Reader, sums: Tensor, bias: Value | None, axis: int) -> Value:
    """An output is constant when every input that it reads is, unless a carrier would be needed."""
    folds = reader.known & (reader.const == 0) if reader.carried else reader.known
    constant = ~(reader.reads & ~reader.grouped(folds)[:, None]).any(2).reshape(-1)
    shares = (sums * reader.grouped(reader.const)[:, None]).sum(2).reshape(-1)
    shape = [1] * len(call.shape)
    shape[axis] = -1
    out = Value(call.shape, reader.outputs.reshape(shape), constant.reshape(shape), shares.reshape(shape))
    if bias is None:
        return flow.normal(out)
    wide = [len(reader.outputs) if k == -1 else 1 for k in shape]
    lifted = flow.operand(bias).mapped(wide, lambda array: array.reshape(shape))
    return combine(flow, [out, lifted], call.shape, torch.add)

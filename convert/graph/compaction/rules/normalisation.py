"""Norms: by channel with stored statistics, or over channels with the statistics of the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..arrays import varying_axes
from ..calls import Call
from ..domain import Value
from ..flow import Flow
from .elementwise import combine
from .lookup import rule

__all__ = ["along_channels", "batch_norm_values", "group_norm_values", "layer_norm_values"]


@rule("batch_norm")
def batch_norm(flow: Flow, call: Call) -> Any:
    """(x - mean) / sqrt(var + eps) * w + b, in the argument orders of aten and of torch.nn.functional."""
    if isinstance(call.node.target, torch._ops.OpOverload):
        x, weight, bias, mean, var, training, _, eps = call.args[:8]
    else:
        x, mean, var = call.get(0, "input"), call.get(1, "running_mean"), call.get(2, "running_var")
        weight, bias, training = call.get(3, "weight"), call.get(4, "bias"), call.get(5, "training", False)
        eps = call.get(7, "eps", 1e-5)
    if training or mean is None or var is None:
        return batch_statistics(flow, call, x, weight, bias)
    return batch_norm_values(flow, call, x, mean, var, weight, bias, eps)


def batch_norm_values(
    flow: Flow, call: Call, x: Value, mean: Value, var: Value, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    """Batch norm with stored statistics."""

    def run(x: Tensor, mean: Tensor, var: Tensor, *affine: Tensor) -> Tensor:
        return _scaled((x - mean) / torch.sqrt(var + eps), affine, weight, bias)

    vectors = [along_channels(flow, v, x.ndim) for v in (mean, var, weight, bias) if v is not None]
    return combine(flow, [x, *vectors], call.shape, run)


def _scaled(x: Tensor, affine: tuple[Tensor, ...], weight: Value | None, bias: Value | None) -> Tensor:
    """``x * w + b`` with those of w and b that exist."""
    left = list(affine)
    x = x if weight is None else x * left.pop(0)
    return x if bias is None else x + left.pop(0)


def batch_statistics(flow: Flow, call: Call, x: Value, weight: Value | None, bias: Value | None) -> Value:
    """Norms by channel with the statistics of the input: a constant channel becomes the bias."""
    vectors = [along_channels(flow, v, x.ndim) for v in (weight, bias) if v is not None]

    def run(x: Tensor, *affine: Tensor) -> Tensor:
        return _scaled(torch.zeros_like(x), affine, weight, bias)

    return combine(flow, [x, *vectors], call.shape, run)


@rule("instance_norm")
def instance_norm(flow: Flow, call: Call) -> Any:
    """Norm of every channel of every image."""
    if isinstance(call.node.target, torch._ops.OpOverload):
        x, weight, bias, mean, _, by_input = call.args[:6]
    else:
        x, mean = call.get(0, "input"), call.get(1, "running_mean")
        weight, bias, by_input = call.get(3, "weight"), call.get(4, "bias"), call.get(5, "use_input_stats", True)
    if not by_input and mean is not None:
        return flow.unknown(call, "instance_norm with stored statistics")
    return batch_statistics(flow, call, x, weight, bias)


@rule("layer_norm", "rms_norm")
def layer_norm(flow: Flow, call: Call) -> Any:
    """Norm over the last axes."""
    x, shape, weight = call.get(0, "input"), call.get(1, "normalized_shape"), call.get(2, "weight")
    bias = call.get(3, "bias") if call.name == "layer_norm" else None
    return layer_norm_values(flow, call, x, len(shape), weight, bias)


def layer_norm_values(flow: Flow, call: Call, x: Value, axes: int, weight: Value | None, bias: Value | None) -> Value:
    """Every channel of the normalised axes counts, so they stay together."""
    x = flow.settled(flow.operand(x))
    affine = [v for v in (weight, bias) if v is not None]
    out = combine(flow, [x, *affine], call.shape, None)
    return flow.tie(out, range(x.ndim - axes, x.ndim), f"{call.name} reads all of it")


@rule("group_norm")
def group_norm(flow: Flow, call: Call) -> Any:
    """Norm over groups of channels."""
    x, groups = call.get(0, "input"), call.get(1, "num_groups")
    out = group_norm_values(flow, call, x, groups, call.get(2, "weight"), call.get(3, "bias"), call.get(4, "eps", 1e-5))

    def change(node: fx.Node, solution: Any) -> None:
        channels, alive = x.shape[1], solution.shape(x)[1]
        if alive != channels:
            node.update_arg(1, groups * alive // channels)

    if call.node.op == "call_function":
        flow.edit(call.node, change)
    return out


def group_norm_values(
    flow: Flow, call: Call, x: Value, groups: int, weight: Value | None, bias: Value | None, eps: float
) -> Any:
    """The channels of a group go together; a group of constants is constant."""
    x = flow.settled(flow.operand(x)).plain()
    if set(varying_axes(x.atoms)) - {1} or x.ndim < 2:
        return flow.unknown(call, "group_norm in a form that is not followed")
    atoms = flow.channels(x, 1, "group_norm reads it").reshape(groups, -1)
    flow.atoms.tie(atoms, 1, "group_norm reads its whole group")
    known, const = (array.reshape(groups, -1) for array in x.constants(1))
    known = known.all(1, keepdim=True).expand_as(const)
    const = (const - const.mean(1, keepdim=True)) / torch.sqrt(const.var(1, correction=0, keepdim=True) + eps)
    wide = (1, -1) + (1,) * (x.ndim - 2)
    normed = Value(call.shape, flow.atoms.find(atoms).reshape(wide), known.reshape(wide), const.reshape(wide))
    affine = [along_channels(flow, v, x.ndim) for v in (weight, bias) if v is not None]

    def run(x: Tensor, *vectors: Tensor) -> Tensor:
        return _scaled(x, vectors, weight, bias)

    return combine(flow, [normed, *affine], call.shape, run)


def along_channels(flow: Flow, vector: Value, ndim: int) -> Value:
    """A vector of one number per channel, laid along axis 1."""
    value = flow.operand(vector)
    if value.ndim != 1 or ndim == 1:
        return value
    tail = (1,) * (ndim - 2)
    return value.mapped((1, value.shape[0], *tail), lambda array: array.reshape((1, -1, *tail)))

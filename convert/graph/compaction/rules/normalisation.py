"""Norms: by channel, over groups of channels, or over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from bensemble.torch_internals import OpOverload

from ..atoms.arrays import varying_axes
from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from .elementwise import along_channels, combine
from .lookup import rule

__all__: list[str] = []


@rule("batch_norm", "instance_norm")
def norm_by_channel(flow: Flow, call: Call) -> Any:
    """(x - mean) / sqrt(var + eps) * w + b; with the statistics of the input, a constant channel becomes the bias."""
    if isinstance(call.node.target, OpOverload):  # aten has another order of arguments than torch.nn.functional
        x, weight, bias, mean, var, from_input, _, eps = call.args[:8]
    else:
        x, mean, var = call.get(0, "input"), call.get(1, "running_mean"), call.get(2, "running_var")
        weight, bias, eps = call.get(3, "weight"), call.get(4, "bias"), call.get(7, "eps", 1e-5)
        from_input = call.get(5, "training", False)
        if call.name == "instance_norm":
            from_input = call.get(5, "use_input_stats", True)
    stored = not from_input and mean is not None and var is not None
    vectors = [mean, var, weight, bias] if stored else [weight, bias]

    def run(x: Tensor, *vectors: Tensor) -> Tensor:
        if not stored:
            return _scaled(torch.zeros_like(x), vectors, weight, bias)
        mean, var, *affine = vectors
        return _scaled((x - mean) / torch.sqrt(var + eps), tuple(affine), weight, bias)

    laid = [along_channels(flow, v, x.ndim) for v in vectors if v is not None]
    return combine(flow, [x, *laid], call.shape, run)


def _scaled(x: Tensor, affine: tuple[Tensor, ...], weight: Value | None, bias: Value | None) -> Tensor:
    """``x * w + b`` with those of w and b that exist."""
    left = list(affine)
    x = x if weight is None else x * left.pop(0)
    return x if bias is None else x + left.pop(0)


@rule("layer_norm", "rms_norm")
def layer_norm(flow: Flow, call: Call) -> Any:
    """Norm over the last axes; every channel of them counts, so they stay together."""
    x, axes, weight = flow.operand(call.get(0, "input")), len(call.get(1, "normalized_shape")), call.get(2, "weight")
    bias = call.get(3, "bias") if call.name == "layer_norm" else None
    out = combine(flow, [x, *(v for v in (weight, bias) if v is not None)], call.shape, None)
    return flow.tie(out, range(x.ndim - axes, x.ndim), f"{call.name} reads all of it")


@rule("group_norm")
def group_norm(flow: Flow, call: Call) -> Any:
    """Norm over groups of channels, which go together; a group of constants is constant."""
    groups, weight, bias = call.get(1, "num_groups"), call.get(2, "weight"), call.get(3, "bias")
    eps = call.get(4, "eps", 1e-5)
    x = flow.plain(flow.settled(flow.operand(call.get(0, "input"))))
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

    def change(node: fx.Node, solution: Any) -> None:
        channels, alive = x.shape[1], solution.shape(x)[1]
        if alive != channels:
            node.update_arg(1, groups * alive // channels)

    if call.node.op == "call_function":
        flow.edits.append((call.node, change))
    return combine(flow, [normed, *affine], call.shape, lambda x, *vectors: _scaled(x, vectors, weight, bias))

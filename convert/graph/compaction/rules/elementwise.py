"""Operations on one element, or on elements at the same place of several tensors.

Their operands share atoms: what goes from one goes from all. Constants follow by running the operation on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..atoms.arrays import nothing_known, varying_axes, widened
from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from .lookup import rule

__all__ = ["along_channels", "combine"]

# fmt: off
UNARY = (
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "gelu", "silu", "swish", "mish", "elu",
    "selu", "celu", "leaky_relu", "softplus", "softsign", "logsigmoid", "log_sigmoid", "tanhshrink", "softshrink",
    "hardshrink", "threshold", "abs", "neg", "negative", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt",
    "square", "reciprocal", "erf", "sin", "cos", "floor", "ceil", "round", "sign", "nan_to_num", "clamp", "clip",
    "clamp_min", "clamp_max", "logical_not", "isnan",
    "activation",  # any module that is one of these
)
NARY = (
    "add", "sub", "subtract", "rsub", "div", "divide", "truediv", "true_divide", "pow", "maximum", "minimum", "lerp",
    "addcmul", "addcdiv", "where", "masked_fill", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or",
    "bitwise_and", "bitwise_or", "__and__", "__or__", "and_", "or_", "atan2", "floor_divide", "remainder", "fmod",
)
PRODUCTS = ("mul", "multiply")
IDENTITIES = (
    "contiguous", "clone", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_dropout", "feature_alpha_dropout", "identity", "to", "float", "double", "half", "bfloat16", "type_as",
    "type", "_to_copy", "cpu", "cuda", "positive", "alias", "requires_grad", "lift_fresh_copy",
)
# fmt: on
DROPOUTS = frozenset(name for name in IDENTITIES if name.endswith(("dropout", "dropout1d", "dropout2d", "dropout3d")))


@rule(*IDENTITIES)
def identity(flow: Flow, call: Call) -> Any:
    """The same elements."""
    value = flow.operand(call.operands[0])
    if call.name in DROPOUTS and call.get(2, "training", call.kwargs.get("train", True)) is not False:
        return flow.unknown(call, f"{call.name} is random here")
    if call.name in ("to", "type_as", "_to_copy", "type") and not call.meta.dtype.is_floating_point:
        return replace(value, parent=None, move=None).forget()
    return value


@rule(*UNARY, *NARY)
def elementwise(flow: Flow, call: Call) -> Any:
    """f(x, y, ...) at every place."""
    if not call.operands or not call.gives_tensor or call.kwargs.get("out") is not None:
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    return combine(flow, call.operands, call.shape, call.run)


@rule(*PRODUCTS)
def product(flow: Flow, call: Call) -> Any:
    """The product: a known zero in one factor makes a known zero."""
    return combine(flow, call.operands, call.shape, call.run, annihilates=True)


@rule("prelu")
def prelu(flow: Flow, call: Call) -> Any:
    """max(x, 0) + w min(x, 0) with one w, or one per channel."""
    x, weight = call.operands
    slope = along_channels(flow, weight, x.ndim) if max(weight.shape, default=1) > 1 else weight
    return combine(flow, [x, slope], call.shape, lambda x, w: x.clamp(min=0) + w * x.clamp(max=0))


def combine(
    flow: Flow,
    operands: Sequence[Value],
    shape: Sequence[int],
    run: Callable[..., Tensor] | None,
    annihilates: bool = False,
) -> Value:
    """The value of an elementwise operation.

    Args:
        flow: The pass.
        operands: Values that broadcast to ``shape``.
        shape: Of the result.
        run: The operation on constants; None leaves nothing known.
        annihilates: Whether one zero operand makes the result zero.
    """
    from_inputs = all(value.from_inputs for value in operands)
    # Leaves take on the axis of whatever they meet; everything else has one already.
    values = [flow.plain(_aligned(flow.operand(v) if v.leaf else flow.settled(v), len(shape))) for v in operands]
    atoms = _united(flow, values, shape)
    zero, const = nothing_known(len(shape))
    known = ~zero
    for value in values:
        known = known & value.known
        if annihilates:
            zero = zero | (value.known & (value.const == 0))
    if known.any():
        computed = _constants(run, values, operands)
        known = known & (computed is not None)
        const = const if computed is None else computed.expand(torch.broadcast_shapes(known.shape, computed.shape))
    const = torch.where(zero & ~known, 0.0, const)
    known = (known | zero).expand(const.shape) & const.isfinite()
    result = Value(tuple(shape), atoms, known, const, from_inputs=from_inputs)
    return flow.settled(result)


def _constants(run: Callable[..., Tensor] | None, values: list[Value], operands: Sequence[Value]) -> Tensor | None:
    """The operation on the constants of its operands; None where it does not take them, such as a mask."""
    if run is None:
        return None
    try:
        pairs = zip(values, operands, strict=True)
        const = run(*(v.const.reshape(v.const.shape[v.ndim - operand.ndim :]) for v, operand in pairs))
    except (RuntimeError, TypeError):
        return None
    return widened(const.to(torch.float64), values[0].ndim - const.ndim)


def _aligned(value: Value, ndim: int) -> Value:
    """The value with leading axes of size one."""
    missing = ndim - value.ndim
    return value.mapped((1,) * missing + value.shape, lambda array: widened(array, missing)) if missing else value


def _united(flow: Flow, values: list[Value], shape: Sequence[int]) -> Tensor:
    """Atoms of the result; operands that are spread over the channels of others are pinned instead of united."""
    atoms = [flow.atoms.find(value.atoms) for value in values]
    varying = [set(varying_axes(found)) for found in atoms]
    taking_part = []
    for index, value in enumerate(values):
        spread = {axis for axis in range(len(shape)) if value.shape[axis] == 1 and shape[axis] > 1}
        others: set[int] = set().union(*(varying[k] for k in range(len(values)) if k != index))
        if spread & others:
            flow.atoms.pin(atoms[index], "it is spread over the channels of another tensor")
        else:
            taking_part.append(atoms[index])
    if not taking_part:
        return flow.opaque(shape, "an outer product").atoms
    for found in taking_part[1:]:
        flow.atoms.unite(taking_part[0], found)
    return flow.atoms.find(torch.broadcast_tensors(*taking_part)[0])


def along_channels(flow: Flow, vector: Value, ndim: int) -> Value:
    """A vector of one number per channel, laid along axis 1."""
    value = flow.operand(vector)
    if value.ndim != 1 or ndim == 1:
        return value
    tail = (1,) * (ndim - 2)
    return value.mapped((1, value.shape[0], *tail), lambda array: array.reshape((1, -1, *tail)))

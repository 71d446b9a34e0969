"""Operations that act on positions, channel by channel, and reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..atoms.arrays import collapse, varying_axes
from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from .lookup import rule
from .products import is_uniform

__all__: list[str] = []


@rule("max_pool1d", "max_pool2d", "max_pool3d")
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
@rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@rule("replication_pad1d", "replication_pad2d", "replication_pad3d")
@rule("interpolate", "upsample", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest")
@rule("upsample_nearest1d", "upsample_linear1d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
@rule("upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact2d")
def pool(flow: Flow, call: Call) -> Any:
    """The largest value of a window, a mean whose weights sum to one, or a copy: a constant stays what it is."""
    return by_channel(flow, call, patterned=False)


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(flow: Flow, call: Call) -> Any:
    """Mean of a window; zero padding that counts makes a pattern of a constant."""
    padding, counted = call.get(3, "padding", 0), call.get(5, "count_include_pad", True)
    divisor = call.get(6, "divisor_override")
    return by_channel(flow, call, patterned=divisor is not None or (counted and not is_uniform(padding, (2,))))


def by_channel(flow: Flow, call: Call, patterned: bool) -> Any:
    """An operation on the positions of each channel by itself.

    Args:
        flow: The pass.
        call: The operation.
        patterned: Whether a constant channel is multiplied by a factor per position; else it stays as it is.
    """
    x = call.operands[0]
    if not call.gives_tensor or len(call.shape) != x.ndim:
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    x = flow.settled(flow.operand(x))
    positions = next((count for count in (1, 2, 3) if f"{count}d" in call.name), x.ndim - 2)
    axes = range(x.ndim - positions, x.ndim)
    if set(varying_axes(x.atoms)) & set(axes):
        return flow.unknown(call, f"{call.name} runs along its channels")
    x = flow.plain(x) if patterned else x
    known, const = collapse(x.known, x.const, axes)
    return Value(call.shape, x.atoms, known, const, patterned=x.patterned or patterned)


@rule("mean", "amax", "amin", "sum", "logsumexp", "std", "var", "norm", "prod", "all", "any")
def reduce(flow: Flow, call: Call) -> Any:
    """One value for whole axes; channels that are reduced stay together."""
    if not call.gives_tensor or not call.operands:
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    axes = _reduced_axes(call, call.operands[0].ndim)
    if axes is None:
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    x = flow.operand(call.operands[0])
    x = flow.settled(x, set(range(x.ndim)) - set(axes))
    if set(varying_axes(x.atoms)) & set(axes):
        x = flow.tie(x, axes, f"{call.name} runs along its channels").forget()
    x = flow.plain(x)
    uniform = all(x.known.shape[axis] == 1 for axis in axes)
    if not uniform or call.name not in ("mean", "amax", "amin", "sum"):
        x = x.forget()
    elif call.name == "sum":
        x = replace(x, known=x.known & (x.const == 0))
    keeps = len(call.shape) == x.ndim

    def first(array: Tensor) -> Tensor:
        for axis in sorted(axes, reverse=True):
            array = array.narrow(axis, 0, 1) if keeps else array.select(axis, 0)
        return array

    return flow.normal(replace(x.mapped(call.shape, first), from_inputs=False))


def _reduced_axes(call: Call, ndim: int) -> list[int] | None:
    """Axes that the operation reduces, None where the shapes do not tell."""
    given = call.get(1, "dim", call.kwargs.get("axis"))
    if call.name == "norm":
        given = call.get(2, "dim")
    if isinstance(given, bool) or not (given is None or isinstance(given, (int, list, tuple))):
        return None
    axes = range(ndim) if given is None or given in ([], ()) else [given] if isinstance(given, int) else given
    found = sorted({axis % ndim for axis in axes})
    return found if len(call.shape) in (ndim, ndim - len(found)) else None


@rule("cumsum", "softmax", "log_softmax", "_softmax", "normalize", "softmin")
def along_axis(flow: Flow, call: Call) -> Any:
    """An operation along one axis that keeps its size; channels along it stay together."""
    given = call.get(2, "dim", 1) if call.name == "normalize" else call.get(1, "dim")
    if not isinstance(given, int):
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    x = flow.operand(call.operands[0])
    axis = given % x.ndim
    x = flow.settled(x, set(range(x.ndim)) - {axis})
    if axis in varying_axes(x.atoms):
        x = flow.tie(x, [axis], f"{call.name} runs along its channels")
    out = replace(x.forget(), shape=call.shape, parent=None, move=None, from_inputs=False)
    return replace(out, stochastic=call.name in ("softmax", "_softmax") and axis == x.ndim - 1)

"""Products of two activations, attention, and look-ups in a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..atoms.arrays import collapse, varying_axes, widened
from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from .elementwise import combine
from .lookup import rule
from .products import Geometry, read_channels

__all__ = ["attend", "multiply_matrices"]


@rule("matmul", "bmm", "mm")
def matmul(flow: Flow, call: Call) -> Any:
    """(..., M, K) x (..., K, N); with a weight on the right a linear layer without bias."""
    a, b = call.operands[:2]
    if a.ndim < 2 or b.ndim < 2:
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    if b.leaf is not None and b.ndim == 2 and a.leaf is None:
        return read_channels(flow, call, a, b, None, Geometry(a.ndim - 1, 1, 0, selects=True))
    return multiply_matrices(flow, call, a, b)


def multiply_matrices(flow: Flow, call: Call, a: Value, b: Value) -> Value:
    """Heads (leading axes) are shared; what is summed over stays together, within each head.

    Rows that sum to one leave a constant as it is.
    """
    reason = f"{call.name} sums over it"
    averages = a.stochastic
    a, b = (flow.plain(flow.settled(flow.operand(x))) for x in (a, b))
    left = _summed(flow, a, a.ndim - 1, reason)
    right = _summed(flow, b, b.ndim - 2, reason)
    out = combine(flow, [_blank(left), _blank(right)], call.shape, None)
    known, const = collapse(b.known, b.const, [b.ndim - 2])
    if not averages:
        known = known & (const == 0)
    missing = out.ndim - b.ndim
    return flow.normal(replace(out, known=widened(known, missing), const=widened(const, missing)))


def _summed(flow: Flow, value: Value, axis: int, reason: str) -> Value:
    """The operand with the axis that is summed over reduced to one element."""
    tied = flow.tie(value, [axis], reason) if axis in varying_axes(value.atoms) else value
    shape = tuple(1 if k == axis else size for k, size in enumerate(value.shape))
    return replace(tied, shape=shape, atoms=tied.atoms.narrow(axis, 0, 1))


def _blank(value: Value) -> Value:
    return replace(value.forget(), from_inputs=False)


@rule("scaled_dot_product_attention")
def attention(flow: Flow, call: Call) -> Any:
    """softmax(q k^T) v."""
    query, key, value, mask = (call.get(k, n) for k, n in enumerate(("query", "key", "value", "attn_mask")))
    if call.get(7, "enable_gqa", False) or call.get(4, "dropout_p", 0.0):
        return flow.unknown(call, "attention in a form that is not followed")
    return attend(flow, call, query, key, value, mask)


def attend(flow: Flow, call: Call, query: Value, key: Value, value: Value, mask: Value | None) -> Value:
    """Attention weights sum to one, unless a mask leaves nothing: then only zeros stay what they are."""
    q, k = flow.settled(flow.operand(query)), flow.settled(flow.operand(key))
    reason = f"{call.name} sums over it"
    left, right = _summed(flow, q, q.ndim - 1, reason), _summed(flow, k, k.ndim - 1, reason)
    right = _summed(flow, right, k.ndim - 2, reason)
    shape = (*torch.broadcast_shapes(q.shape[:-2], k.shape[:-2]), q.shape[-2], k.shape[-2])
    scores = _blank(combine(flow, [_blank(left), _blank(right)], shape, None))
    if isinstance(mask, Value):
        scores = combine(flow, [scores, _blank(flow.operand(mask))], scores.shape, None)
    return multiply_matrices(flow, call, replace(scores, stochastic=mask is None), value)


@rule("embedding")
def embedding(flow: Flow, call: Call) -> Any:
    """Rows of a table; the arguments come in the orders of aten and of torch.nn.functional."""
    table = next((v for v in call.operands if v.leaf and flow.leaves[v.leaf.path].tensor.is_floating_point()), None)
    if table is None or table.leaf is None or table.ndim != 2:
        return flow.unknown(call, "embedding in a form that is not followed")
    max_norm = call.get(3, "max_norm")  # aten has a flag in this place
    if max_norm is not None and not isinstance(max_norm, bool):
        return flow.unknown(call, "embedding that renormalises its table")
    _pin_others(flow, call, table)
    atoms = flow.leaf_axis(table, 1)
    rows = flow.leaves[table.leaf.path].tensor.detach()
    known = (rows == rows[:1]).all(0).cpu()
    const = rows[0].to("cpu", torch.float64) if len(rows) else torch.zeros(known.shape, dtype=torch.float64)
    missing = len(call.shape) - 1
    row = Value(call.shape, widened(atoms, missing), widened(known, missing), widened(const, missing))
    return flow.normal(row)


def _pin_others(flow: Flow, call: Call, table: Value) -> None:
    """The indices are read as they are."""
    for value in call.operands:
        if value is not table:
            flow.pin(value, "it is an index")


@rule("index")
def look_up(flow: Flow, call: Call) -> Any:
    """Rows of a tensor by an index tensor along its first axis: the other axes keep their atoms."""
    x = call.operands[0]
    where = call.get(1, "indices")
    first = where[0] if isinstance(where, (list, tuple)) else None
    if first is None or any(k is not None for k in where[1:]) or len(call.operands) != 2:
        return flow.unknown(call, "an index that is not followed")
    _pin_others(flow, call, x)
    x = flow.operand(x)
    x = flow.settled(flow.tie(x, [0], "it is indexed")) if x.atoms.shape[0] > 1 else x
    known, const = collapse(x.known, x.const, [0])
    row = replace(x, known=known, const=const)
    return flow.normal(row.mapped(call.shape, lambda array: widened(array[0], first.ndim)))

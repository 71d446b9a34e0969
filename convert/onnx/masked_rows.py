"""Attention over nothing: torch gives 0 for a query whose mask is empty, the exporter's graph something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnxscript
import torch
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

__all__ = ["TRANSLATIONS"]

op: Any = onnxscript.opset18


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The exporter's attention, set to 0 where the mask leaves a query nothing to attend to.

    The exporter writes the lowest float for a Boolean mask, so that a softmax averages over everything, and -inf for
    one of floats, so that it gives NaN.
    """
    output = aten_scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if attn_mask is None:
        return output
    boolean = attn_mask.dtype.name == "BOOL"
    lowest = op.Constant(value_float=-float("inf"))
    largest = op.ReduceMax(op.Cast(attn_mask, to=onnx.TensorProto.FLOAT), op.Constant(value_ints=[-1]), keepdims=1)
    empty = op.Equal(largest, op.Constant(value_float=0.0) if boolean else lowest)
    return op.Where(empty, op.CastLike(op.Constant(value_float=0.0), output), output)


#: For torch's exporter: how it writes the operations that it would write otherwise.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}

"""Normalisation with running statistics: a known factor and shift for each channel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..registry import CannotFollowError, formula
from ..state import Uncertain, Weight

__all__: list[str] = []


@formula("batch_norm")
def batch_norm(
    x: Uncertain, weight: Any, bias: Any, mean: Tensor | None, variance: Tensor | None, training: bool, momentum: float,
    eps: float, *_: Any,
) -> Uncertain:  # fmt: skip
    """Batch normalisation in evaluation mode."""
    if training or mean is None or variance is None:
        raise CannotFollowError("a normalisation by the statistics of the batch")
    if isinstance(weight, Weight) or isinstance(bias, Weight):
        raise CannotFollowError("a normalisation whose own parameters are uncertain")
    if x.axis != 1 or x.folded > 1:
        raise CannotFollowError("its channels are not on axis 1")
    factor = (variance + eps).rsqrt()
    if weight is not None:
        factor = factor * weight
    shift = -mean * factor
    if bias is not None:
        shift = shift + bias
    scaled = x.scaled(factor)
    return replace(scaled, mean=scaled.mean + x.along(shift))

"""Normalisation with running statistics: a known factor and shift for each channel.

Behind a layer that nobody else reads, both go into its weights: the same numbers from fewer operations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..registry import CannotFollowError, Operation, formula
from ..state import Uncertain, Weight

__all__ = ["with_norm"]


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
    factor, shift = _affine(weight, bias, mean, variance, eps)
    scaled = x.scaled(factor)
    return replace(scaled, mean=scaled.mean + x.along(shift))


def with_norm(layer: Operation, norm: Operation) -> Operation | None:
    """A convolution or linear layer with the norm that alone reads it inside; None where that cannot be."""
    _, scale, offset, running_mean, running_variance, training, _, eps = norm.args[:8]
    matrix, bias = layer.get(1, "weight"), layer.get(2, "bias")
    outputs = 1 if "transpose" in layer.name else 0
    known = not isinstance(scale, Weight) and not isinstance(offset, Weight) and running_mean is not None
    if training or not known or not layer.name.startswith(("conv", "linear")):
        return None
    factor, shift = _affine(scale, offset, running_mean, running_variance, eps)
    shape = matrix.mean.shape if isinstance(matrix, Weight) else matrix.shape
    if shape[outputs] != len(factor) or (layer.name == "linear" and layer.args[0].ndim != 2):
        return None
    wide = factor.view([-1 if axis == outputs else 1 for axis in range(len(shape))])
    if bias is None:
        bias = shift
    elif isinstance(bias, Weight):
        bias = Weight(bias.path, bias.mean * factor + shift, bias.variance * factor.square())
    else:
        bias = bias * factor + shift
    rest = {key: value for key, value in layer.kwargs.items() if key not in ("weight", "bias")}
    return Operation(layer.name, layer.function, (layer.args[0], _times(matrix, wide), bias, *layer.args[3:]), rest)


def _affine(weight: Any, bias: Any, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Factor and shift for each channel."""
    factor = (variance + eps).rsqrt()
    if weight is not None:
        factor = factor * weight
    return factor, (0 if bias is None else bias) - mean * factor


def _times(weight: Any, factor: Tensor) -> Any:
    if isinstance(weight, Weight):
        return Weight(weight.path, weight.mean * factor, weight.variance * factor.square())
    return weight * factor

"""Which element of a layer's output each output of the model is, or which map of its positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussian import precise

__all__ = ["output_places", "resizing"]


def output_places(raw: Tensor, result: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which element of a layer's output each output is, flat, and its constant factor; None if it is no such thing.

    Vector-Jacobian products with coded vectors tell: each element of the layer's output goes to one place at most.
    """
    if not raw.requires_grad or not raw.is_floating_point() or not raw.numel():
        return None

    def product(vector: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(raw, result, vector.to(raw.dtype), retain_graph=True)
        return precise(found.flatten())

    slope = product(torch.ones_like(raw))
    used = slope.nonzero().squeeze(1)
    if len(used) != raw.numel():
        return None
    base = 16 if _coarsest(raw, result) > 1e-4 else 1024  # so few digits that half precision tells them apart
    numbers, target = torch.arange(raw.numel(), device=raw.device), torch.zeros_like(used)
    for power in range(max(1, math.ceil(math.log(raw.numel(), base)))):
        digits = numbers // base**power % base
        target += (product(digits.view(raw.shape)) / slope)[used].round().long() * base**power
    if not torch.equal(target.sort().values, numbers):
        return None
    order = target.argsort()
    places, factors = used[order], slope[used[order]].to(precise(raw).dtype).view(raw.shape)
    rebuilt = precise(result.detach()).flatten()[places].view_as(raw) * factors
    return (places, factors) if _close(rebuilt, precise(raw.detach()), _coarsest(raw, result)) else None


def resizing(raw: Tensor, result: Tensor, axis: int) -> Callable[[Tensor], Iterator[Tensor]] | None:
    """The linear map from the positions of a layer's output to those of the model's, where each channel goes alone.

    It is the derivative of a vector-Jacobian product, so nothing runs again. Random values, at another scale in each
    channel, prove that it is the same for all channels, ones that constants stay, and the layer's output that nothing
    is added.

    Args:
        raw: The model's output.
        result: The layer's output.
        axis: The axis of channels in both, counted from the end.

    Returns:
        A function of a tensor with any number of channels at the layer's positions. It gives the channels at the
        positions of the model's output, in blocks, so that they need not be in memory together. None if there is no
        such map.

    Raises:
        RuntimeError: An operation has no second derivatives.
    """
    channels = result.shape[axis]
    if not raw.requires_grad or raw.ndim != result.ndim or raw.shape[axis] != channels or not raw.numel():
        return None
    vector = torch.zeros((), dtype=raw.dtype, device=raw.device).expand(raw.shape).requires_grad_()
    (product,) = torch.autograd.grad(raw, result, vector, create_graph=True, allow_unused=True)
    if product is None or not product.requires_grad:
        return None

    def resized(values: Tensor) -> Iterator[Tensor]:
        for block in values.to(result.dtype).split(channels, axis):
            padded = F.pad(block, [0, 0] * (-1 - axis) + [0, channels - block.shape[axis]])
            (found,) = torch.autograd.grad(product, vector, padded, retain_graph=True)
            yield precise(found).narrow(axis, 0, block.shape[axis])

    seeded, shape = torch.Generator().manual_seed(0), [1] * result.ndim
    shape[axis] = channels
    one = torch.randn(result.narrow(axis, 0, 1).shape, generator=seeded).to(result).expand_as(result)
    scales = torch.randn(shape, generator=seeded).to(result)
    (constant,), (alike,), (scaled,), (whole,) = map(
        resized, (torch.ones_like(result), one, one * scales, result.detach())
    )
    pairs = (
        (constant, torch.ones_like(constant)),
        (scaled, alike.narrow(axis, 0, 1) * scales),
        (whole, precise(raw.detach())),
    )
    return resized if all(_close(*pair, _coarsest(raw, result)) for pair in pairs) else None


def _coarsest(raw: Tensor, result: Tensor) -> float:
    return max(torch.finfo(raw.dtype).eps, torch.finfo(result.dtype).eps)


def _close(found: Tensor, expected: Tensor, coarsest: float) -> bool:
    largest = float(found.abs().nan_to_num(0.0, 0.0, 0.0).max())
    rounding = max(1e-4, 32 * coarsest)
    return torch.allclose(found, expected, rtol=rounding, atol=rounding / 10 * largest, equal_nan=True)

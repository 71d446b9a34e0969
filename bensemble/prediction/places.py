"""Which element of a layer's output each output of the model is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..gaussian import precise

__all__ = ["output_places"]


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
    coarsest = max(torch.finfo(raw.dtype).eps, torch.finfo(result.dtype).eps)
    base = 16 if coarsest > 1e-4 else 1024  # so few digits that half precision tells them apart
    numbers, target = torch.arange(raw.numel(), device=raw.device), torch.zeros_like(used)
    for power in range(max(1, math.ceil(math.log(raw.numel(), base)))):
        digits = numbers // base**power % base
        target += (product(digits.view(raw.shape)) / slope)[used].round().long() * base**power
    if not torch.equal(target.sort().values, numbers):
        return None
    order = target.argsort()
    places, factors = used[order], slope[used[order]].to(precise(raw).dtype).view(raw.shape)
    rebuilt = precise(result.detach()).flatten()[places].view_as(raw) * factors
    largest = float(rebuilt.abs().nan_to_num(0.0, 0.0, 0.0).max())
    rounding = max(1e-4, 32 * coarsest)
    close = torch.allclose(rebuilt, precise(raw.detach()), rtol=rounding, atol=rounding / 10 * largest, equal_nan=True)
    return (places, factors) if close else None

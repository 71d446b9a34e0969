r"""One draw of a weight, :math:`w = \mu + \epsilon\sigma`, from moments that the KL shares.

As with pre-activations, :math:`\partial w / \partial\sigma^2 = \epsilon / (2\sigma)` is all that the way back needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .blocks import LEAST_DEVIATION, blocks, like, scratches
from .moments import Moments

__all__ = ["draw_weight"]


def draw_weight(moments: Moments) -> Tensor:
    """A draw with noise from torch's default generator, differentiable in mu and rho."""
    return _Draw.apply(moments.mean, moments.variance, moments)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        mean, variance, moments = args
        weight, slope = torch.empty_like(variance), torch.empty_like(variance)
        (scratch,) = scratches(1, variance.numel())
        for m, v, w, e in blocks(like(mean, variance), variance, weight, slope):
            deviation = torch.sqrt(v, out=scratch[: v.numel()])
            torch.addcmul(m, deviation, e.normal_(), out=w)
            e.div_(deviation.clamp_min_(LEAST_DEVIATION)).mul_(0.5)
        ctx.moments = moments  # the KL of this step finds them for as long as they are held
        ctx.save_for_backward(variance, slope)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        variance, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            noise = 2.0 * slope * variance.detach().sqrt()
            return grad, grad * noise / (2.0 * variance.clamp_min(LEAST_DEVIATION**2).sqrt()), None
        ctx.moments = None
        # A product makes the gradient of its weight. What is only added, as a bias to one example, gets that of the
        # sum, which others hold too, and the KL is about to be added in place.
        return grad if grad.dim() > 1 else grad.clone(), grad * slope, None

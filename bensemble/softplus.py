r"""sigma = softplus(rho) and its slope, without autograd, in passes over blocks that stay in the processor's cache.

Where all sigma are small, as in most posteriors, a short series takes the place of the logarithm. With
:math:`p = \mathrm{sigmoid}(\rho)`, the slope of sigma, and :math:`y = p / (1 - p/2)` softplus is an inverse hyperbolic
tangent,

.. math:: \sigma = -\log(1 - p) = 2\,\mathrm{artanh}(y/2) = y + \frac{y^3}{12} + \dots
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .gaussian import RHO_MIN

__all__ = ["BLOCK", "LEAST_SIGMA", "blocks", "is_usual", "scratch", "softplus", "times_slope_"]

LEAST_SIGMA = 1e-18  # a standard deviation that can still divide: its square is a normal float32

BLOCK = 1 << 17  # elements; smaller ones cost more in calls than the cache gives back
_FEW = 1 << 12
_USUAL = (-40.0, -3.3)  # rho between which the series are exact to float32, and nothing has to be clamped


def blocks(first: Tensor, *others: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Pieces of tensors of one shape, small enough for the processor's cache; on other devices the whole of them."""
    if first.numel() <= BLOCK or first.device.type != "cpu":
        return [(first, *others)]
    rows = max(1, BLOCK * len(first) // first.numel())
    return zip(*(itertools.repeat(None) if t is None else t.split(rows) for t in (first, *others)), strict=False)


def is_usual(rho: Tensor) -> bool:
    """Whether the series will do. Not asked where that costs more than it saves: of other devices, of a few numbers."""
    if rho.numel() < _FEW or rho.dtype is not torch.float32 or not rho.is_cpu:
        return False
    least, most = rho.aminmax()
    return float(least) > _USUAL[0] and float(most) < _USUAL[1]


def scratch(block: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Two tensors like a block to write into, for what a pass needs in between; None where fresh ones are as good.

    On the CPU each thread keeps its own: the C library hands freed memory back to the kernel, and to take it again
    costs more than the pass.
    """
    numel, shape, steps = block.numel(), block.shape, block.stride()
    if not block.is_cpu or not _FEW <= numel <= BLOCK:
        return None, None
    if not block.is_contiguous() and numel != 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)):
        return None, None
    kept: dict[Any, Any] = _memory.__dict__
    if block.dtype not in kept:
        kept[block.dtype] = [torch.empty(BLOCK, dtype=block.dtype, device="cpu") for _ in range(2)]
    first, second = kept[block.dtype]
    return first.as_strided(shape, steps), second.as_strided(shape, steps)


_memory = threading.local()


def softplus(rho: Tensor, usual: bool) -> Tensor:
    """As sigma_from_rho, without gradients and in less time.

    The result may lie in scratch memory: use it up before the next call.
    """
    if rho.numel() < _FEW:
        return torch.nn.functional.softplus(rho.clamp_min(RHO_MIN))
    first, second = scratch(rho)
    if usual:  # 2 artanh(y / 2) = y + y^3 / 12 + ... with y = p / (1 - p / 2); MKL's exp is slow on AMD
        p = torch.sigmoid(rho, out=first)
        y = p.div_(torch.add(rho.new_ones(()), p, alpha=-0.5, out=second))
        return y.addcmul_(y, torch.mul(y, y, out=second), value=1 / 12)
    sigma = torch.clamp(rho, RHO_MIN, 20.0, out=first).exp_().log1p_()
    return torch.maximum(sigma, rho, out=sigma)  # softplus is the identity where exp would overflow


def times_slope_(g: Tensor, rho: Tensor, variance: Tensor, usual: bool) -> None:
    """The gradient of log sigma becomes that of rho, in place: times sigmoid(rho) / sigma."""
    first, second = scratch(rho)
    if usual:
        g.mul_(torch.rsqrt(variance, out=second)).mul_(torch.sigmoid(rho, out=first))
        return
    # 1 where both are tiny, and nothing where rho is clamped.
    sigma = torch.clamp_min(variance, LEAST_SIGMA**2, out=second).sqrt_()
    slope = torch.sigmoid(rho, out=first).clamp_min_(LEAST_SIGMA).mul_(g.div_(sigma))
    torch.ops.aten.threshold_backward.grad_input(slope, rho, RHO_MIN - 1e-5, grad_input=g)

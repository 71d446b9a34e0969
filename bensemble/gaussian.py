r"""The mathematics of a Gaussian weight, on tensors alone.

A weight has the posterior :math:`q(w) = N(\mu, \sigma^2)` with :math:`\sigma = \mathrm{softplus}(\rho)`
(Blundell et al. 2015, "Weight Uncertainty in Neural Networks", section 3.2). Everything here computes in
float32, or in float64 for float64 inputs, whatever the dtype of the weights: half precision loses small sigmas.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_internals import transforms_active

__all__ = [
    "RHO_MIN",
    "add_noise",
    "entropy",
    "kl_normal",
    "precise",
    "reparameterized",
    "rho_from_sigma",
    "root_mean_square",
    "sigma_from_rho",
    "snr",
    "standard_normal_like",
    "tracing",
    "variance_from_rho",
]

#: Below this rho a weight counts as pruned: softplus(-50) is 2e-22, far under the resolution of any mean.
RHO_MIN = -50.0
_EXP_OVERFLOWS = 80.0


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged when it is float64."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def root_mean_square(tensor: Tensor) -> Tensor:
    """The scale of a tensor, sqrt(mean of squares), 0-dimensional in the precise dtype; 0 without elements.

    Only reads, where ``square().mean()`` writes a tensor of the same size. Row by row, because one float32 sum over
    100 million squares is 1 % off.
    """
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if tensor.dim() < 2:
        return torch.linalg.vector_norm(tensor, dtype=dtype) / max(tensor.numel(), 1) ** 0.5
    rows = torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.dim())), dtype=dtype)
    return torch.linalg.vector_norm(rows) / max(tensor.numel(), 1) ** 0.5


def sigma_from_rho(rho: Tensor) -> Tensor:
    """Standard deviation softplus(rho), never exactly zero: rho is clamped at ``RHO_MIN``.

    Args:
        rho: Any shape and floating dtype.

    Returns:
        float32 or float64 tensor of the same shape, differentiable.
    """
    return F.softplus(precise(rho).clamp_min(RHO_MIN))


def variance_from_rho(rho: Tensor) -> Tensor:
    """The square of :func:`sigma_from_rho` in new memory, without gradients and in half of the time."""
    values = precise(rho.detach()).clamp_min(RHO_MIN)
    if values.numel() and float(values.max()) < _EXP_OVERFLOWS:
        return values.exp_().log1p_().square_()
    return F.softplus(values).square_()


def rho_from_sigma(sigma: Tensor) -> Tensor:
    """Inverse of :func:`sigma_from_rho`, as ``s + log(-expm1(-s))``, which is exact from 1e-12 to 800.

    Args:
        sigma: Positive standard deviations, any shape.

    Returns:
        Tensor of the same shape; computed in float64, returned in the precise dtype of ``sigma``.
    """
    wide = sigma.double()
    return (wide + torch.log(-torch.expm1(-wide))).clamp_min(RHO_MIN).to(precise(sigma).dtype)


def snr(mu: Tensor, sigma: Tensor) -> Tensor:
    """Signal-to-noise ratio ``|mu| / sigma``, a plain ratio (Graves 2011, section 6).

    Args:
        mu: Posterior means.
        sigma: Posterior standard deviations, positive.

    Returns:
        Tensor of the same shape in the precise dtype.
    """
    return precise(mu).abs() / sigma


def kl_normal(mu: Tensor, sigma: Tensor, prior_mean: Tensor | float, prior_sigma: Tensor | float) -> Tensor:
    r"""KL divergence :math:`KL(N(\mu, \sigma^2)\,\|\,N(m, s^2))` in nats, summed over all weights.

    .. math:: \sum \log\frac{s}{\sigma} + \frac{\sigma^2 + (\mu - m)^2}{2 s^2} - \frac12

    Args:
        mu: Posterior means.
        sigma: Posterior standard deviations, same shape, positive.
        prior_mean: Number or tensor that broadcasts against ``mu``.
        prior_sigma: Number or tensor that broadcasts against ``mu``, positive.

    Returns:
        Scalar tensor.
    """
    ratio = sigma / prior_sigma
    distance = (precise(mu) - prior_mean) / prior_sigma
    return 0.5 * (ratio.square() + distance.square() - 1.0).sum() - ratio.log().sum()


def entropy(sigma: Tensor) -> Tensor:
    r"""Differential entropy of the posterior in nats, :math:`\sum \log\sigma + \frac12\log 2\pi e`."""
    return sigma.log().sum() + 0.5 * sigma.numel() * math.log(2 * math.pi * math.e)


def add_noise(mean: Tensor, variance: Tensor) -> Tensor:
    r"""One draw of :math:`N(mean, variance)` per element, differentiable in both.

    The noise comes from torch's default generator. Where the variance is zero (dead inputs) the square root
    has a zero gradient instead of an infinite one.

    Args:
        mean: Means in any floating dtype.
        variance: Variances in float32 or float64, same shape, not negative.

    Returns:
        Tensor like ``mean``.
    """
    deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
    return mean + (deviation * standard_normal_like(variance)).to(mean.dtype)


def reparameterized(mean: Tensor, sigma: Tensor, noise: Tensor, out: Tensor | None = None) -> Tensor:
    """A weight, ``mean + sigma * noise`` in float32 or float64, differentiable unless it is written into ``out``."""
    return torch.addcmul(precise(mean), sigma, noise, out=out)


def standard_normal_like(tensor: Tensor) -> Tensor:
    """Standard normal noise with the shape, strides, dtype and device of ``tensor``.

    ``torch.randn_like`` on a channels_last tensor takes a path that is five times slower than a flat draw.
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is None or tensor.is_contiguous() or tracing() or not tensor.is_contiguous(memory_format=last):
        return torch.randn_like(tensor)
    flat = torch.randn(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    return flat.as_strided(tensor.shape, tensor.stride())


def tracing() -> bool:
    """True while torch.compile, torch.export or a functorch transform (vmap, grad, jvp) sees the operations.

    There only plain formulas work: no tensor subclasses, no custom autograd functions, no flat views.
    """
    return torch.compiler.is_compiling() or transforms_active()

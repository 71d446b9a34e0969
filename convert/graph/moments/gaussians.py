r"""Moments of functions of one Gaussian variable: mean, variance, and the gain E[f'(x)].

ReLU in closed form (Frey & Hinton 1999, "Variational learning in nonlinear Gaussian belief networks", appendix; Gast
& Roth 2018, "Lightweight probabilistic deep networks", equations 6 and 7): with :math:`\alpha = m / s`,

.. math:: E = m\,\Phi(\alpha) + s\,\varphi(\alpha), \qquad E[f^2] = (m^2 + s^2)\,\Phi(\alpha) + m s\,\varphi(\alpha)

Any other function by Gauss-Hermite quadrature. The gain tells how much of the noise goes on linearly (Price 1958):
:math:`Cov[f(x), f(y)] = E[f']\,E[f']\,Cov[x, y]` to first order in the correlation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Transformed", "leaky_relu_moments", "quadrature"]

#: Nodes of the quadrature. Seven are exact for polynomials up to degree 13.
NODES = 7
SMALLEST = 1e-30


class Transformed(NamedTuple):
    """Mean and variance of f(x), and the gain E[f'(x)]."""

    mean: Tensor
    variance: Tensor
    gain: Tensor


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: float = 0.0) -> Transformed:
    """The moments of ``max(x, 0) + slope * min(x, 0)``."""
    positive, negative, share = parts(mean, variance)
    spread = (variance * share - positive * negative).clamp_min(0)
    if slope == 0:
        return Transformed(positive, spread, share)
    # f = relu(x) + slope * (x - relu(x)) = (1 - slope) relu(x) + slope x, and Cov[relu(x), x] = variance * share.
    rest = 1 - slope
    return Transformed(
        rest * positive + slope * mean,
        rest**2 * spread + slope**2 * variance + 2 * slope * rest * variance * share,
        rest * share + slope,
    )


def parts(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E[max(x, 0)], E[max(-x, 0)] without cancellation, however small the variance is, and P(x > 0)."""
    std = variance.clamp_min(SMALLEST).sqrt()
    size = mean.abs()
    ratio = size / std
    tail = 0.5 * torch.erfc(ratio * math.sqrt(0.5))
    density = torch.exp(ratio.square() * -0.5) * (1 / math.sqrt(2 * math.pi))
    minor = std * (density - ratio * tail)
    share = 0.5 + mean.sign() * (0.5 - tail)  # ONNX Runtime takes several times as long for a `where`
    return mean.clamp_min(0) + minor, minor - mean.clamp_max(0), share


def quadrature(function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> Transformed:
    """The moments of any function of one variable, by Gauss-Hermite quadrature with seven nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    std = variance.clamp_min(SMALLEST).sqrt()
    first = torch.zeros_like(mean)
    second = torch.zeros_like(mean)
    slope = torch.zeros_like(mean)
    centre = function(mean)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        change = function(mean + node * std) - centre
        first = first + weight * change
        second = second + weight * change.square()
        slope = slope + (weight * node) * change
    return Transformed(centre + first, (second - first.square()).clamp_min(0), slope / std)

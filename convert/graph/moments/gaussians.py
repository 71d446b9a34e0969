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

__all__ = ["Transformed", "larger_moments", "leaky_relu_moments", "quadrature"]

#: Nodes of the quadrature. Seven are exact for polynomials up to degree 13.
NODES = 7
SMALLEST = 1e-30
RESOLUTION = 1e-3
#: In standard deviations.
FARTHEST = 8.5


class Transformed(NamedTuple):
    """Mean and variance of f(x), and the gain E[f'(x)]."""

    mean: Tensor
    variance: Tensor
    gain: Tensor


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: float = 0.0) -> Transformed:
    """The moments of ``max(x, 0) + slope * min(x, 0)``."""
    above, below, share = _sides(mean, variance)
    spread = (variance * share - above * below).clamp_min(0)
    if slope == 0:
        return Transformed(above, spread, share)
    # f = relu(x) + slope * (x - relu(x)) = (1 - slope) relu(x) + slope x, and Cov[relu(x), x] = variance * share.
    rest = 1 - slope
    return Transformed(
        rest * above + slope * mean,
        rest**2 * spread + slope**2 * variance + 2 * slope * rest * variance * share,
        rest * share + slope,
    )


def larger_moments(
    first: Tensor, first_variance: Tensor, second: Tensor, second_variance: Tensor, correlation: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the larger of two Gaussians (Clark 1961, equations 2 to 6)."""
    together = correlation * (first_variance * second_variance).sqrt()
    apart = (first_variance + second_variance - 2 * together).clamp_min(0)
    above, below, share = _sides(first - second, apart)
    spread = second_variance + share * (first_variance - second_variance) - above * below
    return second + above, spread.clamp_min(0)


def _sides(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""E[max(x, 0)], E[max(-x, 0)] and P(x > 0).

    Nothing cancels, however small the variance is: :math:`\Phi` is taken on the side where it is small.
    """
    inverse = (variance + SMALLEST).rsqrt()
    # Further out there is nothing but numbers so small that processors are slow with them.
    ratio = (mean * inverse).clamp(-FARTHEST, FARTHEST)
    half = 0.5 * torch.erf(ratio * math.sqrt(0.5))
    share, tail = 0.5 + half, 0.5 - half
    density = torch.exp(ratio * ratio * -0.5 - 0.5 * math.log(2 * math.pi)) * (variance * inverse)
    return density + mean * share, density - mean * tail, share


def quadrature(function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor) -> Transformed:
    """The moments of any function of one variable, by Gauss-Hermite quadrature with seven nodes.

    Where the standard deviation is less than a thousandth of the mean, or of one, differences would be rounding
    noise; there the nodes keep that distance, and the variance is scaled down.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    std = variance.clamp_min(SMALLEST).sqrt()
    width = torch.maximum(std, RESOLUTION * (1 + mean.abs()))
    centre = function(mean)
    first, second, slope = torch.zeros_like(mean), torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        change = function(mean + node * width) - centre
        first = first + weight * change
        second = second + weight * change.square()
        slope = slope + (weight * node) * change
    scale = (std / width).square()
    return Transformed(centre + first * scale, (second - first.square()).clamp_min(0) * scale, slope / width)

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

__all__ = ["Transformed", "larger_by_halves", "larger_moments", "leaky_relu_moments", "quadrature"]

#: Nodes of the quadrature. Seven are exact for polynomials up to degree 13.
NODES = 7
SMALLEST = 1e-30
RESOLUTION = 1e-3
#: In units of sqrt(2) standard deviations.
FARTHEST = 6.0
LOG_PEAK = -math.log(2 * math.sqrt(math.pi))


class Transformed(NamedTuple):
    """Mean and variance of f(x), and the gain E[f'(x)]."""

    mean: Tensor
    variance: Tensor
    gain: Tensor


def leaky_relu_moments(mean: Tensor, variance: Tensor, slope: float = 0.0) -> Transformed:
    """The moments of ``max(x, 0) + slope * min(x, 0)``."""
    above, share = _positive_part(mean, 2 * variance)
    spread = torch.addcmul(variance * share, above, mean - above).clamp_min(0)
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
    first: Tensor, first_variance: Tensor, second: Tensor, second_variance: Tensor, doubled: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the larger of two Gaussians (Clark 1961, equations 2 to 6), the variance up to rounding.

    Args:
        first: Mean of one.
        first_variance: Its variance.
        second: Mean of the other.
        second_variance: Its variance.
        doubled: Twice the variance of their difference.
    """
    difference = first - second
    above, share = _positive_part(difference, doubled)
    chosen = torch.addcmul(second_variance, share, first_variance - second_variance)
    return second + above, torch.addcmul(chosen, above, difference - above)


def larger_by_halves(
    mean: Tensor, variance: Tensor, difference: Tensor, excess: Tensor, doubled: Tensor
) -> tuple[Tensor, Tensor]:
    """The same from half the sum and half the difference of both means and of both variances.

    Args:
        mean: Half the sum of the means.
        variance: Half the sum of the variances.
        difference: Half the difference of the means.
        excess: Half the difference of the variances.
        doubled: Twice the variance of half the difference of the two.
    """
    side, density, root = _standardised(difference, doubled, LOG_PEAK + math.log(2))
    away = torch.addcmul(difference * side, density, root)  # half the mean distance of the two
    chosen = torch.addcmul(variance, side, excess)
    return mean + away, torch.addcmul(chosen, difference - away, difference + away)


def _positive_part(mean: Tensor, doubled: Tensor) -> tuple[Tensor, Tensor]:
    """E[max(x, 0)] and P(x > 0) of a Gaussian by its mean and twice its variance.

    Far above zero they are m and 1 to the last bit, so E[max(x, 0)] - m does not cancel, however small the variance is.
    """
    side, density, root = _standardised(mean, doubled, LOG_PEAK)
    share = 0.5 * side + 0.5
    return torch.addcmul(mean * share, density, root), share


def _standardised(mean: Tensor, doubled: Tensor, log_peak: float) -> tuple[Tensor, Tensor, Tensor]:
    """P(x > 0) - P(x < 0), the density at zero as a multiple of its greatest value, and sqrt(2) standard deviations.

    Args:
        mean: Mean of x.
        doubled: Twice its variance.
        log_peak: Logarithm of that greatest value.
    """
    root = doubled.clamp_min(SMALLEST).sqrt()
    # Further out there is nothing but numbers so small that processors are slow with them.
    ratio = (mean / root).clamp(-FARTHEST, FARTHEST)
    return torch.erf(ratio), torch.exp(log_peak - ratio * ratio), root


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

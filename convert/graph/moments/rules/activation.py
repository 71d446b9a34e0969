"""Functions of one element at a time."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..gaussians import Transformed, leaky_relu_moments, quadrature
from ..registry import Operation, formula, rule
from ..state import Uncertain

__all__ = ["elementwise"]

SMOOTH = (
    "gelu", "silu", "sigmoid", "tanh", "elu", "selu", "celu", "softplus", "mish", "log_sigmoid", "softsign", "exp",
    "hardtanh", "hardswish", "hardsigmoid", "relu6", "softshrink", "hardshrink", "abs", "square", "sin", "cos", "erf",
)  # fmt: skip


def elementwise(x: Uncertain, result: Transformed) -> Uncertain:
    """Carry the covariances through a function whose moments are known for each element.

    Noise that is common goes on by the gain, which is the first term of the Hermite expansion of the covariance; the
    other terms, lumped together as the second, stay with the feature.
    """
    mean, variance, gain = result
    if not x.has_positions:
        if not x.terms:
            return Uncertain.without_positions(mean, variance, ())
        square = gain.square()
        rest = torch.addcmul(variance, square, x.variance, value=-1).clamp_min(0)
        terms = tuple(term.scaled(gain) for term in x.terms)
        return replace(x, mean=mean, variance=variance, own=square * x.own + rest, terms=terms, near=variance)
    std = x.sampled(x.variance).sqrt()
    passed = x.sampled(gain) * std
    total = x.average(x.variance).clamp_min(1e-30)
    far, close = (x.common() / total).clamp(0, 1), (x.near / total).clamp(0, 1)
    # How much passes of the covariance of an element with itself, with a neighbour, and with any other.
    itself = x.mean_of(passed * passed) / total
    beside = x.neighbours(passed) / x.neighbours(std).clamp_min(1e-30)
    apart = (x.mean_of(passed) / x.mean_of(std).clamp_min(1e-15)).square()
    rest = (x.average(variance) / total - itself).clamp_min(0)
    alone, nearby = x.pairs(far, close)
    factor = (apart + alone * (itself - apart) + nearby * (beside - apart)).clamp_min(0)
    return replace(
        x,
        mean=mean,
        variance=variance,
        own=factor * x.own + rest * far * far * total,
        terms=tuple(term.scaled(factor.sqrt()) for term in x.terms),
        near=(close * beside + rest * close * close) * total,
    )


@formula("relu", "relu_")
def relu(x: Uncertain) -> Uncertain:
    """Rectified linear unit, in closed form."""
    return elementwise(x, leaky_relu_moments(x.mean, x.variance))


@formula("leaky_relu", "leaky_relu_")
def leaky_relu(x: Uncertain, slope: float = 0.01) -> Uncertain:
    """Leaky rectified linear unit, in closed form."""
    return elementwise(x, leaky_relu_moments(x.mean, x.variance, slope))


@rule(*SMOOTH, *(f"{name}_" for name in SMOOTH))
def by_quadrature(operation: Operation) -> Uncertain:
    """Any other function of one variable."""
    x = operation.args[0]
    return elementwise(x, quadrature(operation.plain, x.mean, x.variance))

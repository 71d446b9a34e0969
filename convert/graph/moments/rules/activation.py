"""Functions of one element at a time."""

from __future__ import annotations

import math
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
        own = (variance - gain * gain * (x.variance - x.own)).clamp_min(0)
        terms = tuple(term.scaled(gain) for term in x.terms)
        return replace(x, mean=mean, variance=variance, own=own, terms=terms, near=variance)
    std, gains = x.sampled(x.variance).sqrt(), x.sampled(gain)
    passed = std * gains
    total = x.average(x.variance).clamp_min(1e-30)
    # How much passes of the covariance of an element with itself, and with any other; the share of the common variance
    # that elements make with themselves; and what is left of the new variance, over the old.
    itself = x.mean_of(passed * passed) / total
    average = x.mean_of(passed) / x.mean_of(std).clamp_min(1e-15)
    apart = average * average
    far, close = x.common() / total, x.near / total
    count = math.prod(x.sizes)
    rest = (x.average(variance) / total - itself).clamp_min(0)
    factor = torch.addcmul(apart, (far * count).clamp_min(1).reciprocal(), itself - apart)
    return replace(
        x,
        mean=mean,
        variance=variance,
        own=torch.addcmul(rest * far * far * total, factor, x.own),
        terms=tuple(term.scaled(factor.sqrt()) for term in x.terms),
        near=x.near * torch.addcmul(apart, rest, close),
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

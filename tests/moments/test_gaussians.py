"""Moments of functions of one Gaussian variable against numerical integration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from convert.graph.moments.gaussians import larger_by_halves, larger_moments, leaky_relu_moments, quadrature


def integrated(function, mean: float, std: float) -> tuple[float, float]:
    """Mean and variance of f(x) on a fine grid of twelve standard deviations either way."""
    z = torch.linspace(-12, 12, 400001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    weight /= weight.sum()
    values = function(mean + std * z)
    first = (weight * values).sum()
    return float(first), float((weight * (values - first).square()).sum())


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(st.floats(-8, 8), st.floats(0.01, 5), st.sampled_from([0.0, 0.01, 0.3]))
def test_leaky_relu_is_exact(ratio, std, slope):
    mean = ratio * std
    found = leaky_relu_moments(one(mean), one(std**2), slope)
    first, second = integrated(lambda x: torch.where(x > 0, x, slope * x), mean, std)
    torch.testing.assert_close(found.mean, one(first), rtol=1e-6, atol=1e-9 * std)
    torch.testing.assert_close(found.variance, one(second), rtol=1e-6, atol=1e-8 * std**2)
    gain = integrated(lambda x: torch.where(x > 0, 1.0, slope).double(), mean, std)[0]
    torch.testing.assert_close(found.gain, one(gain), rtol=0, atol=1e-4)  # the grid has a step at zero


@pytest.mark.parametrize("std", [1e-3, 1e-5, 1e-7])
def test_small_variances_survive_float32(std):
    mean = torch.tensor([3.0, -3.0, 100.0])
    found = leaky_relu_moments(mean, torch.full((3,), std**2))
    torch.testing.assert_close(found.variance, torch.tensor([std**2, 0.0, std**2]), rtol=1e-5, atol=0)
    tanh = quadrature(torch.tanh, torch.tensor([0.3]), torch.tensor([std**2]))
    slope = 1 - torch.tanh(torch.tensor([0.3])).square()
    torch.testing.assert_close(tanh.variance, (slope * std).square(), rtol=1e-3, atol=0)
    torch.testing.assert_close(tanh.gain, slope, rtol=1e-3, atol=0)


def test_nothing_is_denormal():
    """Denormal numbers made a forward several times slower."""
    mean, variance = torch.linspace(-50, 50, 1001), torch.full((1001,), 1e-9)
    for tensor in leaky_relu_moments(mean, variance):
        assert not bool(((tensor != 0) & (tensor.abs() < torch.finfo(torch.float32).tiny)).any())


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, F.gelu, F.silu, F.softplus, F.elu, F.mish])
@pytest.mark.parametrize("std", [0.05, 0.5, 1.0])
def test_smooth_functions_by_quadrature(function, std):
    for mean in (-2.0, 0.0, 0.7):
        found = quadrature(function, one(mean), one(std**2))
        first, second = integrated(function, mean, std)
        torch.testing.assert_close(found.mean, one(first), rtol=0, atol=0.01 * std)
        torch.testing.assert_close(found.variance.sqrt(), one(second).sqrt(), rtol=0.03, atol=0.005 * std)


@settings(deadline=None, max_examples=30)
@given(st.floats(-4, 4), st.floats(0.05, 3), st.floats(0.05, 3), st.floats(0, 0.95))
def test_the_larger_of_two(difference, first, second, correlation):
    # max(x, y) = y + max(x - y, 0); integrate over x - y, and over y given x - y.
    apart = (first**2 + second**2 - 2 * correlation * first * second) ** 0.5
    mean, variance = larger_moments(one(difference), one(first**2), one(0.0), one(second**2), one(2 * apart**2))
    slope = (correlation * first * second - second**2) / apart**2
    rest = second**2 - slope**2 * apart**2
    expected = integrated(lambda d: slope * (d - difference) + d.clamp_min(0), difference, apart)
    torch.testing.assert_close(mean, one(expected[0]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(variance, one(expected[1] + rest), rtol=1e-5, atol=1e-7)


def test_the_larger_of_two_by_halves():
    first, second = torch.randn(2, 100, dtype=torch.float64)
    wide, narrow = torch.rand(2, 100, dtype=torch.float64) + 0.1
    apart = 0.3 * (wide + narrow)
    expected = larger_moments(first, wide, second, narrow, 2 * apart)
    found = larger_by_halves(
        (first + second) / 2, (wide + narrow) / 2, (first - second) / 2, (wide - narrow) / 2, apart / 2
    )
    torch.testing.assert_close(found, expected)

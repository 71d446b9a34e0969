"""Networks drawn at random: mean and standard deviation against those of weight samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convert import bayesify, moments

from .sampling import sampled
from .test_random_networks import Residual, norm, uneven

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid)
SAMPLES = 300


@st.composite
def image_networks(draw: Any) -> list[Any]:
    """Recipes of convolutional networks for inputs (B, 2, 8, 8): what to build, not the modules."""
    channels, size, layers = 2, 8, list[Any]()
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "strided", "depthwise", "residual"]))
        outputs = draw(st.integers(2, 9))
        if kind == "residual":
            layers.append(lambda c=channels: Residual(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), norm(c))))
        elif kind == "depthwise":
            layers.append(lambda c=channels: nn.Conv2d(c, c, 3, padding=1, groups=c))
        else:
            stride = 2 if kind == "strided" and size >= 4 else 1
            layers.append(lambda c=channels, o=outputs, s=stride: nn.Conv2d(c, o, 3, s, 1))
            channels, size = outputs, -(-size // stride)
        if draw(st.booleans()):
            layers.append(lambda c=channels: norm(c))
        layers.append(draw(st.sampled_from(ACTIVATIONS)))
        pool = draw(st.sampled_from([None, nn.MaxPool2d, nn.AvgPool2d]))
        if pool is not None and size >= 4:
            layers.append(lambda pool=pool: pool(2))
            size //= 2
    if draw(st.booleans()):
        layers.append(lambda: nn.AdaptiveAvgPool2d(1))
        size = 1
    layers.append(nn.Flatten)
    layers.append(lambda n=channels * size**2: nn.Linear(n, 3))
    return layers


@st.composite
def vector_networks(draw: Any) -> list[Any]:
    """Recipes of multilayer perceptrons for inputs (B, 6)."""
    widths = [6, *draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))]
    layers = list[Any]()
    for before, after in pairwise(widths):
        layers.append(lambda a=before, b=after: nn.Linear(a, b))
        layers.append(draw(st.sampled_from(ACTIVATIONS)))
    return [*layers, lambda a=widths[-1]: nn.Linear(a, 3)]


def check(layers: list[Any], shape: tuple[int, ...], seed: int, scale: float, most: float) -> None:
    """Six inputs: 300 samples alone make the ratio vary by one to three percent, and the mean err by 0.06."""
    torch.manual_seed(seed)
    bnn = bayesify(nn.Sequential(*(build() for build in layers)).eval(), init_sigma=uneven(scale)).eval()
    x = torch.randn(6, *shape)
    mean, variance = moments(bnn, x[:2])(x)
    truth = sampled(bnn, x, SAMPLES)
    ratio = (variance.double().sqrt() / truth.std).log().mean().exp()
    error = ((mean - truth.mean) / truth.std).square().mean().sqrt()
    assert 1 / most < float(ratio) < most
    assert float(error) < 0.3


@settings(deadline=None, max_examples=25, derandomize=True)
@given(image_networks(), st.integers(0, 2**16), st.sampled_from([0.03, 0.1, 0.2]))
def test_networks_of_images(layers, seed, scale):
    # What positions have in common is followed as averages over channels and places (docs/moments.md): of 230 networks
    # the worst, with two channels from end to end, was off by 16 %.
    check(layers, (2, 8, 8), seed, scale, 1.25)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(vector_networks(), st.integers(0, 2**16), st.sampled_from([0.03, 0.1, 0.2]))
def test_networks_of_vectors(layers, seed, scale):
    check(layers, (6,), seed, scale, 1.1)

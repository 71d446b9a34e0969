"""Every rule against weight samples of a small network in which the operation follows an uncertain layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert import bayesify, moments

from .sampling import sampled


class Then(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Joined(nn.Module):
    """Two branches and what joins them."""

    def __init__(self, first: nn.Module, second: nn.Module, join):
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x):
        return self.join(self.first(x), self.second(x))


def norm(kind, features: int) -> nn.Module:
    module = kind(features)
    module.running_mean.normal_()
    module.running_var.uniform_(0.5, 2)
    nn.init.uniform_(module.weight, 0.5, 2)
    return module


def gate(features: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(features, features, 1), nn.Sigmoid())


IMAGE, SIGNAL, VOLUME, VECTOR, SEQUENCE = (2, 10, 10), (2, 16), (2, 5, 6, 5), (6,), (5, 6)

#: name: (shape of one example, network, largest relative error of any standard deviation).
CASES = {
    "conv1d": (SIGNAL, lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), 0),
    "conv2d, dilated, grouped": (IMAGE, lambda: nn.Conv2d(2, 4, 3, dilation=2, groups=2), 0),
    "conv2d, same, circular": (IMAGE, lambda: nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular"), 0),
    "conv3d": (VOLUME, lambda: nn.Conv3d(2, 3, 3, padding=1), 0),
    "transposed 1d": (SIGNAL, lambda: nn.ConvTranspose1d(2, 4, 4, stride=2, padding=1), 0),
    "transposed 2d": (IMAGE, lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1, groups=2), 0),
    "transposed 3d": (VOLUME, lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), 0),
    "two convolutions": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3)), 0.15),
    "depthwise": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4)), 0.15),
    "grouped second": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3, groups=2)), 0.15),
    "transposed second": (
        IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 4, 4, stride=2)), 0.25,
    ),
    "linear for each position": (SEQUENCE, lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 0.1),
    "batch norm 1d": (VECTOR, lambda: nn.Sequential(nn.Linear(6, 5), norm(nn.BatchNorm1d, 5)), 0),
    "batch norm 2d": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), norm(nn.BatchNorm2d, 4)), 0),
    **{
        name: (VECTOR, lambda module=module: nn.Sequential(nn.Linear(6, 5), module, nn.Linear(5, 3)), 0.08)
        for name, module in {
            "relu": nn.ReLU(), "relu in place": nn.ReLU(inplace=True), "leaky relu": nn.LeakyReLU(0.2),
            "gelu": nn.GELU(), "gelu, tanh": nn.GELU("tanh"), "silu": nn.SiLU(), "sigmoid": nn.Sigmoid(),
            "tanh": nn.Tanh(), "elu": nn.ELU(), "softplus": nn.Softplus(), "relu6": nn.ReLU6(), "mish": nn.Mish(),
            "hardswish": nn.Hardswish(), "hardsigmoid": nn.Hardsigmoid(), "dropout": nn.Dropout(0.5),
            "identity": nn.Identity(),
        }.items()
    },
    "average pool": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AvgPool2d(2)), 0.1),
    "global average": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 0.1),
    "mean over positions": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), Then(lambda x: x.mean((2, 3)))), 0.1),
    "adaptive average": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(2)), 0.1),
    "max pool": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)), 0.15),
    "max pool, padded": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(3, 2, 1)), 0.15),
    "max pool 1d": (SIGNAL, lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2)), 0.15),
    "max pool, more outputs than inputs": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 9, 3), nn.MaxPool2d(2)), 0.2),
    "max pool 1d, more outputs": (SIGNAL, lambda: nn.Sequential(nn.Conv1d(2, 9, 3, padding=1), nn.MaxPool1d(2)), 0.2),
    "flatten, linear": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(256, 3)), 0.12),
    "sum of branches": (
        VECTOR, lambda: Joined(nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 4), nn.ReLU()), torch.add), 0.05,
    ),
    "difference, scaled": (
        VECTOR, lambda: Joined(nn.Linear(6, 4), nn.Linear(6, 4), lambda a, b: (a - b) / 3 + 1), 0,
    ),
    "concatenation": (
        IMAGE,
        lambda: nn.Sequential(
            Joined(nn.Conv2d(2, 3, 1), nn.Conv2d(2, 2, 1), lambda a, b: torch.cat([a, b], 1)), nn.Conv2d(5, 4, 1)
        ),
        0.15,
    ),
    "gate for each channel": (
        IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Joined(nn.Identity(), gate(4), torch.mul)), 0.15,
    ),
    "channels last and back": (
        IMAGE,
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), Then(lambda x: x.permute(0, 2, 3, 1)), nn.Linear(4, 3), nn.GELU(),
            Then(lambda x: x.permute(0, 3, 1, 2)),
        ),
        0.12,
    ),
    "softmax": (VECTOR, lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1)), 0.03),
    "log softmax": (VECTOR, lambda: nn.Sequential(nn.Linear(6, 4), Then(lambda x: F.log_softmax(x, -1))), 0.03),
    "matrix product": (
        VECTOR, lambda: nn.Sequential(nn.Linear(6, 4), Then(lambda x: x @ torch.linspace(-1, 1, 12).view(4, 3))), 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_weight_samples(name):
    shape, build, tolerance = CASES[name]
    bnn = bayesify(build().eval(), init_sigma=lambda name, weight: 0.1 * (0.5 + torch.rand(weight.shape))).eval()
    x = smooth(torch.randn(3, *shape))
    mean, variance = moments(bnn, x)(x)
    truth = sampled(bnn, x, 1000)
    assert mean.shape == truth.mean.shape
    off = (mean - truth.mean).abs()
    std, expected, error = variance.double().sqrt(), truth.std, truth.std_error
    if tolerance == 0:
        assert bool((off <= 5 * truth.mean_error).all())
    else:
        # A dead element has no spread of its own: the least that counts is a hundredth of the largest.
        assert bool((off <= 5 * truth.mean_error + 0.25 * truth.std + 0.01 * truth.std.max()).all())
    if tolerance and mean.ndim > 2:
        # What is kept of the correlation between positions are averages over them, so averages are right.
        std, expected, error = (tensor.mean(tuple(range(2, mean.ndim))) for tensor in (std, expected, error))
    ratio = std / expected
    # Five standard errors of the samples, and what the approximation may add.
    excess = ((std - expected).abs() - 5 * error) / expected
    assert float(excess.max()) <= tolerance, f"std ratio {float(ratio.min()):.3f} .. {float(ratio.max()):.3f}"


def smooth(x):
    """Images and signals whose neighbours are alike, as real ones are."""
    if x.ndim == 2 or x.shape[1:] == SEQUENCE:
        return x
    pool = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    return 2 * pool(x, 3, 1, 1)

"""Small networks with random weights: exact where the truth is known, close to weight samples elsewhere, finite."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from bensemble.posteriors import named_posteriors
from convert import bayesify, moments

from .sampling import sampled


class Residual(nn.Module):
    """A layer and the way around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def norm(channels: int) -> nn.Module:
    module = nn.BatchNorm2d(channels)
    module.running_mean.normal_(0, 0.3)
    module.running_var.uniform_(0.5, 2)
    nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.normal_(module.bias, 0, 0.3)
    return module


NETWORKS = {
    "norms, a sum, overlapping windows, flattened": lambda: [
        nn.Conv2d(2, 4, 3, padding=1), norm(4), nn.ReLU(),
        Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm(4))), nn.MaxPool2d(3, 1, 1), nn.Conv2d(4, 3, 1),
        nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 3),
    ],
    "max pooling behind a leaky activation, a global mean": lambda: [
        nn.Conv2d(2, 3, 1), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ],
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request) -> nn.Module:
    return nn.Sequential(*NETWORKS[request.param]()).eval()


def uneven(scale: float):
    """Sigmas that differ from weight to weight, relative to the tensor."""
    return lambda name, weight: scale * weight.square().mean().sqrt() * (0.5 + torch.rand(weight.shape)) + 1e-12


def test_close_to_weight_samples_and_the_same_for_any_batch(network):
    bnn = bayesify(network, init_sigma=uneven(0.1)).eval()
    x = torch.randn(4, 2, 8, 8)
    sure = moments(bnn, x[:2])
    mean, variance = sure(x)
    points = sure.points(x)
    truth = sampled(bnn, x, 300)
    assert bool(points.isfinite().all())
    torch.testing.assert_close(points.mean(0), mean, rtol=1e-3, atol=1e-4)
    ratio = (variance.sqrt() / truth.std).mean()
    assert 0.7 < float(ratio) < 1.4
    assert float(((mean - truth.mean) / truth.std).square().mean().sqrt()) < 0.5
    for found, expected in zip(sure(x[:1]), (mean[:1], variance[:1]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_never_nan_and_never_a_negative_variance(network, scale):
    sure = moments(bayesify(network, init_sigma=uneven(1.0)), torch.ones(2, 2, 8, 8))
    x = scale * torch.randn(5, 2, 8, 8)
    mean, variance = sure(x)
    assert bool(mean.isfinite().all())
    assert bool((variance.isfinite() & (variance >= 0)).all())
    assert bool(sure.points(x).isfinite().all())


def test_without_sigma_it_is_the_deterministic_network(network):
    sure = moments(bayesify(network, init_sigma=1e-12), torch.ones(2, 2, 8, 8))
    x = torch.randn(1, 2, 8, 8)
    mean, variance = sure(x)
    torch.testing.assert_close(mean, network(x), rtol=1e-4, atol=1e-4)
    assert float(variance.sqrt().max()) < 1e-8


@pytest.mark.parametrize(("sizes", "bias"), [([3, 5, 4, 2], True), ([12, 1, 7], False)])
def test_linear_networks_are_exact(sizes, bias):
    model = nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes))).double()
    bnn = bayesify(model, init_sigma=uneven(0.3)).eval()
    x = torch.randn(3, sizes[0], dtype=torch.float64)
    posteriors = dict(named_posteriors(bnn))
    mean, covariance = x, torch.zeros(3, sizes[0], sizes[0], dtype=torch.float64)
    for index in range(len(model)):
        weight = posteriors[f"{index}.weight"]
        second = mean.square() + covariance.diagonal(dim1=1, dim2=2)
        fresh = second @ weight.variance().detach().double().t()
        mean = mean @ weight.mu.detach().t()
        covariance = weight.mu.detach() @ covariance @ weight.mu.detach().t()
        if bias:
            shift = posteriors[f"{index}.bias"]
            mean, fresh = mean + shift.mu.detach(), fresh + shift.variance().detach().double()
        covariance = covariance + torch.diag_embed(fresh)
    found = moments(bnn, x)(x)
    torch.testing.assert_close(found[0], mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], covariance.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=0)

"""What predictions by moments say under each likelihood, against weight samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bensemble
from bensemble.likelihoods import Gaussian, GaussianHead
from convert import bayesify, moments

from .test_random_networks import uneven

SAMPLES = 3000


def predictions(outputs: int, likelihood):
    bnn = bayesify(
        nn.Sequential(nn.Linear(5, 30), nn.ReLU(), nn.Linear(30, outputs)).eval(), init_sigma=uneven(0.15)
    ).eval()
    x = torch.randn(8, 5)
    drawn = bensemble.predict(bnn, x, SAMPLES, likelihood=likelihood, generator=torch.Generator().manual_seed(0))
    return bensemble.predict(moments(bnn, x[:2]), x, likelihood=likelihood), drawn


def standardised(outputs):
    mean, raw = outputs.chunk(2, -1)
    return mean, nn.functional.softplus(raw)


@pytest.mark.parametrize(
    "likelihood", ["gaussian_head", GaussianHead(standardised), Gaussian(0.3)], ids=["head", "own split", "constant"]
)
def test_regression(likelihood):
    found, drawn = predictions(4, likelihood)
    assert found.method == "moments"
    # Five standard errors of the samples, and one percent for the points and the approximation.
    error = 5 * drawn.epistemic_std / SAMPLES**0.5 + 0.01 * drawn.epistemic_std
    assert bool(((found.mean - drawn.mean).abs() < error).all())
    torch.testing.assert_close(found.epistemic_std, drawn.epistemic_std, rtol=5 / (2 * SAMPLES) ** 0.5 + 0.02, atol=0)
    torch.testing.assert_close(found.noise_std, drawn.noise_std, rtol=0.05, atol=0)
    torch.testing.assert_close(found.total_std, drawn.total_std, rtol=0.06, atol=0)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_classes(likelihood):
    found, drawn = predictions(3, likelihood)
    torch.testing.assert_close(found.probs, drawn.probs, rtol=0, atol=0.01)
    torch.testing.assert_close(found.entropy, drawn.entropy, rtol=0, atol=0.02)
    torch.testing.assert_close(found.mutual_information, drawn.mutual_information, rtol=0.15, atol=0.002)

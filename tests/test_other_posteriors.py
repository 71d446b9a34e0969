"""Posteriors that other libraries found come in through set_posterior: samples spread as theirs do.

Skipped where the library is missing: `pip install --no-deps ivon-opt`, `pip install laplace-torch`.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify

SAMPLES = 2000


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=generator)
    return x, (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 1).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def assert_same_spread(ours, theirs):
    """Mean and std over samples (S, B, C), element by element, within 5 standard errors of a difference.

    The squared standard error of a mean is std^2 / S, of the std of a normal std^2 / (2 S); either counts twice.
    """
    spread = theirs.std(0)
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= 5 * math.sqrt(2 / SAMPLES) * spread).all()
    assert ((ours.std(0) - spread).abs() <= 5 * math.sqrt(1 / SAMPLES) * spread).all()


def named(vector, model):
    """A vector over all parameters as a mapping by name."""
    copies = [torch.empty_like(parameter) for parameter in model.parameters()]
    vector_to_parameters(vector, copies)
    return dict(zip((name for name, _ in model.named_parameters()), copies, strict=True))


def test_a_diagonal_posterior_of_laplace_torch(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies use what torch has deprecated
        laplace = pytest.importorskip("laplace", exc_type=ImportError)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-2)
        for _ in range(200):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0]), data[1]).backward()
            optimizer.step()
        bnn = bayesify(model)
        posterior = laplace.Laplace(model, "classification", subset_of_weights="all", hessian_structure="diag")
        posterior.fit(DataLoader(TensorDataset(*data), 40))
        theirs = []
        for weights in posterior.sample(SAMPLES, generator=torch.Generator().manual_seed(1)):
            vector_to_parameters(weights, model.parameters())
            theirs.append(model(data[0][:20]).detach())
    bensemble.set_posterior(bnn, named(posterior.posterior_variance.sqrt(), model), named(posterior.mean, model))
    p = bensemble.predict(bnn, data[0][:20], SAMPLES, generator=torch.Generator().manual_seed(2))
    assert_same_spread(p.samples, torch.stack(theirs))


def test_a_posterior_of_ivon(data):
    ivon = pytest.importorskip("ivon")
    model, ess, decay = network(), 120, 1e-2
    optimizer = ivon.IVON(model.parameters(), lr=0.1, ess=ess, weight_decay=decay, hess_init=0.1, beta2=0.99)
    for _ in range(200):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    theirs = []
    for _ in range(SAMPLES):
        with optimizer.sampled_params():
            theirs.append(model(data[0][:20]).detach())
    hessian = optimizer.param_groups[0]["hess"]
    bnn = bayesify(model)
    bensemble.set_posterior(bnn, named((ess * (hessian + decay)).rsqrt(), model))
    p = bensemble.predict(bnn, data[0][:20], SAMPLES, generator=torch.Generator().manual_seed(2))
    assert_same_spread(p.samples, torch.stack(theirs))
    assert torch.equal(
        parameters_to_vector(model.parameters()),
        parameters_to_vector([p.mu for _, p in bensemble.named_posteriors(bnn)]),
    )

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
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify, last_layer

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


def test_a_kronecker_posterior_of_laplace_torch(data):
    """Its last layer as rotated sigmas: the logits have the covariance that laplace-torch gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        laplace = pytest.importorskip("laplace", exc_type=ImportError)
        model = network()
        bnn = bayesify(model, include=last_layer(model, data[0][:2]), example_inputs=data[0][:2])
        posterior = laplace.Laplace(model, "classification", subset_of_weights="last_layer", hessian_structure="kron")
        posterior.fit(DataLoader(TensorDataset(*data), 40))
        mean, covariance = posterior._glm_predictive_distribution(data[0][:20])
    (outer, inner), (bias_outer,) = posterior.posterior_precision.eigenvectors
    (g, a), (bias_g,) = posterior.posterior_precision.eigenvalues
    delta = float(posterior.prior_precision)
    sigma = {"2.weight": (torch.outer(g, a) + delta).rsqrt(), "2.bias": (bias_g + delta).rsqrt()}
    bensemble.set_posterior(bnn, sigma, basis={"2.weight": (inner, outer), "2.bias": (None, bias_outer)})
    p = bensemble.predict(bnn, data[0][:20], likelihood=None, keep_samples=False)
    assert p.method == "closed"
    assert_close(p.mean, mean.detach(), atol=1e-5, rtol=1e-5)
    assert_close(p.std.square(), covariance.diagonal(dim1=1, dim2=2).detach(), rtol=1e-4, atol=1e-7)


def rotated(bnn, seed=0):
    """Arguments of set_posterior that give the last layer sigmas in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    inner, outer = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (8, 3))
    sigma = {"2.weight": torch.rand(3, 8, generator=generator) + 0.1, "2.bias": 0.3}
    return sigma, {"2.weight": (inner, outer)}


def test_a_basis_rotates_the_covariance(data):
    model = network().double()
    bnn = bayesify(model, include="2", example_inputs=data[0][:2].double())
    sigma, basis = rotated(bnn)
    bensemble.set_posterior(bnn, sigma, basis=basis)
    features = torch.tanh(model[0](data[0][:5].double())).detach()
    inner, outer = (matrix.double() for matrix in basis["2.weight"])
    seen = ((features @ inner) ** 2) @ sigma["2.weight"].double().square().t()
    expected = seen @ outer.square().t() + 0.09
    assert_close(bensemble.predict(bnn, data[0][:5].double()).std.square(), expected, rtol=1e-6, atol=1e-9)
    bensemble.set_posterior(bnn, {"2.weight": 0.1 + torch.eye(3, 8)})
    plain = features.square() @ (0.1 + torch.eye(3, 8).double()).square().t() + 0.09
    assert_close(bensemble.predict(bnn, data[0][:5].double()).std.square(), plain, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, b: b.update({"2.weight": b["2.weight"][0]}), r"basis of '2\.weight' must be a tensor in a pair"),
        (lambda s, b: b.update({"2.weight": b["2.weight"][::-1]}), r"outer must have shape \(3, 3\), got \(8, 8\)"),
        (lambda s, b: b.update({"2.weight": (torch.ones(8, 8), torch.eye(3))}), "inner must be orthogonal"),
        (lambda s, b: b.update({"2.bias": (torch.eye(3), torch.eye(3))}), r"must be \(None, Q_g\) for a bias"),
        (lambda s, b: s.pop("2.weight"), r"basis of '2\.weight' needs standard deviations of its coordinates"),
        (lambda s, b: b.update({"0.weight": b["2.weight"]}), r"basis names '0\.weight', which has no posterior"),
    ],
)
def test_a_basis_that_does_not_fit_changes_nothing(data, change, message):
    bnn = bayesify(network(), include="2", example_inputs=data[0][:2])
    sigma, basis = rotated(bnn)
    change(sigma, basis)
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    with pytest.raises((bensemble.InvalidTypeError, bensemble.InvalidValueError), match=message):
        bensemble.set_posterior(bnn, sigma, basis=basis)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bnn.state_dict().items())


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

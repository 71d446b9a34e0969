"""predict(linearize=True): the samples are f(mu) + J (w - mu), with J by explicit Jacobians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import bensemble
from bensemble import InvalidValueError, fit_posterior, named_posteriors, predict, prune
from bensemble.likelihoods import Gaussian
from convert import bayesify

SAMPLES = 400
TARGET, LENGTHS = torch.tensor([[1]]), (torch.tensor([3]), torch.tensor([1]))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def networks():
    torch.manual_seed(0)
    flat = torch.randn(5, 4)
    sequence = torch.randn(3, 5, 4)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return {
        "perceptron": (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), flat),
        "convolution": (conv, torch.randn(2, 3, 6, 6)),
        "encoder": (nn.Sequential(encoder, nn.Flatten(), nn.Linear(20, 2)), sequence),
        "LSTM": (Recurrent(nn.LSTM), sequence),
        "GRU": (Recurrent(nn.GRU), sequence),
    }


def spread_of(bnn):
    """Sigmas that differ from weight to weight."""
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.rho.copy_(torch.randn(posterior.rho.shape) * 0.5 - 0.7)
    return bnn


def exact_std(net, bnn, x):
    """sqrt(diag(J Sigma J^T)) by explicit Jacobians in float64."""
    means = {name: parameter.detach().double() for name, parameter in net.named_parameters()}
    buffers = {name: b.double() if b.is_floating_point() else b for name, b in net.named_buffers()}
    with sdpa_kernel(SDPBackend.MATH):
        slopes = jacrev(lambda weights: functional_call(net, {**weights, **buffers}, (x.double(),)))(means)
    variance = 0.0
    for name, posterior in named_posteriors(bnn):
        slope = slopes[name].flatten(2)
        variance = variance + slope.square() @ posterior.sigma().detach().double().flatten().square()
    return variance.sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("kind", networks())
def test_the_spread_is_that_of_the_jacobian(kind):
    net, x = networks()[kind]
    net = net.eval()
    bnn = spread_of(bayesify(net, example_inputs=x)).eval()
    found = predict(bnn, x, SAMPLES, linearize=True, generator=torch.Generator().manual_seed(1), keep_samples=False)
    assert found.method == "linearized"
    std = exact_std(net, bnn, x)
    assert ((found.std - std).abs() < 5 * std / math.sqrt(2 * SAMPLES)).all()
    assert ((found.mean - net(x)).abs() < 5 * std / math.sqrt(SAMPLES)).all()
    sampled = predict(bnn, x, SAMPLES, generator=torch.Generator().manual_seed(1), keep_samples=False)
    assert not ((sampled.std - std).abs() < 5 * std / math.sqrt(2 * SAMPLES)).all()


def test_a_linear_network_is_its_own_linearization():
    bnn = spread_of(bayesify(nn.Linear(4, 3)))
    x = torch.randn(5, 4)
    one, two = (
        predict(bnn, x, 7, linearize=flag, generator=torch.Generator().manual_seed(0)).samples for flag in (True, False)
    )
    assert_close(one, two)


def test_pruned_weights_take_no_step():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    bnn = spread_of(bayesify(net))
    masks = {"0.weight": torch.zeros(8, 4), "0.bias": torch.zeros(8), "2.weight": torch.zeros(2, 8)}
    prune(bnn, masks=masks)
    found = predict(bnn, torch.randn(5, 4), 50, linearize=True)
    assert_close(found.samples, found.samples[:, :1].expand_as(found.samples))  # of the biases of the outputs alone


def test_a_loader_in_chunks_and_an_ensemble():
    bnns = [spread_of(bayesify(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)))) for _ in range(2)]
    x = torch.randn(10, 4)
    whole = predict(bnns, x, 6, linearize=True, generator=torch.Generator().manual_seed(0), likelihood="categorical")
    parts = predict(
        bnns, [(x[:4],), (x[4:],)], 6, linearize=True, generator=torch.Generator().manual_seed(0),
        likelihood="categorical", chunk_size=2,
    )  # fmt: skip
    assert_close(parts.probs, whole.probs)
    assert whole.num_samples == 12


def test_the_closed_form_stays_closed():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(5, 4)
    bnn = spread_of(bayesify(net, include="2", example_inputs=x))
    assert predict(bnn, x, linearize=True).method == "closed"


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Ending(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.linear, self.end = nn.Linear(4, 4), end

    def forward(self, x):
        return self.end(self.linear(x))


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (Doubled.apply, "jvp"),
        (lambda x: nn.functional.ctc_loss(x[:, None].log_softmax(-1), TARGET, *LENGTHS), "ctc_loss"),
    ],
)
def test_an_operation_without_forward_derivatives_is_named(end, name):
    bnn = spread_of(bayesify(Ending(end)))
    with pytest.raises(InvalidValueError, match=rf"linearize=True needs forward-mode derivatives of .*{name}"):
        predict(bnn, torch.randn(3, 4), linearize=True)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_it_predicts_a_regression_better_than_sampling():
    """A small table, fitted without training: the noise of the posterior does not shift the mean."""
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 60)[:, None]
    y = torch.sin(2 * x) + 0.1 * torch.randn_like(x)
    net = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 1))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    bnn = bayesify(net)
    fit_posterior(bnn, [(x, y)], likelihood=Gaussian(0.1), beta=30.0)
    nll = {}
    for flag in (False, True):
        generator = torch.Generator().manual_seed(0)
        p = predict(bnn, x, 200, likelihood=Gaussian(0.1), linearize=flag, generator=generator)
        nll[flag] = -float(torch.distributions.Normal(p.mean, p.total_std).log_prob(y).mean())
    assert nll[True] < nll[False] - 0.05
    assert isinstance(p, bensemble.RegressionPrediction)

"""From the curvature to sigma: the formula, and the search for beta and reach."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bensemble.fitting import fit_posterior
from bensemble.fitting.scale_search import BETAS, REACHES, best_scale, largest_scale
from bensemble.likelihoods import Gaussian
from bensemble.posteriors import named_posteriors
from convert import bayesify

from .networks import INPUTS, LABELS, X, curvature_of, loader, mlp


def test_sigma_follows_the_formula_in_beta():
    plain = mlp(1)
    bnn = bayesify(plain)
    h = curvature_of(bnn, loader(X), Gaussian(0.5))
    report = fit_posterior(bnn, loader(X), likelihood=Gaussian(0.5), beta=0.1)
    for name, posterior in named_posteriors(bnn):
        width = posterior.mu.square().mean().sqrt()
        assert_close(posterior.sigma(), (h[name] / 0.1 + width**-2).rsqrt(), rtol=1e-5, atol=0)
        assert torch.equal(posterior.mu, plain.get_parameter(name))
    assert report.beta == 0.1
    assert report.nll is None
    assert report.num_terms == 40


def test_a_tensor_of_zeros_takes_the_width_of_its_layer():
    plain = nn.Linear(3, 1)
    nn.init.zeros_(plain.bias)
    report = fit_posterior(bayesify(plain), loader(X.float()), likelihood=Gaussian(1.0), beta=1.0)
    weight, bias = report.rows
    assert bias.width == weight.width > 0
    nn.init.zeros_(plain.weight)
    report = fit_posterior(bayesify(plain), loader(X.float()), likelihood=Gaussian(1.0), beta=1.0)
    assert {row.width for row in report.rows} == {1e-3}


def test_linear_regression_at_beta_one_is_the_laplace_posterior():
    """Orthogonal inputs: the exact posterior is diagonal, with precision N / noise^2 + 1 / s^2."""
    inputs = torch.linalg.qr(torch.randn(64, 3, dtype=torch.float64)).Q * 8
    bnn = bayesify(nn.Linear(3, 1, bias=False).double())
    fit_posterior(bnn, loader(inputs), likelihood=Gaussian(0.3), beta=1.0)
    precision = 64 / 0.3**2 + bnn.w_mu.square().mean() ** -1
    assert_close(bnn.w_rho.exp().log1p(), precision.rsqrt().expand(1, 3), rtol=1e-5, atol=0)


def bowl(best, reach=1.0, floor=1.0):
    """NLL terms whose mean is lowest at one beta and one reach."""
    return lambda b, r: torch.full((10,), floor + abs(math.log10(b / best)) + abs(math.log10(r / reach)))


@pytest.mark.parametrize("reach", [0, 2, len(REACHES) - 1])
@pytest.mark.parametrize("place", [0, 3, 8, 12, len(BETAS) - 1])
def test_the_search_finds_the_lowest_nll(place, reach):
    beta, found, tried = best_scale(bowl(BETAS[place], REACHES[reach]), torch.full((10,), 2.0))
    assert (beta, found) == (BETAS[place], REACHES[reach])
    assert tried[beta, found] == min(tried.values())
    assert len(tried) <= abs(place - 8) + reach + 6


def test_a_narrower_reach_lets_beta_grow_again():
    """Dead units cost likelihood at any beta, which hides what beta does for the others."""
    found = best_scale(lambda b, r: torch.full((10,), abs(math.log10(b)) * r**2 + r + 1), torch.full((10,), 9.0))
    assert found[:2] == (1.0, REACHES[-1])


def test_where_noise_always_costs_the_search_stays_within_one_standard_error():
    mean = torch.ones(100)
    spread = torch.linspace(-1, 1, 100)
    error = float(spread.std()) / 10

    def evaluate(beta, reach):
        return 1 + math.sqrt(beta) + spread

    beta, reach, _ = best_scale(evaluate, mean)
    allowed = [b for b in BETAS if math.sqrt(b) <= error]
    assert (beta, reach) == (max(allowed), 1.0)
    assert best_scale(lambda b, r: torch.full((10,), 9 + math.log10(b)), torch.ones(10))[0] == BETAS[0]


def test_values_that_are_no_numbers_are_never_chosen():
    def evaluate(beta, reach):
        return torch.full((10,), math.nan) if beta > 1e-5 else torch.full((10,), 1 - beta)

    assert best_scale(evaluate, torch.ones(10))[0] == max(b for b in BETAS if b <= 1e-5)


@pytest.mark.parametrize("allowance", [1e-9, 2e-4, 0.05, 1e3])
def test_training_data_allows_the_largest_noise_within_the_cost(allowance):
    beta, reach, tried = largest_scale(lambda b, r: torch.full((10,), 1 + b), torch.ones(10), allowance)
    affordable = [b for b in BETAS if b <= allowance]
    assert beta == max(affordable, default=BETAS[0])
    assert not affordable or reach == 1
    assert (beta, reach) in tried


def test_on_training_data_the_reach_shrinks_only_where_no_beta_will_do():
    beta, reach, _ = largest_scale(lambda b, r: torch.full((10,), 1 + r + b), torch.ones(10), 0.05)
    assert reach == max(r for r in REACHES if r <= 0.05)
    assert beta == max(b for b in BETAS if b + reach <= 0.05)


def test_a_layer_that_is_never_called_gets_its_width():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = bayesify(nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2)]))

        def forward(self, x):
            return self.parts[0](x)

    rows = fit_posterior(First(), loader(INPUTS, LABELS), likelihood="categorical").rows
    assert rows[2].sigma == pytest.approx(rows[2].width)

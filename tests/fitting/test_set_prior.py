"""A new prior for a Bayesian model."""

import pytest
import torch
from torch import nn

import bensemble
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.priors import ARD, empirical
from convert import bayesify


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_the_empirical_prior_is_refitted_to_the_present_posterior():
    bnn = bayesify(nn.Linear(5, 3))
    with torch.no_grad():
        bnn.w_mu.mul_(3.0)
    stale = bensemble.kl_divergence(bnn)
    bensemble.set_prior(bnn, "empirical")
    posterior = next(bnn.posteriors())
    torch.testing.assert_close(posterior.prior.sigma, empirical(bnn.w_mu, posterior.sigma()).sigma)
    assert bensemble.kl_divergence(bnn) < stale


def test_a_prior_at_the_present_posterior_has_no_kl():
    bnn = bayesify(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)))
    bensemble.set_prior(bnn, "pretrained")
    torch.testing.assert_close(bensemble.kl_divergence(bnn), torch.zeros(()), atol=1e-5, rtol=0)
    assert {name for name in bnn.state_dict() if "prior" in name} >= {"0.w_prior_mean", "0.w_prior_sigma"}


def test_a_shared_weight_has_one_prior():
    bnn = bayesify(Tied())
    bensemble.set_prior(bnn, "ard")
    assert all(isinstance(posterior.prior, ARD) for _, posterior in bensemble.named_posteriors(bnn))
    assert isinstance(bnn.embedding._posterior("weight").prior, ARD)
    assert not [name for name in bnn.state_dict() if "prior" in name]


def test_refusals_leave_the_priors():
    bnn = bayesify(nn.Linear(5, 3))
    before = bensemble.kl_divergence(bnn)
    with pytest.raises(InvalidValueError, match="set_prior: prior must be one of normal, empirical"):
        bensemble.set_prior(bnn, "horseshoe")
    with pytest.raises(InvalidTypeError, match="got 3"):
        bensemble.set_prior(bnn, 3)
    with pytest.raises(InvalidValueError, match=r"prior_sigma must be .*above 0, got -1"):
        bensemble.set_prior(bnn, "normal", prior_sigma=-1.0)
    with pytest.raises(InvalidValueError, match="Linear has no posteriors"):
        bensemble.set_prior(nn.Linear(2, 2), "ard")
    assert torch.equal(bensemble.kl_divergence(bnn), before)

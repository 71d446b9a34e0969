"""Every prior's KL against its definition: numerical integration of q log(q / p), and closed forms."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributions import Laplace
from torch.testing import assert_close

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.layers import BayesianLinear
from bensemble.priors import ARD, Normal, empirical, kl_to, make_prior, pretrained
from bensemble.testing.moments import Moments, require_same_moments

MU = torch.tensor([-2.0, -0.3, 0.0, 0.05, 1.5], dtype=torch.float64)
SIGMA = torch.tensor([0.2, 0.05, 1.0, 2.0, 0.7], dtype=torch.float64)


def integrated_kl(mu, sigma, log_prior):
    """The sum of int q log(q / p) by the trapezoid rule over 12 sigmas on either side, which is exact to 1e-10."""
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    w = mu + sigma * z
    q = torch.distributions.Normal(mu, sigma)
    return torch.trapezoid(q.log_prob(w).exp() * (q.log_prob(w) - log_prior(w)), w, dim=0).sum()


def normal_density(sigma, mean=0.0):
    return torch.distributions.Normal(torch.as_tensor(mean).double(), torch.as_tensor(sigma).double()).log_prob


@pytest.mark.parametrize("sigma", [0.1, 1.0, 30.0])
def test_normal(sigma):
    prior = make_prior("test", "normal", sigma, MU, SIGMA)
    assert_close(kl_to(prior, MU, SIGMA), integrated_kl(MU, SIGMA, normal_density(sigma)))
    assert make_prior("test", "normal", None, MU, SIGMA).sigma == 1.0


def test_empirical_is_the_normal_prior_with_the_least_kl():
    prior = make_prior("test", "empirical", None, MU, SIGMA)
    assert_close(prior.sigma.square(), (MU.square() + SIGMA.square()).mean())
    best = kl_to(prior, MU, SIGMA)
    assert_close(best, integrated_kl(MU, SIGMA, normal_density(prior.sigma)))
    scales = prior.sigma * torch.linspace(0.5, 2.0, 301, dtype=torch.float64)
    others = torch.stack([integrated_kl(MU, SIGMA, normal_density(scale)) for scale in scales])
    assert best <= others.min() + 1e-9
    assert abs(scales[others.argmin()] / prior.sigma - 1) < 0.01
    assert empirical(MU, torch.tensor(0.5)).sigma.dim() == 0


def test_pretrained_is_centred_on_the_weights_and_starts_at_zero():
    prior = make_prior("test", "pretrained", None, MU, SIGMA)
    assert_close(kl_to(prior, MU, SIGMA), torch.zeros((), dtype=torch.float64))
    moved = MU + 0.3
    assert_close(kl_to(prior, moved, SIGMA), integrated_kl(moved, SIGMA, normal_density(SIGMA, MU)))
    wide = make_prior("test", "pretrained", 2.0, MU, SIGMA)
    assert_close(kl_to(wide, moved, SIGMA), integrated_kl(moved, SIGMA, normal_density(2.0, MU)))
    trained = nn.Parameter(MU.clone())
    kept = pretrained(trained, 1.0).mean
    nn.init.zeros_(trained)
    assert_close(kept, MU)


def test_ard_is_the_least_kl_to_a_normal_with_a_variance_per_weight():
    assert_close(ARD().kl(MU, SIGMA), 0.5 * torch.log1p(MU.square() / SIGMA.square()).sum())
    optimum = (MU.square() + SIGMA.square()).sqrt()
    assert_close(ARD().kl(MU, SIGMA), integrated_kl(MU, SIGMA, normal_density(optimum)))
    for factor in (0.9, 1.1):
        assert ARD().kl(MU, SIGMA) < integrated_kl(MU, SIGMA, normal_density(factor * optimum))
    extreme = torch.tensor([1e20, 1.0, 0.0], requires_grad=True)
    kl = ARD().kl(extreme, torch.tensor([1e-12, 1e-22, 100.0]))
    kl.backward()
    assert kl.isfinite()
    assert extreme.grad.isfinite().all()


class LaplacePrior:
    """A user's own prior that only knows its density."""

    def log_prob(self, w):
        return Laplace(0.0, 0.5).log_prob(w)


class SummedLaplacePrior(LaplacePrior):
    def log_prob(self, w):
        return super().log_prob(w).sum()


@pytest.mark.parametrize("prior", [LaplacePrior(), SummedLaplacePrior(), Laplace(0.0, 0.5)])
def test_a_density_alone_gives_the_kl_in_expectation_with_its_gradient(prior):
    exact = integrated_kl(MU, SIGMA, Laplace(0.0, 0.5).log_prob)
    moments = Moments()
    for _ in range(4000):
        moments.add((kl_to(prior, MU, SIGMA) - exact)[None])
    # The terms are not normal, so the mean alone is compared, with the variance that was found.
    assert abs(moments.mean()) < 5 * (moments.variance() / moments.count).sqrt()
    mu, sigma = MU.clone().requires_grad_(), SIGMA.clone().requires_grad_()
    kl_to(prior, mu, sigma).backward()
    assert mu.grad.abs().sum() > 0
    assert sigma.grad.abs().sum() > 0


def test_an_own_kl_is_used_as_it_is():
    class Own:
        def kl(self, mu, sigma):
            return mu.abs().sum() + sigma.sum()

    layer = BayesianLinear(3, 2, prior=Own())
    assert_close(layer.kl_divergence(), sum(p.mu.abs().sum() + p.sigma().sum() for p in layer.posteriors()))


def test_a_density_prior_on_a_layer_sees_kept_weights_only():
    seen = []

    class Looking(LaplacePrior):
        def log_prob(self, w):
            seen.append(w.shape)
            return super().log_prob(w)

    layer = BayesianLinear(3, 2, bias=False, prior=Looking())
    next(layer.posteriors()).set_mask(torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]))
    layer.kl_divergence()
    assert seen == [(3,)]


@dataclass(frozen=True, eq=False)
class Mixture:
    """A user's prior as a dataclass: two normals around 0 (Blundell et al. 2015, equation 7)."""

    sigmas: torch.Tensor
    share: float = 0.5

    def log_prob(self, w):
        parts = torch.distributions.Normal(0.0, self.sigmas).log_prob(w.flatten()[:, None])
        return (parts + torch.tensor([self.share, 1 - self.share]).log()).logsumexp(1).sum()


def test_tensors_of_a_dataclass_prior_move_save_and_load_with_the_layer():
    layer = BayesianLinear(3, 2, prior=Mixture(torch.tensor([1.0, 0.1]), share=0.25))
    assert {"w_prior_sigmas", "b_prior_sigmas"} <= set(layer.state_dict())
    other = BayesianLinear(3, 2, prior=Mixture(torch.tensor([5.0, 5.0]), share=0.25))
    other.load_state_dict(layer.state_dict())
    for made in (layer, other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        (prior, _) = (posterior.prior for posterior in made.posteriors())
        assert_close(prior.sigmas, torch.tensor([1.0, 0.1]))
        assert prior.share == 0.25
    assert layer.to("meta").w_prior_sigmas.is_meta
    assert all(posterior.prior.sigmas.is_meta for posterior in layer.posteriors())


def test_a_new_prior_replaces_the_buffers_of_the_old_one():
    layer = BayesianLinear(3, 2, prior="pretrained")
    layer._set_prior("w", ARD())
    assert "w_prior_mean" not in layer.state_dict()
    assert "b_prior_mean" in layer.state_dict()
    assert isinstance(next(layer.posteriors()).prior, ARD)


def test_bad_priors_are_refused():
    for name in ("horseshoe", "Normal", ""):
        with pytest.raises(InvalidValueError, match=f"bayesify: prior must be one of .* got {name!r}"):
            make_prior("bayesify", name, None, MU, SIGMA)
    for prior in (None, 3, ARD, object()):
        with pytest.raises(InvalidTypeError, match=r"bayesify: prior must be .* log_prob\(w\), got "):
            make_prior("bayesify", prior, None, MU, SIGMA)
    for prior in ("empirical", "ard", ARD()):
        with pytest.raises(
            InvalidValueError, match=r"prior_sigma belongs to the priors 'normal' and 'pretrained', got 0.5"
        ):
            make_prior("bayesify", prior, 0.5, MU, SIGMA)
    for sigma in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidValueError, match="prior_sigma must be finite and above 0"):
            make_prior("bayesify", "normal", sigma, MU, SIGMA)
        with pytest.raises(InvalidValueError, match="prior_sigma must be finite and above 0"):
            Normal(sigma)
        with pytest.raises(InvalidValueError, match="prior_sigma must be finite and above 0 for every weight"):
            Normal(torch.tensor([1.0, sigma]))
    for sigma in ("1", True, [1.0]):
        with pytest.raises(InvalidTypeError, match="prior_sigma must be a number"):
            make_prior("bayesify", "pretrained", sigma, MU, SIGMA)


@pytest.mark.parametrize("field", ["sigma", "mean"])
def test_a_normal_prior_must_fit_the_weight(field):
    prior = Normal(**{"sigma": 1.0, field: torch.ones(2, 1)})
    with pytest.raises(
        InvalidValueError, match=rf"{field} of the prior must be .* \(2, 3\), got shape \(2, 1\); expand"
    ):
        make_prior("bayesify", prior, None, torch.zeros(2, 3), torch.ones(()))


def test_moments_of_the_two_estimates_agree():
    """The Monte Carlo form on a normal prior is unbiased around the closed form."""

    class NormalDensity:
        def log_prob(self, w):
            return torch.distributions.Normal(0.0, 0.5).log_prob(w)

    mu, sigma = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    exact, moments = Normal(0.5).kl(mu, sigma), Moments()
    for _ in range(4000):
        moments.add((kl_to(NormalDensity(), mu, sigma) - exact)[None])
    with pytest.raises(AssertionError, match="the mean of"):
        require_same_moments(moments, torch.tensor(0.1), moments.variance(), "a wrong KL")
    assert abs(moments.mean()) < 5 * (moments.variance() / moments.count).sqrt()

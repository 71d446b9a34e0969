"""The sigmas and priors that ``bayesify`` starts from."""

from __future__ import annotations

import math

import pytest
import torch
from patterns.architectures import Mixed
from patterns.tied import LanguageModel
from torch import Tensor, nn

from bensemble import kl_divergence, named_posteriors
from bensemble.priors import ARD, Normal
from convert import bayesify

from .networks import small
from .posteriors import posteriors


def sigma_of(bnn: nn.Module, name: str) -> Tensor:
    return posteriors(bnn)[name].sigma().detach()


def test_the_default_sigma_is_a_share_of_each_tensors_size() -> None:
    model = Mixed()
    bnn = bayesify(model)
    for name, posterior in posteriors(bnn).items():
        weight = dict(model.named_parameters())[name].detach()
        expected = 0.05 * weight.square().mean().sqrt()
        torch.testing.assert_close(posterior.sigma().detach(), expected.expand(weight.shape))


def test_a_tensor_of_zeros_borrows_the_size_of_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        for parameter in (model[0].bias, model[1].weight, model[1].bias):
            parameter.zero_()
    bnn = bayesify(model)
    rms = model[0].weight.detach().square().mean().sqrt()
    torch.testing.assert_close(sigma_of(bnn, "0.bias"), (0.05 * rms).expand(3))
    torch.testing.assert_close(sigma_of(bnn, "1.weight"), torch.full((2, 3), 1e-3))
    torch.testing.assert_close(sigma_of(bnn, "1.bias"), torch.full((2,), 1e-3))
    assert math.isfinite(kl_divergence(bnn).item())


def test_a_sigma_for_all_or_by_a_function() -> None:
    model = small()
    assert bool((sigma_of(bayesify(model, init_sigma=0.02), "0.weight") - 0.02).abs().max() < 1e-8)
    seen = {}

    def choose(name: str, weight: Tensor) -> float | Tensor:
        seen[name] = tuple(weight.shape)
        return 0.1 * weight.abs() + 0.01 if name.endswith("weight") else 0.3

    bnn = bayesify(model, init_sigma=choose)
    assert seen == {name: tuple(p.shape) for name, p in model.named_parameters() if not name.startswith("1")}
    torch.testing.assert_close(sigma_of(bnn, "3.weight"), 0.1 * model[3].weight.detach().abs() + 0.01)
    torch.testing.assert_close(sigma_of(bnn, "3.bias"), torch.full((2,), 0.3))


def test_a_scalar_tensor_is_a_sigma_for_the_whole_weight() -> None:
    bnn = bayesify(small(), init_sigma=lambda name, weight: weight.std() if weight.dim() > 1 else 0.1)
    assert sigma_of(bnn, "3.weight").unique().numel() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rho_stays_precise_beside_narrow_weights(dtype: torch.dtype) -> None:
    bnn = bayesify(Mixed().to(dtype))
    for name, posterior in posteriors(bnn).items():
        assert (posterior.mu.dtype, posterior.rho.dtype) == (dtype, torch.float32), name
    expected = 0.05 * bnn.raw_mu.detach().float().square().mean().sqrt()
    torch.testing.assert_close(sigma_of(bnn, "raw"), expected.expand(4, 3))


def test_strides_of_the_weight_are_those_of_rho() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    bnn = bayesify(model)
    assert bnn[0].w_rho.stride() == bnn[0].w_mu.stride() == model[0].weight.stride()


def test_hooks_on_the_copy_are_its_own() -> None:
    model = small()
    bnn = bayesify(model)
    for source, copied in zip(model.modules(), bnn.modules(), strict=True):
        shared = {id(value) for value in vars(source).values() if isinstance(value, dict)}
        assert not shared & {id(value) for value in vars(copied).values()}
    bnn.register_forward_hook(lambda *_: None)
    assert not model._forward_hooks


@pytest.mark.parametrize(("prior", "more"), [("empirical", 1), ("ard", 1), ("normal", 1), ("pretrained", 2)])
def test_memory_is_a_rho_for_each_weight_and_the_mean_of_a_pretrained_prior(prior: str, more: int) -> None:
    model = small()
    bnn = bayesify(model, prior=prior)
    before, after = (sum(t.nbytes for t in (*m.parameters(), *m.buffers())) for m in (model, bnn))
    weights = [posterior.mu for _, posterior in named_posteriors(bnn)]
    scales = 4 * len(weights)  # of the priors
    assert 0 <= after - before - more * sum(mu.nbytes for mu in weights) <= scales


def test_the_empirical_prior_is_the_default_and_fits_each_tensor() -> None:
    for posterior in posteriors(bayesify(Mixed())).values():
        prior, sigma = posterior.prior, posterior.sigma().detach()
        expected = (posterior.mu.detach().square().mean() + sigma.square().mean()).sqrt()
        torch.testing.assert_close(torch.as_tensor(prior.sigma), expected)
        assert prior.mean == 0.0


def test_a_prior_at_the_trained_weights_starts_at_a_kl_of_zero() -> None:
    bnn = bayesify(Mixed(), prior="pretrained")
    count = sum(p.mu.numel() for p in posteriors(bnn).values())
    assert abs(kl_divergence(bnn).item()) < 1e-6 * count, "rounding, against terms of order one"
    wider = bayesify(Mixed(), prior="pretrained", prior_sigma=0.5, init_sigma=0.1)
    expected = count * (math.log(0.5 / 0.1) + (0.1 / 0.5) ** 2 / 2 - 0.5)
    torch.testing.assert_close(kl_divergence(wider).item(), expected, rtol=1e-5, atol=0)


def test_named_priors_objects_and_functions() -> None:
    assert {p.prior.sigma for p in posteriors(bayesify(small(), prior="normal")).values()} == {1.0}
    assert {p.prior.sigma for p in posteriors(bayesify(small(), prior="normal", prior_sigma=0.3)).values()} == {0.3}
    assert all(isinstance(p.prior, ARD) for p in posteriors(bayesify(small(), prior="ard")).values())
    assert {p.prior.sigma for p in posteriors(bayesify(small(), prior=Normal(0.7))).values()} == {0.7}

    def choose(name: str, weight: Tensor) -> object:
        return ARD() if weight.dim() > 1 else "normal"

    mixed = posteriors(bayesify(small(), prior=choose))
    assert isinstance(mixed["0.weight"].prior, ARD)
    assert mixed["0.bias"].prior.sigma == 1.0


def test_a_prior_that_knows_its_density_only() -> None:
    class Laplace:
        def log_prob(self, w: Tensor) -> Tensor:
            return torch.distributions.Laplace(0.0, 0.1).log_prob(w)

    bnn = bayesify(nn.Linear(30, 20), prior=Laplace())
    kl = kl_divergence(bnn)
    kl.backward()
    assert bool(torch.isfinite(kl))
    assert bnn.w_mu.grad is not None


def test_one_posterior_and_one_kl_term_for_a_tie() -> None:
    model = LanguageModel()
    bnn = bayesify(model, prior="normal")
    assert list(posteriors(bnn)) == ["embedding.weight", "body.weight", "body.bias"]
    separate = sum(posterior.kl().item() for posterior in posteriors(bnn).values())
    torch.testing.assert_close(kl_divergence(bnn).item(), separate, rtol=1e-5, atol=0)
    before = list(bnn.parameters())
    assert len(before) == 6, "three means and three rhos"

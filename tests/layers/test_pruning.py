"""Masks by signal-to-noise ratio: what they keep, that they hold, and that everything stays finite around them."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.errors import InvalidValueError
from bensemble.gaussian import rho_from_sigma
from bensemble.layers import BayesianConv2d, BayesianConvTranspose1d, BayesianLinear
from bensemble.layers.class_choice import bayesian_class
from bensemble.layers.swap import NewPosterior, make_bayesian
from bensemble.posteriors import named_posteriors
from bensemble.priors import ARD, Normal


def network(**kwargs):
    model = nn.Sequential(
        BayesianConv2d(2, 4, 2, padding_mode="reflect", padding=1, **kwargs),
        nn.ReLU(),
        nn.Flatten(2),
        BayesianConvTranspose1d(4, 3, 2, **kwargs),
        nn.Flatten(),
        BayesianLinear(51, 3, **kwargs),
    )
    for _, posterior in named_posteriors(model):
        if posterior.name == "bias":
            nn.init.normal_(posterior.mu)
    return model


def set_sigma(model, value):
    for _, posterior in named_posteriors(model):
        nn.init.constant_(posterior.rho, float(rho_from_sigma(torch.tensor(value, dtype=torch.float64))))


def assert_finite(model):
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
        assert p.grad.isfinite().all(), f"gradient of {name}"


def test_masks_keep_what_stands_out_of_its_noise():
    layer = BayesianLinear(2, 2)
    with torch.no_grad():
        layer.w_mu.copy_(torch.tensor([[1.0, -1.0], [0.5, 0.0]]))
        layer.b_mu.copy_(torch.tensor([0.1, -2.0]))
        layer.w_rho.copy_(rho_from_sigma(torch.tensor([[1.0, 2.0], [0.5, 1.0]])))
        layer.b_rho.copy_(rho_from_sigma(torch.tensor([1.0, 1.0])))
    masks = layer.get_pruning_masks()
    assert {key: mask.tolist() for key, mask in masks.items()} == {"w_mu": [[1, 0], [1, 0]], "b_mu": [0, 1]}
    assert masks["w_mu"].dtype is torch.float32
    assert layer.get_pruning_masks(0.4)["w_mu"].tolist() == [[1, 1], [1, 0]]
    assert "w_mask" not in layer.state_dict()
    assert layer.apply_pruning(0.83) == 0.5
    assert layer.w_mu.tolist() == [[1, 0], [0.5, 0]]
    assert layer.apply_pruning(10.0) == 1.0


def test_what_is_pruned_stays_pruned_under_a_lower_threshold():
    layer = BayesianLinear(20, 10)
    pruned = layer.get_pruning_masks(1.0)["w_mu"] == 0
    share = layer.apply_pruning(1.0)
    assert layer.apply_pruning(0.0) == share
    assert layer.w_mu[pruned].eq(0).all()


@pytest.mark.parametrize("threshold", [-0.1, math.nan, "0.83", None, True])
def test_a_bad_threshold_is_refused_and_nothing_changes(threshold):
    layer = BayesianLinear(3, 2)
    before = layer.w_mu.detach().clone()
    for call in (layer.get_pruning_masks, layer.apply_pruning):
        with pytest.raises(
            InvalidValueError, match=f"get_pruning_masks: threshold must be 0 or above, got {threshold!r}"
        ):
            call(threshold)
    assert torch.equal(layer.w_mu, before)
    assert "w_mask" not in layer.state_dict()


def test_bad_masks_are_refused_and_nothing_changes():
    layer = BayesianLinear(3, 2)
    (weight, _), before = layer.posteriors(), {k: v.clone() for k, v in layer.state_dict().items()}
    with pytest.raises(InvalidValueError, match=r"mask of 'w_mu' must have shape \(2, 3\), got \(3, 2\)"):
        weight.set_mask(torch.ones(3, 2))
    with pytest.raises(InvalidValueError, match="mask of 'w_mu' must hold zeros and ones only"):
        weight.set_mask(torch.full((2, 3), 0.5))
    with pytest.raises(InvalidValueError, match="mask of 'w_mu' must hold zeros and ones only"):
        weight.set_mask(torch.full((2, 3), math.nan))
    with pytest.raises(InvalidValueError, match="BayesianLinear has no posterior 'c', only 'w', 'b'"):
        layer._set_mask("c", torch.ones(2, 3))
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["normal", "empirical", "pretrained", "ard"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1)])
def test_after_100_steps_nothing_pruned_is_back_and_nothing_is_infinite(prior, optimizer):
    model = network(prior=prior, init_sigma=0.3)
    bensemble.prune(model, threshold=0.83)
    zeros = {name: posterior.mu == 0 for name, posterior in named_posteriors(model)}
    rhos = {name: posterior.rho.detach().clone() for name, posterior in named_posteriors(model)}
    assert all(0 < pruned.sum() < pruned.numel() for name, pruned in zeros.items() if name.endswith("weight"))
    steps = optimizer(model.parameters())
    for _ in range(100):
        steps.zero_grad()
        x = torch.randn(8, 2, 3, 3)
        loss = (model(x) - 1).square().mean() + bensemble.kl_divergence(model) / 100
        loss.backward()
        assert loss.isfinite()
        assert_finite(model)
        steps.step()
    for name, posterior in named_posteriors(model):
        assert torch.equal(posterior.mu == 0, zeros[name]), name
        assert not torch.equal(posterior.rho[~zeros[name]], rhos[name][~zeros[name]]), name
    with bensemble.sampling(model):
        assert model[5].weight[zeros["5.weight"]].eq(0).all()


@pytest.mark.parametrize("sigma", [1e-12, 1e-6, 0.1, 100.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("prior", [Normal(0.5), ARD()])
def test_extreme_sigmas_and_inputs_stay_finite(sigma, scale, prior):
    model = network(prior=prior, bias=False)
    set_sigma(model, sigma)
    for estimator in ("local", "weights"):
        for layer in (model[0], model[3], model[5]):
            layer.estimator = estimator
        model.zero_grad()
        loss = model(scale * torch.randn(4, 2, 3, 3)).square().mean() + bensemble.kl_divergence(model)
        loss.backward()
        assert loss.isfinite()
        assert_finite(model)
    for _, posterior in named_posteriors(model):
        assert_close(posterior.sigma(), torch.full_like(posterior.rho, sigma))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_half_precision_models_train(dtype, prune, scale):
    model = network(init_sigma=1e-4).to(dtype)
    if prune:
        bensemble.prune(model, sparsity=0.5)
    means = [p.mu for _, p in named_posteriors(model)]
    rhos = {name: p.rho.detach().clone() for name, p in named_posteriors(model)}
    optimizer = torch.optim.Adam([p for p in model.parameters() if all(p is not mu for mu in means)], lr=1e-3)
    for step in range(3):
        optimizer.zero_grad()
        output = model((scale * torch.randn(4, 2, 3, 3)).to(dtype))
        assert output.dtype is dtype
        assert output.isfinite().all()
        (output.float().mean() + bensemble.kl_divergence(model)).backward()
        assert_finite(model)
        optimizer.step()
        for name, posterior in named_posteriors(model):
            kept = torch.ones_like(posterior.rho) if posterior.mask is None else posterior.mask
            moved = (posterior.rho - rhos[name]).abs()[kept.bool()]
            assert step or (moved > 5e-4).all(), name  # Adam's first step is its learning rate


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_autocast_trains_and_keeps_the_variance_out_of_half_precision(dtype, scale):
    model = network()
    x = scale * torch.randn(4, 2, 3, 3)
    for sigma in (1e-4, 0.1):
        set_sigma(model, sigma)
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            output = model(x)
            loss = output.float().mean() + bensemble.kl_divergence(model)
        assert output.dtype is dtype
        loss.backward()
        assert_finite(model)
    # sigma 1e-4 squared is 1e-8, which float16 has no number for; inputs of 1e3 squared are beyond its largest.
    layer, ones = BayesianLinear(64, 500, init_sigma=1e-4, bias=False), torch.full((40, 64), 1e3)
    nn.init.zeros_(layer.w_mu)
    with torch.autocast("cpu", dtype=dtype):
        noise = layer(ones).float()
    expected = 1e-4 * 1e3 * math.sqrt(64)
    rounding = torch.finfo(dtype).eps
    assert_close(noise.std().item(), expected, rtol=5 / math.sqrt(2 * noise.numel()) + rounding, atol=0)


def test_masks_follow_their_layer_to_another_dtype_and_back():
    layer = BayesianLinear(4, 3)
    layer.apply_pruning(1.0)
    mask = layer.w_mask.clone()
    layer.half().double().bfloat16().float()
    assert layer.w_mask.dtype is torch.float32
    assert torch.equal(layer.w_mask, mask)
    assert layer.w_rho.dtype is torch.float32


def test_a_wide_model_that_becomes_narrow_keeps_a_precise_rho():
    layer = BayesianLinear(4, 3, dtype=torch.float64, prior="pretrained")
    layer.apply_pruning(1.0)
    layer.to(torch.float16)
    assert layer.w_mu.dtype is torch.float16
    assert {layer.w_rho.dtype, layer.w_mask.dtype, layer.w_prior_mean.dtype} == {torch.float32}


def test_lifting_a_mask_lets_the_weights_move_again():
    layer = BayesianLinear(4, 3)
    layer.apply_pruning(math.inf)
    for posterior in layer.posteriors():
        posterior.set_mask(None)
    assert "w_mask" not in layer.state_dict()
    layer(torch.randn(2, 4)).sum().backward()
    assert layer.w_mu.grad.abs().sum() > 0


def test_a_mask_set_through_the_model_holds_on_every_layer_that_shares_the_weight():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second)
    rho = nn.Parameter(torch.zeros(3, 3))
    for layer in (first, second):
        make_bayesian(
            layer, bayesian_class(layer, ["weight"], True), {"weight": NewPosterior(layer.weight, rho, Normal())}
        )
    ((name, posterior),) = named_posteriors(model)
    assert name == "0.weight"
    assert [tie.layer for tie in posterior.ties] == [second]
    posterior.set_mask(torch.eye(3))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    off_diagonal = ~torch.eye(3, dtype=bool)
    assert posterior.mu[off_diagonal].eq(0).all()
    with bensemble.sampling(model):
        assert second.weight[off_diagonal].eq(0).all()
        assert torch.equal(first.weight, second.weight)
    posterior.set_mask(None)
    assert posterior.ties[0].mask is None


def test_the_kl_of_a_prior_with_one_value_per_weight_takes_the_kept_ones():
    layer = BayesianLinear(3, 2, bias=False)
    (posterior,) = layer.posteriors()
    layer._set_prior("w", Normal(sigma=torch.rand(2, 3) + 0.5, mean=torch.randn(2, 3)))
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    posterior.set_mask(mask)
    q = torch.distributions.Normal(posterior.mu, posterior.sigma())
    p = torch.distributions.Normal(posterior.prior.mean, posterior.prior.sigma)
    assert_close(layer.kl_divergence(), torch.distributions.kl_divergence(q, p)[mask.bool()].sum())

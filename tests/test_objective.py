import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl
from torch.testing import assert_close

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.gaussian import rho_from_sigma, sigma_from_rho
from bensemble.layers import BaseBayesianLayer, BayesianConv2d, BayesianLinear
from bensemble.objective import (
    distillation_loss,
    elbo_loss,
    kl_divergence,
    kl_warmup,
    param_groups,
    posterior_summary,
)
from bensemble.posteriors import named_posteriors


class OwnKL(BaseBayesianLayer):
    """A user's layer with a KL of its own and no pair of parameters."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def kl_divergence(self):
        return 2 * self.value


class OwnScale(BayesianLinear):
    """A user's layer that tempers the KL of an ordinary one."""

    def kl_divergence(self):
        return 3 * super().kl_divergence()


def net():
    return nn.Sequential(
        BayesianConv2d(1, 3, 2, prior_sigma=0.5), nn.BatchNorm2d(3), nn.Flatten(), BayesianLinear(12, 2)
    )


def reference_kl(model):
    return sum(
        torch_kl(Normal(p.mu, sigma_from_rho(p.rho)), Normal(0.0, p.layer.prior_sigma)).sum()
        for _, p in named_posteriors(model)
    )


def test_the_kl_of_a_model_is_the_sum_over_its_posteriors():
    model = net()
    total = kl_divergence(model)
    assert total.shape == ()
    assert_close(total, reference_kl(model))
    total.backward()
    assert all(p.mu.grad is not None and p.rho.grad is not None for _, p in named_posteriors(model))


def test_without_bayesian_layers_the_kl_is_zero_on_the_device_of_the_model():
    for model in (nn.Linear(2, 2), nn.Linear(2, 2, device="meta"), nn.ReLU()):
        with pytest.warns(UserWarning, match="has no posteriors, so the KL is 0; call convert.bayesify first"):
            kl = kl_divergence(model)
        assert kl.device.type == "meta" or kl == 0


def test_a_shared_layer_and_a_tied_weight_count_once():
    layer, other = BayesianLinear(3, 3), BayesianLinear(3, 3)
    alone = kl_divergence(layer)
    assert_close(kl_divergence(nn.Sequential(layer, nn.ReLU(), layer)), alone)
    for name in ("w_mu", "w_rho", "b_mu", "b_rho"):
        other._parameters[name] = layer._parameters[name]
    assert_close(kl_divergence(nn.Sequential(layer, other)), alone)


def test_a_layer_with_a_kl_of_its_own_is_asked_for_it():
    own = OwnKL(1.5)
    layer = BayesianLinear(2, 2)
    total = kl_divergence(nn.Sequential(own, layer))
    assert_close(total, 3.0 + layer.kl_divergence())
    total.backward()
    assert own.value.grad == 2
    scaled = OwnScale(2, 2)
    assert_close(kl_divergence(scaled), 3 * reference_kl(scaled))


def test_two_layers_of_their_own_kl_that_share_weights_count_once():
    one, two = OwnScale(2, 2), OwnScale(2, 2)
    two._parameters.update(one._parameters)
    assert_close(kl_divergence(nn.Sequential(one, two)), 3 * reference_kl(one))


@pytest.mark.parametrize("first", [0, 1])
def test_a_tie_with_a_layer_of_its_own_kl_counts_once_in_either_order(first):
    layer, scaled = BayesianLinear(2, 2), OwnScale(2, 2)
    scaled._parameters.update(layer._parameters)
    layers = [layer, scaled] if first else [scaled, layer]
    assert_close(kl_divergence(nn.Sequential(*layers)), 3 * reference_kl(layer))


def test_the_kl_of_a_float64_model_is_float64():
    assert kl_divergence(net().double()).dtype == torch.float64


def test_elbo_loss_is_the_bound_per_term():
    nll, kl = torch.tensor(0.5), torch.tensor(20.0, requires_grad=True)
    assert_close(elbo_loss(nll, kl, 100), torch.tensor(0.7))
    assert_close(elbo_loss(nll, kl, 200) - nll, (elbo_loss(nll, kl, 100) - nll) / 2)
    assert_close(elbo_loss(nll, kl, 100, beta=0.0), nll)
    elbo_loss(nll, kl, 100, beta=0.5).backward()
    assert_close(kl.grad, torch.tensor(0.005))


def test_the_optimum_of_the_bound_is_the_conjugate_posterior():
    """Bayesian linear regression with orthogonal inputs: the exact posterior is in the family."""
    torch.manual_seed(0)
    num, noise, prior = 64, 0.5, 0.8
    x = torch.linalg.qr(torch.randn(num, 3, dtype=torch.float64)).Q * math.sqrt(num)
    y = x @ torch.tensor([[1.0], [-0.5], [0.2]], dtype=torch.float64) + noise * torch.randn(num, 1, dtype=torch.float64)
    layer = BayesianLinear(3, 1, prior_sigma=prior, bias=False, dtype=torch.float64)
    precision = num / noise**2 + 1 / prior**2
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        # E_q of the squared error in closed form: the error at the mean plus the variance of the prediction.
        error = (x @ layer.w_mu.T - y).square() + x.square() @ sigma_from_rho(layer.w_rho).square().T
        nll = (error / (2 * noise**2)).mean()
        loss = elbo_loss(nll, kl_divergence(layer), num_data=num)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(
        sigma_from_rho(layer.w_rho), torch.full((1, 3), precision**-0.5, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert_close(layer.w_mu.data, (x.T @ y).T / noise**2 / precision, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_data": 0}, InvalidValueError, "num_data must be finite and above 0, got 0"),
        ({"num_data": -5}, InvalidValueError, "num_data must be finite and above 0, got -5"),
        ({"num_data": math.nan}, InvalidValueError, "num_data must be finite and above 0, got nan"),
        ({"num_data": "many"}, InvalidTypeError, "num_data must be a number, got 'many'"),
        ({"num_data": True}, InvalidTypeError, "num_data must be a number, got True"),
        ({"num_data": 1, "beta": -1.0}, InvalidValueError, r"beta must be finite and at least 0, got -1\.0"),
        ({"num_data": 1, "beta": math.inf}, InvalidValueError, "beta must be finite and at least 0, got inf"),
        ({"num_data": 1, "nll": torch.zeros(3)}, InvalidValueError, r"nll must be a scalar, got shape \(3,\)"),
        ({"num_data": 1, "kl": torch.zeros(1)}, InvalidValueError, r"kl must be a scalar, got shape \(1,\)"),
    ],
)
def test_elbo_loss_refuses(arguments, error, message):
    with pytest.raises(error, match=f"elbo_loss: {message}"):
        elbo_loss(**{"nll": torch.tensor(0.0), "kl": torch.tensor(0.0)} | arguments)


def test_distillation_is_the_tempered_kl_to_the_teacher():
    own, teacher = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, dtype=torch.float64)
    p, q = (teacher / 3).softmax(1), (own / 3).softmax(1)
    torch.testing.assert_close(distillation_loss(own, teacher, 3), 9 * (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(distillation_loss(own.T, teacher.T, 3, dim=0), distillation_loss(own, teacher, 3))
    assert float(distillation_loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    # Its gradient is that of the cross-entropy with softened answers.
    wanted = 9 * torch.nn.functional.cross_entropy(own / 3, p)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, own)[0] for loss in (distillation_loss(own, teacher, 3), wanted))
    )
    source = teacher.clone().requires_grad_()
    distillation_loss(own, source).backward()
    assert source.grad is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.ones(2, 3), torch.ones(2, 4)),
            r"one shape with at least two classes in axis -1, got \(2, 3\) and \(2, 4\)",
        ),
        ((torch.ones(2, 1), torch.ones(2, 1)), "at least two classes"),
        ((torch.ones(2, 3), torch.ones(2, 3), 0.0), "temperature must be finite and above 0"),
    ],
)
def test_distillation_refuses(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        distillation_loss(*arguments)


def test_kl_warmup_rises_to_one_and_stays():
    weights = [kl_warmup(step, 100) for step in range(101)]
    assert weights[0] == 0
    assert weights[15] == pytest.approx(0.5)
    assert weights[30:] == [1.0] * 71
    assert weights == sorted(weights)
    assert kl_warmup(0, 10, fraction=0) == 1
    assert kl_warmup(5, 10, fraction=1) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, 10), "step"), ((0, 0), "total"), ((0, 10, 1.5), "fraction"), ((0, 10, -0.1), "fraction")],
)
def test_kl_warmup_refuses(arguments, message):
    with pytest.raises(InvalidValueError, match=f"kl_warmup: {message} must be finite and"):
        kl_warmup(*arguments)


def test_param_groups_hold_every_parameter_once():
    model = net()
    model[1].weight.requires_grad_(False)
    shared = nn.Sequential(model, model[3])
    groups = param_groups(shared, lr=1e-3, rho_lr=1e-2, weight_decay=0.1)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in shared.parameters())
    by_name = {group["name"]: group for group in groups}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in by_name.items()} == {
        "mean": (1e-3, 0.0),
        "rho": (1e-2, 0.0),
        "deterministic": (1e-3, 0.1),
    }
    assert {id(p) for p in by_name["rho"]["params"]} == {id(p.rho) for _, p in named_posteriors(model)}
    assert {id(p) for p in by_name["deterministic"]["params"]} == {id(model[1].weight), id(model[1].bias)}


def test_decay_moves_only_the_deterministic_parameters():
    model = net()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1, weight_decay=0.5), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.weight"}  # the bias of a fresh norm is 0


def test_param_groups_of_a_plain_model_and_defaults():
    (group,) = param_groups(nn.Linear(2, 2), lr=0.1)
    assert group["name"] == "deterministic"
    assert {g["lr"] for g in param_groups(BayesianLinear(2, 2), lr=0.1)} == {0.1}


@pytest.mark.parametrize("name", ["lr", "rho_lr", "weight_decay"])
def test_param_groups_refuses_negative_values(name):
    with pytest.raises(InvalidValueError, match=rf"param_groups: {name} must be finite and at least 0, got -0\.1"):
        param_groups(nn.Linear(2, 2), **{"lr": 0.1} | {name: -0.1})


def test_posterior_summary_counts_and_ranks():
    layer = BayesianLinear(10, 10, bias=False)
    with torch.no_grad():
        layer.w_mu.copy_(torch.arange(1.0, 101).view(10, 10))
        layer.w_rho.copy_(rho_from_sigma(torch.full((10, 10), 2.0)))
    summary = posterior_summary(nn.Sequential(layer))
    assert all(type(value) is float for value in summary.values())
    assert summary["weights"] == 100
    assert summary["kl"] == pytest.approx(float(layer.kl_divergence().detach()))
    assert summary["kl_per_weight"] == pytest.approx(summary["kl"] / 100)
    assert [summary[f"snr_q{q}"] for q in ("05", "50", "95")] == pytest.approx([2.5, 25, 47.5])
    assert summary["sigma_q50"] == pytest.approx(2)
    assert summary["sparsity"] == 0
    next(iter(layer.posteriors())).set_mask((torch.arange(100) >= 50).float().view(10, 10))
    pruned = posterior_summary(layer)
    assert pruned["sparsity"] == 0.5
    assert pruned["snr_q05"] == pytest.approx(53 / 2)


def test_posterior_summary_of_special_models():
    assert posterior_summary(nn.Linear(2, 2)) == {"weights": 0.0, "kl": 0.0}
    layer = BayesianLinear(2, 2, bias=False)
    next(iter(layer.posteriors())).set_mask(torch.zeros(2, 2))
    assert math.isnan(posterior_summary(layer)["snr_q50"])
    assert posterior_summary(layer)["sparsity"] == 1


@pytest.mark.parametrize("function", [kl_divergence, posterior_summary, lambda m: param_groups(m, 0.1)])
def test_other_objects_are_refused(function):
    with pytest.raises(InvalidTypeError, match=r"model must be a torch\.nn\.Module, got str"):
        function("model")

"""The Kronecker-factored fit of a last layer: its curvature, its report, its refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bensemble
from bensemble import BayesianConv2d, BayesianLinear, fit_posterior, predict
from bensemble.errors import InvalidValueError
from bensemble.fitting import kronecker
from bensemble.likelihoods import Categorical
from bensemble.priors import ARD

from .last_layers import CASES, Tokens, kronecker_covariance, logits_of, mlp, of


def test_the_curvature_is_the_product_of_a_and_g(case):
    model, layer, x, _, likelihood = case
    seen = []
    hook = layer.register_forward_hook(lambda m, a, y: seen.append((a[0].detach(), y)))
    raw = logits_of(model(x))
    hook.remove()
    (phi, result), axis = seen[0], likelihood.axis(raw)
    if raw.shape[2:] != result.shape[2:]:
        pytest.skip("the fit sums over the layer's own positions, before they are resized")
    rows = phi.movedim(layer.channel_axis, -1).reshape(-1, layer.w_mu.shape[1])
    probs = raw.softmax(axis).movedim(axis, -1).reshape(-1, layer.w_mu.shape[0]).detach()
    factor = 1 / 1.5 if isinstance(model, Tokens) else 1.0
    g = factor**2 * (torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]).mean(0)
    weight, count = layer._posterior("weight"), len(rows)
    width = float(weight.mu.detach().square().mean().sqrt())
    dense = torch.kron(g, rows.t() @ rows) + torch.eye(weight.mu.numel()) / width**2
    torch.testing.assert_close(
        kronecker_covariance(layer)[: weight.mu.numel(), : weight.mu.numel()], dense.inverse(), rtol=1e-5, atol=1e-9
    )
    bias = (count * g + torch.eye(len(g)) / width**2).inverse()
    torch.testing.assert_close(
        kronecker_covariance(layer)[weight.mu.numel() :, weight.mu.numel() :], bias, rtol=1e-5, atol=1e-9
    )


def test_ignored_positions_do_not_count():
    torch.manual_seed(0)
    make, name, inputs, likelihood, *_ = CASES["tokens"]
    net, x, y = make(), inputs(30), torch.randint(0, 4, (30, 3))
    y[:, 2] = -100
    x2, y2 = x.clone(), y.clone()
    found = []
    for targets in (y2, y2[:, :2]):
        model, layer = of(net, name)
        output = logits_of if targets.shape[1] == 3 else lambda out: out["logits"][:, :2]
        fit_posterior(model, [(x2, targets)], likelihood=likelihood, beta=1.0, output=output)
        found.append([p.sigma().detach() for p in layer.posteriors()])
    for with_ignored, without in zip(*found, strict=True):
        torch.testing.assert_close(with_ignored, without, rtol=1e-4, atol=1e-6)


def test_the_report_compares_with_one_temperature_on_data_that_chose_nothing():
    torch.manual_seed(0)
    x = torch.randn(600, 5)
    y = (x @ torch.randn(5, 4) + torch.randn(600, 4)).argmax(1)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(net(x[:200]), y[:200]).backward()
        optimizer.step()
    model, _ = of(net, "2")
    report = fit_posterior(model, [(x[:200], y[:200])], likelihood="categorical", val_loader=[(x[200:], y[200:])])
    found = report.comparison
    assert found.tempered < found.network
    assert report.structure == "kronecker"
    assert found.gain == pytest.approx(found.tempered - found.fitted, abs=1e-6)
    assert "one temperature" in str(report)
    assert report.num_passes == 1


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_a_network_that_is_too_sure_loses_nothing_to_one_temperature(structure):
    torch.manual_seed(0)
    x = torch.randn(1200, 5)
    y = (x @ torch.randn(5, 4) + torch.randn(1200, 4)).argmax(1)
    (x, x_val), (y, y_val) = x.split(600), y.split(600)
    net = mlp()
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in net[-1].parameters():
            parameter *= 6
        tempered = min(float(F.cross_entropy(net(x_val) / t, y_val)) for t in torch.linspace(1, 12, 100))
    model, layer = of(net, "2")
    held_out = {"val_loader": [(x_val[:250], y_val[:250]), (x_val[250:], y_val[250:])], "structure": structure}
    report = fit_posterior(model, [(x, y)], likelihood="categorical", **held_out)
    assert report.nll < tempered + 0.002
    assert report.bias_sigma > 0
    assert f"{report.bias_sigma:.3g} more for the biases" in str(report)
    probs = predict(model, x_val, likelihood="categorical").probs
    assert float(F.nll_loss(probs.log(), y_val)) == pytest.approx(report.nll, abs=1e-5)
    bias = layer._posterior("bias").scale().square()
    assert bool((bias >= 0.999 * report.bias_sigma**2).all())


def test_without_a_bias_the_weights_alone_are_chosen():
    torch.manual_seed(0)
    model, _ = of(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4, bias=False)), "2")
    data = [(torch.randn(40, 5), torch.randint(0, 4, (40,)))]
    report = fit_posterior(model, data, likelihood="categorical", val_loader=list(data))
    assert report.bias_sigma == 0
    assert "biases" not in str(report)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesianConv2d(2, 3, 3), "does not apply one weight matrix"),
        (lambda: BayesianLinear(3, 2, prior=ARD()), "needs a normal prior"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(make, message):
    model = nn.Sequential(make())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InvalidValueError, match=message):
        fit_posterior(model, [], likelihood="categorical", structure="kronecker")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_empirical_fisher_stays_diagonal():
    model, layer = of(mlp(), "2")
    data = [(torch.randn(9, 5), torch.randint(0, 4, (9,)))]
    report = fit_posterior(model, data, likelihood="categorical", curvature="fisher", beta=1.0)
    assert report.structure == "diagonal"
    assert layer._posterior("weight").basis is None
    with pytest.raises(InvalidValueError, match="needs curvature='ggn'"):
        fit_posterior(model, data, likelihood="categorical", curvature="fisher", structure="kronecker")


def test_a_network_too_wide_is_refused_with_the_number(monkeypatch):
    monkeypatch.setattr(kronecker, "MOST_INPUTS", 6)
    model, _ = of(mlp(), "2")
    with pytest.raises(InvalidValueError, match="7 inputs and 4 outputs, and 6"):
        fit_posterior(model, [], likelihood="categorical", structure="kronecker")


def test_plain_sigmas_bring_the_plain_basis_back(case):
    model, layer, *_ = case
    bensemble.set_posterior(model, {name: 0.1 for name, _ in bensemble.named_posteriors(model)})
    assert all(p.basis is None for p in layer.posteriors())


@pytest.mark.parametrize("prior", ["ard", "pretrained"])
def test_a_prior_that_a_rotation_would_change_is_refused(case, prior):
    model, layer, *_ = case
    before = layer.w_prior_sigma.clone() if hasattr(layer, "w_prior_sigma") else layer.prior_sigma
    with pytest.raises(InvalidValueError, match="rotated basis"):
        bensemble.set_prior(model, prior)
    assert torch.equal(torch.as_tensor(layer.prior_sigma), torch.as_tensor(before))
    bensemble.set_prior(model, "empirical")
    assert bool(bensemble.kl_divergence(model).isfinite())


def test_a_fit_that_fails_leaves_the_basis(case):
    model, layer, x, *_ = case
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    with pytest.raises(InvalidValueError):
        fit_posterior(model, [(x * float("nan") if x.is_floating_point() else x, None)], likelihood=Categorical(dim=1))
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())

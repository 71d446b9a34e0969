"""Predictions of a last layer in closed form, against explicit Jacobians and many samples."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bensemble
from bensemble import fit_posterior, predict
from bensemble.basis import Basis
from bensemble.gaussian import rho_from_sigma
from bensemble.likelihoods import Gaussian
from bensemble.posteriors import bayesian_layers
from bensemble.prediction.closed import closed_form

from .last_layers import kronecker_covariance, logits_of, mlp, of


def jacobian(layer, model, x, pick):
    """The Jacobian of the chosen outputs in (weight, bias) at the means, (outputs, weights)."""
    out = pick(model(x))
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, (layer.w_mu, layer.b_mu), retain_graph=True)])
        for o in out.flatten()
    ]
    return torch.stack(rows)


def test_the_covariance_of_the_outputs_is_j_sigma_jt(case):
    model, layer, x, _, _ = case
    form = closed_form(model, None)  # raw outputs keep the common direction
    outputs = form.outputs(form.record(x[:2], None))
    jac = jacobian(layer, model, x[:2], logits_of)
    dense = torch.diagonal(jac @ kronecker_covariance(layer) @ jac.t()).view_as(outputs.variance)
    torch.testing.assert_close(outputs.variance, dense, rtol=1e-6, atol=0)
    weight, seen = layer._posterior("weight"), form.record(x[:2], None).input.movedim(layer.channel_axis, -1)
    met = (seen.reshape(-1, seen.shape[-1]) @ weight.basis.inner).abs().amax(0) > 1e-3  # LayerNorm leaves one out
    assert int((~met).sum()) <= 1
    for row, column in torch.cartesian_prod(torch.arange(len(weight.mu)), met.nonzero().flatten()).tolist():
        with torch.no_grad():
            layer.w_rho[row, column] += 0.1  # about 10 % of one eigenvalue
            changed = form.outputs(form.record(x[:2], None)).variance
            layer.w_rho[row, column] -= 0.1
        assert float((changed / dense - 1).abs().max()) > 1e-6


@pytest.mark.slow
def test_closed_predictions_agree_with_many_weight_samples(case):
    model, layer, x, _, likelihood = case
    raw = predict(model, x[:6], output=logits_of)
    layer.is_last = False
    sampled = predict(model, x[:6], 1500, output=logits_of, generator=torch.Generator().manual_seed(0))
    assert (raw.method, sampled.method) == ("closed", "weights")
    assert float(((raw.mean - sampled.mean) / sampled.mcse).abs().max()) < 5
    assert float((raw.std / sampled.std - 1).abs().max()) < 5 / math.sqrt(2 * 1500)
    layer.is_last = True
    closed = predict(model, x[:6], likelihood=likelihood, output=logits_of)
    layer.is_last = False
    sampled = predict(model, x[:6], 1500, likelihood=likelihood, output=logits_of)
    assert float((closed.probs - sampled.probs).abs().max()) < 0.02
    assert float((closed.mutual_information - sampled.mutual_information).abs().max()) < 0.02
    assert bool((closed.mcse == 0).all())


def test_a_batch_a_loader_and_chunks_give_the_same(case):
    model, _, x, y, likelihood = case
    options = {"likelihood": likelihood, "output": logits_of}
    one = predict(model, x, **options)
    for other in (
        predict(model, [(x[:7], y[:7]), (x[7:], y[7:])], **options),
        predict(model, x, chunk_size=9, **options),
    ):
        torch.testing.assert_close(other.probs, one.probs)
        torch.testing.assert_close(other.mutual_information, one.mutual_information)


def test_the_common_direction_of_the_logits_does_not_count():
    model, layer = of(mlp(), "2")
    x = torch.randn(5, 5)
    before = predict(model, x, likelihood="categorical").probs
    outer = torch.linalg.qr(torch.cat([torch.ones(4, 1), torch.randn(4, 3)], 1))[0]  # first column: all logits alike
    for posterior in layer.posteriors():
        posterior.set_basis(Basis(outer, torch.eye(7) if posterior.name == "weight" else None))
    with torch.no_grad():
        for posterior in layer.posteriors():
            posterior.rho[1:] = -30.0
            posterior.rho[0] = 3.0
    alike = predict(model, x, likelihood="categorical")
    torch.testing.assert_close(alike.probs, model(x).softmax(1).detach())
    assert float(alike.mutual_information.max()) < 1e-5
    assert not torch.allclose(before, alike.probs, atol=1e-6)


def test_regression_is_exact():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    model, layer = of(net, "2")
    x, y = torch.randn(50, 3).double(), torch.randn(50, 1).double()
    report = fit_posterior(model, [(x, y)], likelihood=Gaussian(0.5), beta=1.0)
    assert report.structure == "kronecker"
    p = predict(model, x, likelihood=Gaussian(0.5))
    phi = net[:2](x).detach()
    width = float(layer.w_mu.detach().square().mean().sqrt())
    covariance = (phi.t() @ phi / 0.25 + torch.eye(8) / width**2).inverse()
    bias = 1 / (50 / 0.25 + 1 / width**2)
    torch.testing.assert_close(p.std[:, 0], ((phi @ covariance * phi).sum(1) + bias).sqrt())
    torch.testing.assert_close(p.total_std.square(), p.std.square() + 0.25)


def test_an_ensemble_of_last_layers_is_the_mean_of_its_members():
    x = torch.randn(6, 5)
    members = []
    for seed in range(3):
        torch.manual_seed(seed)
        model, _ = of(mlp(), "2")
        members.append(model)
    one = [predict(m, x, likelihood="categorical") for m in members]
    together = predict(members, x, likelihood="categorical")
    assert together.method == "closed"
    torch.testing.assert_close(together.probs, torch.stack([p.probs for p in one]).mean(0))
    torch.testing.assert_close(together.expected_entropy, torch.stack([p.expected_entropy for p in one]).mean(0))
    assert bool((together.mutual_information > torch.stack([p.mutual_information for p in one]).mean(0)).all())


@pytest.mark.parametrize("members", [1, 2])
def test_a_temperature_divides_the_gaussian_of_the_logits(members):
    x, models, cold = torch.randn(300, 5), [], []
    for _ in range(members):
        models.append(of(mlp(), "2")[0])
        cold.append(copy.deepcopy(models[-1]))
        with torch.no_grad():
            (last,) = [m for _, m in bayesian_layers(cold[-1])]
            last.w_mu /= 2.5
            last.b_mu /= 2.5
            for posterior in last.posteriors():
                posterior.rho.copy_(rho_from_sigma(posterior.scale() / 2.5))
    prediction = predict(models, x, likelihood="categorical")
    target = torch.multinomial((prediction.probs.log() * 1.5).softmax(1), 1)[:, 0]
    tempered = bensemble.calibrate(prediction, target, temperature=2.5).apply(prediction)
    expected = predict(cold, x, likelihood="categorical")
    for name in ("probs", "entropy", "mutual_information", "std"):
        torch.testing.assert_close(getattr(tempered, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    fitted = bensemble.calibrate(prediction, target)

    def nll(temperature):
        probs = bensemble.calibrate(prediction, target, temperature=temperature).apply(prediction).probs
        return float(F.nll_loss(probs.log(), target))

    assert nll(fitted.temperature) <= min(nll(fitted.temperature * by) for by in (0.9, 1.1)) + 1e-7


def test_a_temperature_that_wide_logits_do_not_determine_stays_moderate():
    torch.manual_seed(0)
    model, layer = of(mlp(), "2")
    with torch.no_grad():
        layer.b_rho.copy_(rho_from_sigma(torch.full_like(layer.b_rho, 4.0)))
    held_out = predict(model, torch.randn(200, 5), likelihood="categorical")
    calibration = bensemble.calibrate(held_out, held_out.probs.argmax(1), alpha=0.1)  # no errors, and no warning
    least = 0.25 * math.sqrt(math.pi / 8 * float(held_out.logit_variance.median()))
    assert least > 0.4
    assert calibration.temperature == pytest.approx(least, rel=0.01)


def test_a_model_whose_outputs_are_more_than_the_last_layer_is_sampled():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 7), nn.Linear(7, 4)

        def forward(self, x):
            return torch.relu(self.head(self.body(x)))

    model, _ = of(Shifted(), "head")
    assert predict(model, torch.randn(9, 5), likelihood="categorical").method == "weights"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_its_outputs_in_large_batches(dtype):
    model, _ = of(mlp(), "2")
    p = predict(model.to(dtype), torch.randn(3000, 5).to(dtype), likelihood="categorical", keep_samples=False)
    assert p.method == "closed"


def test_a_pruned_last_layer_is_sampled():
    model, _ = of(mlp(), "2")
    bensemble.prune(model, sparsity=0.5)
    assert predict(model, torch.randn(9, 5), likelihood="categorical").method == "weights"

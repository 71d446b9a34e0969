"""The diagonal curvature against explicit Jacobians."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble.fitting.pieces
from bensemble.fitting import fit_posterior
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian, GaussianHead
from bensemble.posteriors import named_posteriors
from bensemble.pruning.masks import prune
from convert import bayesify

from .networks import X, curvature_of, loader, mlp, seeded


def squared_jacobians(model, inputs):
    """(J_{n, o, i})^2 of every example, output and weight, one backward each; by parameter name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    rows = []
    for example in inputs:
        out = model(example[None]).flatten()
        rows.append([torch.autograd.grad(o, weights, retain_graph=True) for o in out])
    return {name: torch.stack([torch.stack([out[i] for out in row]) for row in rows]) for i, name in enumerate(names)}


@pytest.mark.parametrize("kind", ["ggn", "fisher"])
@pytest.mark.parametrize("likelihood", [Gaussian(0.5), Bernoulli()])
def test_one_output_gives_the_exact_curvature(likelihood, kind):
    """With one output and one example in a pass the random sign squares to one."""
    plain = mlp(1)
    target = torch.rand(40, 1, dtype=torch.float64)
    with torch.no_grad():
        out = plain(X)
    if isinstance(likelihood, Gaussian):
        information = torch.full_like(out, 4.0) if kind == "ggn" else ((out - target) * 4).square()
    else:
        p = out.sigmoid()
        information = p * (1 - p) if kind == "ggn" else (p - target).square()
    expected = {
        name: (j.square() * information.view(-1, 1, *[1] * (j.ndim - 2))).sum((0, 1))
        for name, j in squared_jacobians(plain, X).items()
    }
    found = curvature_of(bayesify(plain), loader(X, target), likelihood, kind)
    for name, value in expected.items():
        assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("passes", [512, 10])
def test_several_outputs_agree_with_the_exact_curvature_on_average(passes, monkeypatch):
    """Within five standard errors, which the formula for signed sums gives: Var (s.a)^2 = 2 (sum a^2)^2 - 2 sum a^4."""
    monkeypatch.setattr(bensemble.fitting.pieces, "PASSES", passes)
    plain = mlp(4)
    chunk = max(1, 40 // passes)
    with torch.no_grad():
        probs = plain(X).softmax(-1)
    roots = torch.diag_embed(probs.sqrt()) - probs.sqrt()[:, :, None] * probs[:, None, :]  # sum_c r_c r_c^T = F
    repeats, total = 60, {}
    bnn = bayesify(plain)
    for seed in range(repeats):
        report = fit_posterior(
            bnn, loader(X, batch_size=40), likelihood="categorical", beta=1.0, generator=seeded(seed)
        )
        assert report.num_passes == 40 // chunk
        widths = {row.name: row.width for row in report.rows}
        for name, p in named_posteriors(bnn):
            total[name] = total.get(name, 0) + (p.sigma().detach().double() ** -2 - widths[name] ** -2) / repeats
    for name, jacobian in squared_jacobians(plain, X).items():
        parts = torch.einsum("nco,no...->nc...", roots, jacobian)
        terms = parts.unflatten(0, (-1, chunk)).flatten(1, 2)  # what one pass sums with random signs
        exact = terms.square().sum((0, 1))
        variance = 2 * (terms.square().sum(1).square() - terms.pow(4).sum(1)).sum(0)
        deviations = (total[name] - exact).abs() / (variance / repeats).sqrt().clamp_min(1e-12)
        assert deviations.max() < 5, name


def test_a_weight_used_twice_adds_its_gradients_before_squaring():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False).double()

        def forward(self, x):
            return self.layer(self.layer(x).tanh()).sum(-1, keepdim=True)

    plain = Twice()
    jacobian = squared_jacobians(plain, X)["layer.weight"]
    found = curvature_of(bayesify(plain), loader(X), Gaussian(1.0))["layer.weight"]
    assert_close(found, jacobian.square().sum((0, 1)), rtol=1e-6, atol=1e-6)


def test_a_gaussian_head_has_the_curvature_of_mean_and_noise():
    plain = nn.Linear(3, 2).double()
    with torch.no_grad():
        out = plain(X)
    bnn = bayesify(plain)
    fit_posterior(bnn, loader(X), likelihood=GaussianHead(), beta=1.0)
    found = bnn.b_rho.detach().exp().log1p() ** -2 - bnn.b_mu.detach().square().mean() ** -1
    # The bias of the mean sees 1 / variance, that of the log variance 1 / 2, and the signs square to one.
    expected = torch.stack([(-out[:, 1]).exp().sum(), torch.tensor(20.0, dtype=torch.float64)])
    assert_close(found, expected, rtol=1e-6, atol=0)


def test_ignored_terms_do_not_count():
    plain = nn.Sequential(nn.Linear(3, 2), nn.Unflatten(1, (2, 1))).double()
    target = torch.randint(2, (40, 1))
    target[20:] = -100
    one = curvature_of(bayesify(plain), loader(X, target), Categorical(dim=1))
    half = curvature_of(bayesify(plain), loader(X[:20], target[:20]), Categorical(dim=1))
    for name in one:
        assert_close(one[name], half[name], rtol=1e-6, atol=1e-9)
    report = fit_posterior(bayesify(plain), loader(X, target), likelihood=Categorical(dim=1), beta=1.0)
    assert report.num_terms == 20


def test_pruned_weights_have_no_curvature_and_no_say_in_the_width():
    bnn = bayesify(nn.Linear(3, 1).double())
    kept = bnn.w_mu[0, 0].item()
    prune(bnn, masks={"weight": torch.tensor([[1, 0, 0]])})
    report = fit_posterior(bnn, loader(X), likelihood=Gaussian(1.0), beta=1.0)
    assert report.rows[0].width == pytest.approx(abs(kept))
    assert_close(bnn.w_mask, torch.tensor([[1.0, 0, 0]], dtype=torch.float64))

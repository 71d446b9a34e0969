import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import bensemble.fitting.pieces
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.fitting import FitReport, fit_posterior, set_posterior
from bensemble.fitting.heldout import BETAS, REACHES, best_scale, largest_scale
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian, GaussianHead
from bensemble.posteriors import named_posteriors
from bensemble.prediction.monte_carlo import predict
from bensemble.pruning.masks import prune
from convert import bayesify, to_deterministic


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loader(*tensors, batch_size=16):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def curvature_of(bnn, data, likelihood, kind="ggn", **options):
    """The sum of h, read back from the sigmas at beta = 1."""
    report = fit_posterior(bnn, data, likelihood=likelihood, curvature=kind, beta=1.0, generator=seeded(), **options)
    widths = {row.name: row.width for row in report.rows}
    return {name: p.sigma().detach().double() ** -2 - widths[name] ** -2 for name, p in named_posteriors(bnn)}


def squared_jacobians(model, inputs):
    """(J_{n, o, i})^2 of every example, output and weight, one backward each; by parameter name."""
    names, weights = zip(*model.named_parameters(), strict=True)
    rows = []
    for example in inputs:
        out = model(example[None]).flatten()
        rows.append([torch.autograd.grad(o, weights, retain_graph=True) for o in out])
    return {name: torch.stack([torch.stack([out[i] for out in row]) for row in rows]) for i, name in enumerate(names)}


def mlp(outputs):
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


X = torch.randn(40, 3, dtype=torch.float64)


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


def digits_network():
    sklearn = pytest.importorskip("sklearn.datasets")
    data = sklearn.load_digits()
    order = torch.randperm(len(data.target), generator=seeded())
    images = torch.tensor(data.images).float()[order, None] / 16
    labels = torch.tensor(data.target).long()[order]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        for part in torch.randperm(1000, generator=seeded(1)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), labels[part]).backward()
            optimizer.step()
    return model.eval(), images, labels


@pytest.fixture(scope="module")
def digits():
    return digits_network()


@pytest.mark.parametrize("held_out", [True, False])
def test_a_trained_network_keeps_its_accuracy_and_learns_what_it_does_not_know(digits, held_out):
    model, images, labels = digits
    bnn = bayesify(model)
    report = fit_posterior(
        bnn,
        loader(images[:1000], labels[:1000], batch_size=100),
        likelihood="categorical",
        val_loader=loader(images[1000:1300], labels[1000:1300], batch_size=100) if held_out else None,
        generator=seeded(),
    )
    x, y = images[1300:], labels[1300:]
    noise = torch.rand(300, 1, 8, 8, generator=seeded(2))
    seen = predict(bnn, x, likelihood="categorical", generator=seeded())
    unseen = predict(bnn, noise, likelihood="categorical", generator=seeded())
    logits = model(x).detach()
    accuracy = (logits.argmax(1) == y).float().mean()
    error = (accuracy * (1 - accuracy) / len(y)).sqrt()
    assert (seen.probs.argmax(1) == y).float().mean() >= accuracy - error
    worse = F.nll_loss(seen.probs.log(), y, reduction="none") - F.cross_entropy(logits, y, reduction="none")
    # The noise was chosen on 300 other terms, whose mean differs from the expected one as that of these does.
    terms = 1 / len(y) + (1 / 300 if held_out else 0)
    assert worse.mean() <= 2 * worse.std() * math.sqrt(terms)
    assert unseen.entropy.mean() > 5 * seen.entropy.mean()
    assert unseen.mutual_information.mean() > 5 * seen.mutual_information.mean()
    assert report.mean_nll is not None
    assert report.nll == dict(report.tried)[report.beta, report.reach]
    if held_out:
        assert "300 held-out terms" in str(report)
        assert report.nll == min(dict(report.tried).values()) or report.nll > report.mean_nll
    else:
        assert "1000 training terms, at a cost of at most 0.002 nats" in str(report)
        assert report.nll <= report.mean_nll + 0.002
    assert torch.equal(to_deterministic(bnn)(x), model(x))


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


INPUTS, LABELS = torch.randn(20, 3), torch.randint(2, (20,))


def test_the_same_generator_gives_the_same_fit_and_leaves_global_randomness():
    first, second = bayesify(net()), None
    second = copy.deepcopy(first)
    shuffled = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=5, shuffle=True)
    before = torch.get_rng_state()
    fit_posterior(first, shuffled, likelihood="categorical", generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    fit_posterior(second, shuffled, likelihood="categorical", generator=seeded())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    fit_posterior(first, shuffled, likelihood="categorical")
    assert not torch.equal(torch.get_rng_state(), before)


def test_flags_means_and_statistics_stay():
    bnn = bayesify(net()).train()
    bnn[1].eval()
    bnn[0].w_mu.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    flags = [module.training for module in bnn.modules()]
    fit_posterior(bnn, loader(INPUTS, LABELS), likelihood="categorical")
    assert [module.training for module in bnn.modules()] == flags
    assert not bnn[0].w_mu.requires_grad
    assert all(parameter.grad is None for parameter in bnn.parameters())
    changed = {name for name, tensor in bnn.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.w_rho", "0.b_rho", "3.w_rho", "3.b_rho"}


def test_a_fitted_posterior_predicts_without_a_warning():
    bnn = bayesify(net())
    fit_posterior(bnn, loader(INPUTS, LABELS), likelihood="categorical")
    predict(bnn, INPUTS, 2)


def test_loaders_may_be_iterators_of_mappings_in_half_precision():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 2)

        def forward(self, values):
            return {"hidden": values, "scores": self.body(values)}

    bnn, seen = bayesify(Named()).bfloat16(), []
    batches = ({"values": INPUTS[i : i + 5].bfloat16(), "labels": LABELS[i : i + 5]} for i in range(0, 20, 5))
    report = fit_posterior(
        bnn, batches, likelihood="categorical", output="scores", progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i, None) for i in range(1, 5)]
    assert report.num_passes == 4
    assert report.num_terms == 20
    assert all(p.rho.dtype == torch.float32 and bool(p.rho.isfinite().all()) for _, p in named_posteriors(bnn))


def test_inputs_that_cannot_be_cut_go_whole():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 2)

        def forward(self, values, adjacency):
            return self.body(adjacency @ values)

    batch = ((INPUTS[:6], torch.eye(6)[:5]), LABELS[:5])
    assert fit_posterior(bayesify(Graph()), [batch], likelihood="categorical").num_passes == 16


def test_a_layer_that_is_never_called_gets_its_width():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = bayesify(nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2)]))

        def forward(self, x):
            return self.parts[0](x)

    rows = fit_posterior(First(), loader(INPUTS, LABELS), likelihood="categorical").rows
    assert rows[2].sigma == pytest.approx(rows[2].width)


def test_the_report_prints_what_was_done(caplog):
    bnn = bayesify(nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)]))
    with caplog.at_level(logging.DEBUG, logger="bensemble"):
        report = fit_posterior(bnn, loader(INPUTS, LABELS), likelihood="categorical")
    assert isinstance(report, FitReport)
    text = str(report)
    assert "diagonal GGN over 20 terms" in text
    assert "... 11 more" in text
    assert len(text.splitlines()) == 34
    assert "held-out NLL" in caplog.text
    given = fit_posterior(bnn, loader(INPUTS), likelihood="categorical", beta=0.01)
    assert "beta 0.01, as given" in str(given)
    with pytest.raises(AttributeError):
        report.beta = 1.0


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"likelihood": None}, InvalidValueError, "likelihood must say what the outputs mean, got None"),
        ({"likelihood": "poisson"}, InvalidValueError, "likelihood: must be one of"),
        ({"curvature": "kfac"}, InvalidValueError, "curvature must be 'ggn' or 'fisher', got 'kfac'"),
        ({"beta": 0.0}, InvalidValueError, r"beta must be finite and above 0, got 0\.0"),
        ({"num_samples": 0}, InvalidValueError, "num_samples must be at least 1, got 0"),
        ({"generator": 3}, InvalidTypeError, "generator must be a torch.Generator, got 3"),
        ({"loader": []}, InvalidValueError, "loader must give at least one batch, got none"),
        ({"val_loader": []}, InvalidValueError, "val_loader must give at least one batch, got none"),
        ({"loader": [INPUTS]}, InvalidValueError, "choosing beta needs targets, got a batch without"),
        ({"val_loader": [INPUTS]}, InvalidValueError, "choosing beta needs targets, got a batch without"),
        ({"loader": [INPUTS], "curvature": "fisher"}, InvalidValueError, "curvature='fisher' needs targets"),
        ({"loader": [(INPUTS, LABELS.float())]}, InvalidTypeError, "must hold class indices, got float32"),
        (
            {"loader": [(INPUTS * math.nan, LABELS)]},
            InvalidValueError,
            r"curvature of 4 weights is not finite, '0\.weight'",
        ),
        ({"bnn": "net"}, InvalidTypeError, "model must be a torch.nn.Module, got str"),
        ({"bnn": net()}, InvalidValueError, r"Sequential has no posteriors.*call convert\.bayesify"),
    ],
)
def test_fit_refuses_and_leaves_the_posterior(arguments, error, message):
    bnn = arguments.get("bnn", bayesify(net()).train())
    before = snapshot(bnn) if isinstance(bnn, nn.Module) else None
    chosen = {"bnn": bnn, "loader": [(INPUTS, LABELS)], "likelihood": "categorical"} | arguments
    with pytest.raises(error, match=message):
        fit_posterior(**chosen)
    assert before is None or unchanged(bnn, before)
    assert before is None or bnn.training


def test_a_failure_in_the_search_puts_every_sigma_back():
    bnn = bayesify(net())
    before = snapshot(bnn)
    bad = [(INPUTS, LABELS), (INPUTS, LABELS + 5)]
    with pytest.raises(InvalidValueError, match="target must lie in"):
        fit_posterior(bnn, [(INPUTS, LABELS)], likelihood="categorical", val_loader=bad)
    calls = []
    bnn[0].register_forward_hook(lambda *_: calls.append(1) or (1 / 0 if len(calls) > 30 else None))
    with pytest.raises(ZeroDivisionError):
        fit_posterior(bnn, [(INPUTS, LABELS)], likelihood="categorical")
    assert unchanged(bnn, before)


def test_set_posterior_sets_what_is_named():
    bnn = bayesify(net())
    before = snapshot(bnn)
    sigma, mean = torch.rand(4, 3) + 0.1, torch.randn(4, 3)
    set_posterior(bnn, {"0.weight": sigma, "3.bias": 0.25}, {"0.weight": mean})
    posteriors = dict(named_posteriors(bnn))
    assert_close(posteriors["0.weight"].sigma(), sigma)
    assert_close(posteriors["3.bias"].sigma(), torch.full((2,), 0.25))
    assert torch.equal(posteriors["0.weight"].mu, mean)
    changed = {name for name, tensor in bnn.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.w_mu", "0.w_rho", "3.b_rho"}
    set_posterior(bnn, {}, {"3.bias": torch.ones(2)})
    assert posteriors["3.bias"].mu.tolist() == [1, 1]


def test_set_posterior_keeps_masks():
    bnn = bayesify(nn.Linear(3, 1))
    prune(bnn, masks={"weight": torch.tensor([[1, 0, 0]])})
    set_posterior(bnn, {"weight": 0.1}, {"weight": torch.ones(1, 3)})
    assert bnn.w_mu.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("sigma", "mean", "error", "message"),
    [
        ({}, None, InvalidValueError, "sigma must name at least one posterior, got none"),
        ([0.1], None, InvalidTypeError, "sigma must map parameter names to values, got list"),
        (
            {"0.weigth": 0.1},
            None,
            InvalidValueError,
            r"sigma names '0\.weigth', which has no posterior; did you mean '0\.weight'",
        ),
        ({"1.weight": 0.1}, None, InvalidValueError, r"sigma names '1\.weight', which has no posterior"),
        (
            {"0.weight": torch.ones(3, 4)},
            None,
            InvalidValueError,
            r"sigma of '0\.weight' must have shape \(4, 3\), got \(3, 4\)",
        ),
        (
            {"0.bias": torch.tensor([1.0, 1, 1, 0])},
            None,
            InvalidValueError,
            r"sigma of '0\.bias' must be finite and above 0, got 0",
        ),
        ({"0.bias": -1.0}, None, InvalidValueError, "must be finite and above 0, got -1"),
        ({"0.bias": math.nan}, None, InvalidValueError, "must be finite and above 0, got nan"),
        ({"0.bias": "0.1"}, None, InvalidTypeError, r"sigma of '0\.bias' must be a tensor or a number, got str"),
        ({"0.bias": 0.1}, {"0.bias": 1.0}, InvalidTypeError, r"mean of '0\.bias' must be a tensor, got float"),
        (
            {"0.bias": 0.1},
            {"0.bias": torch.full((4,), math.inf)},
            InvalidValueError,
            r"mean of '0\.bias' must be finite",
        ),
        ({"0.bias": 0.0, "3.bias": torch.ones(3)}, {"3.bias": torch.ones(3)}, InvalidValueError, "3 problems"),
    ],
)
def test_set_posterior_refuses_as_a_whole(sigma, mean, error, message):
    bnn = bayesify(net())
    before = snapshot(bnn)
    with pytest.raises(error, match=message):
        set_posterior(bnn, sigma, mean)
    assert unchanged(bnn, before)


@pytest.mark.parametrize("data", [(torch.zeros(4, 3), torch.zeros(4)), torch.zeros(4, 3), {"x": torch.zeros(4, 3)}])
def test_data_that_is_no_loader_is_refused(data):
    bnn = bayesify(nn.Linear(3, 2))
    with pytest.raises(InvalidTypeError, match="fit_posterior: loader must give batches, got"):
        fit_posterior(bnn, data, likelihood="categorical", beta=1.0)

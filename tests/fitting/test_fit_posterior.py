"""``fit_posterior`` as a whole: what it gains, what it leaves alone, what it refuses."""

import copy
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.fitting import FitReport, fit_posterior
from bensemble.posteriors import named_posteriors
from bensemble.prediction.monte_carlo import predict
from convert import bayesify, to_deterministic

from .networks import INPUTS, LABELS, loader, net, seeded, snapshot, unchanged


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


@pytest.mark.slow
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


def test_a_fit_whose_sigmas_are_all_at_their_cap_is_a_fit():
    bnn = bayesify(net())
    fit_posterior(bnn, loader(INPUTS, LABELS), likelihood="categorical", beta=1e30)
    assert all(bool((p.rho == p.rho.flatten()[0]).all()) for _, p in named_posteriors(bnn))
    predict(bnn, INPUTS, 2)


@pytest.mark.parametrize("layer", ["0", None])
def test_labels_of_another_shape_are_named(layer):
    bnn = bayesify(net(), include=layer)
    with pytest.raises(InvalidValueError, match=r"target must have shape \(16,\) .*, got \(16, 1\); reshape it"):
        fit_posterior(bnn, loader(INPUTS, LABELS[:, None]), likelihood="categorical")
    with pytest.raises(InvalidTypeError, match=r"or \.argmax\(1\) where each class has a column"):
        fit_posterior(bnn, loader(INPUTS, nn.functional.one_hot(LABELS, 2).float()), likelihood="categorical")


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


@pytest.mark.parametrize("data", [(torch.zeros(4, 3), torch.zeros(4)), torch.zeros(4, 3), {"x": torch.zeros(4, 3)}])
def test_data_that_is_no_loader_is_refused(data):
    bnn = bayesify(nn.Linear(3, 2))
    with pytest.raises(InvalidTypeError, match="fit_posterior: loader must give batches, got"):
        fit_posterior(bnn, data, likelihood="categorical", beta=1.0)


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_held_out_values_that_are_not_finite_are_named(structure):
    model, example = nn.Sequential(Root(), nn.Linear(3, 2)), INPUTS.abs()
    bnn = bayesify(model, include="1", example_inputs=example)
    data, before, holed = loader(example, LABELS), snapshot(bnn), example.clone()
    holed[17, 1] = math.nan
    words = r"inputs must be finite, got nan at \[1, 1\] of a tensor of shape \(4, 3\) in batch 1 of the held-out data"
    options = {"likelihood": "categorical", "structure": structure}
    with pytest.raises(InvalidValueError, match=words):
        fit_posterior(bnn, data, val_loader=loader(holed, LABELS), **options)
    with pytest.raises(InvalidValueError, match="held-out NLL must be a number, got NaN in 20 of 20 terms"):
        fit_posterior(bnn, data, val_loader=loader(-example, LABELS), **options)
    assert unchanged(bnn, before)


def test_the_training_data_as_held_out_data_is_said():
    dataset = TensorDataset(INPUTS, LABELS)
    shuffled, whole = DataLoader(dataset, 5, shuffle=True), DataLoader(dataset, 20)
    for val_loader in (shuffled, whole):
        with pytest.warns(UserWarning, match="fit_posterior: val_loader is the training data itself"):
            fit_posterior(bayesify(net()), shuffled, likelihood="categorical", val_loader=val_loader)
    first, rest = (DataLoader(dataset, 5, sampler=list(part)) for part in (range(10), range(10, 20)))
    fit_posterior(bayesify(net()), first, likelihood="categorical", val_loader=rest)  # parts of one data set

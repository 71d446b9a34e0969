import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from convert import bayesify, to_deterministic

from .tasks import batches, blobs, mlp

X, Y = blobs(100)
HELD = [(X[:40], Y[:40])]


def fit(model=None, loader=None, val_loader=None, **options):
    held = HELD if val_loader is None else val_loader
    return bensemble.fit_novelty(model or mlp(), batches((X, Y)) if loader is None else loader, held, **options)


class Exotic(Likelihood):
    def terms(self, output, target):
        return output

    expect = spread = lambda self, output: output


def overflowing():
    model = mlp()
    with torch.no_grad():
        model[2].bias[1] = torch.inf
    return model


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.spare = mlp(), nn.Linear(1, 1)

    def forward(self, x):
        return self.inner(x)


class Whole(nn.Module):
    """A layer that sees one row for the whole batch, whatever it holds."""

    def __init__(self):
        super().__init__()
        self.odd, self.inner = nn.Linear(6, 2).double(), mlp()

    def forward(self, x):
        return 0 * self.odd(x.sum(0, keepdim=True)).sum() + self.inner(x)


numbers = X[:, :1]
sets = torch.randint(0, 2, (600, 9), generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, InvalidTypeError, "model must be a torch.nn.Module, got int"),
        ({"likelihood": None}, InvalidValueError, "likelihood must say what the outputs mean, got None"),
        ({"likelihood": Exotic()}, InvalidTypeError, "must be .*, got Exotic; its targets name no classes"),
        ({"loader": X}, InvalidTypeError, "loader must give batches, got Tensor; wrap the data in a DataLoader"),
        ({"val_loader": (X, Y)}, InvalidTypeError, "val_loader must give batches, got tuple"),
        ({"val_loader": 5}, InvalidTypeError, "val_loader must give batches, got int"),
        ({"loader": [X]}, InvalidValueError, "loader must give targets, got none in batch 0; .*Pass unpack="),
        ({"loader": iter([])}, InvalidValueError, "loader must give at least one batch, got none"),
        ({"val_loader": []}, InvalidValueError, "val_loader must hold at least two held-out terms, got 0"),
        ({"val_loader": [X[:1]]}, InvalidValueError, "val_loader must hold at least two held-out terms, got 1"),
        ({"loader": [(X, 0 * Y + 2)]}, InvalidValueError, "two classes or more, got class 2 in all 100 terms"),
        ({"loader": [(X, 0 * Y - 100)]}, InvalidValueError, "two classes or more, got none in all 0 terms"),
        ({"loader": [(X, Y[:5])]}, InvalidValueError, r"target must have shape \(100,\) .* got \(5,\)"),
        ({"loader": [(X, Y + 9)]}, InvalidValueError, "target must lie in 0..2"),
        ({"model": nn.Sequential(mlp(), nn.Softmax(1))}, InvalidValueError, "outputs must be logits"),
        ({"model": nn.Linear(6, 3).double()}, InvalidValueError, "has no layer before its last one, got '' alone"),
        ({"model": nn.Identity()}, InvalidValueError, "no layer before its last one, got no Linear.*there are none"),
        ({"layers": []}, InvalidValueError, "layers must name a module, got none; there are '0', '1', '2', '3', '4'"),
        ({"layers": "0"}, InvalidTypeError, "layers must be 'all' or a list of module names, got '0'"),
        ({"layers": ["0", "fc"]}, InvalidValueError, "names 'fc', which Sequential does not have; there are '0'"),
        (
            {"model": Unused(), "layers": ["iner.2"]},
            InvalidValueError,
            "layers names 'iner.2', which Unused does not have; did you mean 'inner.2'",
        ),
        ({"model": Unused(), "layers": ["spare"]}, InvalidValueError, "names 'spare', which the forward does not call"),
        ({"model": Whole(), "layers": ["odd"]}, InvalidValueError, r"'odd' \(1, 2\) have no axis for the 50 examples"),
        ({"projection": 0}, InvalidValueError, "projection must be at least 1, got 0"),
        ({"projection": 1.5}, InvalidTypeError, "projection must be a whole number, got 1.5"),
        ({"joint": 1}, InvalidTypeError, "joint must be True or False, got 1"),
        ({"generator": 3}, InvalidTypeError, "generator must be a torch.Generator, got 3"),
        ({"model": overflowing()}, InvalidValueError, "'2' must be finite, got 50 of 250 .* batch 0 of loader"),
        (
            {"val_loader": [X[:40], X[:40] * torch.inf]},
            InvalidValueError,
            "outputs of '0' must be finite, got 360 of 360 .* batch 1 of val_loader",
        ),
        (
            {"loader": [(X, X)], "likelihood": Gaussian(1.0), "model": nn.Sequential(mlp(), nn.Linear(3, 6).double())},
            InvalidValueError,
            "target of a regression must be one number for each example",
        ),
        (
            {"loader": iter([(X, numbers)]), "likelihood": Gaussian(1.0), "model": mlp(outputs=1)},
            InvalidTypeError,
            "loader of a regression is read twice, .*, got list_iterator",
        ),
        (
            {"loader": [(X, 0 * numbers)], "likelihood": Gaussian(1.0), "model": mlp(outputs=1)},
            InvalidValueError,
            "two classes or more, got class 1 in all 100 terms",
        ),
        (
            {"loader": [(X[:, None, None], X[:, :1, None, None])], "likelihood": Gaussian(1.0),
             "model": mlp(outputs=1)},
            InvalidValueError,
            "outputs of a regression must be one for each example",
        ),
        (
            {"loader": [(X.repeat(6, 1), sets)], "likelihood": Bernoulli(), "model": mlp(outputs=9)},
            InvalidValueError,
            "targets must hold at most 256 label sets, got more",
        ),
        (
            {"loader": [(X, X.sigmoid()[:, :3])], "likelihood": Bernoulli()},
            InvalidValueError,
            "target must hold 0 and 1, got values between",
        ),
    ],
)  # fmt: skip
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        fit(**arguments)


def test_nothing_of_the_model_changes_when_a_fit_fails():
    model = overflowing()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(InvalidValueError):
        fit(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_class_means_that_take_too_much_memory(monkeypatch):
    monkeypatch.setattr("bensemble.novelty.passes.MOST_BYTES", 300)
    with pytest.raises(InvalidValueError, match=r"3 classes must take at most 300 bytes, got 336"):
        fit()


def test_warnings():
    with pytest.warns(UserWarning, match=r"19 held-out terms give p-values of 1/20 = 0\.05 and above"):
        fit(val_loader=[X[:19]])
    data = batches((X, Y))
    with pytest.warns(UserWarning, match="val_loader is the training data itself"):
        fit(loader=data, val_loader=data)
    dataset = TensorDataset(X, Y)
    both = [DataLoader(dataset, size, shuffle=size == 50) for size in (50, 100)]
    with pytest.warns(UserWarning, match="val_loader is the training data itself"):
        fit(loader=both[0], val_loader=both[1])
    with pytest.warns(UserWarning, match=r"'odd' \(1, 2\) left out, because their outputs have no axis for the 50"):
        fit(Whole())


def test_a_changed_model_is_refused():
    model = mlp()
    novelty = fit(model)
    novelty.score(X)
    other = mlp()
    with pytest.raises(InvalidValueError, match="novelty: it belongs to another model, got a Sequential"):
        novelty.on(other)
    other.load_state_dict(model.state_dict())
    assert torch.equal(novelty.on(other).score(X), novelty.score(X))
    with torch.no_grad():
        model[4].bias[0] += 1
    with pytest.raises(InvalidValueError, match="novelty: it belongs to another model"):
        novelty.score(X)
    model[4].bias = copy.deepcopy(other[4].bias)
    novelty.score(X)


def test_a_pruned_weight_counts_as_zero():
    model = bayesify(mlp())
    bensemble.prune(model, sparsity=0.5)
    novelty = fit(model)
    with torch.no_grad():
        model[0].w_mu += 1 - model[0].w_mask  # as an optimizer with momentum may do
    novelty.score(X)
    novelty.on(to_deterministic(model))
    with torch.no_grad():
        model[0].w_mu += model[0].w_mask
    with pytest.raises(InvalidValueError, match="belongs to another model"):
        novelty.score(X)


def test_buffers_belong_to_the_model_and_their_order_does_not_matter():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    novelty = fit(model)
    model(X)  # the statistics of the norm change
    with pytest.raises(InvalidValueError, match="belongs to another model"):
        novelty.score(X)


def test_scores_refuse_what_is_not_finite_or_no_score():
    novelty = fit()
    broken = fit()
    broken.standard.fill_(torch.nan)
    with pytest.raises(InvalidValueError, match="score: features must be finite, got 3 of 3 scores"):
        broken.score(X[:3])
    with pytest.raises(InvalidValueError, match=r"score: inputs must be finite, got nan at \[2, 0\]"):
        novelty.score(torch.cat([X[:2], X[:1] * torch.nan]))
    with pytest.raises(InvalidValueError, match="pvalue: scores must be numbers, got NaN"):
        novelty.pvalue(torch.tensor([torch.nan]))
    with pytest.raises(InvalidTypeError, match="pvalue: scores must be a floating tensor, got list"):
        novelty.pvalue([1.0])
    with pytest.raises(InvalidValueError, match="score: inputs must hold at least one batch"):
        novelty.score([])
    with pytest.raises(InvalidTypeError, match="deepcopy: a Novelty belongs to its model"):
        copy.deepcopy(novelty)


def test_a_layer_that_these_inputs_do_not_reach():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.side = mlp(), nn.Linear(6, 6).double()

        def forward(self, x):
            return self.inner(self.side(x) if len(x) > 5 else x)

    novelty = fit(Gate())
    with pytest.raises(InvalidValueError, match="novelty: 'side' is not called for these inputs"):
        novelty.score(X[:3])


def test_the_class_axis_must_be_known():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1))
    x, y = torch.randn(40, 1, 2, 2), torch.randint(0, 3, (40, 2, 2))
    with pytest.raises(InvalidValueError, match="Categorical: dim must be given for outputs of 4 axes"):
        fit(model, [(x, y)], [x])
    assert fit(model, [(x, y)], [x], likelihood=Categorical(dim=1)).score(x).shape == (40, 2, 2)


def test_a_regression_without_its_likelihood_is_told_the_name():
    with pytest.raises(
        InvalidValueError, match=r"got outputs of shape \(50, 1\); .*Gaussian\(sigma\) for a regression"
    ):
        fit(nn.Linear(X.shape[1], 1).to(X.dtype))

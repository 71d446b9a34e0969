"""Pruning in a training loop: how much goes when, that it stays gone, and that no layer is cut off."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured

import bensemble
from bensemble.errors import BensembleError
from convert import GradualPruning, bayesify

BATCHES = [torch.randn(64, 8, generator=torch.Generator().manual_seed(number)) for number in range(4)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)
    )


def weights(model):
    return [p for p in model.parameters() if p.ndim > 1]


def zeros(model):
    return sum(int((p == 0).sum()) for p in weights(model)) / sum(p.numel() for p in weights(model))


def train(model, pruning, steps, rate=1e-2):
    """Adam with momentum, which moves a zero as soon as nobody holds it."""
    optimizer, shares = torch.optim.Adam(model.parameters(), rate), []
    for step in range(steps):
        x = BATCHES[step % len(BATCHES)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        pruning.step()
        shares.append(zeros(model))
    return shares


@pytest.mark.parametrize("score", ["magnitude", "obd"])
def test_the_share_rises_by_the_cubic_and_stays(score):
    model = network()
    pruning = GradualPruning(model, sparsity=0.8, steps=40, score=score, loader=BATCHES, updates=5, end=0.5)
    shares = train(model, pruning, 40)
    cubic = [0.8 * (1 - (1 - t) ** 3) for t in (0.2, 0.4, 0.6, 0.8, 1.0)]
    assert [shares[step - 1] for step in (4, 8, 12, 16, 20)] == pytest.approx(cubic, abs=2e-3)
    assert shares[3:7] == [shares[3]] * 4
    assert shares[19:] == [shares[19]] * 21
    assert pruning.removed == 0.8
    assert all(module.training for module in model.modules())


def test_no_layer_is_cut_off_where_one_has_the_smallest_weights():
    model = network()
    with torch.no_grad():
        model[3].weight.mul_(1e-6)
    train(model, GradualPruning(model, sparsity=0.9, steps=10, floor=0.02), 10, rate=0.0)
    assert int((model[3].weight != 0).sum()) == round(0.02 * 600)
    assert zeros(model) == pytest.approx(0.9, abs=1e-3)


def test_a_repair_brings_the_outputs_back_to_those_before_the_pruning():
    errors = {}
    for repair in (False, True):
        model = network().eval()
        dense = copy.deepcopy(model)
        pruning = GradualPruning(model, sparsity=0.6, steps=5, loader=BATCHES, repair=repair, end=1.0)
        train(model, pruning, 5, rate=0.0)
        with torch.no_grad():
            errors[repair] = float((model(BATCHES[0]) - dense(BATCHES[0])).square().mean())
        assert zeros(model) == pytest.approx(0.6, abs=1e-3)
    assert errors[True] < 0.5 * errors[False]


@pytest.mark.parametrize("score", ["snr", "evidence", "magnitude"])
def test_a_bayesian_model_gets_masks(score):
    model = bayesify(network())
    train(model, GradualPruning(model, sparsity=0.7, steps=6, score=score), 6)
    masks = [p.mask for _, p in bensemble.named_posteriors(model) if p.mask is not None]
    assert 1 - sum(float(mask.sum()) for mask in masks) / sum(m.numel() for m in masks) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must be"),
        ({"sparsity": 0.999}, r"must leave every layer its floor, \d+ of 900 weights, got 0.999; lower"),
        ({"score": "obd"}, "needs loader"),
        ({"score": "snr"}, "needs a posterior"),
        ({"repair": True}, "repair=True needs a plain network and loader, got no loader"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"score": "obd", "loader": iter(BATCHES)}, "loader must give batches more than once, got list_iterator"),
        (
            {"model": l1_unstructured(network()[0], "weight", 0.5)},
            "got masks of torch.nn.utils.prune; call .* zeros stay",
        ),
        ({"model": nn.ReLU()}, "must have weights|no weights|nothing"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(given, message):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BensembleError, match=message):
        GradualPruning(**{"model": model, "sparsity": 0.5, "steps": 10} | given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

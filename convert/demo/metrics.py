"""How good a classifier's probabilities are, and how well its uncertainty tells digits from other things."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    multiclass_accuracy,
    multiclass_calibration_error,
)

__all__ = ["BINS", "Scores", "entropy", "score"]

#: Bins of confidence, for the calibration error and the reliability diagram.
BINS = 15


@dataclass(frozen=True)
class Scores:
    """Measured on images the network has not seen.

    Attributes:
        accuracy: Share of digits that are right.
        nll: Negative log likelihood per image in nats; lower is better.
        ece: Expected calibration error: how far confidence and accuracy lie apart; lower is better.
        brier: Squared distance between probabilities and truth, summed over the classes; lower is better.
        auroc: Probability that a photograph gets a higher entropy than a digit; 1 is perfect, 0.5 is guessing.
    """

    accuracy: float
    nll: float
    ece: float
    brier: float
    auroc: float


def score(probs: Tensor, digits: Tensor, unfamiliar: Tensor) -> Scores:
    """Judge predicted probabilities.

    Args:
        probs: Probabilities for images of digits, shape (N, C).
        digits: The truth, shape (N,).
        unfamiliar: Probabilities for images of other things, shape (M, C).
    """
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

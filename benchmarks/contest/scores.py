"""What is said about an answer: metrics of torchmetrics and scikit-learn, and bootstrap errors of differences."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

BINS = 15
RESAMPLES = 2000


def nll_terms(probs: Tensor, y: Tensor) -> Tensor:
    """Negative log probability of the right class, (N,), in nats."""
    return -probs.double().gather(1, y[:, None])[:, 0].clamp_min(1e-12).log()


def brier_terms(probs: Tensor, y: Tensor) -> Tensor:
    """Squared distance to the right class, summed over classes (Brier 1950), (N,)."""
    return (probs.double() - torch.nn.functional.one_hot(y, probs.shape[1])).square().sum(1)


def entropy(probs: Tensor) -> Tensor:
    """Entropy of each row in nats: the score for strangers, of every method."""
    return torch.special.entr(probs.double()).sum(1)


def auroc(familiar: Tensor, strange: Tensor) -> float:
    """Chance that a strange picture gets the higher score."""
    truth = torch.cat([torch.zeros(len(familiar)), torch.ones(len(strange))])
    return float(roc_auc_score(truth.numpy(), torch.cat([familiar, strange]).numpy()))


def class_scores(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy in percent, NLL in nats, ECE in percent, Brier score."""
    return {
        "accuracy": 100 * float(multiclass_accuracy(probs, y, probs.shape[1], average="micro")),
        "nll": float(nll_terms(probs, y).mean()),
        "ece": 100 * float(multiclass_calibration_error(probs, y, probs.shape[1], n_bins=BINS)),
        "brier": float(brier_terms(probs, y).mean()),
    }


def paired_bootstrap(differences: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences and its central 95 % bootstrap interval.

    Args:
        differences: (seeds, N): the same examples are drawn for all seeds, which share them.
        seed: Of the resampling.
    """
    per_example = differences.double().mean(0)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            per_example[torch.randint(len(per_example), (len(per_example),), generator=generator)].mean()
            for _ in range(RESAMPLES)
        ]
    )
    return float(per_example.mean()), float(means.quantile(0.025)), float(means.quantile(0.975))


def ece_bootstrap(ours: Tensor, theirs: Tensor, y: Tensor, resamples: int = 200, seed: int = 0) -> tuple[float, float]:
    """Difference of ECE in points, and its bootstrap standard error over examples."""
    generator = torch.Generator().manual_seed(seed)

    def difference(rows: Tensor) -> float:
        return class_scores(ours[rows], y[rows])["ece"] - class_scores(theirs[rows], y[rows])["ece"]

    draws = [difference(torch.randint(len(y), (len(y),), generator=generator)) for _ in range(resamples)]
    return difference(torch.arange(len(y))), float(torch.tensor(draws).std())

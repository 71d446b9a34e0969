"""The networks of the demo side by side: what they know, what they weigh, what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..onnx import ExportReport
from .metrics import Scores, score

__all__ = ["Contestant", "side_by_side"]


@dataclass(frozen=True, repr=False)
class Contestant:
    """One network, measured.

    Attributes:
        name: "deterministic", "Bayesian" or "pruned".
        probs: Predicted probabilities for the test images.
        unfamiliar: Predicted probabilities for the photographs.
        weights: How many numbers it takes to say what the network is, without those that are zero.
        file: Its ONNX file.
    """

    name: str
    probs: Tensor
    unfamiliar: Tensor
    weights: int
    file: ExportReport

    def scores(self, digits: Tensor) -> Scores:
        """How good its probabilities are."""
        return score(self.probs, digits, self.unfamiliar)


def side_by_side(contestants: Sequence[Contestant], digits: Tensor) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that compares networks.

    Args:
        contestants: The networks.
        digits: The digits of the test images.
    """
    scores = [contestant.scores(digits) for contestant in contestants]
    files = [contestant.file for contestant in contestants]
    batches = sorted(files[0].latency_ms)
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
    for size in batches:
        label = f"latency of {size} image{'s' if size > 1 else ''}, ms"
        rows.append([label, *(f"{file.latency_ms[size]:.3f}" if size in file.latency_ms else "" for file in files)])
    return ["", *(contestant.name for contestant in contestants)], rows

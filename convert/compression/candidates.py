"""What may be tried: thresholds that remove a given share of the weights or channels, finer where it matters.

A threshold is chosen by the share that it prunes, because scores have no scale that all networks share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bensemble.pruning.channels import ChannelGroups
from bensemble.pruning.criteria import Scores, pruning_scores

__all__ = ["SCORES", "SHARES", "Candidate", "Ladder", "ladders"]

#: What weights go by, and how a file that went by it is called.
SCORES = {"snr": "SNR", "magnitude": "|mu|"}

#: Shares of the weights, and of the weights in whole channels, that are tried first.
SHARES = {
    "weight": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    "channel": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}


@dataclass(frozen=True)
class Candidate:
    """A file to try.

    Attributes:
        threshold: Score up to which weights or channels go; None to prune nothing.
        granularity: ``"weight"`` or ``"channel"``; None where nothing is pruned.
        score: ``"snr"`` or ``"magnitude"``.
        quantize: ``"int8"``, or None for floats.
    """

    threshold: float | None = None
    granularity: str | None = None
    score: str = "snr"
    quantize: str | None = None

    def __str__(self) -> str:
        unit = f" per {self.granularity}" if self.granularity == "channel" else ""
        pruned = "posterior mean" if self.threshold is None else f"{SCORES[self.score]} > {self.threshold:.3g}{unit}"
        return f"{pruned}, {self.quantize}" if self.quantize else pruned


class Ladder:
    """The candidates of one granularity and one score, from the gentlest to the harshest.

    Args:
        granularity: ``"weight"`` or ``"channel"``.
        score: ``"snr"`` or ``"magnitude"``.
        scores: Of everything that may go.
        sizes: How many weights go with each.
    """

    def __init__(self, granularity: str, score: str, scores: Tensor, sizes: Tensor) -> None:
        self.granularity, self.score = granularity, score
        self._sorted, order = scores.sort()
        self._gone = sizes[order].cumsum(0)
        self.shares = SHARES[granularity]

    def candidate(self, share: float) -> Candidate | None:
        """The candidate that prunes about this share; None where equal scores leave only all or nothing."""
        index = int((self._gone <= round(share * int(self._gone[-1]))).sum())
        threshold = float(self._sorted[max(index - 1, 0)])
        if not threshold < float(self._sorted[-1]):
            return None
        return Candidate(threshold, self.granularity, self.score)


def ladders(
    model: nn.Module, granularities: Mapping[str, str | ChannelGroups], rankings: Mapping[str, Scores | None]
) -> list[Ladder]:
    """One ladder for each granularity and score by which something in the model can be pruned."""
    found = []
    for name, granularity in granularities.items():
        for score, ranking in rankings.items():
            scores, sizes = pruning_scores(model, granularity, ranking)
            if len(scores):
                found.append(Ladder(name, score, scores, sizes))
    return found

"""What may be tried: thresholds that remove a given share of the weights or channels, finer where it matters.

A threshold is chosen by the share that it prunes, because signal-to-noise ratios have no scale that all networks share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bensemble.pruning.channels import ChannelGroups
from bensemble.pruning.masks import pruning_scores

__all__ = ["SHARES", "Candidate", "Ladder", "ladders"]

#: Shares of the weights, and of the weights in whole channels, that are tried first.
SHARES = {
    "weight": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    "channel": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}


@dataclass(frozen=True)
class Candidate:
    """A file to try.

    Attributes:
        threshold: Signal-to-noise ratio up to which weights or channels go; None to prune nothing.
        granularity: ``"weight"`` or ``"channel"``; None where nothing is pruned.
        quantize: ``"int8"``, or None for floats.
    """

    threshold: float | None = None
    granularity: str | None = None
    quantize: str | None = None

    def __str__(self) -> str:
        unit = f" per {self.granularity}" if self.granularity == "channel" else ""
        pruned = "posterior mean" if self.threshold is None else f"SNR > {self.threshold:.3g}{unit}"
        return f"{pruned}, {self.quantize}" if self.quantize else pruned


class Ladder:
    """The candidates of one granularity, from the gentlest to the harshest.

    Args:
        granularity: ``"weight"`` or ``"channel"``.
        scores: Of everything that may go.
        sizes: How many weights go with each.
    """

    def __init__(self, granularity: str, scores: Tensor, sizes: Tensor) -> None:
        self.granularity = granularity
        self._sorted, order = scores.sort()
        self._gone = sizes[order].cumsum(0)
        self.shares = SHARES[granularity]

    def candidate(self, share: float) -> Candidate | None:
        """The candidate that prunes about this share; None where equal scores leave only all or nothing."""
        index = int((self._gone <= round(share * int(self._gone[-1]))).sum())
        threshold = float(self._sorted[max(index - 1, 0)])
        if not threshold < float(self._sorted[-1]):
            return None
        return Candidate(threshold, self.granularity)


def ladders(model: nn.Module, granularities: Mapping[str, str | ChannelGroups]) -> list[Ladder]:
    """One ladder for each granularity by which something in the model can be pruned."""
    found = []
    for name, granularity in granularities.items():
        scores, sizes = pruning_scores(model, granularity)
        if len(scores):
            found.append(Ladder(name, scores, sizes))
    return found

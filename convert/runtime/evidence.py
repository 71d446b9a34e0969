"""How strongly counts of examples between quantiles speak against a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["EDGES", "bins_of", "log_e_values"]

#: Quantile levels of the reference that bound the bins of a monitor.
EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def bins_of(quantiles: Sequence[float], num_data: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges of the bins and their Dirichlet parameters: the q-quantile of n values is the 1 + q (n - 1)-th smallest.

    A level is used where the reference rises on both sides: for a value that occurs often, the share below it is not
    known exactly. The bin of another level is empty, with the edge of the level before. None where no level is used.
    """
    steps = len(quantiles) - 1
    edges, ranks = [-math.inf], [0.0]
    for level in EDGES:
        i = round(level * steps)
        rises = 0 < i < steps and quantiles[i - 1] < quantiles[i] < quantiles[i + 1]
        edges.append(quantiles[i] if rises else edges[-1])
        ranks.append(1 + level * (num_data - 1) if rises else ranks[-1])
    return None if edges[-1] == -math.inf else (np.array(edges[1:]), np.diff([*ranks, num_data + 1.0]))


def log_e_values(counts: np.ndarray, null: np.ndarray) -> np.ndarray:
    """The logarithm of DM(c; 1/2) / DM(c; a) for each row of counts."""
    used = null > 0
    prior = np.full(used.sum(), 0.5)
    return _log_marginal(counts[:, used], prior) - _log_marginal(counts[:, used], null[used])


def _log_marginal(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Log probability of the counted examples, in one given order, under a Dirichlet prior of the bins."""
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    total = log_gamma(prior.sum()) - log_gamma(prior.sum() + counts.sum(-1))
    return total + (log_gamma(counts + prior) - log_gamma(prior)).sum(-1)

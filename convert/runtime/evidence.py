r"""How strongly counts of examples between quantiles speak against a reference.

If live examples come from where the n reference examples came from, the probabilities of the bins between order
statistics are Dirichlet(a) with :math:`\sum a = n + 1`, and counts c have the Dirichlet-multinomial probability
DM(c; a), exactly and for finite n. For any weights w that sum to 1,

.. math:: M(c) = \sum_i w_i\, DM(c; b_i) / DM(c; a)

is a martingale of mean 1, which ever reaches 1/r with probability at most r (Ville's inequality; Lindon & Malek 2022,
"Anytime-Valid Inference for Multinomial Count Data"). The b_i are what monitors exist for: everything is more or less
uncertain (powers of the distribution, Lehmann 1953), a share of the stream is far more uncertain, or anything else.
Groups of bins have Dirichlet probabilities too, and the urn of a group does not depend on what happens inside it, so
ratios for coarser groups may be part of the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["EDGES", "Bins", "bins_of", "log_e_values", "log_shares"]

#: Quantile levels of the reference that bound the bins of a monitor; the last is the largest reference value.
EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

#: Exponents of the powers, and of those of the opposite tail.
POWERS = tuple(math.exp(sign * size) for size in (0.15, 0.45, 1.2) for sign in (-1, 1))
#: Levels of EDGES above which a share of the stream may lie, and those shares.
TAILS, CONTAMINATIONS = (0.95, 0.99, 1.0), (0.03, 0.1, 0.4)
#: Concentrations of the other alternatives, as multiples of the reference's.
SPREADS = (0.01, 0.1)
#: How the weights w are shared out: to the powers, to the tails, to anything else. They are a guess at what happens.
POWERS_WEIGHT, TAILS_WEIGHT, OTHERS_WEIGHT = 0.4, 0.5, 0.1

#: The share of the false-alarm rate for the start of the stream, and the factor of the shares of all later starts: the
#: sum of 1 / ((j + 2) log(j + 2)^2) over j >= 1 is 1.07, so that all shares together are below 1.
FIRST_SHARE, LATE_SHARES = 0.75, 0.23


@dataclass(frozen=True)
class Bins:
    """The bins of one measure.

    Attributes:
        edges: Upper ends of all bins but the last, ascending.
        null: Parameters a of the Dirichlet distribution of their probabilities; 0 where a bin is empty.
    """

    edges: tuple[float, ...]
    null: tuple[float, ...]


def bins_of(quantiles: Sequence[float], num_data: int, rounding: float = 0.0) -> Bins | None:
    """The bins of a measure: the q-quantile of n values is the 1 + q (n - 1)-th smallest.

    A level is used where the reference rises on both sides by more than ``rounding``, by which a file may differ from
    its reference: for a value that occurs often, the share below it is not known exactly. The bin of another level is
    empty, with the edge of the level before. None where no level is used.
    """
    steps = len(quantiles) - 1
    edges, ranks = [-math.inf], [0.0]
    for level in EDGES:
        i = round(level * steps)
        rises = all(b - a > rounding for a, b in pairwise(quantiles[i - 1 : i + 2])) and i > 0
        edges.append(quantiles[i] if rises else edges[-1])
        ranks.append(1 + level * (num_data - 1) if rises else ranks[-1])
    null = np.diff([*ranks, num_data + 1.0])
    return None if edges[-1] == -math.inf else Bins(tuple(edges[1:]), tuple(null.tolist()))


def log_e_values(counts: np.ndarray, before: np.ndarray, bins: Bins) -> np.ndarray:
    """The logarithm of M for each start of a stream.

    Args:
        counts: Counts since the start, shape (starts, bins).
        before: Counts until then, which join the reference: if nothing has changed, they come from the same source.
        bins: Edges and reference.

    Returns:
        Shape (starts,).
    """
    null = np.asarray(bins.null) + before
    found = np.full(len(counts), -math.inf)
    for groups, log_weights, alternatives in _alternatives(null):
        grouped = counts @ groups
        ratios = _log_marginal(grouped[:, None], alternatives) - _log_marginal(grouped, null @ groups)[:, None]
        found = np.logaddexp(found, np.logaddexp.reduce(ratios, axis=1) + log_weights)
    return found


def log_shares(starts: np.ndarray) -> np.ndarray:
    """The logarithm of the share of the false-alarm rate that belongs to each start, by its number 0, 1, ...

    Start 0 has three quarters of it, start j about 1 / (j log² j): the price of a late start grows hardly faster than
    log j.
    """
    late = np.maximum(starts, 1) + 2.0
    return np.where(starts == 0, math.log(FIRST_SHARE), math.log(LATE_SHARES) - np.log(late) - 2 * np.log(np.log(late)))


def _alternatives(null: np.ndarray) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
    """Alternatives to each row of parameters.

    Yields:
        A matrix that adds bins up to groups, the logarithm of the weight of each alternative, and their parameters,
        shape (starts, alternatives, groups).
    """
    total = null.sum(1)[:, None]
    # What lies above the largest reference value counts only where more is expected there: if that value occurs often,
    # less lies above it than the null says.
    joined = np.eye(null.shape[1])[:, :-1]
    joined[-1, -1] = 1.0
    joined = joined[:, (null @ joined > 0).all(0)]
    coarse = null @ joined
    level = np.concatenate([np.zeros_like(total), coarse.cumsum(1) / total], axis=1).clip(0, 1)
    powers = np.array(POWERS)[:, None]
    shapes = [level[:, None] ** powers, 1 - (1 - level[:, None]) ** powers]
    shifts = total[:, None] * np.diff(np.concatenate(shapes, axis=1)).clip(1e-9)
    yield joined, math.log(POWERS_WEIGHT / shifts.shape[1]), shifts
    others = np.concatenate([np.array(SPREADS)[:, None] * coarse[:, None], np.full_like(coarse[:, None], 0.5)], axis=1)
    yield joined, math.log(OTHERS_WEIGHT / others.shape[1]), others
    more = np.array(CONTAMINATIONS)
    for tail in TAILS:
        upper = np.arange(null.shape[1]) > EDGES.index(tail)
        share = null[:, upper].sum(1)[:, None] / total
        if ((share > 0) & (share < 1)).all():
            mixed = share + (1 - share) * more
            groups = np.stack([~upper, upper], 1).astype(float)
            weight = math.log(TAILS_WEIGHT / (len(TAILS) * len(more)))
            yield groups, weight, total[:, None] * np.stack([1 - mixed, mixed], 2)


def _log_marginal(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Log probability of the counted examples, in one given order, under a Dirichlet prior of the bins."""
    total, seen = prior.sum(-1), counts.sum(-1)
    return _log_gamma(total) - _log_gamma(total + seen) + (_log_gamma(counts + prior) - _log_gamma(prior)).sum(-1)


def _log_gamma(x: np.ndarray) -> np.ndarray:
    """The logarithm of the gamma function of positive numbers, by Stirling's series above 8."""
    y = x + 8.0
    below = np.prod([x + k for k in range(8)], axis=0)
    inverse = 1 / y
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))
    return (y - 0.5) * np.log(y) - y + 0.5 * math.log(2 * math.pi) + series - np.log(below)

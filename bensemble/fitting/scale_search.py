r"""The choice of beta and reach by the held-out negative log likelihood (NLL) of the predictive distribution.

The NLL of a term is :math:`-\log\frac1S\sum_s p(y | x, w_s)`. Every candidate is measured with the same noise, so
candidates differ in sigma only.

A candidate is a pair of beta and reach. ``beta`` scales the curvature of the data; ``reach`` limits sigma for weights
without curvature. The reach matters for dead units: their curvature is 0 at every beta, but a large enough step of
their weights would activate them.

In the closed form of logits the biases may get a standard deviation t of their own in addition. By the probit
approximation the logits are then divided by :math:`\sqrt{1 + \pi (t^2 + v) / 8}`, v the variance that the weights
cause: without v this is one temperature for all inputs. So the candidates hold every temperature above 1, and a network
that is too sure of everything need not be mended by weights so noisy that they blur what it has learnt.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..models.batches import device_of, to_device
from ..models.forwards import forward
from ..models.outputs import OutputSelector
from ..noise.stack import holding
from ..prediction.weight_samples import WeightSamples

__all__ = ["BETAS", "REACHES", "best_scale", "heldout_terms", "largest_scale", "scanned_scale", "standard_error"]

#: Candidates for beta, half a decade apart.
BETAS = tuple(10 ** (exponent / 2) for exponent in range(-14, 3))
#: Candidates for reach, half a decade apart.
REACHES = tuple(10 ** (-exponent / 2) for exponent in range(7))
#: Candidates for the standard deviation that is added to the biases of logits, from none on in eighths of a decade.
BIAS_SIGMAS = (0.0, *(10 ** (exponent / 8) for exponent in range(-4, 16)))
#: Index in ``BETAS`` where the search starts, beta = 1e-3, with the widest reach.
START = 8

#: beta, reach -> NLL of each term.
Evaluate: TypeAlias = Callable[[float, float], Tensor]
#: beta, reach, standard deviation added to the biases -> NLL of each term.
EvaluateClosed: TypeAlias = Callable[[float, float, float], Tensor]
#: The chosen beta and reach, and the mean NLL of every candidate.
Choice: TypeAlias = tuple[float, float, dict[tuple[float, float], float]]
#: The same with the standard deviation added to the biases before the mean NLL.
ClosedChoice: TypeAlias = tuple[float, float, float, dict[tuple[float, float], float]]


@torch.no_grad()
def heldout_terms(
    model: nn.Module,
    batches: list[tuple[Any, Any]],
    likelihood: Likelihood,
    output: OutputSelector | None,
    num_samples: int = 0,
    seed: int = 0,
) -> Tensor:
    """Negative log predictive density of every held-out term in nats, on the CPU.

    Args:
        model: A model in evaluation mode.
        batches: Pairs of inputs and target.
        likelihood: What the outputs mean.
        output: Which part of a structured output.
        num_samples: Number of weight samples; 0 for the mean network.
        seed: Seed of the noise.
    """
    samples = WeightSamples(model, max(num_samples, 1), torch.Generator(device_of(model)).manual_seed(seed), True)
    found = []
    for batch in batches:
        inputs, target = to_device(batch, samples.device)
        log_density: Tensor | None = None
        for index in range(max(num_samples, 1)):
            held = samples.sample(index) if num_samples else None
            with holding(held) if held is not None else nullcontext():
                value = -likelihood.terms(forward("fit_posterior", model, inputs, output), target)
            log_density = value if log_density is None else torch.logaddexp(log_density, value)
        assert log_density is not None
        found.append((math.log(max(num_samples, 1)) - log_density).cpu())
    return torch.cat([torch.zeros(0), *found])  # another process may have all held-out batches


def best_scale(evaluate: Evaluate, mean_terms: Tensor) -> Choice:
    """The candidate with the lowest NLL on data that the network was not trained on.

    The search goes downhill over ``BETAS``, then over ``REACHES``, and again over ``BETAS`` if the reach changed. Of
    candidates whose NLL is equal within a hundredth of its standard error, the one with more noise is chosen. If no
    candidate beats the mean network, the choice is the largest beta whose NLL is at most one standard error of the
    difference above that of the mean network, or the smallest beta tried.

    Args:
        evaluate: beta, reach -> NLL of each term.
        mean_terms: NLL of each term under the mean network.
    """
    tried = _Tried(evaluate, standard_error(mean_terms) / 100)
    place, reach = tried.downhill(START, 0), 0
    while reach + 1 < len(REACHES) and tried.nll(place, reach + 1) < tried.nll(place, reach) - tried.margin:
        reach += 1
    if reach:
        place = tried.downhill(place, reach)
    if tried.nll(place, reach) > float(mean_terms.mean()):
        errors = {candidate: (terms - mean_terms) for candidate, terms in tried.terms.items()}
        within = [c for c, e in errors.items() if float(e.mean()) <= standard_error(e)]
        largest = max(within, key=lambda c: (c[0], -c[1]), default=None)
        place, reach = largest or min(errors, key=lambda c: (c[0], -c[1]))
    return BETAS[place], REACHES[reach], tried.summary()


def scanned_scale(evaluate: EvaluateClosed, has_bias: bool) -> ClosedChoice:
    """The candidate with the lowest NLL of a grid, where a candidate costs no forward of the network.

    Decades of beta and of reach are scanned first, then the half decades around the best; the grid grows by a decade
    for as long as the best lies at its edge, up to 1e8 and down to 1e-8. With a bias the scan of decades is repeated at
    the standard deviation of the biases that is best where the weights have hardly any, and at a third of its variance.
    Of candidates whose NLL is equal within a hundredth of its standard error, that with the smallest reach above 1
    wins, and of these that which adds least to the biases.

    Args:
        evaluate: beta, reach, standard deviation added to the biases -> NLL of each term.
        has_bias: Whether there are biases to add to.

    Returns:
        beta, reach, standard deviation added to the biases, and the NLL of every pair of beta and reach: of the pair
        that is chosen with what is added, of others the lowest.
    """
    tried: dict[tuple[int, int, int], float] = {}  # by exponents in half decades, and the place in BIAS_SIGMAS

    def scales(place: tuple[int, int, int]) -> tuple[float, float, float]:
        return 10 ** (place[0] / 2), 10 ** (place[1] / 2), BIAS_SIGMAS[place[2]]

    def nll(place: tuple[int, int, int]) -> float:
        if place not in tried:
            value = float(evaluate(*scales(place)).mean())
            tried[place] = value if math.isfinite(value) else math.inf
        return tried[place]

    grid = [(beta, reach) for beta in range(-8, 9, 2) for reach in range(-4, 3, 2)]
    biases = [0]
    if has_bias:
        quiet = min(range(len(BIAS_SIGMAS)), key=lambda bias: nll((-8, -4, bias)))
        biases = sorted({0, quiet, max(quiet - 2, 0)})
    best = min(((*pair, bias) for pair in grid for bias in biases), key=nll)
    moves = list(product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1) if has_bias else (0,)))
    for step in (2, 1):
        while True:
            around = [(best[0] + i * step, best[1] + j * step, best[2] + k) for i, j, k in moves]
            inside = [p for p in around if max(abs(p[0]), abs(p[1])) <= 16 and 0 <= p[2] < len(BIAS_SIGMAS)]
            nearest = min(inside, key=nll)
            if nll(nearest) >= nll(best):
                break
            best = nearest
    margin = standard_error(evaluate(*scales(best))) / 100
    equal = (place for place in tried if tried[place] <= tried[best] + margin)
    best = max(equal, key=lambda place: (-max(place[1], 0), -place[2], -tried[place]))
    lowest: dict[tuple[float, float], float] = {}
    for place, value in sorted(tried.items()):
        pair = scales(place)[:2]
        lowest[pair] = min(value, lowest.get(pair, math.inf))
    return *scales(best), lowest | {scales(best)[:2]: tried[best]}


def largest_scale(evaluate: Evaluate, mean_terms: Tensor, allowance: float) -> Choice:
    """The largest beta whose NLL is at most ``allowance`` above that of the mean network, with the widest reach.

    This is the rule for data that the network was trained on, where noise always costs likelihood. The other arguments
    are those of :func:`best_scale`.
    """
    tried, limit, place, reach = _Tried(evaluate), float(mean_terms.mean()) + allowance, START, 0
    while place > 0 and tried.nll(place) > limit:
        place -= 1
    while reach + 1 < len(REACHES) and tried.nll(place, reach) > limit:
        reach += 1
    while place + 1 < len(BETAS) and tried.nll(place, reach) <= limit and tried.nll(place + 1, reach) <= limit:
        place += 1
    return BETAS[place], REACHES[reach], tried.summary()


def standard_error(terms: Tensor) -> float:
    """Standard error of the mean of the terms; 0 for a single one."""
    return float(terms.std()) / math.sqrt(terms.numel()) if terms.numel() > 1 else 0.0


class _Tried:
    """The candidates evaluated so far, by index in ``BETAS`` and ``REACHES``."""

    def __init__(self, evaluate: Evaluate, margin: float = 0.0) -> None:
        self._evaluate, self.margin = evaluate, margin
        self.terms: dict[tuple[int, int], Tensor] = {}

    def nll(self, place: int, reach: int = 0) -> float:
        """Mean NLL of a candidate; infinite if it is not finite."""
        if (place, reach) not in self.terms:
            self.terms[place, reach] = self._evaluate(BETAS[place], REACHES[reach])
        value = float(self.terms[place, reach].mean())
        return value if math.isfinite(value) else math.inf

    def downhill(self, place: int, reach: int) -> int:
        """Go to larger betas while the NLL does not rise; otherwise to smaller betas while it falls."""
        start, lowest = place, self.nll(place, reach)
        while place + 1 < len(BETAS) and self.nll(place + 1, reach) <= min(lowest + self.margin, sys.float_info.max):
            place += 1
            lowest = min(lowest, self.nll(place, reach))
        while 0 < place <= start:
            here, below = self.nll(place, reach), self.nll(place - 1, reach)
            if math.isfinite(here) and below >= here - self.margin:
                break
            place -= 1
        return place

    def summary(self) -> dict[tuple[float, float], float]:
        """Mean NLL by beta and reach."""
        return {(BETAS[place], REACHES[reach]): self.nll(place, reach) for place, reach in sorted(self.terms)}

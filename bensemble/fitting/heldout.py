r"""The choice of beta and reach by the held-out negative log likelihood (NLL) of the predictive distribution.

The NLL of a term is :math:`-\log\frac1S\sum_s p(y | x, w_s)`. Every candidate is measured with the same noise, so
candidates differ in sigma only.

A candidate is a pair of beta and reach. ``beta`` scales the curvature of the data; ``reach`` limits sigma for weights
without curvature. The reach matters for dead units: their curvature is 0 at every beta, but a large enough step of
their weights would activate them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..likelihoods import Likelihood
from ..models.batches import call, device_of, to_device
from ..models.outputs import OutputSelector, select_output
from ..noise.stack import holding
from ..prediction.weight_samples import WeightSamples

__all__ = ["BETAS", "REACHES", "best_scale", "heldout_terms", "largest_scale", "scanned_scale", "standard_error"]

#: Candidates for beta, half a decade apart.
BETAS = tuple(10 ** (exponent / 2) for exponent in range(-14, 3))
#: Candidates for reach, half a decade apart.
REACHES = tuple(10 ** (-exponent / 2) for exponent in range(7))
#: Index in ``BETAS`` where the search starts, beta = 1e-3, with the widest reach.
START = 8

#: beta, reach -> NLL of each term.
Evaluate: TypeAlias = Callable[[float, float], Tensor]
#: The chosen beta and reach, and the mean NLL of every candidate.
Choice: TypeAlias = tuple[float, float, dict[tuple[float, float], float]]


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
                value = -likelihood.terms(select_output(call(model, inputs), output), target)
            log_density = value if log_density is None else torch.logaddexp(log_density, value)
        assert log_density is not None
        found.append((math.log(max(num_samples, 1)) - log_density).cpu())
    return torch.cat(found)


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


def scanned_scale(evaluate: Evaluate) -> Choice:
    """The candidate with the lowest NLL of a grid, where a candidate costs no forward of the network.

    Decades of beta and of reach are scanned first, then the half decades around the best; the grid grows by a decade
    for as long as the best lies at its edge, up to 1e8 and down to 1e-8.
    """
    tried: dict[tuple[int, int], float] = {}  # by exponents in half decades

    def nll(place: tuple[int, int]) -> float:
        if place not in tried:
            value = float(evaluate(10 ** (place[0] / 2), 10 ** (place[1] / 2)).mean())
            tried[place] = value if math.isfinite(value) else math.inf
        return tried[place]

    grid = [(beta, reach) for beta in range(-8, 9, 2) for reach in range(-4, 3, 2)]
    best = min(grid, key=nll)
    for step in (2, 1):
        while True:
            around = [(best[0] + i * step, best[1] + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            nearest = min((p for p in around if max(map(abs, p)) <= 16), key=nll)
            if nll(nearest) >= nll(best):
                break
            best = nearest
    scales = {place: (10 ** (place[0] / 2), 10 ** (place[1] / 2)) for place in tried}
    return *scales[best], {scales[place]: value for place, value in sorted(tried.items())}


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

r"""How much noise the data allows: the held-out negative log likelihood of the predictive distribution.

For the targets of held-out data, :math:`-\log\frac1S\sum_s p(y | x, w_s)` per term. The same noise serves every
candidate, so that candidates differ by their sigma alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..batches import call, device_of, to_device
from ..frames import open_frame
from ..likelihoods import Likelihood
from ..outputs import OutputSelector, select_output
from ..weight_samples import WeightSamples

__all__ = ["BETAS", "best_beta", "heldout_terms", "largest_beta"]

#: Candidates for beta, half a decade apart.
BETAS = tuple(10 ** (exponent / 2) for exponent in range(-14, 3))
#: Place where the search starts, beta = 1e-3.
START = 8

#: beta -> NLL of each term.
Evaluate: TypeAlias = Callable[[float], Tensor]


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
        num_samples: Weight samples; 0 for the mean network.
        seed: Of the noise.
    """
    samples = WeightSamples(model, max(num_samples, 1), torch.Generator(device_of(model)).manual_seed(seed), True)
    found = []
    for batch in batches:
        inputs, target = to_device(batch, samples.device)
        log_density: Tensor | None = None
        for index in range(max(num_samples, 1)):
            frame = samples.frame(index) if num_samples else None
            with open_frame(frame) if frame is not None else nullcontext():
                value = -likelihood.terms(select_output(call(model, inputs), output), target)
            log_density = value if log_density is None else torch.logaddexp(log_density, value)
        assert log_density is not None
        found.append((math.log(max(num_samples, 1)) - log_density).cpu())
    return torch.cat(found)


def best_beta(evaluate: Evaluate, mean_terms: Tensor) -> tuple[float, dict[float, float]]:
    """The beta with the lowest NLL on data that the network has not seen, found by walking downhill over ``BETAS``.

    Where no candidate beats the mean network, noise of any size costs likelihood; then the largest beta is taken whose
    NLL is at most one standard error of the difference above that of the mean network, or the smallest tried.

    Args:
        evaluate: beta -> NLL of each term.
        mean_terms: NLL of each term under the mean network.

    Returns:
        The chosen beta, and the mean NLL of every candidate that was tried.
    """
    tried = _Tried(evaluate)
    place = START
    step = 1 if tried.nll(place + 1) < tried.nll(place) else -1
    while 0 <= place + step < len(BETAS) and tried.nll(place + step) <= tried.nll(place):
        place += step
    if tried.nll(place) > float(mean_terms.mean()):
        errors = {p: (terms - mean_terms) for p, terms in tried.terms.items()}
        within = [p for p, e in errors.items() if float(e.mean()) <= float(e.std()) / math.sqrt(e.numel())]
        place = max(within, default=min(errors))
    return BETAS[place], tried.summary()


def largest_beta(evaluate: Evaluate, mean_terms: Tensor, allowance: float) -> tuple[float, dict[float, float]]:
    """The largest beta whose NLL is at most ``allowance`` above that of the mean network.

    The rule for data that the network was trained on, where noise always costs likelihood. Arguments as for
    :func:`best_beta`.
    """
    tried, limit, place = _Tried(evaluate), float(mean_terms.mean()) + allowance, START
    while place > 0 and tried.nll(place) > limit:
        place -= 1
    while place + 1 < len(BETAS) and tried.nll(place) <= limit and tried.nll(place + 1) <= limit:
        place += 1
    return BETAS[place], tried.summary()


class _Tried:
    """The candidates that were evaluated, by place in ``BETAS``."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self.terms: dict[int, Tensor] = {}

    def nll(self, place: int) -> float:
        """Mean NLL of a candidate; infinite where it is not a number."""
        if place not in self.terms:
            self.terms[place] = self._evaluate(BETAS[place])
        value = float(self.terms[place].mean())
        return value if math.isfinite(value) else math.inf

    def summary(self) -> dict[float, float]:
        """Mean NLL by beta."""
        return {BETAS[place]: self.nll(place) for place in sorted(self.terms)}

"""The candidates of a search for beta and reach: each is set in turn, and measured on the same held-out data."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..errors import InvalidValueError
from ..likelihoods import Likelihood
from ..models.batches import check_finite_inputs
from ..models.outputs import OutputSelector
from ..models.ranks import failing_together, from_every_process, gathered
from .closed_terms import ClosedTerms
from .scale_search import heldout_terms

__all__ = ["Candidates"]

_log = logging.getLogger("bensemble")


class Candidates:
    """Called with a candidate, sets its sigmas and gives its negative log likelihood of each held-out term.

    Args:
        bnn: The model, in evaluation mode.
        pairs: Inputs and target of each held-out batch.
        likelihood: What the outputs mean.
        output: Which part of a structured output.
        set_sigmas: Takes beta and reach, and writes the sigmas.
        num_samples: Weight samples, where the prediction has no closed form.
        seed: Of these, the same for every candidate.

    Attributes:
        mean_terms: The NLL of each term for the mean network, in nats.
        closed: The closed form of the prediction, or None.
        terms: The NLL of each term by beta, reach and bias_sigma, for all candidates so far.

    The terms are those of all processes, in the order of their ranks, so that all choose alike.

    Raises:
        InvalidValueError: There are no held-out batches, one has no target, or inputs or outputs are not finite.
    """

    def __init__(
        self,
        bnn: nn.Module,
        pairs: list[tuple[Any, Any]],
        likelihood: Likelihood,
        output: OutputSelector | None,
        set_sigmas: Callable[[float, float], None],
        num_samples: int,
        seed: int,
    ) -> None:
        _check(pairs)
        with failing_together("fit_posterior"):
            for index, (inputs, _) in enumerate(pairs):
                check_finite_inputs("fit_posterior", inputs, f"{index} of the held-out data")
            own = heldout_terms(bnn, pairs, likelihood, output)
            closed = ClosedTerms.of(bnn, pairs, likelihood, output)
        self.mean_terms = gathered(own)
        if bool(self.mean_terms.isnan().any()):
            raise InvalidValueError(
                f"fit_posterior: the held-out NLL must be a number, got NaN in {int(self.mean_terms.isnan().sum())} of "
                f"{self.mean_terms.numel()} terms; look for outputs that are not finite, and fit in float32."
            )
        self.closed = closed if all(from_every_process(closed is not None)) else None
        self.terms: dict[tuple[float, float, float], Tensor] = {}
        self._sampled = lambda: heldout_terms(bnn, pairs, likelihood, output, num_samples, seed)
        self._set_sigmas = set_sigmas
        self._present: tuple[float, float] | None = None

    def __call__(self, beta: float, reach: float, bias_sigma: float = 0.0) -> Tensor:
        """The NLL of each term; ``bias_sigma`` has an effect in closed form alone."""
        if (beta, reach) != self._present:
            self._set_sigmas(beta, reach)
            self._present = (beta, reach)
            if self.closed is not None:
                self.closed.read_sigmas()
        terms = gathered(self._sampled() if self.closed is None else self.closed.terms(bias_sigma))
        self.terms[beta, reach, bias_sigma] = terms
        _log.debug("fit_posterior: beta %.3g, reach %.3g give a held-out NLL of %.5f", beta, reach, float(terms.mean()))
        return terms


def _check(pairs: list[tuple[Any, Any]]) -> None:
    if not any(from_every_process(bool(pairs))):
        raise InvalidValueError("fit_posterior: val_loader must give at least one batch, got none.")
    if any(from_every_process(any(target is None for _, target in pairs))):
        raise InvalidValueError(
            "fit_posterior: choosing beta needs targets, got a batch without; pass unpack= or val_loader=, or beta."
        )

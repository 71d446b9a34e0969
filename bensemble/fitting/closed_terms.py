"""Held-out likelihood of a last layer's posterior: the network runs once, and every candidate only scales the noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import DiscreteLikelihood, Gaussian, Likelihood
from ..models.batches import device_of, to_device
from ..models.outputs import OutputSelector
from ..prediction.closed import ClosedForm, OutputGaussian, closed_form

__all__ = ["ClosedTerms"]


class ClosedTerms:
    """The held-out batches at a last layer.

    Args:
        form: The closed form of the model.
        batches: For each batch what the layer takes and gives, and the target.
        likelihood: What the outputs mean.
    """

    def __init__(self, form: ClosedForm, batches: list[tuple[Any, Any]], likelihood: Likelihood) -> None:
        self._form, self._batches, self._likelihood = form, batches, likelihood

    @classmethod
    def of(
        cls, model: nn.Module, pairs: list[tuple[Any, Any]], likelihood: Likelihood, output: OutputSelector | None
    ) -> ClosedTerms | None:
        """One forward of every batch; None for a model without a closed form."""
        form = closed_form(model, likelihood)
        if form is None:
            return None
        batches = []
        for pair in pairs:
            inputs, target = to_device(pair, device_of(model))
            recorded = form.record(inputs, output)
            if recorded is None:
                return None
            batches.append((recorded, target))
        return cls(form, batches, likelihood)

    @torch.no_grad()
    def terms(self) -> Tensor:
        """Negative log predictive density of every held-out term in nats, on the CPU, for the present rho."""
        return torch.cat([self._of(self._form.outputs(recorded), target).cpu() for recorded, target in self._batches])

    def _of(self, outputs: OutputGaussian, target: Tensor) -> Tensor:
        likelihood = self._likelihood
        if isinstance(likelihood, DiscreteLikelihood):
            return likelihood.terms(outputs.probit(), target)
        assert isinstance(likelihood, Gaussian)
        noise = likelihood.spread(outputs.mean) + outputs.variance
        error = target.to(noise.dtype) - outputs.mean
        return 0.5 * (error.square() / noise + noise.log() + math.log(2 * math.pi)).flatten()

"""Held-out likelihood of a last layer's posterior: the network runs once, and every candidate only scales the noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..likelihoods import DiscreteLikelihood, Gaussian, Likelihood
from ..models.batches import device_of, to_device
from ..models.outputs import OutputSelector
from ..prediction.closed import ClosedForm, closed_form, probit

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
        self._variances: list[Tensor] = []
        self._of_bias: list[Tensor] = []
        if self.has_bias:
            self._of_bias = [form.outputs_of_unit_bias(recorded).variance for recorded, _ in batches]

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

    @property
    def has_bias(self) -> bool:
        """Whether the outputs are logits whose biases have a posterior."""
        return isinstance(self._likelihood, DiscreteLikelihood) and self._form.layer._posterior("bias") is not None

    @torch.no_grad()
    def read_sigmas(self) -> None:
        """Take over the variances of the present posterior."""
        self._variances = [self._form.outputs(recorded).variance for recorded, _ in self._batches]

    @torch.no_grad()
    def terms(self, bias_sigma: float = 0.0) -> Tensor:
        """Negative log predictive density of every held-out term in nats, on the CPU.

        Args:
            bias_sigma: Standard deviation that every bias gets in addition to the variances that were read.
        """
        variances = self._variances
        if bias_sigma:
            variances = [v + bias_sigma**2 * one for v, one in zip(variances, self._of_bias, strict=True)]
        parts = zip(self._batches, variances, strict=True)
        found = [self._of(recorded.mean, variance, target).cpu() for (recorded, target), variance in parts]
        return torch.cat([torch.zeros(0), *found])  # another process may have all held-out batches

    def _of(self, mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
        likelihood = self._likelihood
        if isinstance(likelihood, DiscreteLikelihood):
            return likelihood.terms(probit(mean, variance), target)
        assert isinstance(likelihood, Gaussian)
        noise = likelihood.spread(mean) + variance
        error = target.to(noise.dtype) - mean
        return 0.5 * (error.square() / noise + noise.log() + math.log(2 * math.pi)).flatten()

"""What weight samples say about a model's output, to compare moments with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import bensemble
from bensemble.models.batches import call

__all__ = ["Sampled", "sampled"]


class Sampled(NamedTuple):
    """Outputs of S weight samples, shape (S, B, ...)."""

    outputs: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over the samples."""
        return self.outputs.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples."""
        return self.outputs.std(0)

    @property
    def mean_error(self) -> Tensor:
        """Standard error of the mean."""
        return self.std / len(self.outputs) ** 0.5

    @property
    def std_error(self) -> Tensor:
        """Standard error of the standard deviation, from the fourth moment."""
        centred = self.outputs - self.mean
        kurtosis = centred.pow(4).mean(0) / centred.square().mean(0).square().clamp_min(1e-30)
        return self.std * ((kurtosis - 1).clamp_min(0) / (4 * len(self.outputs))).sqrt()


def sampled(model: nn.Module, inputs: object, count: int, seed: int = 0) -> Sampled:
    """Run the model with that many weight samples."""
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    with torch.no_grad():
        for _ in range(count):
            with bensemble.sampling(model, generator):
                outputs.append(call(model, inputs))  # type: ignore[arg-type]
    return Sampled(torch.stack(outputs).double())

"""How far moments are from weight samples, on inputs of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.checks import check_count
from bensemble.gaussian import precise
from bensemble.models.batches import call
from bensemble.models.outputs import OutputSelector, select_output
from bensemble.models.state import evaluating
from bensemble.noise.stack import sampling

from .building import moments

__all__ = ["MomentsReport", "check_moments"]


@dataclass(frozen=True, eq=False, repr=False)
class MomentsReport:
    """Moments against weight samples.

    Attributes:
        std_ratio: Standard deviation by moments over that of the samples, for each output of each example; 1 is right.
        mean_error: Mean by moments minus that of the samples, in standard deviations of the samples.
        num_samples: Number of weight samples S.
    """

    std_ratio: Tensor
    mean_error: Tensor
    num_samples: int

    @property
    def std_noise(self) -> float:
        """What the samples alone make the ratio vary by, for Gaussian outputs: 1 / sqrt(2 S)."""
        return float((2 * self.num_samples) ** -0.5)

    @property
    def mean_noise(self) -> float:
        """What the samples alone make the error of the mean vary by: 1 / sqrt(S)."""
        return float(self.num_samples**-0.5)

    def __repr__(self) -> str:
        ratio, error = self.std_ratio.flatten().double(), self.mean_error.flatten().double()
        low, high = torch.quantile(ratio, 0.05), torch.quantile(ratio, 0.95)
        return "\n".join(
            [
                f"Moments against {self.num_samples} weight samples, {len(self.std_ratio)} examples",
                f"  std    ratio {ratio.mean():.3f} on average, {low:.3f} .. {high:.3f} for nine of ten, "
                f"{ratio.min():.3f} .. {ratio.max():.3f} at most (noise of the samples {self.std_noise:.3f})",
                f"  mean   off by {error.square().mean().sqrt():.3f} std on average (root mean square), "
                f"{error.abs().max():.3f} at most (noise of the samples {self.mean_noise:.3f})",
            ]
        )


@torch.no_grad()
def check_moments(
    bnn: nn.Module,
    inputs: Any,
    num_samples: int = 500,
    *,
    output: OutputSelector | None = None,
    generator: torch.Generator | None = None,
) -> MomentsReport:
    """Compare :func:`convert.moments` with weight samples, on inputs like those of the task.

    Args:
        bnn: A Bayesian model.
        inputs: What its forward takes, a few dozen examples.
        num_samples: Weight samples; 500 tell the standard deviation of an output to 3 %.
        output: Which part of a structured output: a key, an index or a callable.
        generator: Source of the noise; default torch's own.

    Raises:
        ConversionError: :func:`convert.moments` does not apply to the model.
        InvalidValueError: Fewer than two samples, or inputs that the model rejects.

    Example:
        >>> print(check_moments(bnn, x[:32]))
    """
    check_count("check_moments", "num_samples", num_samples, least=2)
    mean, variance = call(moments(bnn, inputs, output=output), inputs)
    centre = precise(mean).double()
    first, second = torch.zeros_like(centre), torch.zeros_like(centre)
    with evaluating(bnn):
        for _ in range(num_samples):
            with sampling(bnn, generator):
                change = select_output(call(bnn, inputs), output).double() - centre
            first, second = first + change, second + change.square()
    shift = first / num_samples
    std = ((second - num_samples * shift.square()) / (num_samples - 1)).clamp_min(1e-300).sqrt()
    return MomentsReport((variance.double().sqrt() / std).to(mean.dtype), (-shift / std).to(mean.dtype), num_samples)

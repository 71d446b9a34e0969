"""Means and variances of samples, and their comparison within standard errors.

The samples are normal, so the standard error of a mean is sqrt(var / S) and that of a variance var * sqrt(2 / (S - 1)).
K comparisons together fail by chance with the probability of one comparison at five standard errors, 6e-7 (Bonferroni).
For K = 2,000 the bound is then 6.3 standard errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments", "require_same_moments"]

_CHANCE = 5.7e-7  # of a normal variable beyond five standard errors, on either side


class Moments:
    """Mean and variance of samples that are added in parts, element by element.

    Subtract a value close to the mean from the samples first, to avoid cancellation.
    """

    def __init__(self) -> None:
        self.count = 0
        self._new: list[Tensor] = []
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, samples: Tensor) -> None:
        """Add samples of shape (S, ...)."""
        self.count += len(samples)
        self._new.append(samples)
        if len(self._new) * samples.numel() > 1_000_000:
            self._take_in()

    def mean(self) -> Tensor:
        """Sample mean."""
        self._take_in()
        return torch.as_tensor(self._sum) / self.count

    def variance(self) -> Tensor:
        """Unbiased sample variance."""
        mean = self.mean()
        return (torch.as_tensor(self._squares) - self.count * mean.square()).clamp_min(0) / (self.count - 1)

    def _take_in(self) -> None:
        """Add up what is new: many small samples at once, which takes a tenth of the time."""
        if self._new:
            new = torch.cat(self._new).double()
            self._sum, self._squares = self._sum + new.sum(0), self._squares + new.square().sum(0)
            self._new.clear()


def require_same_moments(sample: Moments, mean: Tensor, variance: Tensor, what: str, count: float = torch.inf) -> None:
    """Raise unless a sample has the given mean and variance, both within standard errors.

    Args:
        sample: The sample to test.
        mean: Expected mean, exact or estimated.
        variance: Expected variance, exact or estimated.
        what: Name of the sample in the error.
        count: Number of samples that the expected values are estimated from.
    """
    weight = 1 / sample.count + 1 / count
    mean, variance = mean.double(), variance.double()
    errors = {
        "mean": (sample.mean() - mean, (variance * weight).sqrt()),
        "variance": (sample.variance() - variance, variance * (2 * weight) ** 0.5),
    }
    comparisons = 2 * variance.numel()
    most = float(-torch.special.ndtri(torch.tensor(_CHANCE / 2 / comparisons, dtype=torch.float64)))
    for name, (difference, error) in errors.items():
        # A constant has no standard error and may differ by rounding only.
        worst = (difference.abs() - 1e-9).clamp_min(0) / error.clamp_min(1e-300)
        if not bool((worst <= most).all()):
            index = int(worst.argmax())
            got, expected = (sample.mean(), mean) if name == "mean" else (sample.variance(), variance)
            numbers = [float(tensor.flatten()[index]) for tensor in (got, expected, worst)]
            raise AssertionError(
                "the {} of {} is {:.4g} where {:.4g} is due, {:.1f} standard errors off".format(name, what, *numbers)
                + f" ({most:.1f} allowed, {sample.count} samples)"
            )

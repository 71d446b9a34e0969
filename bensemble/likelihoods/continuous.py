"""Likelihoods of real numbers: a Gaussian with known noise, or with noise that the network predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError
from ..gaussian import precise
from ..models.outputs import describe
from .base import Likelihood, Signs, check_axis, check_finite, check_same_shape

__all__ = ["Gaussian", "GaussianHead"]


@dataclass(frozen=True, eq=False)
class Gaussian(Likelihood):
    """A Gaussian with known noise, whose mean is the output; every element is a term.

    Attributes:
        sigma: Standard deviation of the noise, a number or a tensor that broadcasts against the outputs.

    Example:
        >>> loss = bensemble.likelihoods.Gaussian(sigma=0.1).nll(torch.randn(9, 1), torch.randn(9, 1))
    """

    sigma: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, (int, float, Tensor)):
            raise InvalidTypeError(f"Gaussian: sigma must be a number or a tensor, got {self.sigma!r}.")
        sigma = torch.as_tensor(self.sigma)
        if not bool((sigma.isfinite() & (sigma > 0)).all()):
            raise InvalidValueError(f"Gaussian: sigma must be finite and above 0, got {self.sigma!r}.")

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log density of each element; ``target`` has the shape of ``output``."""
        check_same_shape("Gaussian", output, target)
        check_finite("Gaussian", target)
        return _gaussian_nll(precise(output), self._sigma(output).log(), target)

    def expect(self, output: Tensor) -> Tensor:
        """The output itself."""
        return precise(output)

    def spread(self, output: Tensor) -> Tensor:
        """Variance of the noise, in the shape of ``output``."""
        return self._sigma(output).square().expand_as(output)

    def probe(self, output: Tensor, signs: Signs, target: Tensor | None = None) -> Tensor:
        """Random signs divided by sigma: the Fisher information is 1 / sigma^2."""
        return signs(precise(output)) / self._sigma(output)

    def _sigma(self, output: Tensor) -> Tensor:
        return torch.as_tensor(self.sigma, dtype=precise(output).dtype, device=output.device)


@dataclass(frozen=True)
class GaussianHead(Likelihood):
    """A Gaussian whose mean and noise are the output (Kendall & Gal 2017); every element of the mean is a term.

    Attributes:
        split: Axis of the output whose first half is the mean and whose second half is the logarithm of the noise
            variance, or a callable ``output -> (mean, sigma)``. Default: axis 1 of outputs with two axes.

    Example:
        >>> loss = bensemble.likelihoods.GaussianHead().nll(torch.randn(9, 2), torch.randn(9, 1))
    """

    split: int | Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log density of each element; ``target`` has the shape of the mean."""
        mean, log_sigma = self._take_apart(output)
        check_same_shape("GaussianHead", mean, target)
        check_finite("GaussianHead", target)
        return _gaussian_nll(mean, log_sigma, target)

    def expect(self, output: Tensor) -> Tensor:
        """The mean."""
        return self._take_apart(output)[0]

    def spread(self, output: Tensor) -> Tensor:
        """Variance of the noise, in the shape of the mean."""
        return (2 * self._take_apart(output)[1]).exp()

    def probe(self, output: Tensor, signs: Signs, target: Tensor | None = None) -> Tensor:
        """From the Fisher information of (mean, log sigma), diag(1 / sigma^2, 2), by the gradient of the split."""
        with torch.enable_grad():
            leaf = precise(output).detach().requires_grad_()
            mean, log_sigma = self._take_apart(leaf)
            weights = (signs(mean) / log_sigma.detach().exp(), signs(mean) * math.sqrt(2))
            return torch.autograd.grad((mean, log_sigma), leaf, weights)[0]

    def _take_apart(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log sigma."""
        if callable(self.split):
            pair = self.split(precise(output))
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise InvalidTypeError(f"GaussianHead: split must return a pair (mean, sigma), got {describe(pair)}.")
            return pair[0], pair[1].log().expand_as(pair[0])
        if self.split is None and output.ndim != 2:
            raise InvalidValueError(
                f"GaussianHead: split must be given for outputs of {output.ndim} axes, got shape "
                f"{tuple(output.shape)}; name the axis that holds mean and log variance."
            )
        axis = check_axis("GaussianHead(split)", 1 if self.split is None else self.split, output)
        if output.shape[axis] % 2:
            raise InvalidValueError(
                f"GaussianHead: axis {axis} must hold means and as many log variances, got {output.shape[axis]}."
            )
        mean, log_variance = precise(output).chunk(2, axis)
        return mean, log_variance / 2


def _gaussian_nll(mean: Tensor, log_sigma: Tensor, target: Tensor) -> Tensor:
    error = (target.to(mean.dtype) - mean) * (-log_sigma).exp()
    return (0.5 * error.square() + log_sigma + 0.5 * math.log(2 * math.pi)).flatten()

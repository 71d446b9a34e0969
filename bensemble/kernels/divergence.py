r"""The KL to a prior, block by block: its value, and its slopes in mu and sigma.

.. math::
    KL(N(\mu, \sigma^2) \,\|\, N(m, s^2)) &= \log\frac{s}{\sigma} + \frac{\sigma^2 + (\mu - m)^2}{2 s^2} - \frac12 \\
    KL_{ARD} &= \frac12 \log\left(1 + \frac{\mu^2}{\sigma^2}\right)

The formulas and their sources are in :mod:`bensemble.priors`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..priors import ARD, Normal
from ..torch_internals import version
from .blocks import sum_of_logs
from .softplus import sum_of_log_sigma

__all__ = ["Block", "Divergence", "divergence_to"]


class Block(NamedTuple):
    """Flat pieces of the tensors of one weight.

    Attributes:
        mu: Means.
        rho: What sigma follows from.
        variance: sigma^2.
        center: Prior means; None for zero.
    """

    mu: Tensor
    rho: Tensor
    variance: Tensor
    center: Tensor | None

    def distance(self, scratch: Tensor) -> Tensor:
        """The means beyond those of the prior."""
        return self.mu if self.center is None else torch.sub(self.mu, self.center, out=scratch)


class Divergence(Protocol):
    """A KL in closed form."""

    @property
    def prior(self) -> Any:
        """The prior, which knows the plain formula."""
        ...

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells this divergence from others."""
        ...

    @property
    def center(self) -> Tensor | None:
        """A tensor of prior means in the shape of the weights, cut into the same blocks; None for zero."""
        ...

    def value(self, block: Block, most: float, sigma: Tensor, scratch: Tensor) -> float:
        """The sum over one block, in nats; not finite where float32 is too narrow for the short cuts taken.

        ``most`` is the maximum of rho; ``sigma`` and ``scratch`` may be written to.
        """
        ...

    def add_slopes_(self, scale: float, block: Block, g_mu: Tensor, g: Tensor, scratch: Tensor) -> None:
        """Add ``scale`` times the slopes of one block, in place.

        ``g_mu`` is a slope in mu and stays one; ``g`` comes as a slope in sigma^2 and goes as sigma times that in
        sigma, which needs no root.
        """
        ...


@dataclass(frozen=True, eq=False)
class NormalDivergence:
    """To a normal with one standard deviation for all weights."""

    prior: Normal
    sigma: float

    @property
    def key(self) -> tuple[Any, ...]:
        mean = self.prior.mean
        return (self.sigma, (id(mean), version(mean)) if isinstance(mean, Tensor) else mean)

    @property
    def center(self) -> Tensor | None:
        return self.prior.mean if isinstance(self.prior.mean, Tensor) else None

    def value(self, block: Block, most: float, sigma: Tensor, scratch: Tensor) -> float:
        distance = block.distance(scratch)
        squares = float(torch.dot(distance, distance)) + float(block.variance.sum())
        logs = sum_of_log_sigma(block.rho, most, sigma, block.variance, scratch)
        return squares / (2 * self.sigma**2) - logs + sigma.numel() * (math.log(self.sigma) - 0.5)

    def add_slopes_(self, scale: float, block: Block, g_mu: Tensor, g: Tensor, scratch: Tensor) -> None:
        precision = scale / self.sigma**2
        g_mu.add_(block.distance(scratch), alpha=precision)
        g.add_(0.5 * precision).mul_(block.variance).mul_(2.0).sub_(scale)


@dataclass(frozen=True, eq=False)
class ARDDivergence:
    """To the prior with a variance per weight at its optimum."""

    prior: ARD
    key: tuple[Any, ...] = ()
    center: Tensor | None = None

    def value(self, block: Block, most: float, sigma: Tensor, scratch: Tensor) -> float:
        return 0.5 * sum_of_logs(torch.mul(block.mu, block.mu, out=sigma).div_(block.variance).add_(1.0), scratch)

    def add_slopes_(self, scale: float, block: Block, g_mu: Tensor, g: Tensor, scratch: Tensor) -> None:
        mu = block.mu
        sum_of_squares = torch.addcmul(block.variance, mu, mu, out=scratch)
        g_mu.addcdiv_(mu, sum_of_squares, value=scale)
        share = sum_of_squares.reciprocal_().mul_(mu).mul_(mu)
        g.mul_(block.variance).mul_(2.0).sub_(share, alpha=scale)


def divergence_to(prior: Any) -> Divergence | None:
    """The KL to a prior block by block; None for priors that only know the plain formula."""
    if type(prior) is Normal and prior.is_constant and not _is_wide(prior.mean):
        return NormalDivergence(prior, float(prior.sigma))
    return ARDDivergence(prior) if type(prior) is ARD else None


def _is_wide(mean: float | Tensor) -> bool:
    """Whether prior means need more than a plain block of float32; also numbers other than zero do."""
    if not isinstance(mean, Tensor):
        return mean != 0
    return mean.dtype is not torch.float32 or mean.device.type != "cpu" or not mean.dim()

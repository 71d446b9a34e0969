r"""Convolutions: one weight for all positions, so the noise of a channel is common to its positions.

For independent weights and inputs with mean m, variance v, the variance at each position is

.. math:: Var[y] = op(m^2 + v, \sigma^2) + op(v, \mu^2),

exact if the inputs are uncorrelated. They are not: the second term is scaled, for each channel, by what the covariance
within the window makes of it. The covariance of two outputs p, p' of one channel from this layer's own weights is
:math:`\sum \sigma^2_{iq} E[x_{p+q} x_{p'+q}]`. Averaged over all pairs it is :math:`\sum \sigma^2_{iq} E[\bar x_q^2]`
with the mean :math:`\bar x_q` of what a tap reads, over neighbours it takes their mean product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..features import Split
from ..registry import CannotFollowError, Operation, rule
from ..state import Beside, Uncertain, total_variance
from .linear import affine, parts_of
from .window import Bands, Window, in_shares, mixed

__all__: list[str] = []


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(operation: Operation) -> Uncertain:
    """A convolution of any kind."""
    x, layer = operation.args[0], _Convolution(operation)
    if not isinstance(x, Uncertain):
        fresh = layer.fresh(x, x * x, layer.average(x).square(), Uncertain.of(x).products(x, layer.strides))
        if not layer.known_beside(fresh.mean):
            return fresh
        cheap = layer.window.halves and 2 * x[0].numel() < fresh.mean[0].numel()
        halves = (fresh.mean, partial(layer.halves, x, x * x)) if cheap else None
        return replace(fresh, beside=layer.beside(x, x * x), halves=halves)
    return layer.carry(x)


class _Convolution:
    """Moments through one convolution, with i input channels and o output channels.

    Attributes:
        weight, bias, variance, bias_variance: Of the posterior; None where there is none.
        strides: Steps between neighbours of the output.
        window: What each output reads.
    """

    def __init__(self, operation: Operation) -> None:
        x = operation.args[0]
        weight, self.variance = parts_of(operation.weight(1, "weight"))
        self.bias, self.bias_variance = parts_of(operation.weight(2, "bias"))
        assert weight is not None
        self.weight = weight
        example = x.mean if isinstance(x, Uncertain) else x
        _check(x, example, weight)
        self.function, self.rest, self.kwargs = operation.function, operation.args[3:], dict(operation.kwargs)
        self.kwargs.pop("bias", None)
        self.transposed = "transpose" in operation.name
        self.strides = [1] if self.transposed else _several(operation.get(3, "stride", 1))
        self.groups = operation.get(6, "groups", 1)
        self.window = Window(operation, example.shape[2:], weight)

    def fresh(self, x: Tensor, second: Tensor, common: Tensor, products: Tensor) -> Uncertain:
        """Mean, and the noise that this layer's own weights make.

        Args:
            x: Mean of the input.
            second: Its second moment.
            common: Second moment of the mean over the positions.
            products: Mean product of neighbours.
        """
        mean = self._run(x, self.weight, self.bias)
        if self.variance is None:
            shared = mean.new_zeros((1, mean.shape[1])) if self.bias_variance is None else self.bias_variance[None]
            variance = shared.view(1, -1, *[1] * (mean.ndim - 2)).expand_as(mean)
            return Uncertain(mean, variance, shared, (), shared)
        # sigma^2 summed over the taps, (i, o), for the means of all pairs and of neighbours
        own = _dense(self.variance, self.groups, self.transposed)
        variance = self._run(second, self.variance, self.bias_variance)
        shared = affine(common, own.sum(-1).t(), self.bias_variance)
        near = affine(products, (own @ self.window.pairs.diagonal()).t(), self.bias_variance)
        return Uncertain(mean, variance, shared, (), near)

    def carry(self, x: Uncertain) -> Uncertain:
        """The moments for an input with noise of its own."""
        total, own, terms = x.average(x.variance), x.own, x.terms
        if bool((self.window.read != 1).any()):
            coverage = x.mean_of(x.sampled(x.variance) * x.sampled(self.window.read)) / total.clamp_min(1e-30)
            own, terms = own * (coverage * coverage), tuple(term.scaled(coverage) for term in terms)
        shared = total_variance(own, terms)
        mean = self.average(x.mean)
        second = torch.addcmul(x.variance, x.mean, x.mean)
        fresh = self.fresh(x.mean, second, torch.addcmul(shared, mean, mean), x.products(x.mean, self.strides) + x.near)
        taps = _dense(self.weight, self.groups, self.transposed)
        matrix = taps.sum(-1)
        if self.groups > 1 and self.groups == matrix.shape[0] == matrix.shape[1]:
            factor = matrix.diagonal()
            kept: Tensor | None = own * factor.square()
            terms = tuple(term.scaled(factor) for term in terms)
        else:
            split = Split.of(matrix, self.window.hits.numel() * matrix.shape[0])
            kept, terms = split.carry(own, terms, shared)
        everywhere = total_variance(kept, terms)
        own = fresh.own if kept is None else fresh.own + kept
        # Sum of squares, and square of the sum, of the taps that read inside, (i, o)
        pairs = self.window.pairs
        alone = (taps.square() @ pairs.diagonal()).t()
        together = ((taps @ pairs) * taps).sum(-1).t()
        closer = (x.near - shared).clamp_min(0)
        nearby = torch.addmm(everywhere, closer, together)
        local = torch.addmm(nearby, (total - shared - closer).clamp_min(0), alone)
        arriving, arrived = self.arrived(x.variance)
        size = arrived.mean(tuple(range(2, arrived.ndim)), keepdim=True).clamp_min(1e-30)
        local_there, beside = fresh.along(local) / size, None
        variance = torch.addcmul(fresh.variance, arrived, local_there)
        if arriving is not None and self.known_beside(variance):
            alike = x.along((x.near / total.clamp_min(1e-30)).clamp(0, 1))
            nearby_there = fresh.along(nearby.sum(1, keepdim=True)) / size
            carried = _Carried(arriving, local_there.sum(1, keepdim=True), nearby_there)
            beside = self.beside(x.mean, second, (x.variance, alike), carried)
        return replace(fresh, variance=variance, beside=beside, own=own, terms=terms, near=fresh.near + nearby)

    def halves(self, x: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a known input: half the sums and differences of pairs along the last axis, of means and of variances."""
        assert self.variance is not None
        mean, difference = self.window.halved(x, self.weight, self.bias)
        variance, excess = self.window.halved(second, self.variance, self.bias_variance)
        return mean, variance, difference, excess

    def arrived(self, variance: Tensor) -> tuple[Callable[..., Tensor] | None, Tensor]:
        """Where in the outputs the noise of the inputs arrives, but for a factor, shape (B, 1, ...) or (B, o, ...).

        Channels differ by how much they carry, hardly by where: the outputs of a group are taken as one, and the taps
        of all inputs as alike.

        Returns:
            What gives the mean of two such places, if known, and all of them.
        """
        if self.groups == 1:
            channels, taps = in_shares(self.weight.square().mean(1 if self.transposed else 0).unsqueeze(0))
            whole = mixed(variance, channels)
            if not self.window.separable:
                return None, self.window(whole, taps)
            bands = Bands(self.window, taps)
            return partial(bands.of_two, whole), bands(whole)
        axis = 1 if self.transposed else 0
        squares = self.weight.square().unflatten(axis, (-1, self.weight.shape[axis] // (1 if axis else self.groups)))
        found = self._run(variance, squares.mean(axis + 1), None)
        outputs = self.weight.shape[1] if axis else self.weight.shape[0] // self.groups
        return None, found.unsqueeze(2).expand(-1, -1, outputs, *[-1] * (found.ndim - 2)).flatten(1, 2)

    def beside(
        self,
        mean: Tensor,
        second: Tensor,
        noise: tuple[Tensor, Tensor] | None = None,
        carried: _Carried | None = None,
    ) -> Beside:
        """How far neighbouring outputs are apart, from place to place.

        Args:
            mean: Mean of the inputs.
            second: Their second moment.
            noise: Variance of the inputs, and how neighbours are correlated.
            carried: What their noise makes of the outputs.
        """
        assert self.variance is not None
        channels, taps = in_shares(self.variance.sum(0, keepdim=True))
        bands = Bands(self.window, taps)
        bias = 0 if self.bias_variance is None else self.bias_variance.sum()
        alone, mean = mixed(second, channels), mean if mean.shape[1] == 1 else mean * channels.sqrt()
        common = None if noise is None else (noise[0] * (noise[1] * channels)).sum(1, keepdim=True)

        def apart(axis: int, steps: Sequence[int]) -> Tensor:
            size = mean.shape[axis] - 1
            product = mean.narrow(axis, 0, size) * mean.narrow(axis, 1, size)
            product = product if product.shape[1] == 1 else product.sum(1, keepdim=True)
            if common is not None:
                product = product + common.narrow(axis, 0, size)
            variance = bands.of_two(alone, axis - 2, steps)
            difference = variance - bands.of_pairs(product, axis - 2, steps)
            if carried is not None:
                there = carried.where(axis - 2, steps)
                difference = torch.addcmul(difference, there, carried.variance - carried.covariance)
                variance = torch.addcmul(variance, there, carried.variance)
            return (difference / (0.5 * variance + (0.5 * bias + 1e-30))).clamp(0, 2)

        return apart

    def known_beside(self, variance: Tensor) -> bool:
        """Whether the covariance of neighbours is followed from place to place."""
        plain = self.variance is not None and self.window.separable and self.groups == 1
        return plain and set(self.strides) == {1} and min(variance.shape[2:]) > 1

    def average(self, x: Tensor) -> Tensor:
        """Mean of what the taps read, (B, i)."""
        return (x.flatten(2) @ (self.window.read.flatten().unsqueeze(-1) / self.window.read.numel())).squeeze(-1)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self.function(x, weight, bias, *self.rest, **self.kwargs)
        return result


@dataclass(frozen=True)
class _Carried:
    """What the noise of the inputs makes of the outputs.

    Attributes:
        where: The mean of two places where it arrives: takes axis and steps.
        variance: What it gives to the outputs' variance there, summed over the channels.
        covariance: What it gives to the covariance of neighbours.
    """

    where: Callable[..., Tensor]
    variance: Tensor
    covariance: Tensor


def _check(x: Any, example: Tensor, weight: Tensor) -> None:
    if isinstance(x, Uncertain) and x.axis != 1:
        raise CannotFollowError("channels on another axis than 1")
    if example.ndim != weight.ndim:
        raise CannotFollowError("an input without a batch axis")


def _several(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def _dense(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """The weight as (o, i, taps), with zeros between groups."""
    flat = weight.flatten(2)
    if transposed:
        flat = torch.cat([part.transpose(0, 1) for part in flat.chunk(groups)])
    if groups == 1:
        return flat
    return torch.stack([torch.block_diag(*tap.chunk(groups)) for tap in flat.unbind(-1)], -1)

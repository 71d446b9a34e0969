r"""Convolutions: one weight for all positions, so the noise of a channel is common to its positions.

For independent weights and inputs with mean m, variance v, the variance at each position is

.. math:: Var[y] = op(m^2 + v, \sigma^2) + op(v, \mu^2),

exact if the inputs are uncorrelated. They are not: the second term is scaled, for each channel, by what the covariance
within the window makes of it. The covariance of two outputs p, p' of one channel from this layer's own weights is
:math:`\sum \sigma^2_{iq} E[x_{p+q} x_{p'+q}]`. Averaged over all pairs it is :math:`\sum \sigma^2_{iq} E[\bar x_q^2]`
with the mean :math:`\bar x_q` of what a tap reads, over neighbours it takes their mean product.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import Split
from ..registry import CannotFollowError, Operation, rule
from ..state import Uncertain, total_variance
from .linear import parts_of

__all__: list[str] = []


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(operation: Operation) -> Uncertain:
    """A convolution of any kind."""
    x, layer = operation.args[0], _Convolution(operation)
    if not isinstance(x, Uncertain):
        fresh = layer.fresh(x, x.square(), layer.average(x).square(), Uncertain.of(x).products(x, layer.strides))
        if layer.known_beside(fresh.mean):
            fresh = replace(fresh, beside=tuple(layer.beside(axis, fresh.variance, x) for axis in range(2, x.ndim)))
        return fresh
    return layer.carry(x)


class _Convolution:
    """Moments through one convolution, with i input channels and o output channels.

    Attributes:
        weight, bias, variance, bias_variance: Of the posterior; None where there is none.
        strides: Steps between neighbours of the output.
    """

    def __init__(self, operation: Operation) -> None:
        x = operation.args[0]
        weight, self.variance = parts_of(operation.weight(1, "weight"))
        self.bias, self.bias_variance = parts_of(operation.weight(2, "bias"))
        assert weight is not None
        self.weight = weight
        example = x.mean if isinstance(x, Uncertain) else x
        _check(x, example, weight)
        self.spatial = tuple(example.shape[2:])
        self.function, self.rest, self.kwargs = operation.function, operation.args[3:], dict(operation.kwargs)
        self.kwargs.pop("bias", None)
        self.transposed = "transpose" in operation.name
        self.strides = [1] if self.transposed else _several(operation.get(3, "stride", 1))
        self.groups = operation.get(6, "groups", 1)

    def fresh(self, x: Tensor, second: Tensor, common: Tensor, products: Tensor) -> Uncertain:
        """Mean, and the noise that this layer's own weights make.

        Args:
            x: Mean of the input.
            second: Its second moment.
            common: Second moment of the mean over the positions.
            products: Mean product of neighbours.
        """
        mean = self._run(x, self.weight, self.bias)
        shared = near = mean.new_zeros((1, mean.shape[1]))
        variance = torch.zeros((), dtype=mean.dtype, device=mean.device)
        if self.variance is not None:
            # sigma^2 summed over the taps, (i, o), for the means of all pairs and of neighbours
            own = _dense(self.variance, self.groups, self.transposed)
            variance = self._run(second, self.variance, self.bias_variance)
            shared, near = common @ own.sum(-1).t(), products @ (own @ self.pairs.diagonal()).t()
        elif self.bias_variance is not None:
            variance = self.bias_variance.view(-1, *[1] * (mean.ndim - 2))
        if self.bias_variance is not None:
            shared, near = shared + self.bias_variance, near + self.bias_variance
        return Uncertain(mean, variance.expand_as(mean), shared, (), near)

    def carry(self, x: Uncertain) -> Uncertain:
        """The moments for an input with noise of its own."""
        std = x.sampled(x.variance).sqrt()
        coverage = x.mean_of(std * x.sampled(self.read)) / x.mean_of(std).clamp_min(1e-15)
        total, own, terms = x.average(x.variance), x.own * coverage.square(), tuple(t.scaled(coverage) for t in x.terms)
        shared = total_variance(own, terms)
        second = torch.addcmul(x.variance, x.mean, x.mean)
        products = x.products(x.mean, self.strides) + x.near
        fresh = self.fresh(x.mean, second, self.average(x.mean).square() + shared, products)
        taps = _dense(self.weight, self.groups, self.transposed)
        matrix = taps.sum(-1)
        if self.groups > 1 and self.groups == matrix.shape[0] == matrix.shape[1]:
            factor = matrix.diagonal()
            own, terms = fresh.own + own * factor.square(), tuple(t.scaled(factor) for t in terms)
        else:
            split = Split.of(matrix, self.hits.numel() * matrix.shape[0])
            own, terms = split.carry(own, terms, shared, fresh.own)
        # Sum of squares, and square of the sum, of the taps that read inside, (i, o)
        alone = (taps.square() @ self.pairs.diagonal()).t()
        together = ((taps @ self.pairs) * taps).sum(-1).t()
        everywhere = total_variance(own, terms)  # the noise of this layer included
        nearby = (x.near - shared).clamp_min(0) @ together + (everywhere - fresh.own)
        local = (total - torch.maximum(x.near, shared)).clamp_min(0) @ alone + nearby
        spread = self.spread(x.variance)
        variance = torch.addcmul(fresh.variance, spread, fresh.along(local))
        beside = None
        if self.known_beside(variance):
            alike = x.along(0.5 + 0.5 * (x.near / total.clamp_min(1e-30)).clamp(0, 1))
            both = fresh.along((0.5 * local + 0.5 * nearby).sum(1, keepdim=True))
            beside = tuple(
                self.beside(axis, variance, x.mean, _of_two(x.variance, axis) * alike, _of_two(spread, axis) * both)
                for axis in range(2, variance.ndim)
            )
        return replace(fresh, variance=variance, beside=beside, own=own, terms=terms, near=fresh.near + nearby)

    def spread(self, variance: Tensor) -> Tensor:
        """Where in the outputs the noise of the inputs arrives, with a mean of one, shape (B, 1, ...) or (B, o, ...).

        Channels differ by how much they carry, hardly by where: the outputs of a group are taken as one.
        """
        axis = 1 if self.transposed else 0
        squares = self.weight.square().unflatten(axis, (-1, self.weight.shape[axis] // (1 if axis else self.groups)))
        found = self._run(variance, squares.mean(axis + 1), None)
        found = found / found.mean(tuple(range(2, found.ndim)), keepdim=True).clamp_min(1e-30)
        if self.groups == 1:
            return found
        outputs = self.weight.shape[1] if axis else self.weight.shape[0] // self.groups
        return found.unsqueeze(2).expand(-1, -1, outputs, *[-1] * len(self.spatial)).flatten(1, 2)

    def beside(self, axis: int, variance: Tensor, mean: Tensor, noise: Any = 0, carried: Any = 0) -> Tensor:
        """How an output is correlated with the next along an axis, from place to place.

        The mean of two outputs is the output for the mean of two inputs, but at the edges.

        Args:
            axis: The axis.
            variance: Of the outputs.
            mean: Mean of the inputs.
            noise: Variance of the mean of two inputs.
            carried: The part of the outputs' mean that comes from the noise of the inputs.
        """
        assert self.variance is not None
        bias = None if self.bias_variance is None else self.bias_variance.sum().view(1)
        together = self._run(_of_two(mean, axis).square() + noise, self.variance.sum(0, keepdim=True), bias) + carried
        share = 2 * together / _of_two(variance.sum(1, keepdim=True), axis).clamp_min(1e-30) - 1
        last = [0, int(axis == variance.ndim - 1), 0, int(axis == variance.ndim - 2), 0, int(axis == variance.ndim - 3)]
        return F.pad(share.clamp(0, 1), last[: 2 * len(self.spatial)], mode="replicate")

    def known_beside(self, variance: Tensor) -> bool:
        """Whether the correlation of neighbours is followed from place to place."""
        plain = self.variance is not None and not self.transposed and self.groups == 1
        return plain and set(self.strides) == {1} and min(variance.shape[2:]) > 1

    def average(self, x: Tensor) -> Tensor:
        """Mean of what the taps read, (B, i)."""
        return (x.flatten(2) @ self.read.flatten().unsqueeze(-1)).squeeze(-1) / self.read.numel()

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = self.function(x, weight, bias, *self.rest, **self.kwargs)
        return result

    def _one_channel(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of one channel, without groups."""
        rest, kwargs = list(self.rest), {key: value for key, value in self.kwargs.items() if key != "groups"}
        rest[3:4] = [1] if len(rest) > 3 else []
        result: Tensor = self.function(x, weight, None, *rest, **kwargs)
        return result

    @cached_property
    def hits(self) -> Tensor:
        """Which tap reads inside of the input at which output position: (taps, positions), zeros and ones."""
        kernel = self.weight.shape[2:]
        count = kernel.numel()
        eye = torch.eye(count, dtype=self.weight.dtype, device=self.weight.device)
        shape = (1, count, *kernel) if self.transposed else (count, 1, *kernel)
        return self._one_channel(self.weight.new_ones(1, 1, *self.spatial), eye.view(shape))[0].flatten(1)

    @cached_property
    def pairs(self) -> Tensor:
        """How often two taps both read inside."""
        return self.hits @ self.hits.t() / self.hits.shape[1]

    @cached_property
    def read(self) -> Tensor:
        """How much the taps read each input position, one where all of them do: edges count less."""
        size = self.weight.square().mean((0, 1), keepdim=True).sqrt()
        with torch.enable_grad():
            probe = self.weight.new_ones(1, 1, *self.spatial).requires_grad_()
            mean = self._one_channel(probe, (size / size.sum().clamp_min(1e-30)).detach()).mean()
            return torch.autograd.grad(mean, probe)[0] * probe.numel()


def _of_two(x: Tensor, axis: int) -> Tensor:
    """Mean of an element and the next along an axis."""
    size = x.shape[axis] - 1
    return 0.5 * (x.narrow(axis, 0, size) + x.narrow(axis, 1, size))


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

r"""Convolutions: one weight for all positions, so the noise of a channel is common to its positions.

For independent weights and inputs with mean m, variance v, the variance at each position is

.. math:: Var[y] = op(m^2 + v, \sigma^2) + op(v, \mu^2),

exact if the inputs are uncorrelated. They are not: the second term is scaled, for each channel, by what the covariance
within the window makes of it. The covariance of two outputs p, p' of one channel from this layer's own weights is
:math:`\sum \sigma^2_{iq} E[x_{p+q} x_{p'+q}]`. Averaged over all pairs it is :math:`\sum \sigma^2_{iq} E[\bar x_q^2]`
with the mean :math:`\bar x_q` of what a tap reads, over neighbours it takes their mean product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..features import FeatureMap, FeatureScale
from ..registry import CannotFollowError, Operation, layer
from ..state import Uncertain, Weight, total_variance

__all__ = ["ConvolutionMoments", "parts_of"]


@layer("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(operation: Operation) -> nn.Module:
    """A convolution of any kind."""
    return ConvolutionMoments(operation)


class ConvolutionMoments(nn.Module):
    """Moments through one convolution.

    Buffers, where i are input channels, o output channels:
        weight, bias, variance, bias_variance: Of the posterior; None where there is none.
        read: How much the taps read each input position, one where all of them do: edges count less.
        own_common, own_near: sigma^2 summed over the taps, (i, o), for the means of all pairs and of neighbours.
        square: mu^2.
        alone, together: Sum of squares and square of the sum of the taps that read inside, (i, o).
    """

    weight: Tensor
    bias: Tensor | None
    variance: Tensor | None
    bias_variance: Tensor | None
    read: Tensor
    own_common: Tensor
    own_near: Tensor
    square: Tensor
    alone: Tensor
    together: Tensor

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        x = operation.args[0]
        weight, variance = parts_of(operation.weight(1, "weight"))
        bias, bias_variance = parts_of(operation.weight(2, "bias"))
        assert weight is not None
        example = x.mean if isinstance(x, Uncertain) else x
        _check(x, example, weight)
        self.function, self.rest, self.kwargs = operation.function, operation.args[3:], dict(operation.kwargs)
        self.kwargs.pop("bias", None)
        self.transposed = "transpose" in operation.name
        self.strides = [1] if self.transposed else _several(operation.get(3, "stride", 1))
        groups = operation.get(6, "groups", 1)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("variance", variance)
        self.register_buffer("bias_variance", bias_variance)
        hits = self._hits(example)
        pairs = hits @ hits.t() / hits.shape[1]
        self.register_buffer("read", self._read(example))
        if variance is not None:
            own = _dense(variance, groups, self.transposed)
            self.register_buffer("own_common", own.sum(-1).t().contiguous())
            self.register_buffer("own_near", (own @ pairs.diagonal()).t().contiguous())
        if isinstance(x, Uncertain):
            taps = _dense(weight, groups, self.transposed)
            self.register_buffer("square", weight.square())
            self.register_buffer("alone", (taps.square() @ pairs.diagonal()).t().contiguous())
            self.register_buffer("together", ((taps @ pairs) * taps).sum(-1).t().contiguous())
            matrix = taps.sum(-1)
            one_each = groups > 1 and groups == matrix.shape[0] == matrix.shape[1]
            work = hits.numel() * matrix.shape[0]
            self.features = FeatureScale(matrix.diagonal()) if one_each else FeatureMap(matrix, x.terms, work)

    def forward(self, x: Uncertain | Tensor, *_: Any, **__: Any) -> Uncertain:
        """The moments of the convolution's output."""
        if not isinstance(x, Uncertain):
            common = self._average(x).square()
            return self._fresh(x, x.square(), common, lambda: Uncertain.of(x).products(x, self.strides))
        std = x.sampled(x.variance).sqrt()
        coverage = x.mean_of(std * x.sampled(self.read)) / x.mean_of(std).clamp_min(1e-15)
        total, own, terms = x.average(x.variance), x.own * coverage.square(), [t.scaled(coverage) for t in x.terms]
        shared = total_variance(own, terms)
        second = torch.addcmul(x.variance, x.mean, x.mean)
        fresh = self._fresh(
            x.mean,
            second,
            self._average(x.mean).square() + shared,
            lambda: x.products(x.mean, self.strides) + x.near,
        )
        own, terms = self.features(own, terms, shared, fresh.own)
        everywhere = total_variance(own, terms)  # the noise of this layer included
        nearby = (x.near - shared).clamp_min(0) @ self.together + (everywhere - fresh.own)
        local = (total - torch.maximum(x.near, shared)).clamp_min(0) @ self.alone + nearby
        ratio = local / (total @ self.alone).clamp_min(1e-30)
        variance = torch.addcmul(fresh.variance, self._run(x.variance, self.square, None), fresh.along(ratio))
        return Uncertain(fresh.mean, variance, own, tuple(terms), fresh.near + nearby)

    def _fresh(self, x: Tensor, second: Tensor, common: Tensor, products: Any) -> Uncertain:
        """Mean, and the noise that this layer's own weights make.

        Args:
            x: Mean of the input.
            second: Its second moment.
            common: Second moment of the mean over the positions.
            products: Gives the mean product of neighbours.
        """
        mean = self._run(x, self.weight, self.bias)
        none = mean.new_zeros((1, mean.shape[1]))
        variance, shared, near = torch.zeros((), dtype=mean.dtype, device=mean.device), none, none
        if self.variance is not None:
            variance = self._run(second, self.variance, self.bias_variance)
            shared, near = common @ self.own_common, products() @ self.own_near
        elif self.bias_variance is not None:
            variance = self.bias_variance.view(-1, *[1] * (mean.ndim - 2))
        if self.bias_variance is not None:
            shared, near = shared + self.bias_variance, near + self.bias_variance
        return Uncertain(mean, variance.expand_as(mean), shared, (), near)

    def _average(self, x: Tensor) -> Tensor:
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

    def _hits(self, example: Tensor) -> Tensor:
        """Which tap reads inside of the input at which output position: (taps, positions), zeros and ones."""
        kernel = self.weight.shape[2:]
        count = kernel.numel()
        eye = torch.eye(count, dtype=example.dtype, device=example.device)
        shape = (1, count, *kernel) if self.transposed else (count, 1, *kernel)
        return self._one_channel(torch.ones_like(example[:1, :1]), eye.view(shape))[0].flatten(1)

    def _read(self, example: Tensor) -> Tensor:
        size = self.weight.square().mean((0, 1), keepdim=True).sqrt()
        with torch.enable_grad():
            probe = torch.ones_like(example[:1, :1]).requires_grad_()
            mean = self._one_channel(probe, (size / size.sum().clamp_min(1e-30)).detach()).mean()
            return torch.autograd.grad(mean, probe)[0] * probe.numel()


def parts_of(weight: Any) -> tuple[Tensor | None, Tensor | None]:
    """Mean and variance of a weight; no variance where it has no posterior."""
    return (weight.mean, weight.variance) if isinstance(weight, Weight) else (weight, None)


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

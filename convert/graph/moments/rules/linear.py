r"""Linear layers: y = W x + b with independent weights and an uncertain x.

.. math:: Var[y] = \sigma^2 (m^2 + v) + \sigma_b^2 + diag(W\,Cov[x]\,W^T)

(Wu et al. 2019, "Deterministic Variational Inference for Robust Bayesian Neural Networks", section 3.1), where Cov[x]
goes through W as :mod:`convert.graph.moments.features` says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..features import Split, at_random, carried, pairs_of_latents
from ..registry import CannotFollowError, Operation, rule
from ..state import Term, Uncertain, Weight, total_variance

__all__ = ["affine", "parts_of"]


@rule("linear")
def linear(operation: Operation) -> Uncertain:
    """``linear(x, weight, bias)``."""
    x, weight, bias = operation.args[0], operation.weight(1, "weight"), operation.weight(2, "bias")
    if not isinstance(x, Uncertain):
        return _Linear(weight, bias).known(x)
    if x.axis != x.ndim - 1:
        raise CannotFollowError("features on another axis than the last")
    layer = _Linear(weight, bias)
    if x.folded > 1:
        return layer.folded(x)
    return layer.positions(x) if x.has_positions else layer.vector(x)


@rule("matmul", "mm")
def matmul(operation: Operation) -> Uncertain:
    """``x @ weight``."""
    return _product(operation, operation.args[0], operation.weight(1, "weight"), None)


@rule("addmm")
def addmm(operation: Operation) -> Uncertain:
    """``bias + x @ weight``."""
    if operation.kwargs or isinstance(operation.args[0], Uncertain):
        raise CannotFollowError("a sum of more than bias and product")
    return _product(operation, operation.args[1], operation.weight(2, "mat2"), operation.args[0])


def _product(operation: Operation, x: Any, weight: Any, bias: Any) -> Uncertain:
    if isinstance(x, Weight) or weight is None or weight.ndim != 2:
        raise CannotFollowError("a product that is not activation times matrix")
    transposed = Weight(weight.path, weight.mean.t(), weight.variance.t()) if isinstance(weight, Weight) else weight.t()
    return linear(Operation("linear", operation.function, (x, transposed, bias), {}))


def parts_of(weight: Any) -> tuple[Tensor | None, Tensor | None]:
    """Mean and variance of a weight; no variance where it has no posterior."""
    return (weight.mean, weight.variance) if isinstance(weight, Weight) else (weight, None)


class _Linear:
    """Moments through a linear layer."""

    def __init__(self, weight: Any, bias: Any) -> None:
        matrix, variance = parts_of(weight)
        assert matrix is not None
        self.matrix, self.weight = matrix, matrix.t().contiguous()
        self.variance = None if variance is None else variance.t().contiguous()
        self.bias, self.bias_variance = parts_of(bias)

    def known(self, x: Tensor) -> Uncertain:
        """Of an input without noise."""
        mean = affine(x, self.weight, self.bias)
        fresh = self._fresh(x.square()).expand_as(mean)
        if x.ndim == 2:
            return Uncertain.without_positions(mean, fresh, ())
        known = Uncertain.of(x, x.ndim - 1)
        common, near = self._shared(known.average(x).square(), known.products(x))
        return Uncertain(mean, fresh, common, (), near, axis=mean.ndim - 1)

    def vector(self, x: Uncertain) -> Uncertain:
        """Of one vector for each example."""
        split = Split.of(self.matrix, len(self.matrix))
        mean, own = affine(x.mean, self.weight, self.bias), self._fresh(_second(x))
        alone, terms = split.carry(x.own, x.terms, x.variance, own)
        assert alone is not None
        return Uncertain.without_positions(mean, alone, terms)

    def positions(self, x: Uncertain) -> Uncertain:
        """Of one vector for each position, as a convolution with a window of one."""
        mean, square = affine(x.mean, self.weight, self.bias), self.weight.square()
        total, shared = x.average(x.variance), x.common()
        common, near = self._shared(x.average(x.mean).square() + shared, x.products(x.mean) + x.near)
        work = x.mean[0].numel() // len(self.weight) * len(self.matrix)
        kept, terms = Split.of(self.matrix, work).carry(x.own, x.terms, shared)
        everywhere = total_variance(kept, terms)
        own = common if kept is None else common + kept
        local = (total - shared).clamp_min(0) @ square + everywhere
        result = Uncertain(mean, mean, own, terms, near, axis=mean.ndim - 1)
        ratio = result.along(local / (total @ square).clamp_min(1e-30))
        variance = self._fresh(_second(x)) + (x.variance @ square) * ratio
        nearby = (x.near - shared).clamp_min(0) @ square + everywhere
        return replace(result, variance=variance, near=near + nearby)

    def folded(self, x: Uncertain) -> Uncertain:
        """Of flattened channels: what is common to the positions of a channel, and the rest of each."""
        split = Split.of(self.matrix, len(self.matrix))
        project, shared = split.project.unflatten(1, (-1, x.folded)).sum(-1), x.common()
        wide = x.variance.unflatten(1, (-1, x.folded))
        # The common variance counts each element with itself, too; what is left is the covariance of two positions.
        excess = ((wide.mean(-1) - shared) * (1 / (x.folded - 1))).clamp_min(0)
        apart = (shared - excess).clamp_min(0)
        alone = (wide - apart.unsqueeze(-1)).clamp_min(0).flatten(1)
        latent = alone @ pairs_of_latents(split.project)
        latent = torch.addmm(latent, (x.own - excess).clamp_min(0), pairs_of_latents(project))
        if x.terms:
            latent = latent + carried(project, x.terms)
        own = self._fresh(_second(x))
        if split.residual is not None:
            together = split.residual.unflatten(1, (-1, x.folded)).sum(-1)
            own = at_random((alone, split.residual), (apart, together), onto=own)
        mean = affine(x.mean, self.weight, self.bias)
        return Uncertain.without_positions(mean, own, (Term(split.basis, latent),))

    def _fresh(self, second: Tensor) -> Tensor:
        """Variance from this layer's own weights, by the second moment of what they read."""
        if self.variance is None:
            bias = self.weight.new_zeros(len(self.matrix)) if self.bias_variance is None else self.bias_variance
            return bias.expand(*[1] * (second.ndim - 1), -1)
        return affine(second, self.variance, self.bias_variance)

    def _shared(self, square: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance between positions from this layer's own weights: of all pairs, and of neighbours."""
        common = near = self.weight.new_zeros(1, self.weight.shape[1])
        if self.variance is not None:
            return affine(square, self.variance, self.bias_variance), affine(product, self.variance, self.bias_variance)
        shift = 0 if self.bias_variance is None else self.bias_variance
        return common + shift, near + shift


def _second(x: Uncertain) -> Tensor:
    return torch.addcmul(x.variance, x.mean, x.mean)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight + bias``."""
    if bias is None:
        return x @ weight
    return torch.addmm(bias, x, weight) if x.ndim == 2 else x @ weight + bias

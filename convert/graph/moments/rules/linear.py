r"""Linear layers: y = W x + b with independent weights and an uncertain x.

.. math:: Var[y] = \sigma^2 (m^2 + v) + \sigma_b^2 + diag(W\,Cov[x]\,W^T)

(Wu et al. 2019, "Deterministic Variational Inference for Robust Bayesian Neural Networks", section 3.1), where Cov[x]
goes through W as :mod:`convert.graph.moments.features` says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..features import FeatureMap, crossing, pairs_of_latents
from ..registry import CannotFollowError, Operation, layer
from ..state import Term, Uncertain, Weight, total_variance
from .convolution import parts_of

__all__ = ["LinearMoments"]


@layer("linear")
def linear(operation: Operation) -> nn.Module:
    """``linear(x, weight, bias)``."""
    x, weight, bias = operation.args[0], operation.weight(1, "weight"), operation.weight(2, "bias")
    if not isinstance(x, Uncertain):
        return LinearMoments(x, weight, bias)
    if x.axis != x.ndim - 1:
        raise CannotFollowError("features on another axis than the last")
    if x.folded > 1:
        return FoldedLinearMoments(x, weight, bias)
    return LinearMoments(x, weight, bias)


@layer("matmul", "mm")
def matmul(operation: Operation) -> nn.Module:
    """``x @ weight``."""
    weight = operation.weight(1, "weight")
    if isinstance(operation.args[0], Weight) or weight is None or weight.ndim != 2:
        raise CannotFollowError("a product that is not activation times matrix")
    transposed = Weight(weight.path, weight.mean.t(), weight.variance.t()) if isinstance(weight, Weight) else weight.t()
    return linear(Operation("linear", operation.function, (operation.args[0], transposed, None), {}))


@layer("addmm")
def addmm(operation: Operation) -> nn.Module:
    """``bias + x @ weight``."""
    if operation.kwargs or isinstance(operation.args[0], Uncertain):
        raise CannotFollowError("a sum of more than bias and product")
    found: Any = matmul(Operation("matmul", operation.function, operation.args[1:3], {}))
    shift, shift_variance = parts_of(operation.args[0])
    found.bias, found.bias_variance = shift, shift_variance
    return _SecondOperand(found)


class _SecondOperand(nn.Module):
    """A layer whose activation is the second operand."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, bias: Any, x: Any, *_: Any) -> Any:
        """The layer."""
        return self.inner(x)


class LinearMoments(nn.Module):
    """Moments through a linear layer, of one vector for each example or of one for each position."""

    weight: Tensor
    bias: Tensor | None
    variance: Tensor | None
    bias_variance: Tensor | None
    square: Tensor

    def __init__(self, x: Any, weight: Any, bias: Any) -> None:
        super().__init__()
        matrix, variance = parts_of(weight)
        shift, shift_variance = parts_of(bias)
        assert matrix is not None
        self.register_buffer("weight", matrix.t().contiguous())
        self.register_buffer("bias", shift)
        self.register_buffer("variance", None if variance is None else variance.t().contiguous())
        self.register_buffer("bias_variance", shift_variance)
        if isinstance(x, Uncertain):
            work = x.mean[0].numel() // matrix.shape[1] * matrix.shape[0]
            self.features = FeatureMap(matrix, () if x.folded > 1 else x.terms, work)
            if x.has_positions:
                self.register_buffer("square", matrix.square().t().contiguous())

    def forward(self, x: Uncertain | Tensor, *_: Any, **__: Any) -> Uncertain:
        """The moments of the layer's output."""
        mean, fresh = self._mean(x), self._fresh(x)
        if not isinstance(x, Uncertain):
            if x.ndim == 2:
                return Uncertain.without_positions(mean, fresh.expand_as(mean), ())
            known = Uncertain.of(x, x.ndim - 1)
            common, near = self._shared(known.average(x).square(), known.products(x))
            return Uncertain(mean, fresh.expand_as(mean), common, (), near, axis=mean.ndim - 1)
        if not x.has_positions:
            own, terms = self.features(x.own, x.terms, x.variance, fresh)
            return Uncertain.without_positions(mean, own, terms)
        return self._positions(x, mean, fresh)

    def _mean(self, x: Uncertain | Tensor) -> Tensor:
        return _affine(x.mean if isinstance(x, Uncertain) else x, self.weight, self.bias)

    def _fresh(self, x: Uncertain | Tensor) -> Tensor:
        """Variance from this layer's own weights at each position."""
        if self.variance is None:
            return self.weight.new_zeros(1) if self.bias_variance is None else self.bias_variance
        second = torch.addcmul(x.variance, x.mean, x.mean) if isinstance(x, Uncertain) else x.square()
        return _affine(second, self.variance, self.bias_variance)

    def _shared(self, square: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance between positions from this layer's own weights: of all pairs, and of neighbours."""
        common = near = self.weight.new_zeros(1, self.weight.shape[1])
        if self.variance is not None:
            common, near = square @ self.variance, product @ self.variance
        return (
            (common, near) if self.bias_variance is None else (common + self.bias_variance, near + self.bias_variance)
        )

    def _positions(self, x: Uncertain, mean: Tensor, fresh: Tensor) -> Uncertain:
        """One layer for every position, as a convolution with a window of one."""
        total, shared = x.average(x.variance), x.common()
        fresh_common, fresh_near = self._shared(x.average(x.mean).square() + shared, x.products(x.mean) + x.near)
        own, terms = self.features(x.own, x.terms, shared, fresh_common)
        everywhere = total_variance(own, terms) - fresh_common
        local = (total - shared).clamp_min(0) @ self.square + everywhere
        near = (x.near - shared).clamp_min(0) @ self.square + everywhere
        ratio = local / (total @ self.square).clamp_min(1e-30)
        variance = (x.variance @ self.square) * ratio.view(ratio.shape[0], *[1] * (mean.ndim - 2), -1) + fresh
        return Uncertain(mean, variance, own, terms, fresh_near + near, axis=mean.ndim - 1)


class FoldedLinearMoments(LinearMoments):
    """A linear layer on flattened channels: what is common to the positions of a channel, and the rest of each."""

    pairs_summed: Tensor
    rest_summed: Tensor

    def __init__(self, x: Uncertain, weight: Any, bias: Any) -> None:
        super().__init__(x, weight, bias)
        parts = (self.features.project, self.features.residual)
        project, rest = (part.unflatten(1, (-1, x.folded)).sum(-1) for part in parts)
        self.register_buffer("pairs_summed", pairs_of_latents(project))
        self.register_buffer("rest_summed", rest.square().t().contiguous())
        for index, term in enumerate(x.terms):
            self.features.register_buffer(f"cross_{index}", crossing(project, term.basis.columns))

    def forward(self, x: Uncertain | Tensor, *_: Any, **__: Any) -> Uncertain:
        """The moments of the layer's output."""
        assert isinstance(x, Uncertain)
        features, shared = self.features, x.common()
        # The common variance counts each element with itself, too; what is left is the covariance of two positions.
        excess = ((x.average(x.variance) - shared) / (x.folded - 1)).clamp_min(0)
        apart = (shared - excess).clamp_min(0)
        alone = (x.variance - x.along(apart)).clamp_min(0)
        latent = alone @ features.pairs + (x.own - excess).clamp_min(0) @ self.pairs_summed
        carried = features.carried(x.terms)
        if carried is not None:
            latent = latent + carried
        own = self._fresh(x) + apart @ self.rest_summed
        if features.rest is not None:
            own = own + alone @ features.rest
        return Uncertain.without_positions(self._mean(x), own, (Term(features.basis, latent),))


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return x @ weight
    return torch.addmm(bias, x, weight) if x.ndim == 2 else x @ weight + bias

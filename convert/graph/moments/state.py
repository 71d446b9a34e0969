r"""What is known about an activation whose weights are uncertain: mean, variance, and which elements vary together.

An activation of one example has features (the channels of a convolution, the units of a linear layer) and positions.
One weight serves every position, so the noise of a channel is largely common to all of its positions, and the noise
of one layer reaches every feature of the next. For feature c, averaged over the positions, the covariance is kept as

.. math:: Cov[c, c'] = \delta_{cc'}\,\kappa_c + \sum_t (L_t M_t L_t^T)_{cc'}

``own`` is :math:`\kappa`; each term has loadings L (features x latents), a gain per example and
feature times fixed columns, and a small covariance M of its latents.
``near`` is the covariance of an element with its next neighbour in the same channel, averaged over the positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Basis", "Beside", "Term", "Uncertain", "Weight", "total_variance"]

#: How far an element and the next along an axis are apart: twice the variance of their difference over the sum of their
#: variances, taken over all channels, at every so many-th place of each axis of the positions but the last place, which
#: has no partner: ``beside(axis, steps)`` has shape (B, 1, ...). Computed where somebody asks for it.
Beside = Callable[[int, Sequence[int]], Tensor]

#: Averages over positions that only tell how noise is spread are taken over about as many as this.
ENOUGH_POSITIONS = 200


@dataclass(frozen=True)
class Basis:
    """Directions in the space of features, the same for all examples.

    Attributes:
        columns: The directions, shape (C, r).
        products: For each pair of latents i <= j the product of their columns, twice it where i < j, shape (pairs, C).
        unpack: Zeros and ones that make a full matrix of the pairs, shape (pairs, r * r); a product with it is faster
            than an index.
    """

    columns: Tensor
    products: Tensor
    unpack: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> Basis:
        """The basis with these columns."""
        rank = columns.shape[1]
        i, j = torch.triu_indices(rank, rank, device=columns.device)
        products = (columns[:, i] * columns[:, j] * torch.where(i == j, 1.0, 2.0)).t().contiguous()
        unpack, number = columns.new_zeros(len(i), rank, rank), torch.arange(len(i), device=columns.device)
        unpack[number, i, j] = unpack[number, j, i] = 1
        return cls(columns.contiguous(), products.to(columns.dtype), unpack.flatten(1))


@dataclass(frozen=True)
class Term:
    """Noise that several features share: ``gain * (columns @ z)`` with ``z ~ N(0, M)``.

    Attributes:
        basis: The columns.
        packed: The covariance M of the latents, its upper triangle row by row, shape (B, pairs).
        gain: A factor per feature, shape (B, C) or (C,); None for one.
    """

    basis: Basis
    packed: Tensor
    gain: Tensor | None = None

    def scaled(self, factor: Tensor) -> Term:
        """The noise times a factor per feature, shape (B, C) or (C,)."""
        return replace(self, gain=factor if self.gain is None else self.gain * factor)

    def variance(self, onto: Tensor | None = None) -> Tensor:
        """Variance of each feature, added to another, shape (B, C)."""
        if self.gain is not None:
            variance = (self.packed @ self.basis.products) * self.gain.square()
            return variance if onto is None else onto + variance
        products = self.basis.products
        return self.packed @ products if onto is None else torch.addmm(onto, self.packed, products)

    def covariance(self) -> Tensor:
        """M as a matrix, shape (B, r, r)."""
        rank = self.basis.columns.shape[1]
        return (self.packed @ self.basis.unpack).unflatten(-1, (rank, rank))


@dataclass(frozen=True)
class Uncertain:
    """An activation that varies with the weights.

    Attributes:
        mean: Mean, shape (B, ...).
        variance: Variance of each element, same shape.
        own: Variance of the positions' mean that each feature has for itself, shape (B, C).
        terms: Noise that features share.
        near: Covariance of an element and its next neighbour, averaged over the positions, shape (B, C).
        axis: The axis of the features; the others but the first are positions.
        folded: Number of positions that a flatten put behind each other along the axis of the features.
        beside: How far neighbours are apart from place to place; None where it is not known.
        halves: Half the sum, and half the difference, of an even place and the next along the last axis, for ``mean``
            and for ``variance``, where the layer that made them gets these as cheaply; for a ``mean`` of its own only.
    """

    mean: Tensor
    variance: Tensor
    own: Tensor
    terms: tuple[Term, ...]
    near: Tensor
    axis: int = 1
    folded: int = 1
    beside: Beside | None = None
    halves: tuple[Tensor, Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]] | None = None

    @classmethod
    def of(cls, tensor: Tensor, axis: int = 1) -> Uncertain:
        """Something known, as an activation without variance."""
        none = tensor.new_zeros((1, tensor.shape[axis]))
        return cls(tensor, torch.zeros_like(tensor), none, (), none, axis)

    @classmethod
    def without_positions(cls, mean: Tensor, own: Tensor, terms: tuple[Term, ...]) -> Uncertain:
        """One vector of features for each example."""
        variance = total_variance(own, terms)
        return cls(mean, variance, own, terms, variance)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.mean.ndim

    @property
    def has_positions(self) -> bool:
        """Whether a feature has more than one element."""
        return self.mean.ndim > 2 or self.folded > 1

    @property
    def sizes(self) -> list[int]:
        """Number of positions along each of their axes."""
        if self.folded > 1:
            return [self.folded]
        return [self.mean.shape[axis] for axis in range(1, self.ndim) if axis != self.axis]

    def sampled(self, tensor: Tensor) -> Tensor:
        """A tensor like ``mean`` at some of the positions, evenly spread, enough for an average."""
        if self.ndim == 2:
            return tensor
        axis = 2 if self.axis == 1 else 1
        step = max(1, min(self.mean.shape[axis] // 4, math.prod(self.sizes) // ENOUGH_POSITIONS))
        return tensor if step == 1 else tensor[(slice(None),) * axis + (slice(step // 2, None, step),)]

    def mean_of(self, tensor: Tensor) -> Tensor:
        """Mean over the positions of a sampled tensor, shape (B, C)."""
        if self.folded > 1:
            return tensor.unflatten(-1, (-1, self.folded)).mean(-1)
        if tensor.ndim == 2:
            return tensor
        return tensor.mean([axis for axis in range(1, tensor.ndim) if axis != self.axis])

    def average(self, tensor: Tensor) -> Tensor:
        """Mean over the positions of a tensor like ``mean``, shape (B, C)."""
        return self.mean_of(self.sampled(tensor))

    def products(self, tensor: Tensor, steps: Sequence[int] = (1,)) -> Tensor:
        """Mean product of elements some steps apart along the last axis of the positions, shape (B, C)."""
        return self.neighbours(self.sampled(tensor), steps)

    def neighbours(self, tensor: Tensor, steps: Sequence[int] = (1,)) -> Tensor:
        """The same of a sampled tensor."""
        if self.folded > 1 or tensor.ndim == 2:
            return self.mean_of(tensor.square())
        axis = tensor.ndim - 1 if self.axis == 1 else self.axis - 1
        size = tensor.shape[axis]
        step = min(steps[-1], size - 1)
        return self.mean_of(tensor.narrow(axis, 0, size - step) * tensor.narrow(axis, step, size - step))

    def along(self, features: Tensor) -> Tensor:
        """A tensor (B, C), or (C,), in a shape that broadcasts against ``mean``."""
        if self.folded > 1:
            return features.unsqueeze(-1).expand(*[-1] * features.ndim, self.folded).flatten(-2)
        before, after = [None] * (self.axis - 1), [None] * (self.ndim - self.axis - 1)
        batch = [slice(None)] if features.ndim == 2 else []
        return features[(*batch, *before, slice(None), *after)]

    def common(self) -> Tensor:
        """Variance of the mean over the positions, shape (B, C)."""
        return total_variance(self.own, self.terms)

    def scaled(self, factor: Tensor) -> Uncertain:
        """The activation times a known factor per feature, shape (C,)."""
        wide = self.along(factor)
        return replace(
            self,
            mean=self.mean * wide,
            variance=self.variance * wide.square(),
            own=self.own * factor.square(),
            terms=tuple(term.scaled(factor) for term in self.terms),
            near=self.near * factor.square(),
        )


@dataclass(frozen=True)
class Weight:
    """A weight with a posterior: what it is called, its mean and its variance."""

    path: str
    mean: Tensor
    variance: Tensor

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.mean.ndim


def total_variance(own: Tensor | None, terms: Sequence[Term]) -> Tensor:
    """Variance of each feature from what it has for itself, if anything, and what it shares, (B, C)."""
    total = own
    for term in terms:
        total = term.variance(total)
    assert total is not None
    return total

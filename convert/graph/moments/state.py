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
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Basis", "Term", "Uncertain", "Weight", "total_variance"]

#: Averages over positions that only tell how noise is spread are taken over about as many as this.
ENOUGH_POSITIONS = 48


@dataclass(frozen=True)
class Basis:
    """Directions in the space of features, the same for all examples.

    Attributes:
        columns: The directions, shape (C, r).
        products: For each pair of latents i <= j the product of their columns, twice it where i < j, shape (pairs, C).
        places: Where each element of a full r x r matrix is among the pairs, flat.
    """

    columns: Tensor
    products: Tensor
    places: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> Basis:
        """The basis with these columns."""
        rank = columns.shape[1]
        i, j = torch.triu_indices(rank, rank, device=columns.device)
        products = (columns[:, i] * columns[:, j] * torch.where(i == j, 1.0, 2.0)).t().contiguous()
        places = torch.empty(rank, rank, dtype=torch.int64, device=columns.device)
        places[i, j] = places[j, i] = torch.arange(len(i), device=columns.device)
        return cls(columns.contiguous(), products.to(columns.dtype), places.flatten())


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

    def variance(self) -> Tensor:
        """Variance of each feature, shape (B, C)."""
        variance = self.packed @ self.basis.products
        return variance if self.gain is None else variance * self.gain.square()

    def covariance(self) -> Tensor:
        """M as a matrix, shape (B, r, r)."""
        rank = self.basis.columns.shape[1]
        return self.packed.index_select(-1, self.basis.places).unflatten(-1, (rank, rank))


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
        beside: For each axis of the positions the correlation of an element with the next, as it is from place to
            place for all channels, shape (B, 1, ...); None where it is not known.
    """

    mean: Tensor
    variance: Tensor
    own: Tensor
    terms: tuple[Term, ...]
    near: Tensor
    axis: int = 1
    folded: int = 1
    beside: tuple[Tensor, ...] | None = None

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

    def pairs(self, far: Tensor, close: Tensor) -> tuple[Tensor, Tensor]:
        """What elements with themselves, and neighbours, contribute to the common variance, as shares.

        Args:
            far: The common variance over the mean variance, shape (B, C).
            close: The correlation of neighbours, shape (B, C).
        """
        count = math.prod(self.sizes)
        beside = [2 * (size - 1) / size for size in self.sizes]
        diagonal = math.prod(1 + number for number in beside) - 1 - sum(beside)
        near = close * (close * (diagonal / count) + sum(beside) / count)
        inverse = 1 / torch.maximum(far, near + 1 / count)
        return inverse * (1 / count), near * inverse

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


def total_variance(own: Tensor, terms: Sequence[Term]) -> Tensor:
    """Variance of each feature from what it has for itself and what it shares, (B, C)."""
    total = own
    for term in terms:
        total = total + term.variance()
    return total

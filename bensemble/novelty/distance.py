r"""The relative Mahalanobis distance of one layer, or of several together.

For the features x of an input, with one Gaussian for all classes and one for each (Ren et al. 2021, "A Simple Fix to
Mahalanobis Distance for Improving Near-OOD Detection", equation 2, after Lee et al. 2018, "A Simple Unified Framework
for Detecting Out-of-Distribution Samples and Adversarial Attacks"),

.. math:: d(x) = \min_c (x - \mu_c)^T \Sigma^{-1} (x - \mu_c) - (x - \mu_0)^T \Sigma_0^{-1} (x - \mu_0)

Both covariances are shrunk: :math:`\Sigma + .01 \bar\sigma^2 I` with the mean :math:`\bar\sigma^2` of the diagonal.
Where a number of directions is given, both are exact in the span of as many leading directions of the class means and
as many of the spread within classes, and a multiple of the identity in what is left: its mean variance. What the
class means have outside of the span is dropped. So few numbers are kept, and a stranger that leaves the span is told.

With orthonormal directions P that make :math:`\Sigma^{-1} - \Sigma_0^{-1}` in the span diagonal, with eigenvalues w,
and with :math:`z = x - \mu_0`, :math:`p = P z`, :math:`a_c = \Sigma^{-1} (\mu_c - \mu_0)` and the difference r of the
precisions outside of it,

.. math:: d(x) = \min_c \big((\mu_c - \mu_0)^T a_c - 2 a_c^T p\big) + \sum_i w_i\, p_i^2 + r\, |z - P^T p|^2
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .moments import Statistics

__all__ = ["RelativeDistance", "location_and_scale", "varies"]

#: Shrinkage, as a share of the mean variance.
SHRINKAGE = 0.01
#: Least mean variance within classes, as a share of the overall one: classes may collapse to points.
LEAST_WITHIN = 1e-6
#: Least variance, as a share of the squared mean, from which on a layer is no constant but for rounding in float32.
LEAST_OVERALL = 1e-12


class RelativeDistance(nn.Module):
    """The two Gaussians of one layer in the directions that make their difference diagonal, and its standardisation.

    Args:
        size: Number of features k.
        num_classes: Number of classes C.
        kept: Number of directions r, at most k.

    Attributes:
        centre: Overall mean, (k,).
        directions: P, orthonormal rows, (r, k).
        weights: Eigenvalues w of the difference of the precisions, (r,).
        slopes: Sigma^-1 (mu_c - centre) of each class, in the directions, (C, r).
        norms: The squared Mahalanobis distance of each class mean from the centre, (C,).
        rest: The difference of the precisions outside of the directions; 0 where r = k.
        location: Mean of the held-out distances.
        scale: Their standard deviation.
    """

    centre: Tensor
    directions: Tensor
    weights: Tensor
    slopes: Tensor
    norms: Tensor
    rest: Tensor
    location: Tensor
    scale: Tensor

    def __init__(self, size: int, num_classes: int, kept: int) -> None:
        super().__init__()
        shapes = {"centre": (size,), "directions": (kept, size), "weights": (kept,), "slopes": (num_classes, kept)}
        for name, shape in {**shapes, "norms": (num_classes,), "rest": (), "location": (), "scale": ()}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, found: Statistics, leading: int | None = None) -> RelativeDistance:
        """The distance for means and covariances; ``leading`` directions of each kind are kept, None for all."""
        floor = LEAST_WITHIN * found.overall.diagonal().mean()
        within, overall = _shrunk(found.within, floor), _shrunk(found.overall, floor)
        means = found.class_means - found.mean
        basis = _leading(within, means, leading)
        made = cls(len(found.mean), len(means), len(basis)).to(found.mean.device)
        inner, outer = basis @ within @ basis.T, basis @ overall @ basis.T
        precision, places = _inverse(inner), means @ basis.T
        made.weights, turn = torch.linalg.eigh(precision - _inverse(outer))
        made.centre, made.directions = found.mean, turn.T @ basis
        slopes = places @ precision
        made.slopes, made.norms = slopes @ turn, (slopes * places).sum(1)
        if left := len(found.mean) - len(basis):
            made.rest = left / (within.trace() - inner.trace()) - left / (overall.trace() - outer.trace())
        made.scale = torch.ones_like(made.scale)
        return made

    def distance(self, rows: Tensor) -> Tensor:
        """The distance of each row, (N, k) -> (N,), not standardised."""
        z = rows - self.centre
        p = z @ self.directions.T
        found = (self.norms - 2 * p @ self.slopes.T).amin(1) + p.square() @ self.weights
        return found if len(p.T) == len(z.T) else found + self.rest * (z - p @ self.directions).square().sum(1)

    def standardise_by(self, heldout: Tensor) -> None:
        """Take location and scale from distances of held-out terms."""
        self.location, self.scale = location_and_scale(heldout)

    def forward(self, rows: Tensor) -> Tensor:
        """The standardised distance of each row."""
        return (self.distance(rows) - self.location) / self.scale


def location_and_scale(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation; 1 where the values do not vary."""
    location, scale = values.mean(), values.std(correction=0)
    return location, torch.where(scale > 1e-12 * (1 + location.abs()), scale, torch.ones_like(scale))


def varies(found: Statistics) -> bool:
    """Whether a layer varies at all over the data."""
    return bool(found.overall.diagonal().mean() > LEAST_OVERALL * found.mean.square().mean())


def _leading(within: Tensor, means: Tensor, leading: int | None) -> Tensor:
    """Orthonormal rows: leading directions of the class means, then of the covariance within classes; or all."""
    size = len(within)
    among = 0 if leading is None else min(leading, len(means) - 1)
    if leading is None or among + leading >= size:
        return _identity(within)
    between = torch.linalg.eigh(means.T @ means).eigenvectors[:, size - among :]
    others = _identity(within) - between @ between.T
    spread = torch.linalg.eigh(others @ within @ others).eigenvectors[:, size - leading :]
    return torch.cat([between, spread], 1).T


def _inverse(covariance: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(covariance))


def _shrunk(covariance: Tensor, floor: Tensor) -> Tensor:
    share = SHRINKAGE * covariance.diagonal().mean().maximum(floor)
    return (covariance + covariance.T) / 2 + share * _identity(covariance)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)

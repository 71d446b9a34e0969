r"""The relative Mahalanobis distance of one layer, or of several together.

For the features x of an input, with one Gaussian for all classes and one for each (Ren et al. 2021, "A Simple Fix to
Mahalanobis Distance for Improving Near-OOD Detection", equation 2, after Lee et al. 2018, "A Simple Unified Framework
for Detecting Out-of-Distribution Samples and Adversarial Attacks"),

.. math:: d(x) = \min_c (x - \mu_c)^T \Sigma^{-1} (x - \mu_c) - (x - \mu_0)^T \Sigma_0^{-1} (x - \mu_0)

Both covariances are shrunk: :math:`\Sigma + .01 \bar\sigma^2 I` with the mean :math:`\bar\sigma^2` of the diagonal.
One basis V makes both diagonal, :math:`V^T \Sigma V = I` and :math:`V^T \Sigma_0 V = \Lambda`. With
:math:`u = V^T (x - \mu_0)` and :math:`u_c` for the class means,

.. math:: d(x) = \min_c \big(|u_c|^2 - 2 u_c^T u\big) + \sum_i (1 - 1/\lambda_i)\, u_i^2
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
    """The two Gaussians of one layer in the basis that makes both diagonal, and the standardisation of their distance.

    Args:
        size: Number of features k.
        num_classes: Number of classes C.

    Attributes:
        centre: Overall mean, (k,).
        basis: V^T, (k, k).
        weights: 1 - 1/lambda of each coordinate, (k,).
        means: V^T (mu_c - centre) for each class, (C, k).
        location: Mean of the held-out distances.
        scale: Their standard deviation.
    """

    centre: Tensor
    basis: Tensor
    weights: Tensor
    means: Tensor
    location: Tensor
    scale: Tensor

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        shapes = {"centre": (size,), "basis": (size, size), "weights": (size,), "means": (num_classes, size)}
        for name, shape in {**shapes, "location": (), "scale": ()}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, found: Statistics) -> RelativeDistance:
        """The distance for means and covariances."""
        made = cls(len(found.mean), len(found.class_means)).to(found.mean.device)
        floor = LEAST_WITHIN * found.overall.diagonal().mean()
        within, overall = _shrunk(found.within, floor), _shrunk(found.overall, floor)
        whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(within), _identity(within), upper=False)
        values, vectors = torch.linalg.eigh(whitening @ overall @ whitening.T)
        made.centre, made.basis, made.weights = found.mean, vectors.T @ whitening, 1 - 1 / values
        made.means = (found.class_means - found.mean) @ made.basis.T
        made.scale = torch.ones_like(made.scale)
        return made

    def distance(self, rows: Tensor) -> Tensor:
        """The distance of each row, (N, k) -> (N,), not standardised."""
        u = (rows - self.centre) @ self.basis.T
        nearest = (self.means.square().sum(1) - 2 * u @ self.means.T).amin(1)
        return nearest + u.square() @ self.weights

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


def _shrunk(covariance: Tensor, floor: Tensor) -> Tensor:
    share = SHRINKAGE * covariance.diagonal().mean().maximum(floor)
    return (covariance + covariance.T) / 2 + share * _identity(covariance)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)

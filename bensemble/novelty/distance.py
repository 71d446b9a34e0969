r"""The relative Mahalanobis distance of one layer, or of several together.

For the features x of an input, with one Gaussian for all classes and one for each (Ren et al. 2021, "A Simple Fix to
Mahalanobis Distance for Improving Near-OOD Detection", equation 2, after Lee et al. 2018, "A Simple Unified Framework
for Detecting Out-of-Distribution Samples and Adversarial Attacks"),

.. math:: d(x) = \min_c (x - \mu_c)^T \Sigma^{-1} (x - \mu_c) - (x - \mu_0)^T \Sigma_0^{-1} (x - \mu_0)

Both covariances are shrunk: :math:`\Sigma + .01 \bar\sigma^2 I` with the mean :math:`\bar\sigma^2` of the diagonal.
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
    """The two Gaussians of one layer, as whitening matrices, and the standardisation of their distance.

    Args:
        size: Number of features k.
        num_classes: Number of classes C.

    Attributes:
        centre: Overall mean, (k,).
        within: W with W^T W the inverse of the shrunk shared covariance, (k, k), lower triangular.
        overall: The same for the overall covariance.
        means: W (mu_c - centre) for each class, (C, k).
        location: Mean of the held-out distances.
        scale: Their standard deviation.
    """

    centre: Tensor
    within: Tensor
    overall: Tensor
    means: Tensor
    location: Tensor
    scale: Tensor

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        shapes = {"centre": (size,), "within": (size, size), "overall": (size, size), "means": (num_classes, size)}
        for name, shape in {**shapes, "location": (), "scale": ()}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    @classmethod
    def of(cls, found: Statistics) -> RelativeDistance:
        """The distance for means and covariances."""
        made = cls(len(found.mean), len(found.class_means)).to(found.mean.device)
        floor = LEAST_WITHIN * found.overall.diagonal().mean()
        made.centre = found.mean
        made.within, made.overall = _whitening(found.within, floor), _whitening(found.overall, floor)
        made.means = (found.class_means - found.mean) @ made.within.T
        made.scale = torch.ones_like(made.scale)
        return made

    def distance(self, rows: Tensor) -> Tensor:
        """The distance of each row, (N, k) -> (N,), not standardised."""
        centred = rows - self.centre
        inside = centred @ self.within.T
        squares = inside.square().sum(1, keepdim=True)
        nearest = (self.means.square().sum(1) - 2 * inside @ self.means.T).amin(1) + squares[:, 0]
        return nearest - (centred @ self.overall.T).square().sum(1)

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


def _whitening(covariance: Tensor, floor: Tensor) -> Tensor:
    """W, lower triangular, with W^T W the inverse of the shrunk covariance."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    shrunk = (covariance + covariance.T) / 2 + SHRINKAGE * covariance.diagonal().mean().maximum(floor) * identity
    return torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), identity, upper=False)

"""The standard deviations of a fit: where they start, how they follow from the curvature, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..gaussian import precise, rho_from_sigma
from ..posterior import Posterior

__all__ = ["restored_on_failure", "set_sigmas", "width"]


@torch.no_grad()
def width(posterior: Posterior, one_for_layer: bool) -> float:
    """Root mean square of the weights that are kept. If all are 0: the largest of the layer, or 1e-3.

    In a rotated basis weight and bias have one width, that of the weight.
    """
    if one_for_layer:
        posterior = posterior.layer._posterior("weight")

    def root_mean_square(p: Posterior) -> float:
        kept = p.mu.numel() if p.mask is None else max(int(p.mask.sum()), 1)
        return float((precise(p.mean()).square().sum() / kept).sqrt())

    return root_mean_square(posterior) or max(map(root_mean_square, posterior.layer._posteriors())) or 1e-3


@torch.no_grad()
def set_sigmas(
    posteriors: dict[str, Posterior],
    curvature: dict[str, Tensor],
    widths: dict[str, float],
    beta: float,
    reach: float,
    bias_sigma: float = 0.0,
) -> None:
    """sigma^2 = 1 / (h / beta + 1 / s^2), in place; of a bias bias_sigma^2 more."""
    for name, posterior in posteriors.items():
        precision = curvature[name].double() / beta + (widths[name] * reach) ** -2
        more = bias_sigma**2 if posterior.name == "bias" else 0.0
        posterior.rho.copy_(rho_from_sigma((1 / precision + more).sqrt()))


@contextmanager
def restored_on_failure(posteriors: dict[str, Posterior]) -> Iterator[None]:
    """Restore every rho if the block fails."""
    before = {name: (posterior.rho.detach().clone(), posterior.basis) for name, posterior in posteriors.items()}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, posterior in posteriors.items():
                posterior.rho.copy_(before[name][0])
                posterior.set_basis(before[name][1])
        raise

"""Posteriors that were computed elsewhere, such as by laplace-torch or IVON, or read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..basis import Basis
from ..checks import check_module
from ..errors import InvalidTypeError, InvalidValueError, refuse
from ..gaussian import rho_from_sigma
from ..models.sharding import sharded_like
from ..posterior import Posterior
from ..posteriors import by_canonical_name
from ..prediction.monte_carlo import trust
from .kronecker import rotatable, unfit

__all__ = ["set_posterior"]


@torch.no_grad()
def set_posterior(
    bnn: nn.Module,
    sigma: Mapping[str, Tensor | float],
    mean: Mapping[str, Tensor] | None = None,
    *,
    basis: Mapping[str, tuple[Tensor | None, Tensor]] | None = None,
) -> None:
    """Set the standard deviations of some posteriors in place, and optionally the means.

    Args:
        bnn: A Bayesian model.
        sigma: Standard deviations by original parameter name: a tensor in the shape of the weight, or one number.
            Posteriors that are not named do not change.
        mean: Means by original parameter name, in the shape of the weights.
        basis: Orthogonal matrices by original parameter name, ``(Q_a, Q_g)`` with eigenvectors as columns: over the
            inputs, shape (in, in), None for a bias; over the outputs, shape (out, out). ``sigma[name]`` then holds the
            standard deviations of the coordinates, ``W = mu + Q_g (sigma * eps) Q_a^T``, as in the Kronecker-factored
            posteriors of laplace-torch. For Linear layers and 1x1 convolutions without a mask, whose prior is normal
            with one standard deviation. Posteriors in ``sigma`` that are not named here stand in the plain basis.

    Raises:
        InvalidTypeError, InvalidValueError: A name has no posterior, a shape is wrong, a sigma is not positive and
            finite, a mean is not finite, or a basis does not fit. Everything is checked before anything is changed.

    Example:
        >>> bensemble.set_posterior(bnn, {"5.weight": torch.full((10, 16), 0.1), "5.bias": 0.2})
    """
    check_module("set_posterior", bnn)
    sigmas = by_canonical_name("set_posterior", "sigma", bnn, sigma)
    means = by_canonical_name("set_posterior", "mean", bnn, mean or {})
    given = by_canonical_name("set_posterior", "basis", bnn, basis or {})
    if not sigmas and not means:
        raise InvalidValueError("set_posterior: sigma must name at least one posterior, got none.")
    problems: list[str] = []
    for name, (posterior, value) in sigmas.items():
        problems += _problems(f"sigma of '{name}'", posterior, value, positive=True)
    for name, (posterior, value) in means.items():
        problems += _problems(f"mean of '{name}'", posterior, value, positive=False)
    for name, (posterior, value) in given.items():
        problems += _basis_problems(name, posterior, value, name in sigmas)
    wrong_type = any("must be a tensor" in problem for problem in problems)
    refuse("set_posterior", problems, InvalidTypeError if wrong_type else InvalidValueError)
    bases = {name: Basis(outer, inner) for name, (_, (inner, outer)) in given.items()}
    for name, (posterior, value) in sigmas.items():
        posterior.set_basis(bases.get(name))
        wide = torch.as_tensor(value, dtype=torch.float64)
        rho = rho_from_sigma(wide).expand(posterior.rho.shape)
        posterior.rho.copy_(sharded_like(rho, like=posterior.rho))
    for posterior, value in means.values():
        posterior.mu.copy_(sharded_like(value, like=posterior.mu))
        posterior.set_mask(posterior.mask)
    trust(bnn)


def _problems(what: str, posterior: Posterior, value: Any, positive: bool) -> list[str]:
    """What is wrong with one value; empty if nothing is."""
    if positive and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = torch.tensor(float(value)).expand(posterior.mu.shape)
    if not isinstance(value, Tensor):
        return [f"{what} must be a tensor{' or a number' if positive else ''}, got {type(value).__name__}."]
    if value.shape != posterior.mu.shape:
        return [f"{what} must have shape {tuple(posterior.mu.shape)}, got {tuple(value.shape)}."]
    if not bool(value.isfinite().all()) or (positive and not bool((value > 0).all())):
        return [f"{what} must be finite{' and above 0' if positive else ''}, got {float(value.min()):g} at the least."]
    return []


def _basis_problems(name: str, posterior: Posterior, value: Any, has_sigma: bool) -> list[str]:
    """What is wrong with the basis of one posterior; empty if nothing is."""
    what = f"basis of '{name}'"
    pair = value if isinstance(value, tuple) and len(value) == 2 else (None, None)
    inner, outer = pair
    if not isinstance(outer, Tensor) or not (inner is None or isinstance(inner, Tensor)):
        return [f"{what} must be a tensor in a pair (Q_a, Q_g), Q_a None for a bias, got {type(value).__name__}."]
    reason = rotatable(posterior.layer) or unfit(posterior)
    if reason is not None:
        return [f"{what} cannot be set: {reason}."]
    if not has_sigma:
        return [f"{what} needs standard deviations of its coordinates, got none; name '{name}' in sigma as well."]
    if inner is not None and posterior.mu.ndim == 1:
        return [f"{what} must be (None, Q_g) for a bias, got two matrices."]
    return [f"{what}: {problem}" for problem in Basis(outer, inner).problems(posterior.mu.shape)]

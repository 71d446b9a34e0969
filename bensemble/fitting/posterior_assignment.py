"""Posteriors that were computed elsewhere, such as by laplace-torch or IVON, or read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..errors import InvalidTypeError, InvalidValueError, refuse
from ..gaussian import rho_from_sigma
from ..models.sharding import sharded_like
from ..posterior import Posterior
from ..posteriors import by_canonical_name

__all__ = ["set_posterior"]


@torch.no_grad()
def set_posterior(
    bnn: nn.Module, sigma: Mapping[str, Tensor | float], mean: Mapping[str, Tensor] | None = None
) -> None:
    """Set the standard deviations of some posteriors in place, and optionally the means.

    Args:
        bnn: A Bayesian model.
        sigma: Standard deviations by original parameter name: a tensor in the shape of the weight, or one number.
            Posteriors that are not named do not change.
        mean: Means by original parameter name, in the shape of the weights.

    Raises:
        InvalidTypeError, InvalidValueError: A name has no posterior, a shape is wrong, a sigma is not positive and
            finite, or a mean is not finite. Everything is checked before anything is changed.

    Example:
        >>> sigma = [torch.empty_like(p) for p in model.parameters()]
        >>> torch.nn.utils.vector_to_parameters(la.posterior_variance.sqrt(), sigma)  # laplace-torch, diagonal
        >>> bensemble.set_posterior(bnn, dict(zip(dict(model.named_parameters()), sigma)))
    """
    check_module("set_posterior", bnn)
    sigmas = by_canonical_name("set_posterior", "sigma", bnn, sigma)
    means = by_canonical_name("set_posterior", "mean", bnn, mean or {})
    if not sigmas and not means:
        raise InvalidValueError("set_posterior: sigma must name at least one posterior, got none.")
    problems: list[str] = []
    for name, (posterior, value) in sigmas.items():
        problems += _problems(f"sigma of '{name}'", posterior, value, positive=True)
    for name, (posterior, value) in means.items():
        problems += _problems(f"mean of '{name}'", posterior, value, positive=False)
    wrong_type = any("must be a tensor" in problem for problem in problems)
    refuse("set_posterior", problems, InvalidTypeError if wrong_type else InvalidValueError)
    for posterior, value in sigmas.values():
        posterior.set_basis(None)
        wide = torch.as_tensor(value, dtype=torch.float64)
        rho = rho_from_sigma(wide).expand(posterior.rho.shape)
        posterior.rho.copy_(sharded_like(rho, like=posterior.rho))
    for posterior, value in means.values():
        posterior.mu.copy_(sharded_like(value, like=posterior.mu))
        posterior.set_mask(posterior.mask)


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

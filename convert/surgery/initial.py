"""What a posterior starts with: its sigma, and the prior that the user asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.checks import check_number, check_takes
from bensemble.errors import InvalidValueError
from bensemble.gaussian import precise, rho_from_sigma, root_mean_square, sigma_from_rho
from bensemble.priors import DensityPrior, Prior, make_prior

__all__ = ["DEFAULT_RELATIVE_SIGMA", "initial_posterior"]

#: Default sigma as a share of the root mean square of a tensor. Never of the single weight: then every weight would
#: have the same signal-to-noise ratio, and pruning would have nothing to go by.
DEFAULT_RELATIVE_SIGMA = 0.05
_SIGMA_OF_ZEROS = 1e-3


def initial_posterior(
    verb: str,
    name: str,
    parameter: nn.Parameter,
    layer_weight: Tensor | None,
    prior: Any,
    prior_sigma: float | None,
    init_sigma: float | Callable[[str, Tensor], float | Tensor] | None,
) -> tuple[nn.Parameter, Any]:
    """The rho and the prior of one new posterior.

    Args:
        verb: The public function that asks, for errors.
        name: Full name of the parameter.
        parameter: The trained weight, which becomes the mean.
        layer_weight: The ``weight`` of the same layer, whose scale a tensor of zeros borrows.
        prior: As in :func:`convert.bayesify`.
        prior_sigma: As in :func:`convert.bayesify`.
        init_sigma: As in :func:`convert.bayesify`.
    """
    with torch.no_grad():
        weight = parameter.detach()
        scale = root_mean_square(weight) if init_sigma is None else None
        if scale is not None:
            sigma = _default_sigma(scale, None if layer_weight is parameter else layer_weight)
        else:
            sigma = _chosen_sigma(verb, name, weight, init_sigma)
        rho = torch.empty_like(precise(weight) if weight.is_meta else weight, dtype=sigma.dtype)
        value = rho_from_sigma(sigma)
        rho.copy_(value)
        if callable(prior) and not isinstance(prior, (Prior, DensityPrior)):
            check_takes(verb, "prior", prior, "name", "weight")
            prior = prior(name, weight)
        # Through rho and back, so that a prior at the initial sigma has a KL of exactly zero.
        start = sigma_from_rho(value)
        return nn.Parameter(rho, requires_grad=parameter.requires_grad), make_prior(
            verb, prior, prior_sigma, weight, start, scale
        )


def _default_sigma(scale: Tensor, layer_weight: Tensor | None) -> Tensor:
    """A share of the root mean square of the tensor, or where that is 0 of the layer's weight."""
    if layer_weight is not None and not scale.is_meta and float(scale) == 0.0:
        scale = root_mean_square(layer_weight.detach()).to(scale.dtype)
    return torch.where(scale > 0, DEFAULT_RELATIVE_SIGMA * scale, torch.full_like(scale, _SIGMA_OF_ZEROS))


def _chosen_sigma(verb: str, name: str, weight: Tensor, init_sigma: Any) -> Tensor:
    """The user's sigma: 0-dimensional, or in the shape of the weight; float32, or float64 for float64."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    what = "init_sigma"
    if callable(init_sigma):
        check_takes(verb, "init_sigma", init_sigma, "name", "weight")
        what, init_sigma = f"init_sigma of '{name}'", init_sigma(name, weight)
        if isinstance(init_sigma, Tensor):
            return _checked_sigmas(verb, name, weight, init_sigma).to(weight.device, dtype)
    return torch.tensor(check_number(verb, what, init_sigma, above=0), dtype=dtype, device=weight.device)


def _checked_sigmas(verb: str, name: str, weight: Tensor, sigma: Tensor) -> Tensor:
    """A tensor of sigmas as a callable gave it, or an error."""
    if sigma.dim() and sigma.shape != weight.shape:
        raise InvalidValueError(
            f"{verb}: init_sigma of '{name}' must have shape {tuple(weight.shape)}, got {tuple(sigma.shape)}; "
            "return a number or one sigma per weight."
        )
    if not bool((torch.isfinite(sigma) & (sigma > 0)).all()):
        raise InvalidValueError(
            f"{verb}: init_sigma of '{name}' must be finite and above 0 everywhere, got a smallest value of "
            f"{float(sigma.min())}; return positive standard deviations."
        )
    return sigma.detach()

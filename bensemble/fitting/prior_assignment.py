"""Another prior for a model that is Bayesian already: for the next stage of training, or to refit the empirical one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..checks import check_module
from ..errors import InvalidValueError
from ..models.sharding import whole
from ..posterior import layer_posteriors
from ..priors import make_prior

__all__ = ["set_prior"]


@torch.no_grad()
def set_prior(model: nn.Module, prior: Any, *, prior_sigma: float | None = None) -> None:
    """Give every posterior of a model a new prior, in place; means and sigmas stay.

    ``set_prior(bnn, "empirical")`` refits the variance of each tensor, s^2 = mean(mu^2 + sigma^2), the choice that
    maximises the evidence lower bound. ``set_prior(bnn, "ard")`` prepares a fitted network for pruning, and
    ``set_prior(bnn, "pretrained")`` centres the prior on the present means.

    Args:
        model: A model with Bayesian layers.
        prior: One of ``priors.PRIOR_NAMES``, or a prior.
        prior_sigma: As in ``bayesify``; None for ``"pretrained"`` is each weight's present sigma.

    Raises:
        InvalidTypeError: ``prior`` is neither a name nor a prior.
        InvalidValueError: An unknown name, an impossible ``prior_sigma``, or a model without posteriors.
    """
    check_module("set_prior", model)
    made: dict[int, Any] = {}
    found = [(layer, posterior) for layer, posteriors in layer_posteriors(model) for posterior in posteriors]
    if not found:
        raise InvalidValueError(f"set_prior: {type(model).__name__} has no posteriors; call bayesify first.")
    for _, posterior in found:
        if id(posterior.mu) not in made:  # a shared weight has one prior
            mu, sigma = whole(posterior.mu), posterior.sigma()
            made[id(posterior.mu)] = make_prior("set_prior", prior, prior_sigma, mu, sigma)
    for layer, posterior in found:
        layer._set_prior(posterior.stem, made[id(posterior.mu)])

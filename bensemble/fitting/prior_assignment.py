"""A new prior for a Bayesian model: for the next stage of training, or to refit the empirical prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import InvalidValueError, refuse
from ..models.sharding import whole
from ..posteriors import check_bayesian, named_posteriors
from ..priors import Normal, make_prior

__all__ = ["set_prior"]


@torch.no_grad()
def set_prior(model: nn.Module, prior: Any, *, prior_sigma: float | None = None) -> None:
    """Give every posterior of a model a new prior, in place. Means and sigmas stay; a shared weight has one prior.

    ``set_prior(bnn, "empirical")`` refits the variance of each tensor, s^2 = mean(mu^2 + sigma^2), which maximises the
    evidence lower bound. ``set_prior(bnn, "ard")`` prepares a fitted network for pruning.
    ``set_prior(bnn, "pretrained")`` centres the prior on the present means.

    Args:
        model: A model with Bayesian layers.
        prior: One of ``priors.PRIOR_NAMES``, or a prior.
        prior_sigma: As in ``bayesify``. For ``"pretrained"`` the default is the present sigma of each weight.

    Raises:
        InvalidTypeError: ``prior`` is neither a name nor a prior.
        InvalidValueError: The name is unknown, ``prior_sigma`` cannot work, or the model has no posteriors.

    Example:
        >>> bensemble.set_prior(bnn, "normal", prior_sigma=0.5)
    """
    check_bayesian("set_prior", model)
    made = [
        (posterior, make_prior("set_prior", prior, prior_sigma, whole(posterior.mu), posterior.sigma()))
        for _, posterior in named_posteriors(model)
    ]
    asked = repr(prior) if isinstance(prior, str) else type(prior).__name__
    problems = [
        f"'{posterior.name}' was fitted in a rotated basis, where a prior is normal with one sigma, got {asked}; use "
        "'empirical', or 'normal' with prior_sigma=, or fit it first with structure='diagonal'."
        for posterior, new in made
        if posterior.basis is not None and not (type(new) is Normal and new.is_constant)
    ]
    refuse("set_prior", problems, InvalidValueError)
    for posterior, new in made:
        for place in (posterior, *posterior.ties):
            place.layer._set_prior(place.stem, new)

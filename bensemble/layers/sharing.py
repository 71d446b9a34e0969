"""Ties that are made or broken after the conversion: assigning a posterior mean shares the whole posterior.

Code for deterministic models ties weights by ``head.weight = embedding.weight``, which passes a Parameter only. A tie
of posteriors shares mean, rho, prior and mask. So the posterior of that Parameter is looked up among all living layers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..posterior import Posterior
from ..torch_internals import parameters_of

__all__ = ["forget", "posterior_of_mean", "remember", "share", "stop_sharing"]

#: The living layers that hold posteriors, by identity.
_alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def remember(layer: nn.Module) -> None:
    """Add a layer to those that hold posteriors."""
    _alive[id(layer)] = layer


def forget(module: nn.Module) -> None:
    """Remove a module that is deterministic again."""
    _alive.pop(id(module), None)


def posterior_of_mean(mean: Tensor) -> Posterior | None:
    """The posterior with this mean; None if there is none."""
    return next((posterior for posterior in _posteriors_with(mean) if posterior.mu is mean), None)


def share(posterior: Posterior, source: Posterior) -> None:
    """Give a posterior that has the mean of another one the rho, prior and mask of that one too.

    The shared posterior is prunable only if both were.
    """
    layer, stem = posterior.layer, posterior.stem
    parameters_of(layer)[f"{stem}_rho"] = source.rho
    layer._set_prior(stem, source.prior)
    layer._set_mask(stem, source.mask)
    layer._set_basis(stem, source.basis)
    if not (posterior.prunable and source.prunable):
        for tie in [p for p in _posteriors_with(posterior.mu) if p.mu is posterior.mu]:
            tie.layer._forbid_pruning(tie.stem)


def stop_sharing(posterior: Posterior) -> None:
    """Copy the rho of a posterior whose mean is no longer shared, if another posterior uses the same rho."""
    rho = posterior.rho
    if any(other.rho is rho and other.mu is not posterior.mu for other in _posteriors_with(rho)):
        own = nn.Parameter(rho.detach().clone(), requires_grad=rho.requires_grad)
        parameters_of(posterior.layer)[f"{posterior.stem}_rho"] = own


def _posteriors_with(tensor: Tensor) -> Iterator[Posterior]:
    """All posteriors of the living layers that have the tensor as a Parameter."""
    for reference in _alive.valuerefs():
        layer = reference()
        if layer is not None and any(p is tensor for p in parameters_of(layer).values()):
            yield from layer._posteriors()

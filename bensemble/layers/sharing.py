"""Ties that are made or broken after the conversion: assigning the mean of one posterior shares the whole of it.

``head.weight = embedding.weight`` is all that code written for deterministic models does, and all it hands over is a
Parameter. A tie is a posterior, though: mean, rho, prior and mask together. So the posterior that a Parameter is the
mean of is looked up among the layers that are alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..posterior import Posterior
from ..torch_internals import parameters_of

__all__ = ["forget", "posterior_of_mean", "remember", "share", "stop_sharing"]

#: The layers that are alive and hold posteriors, by identity.
_alive: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def remember(layer: nn.Module) -> None:
    """Count a layer among those that hold posteriors."""
    _alive[id(layer)] = layer


def forget(module: nn.Module) -> None:
    """Count a module out, because it is deterministic again."""
    _alive.pop(id(module), None)


def posterior_of_mean(mean: Tensor) -> Posterior | None:
    """The posterior that a tensor is the mean of, None when it is nobody's."""
    return next((posterior for posterior in _posteriors_with(mean) if posterior.mu is mean), None)


def share(posterior: Posterior, source: Posterior) -> None:
    """Make a posterior that has the mean of another one the same posterior.

    It may be pruned from now on only if that is right at every place.
    """
    layer, stem = posterior.layer, posterior.stem
    parameters_of(layer)[f"{stem}_rho"] = source.rho
    layer._set_prior(stem, source.prior)
    layer._set_mask(stem, source.mask)
    if not (posterior.prunable and source.prunable):
        for tie in [p for p in _posteriors_with(posterior.mu) if p.mu is posterior.mu]:
            tie.layer._forbid_pruning(tie.stem)


def stop_sharing(posterior: Posterior) -> None:
    """Give a posterior with a mean of its own a rho of its own, of the same values, where others use that rho too."""
    rho = posterior.rho
    if any(other.rho is rho and other.mu is not posterior.mu for other in _posteriors_with(rho)):
        own = nn.Parameter(rho.detach().clone(), requires_grad=rho.requires_grad)
        parameters_of(posterior.layer)[f"{posterior.stem}_rho"] = own


def _posteriors_with(tensor: Tensor) -> Iterator[Posterior]:
    """Those of every layer alive that has the tensor."""
    for reference in _alive.valuerefs():
        layer = reference()
        if layer is not None and any(p is tensor for p in parameters_of(layer).values()):
            yield from layer._posteriors()

"""The class that a module gets when its weights become posteriors: the registered twin, or one with sampled weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from .registry import bayesian_type
from .sampled import free_stems, sampled_type
from .swap import Alias
from .weights import PosteriorModule

__all__ = ["bayesian_class"]


def bayesian_class(
    module: nn.Module, names: Iterable[str], local: bool, aliases: Sequence[Alias] = ()
) -> type[PosteriorModule]:
    """The class for a module with posteriors.

    Args:
        module: The module.
        names: The parameters that get posteriors.
        local: Whether to use the registered twin if there is one; otherwise the weights are sampled.
        aliases: For a module without a twin: attributes that are read as posteriors of other modules.
    """
    twin = bayesian_type(type(module)) if local else None
    if twin is not None:
        return twin
    return sampled_type(type(module), free_stems(module, names), [alias.attribute for alias in aliases])

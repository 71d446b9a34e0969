"""The change of a module's class, to Bayesian and back. No other file changes a class.

The module stays the same object, so aliases, hooks, bound methods and lists that hold it keep working. Its Parameters
become the posterior means: the same objects, at the same place in the order of parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..torch_internals import buffers_of, parameters_of, renew_flat_weights, replace_parameters
from .sharing import forget, remember
from .storage import is_posterior_buffer
from .weights import PosteriorModule

__all__ = ["Alias", "NewPosterior", "make_bayesian", "make_deterministic", "restorer"]

#: Instance attributes that a module has only while it has posteriors.
_OWN = ("_prior_slots", "_not_prunable", "_alias_owners")


@dataclass(frozen=True)
class NewPosterior:
    """The tensors that turn one Parameter into a posterior.

    Attributes:
        mu: The Parameter itself.
        rho: Its new rho, the same object wherever the Parameter is shared.
        prior: Its prior.
        prunable: Whether a zero in the mean is a zero in the weight that the layer uses.
    """

    mu: nn.Parameter
    rho: nn.Parameter
    prior: Any
    prunable: bool = True


@dataclass(frozen=True)
class Alias:
    """A plain attribute that holds Parameters of other modules.

    Attributes:
        attribute: Name of the attribute.
        owners: The modules that own these Parameters, with the names of the Parameters there.
    """

    attribute: str
    owners: tuple[tuple[nn.Module, str], ...]


def make_bayesian(
    module: nn.Module, cls: type[PosteriorModule], posteriors: dict[str, NewPosterior], aliases: Sequence[Alias] = ()
) -> PosteriorModule:
    """Give the named parameters of a module posteriors, in place.

    Args:
        module: The module; it stays the same object and changes its class.
        cls: Its new class; see :func:`bensemble.layers.class_choice.bayesian_class`.
        posteriors: The posteriors by parameter name.
        aliases: For a module without a twin: attributes that are read as posteriors of other modules.
    """
    parameters: dict[str, Any] = {}
    for name, parameter in parameters_of(module).items():
        stem = cls._stems.get(name)
        if stem is not None and name in posteriors:
            parameters[f"{stem}_mu"], parameters[f"{stem}_rho"] = posteriors[name].mu, posteriors[name].rho
        elif stem is not None and parameter is None:
            parameters[f"{stem}_mu"] = parameters[f"{stem}_rho"] = None
        else:
            parameters[name] = parameter
    replace_parameters(module, parameters)
    _change_class(module, cls)
    assert isinstance(module, PosteriorModule)
    module._answer_original_names()
    if aliases:
        module.__dict__["_alias_owners"] = tuple({o: None for alias in aliases for o in alias.owners})
    for name, new in posteriors.items():
        stem = cls._stems[name]
        module._set_prior(stem, new.prior)
        if not new.prunable:
            module._forbid_pruning(stem)
    return module


def make_deterministic(layer: PosteriorModule, values: dict[str, nn.Parameter]) -> nn.Module:
    """Turn a Bayesian layer back into its deterministic module, in place.

    Args:
        layer: The layer; it stays the same object and changes its class.
        values: The Parameter that replaces each posterior, by original parameter name.
    """
    names = {stem: name for name, stem in layer._stems.items()}
    parameters: dict[str, Any] = {}
    for key, parameter in parameters_of(layer).items():
        stem, _, part = key.rpartition("_")
        if stem not in names or part not in ("mu", "rho"):
            parameters[key] = parameter
        elif part == "mu":
            parameters[names[stem]] = values.get(names[stem]) if parameter is not None else None
    kept = {
        key: buffer
        for key, buffer in buffers_of(layer).items()
        if not any(is_posterior_buffer(stem, key) for stem in names)
    }
    replace_parameters(layer, parameters)
    _replace(buffers_of(layer), kept)
    for attribute in (*_OWN, *layer._twin_attributes):
        layer.__dict__.pop(attribute, None)
    module: nn.Module = layer
    _change_class(module, layer.deterministic_class)
    if isinstance(module, nn.RNNBase):
        renew_flat_weights(module)
    return module


def restorer(module: nn.Module) -> Callable[[], None]:
    """A function that restores the present state of the module, for a conversion that fails half-way."""
    cls, attributes, buffers = type(module), dict(module.__dict__), dict(buffers_of(module))

    def restore() -> None:
        if type(module) is not cls:
            _change_class(module, cls)
        _replace(module.__dict__, attributes)
        _replace(buffers_of(module), buffers)

    return restore


def _change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", cls)  # not a user's ``__setattr__``
    if isinstance(module, PosteriorModule):
        remember(module)
    else:
        forget(module)


def _replace(mapping: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Replace the content of a dictionary; the dictionary stays the same object."""
    mapping.clear()
    mapping.update(content)

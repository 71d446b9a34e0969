"""Sampled layers: posteriors for modules without a twin, such as attention, recurrent layers and users' own modules.

The module gets a subclass of its class, with the same name, that reads parameters through properties. Its forward is
unknown, so noise enters through the weights: one draw per forward in training, the mean in evaluation, the held sample
inside ``bensemble.sampling``. Plain attributes that hold Parameters of other modules are read in the same way.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..noise.stack import active_sample, one_draw
from ..posterior import Posterior
from ..torch_internals import buffers_of, children_of, flat_weights_of, parameters_of
from .nested import with_parameters
from .swap import NewPosterior, make_bayesian, make_deterministic, restorer
from .weights import PosteriorModule, weight_property

__all__ = ["SampledWeights", "free_stems", "sampled_type"]

#: What defines a sampled class: the original class, (name, stem) of each posterior, and the aliased attributes.
Recipe = tuple[type[nn.Module], tuple[tuple[str, str], ...], tuple[str, ...]]

_types: dict[Recipe, type[SampledWeights]] = {}


class SampledWeights(PosteriorModule):
    """Mixin of every class that :func:`sampled_type` makes."""

    #: The attributes that hold Parameters of other modules.
    _aliases: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Do nothing: a hook of the user's class must not see the classes made here."""

    def _posteriors(self) -> Iterator[Posterior]:
        """The posteriors made here, without parameters that the user's module itself calls ``*_mu`` and ``*_rho``."""
        names = {stem: name for name, stem in self._stems.items()}
        for posterior in super()._posteriors():
            if posterior.stem in names:
                yield posterior

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class cannot be imported by its name, which is that of the original, so unpickling makes it again.
        cls, base = type(self), self.deterministic_class
        if base.__reduce__ is not object.__reduce__ or base.__reduce_ex__ is not object.__reduce_ex__:
            return _pickled_by_base(self)
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        make, (_, *args), *state = reduced
        return (_rebuild, ((cls.deterministic_class, tuple(cls._stems.items()), cls._aliases), make, args), *state)


class _SampledRecurrent(SampledWeights):
    """For RNN, LSTM and GRU: their forward reads the weights from a list of its own."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        return flat_weights_of(self)  # type: ignore[arg-type]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Tensor]) -> None:
        """Ignored: the list is computed from the posteriors."""

    def flatten_parameters(self) -> None:
        """Do nothing: the weights are computed at each read."""


def sampled_type(base: type[nn.Module], stems: dict[str, str], aliases: Iterable[str] = ()) -> type[SampledWeights]:
    """The subclass of ``base`` that reads parameters from posteriors; the same class for the same arguments.

    Args:
        base: The class of the module.
        stems: Parameter name -> stem of its posterior.
        aliases: Attributes that hold Parameters of other modules.
    """
    recipe = (base, tuple(sorted(stems.items())), tuple(sorted(aliases)))
    if recipe not in _types:
        mixin = _SampledRecurrent if issubclass(base, nn.RNNBase) else SampledWeights
        body: dict[str, Any] = {name: weight_property(name) for name in stems}
        body |= {attribute: _alias_property(attribute) for attribute in recipe[2]}
        body |= {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_stems": dict(recipe[1]),
            "_aliases": recipe[2],
            "deterministic_class": base,
            "forward": _one_draw_per_forward(base.forward),
        }
        if hasattr(base, "__deepcopy__"):
            body["__deepcopy__"] = _copied_by_base
        make: Any = type(base)  # the metaclass, which may differ from `type`
        _types[recipe] = make(base.__name__, (mixin, base), body)
    return _types[recipe]


def free_stems(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """A stem for each parameter: its name, with underscores added while the module already uses a resulting name."""
    owners = (module.__dict__, parameters_of(module), buffers_of(module), children_of(module))
    stems: dict[str, str] = {}
    for name in names:
        stem = name
        while stem in stems.values() or any(
            hasattr(type(module), key) or any(key in owner for owner in owners)
            for key in (f"{stem}_mu", f"{stem}_rho", f"{stem}_mask")
        ):
            stem += "_"
        stems[name] = stem
    return stems


def _alias_property(attribute: str) -> property:
    """A property that reads a plain attribute, with each converted Parameter in it as its owner reads it."""

    def read(self: SampledWeights) -> Any:
        if attribute not in self.__dict__:
            raise AttributeError(attribute)
        owners = self.__dict__.get("_alias_owners", ())
        return with_parameters(self.__dict__[attribute], lambda parameter: _as_read(parameter, owners))

    def write(self: SampledWeights, value: Any) -> None:
        self.__dict__[attribute] = value

    def delete(self: SampledWeights) -> None:
        del self.__dict__[attribute]

    return property(read, write, delete)


def _as_read(parameter: nn.Parameter, owners: Iterable[tuple[PosteriorModule, str]]) -> Any:
    """The weight as the layer reads it that has this Parameter as a posterior mean; or the Parameter itself."""
    for layer, name in owners:
        posterior = layer._posterior(name)
        if posterior is not None and posterior.mu is parameter:
            return layer._read_weight(name)
    return parameter


def _one_draw_per_forward(forward: Any) -> Any:
    """The forward of the original class, with one draw of each weight in training."""

    @functools.wraps(forward)
    def drawn(self: SampledWeights, *args: Any, **kwargs: Any) -> Any:
        if not self.training or torch.compiler.is_compiling() or active_sample(self) is not None:
            return forward(self, *args, **kwargs)
        with one_draw(self):
            return forward(self, *args, **kwargs)

    return drawn


def _rebuild(recipe: Recipe, make: Any, args: Iterable[Any]) -> Any:
    """An empty instance of the sampled class, for unpickling; ``make`` and ``args`` come from the original class."""
    base, stems, aliases = recipe
    return make(sampled_type(base, dict(stems), aliases), *args)


# -- Copies and pickles of modules whose class defines its own, such as a torch.fx GraphModule. That code does not know
#    posteriors, so it runs on the deterministic module, and the posteriors are copied separately.

#: One posterior without its mean: name, rho, prior, mask, prunable.
Carried = tuple[str, nn.Parameter, Any, Tensor | None, bool]


def _copied_by_base(layer: SampledWeights, memo: dict[int, Any]) -> nn.Module:
    """``__deepcopy__`` for a class whose base has one."""
    carried, plain = _taken_apart(layer, memo)
    return _put_together(plain, copy.deepcopy(carried, memo))


def _pickled_by_base(layer: SampledWeights) -> tuple[Any, ...]:
    """``__reduce_ex__`` for a class whose base has a ``__reduce__`` of its own."""
    kept: dict[int, Any] = {id(parameter): parameter for parameter in layer.parameters()}
    carried, plain = _taken_apart(layer, kept)
    return _put_together, (plain, carried)


def _taken_apart(layer: SampledWeights, memo: dict[int, Any]) -> tuple[list[Carried], nn.Module]:
    """The posteriors of a layer, and a copy of its deterministic module."""
    held = list(layer._posteriors())
    carried: list[Carried] = [(p.name, p.rho, p.prior, p.mask, p.prunable) for p in held]  # type: ignore[misc]
    restore = restorer(layer)
    try:
        module = make_deterministic(layer, {p.name: p.mu for p in held})  # type: ignore[misc]
        return carried, copy.deepcopy(module, memo)
    finally:
        restore()


def _put_together(module: nn.Module, carried: list[Carried]) -> nn.Module:
    """Give a deterministic module its posteriors back."""
    parameters = parameters_of(module)
    new = {name: NewPosterior(parameters[name], rho, prior, can) for name, rho, prior, _, can in carried}
    layer = make_bayesian(module, sampled_type(type(module), free_stems(module, new)), new)
    for name, _, _, mask, _ in carried:
        if mask is not None:
            nn.Module.register_buffer(layer, f"{layer._stems[name]}_mask", mask)
    return layer

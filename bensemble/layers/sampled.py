"""A posterior for the weights of any other module: attention, recurrent layers, subclasses with their own forward.

The module's class becomes a subclass of its own class, with the same name, whose parameters are read through
properties. Nothing is known about what its forward does with them, so noise enters through the weights: one draw per
forward in training, the mean in evaluation, the held sample inside ``bensemble.sampling``. Plain attributes that hold
a Parameter of another module, alone or inside of plain values, are read in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..gaussian import tracing
from ..noise.stack import active_frame, one_draw
from ..posterior import Posterior
from .foreign import copied_by_base, pickled_by_base
from .nested import with_parameters
from .weights import PosteriorWeights, weight_property

__all__ = ["SampledWeights", "free_stems", "sampled_type"]

#: What a sampled class is made from: the class, (name, stem) of its posteriors, and the attributes that are aliases.
Recipe = tuple[type[nn.Module], tuple[tuple[str, str], ...], tuple[str, ...]]

_types: dict[Recipe, type[SampledWeights]] = {}


class SampledWeights(PosteriorWeights):
    """Mixin of every class that :func:`sampled_type` makes."""

    #: The attributes that hold Parameters of other modules.
    _aliases: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Nothing: a user's own hook hears of the user's subclasses, not of the classes made here."""

    def _posteriors(self) -> Iterator[Posterior]:
        """The posteriors made here; parameters that the module itself calls ``*_mu`` and ``*_rho`` are its own."""
        names = {stem: name for name, stem in self._stems.items()}
        for posterior in super()._posteriors():
            if posterior.stem in names:
                yield posterior

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is not importable by its name, which is that of the original, so pickles rebuild it.
        cls, base = type(self), self.deterministic_class
        if base.__reduce__ is not object.__reduce__ or base.__reduce_ex__ is not object.__reduce_ex__:
            return pickled_by_base(self)
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        make, (_, *args), *state = reduced
        return (_rebuild, ((cls.deterministic_class, tuple(cls._stems.items()), cls._aliases), make, args), *state)


class _SampledRecurrent(SampledWeights):
    """For RNN, LSTM and GRU, whose forward reads a list of weights that torch keeps beside the parameters."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]  # type: ignore[union-attr]

    @_flat_weights.setter
    def _flat_weights(self, value: list[Tensor]) -> None:
        """Ignored: the list follows the posteriors."""

    def flatten_parameters(self) -> None:
        """Nothing to flatten: the weights are computed."""


def sampled_type(base: type[nn.Module], stems: dict[str, str], aliases: Iterable[str] = ()) -> type[SampledWeights]:
    """The subclass of ``base`` that reads parameters from posteriors; one class for each combination.

    Args:
        base: The class of the module.
        stems: Parameter name to the prefix of its posterior's tensors.
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
            body["__deepcopy__"] = copied_by_base
        make: Any = type(base)  # the metaclass, which need not be `type`
        _types[recipe] = make(base.__name__, (mixin, base), body)
    return _types[recipe]


def free_stems(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """A stem for each parameter, its own name where the module does not use the names made from it already."""
    owners = (module.__dict__, module._parameters, module._buffers, module._modules)
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
    """Reads a plain attribute with every converted Parameter in it replaced by what its owner hands out."""

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


def _as_read(parameter: nn.Parameter, owners: Iterable[tuple[PosteriorWeights, str]]) -> Any:
    """What the layer that has this Parameter as a mean hands out for it."""
    for layer, name in owners:
        posterior = layer._posterior(name)
        if posterior is not None and posterior.mu is parameter:
            return layer._read_weight(name)
    return parameter


def _one_draw_per_forward(forward: Any) -> Any:
    """The forward of the original class, reading the same draw throughout."""

    @functools.wraps(forward)
    def drawn(self: SampledWeights, *args: Any, **kwargs: Any) -> Any:
        if not self.training or tracing() or active_frame(self) is not None:
            return forward(self, *args, **kwargs)
        with one_draw(self):
            return forward(self, *args, **kwargs)

    return drawn


def _rebuild(recipe: Recipe, make: Any, args: Iterable[Any]) -> Any:
    """An empty instance of the sampled class, made as the original class makes its own."""
    base, stems, aliases = recipe
    return make(sampled_type(base, dict(stems), aliases), *args)

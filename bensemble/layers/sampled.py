"""A posterior for the weights of any other module: attention, recurrent layers, subclasses with their own forward.

The module's class becomes a subclass of its own class, with the same name, whose parameters are read through
properties. Nothing is known about what its forward does with them, so noise enters through the weights: one draw per
forward in training, the mean in evaluation, the held sample inside ``bensemble.sampling``.
"""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import Tensor, nn

from ..frames import ForwardFrame, active_frame, open_frame
from ..gaussian import tracing
from .weights import PosteriorWeights, weight_property

__all__ = ["SampledWeights", "sampled_type"]

_types: dict[tuple[type[nn.Module], frozenset[str]], type[SampledWeights]] = {}


class SampledWeights(PosteriorWeights):
    """Mixin of every class that :func:`sampled_type` makes."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is not importable by its name, which is that of the original, so pickles rebuild it.
        reduced = super().__reduce_ex__(protocol)
        cls = type(self)
        if reduced[0] in (copyreg.__newobj__, copyreg._reconstructor) and reduced[1][0] is cls:  # type: ignore[attr-defined]
            return (_rebuild, (cls.deterministic_class, tuple(sorted(cls._stems))), *reduced[2:])
        return reduced


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


def sampled_type(base: type[nn.Module], names: frozenset[str]) -> type[SampledWeights]:
    """The subclass of ``base`` that reads the named parameters from posteriors; one class for each combination."""
    key = (base, names)
    if key not in _types:
        mixin = _SampledRecurrent if issubclass(base, nn.RNNBase) else SampledWeights
        body: dict[str, Any] = {name: weight_property(name) for name in names}
        body |= {
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
            "_stems": {name: name for name in sorted(names)},
            "deterministic_class": base,
            "forward": _one_draw_per_forward(base.forward),
        }
        make: Any = type(base)  # the metaclass, which need not be `type`
        _types[key] = make(base.__name__, (mixin, base), body)
    return _types[key]


def _one_draw_per_forward(forward: Any) -> Any:
    """The forward of the original class, reading the same draw throughout."""

    @functools.wraps(forward)
    def drawn(self: SampledWeights, *args: Any, **kwargs: Any) -> Any:
        if not self.training or tracing() or active_frame(self) is not None:
            return forward(self, *args, **kwargs)
        with open_frame(ForwardFrame(self)):
            return forward(self, *args, **kwargs)

    return drawn


def _rebuild(base: type[nn.Module], names: tuple[str, ...]) -> Any:
    """An empty instance of the sampled class, as ``copyreg.__newobj__`` makes one."""
    cls = sampled_type(base, frozenset(names))
    return cls.__new__(cls)

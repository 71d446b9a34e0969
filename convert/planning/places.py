"""Where each Parameter of a model is registered: a tied one at several places, under several names."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bensemble.layers.registry import bayesian_type
from bensemble.torch_internals import parameters_of

__all__ = ["Place", "owners_of"]


@dataclass(frozen=True)
class Place:
    """One place where a Parameter is registered."""

    path: str
    module: nn.Module
    name: str

    @property
    def full_name(self) -> str:
        """Dotted name of the Parameter at this place."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def is_local(self) -> bool:
        """Whether a registered twin can take over here."""
        twin = bayesian_type(type(self.module))
        return twin is not None and self.name in twin._stems and "weight" in parameters_of(self.module)


def owners_of(model: nn.Module) -> dict[int, tuple[nn.Parameter, list[Place]]]:
    """Every distinct Parameter with all places where it is registered, by identity and in the model's order."""
    owners: dict[int, tuple[nn.Parameter, list[Place]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in parameters_of(module).items():
            if parameter is not None:
                owners.setdefault(id(parameter), (parameter, []))[1].append(Place(path, module, name))
    return owners

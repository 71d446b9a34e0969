"""Parameters that a module holds outside of the module tree: as a plain attribute, or inside of plain values.

Their posteriors belong to the module that registers them. An alias makes the attribute read from that module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from bensemble.layers.nested import may_hold, with_parameters
from bensemble.layers.swap import Alias

__all__ = ["aliases_of"]

#: What every module has, and the list in which recurrent layers keep their own weights.
_STANDARD = frozenset(vars(nn.Module())) | {"_flat_weights"}


def aliases_of(model: nn.Module, owners: Mapping[int, tuple[nn.Module, str]]) -> Iterator[tuple[nn.Module, Alias]]:
    """Every module attribute that holds one of some Parameters without registering it.

    Args:
        model: The model.
        owners: By identity of a Parameter, the module that registers it and its name there.
    """
    for module in model.modules():
        for attribute, value in vars(module).items():
            if attribute not in _STANDARD and (isinstance(value, Tensor) or may_hold(value)):
                held = {id(p): owners[id(p)] for p in _parameters_in(value) if id(p) in owners}
                if held:
                    yield module, Alias(attribute, tuple(held.values()))


def _parameters_in(value: Any) -> list[nn.Parameter]:
    found: list[nn.Parameter] = []

    def note(parameter: nn.Parameter) -> nn.Parameter:
        found.append(parameter)
        return parameter

    with_parameters(value, note)
    return found

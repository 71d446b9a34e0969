"""What is added to the output of a layer, such as what goes around it in a residual network.

What the other summand lost, the layer can make up for: the sum is what it should be solved for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Beside", "Enough", "lost_beside"]

_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")
#: What gives an output on as it is in a network that is evaluated.
_PASSING = ("dropout", "contiguous", "to")


class Enough(BaseException):
    """Ends a forward; no ``except Exception`` in a model stops it."""


class Beside(TorchFunctionMode):
    """Follows outputs of layers, through dropout and BatchNorm, to where something is added to them.

    Args:
        wanted: Number of outputs; the forward ends when all of them were used.
    """

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted = wanted
        #: Of every output what is added to it, None for nothing, and the factors of a BatchNorm in between.
        self.found: list[tuple[Tensor | None, Tensor | None]] = []
        self._open: dict[int, Tensor] = {}

    def watch(self, output: Tensor, is_used: bool) -> None:
        """Follow the next output; one that the network itself does not use is only counted."""
        if is_used:
            self._open[len(self.found)] = output
        self.found.append((None, None))
        self._end()

    def _end(self) -> None:
        if len(self.found) == self.wanted and not self._open:
            raise Enough

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        places = [place for place, output in self._open.items() if any(value is output for value in given)]
        added = {place: _summand(func, args, kwargs, self._open[place]) for place in places}
        result = func(*args, **kwargs)
        for place in places:
            if isinstance(result, Tensor):
                self._follow(place, added[place], func, args, kwargs, result)
        if places:
            self._end()
        return result

    def _follow(self, place: int, added: Tensor | None, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        output = self._open.pop(place)
        if added is not None:
            self.found[place] = (added, self.found[place][1])
        elif result is output and getattr(func, "__name__", "") in _PASSING:
            self._open[place] = result
        elif func is F.batch_norm and self.found[place][1] is None:
            factors = _factors(*args, **kwargs)
            if factors is not None:
                self.found[place] = (None, factors)
                self._open[place] = result


def lost_beside(pruned: tuple[Tensor | None, Tensor | None], original: tuple[Tensor | None, Tensor | None]) -> Any:
    """What the pruned network lost of a summand, in units of the layer's output; 0 where there is none."""
    (now, _), (before, factors) = pruned, original
    if now is None or before is None or now.shape != before.shape:
        return 0
    if factors is None:
        return before - now
    return 0 if bool((factors == 0).any()) else (before - now) / factors


def _flat(values: Sequence[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, (tuple, list)) else (value,))]


def _summand(func: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    """What is added to an output of the same shape."""
    if getattr(func, "__name__", "") not in _SUMS or kwargs or len(args) != 2:
        return None
    other = args[1] if args[0] is output else args[0]
    is_summand = isinstance(other, Tensor) and other is not output and other.shape == output.shape
    return other.clone() if is_summand else None


def _factors(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    """What BatchNorm multiplies its input with, where that is fixed."""
    if training or running_var is None:
        return None
    factors = torch.rsqrt(running_var + eps) * (1 if weight is None else weight)
    return factors.reshape(-1, *(1,) * (input.ndim - 2))

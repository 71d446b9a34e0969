"""Inputs in chunks for one forward each, where chunks give what the whole gives; other inputs stay whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..models.batches import Inputs, call, device_of, examples_along, first_examples, split_inputs, to_device
from ..models.outputs import OutputSelector, select_output
from .contexts import sampling

__all__ = ["Chunks"]


class Chunks:
    """Cuts inputs along axis 0.

    Not every axis 0 counts examples that the model treats one by one: a recurrent network may take time first, the
    nodes of a graph belong together. So the first chunk and its halves are compared, with one weight sample.

    Args:
        models: The members of the ensemble, in evaluation mode.
        size: Most examples in one chunk; None for everything at once.
        output: Which part of a structured output.
    """

    def __init__(self, models: list[nn.Module], size: int | None, output: OutputSelector | None) -> None:
        self._models, self._size, self._output = models, size, output
        self._cuts: bool | None = None

    def of(self, inputs: Inputs) -> Iterator[Inputs]:
        """The chunks of one batch."""
        count = examples_along(inputs, 0) or 0
        if self._size is None or count <= self._size or not self._may_cut(inputs, self._size):
            yield inputs
        else:
            yield from split_inputs(inputs, self._size)

    def _may_cut(self, inputs: Inputs, size: int) -> bool:
        if self._cuts is None:  # decided once for the batches of a loader
            try:
                whole = first_examples(inputs, max(size, 2))
                halves = list(split_inputs(whole, -(-max(size, 2) // 2)))
                self._cuts = all(_agree(self._forward(model), whole, halves) for model in self._models)
            except Exception:  # the model does not take chunks; what else is wrong shows on the whole
                self._cuts = False
        return self._cuts

    def _forward(self, model: nn.Module) -> Callable[[Any], Tensor]:
        def forward(inputs: Inputs) -> Tensor:
            with sampling(model, torch.Generator().manual_seed(0)):  # at the means a gate may be closed
                return select_output(call(model, to_device(inputs, device_of(model))), self._output)

        return forward


def _agree(forward: Callable[[Any], Tensor], whole: Any, halves: list[Any]) -> bool:
    expected, joined = forward(whole), torch.cat([forward(half) for half in halves])
    slack = max(1e-3, 4 * torch.finfo(expected.dtype).eps)
    return expected.shape == joined.shape and bool((joined - expected).norm() <= slack * expected.norm())

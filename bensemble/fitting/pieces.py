"""Batches in pieces for the curvature, where the pieces give the slopes that the whole gives.

Each backward pass takes one random vector, so more passes mean less variance. Pieces are unbiased only if they do not
depend on each other, and no shape says so: a recurrent network may take time first, the nodes of a graph belong
together, and so do contrastive pairs and batches whose statistics are taken. So the first part of a batch is run as a
whole and in pieces, and an axis counts the examples if outputs and slopes are those of the whole. Otherwise the whole
batch is one piece, which is unbiased too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..models.batches import examples_along, first_examples, split_inputs

__all__ = ["Pieces"]

#: Backward passes to aim for. From P passes the relative error of a curvature is about sqrt(2 / P), of a sigma half.
PASSES = 512
#: Examples in one backward pass when the length of the loader is unknown.
CHUNK = 8
#: Most random vectors for one batch that is taken whole.
VECTORS = 16
#: How many pieces are compared with the whole that they make.
COMPARED = 4

#: inputs -> output with its graph.
Forward: TypeAlias = Callable[[Any], Tensor]
#: output, target -> a random vector in the shape of the output.
Probe: TypeAlias = Callable[[Tensor, Any], Tensor]


class Pieces:
    """Cuts the batches of one loader.

    Args:
        forward: Gives the output of the model.
        probe: Gives the vectors whose slopes are compared.
        means: The tensors of the slopes.
        num_batches: Number of batches; None if it is unknown.
        batch_dim: The axis that counts the examples; None to find it.
    """

    def __init__(
        self, forward: Forward, probe: Probe, means: list[Tensor], num_batches: int | None, batch_dim: int | None = None
    ) -> None:
        self._forward, self._probe, self._means, self._num_batches = forward, probe, means, num_batches
        self._axes = (0, 1) if batch_dim is None else (batch_dim,)
        self._known: dict[int, bool] = {} if batch_dim is None else {batch_dim: True}

    def of(self, inputs: Any, target: Any) -> Iterator[tuple[Any, Any, int]]:
        """Inputs and target of each piece, and how many vectors it gets; the loader gives about ``PASSES`` of them."""
        pair = (inputs,) if target is None else (inputs, target)
        for axis in self._axes:
            count = examples_along(pair, axis) or 0
            size = CHUNK if self._num_batches is None else max(1, self._num_batches * count // PASSES)
            if count > size and self._is_batch_axis(pair, axis, size):
                for piece in split_inputs(pair, size, axis):
                    yield piece[0], piece[1] if len(piece) > 1 else None, 1
                return
        yield inputs, target, min(VECTORS, max(1, PASSES // (self._num_batches or PASSES)))

    def _is_batch_axis(self, pair: Any, axis: int, size: int) -> bool:
        """Whether pieces along an axis give what the whole gives; decided once for the batches of a loader."""
        if axis not in self._known:
            try:
                self._known[axis] = self._agree(first_examples(pair, COMPARED * size, axis), axis, size)
            except Exception:  # the model does not take pieces; what else is wrong shows on the whole batch
                self._known[axis] = False
        return self._known[axis]

    def _agree(self, whole: Any, axis: int, size: int) -> bool:
        raw = self._forward(whole[0])
        probe, slack = self._probe(raw, whole[1] if len(whole) > 1 else None), max(0.01, 4 * torch.finfo(raw.dtype).eps)
        slopes = self._slopes(raw, probe)
        sums, squares = [torch.zeros_like(s) for s in slopes], [0.0] * len(slopes)
        done = 0
        for piece in split_inputs(whole, size, axis):
            part = self._forward(piece[0])
            (along,) = (i for i, (a, b) in enumerate(zip(part.shape, raw.shape, strict=True)) if a != b)
            rows = raw.detach().narrow(along, done, part.shape[along])
            if not float((part.detach() - rows).norm()) <= slack * float(rows.norm()):
                return False
            for index, slope in enumerate(self._slopes(part, probe.narrow(along, done, part.shape[along]))):
                sums[index] += slope
                squares[index] += float(slope.norm()) ** 2
            done += part.shape[along]
        floor = 100 * torch.finfo(raw.dtype).eps * math.sqrt(max(squares))  # a slope of 0 is rounding
        errors = [float((a - b).norm()) for a, b in zip(sums, slopes, strict=True)]
        return all(e <= slack * math.sqrt(s) + floor for e, s in zip(errors, squares, strict=True))

    def _slopes(self, raw: Tensor, probe: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(raw, self._means, probe, allow_unused=True)
        return [torch.zeros_like(m) if s is None else s for m, s in zip(self._means, found, strict=True)]

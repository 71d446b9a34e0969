"""The rounding errors of a model's outputs: the model compared with itself in float64.

A sum that cancels, or a norm of features that are nearly equal, amplifies rounding errors. Two programs that compute in
another order then differ by as much as each of them differs from the exact value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["MOST", "ROUNDING_FACTOR", "in_float64", "rounding_errors"]

#: A file may also differ by this many times the model's own rounding error, relative to the output, up to MOST.
ROUNDING_FACTOR, MOST = 10.0, 1e-2


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """The floating parameters and buffers of a model in float64, with their own values again when the block ends."""
    kept = [(t, t.data) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    try:
        for tensor, data in kept:
            tensor.data = data.double()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data


def rounding_errors(
    model: nn.Module,
    run: Callable[[Sequence[Tensor]], Mapping[str, Tensor]],
    tensors: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
) -> dict[str, float]:
    """Largest |output - output in float64| of each floating output.

    Args:
        model: Holds all parameters that ``run`` reads.
        run: Returns the outputs by name.
        tensors: Its inputs.
        outputs: Its outputs for them.

    Returns:
        Empty for a model that does not run in float64; no entry for an output that is not finite.
    """
    wide = [tensor.double() if tensor.is_floating_point() else tensor.clone() for tensor in tensors]
    try:
        with torch.no_grad(), in_float64(model):
            exact = {name: output.detach().clone() for name, output in run(wide).items()}
    except Exception:  # its code may require a dtype
        return {}
    found = {}
    for name, output in outputs.items():
        wanted = exact.get(name)
        if output.is_floating_point() and wanted is not None and wanted.shape == output.shape:
            error = float((output.double() - wanted.double()).abs().max()) if output.numel() else 0.0
            if error < float("inf"):  # neither infinite nor NaN
                found[name] = error
    return found

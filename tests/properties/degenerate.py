"""Inputs that a service meets and nobody trains on: zeros, constants, tiny and huge numbers, NaN, in one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from zoo.forward import run

__all__ = ["NUMBER", "degenerate_inputs", "file_agrees_at"]

#: Degenerate inputs for each file.
NUMBER = 100

#: Products of a few of them stay within float32.
SCALES = (1e-30, 1e-12, 1e-6, 1e-3, 1e3, 1e6)
VALUES = (0.0, -0.0, 1.0, -1.0, 1e-8, 1e-38, 1e4, 1e8, -1e8)
STRANGE = (float("nan"), float("inf"), -float("inf"))


def degenerate_inputs(ordinary: Tensor, seed: int) -> Tensor:
    """``NUMBER`` inputs, each an ordinary one spoiled in one way; tokens are repeated and moved to the ends.

    Args:
        ordinary: A batch.
        seed: Of the choices.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(choices: Sequence[float]) -> float:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    rows = ordinary[torch.randint(len(ordinary), (NUMBER,), generator=generator)].clone()
    for number, row in enumerate(rows):
        place = int(torch.randint(row.numel(), (), generator=generator))
        flat = row.view(-1)
        if not row.is_floating_point():
            row.fill_(int(row.max()) if number % 2 else int(flat[place]))
        elif number % 5 == 0:
            row.fill_(pick(VALUES))
        elif number % 5 == 1:
            row.mul_(pick(SCALES))
        elif number % 5 == 2:
            row.zero_()
            flat[place] = pick(VALUES)
        elif number % 5 == 3:
            row.add_(pick(VALUES))
        else:
            flat[place] = pick((*SCALES, *STRANGE))
    return rows


def file_agrees_at(
    model: nn.Module, inputs: Tensor, read: Callable[[Tensor], Sequence[Tensor]], rounding: float
) -> None:
    """Every example for which torch has finite outputs has the same in the file, up to what rounding explains.

    An input at which the network is sensitive may differ by more: by what torch's own float32 differs from float64, and
    by what an input rounded otherwise would change.

    Args:
        model: The network in evaluation mode.
        inputs: A batch.
        read: The outputs of the file.
        rounding: Largest relative difference that rounding explains.
    """
    outputs = run(model, inputs)
    numbers = inputs.is_floating_point()
    exact = run(copy.deepcopy(model).double(), inputs.double() if numbers else inputs)
    signs = torch.randint(2, inputs.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rounded = run(model, inputs * (1 + signs * torch.finfo(inputs.dtype).eps)) if numbers else outputs
    for (path, own), found in zip(outputs.items(), read(inputs), strict=True):
        assert own.shape == found.shape, f"{path}: {tuple(found.shape)} in the file, {tuple(own.shape)} in torch"
        rows, theirs, true, other = (
            value.double().reshape(len(inputs), -1) for value in (own, found, exact[path], rounded[path])
        )
        finite = rows.isfinite().all(1) & true.isfinite().all(1)
        assert theirs[finite].isfinite().all(), f"{path}: the file is not finite where torch is"
        sensitive = (rows - true).abs().amax(1) + (rows - other).abs().amax(1)
        allowed = rounding * rows.abs().amax(1).clamp(min=1e-3) + 10 * sensitive
        off = (rows - theirs).abs().amax(1)
        worst = int(torch.where(finite, off - allowed, -torch.inf).argmax())
        assert not finite.any() or off[worst] <= allowed[worst], (
            f"{path}: off by {off[worst]:.3g}, allowed {allowed[worst]:.3g}, at {inputs[worst].flatten()[:6].tolist()}"
        )

"""How much each position of a sequence counts for the output of a network, so that padding does not count."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.models.outputs import tensor_paths

from .layers import Layer

__all__ = ["position_weights"]


def position_weights(
    network: nn.Module, forward: Callable[[], Any], layers: Collection[Layer]
) -> dict[str, list[Tensor | None]]:
    """Norms of the gradients of a random sum of what a forward returns, by layer and use, with mean 1.

    Args:
        network: The network, which is not changed.
        forward: Calls it on one batch.
        layers: Whose outputs are asked for: (batch, positions, features).

    Returns:
        (batch, positions) of every use; None, where all positions count alike, without positions or a gradient.
    """
    marks: dict[str, list[Tensor | None]] = {layer.label: [] for layer in layers}

    def marking(layer: Layer) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            has_positions = isinstance(output, Tensor) and output.ndim > 2 and output.is_floating_point()
            mark = torch.zeros_like(output).requires_grad_() if has_positions else None
            marks[layer.label].append(mark)
            return output if mark is None else output + mark

        return hook

    handles = [network.get_submodule(layer.path).register_forward_hook(marking(layer)) for layer in layers]
    generator = torch.Generator().manual_seed(0)
    gradients: dict[int, Tensor] = {}
    try:
        with suppress(RuntimeError), torch.enable_grad():  # such as no memory for the gradients, or no gradient at all
            total = sum(
                (leaf * torch.randn(leaf.shape, generator=generator).to(leaf)).sum()
                for _, leaf in tensor_paths(forward())
                if leaf.requires_grad and leaf.is_floating_point()
            )
            asked = [mark for uses in marks.values() for mark in uses if mark is not None]
            if isinstance(total, Tensor) and asked:
                found = torch.autograd.grad(total, asked, allow_unused=True)
                gradients = {id(m): g for m, g in zip(asked, found, strict=True) if g is not None}
    finally:
        for handle in handles:
            handle.remove()
    return {label: [_weights(gradients.get(id(mark))) for mark in uses] for label, uses in marks.items()}


def _weights(gradient: Tensor | None) -> Tensor | None:
    if gradient is None:
        return None
    norms = gradient.double().norm(dim=-1)
    mean = norms.mean()
    return (norms / mean).to(gradient) if 0 < mean < torch.inf else None

"""Zeros for the tests of the compaction: whole channels, heads and neurons, with the shifts of norms left in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LAYERS", "kill_attention_and_neurons", "shift_norms", "zero_channels"]

#: Layers that make channels.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def shift_norms(model: nn.Module, generator: torch.Generator) -> None:
    """Give norms and layer scales values of their own, as training would: a dead channel is a constant other than 0."""

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        for name, tensor in module.named_parameters(recurse=False):
            if tensor.ndim == 1 and not isinstance(module, LAYERS):
                low, high = (-0.5, 0.5) if "bias" in name else (0.5, 1.5)
                tensor.data = uniform(tensor, low, high)
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
            module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))


def zero_channels(model: nn.Module, share: float, generator: torch.Generator | None = None) -> None:
    """Zero the weights of a share of the output channels of every layer but the last; biases stay.

    Args:
        model: It is changed in place.
        share: Of the channels of each layer.
        generator: Chooses them anew for each layer; without it they are the first ones, the same for equal widths.
    """
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    for layer in layers[:-1]:
        weight = layer.weight.data
        channels = weight.shape[0]
        order = torch.arange(channels) if generator is None else torch.randperm(channels, generator=generator)
        weight[order[: int(share * channels)]] = 0


def kill_attention_and_neurons(
    projections: list[tuple[Tensor, int]], feed_forward: list[Tensor], share: float = 0.5
) -> None:
    """Zero what reads a share of the heads, and what makes a share of the hidden neurons.

    Args:
        projections: Weights (outputs, heads * size) that read the heads, with the number of heads.
        feed_forward: Weights (neurons, inputs) that make the hidden neurons.
        share: Of the heads and of the neurons.
    """
    for weight, heads in projections:
        dead = int(share * heads)
        weight.data.reshape(weight.shape[0], heads, -1)[:, :dead] = 0
    for weight in feed_forward:
        weight.data[: int(share * weight.shape[0])] = 0

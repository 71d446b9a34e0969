"""Random weights that make equality mean something.

Libraries initialise norms to one, biases to zero and the last layer of a residual branch to zero, often so that a
fresh network ignores half of its weights. A conversion that loses such a weight would go unnoticed, so constants
become random, matrices of vanishing gain are raised, and batch norms get statistics of real activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def enliven(model: nn.Module, forward: Callable[[], object], seed: int = 0) -> None:
    """Make every parameter of the model matter, in place.

    Args:
        model: The network.
        forward: Runs it once in its current mode, to calibrate batch norms.
        seed: Seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.is_meta:
                _move_constants(parameter.data, generator)
                _lift(parameter.data)
        _calibrate_norms(model, forward, generator)


def _move_constants(tensor: Tensor, generator: torch.Generator) -> None:
    """Replace a constant tensor by a random one around its value; a vanishing one by one of ordinary size."""
    value = tensor.flatten()[0].item() if tensor.numel() else 0.0
    if tensor.numel() == 0 or not bool((tensor == value).all()):
        return
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    inputs = math.prod(tensor.shape[1:])
    if abs(value) > 1e-2:
        tensor.mul_(1 + 0.1 * noise)
    elif tensor.ndim >= 2 and inputs > 1 and tensor.shape[0] > 1:
        tensor.copy_(noise / math.sqrt(inputs))
    elif value == 0.0 and tensor.numel() > 1:
        tensor.copy_(0.1 * noise)
    else:  # a gate or scale that starts (nearly) closed
        tensor.copy_(0.5 + 0.1 * noise)


def _lift(tensor: Tensor) -> None:
    """Raise a matrix of vanishing gain to gain 1: after some layers of gain 0.1 only the last biases would count."""
    if tensor.ndim < 2 or tensor.numel() == 0:
        return
    gain = float(tensor.float().square().mean().sqrt()) * math.sqrt(math.prod(tensor.shape[1:]))
    if 0.0 < gain < 0.5:
        tensor.mul_(1.0 / gain)


def _calibrate_norms(model: nn.Module, forward: Callable[[], object], generator: torch.Generator) -> None:
    """Give batch norms the statistics of one batch, somewhat off."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    forward()
    for norm, momentum in momenta:
        norm.momentum = momentum
        size = norm.running_mean.shape
        norm.running_var.mul_(1 + 0.2 * torch.rand(size, generator=generator).to(norm.running_var)).clamp_(min=1e-3)
        norm.running_mean.add_(
            0.1 * norm.running_var.sqrt() * torch.randn(size, generator=generator).to(norm.running_var)
        )
    for module, training in modes:
        module.training = training

"""Accuracy against sparsity: weights removed by signal-to-noise ratio, and by size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from ..planning.copying import copy_model
from ..surgery.collapsing import to_deterministic

__all__ = ["accuracy", "by_size", "by_snr"]

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)

Curve = list[tuple[float, float]]


def by_snr(bnn: nn.Module, images: Tensor, digits: Tensor) -> Curve:
    """(sparsity, accuracy) of a Bayesian network whose weights go by their signal-to-noise ratio, lowest first."""
    return _curve(lambda share: to_deterministic(bnn, sparsity=share), images, digits)


def by_size(network: nn.Module, images: Tensor, digits: Tensor) -> Curve:
    """(sparsity, accuracy) of an ordinary network whose weights go by their size, smallest first."""

    def smallest_removed(share: float) -> nn.Module:
        copy = copy_model("demo", network)
        weights = [(m, "weight") for m in copy.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        torch_prune.global_unstructured(weights, pruning_method=torch_prune.L1Unstructured, amount=share)
        return copy

    return _curve(smallest_removed, images, digits)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, digits: Tensor) -> float:
    """Share of images whose digit the network gets right."""
    network.eval()
    right = sum(
        int((network(x).argmax(-1) == y).sum()) for x, y in zip(images.split(500), digits.split(500), strict=True)
    )
    return right / len(digits)


def _curve(
    pruned: Callable[[float], nn.Module], images: Tensor, digits: Tensor, at: Sequence[float] = SPARSITIES
) -> Curve:
    return [(share, accuracy(pruned(share), images, digits)) for share in at]

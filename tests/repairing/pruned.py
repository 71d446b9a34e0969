"""A network, the same without some weights, and data."""

import copy

import torch
from torch import nn

# Features that depend on each other, as those of real data do: nothing else can be repaired.
MIXING = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / torch.arange(1.0, 9.0)[:, None]

ROWS = [torch.randn(64, 8) @ MIXING for _ in range(10)]

IMAGES = [torch.randn(8, 4, 9, 9) for _ in range(10)]


def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)).eval()


def without(model, share, seed=0):
    """A copy with a share of each weight removed, the smallest first."""
    model = copy.deepcopy(model)
    for weight in (p for p in model.parameters() if p.ndim > 1):
        smallest = weight.detach().abs().flatten().kthvalue(max(1, int(share * weight.numel()))).values
        weight.data[weight.abs() <= smallest] = 0
    return model


@torch.no_grad()
def error(model, other, batches):
    squared = [((model(x) - other(x)).square().sum(), other(x).square().sum()) for x in batches]
    return float(sum(off for off, _ in squared) / sum(size for _, size in squared))

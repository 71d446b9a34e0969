"""Small networks and data sets that the tests of novelty share."""

import torch
from torch import nn

CLASSES = 3


def blobs(n, features=6, seed=0, dtype=torch.float64):
    """Points around three centres, and their classes."""
    centres = 3 * torch.randn(CLASSES, features, generator=torch.Generator().manual_seed(7), dtype=dtype)
    source = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=source)
    return centres[y] + torch.randn(n, features, generator=source, dtype=dtype), y


def batches(data, size=50):
    return [tuple(parts) for parts in zip(*(tensor.split(size) for tensor in data), strict=True)]


def mlp(features=6, width=9, outputs=CLASSES):
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, outputs)
    ).double()


def auroc(familiar, strange):
    """The share of pairs in which the stranger has the larger score."""
    return float((strange.flatten()[:, None] > familiar.flatten()[None]).double().mean())

"""A small classifier of scikit-learn's digits, trained, with a posterior for pruning."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bensemble
from convert import bayesify


class Digits:
    """Images in three parts: for training, for the search, and for what it must hold on."""

    def __init__(self) -> None:
        found = load_digits()
        images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(found.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.train, self.search, self.held_out = ((images[part], labels[part]) for part in order.split([897, 450, 450]))


def accuracy(images: Tensor, labels: Tensor):
    """``evaluate`` on some images."""
    return lambda model: float((model(images).argmax(1) == labels).float().mean())


@cache
def data() -> Digits:
    return Digits()


@cache
def posterior() -> nn.Module:
    """A small convolutional network after the pruning recipe."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    images, labels = data().train
    fit(model, images, labels, torch.optim.Adam(model.parameters(), lr=1e-2), epochs=15)
    bnn = bayesify(model, prior="ard", estimator="weights")
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=3e-3, rho_lr=5e-2))
    fit(bnn, images, labels, optimizer, epochs=40, beta=0.3)
    return bnn.eval()


def fit(model, images, labels, optimizer, epochs, beta=0.0):
    """Train; with a KL where there are posteriors."""
    generator = torch.Generator().manual_seed(1)
    model.train()
    steps, step = epochs * -(-len(labels) // 64), 0
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            nll = F.cross_entropy(model(images[batch]), labels[batch])
            kl = bensemble.kl_divergence(model) if beta else torch.zeros(())
            weight = beta * bensemble.kl_warmup(step, steps)
            loss = bensemble.elbo_loss(nll, kl, num_data=len(labels), beta=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    model.eval()

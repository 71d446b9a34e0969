"""Ordinary training, and the two recipes of ``docs/recipes.md``: one for uncertainty, one for pruning.

Both are :mod:`bensemble.recipes`; they differ in the prior, in beta, and in what happens at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import update_bn

from bensemble import recipes

from ..surgery.collapsing import to_deterministic
from .data import Loader
from .narrator import Narrator

__all__ = ["learn_to_prune", "learn_uncertainty", "prune_and_settle", "train"]


def train(network: nn.Module, loader: Loader, epochs: int, narrator: Narrator) -> None:
    """Ordinary training: cross entropy and Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    for _ in narrator.track(epochs, "Training"):
        for images, digits in loader:
            loss = F.cross_entropy(network(images), digits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


def learn_uncertainty(bnn: nn.Module, loader: Loader, epochs: int, beta: float, narrator: Narrator) -> None:
    """Let sigma grow where the data allows it, from a posterior that ``fit_posterior`` has fitted.

    Args:
        bnn: A fitted Bayesian network with the empirical prior.
        loader: The training data.
        epochs: Passes over it.
        beta: Weight of the KL: the one that the fit has chosen.
        narrator: Shows the progress.
    """
    with narrator.counting("Learning uncertainty") as progress:
        recipes.fine_tune(
            bnn, loader, likelihood="categorical", epochs=epochs, beta=beta,
            after_epoch=lambda epoch: progress(epoch.number, epochs),
        )  # fmt: skip
    update_bn(loader, bnn)
    bnn.eval()


def learn_to_prune(bnn: nn.Module, loader: Loader, epochs: int, beta: float, narrator: Narrator) -> None:
    """Let the signal-to-noise ratio of useless weights fall to nothing.

    Args:
        bnn: A Bayesian network with the ard prior.
        loader: The training data.
        epochs: Passes over it.
        beta: Weight of the KL after a warm-up: 1 where there is much data, less where there is little.
        narrator: Shows the progress.
    """
    with narrator.counting("Learning what can go") as progress:
        recipes.learn_to_prune(
            bnn, loader, likelihood="categorical", epochs=epochs, beta=beta,
            after_epoch=lambda epoch: progress(epoch.number, epochs),
        )  # fmt: skip


def prune_and_settle(bnn: nn.Module, loader: Loader, threshold: float) -> nn.Module:
    """The plain network without the weights up to the threshold, its BatchNorm statistics measured anew."""
    pruned = to_deterministic(bnn, threshold=threshold)
    update_bn(loader, pruned)
    return pruned.eval()

r"""Ordinary training, and the two recipes of ``docs/recipes.md``: one for uncertainty, one for pruning.

Both recipes minimise the negative evidence lower bound per image,

.. math:: L = E_q[-\log p(y | x, w)] + \frac{\beta}{N} KL(q \,\|\, p)

and differ in the prior p, in beta, and in what happens at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LinearLR
from torch.optim.swa_utils import update_bn

from bensemble import elbo_loss, kl_divergence, kl_warmup, param_groups

from ..surgery import to_deterministic
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
    _fine_tune(bnn, loader, epochs, 1e-4, lambda step, total: beta, "Learning uncertainty", narrator)
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
    _fine_tune(bnn, loader, epochs, 1e-3, lambda *at: beta * kl_warmup(*at), "Learning what can go", narrator)
    bnn.eval()


def prune_and_settle(bnn: nn.Module, loader: Loader, threshold: float) -> nn.Module:
    """The plain network without the weights up to the threshold, its BatchNorm statistics measured anew."""
    pruned = to_deterministic(bnn, threshold=threshold)
    update_bn(loader, pruned)
    return pruned.eval()


def _fine_tune(
    bnn: nn.Module,
    loader: Loader,
    epochs: int,
    lr: float,
    beta: Callable[[int, int], float],
    label: str,
    narrator: Narrator,
) -> None:
    num_data, total, step = len(loader.dataset), epochs * len(loader), 0  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(param_groups(bnn, lr, rho_lr=1e-2))
    schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=total)
    bnn.train()
    for _ in narrator.track(epochs, label):
        for images, digits in loader:
            nll = F.cross_entropy(bnn(images), digits)
            loss = elbo_loss(nll, kl_divergence(bnn), num_data, beta(step, total))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1

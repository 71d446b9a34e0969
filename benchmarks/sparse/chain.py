"""The chain: a trained network, rounds of the ELBO with the ard prior, pruning and compaction, and tuning at the end.

Every round takes what the one before left: a smaller network with its zeros held, so that only the first round costs
what the whole network costs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from digits import Digits
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from bensemble import apply_masks, distillation_loss, elbo_loss, kl_divergence, kl_warmup, param_groups, prune
from convert import bayesify, compact, sparsity, to_deterministic


@dataclass(frozen=True)
class Round:
    """One round of the ELBO.

    Attributes:
        epochs: Passes over the training pictures.
        threshold: Signal-to-noise ratio below which a weight goes at the end.
        beta: Weight of the KL after the warm-up.
        lr: Learning rate of the means; falls to 0.
        rho_lr: Learning rate of rho; falls to 0.
        warmup: Share of the round over which beta rises.
        estimator: Of the noise, see ``bayesify``.
        shift: Pixels by which pictures move. In the last round they stay where they are, so that the pixels that are
            always empty go.
        channels: Signal-to-noise ratio below which a whole neuron or channel goes at the end, before its weights are
            judged.
        stay: How many weights stay at the end, those of the highest ratios, in place of the threshold; 0 for the
            threshold.
        taught: Whether half of the likelihood is replaced by the answers of the network before pruning.
    """

    epochs: int
    threshold: float = 0.0
    beta: float = 1.0
    lr: float = 2e-3
    rho_lr: float = 2e-2
    warmup: float = 0.3
    estimator: str = "local"
    shift: int = 1
    channels: float = 0.0
    stay: int = 0
    taught: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, pruned and tuned.

    Attributes:
        pretraining: Epochs of the deterministic network, which also teaches: its softened answers are half of what
            the pruned one is tuned to.
        rounds: What follows.
        tuning: Epochs with the zeros held.
        tuning_lr: Learning rate of tuning; falls to 0.
        batch: Pictures of a step.
    """

    pretraining: int
    rounds: tuple[Round, ...]
    tuning: int
    tuning_lr: float = 1e-3
    batch: int = 256


def pretrained(network: nn.Module, digits: Digits, recipe: Recipe) -> nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.05, fused=True)
    descend(
        network, optimizer, digits, recipe.pretraining, recipe.batch, lambda x, y, s, t: F.cross_entropy(network(x), y)
    )
    return network.eval()


def pruned(network: nn.Module, teacher: nn.Module, digits: Digits, settings: Round, batch: int) -> nn.Module:
    """One round: Bayesian, trained, plain again without the weights that the data does not determine, and smaller."""
    bnn = bayesify(network, prior="ard", estimator=settings.estimator)
    apply_masks(bnn, {name: (w != 0).float() for name, w in network.named_parameters() if w.ndim > 1})
    optimizer = torch.optim.Adam(param_groups(bnn, settings.lr, settings.rho_lr), fused=True)

    def loss(x: Tensor, y: Tensor, step: int, total: int) -> Tensor:
        beta = settings.beta * kl_warmup(step, total, settings.warmup)
        nll = _taught(bnn(x), y, x, teacher) if settings.taught else F.cross_entropy(bnn(x), y)
        return elbo_loss(nll, kl_divergence(bnn), digits.num_data, beta)

    descend(bnn, optimizer, digits, settings.epochs, batch, loss, settings.shift)
    prune(bnn, threshold=settings.channels, granularity="channel")
    if settings.stay:
        total = sum(w.numel() for w in network.parameters() if w.ndim > 1)
        plain = to_deterministic(bnn.eval(), sparsity=1 - settings.stay / total)
    else:
        plain = to_deterministic(bnn.eval(), threshold=settings.threshold)
    return compact(plain, digits.train[0][:2])


def _taught(logits: Tensor, y: Tensor, x: Tensor, teacher: nn.Module) -> Tensor:
    """Half of the loss by the labels, half by the answers of the network before pruning."""
    with torch.no_grad():
        wanted = teacher(x)
    return 0.5 * F.cross_entropy(logits, y) + 0.5 * distillation_loss(logits, wanted)


def tuned(network: nn.Module, teacher: nn.Module, digits: Digits, recipe: Recipe) -> nn.Module:
    """Trained on with the zeros held, half by the labels and half by the answers of the network it came from."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        torch_prune.custom_from_mask(layer, "weight", layer.weight != 0)
    optimizer = torch.optim.Adam(network.parameters(), recipe.tuning_lr, fused=True)

    def loss(x: Tensor, y: Tensor, step: int, total: int) -> Tensor:
        return _taught(network(x), y, x, teacher)

    descend(network, optimizer, digits, recipe.tuning, recipe.batch, loss)
    for layer in layers:
        torch_prune.remove(layer, "weight")
    return network.eval()


def descend(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    epochs: int,
    batch: int,
    loss: Callable[[Tensor, Tensor, int, int], Tensor],
    shift: int = 1,
) -> None:
    """Take every step; the rates fall to 0 in a straight line."""
    network.train()
    total = epochs * -(-digits.num_data // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 - s / total)
    for step, (x, y) in enumerate(pair for _ in range(epochs) for pair in digits.batches(batch, shift)):
        optimizer.zero_grad()
        loss(x, y, step, total).backward()
        optimizer.step()
        schedule.step()


def chained(network: nn.Module, digits: Digits, recipe: Recipe, kept: Path) -> tuple[nn.Module, nn.Module]:
    """The network trained, and what the chain makes of it; from files where an earlier run got that far.

    A file's name tells the settings of all that led to it, so recipes that begin alike share their first rounds. A run
    that goes on from a file takes other random numbers than one that was not broken off.
    """
    start = _file(kept, recipe, 0)
    if start.exists():
        network = torch.load(start, weights_only=False)
    else:
        torch.save(pretrained(network, digits, recipe), start)
    small = network
    for number, settings in enumerate(recipe.rounds):
        path = _file(kept, recipe, number + 1)
        if path.exists():
            small = torch.load(path, weights_only=False)
            continue
        small = pruned(small, network, digits, settings, recipe.batch)
        torch.save(small, path)
        print(f"{kept.name}, round {number}: {sparsity(small).nonzero:,} weights left", flush=True)
    return network.eval(), tuned(small, network, digits, recipe)


def _file(kept: Path, recipe: Recipe, rounds: int) -> Path:
    """Where the network after some rounds is kept."""
    settings = repr((recipe.pretraining, recipe.batch, recipe.rounds[:rounds]))
    return kept.with_suffix(f".{rounds}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}.pt")

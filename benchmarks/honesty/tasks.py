"""What a task is: a network, data in three parts, and inputs of a kind that the network has never seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .features import cached

#: Networks of an ensemble.
MEMBERS = 5
#: Inputs and classes.
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A task for one seed.

    Attributes:
        name: Under which trained networks are kept.
        network: Makes an untrained network with dropout of a rate, 0 for none.
        seeds: Of the training of each member; rows of one network take the first.
        epochs: Of the training, for every row.
        train: What networks, posteriors and Gaussians are fitted to.
        held_out: What temperatures and scales are chosen on.
        test: What the figures are of.
        strangers: Inputs by kind.
    """

    name: str
    network: Callable[[float], nn.Module]
    seeds: Sequence[int]
    epochs: int
    train: Pair
    held_out: Pair
    test: Pair
    strangers: dict[str, Tensor]


class MonteCarloDropout(nn.Module):
    """Dropout that stays on in evaluation mode too (Gal & Ghahramani 2016).

    Args:
        rate: Share of the numbers that become 0.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.rate, training=True)


def dropout(rate: float) -> list[nn.Module]:
    """The layers that drop numbers at a rate; none at rate 0."""
    return [MonteCarloDropout(rate)] if rate else []


def head(inputs: int, hidden: tuple[int, int], classes: int, rate: float) -> nn.Module:
    """A perceptron with two hidden layers, and dropout of a rate after each."""
    first, second = hidden
    layers = [nn.Linear(inputs, first), nn.ReLU(), *dropout(rate), nn.Linear(first, second), nn.ReLU(), *dropout(rate)]
    return nn.Sequential(*layers, nn.Linear(second, classes))


def trained(task: Task, seed: int, folder: Path, rate: float = 0.0) -> tuple[nn.Module, float]:
    """A network of the task, and the CPU seconds that its training took; from ``folder`` where it is kept."""
    name = f"{task.name}-seed{seed}-dropout{rate:g}-epochs{task.epochs}-of{len(task.train[1])}.pt"
    found = cached(folder / name, lambda: _training(task, seed, rate))
    net = task.network(rate)
    net.load_state_dict(found["state"])
    return net.eval(), found["seconds"]


def _training(task: Task, seed: int, rate: float) -> dict[str, Any]:
    torch.manual_seed(seed)
    net, (x, y) = task.network(rate), task.train
    optimizer, start = torch.optim.Adam(net.parameters(), 1e-3), time.process_time()
    for _ in range(task.epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return {"state": net.state_dict(), "seconds": time.process_time() - start}


def standardised(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features with the mean and the standard deviation of the training rows taken out."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    return tuple((part - mean) / std for part in (train, *others))

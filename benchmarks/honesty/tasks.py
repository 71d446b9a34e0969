"""What a task is: a network, data in three parts, and inputs of a kind that the network has never seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Inputs and classes.
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """A task for one seed.

    Attributes:
        network: Makes an untrained network.
        epochs: Of its training, for every row.
        train: What networks, posteriors and Gaussians are fitted to.
        held_out: What temperatures and scales are chosen on.
        test: What the figures are of.
        strangers: Inputs by kind.
    """

    network: Callable[[], nn.Module]
    epochs: int
    train: Pair
    held_out: Pair
    test: Pair
    strangers: dict[str, Tensor]


def head(inputs: int, hidden: tuple[int, int], classes: int) -> nn.Module:
    """A perceptron with two hidden layers."""
    first, second = hidden
    layers = (nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, classes))
    return nn.Sequential(*layers)


def trained(task: Task, seed: int) -> tuple[nn.Module, float]:
    """A network of the task, and the CPU seconds that its training took."""
    torch.manual_seed(seed)
    net, (x, y) = task.network(), task.train
    optimizer, start = torch.optim.Adam(net.parameters(), 1e-3), time.process_time()
    for _ in range(task.epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval(), time.process_time() - start


def standardised(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features with the mean and the standard deviation of the training rows taken out."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    return tuple((part - mean) / std for part in (train, *others))

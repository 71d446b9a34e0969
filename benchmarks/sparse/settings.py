"""The networks, how each is trained, and what others published.

All recipes were chosen on seed 0 and the held-out pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chain import Recipe, Round
from lenet import LeNet5
from torch import nn


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


MLP = Recipe(
    8,
    (
        Round(12, 0.7),
        Round(20, 0.83),
        Round(15, 0.83, lr=3e-3, rho_lr=3e-2, warmup=0.1),
        Round(15, 1.0, beta=2.0, lr=3e-3, rho_lr=3e-2, warmup=0.5),
        Round(15, 1.2, beta=3.0, lr=3e-3, rho_lr=3e-2, shift=0, channels=1.2),
    ),
    tuning=12,
)
LENET_5 = Recipe(
    4,
    (
        Round(8, 0.7, estimator="weights"),
        Round(16, 0.83, estimator="weights"),
        Round(16, 1.0, beta=2.0, lr=3e-3, rho_lr=3e-2, shift=0, channels=1.0, estimator="weights"),
    ),
    tuning=12,
)


def mlp_with(weights: int) -> Recipe:
    """Three rounds as above; two in which the whole network teaches and a number of weights stays; longer tuning."""
    rounds = (
        Round(15, beta=2.0, lr=3e-3, rho_lr=3e-2, stay=3300, taught=True),
        Round(15, beta=5.0, lr=3e-3, rho_lr=3e-2, stay=weights, taught=True),
    )
    return replace(MLP, rounds=MLP.rounds[:3] + rounds, tuning=40, tuning_lr=2e-3)


#: Name: how to make it, and its recipe. What comes before the comma names the network.
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
    "LeNet-300-100": (mlp, MLP),
    "LeNet-300-100, 100 times fewer": (mlp, mlp_with(2662)),
    "LeNet-300-100, 150 times fewer": (mlp, mlp_with(1775)),
    "LeNet-5-Caffe": (LeNet5, LENET_5),
}

#: Name: source, times fewer weights, test error in percent.
PUBLISHED = {
    "LeNet-300-100": [("Sparse VD (Molchanov 2017)", 68, 1.92)],
    "LeNet-5-Caffe": [("Sparse VD (Molchanov 2017)", 280, 0.75), ("Louizos 2017", 156, 1.0)],
}

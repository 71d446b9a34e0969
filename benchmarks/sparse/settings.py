"""The networks, how each is trained, and what others published.

Both recipes were chosen on seed 0 and the held-out pictures.
"""

from __future__ import annotations

from collections.abc import Callable

from chain import Recipe, Round
from lenet import LeNet5
from torch import nn

#: Name: how to make it, and its recipe.
SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Recipe]] = {
    "LeNet-300-100": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
        ),
        Recipe(
            8,
            (
                Round(12, 0.7),
                Round(20, 0.83),
                Round(15, 0.83, lr=3e-3, rho_lr=3e-2, warmup=0.1),
                Round(15, 1.0, beta=2.0, lr=3e-3, rho_lr=3e-2, warmup=0.5),
                Round(15, 1.2, beta=3.0, lr=3e-3, rho_lr=3e-2, shift=0, channels=1.2),
            ),
            tuning=12,
        ),
    ),
    "LeNet-5-Caffe": (
        LeNet5,
        Recipe(
            4,
            (
                Round(8, 0.7, estimator="weights"),
                Round(16, 0.83, estimator="weights"),
                Round(16, 1.0, beta=2.0, lr=3e-3, rho_lr=3e-2, shift=0, channels=1.0, estimator="weights"),
            ),
            tuning=12,
        ),
    ),
}

#: Name: source, times fewer weights, test error in percent.
PUBLISHED = {
    "LeNet-300-100": [("Sparse VD (Molchanov 2017)", 68, 1.92)],
    "LeNet-5-Caffe": [("Sparse VD (Molchanov 2017)", 280, 0.75), ("Louizos 2017", 156, 1.0)],
}

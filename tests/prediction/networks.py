"""Small networks with posteriors."""

import torch
from torch import nn

from bensemble.gaussian import rho_from_sigma
from bensemble.posteriors import named_posteriors
from convert import bayesify

X = torch.randn(7, 1, 6, 6)


def cnn(classes=3):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, classes),
    )


def bayesian(model, sigma=0.3):
    """A Bayesian copy whose sigmas differ from weight to weight, as after a fit."""
    bnn = bayesify(model)
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.rho.copy_(rho_from_sigma(sigma * (0.5 + torch.rand(posterior.rho.shape))))
    return bnn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(3, 2),
        )

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(x.relu())).mean((2, 3)))


PLAIN = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)),
    "pooled": cnn,
    "residual": Residual,
    "per pixel": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2, stride=2)),
}

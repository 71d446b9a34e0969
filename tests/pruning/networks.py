"""A small network with posteriors."""

import torch
from torch import nn

from bensemble.gaussian import rho_from_sigma
from bensemble.posteriors import named_posteriors
from convert import bayesify


def net():
    """Every kind of weight that knows its channels, grouped ones included."""
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, groups=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.ConvTranspose2d(8, 6, 2, groups=2),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    bnn = bayesify(plain.eval())
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.rho.copy_(rho_from_sigma(0.1 * torch.rand(posterior.rho.shape) + 0.01))
    return bnn


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}

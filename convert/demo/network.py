"""The networks of the demo and their training, and what each of them gets without more of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble import FitReport, Novelty, fit_novelty, fit_posterior
from convert import bayesify, last_layer

from .data import Images

__all__ = ["BATCH", "DigitNet", "Family", "accuracy", "raise_family"]

#: Images in a training step.
BATCH = 64


class DigitNet(nn.Module):
    """Two convolutions with BatchNorm, two linear layers: logits of ten digits from gray ``side`` x ``side`` images."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(1, 32), _block(32, 64))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Family(NamedTuple):
    """Networks that differ in their seed alone; the first also with a posterior of its last layer, and its novelty."""

    networks: list[nn.Module]
    bayesian: nn.Module
    fit: FitReport
    novelty: Novelty


def raise_family(images: Images, members: int, epochs: int) -> Family:
    """Train ``members`` networks by torch's random state, and fit to the first what needs no training."""
    networks = [_trained(images, epochs) for _ in range(members)]
    train, val, cal = (DataLoader(TensorDataset(*part), 500) for part in (images.train, images.val, images.cal))
    inputs = images.val[0][:2]
    bnn = bayesify(networks[0], include=last_layer(networks[0], inputs), example_inputs=inputs)
    fit = fit_posterior(bnn, train, likelihood="categorical", val_loader=val)
    return Family(networks, bnn, fit, fit_novelty(bnn, train, cal))


@torch.no_grad()
def accuracy(network: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Share of images whose digit a network, or a file as :class:`convert.OnnxModel`, gets right."""
    images, digits = part
    return float((network(images).argmax(-1) == digits).double().mean())


def _trained(images: Images, epochs: int) -> nn.Module:
    """A new network after cross entropy, Adam and a learning rate that rises and falls once."""
    network = DigitNet(images.side)
    loader = DataLoader(TensorDataset(*images.train), BATCH, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for inputs, digits in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), digits).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _block(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))

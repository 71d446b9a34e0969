"""LeNet-5 as Caffe ships it (LeCun et al. 1998): two convolutions, two Linears, 431,000 weights; and its training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from images import Pairs
from torch import Tensor, nn

EPOCHS, RATE, DECAY = 6, 2e-3, 0.05


class LeNet5(nn.Module):
    """Pictures (B, 1, 28, 28) to logits (B, 10).

    Args:
        dropout: Rate before each Linear; 0 for the deterministic network.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(self.dropout(x.flatten(1))))
        return self.fc2(self.dropout(x))


def trained(folder: Path, train: Pairs, seed: int, dropout: float = 0.0, epochs: int = EPOCHS) -> LeNet5:
    """A trained network, from ``folder`` where it was trained before."""
    path = folder / f"lenet5-seed{seed}-dropout{dropout:g}-epochs{epochs}.pt"
    torch.manual_seed(seed)
    network = LeNet5(dropout).to(memory_format=torch.channels_last)  # a third faster on CPUs
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY, fused=True)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # half the time again where the processor knows bfloat16
            logits = network(x)
        return F.cross_entropy(logits.float(), y)

    descend(network.train(), optimizer, train, epochs, loss)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network.eval()


def descend(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Pairs,
    epochs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Take every step, with rates that rise over the first tenth and fall to 0 in a straight line."""
    total = epochs * len(train)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * total), 1.11 * (1 - step / total), 1.0)
    )
    for epoch in range(epochs):
        for x, y in train:
            optimizer.zero_grad()
            loss(x, y).backward()
            optimizer.step()
            schedule.step()
        after_epoch(epoch + 1)

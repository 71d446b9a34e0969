"""The ways to prune a trained network, and the data and the training that they are measured with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert import bayesify, prune_and_repair, prune_scores, repair, to_deterministic

#: Training pictures that are looked at without their classes, and the size of a batch of them.
LOOKED_AT, BATCH = 2_000, 200


@dataclass(frozen=True)
class Data:
    """Pictures and classes: to train on and to judge by."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    looked_at: int = LOOKED_AT

    @property
    def loader(self) -> list[Tensor]:
        """What needs no classes looks at these."""
        return list(self.x[: self.looked_at].split(min(BATCH, self.looked_at // 10)))


def trained(network: nn.Module, data: Data, epochs: int, rate: float, hold_zeros: bool = False) -> nn.Module:
    """Adam with a falling rate; pictures in colour are mirrored at random."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), rate, weight_decay=1e-5)
    steps = epochs * -(-len(data.y) // 64)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    masks = {p: (p != 0).to(p) for p in network.parameters() if hold_zeros and p.ndim > 1}
    for _ in range(epochs):
        for part in torch.randperm(len(data.y)).split(64):
            x = data.x[part]
            if x.ndim == 4 and x.shape[1] == 3 and torch.rand(()) < 0.5:
                x = x.flip(-1)
            optimizer.zero_grad()
            F.cross_entropy(network(x), data.y[part]).backward()
            optimizer.step()
            schedule.step()
            for parameter, mask in masks.items():
                parameter.data.mul_(mask)
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, data: Data) -> float:
    """Percentage of right classes on the test pictures."""
    found = torch.cat([network.eval()(x).argmax(1) for x in data.x_test.split(1000)])
    return 100 * float((found == data.y_test).float().mean())


def by_scores(dense: nn.Module, share: float, scores: dict[str, Tensor]) -> nn.Module:
    return to_deterministic(bayesify(dense), sparsity=share, scores=scores)


def magnitude(dense: nn.Module, data: Data, share: float) -> nn.Module:
    return by_scores(dense, share, prune_scores(dense, score="magnitude"))


@torch.no_grad()
def wanda(dense: nn.Module, data: Data, share: float) -> nn.Module:
    """|w| times the norm of its input, the lowest of every output (Sun et al. 2024)."""
    network, sums = copy.deepcopy(dense), dict[nn.Module, Tensor]()

    def see(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sums[module] = sums.get(module, 0) + _rows(module, args[0]).square().sum(0)

    layers = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_hook(see) for layer in layers]
    for x in data.loader:
        network(x)
    for handle in handles:
        handle.remove()
    for layer in layers:
        rows = layer.weight.flatten(1)
        lowest = (rows.abs() * sums[layer].sqrt()).argsort(1)[:, : round(share * rows.shape[1])]
        layer.weight.copy_(rows.scatter(1, lowest, 0.0).view_as(layer.weight))
    return network


@torch.no_grad()
def sparsegpt(dense: nn.Module, data: Data, share: float) -> nn.Module:
    """Frantar & Alistarh 2023, "SparseGPT", algorithm 1: the same share of every layer, layer after layer."""
    network = copy.deepcopy(dense)
    for layer in [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]:
        sums = list[Tensor]()
        handle = layer.register_forward_hook(
            lambda module, args, output, sums=sums: sums.append(_rows(module, args[0]))
        )
        for x in data.loader:
            network(x)
        handle.remove()
        weight = layer.weight.flatten(1).double()
        layer.weight.copy_(_eliminated(weight, sum(rows.T @ rows for rows in sums), share).view_as(layer.weight))
    return network


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies its weights with, (rows, inputs)."""
    if isinstance(module, nn.Conv2d):
        x = F.unfold(x, module.kernel_size, padding=module.padding, stride=module.stride).transpose(1, 2)
    return x.flatten(0, -2).double()


def _eliminated(weight: Tensor, moments: Tensor, share: float, block: int = 128, damping: float = 0.01) -> Tensor:
    """Column after column goes or stays, and those to the right make up for it; a mask for every block of columns."""
    dead = moments.diagonal() == 0
    moments = moments + torch.diag(dead.double() + damping * moments.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    weight = torch.where(dead, 0, weight)
    for start in range(0, weight.shape[1], block):
        columns = range(start, min(start + block, weight.shape[1]))
        scores = (weight[:, columns] / factor.diagonal()[columns]).square()
        limit = scores.flatten().sort().values[min(round(share * scores.numel()), scores.numel() - 1)]
        for place, column in enumerate(columns):
            kept = torch.where(scores[:, place] < limit, 0, weight[:, column])
            error = (weight[:, column] - kept) / factor[column, column]
            weight[:, column:] -= torch.outer(error, factor[column, column:])
            weight[:, column] = kept
    return weight


def obd(dense: nn.Module, data: Data, share: float) -> nn.Module:
    return by_scores(dense, share, prune_scores(dense, data.loader, damping=0.0))


def damped(dense: nn.Module, data: Data, share: float) -> nn.Module:
    return by_scores(dense, share, prune_scores(dense, data.loader, sparsity=share))


def magnitude_repaired(dense: nn.Module, data: Data, share: float) -> nn.Module:
    return repair(magnitude(dense, data, share), dense, data.loader)


def ours(dense: nn.Module, data: Data, share: float) -> nn.Module:
    return prune_and_repair(dense, data.loader, sparsity=share).network


def trained_for(epochs: int) -> Callable[[nn.Module, Data, float], nn.Module]:
    """Magnitude, then training with labels, in which zeros stay."""
    return lambda dense, data, share: trained(magnitude(dense, data, share), data, epochs, 1e-3, hold_zeros=True)


WAYS: dict[str, Callable[[nn.Module, Data, float], nn.Module]] = {
    "magnitude": magnitude,
    "Wanda": wanda,
    "SparseGPT": sparsegpt,
    "OBD, not damped": obd,
    "`prune_scores`": damped,
    "magnitude, then `repair`": magnitude_repaired,
    "**`prune_and_repair`**": ours,
    "magnitude, then an epoch with labels": trained_for(1),
    "magnitude, then four epochs with labels": trained_for(4),
}

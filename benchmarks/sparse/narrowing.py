"""The ways to make a network narrower, by its channel groups and by Torch-Pruning; each returns the narrow network."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from without_training import Data

from convert import bayesify, channel_groups, compact, prune_and_repair, prune_scores, repair, to_deterministic

#: Halvings of the gap between two shares, to meet given multiply-adds.
HALVINGS = 7


@dataclass(frozen=True)
class Known:
    """What Torch-Pruning must be told about a network.

    Attributes:
        stay: Names of the layers whose outputs stay, the last one among them.
        heads: Number of attention heads by the names of the layers that make queries, keys and values.
    """

    stay: tuple[str, ...]
    heads: dict[str, int] = field(default_factory=dict)


def multiply_adds(network: nn.Module, x: Tensor) -> int:
    """Of one example."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(x[:1])
    return counter.get_total_flops() // 2


@torch.no_grad()
def remeasured(network: nn.Module, data: Data) -> nn.Module:
    """The network with the BatchNorm statistics of the pictures that are looked at."""
    torch.optim.swa_utils.update_bn(data.loader, network)
    return network.eval()


def zeroed(dense: nn.Module, data: Data, share: Any) -> nn.Module:
    """Without the groups of least curvature: a share of the weights, or ``{"*": share}`` of every layer's."""
    bnn = bayesify(dense)
    scores = prune_scores(dense, data.loader, damping=1.0)
    return to_deterministic(bnn, sparsity=share, granularity=channel_groups(bnn, data.x[:2]), scores=scores)


def norms_only(dense: nn.Module, data: Data, share: Any, known: Known) -> nn.Module:
    return remeasured(compact(zeroed(dense, data, share), data.x[:2]), data)


def repaired(dense: nn.Module, data: Data, share: Any, known: Known) -> nn.Module:
    return compact(repair(zeroed(dense, data, share), dense, data.loader), data.x[:2])


def in_steps(dense: nn.Module, data: Data, share: Any, known: Known) -> nn.Module:
    groups = channel_groups(bayesify(dense), data.x[:2])
    small = prune_and_repair(dense, data.loader, sparsity=share, granularity=groups, steps=5).network
    return compact(small, data.x[:2])


def _torch_pruning(importance: str) -> Callable[[nn.Module, Data, Any, Known], nn.Module]:
    def narrower(dense: nn.Module, data: Data, share: Any, known: Known) -> nn.Module:
        """The importances and the pruner of Torch-Pruning, then norms as above; Taylor's gradients are of labels."""
        import torch_pruning as tp

        network = copy.deepcopy(dense)
        if importance == "GroupTaylorImportance":
            for x, y in zip(data.loader, data.y.split(len(data.loader[0])), strict=False):
                (F.cross_entropy(network(x), y) / len(data.loader)).backward()
        uniform = isinstance(share, dict)
        ratio = share["*"] if uniform else share
        pruner = tp.pruner.BasePruner(
            network, data.x[:2], getattr(tp.importance, importance)(), pruning_ratio=ratio, global_pruning=not uniform,
            ignored_layers=[network.get_submodule(name) for name in known.stay], prune_num_heads=True,
            num_heads={network.get_submodule(name): heads for name, heads in known.heads.items()},
            prune_head_dims=False, head_pruning_ratio=ratio,
        )  # fmt: skip
        pruner.step()
        network.zero_grad()
        return remeasured(network, data)

    return narrower


Way = Callable[[nn.Module, Data, Any, Known], nn.Module]
WAYS: dict[str, Way] = {
    "our groups, norms re-estimated": norms_only,
    "our groups, then `repair`": repaired,
    "**`prune_and_repair`** of our groups": in_steps,
}
if importlib.util.find_spec("torch_pruning"):
    WAYS |= {
        "Torch-Pruning, group magnitude, norms re-estimated": _torch_pruning("GroupMagnitudeImportance"),
        "Torch-Pruning, group Taylor with labels, norms re-estimated": _torch_pruning("GroupTaylorImportance"),
    }


def meeting(way: Way, wanted: int, dense: nn.Module, data: Data, uniform: bool, known: Known) -> nn.Module:
    """The narrowest network by a way that has the given multiply-adds or more; one half is tried first."""
    low, high, found = 0.0, 1.0, dense
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        narrow = way(dense, data, {"*": middle} if uniform else middle, known)
        if multiply_adds(narrow, data.x) < wanted:
            high = middle
        else:
            low, found = middle, narrow
    return found

"""A small network for 1,000 digits loses 90 % of its weights by what the documentation says, with no setting changed.

Points of accuracy below the dense network, and its negative log-likelihood as a multiple of the dense one's, on 10,000
digits that no row has seen: the mean over the seeds with its standard error. Each seed has its own 1,000 digits;
nothing else is looked at. Settings were chosen with --judge held-out, the last 10,000 training digits. The digits are
those of benchmarks/pruning_untrained.py.

python benchmarks/pruning_newcomer.py --mnist mnist.npz
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pruning_untrained import FILES, shown
from rounds import print_table, write_json
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent / "contest"))
sys.path.insert(0, str(Path(__file__).parent / "sparse"))

from digits import load_digits

from convert import GradualPruning, bayesify, prune_and_repair, prune_scores, repair, to_deterministic

#: Epochs of Adam at 1e-3 before pruning, and of what trains on.
EPOCHS, MORE = 30, 10


def mlp() -> nn.Module:
    """README's network, for pictures of 28 x 28."""
    layers = [nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def cnn() -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"784-100-50-10": mlp, "small CNN": cnn}


def fitted(network: nn.Module, loader: Any, epochs: int, pruning: Callable[[nn.Module, int], Any] | None = None) -> Any:
    """The loop of the README; with ``pruning``, the loop of the recipes."""
    optimizer = torch.optim.Adam(network.train().parameters(), 1e-3)
    gradual = pruning(network, epochs * len(loader)) if pruning else None
    for inputs, labels in [batch for _ in range(epochs) for batch in loader]:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
        if gradual is not None:
            gradual.step()
    return network.eval()


def magnitude(dense: nn.Module, loader: Any, share: float) -> nn.Module:
    return to_deterministic(bayesify(dense), sparsity=share, scores=prune_scores(dense, score="magnitude"))


def in_training(**options: Any) -> Callable[[nn.Module, Any, float], nn.Module]:
    def way(dense: nn.Module, loader: Any, share: float) -> nn.Module:
        return fitted(
            copy.deepcopy(dense), loader, MORE,
            lambda network, steps: GradualPruning(network, sparsity=share, steps=steps, loader=loader, **options),
        )  # fmt: skip

    return way


WAYS: dict[str, Callable[[nn.Module, Any, float], nn.Module]] = {
    "magnitude": magnitude,
    "magnitude, then `repair`": lambda dense, loader, share: repair(magnitude(dense, loader, share), dense, loader),
    "`prune_and_repair(steps=3)`, shuffled batches": lambda dense, loader, share: (
        prune_and_repair(dense, loader, sparsity=share, steps=3).network
    ),
    "**`prune_and_repair`**": lambda dense, loader, share: prune_and_repair(dense, loader, sparsity=share).network,
    f"`GradualPruning`, magnitude, {MORE} epochs": in_training(),
    f"`GradualPruning`, curvature, repaired, {MORE} epochs": in_training(score="obd", repair=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help=FILES["mnist"])
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="default: both")
    parser.add_argument("--judge", choices=["test", "held-out"], default="test")
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.mnist or not Path(arguments.mnist).exists():
        parser.error(f"--mnist must be the {FILES['mnist']}, got {arguments.mnist}")
    torch.set_num_threads(1)
    digits = load_digits(Path(arguments.mnist))
    judged = digits.test if arguments.judge == "test" else digits.held_out
    figures = {}
    for name in arguments.network or NETWORKS:
        found = figures[name] = dict[str, list[float]]()
        for seed in range(arguments.seeds):
            some = torch.randperm(digits.num_data, generator=torch.Generator().manual_seed(seed))[:1000]
            _seed(found, NETWORKS[name], [part[some] for part in digits.train], judged, arguments.share, seed)
        print(f"\n{name}: dense {shown(found['dense'])} %, {shown(found['dense nats'])} nats")
        rows = [
            [way, *(shown(found[f"{way}{what}"]) for what in ("", " times")),
             f"{statistics.mean(found[f'{way} seconds']):.1f}"] for way in WAYS
        ]  # fmt: skip
        print_table(["", f"points below dense, {arguments.share:.0%} removed", "NLL / dense", "seconds"], rows)
    write_json(arguments.json, figures)


def _seed(found: dict[str, list[float]], build: Any, train: Any, judged: Any, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    dense = fitted(build(), DataLoader(TensorDataset(*train), 50, shuffle=True), EPOCHS)
    before, nats = _quality(dense, *judged)
    found.setdefault("dense", []).append(before)
    found.setdefault("dense nats", []).append(nats)
    for way, pruned in WAYS.items():
        torch.manual_seed(seed)
        started = time.perf_counter()
        network = pruned(
            dense, DataLoader(TensorDataset(*train), 50, shuffle="Gradual" in way or "shuffled" in way), share
        )
        seconds = time.perf_counter() - started
        after, nll = _quality(network, *judged)
        for what, value in {"": before - after, " times": nll / nats, " seconds": seconds}.items():
            found.setdefault(f"{way}{what}", []).append(value)
        print(f"seed {seed}, {way}: {before - after:.2f}, {nll / nats:.2f}", file=sys.stderr, flush=True)


@torch.no_grad()
def _quality(network: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Percentage of right classes, and the negative log-likelihood in nats."""
    logits = torch.cat([network.eval()(part) for part in x.split(1000)])
    return 100 * float((logits.argmax(1) == y).float().mean()), float(F.cross_entropy(logits, y))


if __name__ == "__main__":
    main()

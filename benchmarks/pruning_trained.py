"""Gradual pruning in a training loop: four epochs, from a trained network to one that is mostly zeros.

Points of test accuracy below the dense network, the mean over the seeds with its standard error. All rows have the same
dense networks, batches, epochs and rate of learning, and remove weights on the same schedule
(convert.GradualPruning). The last row adds nothing but the same four epochs to the dense network. Where the data comes
from is written in benchmarks/pruning_untrained.py.

python benchmarks/pruning_trained.py --mnist mnist.npz --cifar cifar10.zip
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pruning_untrained import LOADERS, SUBJECTS, shown
from rounds import print_table, write_json
from torch import nn
from without_training import Data, accuracy, trained

from convert import GradualPruning

#: Epochs of the training that prunes.
EPOCHS = 4
SHARES = {"mnist": (0.9, 0.96), "cifar": (0.8, 0.9)}
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "magnitude, repaired": {"repair": True},
    "curvature": {"score": "obd"},
    "curvature, repaired": {"score": "obd", "repair": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help="npz file of MNIST")
    parser.add_argument("--cifar", type=Path, default=os.environ.get("BENSEMBLE_CIFAR"), help="zip file of pictures")
    parser.add_argument(
        "--network", choices=[n for n in SUBJECTS if SUBJECTS[n].data in SHARES], action="append", help="default: all"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-3, help="rate of learning at the start; it falls to 0")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in arguments.network or [name for name in SUBJECTS if SUBJECTS[name].data in SHARES]:
        path = getattr(arguments, SUBJECTS[name].data)
        if not path or not Path(path).exists():
            print(f"{name}: left out, --{SUBJECTS[name].data} names no file, got {path}")
            continue
        figures[name] = judged(name, Path(path), arguments.seeds, arguments.rate)
    write_json(arguments.json, figures)


def judged(name: str, path: Path, seeds: int, rate: float) -> dict[str, list[float]]:
    """The table of one network: points below dense of every way at every share, by seed."""
    subject, found = SUBJECTS[name], dict[str, list[float]]()
    shares = SHARES[subject.data]
    for seed in range(seeds):
        data = LOADERS[subject.data](path, seed)
        torch.manual_seed(seed)
        dense = trained(subject.build(), data, subject.epochs, subject.rate)
        before = accuracy(dense, data)
        found.setdefault("dense", []).append(before)
        found.setdefault("trained on", []).append(before - accuracy(pruned(dense, data, rate, seed, {}), data))
        for way, options in WAYS.items():
            for share in shares:
                started = time.perf_counter()
                network = pruned(dense, data, rate, seed, options | {"sparsity": share})
                found.setdefault(f"{way} seconds", []).append(time.perf_counter() - started)
                found.setdefault(f"{way} {share}", []).append(before - accuracy(network, data))
                print(
                    f"seed {seed}, {share:.0%}, {way}: {found[f'{way} {share}'][-1]:.2f}", file=sys.stderr, flush=True
                )
    print(f"\n{name}: dense {shown(found['dense'])} %; {EPOCHS} epochs more change it by {shown(found['trained on'])}")
    rows = [
        [way, *(shown(found[f"{way} {share}"]) for share in shares), f"{statistics.mean(found[f'{way} seconds']):.0f}"]
        for way in WAYS
    ]
    print_table(["points below dense", *(f"{share:.0%} removed" for share in shares), "seconds"], rows)
    return found


def pruned(dense: nn.Module, data: Data, rate: float, seed: int, options: dict[str, Any]) -> nn.Module:
    """A copy of the network after the epochs, pruned where a sparsity is among the options."""
    network = copy.deepcopy(dense).train()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    steps = EPOCHS * -(-len(data.y) // 64)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    pruning = GradualPruning(network, steps=steps, loader=data.loader, **options) if options else None
    torch.manual_seed(seed)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(data.y)).split(64):
            x = data.x[part]
            if x.ndim == 4 and x.shape[1] == 3 and torch.rand(()) < 0.5:
                x = x.flip(-1)
            optimizer.zero_grad()
            F.cross_entropy(network(x), data.y[part]).backward()
            optimizer.step()
            schedule.step()
            if pruning is not None:
                pruning.step()
    return network.eval()


if __name__ == "__main__":
    main()

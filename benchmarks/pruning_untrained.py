"""Pruning a trained network without training and without labels, beside one epoch of training with them.

Points of test accuracy below the dense network, the mean over the seeds with its standard error. What a run
chooses or solves for, it does on 2,000 of the training pictures, without their classes. The constants of the code, the
damping of 1 in prune_and_repair and what prune_scores and "auto" go by, were settled while looking at test digits.

The digits are those of MNIST as one .npz file with x_train, y_train, x_test and y_test, such as
https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz. The pictures are those of CIFAR-10
(https://www.cs.toronto.edu/~kriz/cifar.html) as a .zip file of train/<class>/*.jpg and test/<class>/*.jpg; 1,000 and
300 of each class are enough. What is not given is left out.

python benchmarks/pruning_untrained.py --mnist mnist.npz --cifar cifar10.zip
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "contest"))
sys.path.insert(0, str(Path(__file__).parent / "sparse"))

from digits import load_digits
from networks import Block, mlp
from rounds import print_table, write_json
from without_training import WAYS, Data, accuracy, trained

from convert import prune_and_repair


@dataclass(frozen=True)
class Subject:
    """A network, how it is trained, and what share of its weights is removed."""

    build: Callable[[], nn.Module]
    data: str
    shares: tuple[float, ...]
    epochs: int
    rate: float = 1e-3


def lenet_300_100() -> nn.Module:
    return nn.Sequential(nn.Flatten(), mlp(784, 300, 100, 10))


def lenet_5() -> nn.Module:
    convolutions = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), mlp(800, 500, 10))


def resnet_8() -> nn.Module:
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


SUBJECTS = {
    "LeNet-300-100, 10,000 digits": Subject(lenet_300_100, "mnist", (0.92, 0.96), 10),
    "LeNet-5, 10,000 digits": Subject(lenet_5, "mnist", (0.95, 0.98), 4),
    "ResNet-8, 10,000 CIFAR pictures": Subject(resnet_8, "cifar", (0.8, 0.9), 5, 3e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help="npz file of MNIST")
    parser.add_argument("--cifar", type=Path, default=os.environ.get("BENSEMBLE_CIFAR"), help="zip file of pictures")
    parser.add_argument("--network", choices=list(SUBJECTS), action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--auto", action="store_true", help="also find the share, which takes as long as the rest")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in arguments.network or SUBJECTS:
        path = getattr(arguments, SUBJECTS[name].data)
        if not path or not Path(path).exists():
            print(
                f"{name}: left out, --{SUBJECTS[name].data} names no file, got {path}; see --help for where it is from"
            )
            continue
        figures[name] = judged(name, Path(path), arguments.seeds, arguments.auto)
    write_json(arguments.json, figures)


def judged(name: str, path: Path, seeds: int, auto: bool) -> dict[str, list[float]]:
    """The table of one network: points below dense of every way at every share, by seed."""
    subject, found = SUBJECTS[name], dict[str, list[float]]()
    for seed in range(seeds):
        data = (digits if subject.data == "mnist" else pictures)(path, seed)
        torch.manual_seed(seed)
        dense = trained(subject.build(), data, subject.epochs, subject.rate)
        before = accuracy(dense, data)
        found.setdefault("dense", []).append(before)
        for share in subject.shares:
            for way, prune in WAYS.items():
                started = time.perf_counter()
                network = prune(dense, data, share)
                found.setdefault(f"{way} seconds", []).append(time.perf_counter() - started)
                below = before - accuracy(network, data)
                found.setdefault(f"{way} {share}", []).append(below)
                print(f"seed {seed}, {share:.0%}, {way}: {below:.2f}", file=sys.stderr, flush=True)
        if auto:
            pruned = prune_and_repair(dense, data.loader, sparsity="auto")
            found.setdefault("auto share", []).append(100 * pruned.sparsity)
            found.setdefault("auto", []).append(before - accuracy(pruned.network, data))
            found.setdefault("auto expected", []).append(100 * pruned.loss.drop if pruned.loss else 0.0)
    print(f"\n{name}: dense {shown(found['dense'])} %")
    rows = [[way, *(shown(found[f"{way} {share}"]) for share in subject.shares)] for way in WAYS]
    rows = [[*row, f"{statistics.mean(found[f'{row[0]} seconds']):.1f}"] for row in rows]
    print_table(["points below dense", *(f"{share:.0%} removed" for share in subject.shares), "seconds"], rows)
    if auto:
        removed, lost, expected = (shown(found[what]) for what in ("auto share", "auto", "auto expected"))
        print(f"sparsity='auto' removes {removed} % and loses {lost} points, expected {expected}")
    return found


def shown(values: list[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{error}"


# -- data


def digits(path: Path, seed: int) -> Data:
    """10,000 training digits of one seed, and the test digits."""
    (x, y), test = load_digits(path).train, load_digits(path).test
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:10_000]
    return Data(x[some], y[some], *test)


def pictures(path: Path, seed: int) -> Data:
    """All pictures of the file, normalised, in an order of one seed."""
    from PIL import Image

    parts: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "test": []}
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for name in names:
            part, kind, _ = name.split("/")
            parts[part].append((np.asarray(Image.open(io.BytesIO(archive.read(name)))), classes.index(kind)))
    tensors = []
    for part in ("train", "test"):
        x = torch.tensor(np.stack([picture for picture, _ in parts[part]])).permute(0, 3, 1, 2).float()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        tensors += [(x[order] - 120) / 64, torch.tensor([kind for _, kind in parts[part]])[order]]
    return Data(*tensors)


if __name__ == "__main__":
    main()

"""Pruning a trained network without training and without labels, beside one epoch of training with them.

Points of test accuracy below the dense network, the mean over the seeds with its standard error. What a run chooses or
solves for, it does on 2,000 of the training examples (--looked-at), without their classes. The constants of the code,
the damping of 1 in prune_and_repair and what prune_scores and "auto" go by, were settled while looking at test digits.

The digits are those of MNIST as one .npz file with x_train, y_train, x_test and y_test, such as
https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz. The pictures are those of CIFAR-10
(https://www.cs.toronto.edu/~kriz/cifar.html) as a .zip file of train/<class>/*.jpg and test/<class>/*.jpg; 1,000 and
300 of each class are enough. What is not given is left out.

python benchmarks/pruning_untrained.py --mnist mnist.npz --cifar cifar10.zip --fashion FOLDER --clinc clinc150.json
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import statistics
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "contest"))
sys.path.insert(0, str(Path(__file__).parent / "sparse"))

from digits import load_digits
from honesty.tasks import standardised
from narrow_subjects import Intents, queries
from networks import Block, mlp
from rounds import print_table, write_json
from without_training import LOOKED_AT, WAYS, Data, accuracy, trained

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


def resnet_8(colours: int = 3) -> nn.Module:
    stem = [nn.Conv2d(colours, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


SUBJECTS = {
    "LeNet-300-100, 10,000 digits": Subject(lenet_300_100, "mnist", (0.92, 0.96), 10),
    "LeNet-5, 10,000 digits": Subject(lenet_5, "mnist", (0.95, 0.98), 4),
    "ResNet-8, 10,000 CIFAR pictures": Subject(resnet_8, "cifar", (0.8, 0.9), 5, 3e-3),
    "ResNet-8, 10,000 clothes": Subject(partial(resnet_8, 1), "fashion", (0.8, 0.9), 5, 3e-3),
    "head on features of CIFAR": Subject(partial(mlp, 1280, 256, 128, 6), "features", (0.85, 0.92), 8),
    "transformer, CLINC150": Subject(Intents, "clinc", (0.7,), 8),
}
#: What the options of the files are for.
FILES = {
    "mnist": "npz file of MNIST",
    "cifar": "zip file of pictures",
    "fashion": "folder of Fashion-MNIST's four .gz files, as Debian's dataset-fashion-mnist installs it",
    "features": "cifar-features.pt, which benchmarks/last_layer.py --cifar leaves in its --cache",
    "clinc": "JSON file with lists of pairs (query, intent) under train and test",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help=FILES["mnist"])
    parser.add_argument("--cifar", type=Path, default=os.environ.get("BENSEMBLE_CIFAR"), help=FILES["cifar"])
    parser.add_argument("--fashion", type=Path, default=os.environ.get("BENSEMBLE_FASHION"), help=FILES["fashion"])
    parser.add_argument("--features", type=Path, default=os.environ.get("BENSEMBLE_FEATURES"), help=FILES["features"])
    parser.add_argument("--clinc", type=Path, default=os.environ.get("BENSEMBLE_CLINC"), help=FILES["clinc"])
    parser.add_argument("--network", choices=list(SUBJECTS), action="append", help="default: all")
    parser.add_argument("--way", choices=list(WAYS), action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--looked-at", type=int, default=LOOKED_AT, help="training examples that ways without labels see"
    )
    parser.add_argument("--auto", action="store_true", help="also find the share, which takes as long as the rest")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name in arguments.network or SUBJECTS:
        path = getattr(arguments, SUBJECTS[name].data)
        if not path or not Path(path).exists():
            print(f"{name}: left out, --{SUBJECTS[name].data} must be the {FILES[SUBJECTS[name].data]}, got {path}")
            continue
        ways, looked_at = arguments.way or list(WAYS), arguments.looked_at
        figures[name] = judged(name, Path(path), arguments.seeds, arguments.auto, ways, looked_at)
    write_json(arguments.json, figures)


def judged(
    name: str, path: Path, seeds: int, auto: bool, ways: list[str], looked_at: int = LOOKED_AT
) -> dict[str, list[float]]:
    """The table of one network: points below dense of every way at every share, by seed."""
    subject, found = SUBJECTS[name], dict[str, list[float]]()
    for seed in range(seeds):
        data = replace(LOADERS[subject.data](path, seed), looked_at=looked_at)
        torch.manual_seed(seed)
        dense = trained(subject.build(), data, subject.epochs, subject.rate)
        before = accuracy(dense, data)
        found.setdefault("dense", []).append(before)
        print(f"seed {seed}, dense: {before:.2f} %", file=sys.stderr, flush=True)
        for share in subject.shares:
            for way in ways:
                started = time.perf_counter()
                network = WAYS[way](dense, data, share)
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
    rows = [[way, *(shown(found[f"{way} {share}"]) for share in subject.shares)] for way in ways]
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


def clothes(path: Path, seed: int) -> Data:
    """10,000 training pictures of one seed, and the test pictures."""
    tensors = []
    for part in ("train", "t10k"):
        pixels = gzip.decompress((path / f"{part}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((path / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        x = torch.frombuffer(bytearray(pixels), dtype=torch.uint8, offset=16).view(-1, 1, 28, 28).float()
        tensors += [(x - 73) / 90, torch.frombuffer(bytearray(labels), dtype=torch.uint8, offset=8).long()]
    x, y, x_test, y_test = tensors
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:10_000]
    return Data(x[some], y[some], x_test, y_test)


def features(path: Path, seed: int) -> Data:
    """What EfficientNet-Lite0 makes of the pictures of six classes, in an order of one seed."""
    found = torch.load(path, weights_only=True)
    order = torch.randperm(len(found["y_train"]), generator=torch.Generator().manual_seed(seed))
    x, x_test = standardised(found["x_train"][order], found["x_test"])
    return Data(x, found["y_train"][order], x_test, found["y_test"])


LOADERS: dict[str, Callable[[Path, int], Data]] = {
    "mnist": digits, "cifar": pictures, "fashion": clothes, "features": features, "clinc": queries,
}  # fmt: skip


if __name__ == "__main__":
    main()

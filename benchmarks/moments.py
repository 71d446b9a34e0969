"""What moment propagation costs in deterministic forwards, and with MNIST how far it is from 3,000 weight samples."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from prediction import Block, mlp
from rounds import interleave, keep_freed_memory, print_table, write_json
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify, moments, to_deterministic

BATCHES = (16, 128)
SAMPLES = 3000


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def resnet() -> nn.Module:
    """A stem and three blocks of 32, 64 and 128 channels, with a global average pool."""
    stem = [nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    blocks = [Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


NETWORKS = {"MLP 784-400-400-10": mlp, "LeNet-5": lenet, "ResNet, 3 blocks": resnet}


def cost(model: nn.Module, rounds: int) -> dict[str, float]:
    """Moments over one deterministic forward, by batch size."""
    ratios = {}
    with torch.no_grad():
        sure, plain = moments(model, torch.rand(2, 1, 28, 28)), to_deterministic(model).eval()
        for batch in BATCHES:
            x = torch.rand(batch, 1, 28, 28)
            timings = interleave({"plain": lambda x=x: plain(x), "moments": lambda x=x: sure(x)}, "plain", rounds)
            ratios[str(batch)] = timings["moments"].ratio
    return ratios


def trained(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """Train, make Bayesian, fit the posterior; the last tenth of the images chooses its scale."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    count = len(images) * 9 // 10
    for _ in range(epochs):
        for rows in torch.randperm(count).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    bnn = bayesify(model.eval())
    fitting = DataLoader(TensorDataset(images[:3000], labels[:3000]), 128)
    held_out = DataLoader(TensorDataset(images[count:], labels[count:]), 500)
    bensemble.fit_posterior(bnn, fitting, likelihood="categorical", val_loader=held_out)
    return bnn


def seen(test: Tensor) -> Tensor:
    """Digits as they are, lying on their side, and off centre: where a network is sure and where it is not."""
    return torch.cat([test[:24], torch.rot90(test[24:40], 1, (2, 3)), torch.roll(test[40:56], (4, 4), (2, 3))])


def accuracy(bnn: nn.Module, x: Tensor, samples: int) -> dict[str, float]:
    """Standard deviations of logits and probabilities against weight samples."""
    sure = moments(bnn, x[:2])
    with torch.no_grad():
        _, variance = sure(x)
    drawn = bensemble.predict(bnn, x, samples, generator=torch.Generator().manual_seed(0))
    assert drawn.samples is not None
    probs = bensemble.predict(sure, x, likelihood="categorical").mean
    ratio = variance.sqrt() / drawn.std
    return {
        "std ratio": float(ratio.mean()),
        "smallest": float(ratio.min()),
        "largest": float(ratio.max()),
        "probability error": float((probs - drawn.samples.softmax(-1).mean(0)).abs().max()),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, help="npz with x_train, y_train, x_test")
    parser.add_argument("--images", type=int, default=12000, help="training images")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {}
    for name, build in NETWORKS.items():
        if options.only not in name:
            continue
        torch.manual_seed(0)
        model, found = build(), {}
        if options.mnist:
            data = np.load(options.mnist)
            images, test = (torch.from_numpy(data[k]).view(-1, 1, 28, 28) / 255 for k in ("x_train", "x_test"))
            labels = torch.from_numpy(data["y_train"]).long()
            bnn = trained(model, images[: options.images], labels[: options.images], options.epochs)
            found = accuracy(bnn, seen(test), options.samples)
        else:
            bnn = bayesify(model.eval())
        costs = {f"cost at {batch}": ratio for batch, ratio in cost(bnn, options.rounds).items()}
        row = {key: round(value, 4) for key, value in {**costs, **found}.items()}
        if not figures:
            print_table(["network", *row], [])
        figures[name] = row
        print("| " + " | ".join([name, *map(str, row.values())]) + " |", flush=True)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()

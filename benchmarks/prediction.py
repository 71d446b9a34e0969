"""What `predict` costs: 30 samples against 30 forwards of the deterministic network."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from networks import mlp
from rounds import interleave, keep_freed_memory, print_table, write_json
from torch import Tensor, nn

from bensemble import predict
from convert import bayesify

SAMPLES = 30


def lenet() -> nn.Module:
    """LeNet-5 as Caffe has it, 431 thousand weights, nine tenths of them in one Linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def cnn() -> nn.Module:
    """Three convolutions with norms and a global average pool, 94 thousand weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


def resnet18(classes: int = 10) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


#: Name, network, input shape, batch sizes, what becomes Bayesian.
CASES = [
    ("MLP 784-400-400-10", mlp, (784,), (1, 16, 128), None),
    ("CNN 32-64-128, global pool", cnn, (1, 28, 28), (1, 16, 128), None),
    ("LeNet-5", lenet, (1, 28, 28), (1, 16, 128), None),
    ("ResNet-18, head of 10", resnet18, (3, 224, 224), (1, 8), ["14"]),
    ("ResNet-18, head of 1000", lambda: resnet18(1000), (3, 224, 224), (1, 8), ["14"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    warnings.filterwarnings("ignore", message="predict: the posterior is neither")
    figures = []
    print_table(["network", "batch", "method", f"over {SAMPLES} forwards"], [])
    for name, build, shape, batches, include in CASES:
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        model = build().eval()
        bnn = bayesify(model, include=include)
        for batch in batches:
            x = torch.randn(batch, *shape)

            def plain(model: nn.Module = model, x: Tensor = x) -> None:
                with torch.no_grad():
                    for _ in range(SAMPLES):
                        model(x)

            def ours(bnn: nn.Module = bnn, x: Tensor = x) -> str:
                return predict(bnn, x, SAMPLES, likelihood="categorical").method

            timings = interleave({"plain": plain, "ours": ours}, "plain", arguments.rounds)
            row = {"network": name, "batch": batch, "method": ours(), "ratio": round(timings["ours"].ratio, 3)}
            figures.append(row)
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()

"""What converting a network costs in time and memory, against copying it and tracing it with torch.fx."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from rounds import interleave, keep_freed_memory, peak_memory, print_table, write_json
from torch import fx, nn

from convert import bayesify, plan, to_deterministic


class Bottleneck(nn.Module):
    """The residual block of a ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            if inputs != 4 * width
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50() -> nn.Module:
    """The layers of torchvision's ResNet-50, 25.6 million parameters."""
    blocks, inputs = [], 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(depth):
            blocks.append(Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    network = resnet50()
    ready, bnn = plan(network), bayesify(network)
    timings = interleave(
        {
            "copy.deepcopy": lambda: copy.deepcopy(network),
            "deepcopy + torch.fx trace": lambda: (copy.deepcopy(network), fx.Tracer().trace(network)),
            "bayesify with a ready plan": lambda: bayesify(network, plan=ready),
            "bayesify": lambda: bayesify(network),
            "deepcopy of the Bayesian network": lambda: copy.deepcopy(bnn),
            "to_deterministic": lambda: to_deterministic(bnn),
        },
        "copy.deepcopy",
        options.rounds,
    )
    traced = timings["deepcopy + torch.fx trace"].ratio
    rows = [[n, f"{1e3 * t.seconds:.1f}", f"{t.ratio:.2f}", f"{t.ratio / traced:.2f}"] for n, t in timings.items()]
    print_table(["ResNet-50", "ms", "over deepcopy", "over deepcopy + trace"], rows)
    weights, copied = sum(p.nbytes for p in network.parameters()), peak_memory(lambda: copy.deepcopy(network))
    shares = {
        f"bayesify(prior={prior!r})": (peak_memory(lambda p=prior: bayesify(network, prior=p)) - copied) / weights
        for prior in ("empirical", "pretrained", "ard", "normal")
    }
    print("\nPeak of the tensor memory above that of copy.deepcopy, in units of all weights: rho is one.\n")
    print_table(["ResNet-50", "weights"], [[name, f"{share:.3f}"] for name, share in shares.items()])
    write_json(options.json, {**{name: t.ratio for name, t in timings.items()}, "memory": shares})


if __name__ == "__main__":
    main()

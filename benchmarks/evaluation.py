"""What evaluation of a converted network costs over the network it came from: the posterior means, the same numbers.

Where a call takes less than 50 microseconds the ratio says little, so the difference is given too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from networks import encoder, mlp, resnet
from rounds import interleave, print_table, write_json
from torch import Tensor, nn

from convert import bayesify


class ReadingBlock(nn.Module):
    """A feed-forward block that asks for the dtype of a weight in every forward, as that of T5 does.

    Args:
        reads: Whether it asks.
    """

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(256, 1024, bias=False), nn.Linear(1024, 256, bias=False)
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.wi(x))
        if self.reads and hidden.dtype != self.wo.weight.dtype:
            hidden = hidden.to(self.wo.weight.dtype)
        return self.wo(hidden)


CASES = {
    "Linear 32, batch 1": (lambda: nn.Linear(32, 32), (1, 32)),
    "Linear 512, batch 128": (lambda: nn.Linear(512, 512), (128, 512)),
    "MLP 784-400-400-10, batch 16": (mlp, (16, 784)),
    "Conv 64-64 3x3, 32x32, batch 8": (lambda: nn.Conv2d(64, 64, 3, padding=1), (8, 64, 32, 32)),
    "ResNet-18-like, width 32, batch 1": (resnet, (1, 3, 32, 32)),
    "transformer encoder, 2 x 128, batch 4 x 64": (encoder, (4, 64, 128)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    with torch.no_grad():
        for name, (build, shape) in CASES.items():
            network = build().eval()
            figures[name] = compared(network, bayesify(network).eval(), torch.randn(shape), options.rounds)
        for training in (False, True):
            silent, reading = (bayesify(ReadingBlock(reads)).train(training) for reads in (False, True))
            name = "a block that reads .weight.dtype, over one that does not" + (", in training" if training else "")
            figures[name] = compared(silent, reading, torch.randn(16, 32, 256), options.rounds)
    print_table(
        ["case", "microseconds before", "ratio", "microseconds more"],
        [
            [name, f"{row['before']:.0f}", f"{row['ratio']:.3f}", f"{row['before'] * (row['ratio'] - 1):+.1f}"]
            for name, row in figures.items()
        ],
    )
    write_json(options.json, figures)


def compared(before: nn.Module, after: nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """Microseconds of a call of the first, and the ratio of the second to it."""
    found = interleave({"before": lambda: before(x), "after": lambda: after(x)}, "before", rounds)
    return {"before": 1e6 * found["before"].seconds, "ratio": found["after"].ratio}


if __name__ == "__main__":
    main()

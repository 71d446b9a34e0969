"""Compaction over real architectures: the masked network against the compacted one, and what is left of it.

``make compaction-sweep`` runs all of it in the environment of the zoo and prints a table; it takes an hour of one core.
``python -m tests.graph.sweep resnet18 vit_tiny_patch16_224 --mask "tied 50 %"`` runs a part.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.models.batches import call
from bensemble.models.outputs import tensor_paths
from convert import compact

from .architectures import (
    BY_POSTERIOR,
    DEAD_HEADS,
    HUGGING_FACE,
    TIMM,
    TORCHVISION,
    TRANSFORMERS,
    build,
    example,
    masked,
)

#: Largest |compacted - masked| over the largest |masked|.
TOLERANCE = 1e-5

#: Percent of the parameters that may be left, by architecture: tied halves, then independent masks.
TARGETS = {
    ("resnet18", "tied 50 %"): 26,
    ("mobilenet_v2", "tied 50 %"): 35,
    ("densenet121", "tied 50 %"): 29,
    ("efficientnet_b0", "tied 50 %"): 43,
    ("googlenet", "tied 50 %"): 15,
    ("shufflenet_v2_x0_5", "tied 50 %"): 51,
    **{(name, BY_POSTERIOR): left for name, left in (("resnet18", 26), ("mobilenet_v2", 35), ("densenet121", 29))},
    **{(name, BY_POSTERIOR): left for name, left in (("vit_tiny_patch16_224", 57), ("bert", 57), ("gpt2", 57))},
    **{("resnet18", f"random {share} %"): left for share, left in ((30, 70), (50, 46), (80, 12))},
    **{("mobilenet_v2", f"random {share} %"): left for share, left in ((30, 61), (50, 37), (80, 11))},
}


@dataclass(frozen=True)
class Row:
    """One architecture with one kind of mask."""

    name: str
    mask: str
    form: str
    left: float
    error: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it is exact and small enough."""
        return self.error <= TOLERANCE and (self.target is None or 100 * self.left <= self.target + 3)

    @property
    def target(self) -> int | None:
        """Percent of the parameters, of a transformer of those of its blocks, that may be left, less three."""
        return 57 if self.mask == DEAD_HEADS else TARGETS.get((self.name, self.mask))

    def __str__(self) -> str:
        target = "" if self.target is None else self.target
        return (
            f"| {self.name} | {self.mask} | {self.form} | {100 * self.left:.1f} | {target} | {self.error:.1e} | "
            f"{self.seconds:.0f} | {'' if self.passed else 'MISSED'} |"
        )


def rows(name: str, mask: str | None = None) -> Iterator[Row]:
    """Every mask of one architecture, or one of them."""
    model = build(name)
    found = _output(model, example(name, other=True))
    assert (found[1:] - found[:1]).abs().max() > 1e-3 * found.abs().max(), f"{name} does not look at its inputs"
    for kind, network in masked(name, model):
        if mask not in (None, kind):
            continue
        start = time.process_time()
        small = compact(network, example(name, other=False))
        seconds = time.process_time() - start
        within = r"\.(blocks|layer|layers|h)\.\d" if kind == DEAD_HEADS else ""
        left = _count(small, within) / _count(network, within)
        form = "graph" if isinstance(small, torch.fx.GraphModule) else "class"
        yield Row(name, kind, form, left, _error(small, network, example(name, other=True)), seconds)


def _count(model: nn.Module, within: str) -> int:
    return sum(p.numel() for path, p in model.named_parameters() if re.search(within, f".{path}"))


@torch.no_grad()
def _output(model: nn.Module, inputs: Any) -> Tensor:
    """The first tensor that the model returns, in evaluation."""
    return next(iter(tensor_paths(call(model.eval(), inputs))))[1]


def _error(small: nn.Module, model: nn.Module, inputs: Any) -> float:
    """Largest difference over the largest output."""
    found, expected = _output(small, inputs), _output(model, inputs)
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> int:
    """Print the table; the number of rows that missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*TORCHVISION, *TIMM, *TRANSFORMERS, *HUGGING_FACE])
    parser.add_argument("--mask", help="default: every kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| architecture | mask | form | % left | target | error / max | CPU s | |")
    print("|---|---|---|---|---|---|---|---|")
    missed = 0
    for name in arguments.names:
        for row in rows(name, arguments.mask):
            print(row, flush=True)
            missed += not row.passed
    print(f"{missed} missed")
    return missed


if __name__ == "__main__":
    sys.exit(min(main(), 1))

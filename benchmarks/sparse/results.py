"""One seed of one network: the chain run, or read from where it was kept, and everything measured."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from chain import chained
from digits import Digits, error
from settings import SUBJECTS
from torch import nn

from convert import compact, compare_onnx, export_onnx


@dataclass(frozen=True)
class Result:
    """What became of one network.

    Attributes:
        seed: Of the weights it started from, the order of the pictures and the noise.
        fewer: Weights before over weights left, without biases.
        error: Percentage of wrong test pictures, of the plain network.
        held_out: The same of the pictures that chose the settings.
        error_before: Percentage of wrong test pictures before pruning.
        parameters: Before, and of the compacted network with its zeros.
        sizes: Bytes of the two ONNX files.
        latency_ratio: At batch 128, of the compacted file over the file before, in ONNX Runtime on one thread.
    """

    seed: int
    fewer: float
    error: float
    held_out: float
    error_before: float
    parameters: tuple[int, int]
    sizes: tuple[int, int]
    latency_ratio: float

    def row(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> list[str]:
        before, after = self.parameters
        return [
            f"{self.fewer:.1f}x",
            f"{self.error:.2f}",
            f"{self.held_out:.2f}",
            f"{self.error_before:.2f}",
            f"{after:,}",
            f"1/{before / after:.1f}",
            f"1/{self.sizes[0] / self.sizes[1]:.1f}",
            f"1/{1 / self.latency_ratio:.1f}",
        ]


def measured(name: str, seed: int, digits: Digits, cache: Path) -> Result:
    """Run the chain and look at the test pictures."""
    torch.manual_seed(seed)
    make, recipe = SUBJECTS[name]
    before, after = chained(make(), digits, recipe, cache / f"{name.partition(',')[0]}-seed{seed}")
    small = compact(after, digits.train[0][:2]).eval()
    total, left = weights(before)[0], weights(small)[1]
    sizes, ratio = files(before, small, digits)
    return Result(
        seed,
        total / left,
        error(small, digits.test),
        error(small, digits.held_out),
        error(before, digits.test),
        (parameters(before), parameters(small)),
        sizes,
        ratio,
    )


def weights(network: nn.Module) -> tuple[int, int]:
    """All weights and those that are not 0, without biases."""
    tensors = [p for p in network.parameters() if p.ndim > 1]
    return sum(p.numel() for p in tensors), sum(int(p.count_nonzero()) for p in tensors)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def files(before: nn.Module, small: nn.Module, digits: Digits) -> tuple[tuple[int, int], float]:
    """Bytes of both files, and the latency of the second over that of the first."""
    x = digits.train[0][:128]
    with tempfile.TemporaryDirectory() as folder:
        paths = {"before": Path(folder) / "before.onnx", "small": Path(folder) / "small.onnx"}
        export_onnx(before, paths["before"], x)
        export_onnx(small, paths["small"], x)
        found = compare_onnx(paths, x, batch_sizes=(128,))
    return (found["before"].size, found["small"].size), found["small"].latency[128].ratio

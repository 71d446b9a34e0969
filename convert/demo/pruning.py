"""What a network can lose without training: its smallest weights, or weights by their worth with a repair."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convert import (
    Comparison,
    bayesify,
    compact,
    compare_onnx,
    export_onnx,
    prune_and_repair,
    prune_scores,
    repair,
    to_deterministic,
)

from .data import Images
from .network import accuracy

__all__ = ["Slimming", "slim"]

#: Shares of weights removed, one after the other.
SHARES = (0.5, 0.8, 0.9, 0.95, 0.98)
#: The share of single weights, and of whole channels, that the files lack.
SPARSE, CHANNELS = 0.9, 0.5


class Slimming(NamedTuple):
    """(sparsity, accuracy) by the way of removing weights, and files side by side."""

    curves: dict[str, list[tuple[float, float]]]
    files: Comparison


def slim(network: nn.Module, whole: Path, images: Images) -> Slimming:
    """Prune one network in several ways and write its files beside that of the whole one."""
    loader = DataLoader(TensorDataset(*images.train), 500)
    start = (0.0, accuracy(network, images.test))
    small, repaired, left, sparse = [start], [start], network, network
    bnn = bayesify(network)
    size = prune_scores(bnn, loader, score="magnitude")
    for share in SHARES:
        small.append((share, accuracy(to_deterministic(bnn, sparsity=share, scores=size), images.test)))
        plain = bayesify(left)
        worth = prune_scores(plain, loader, score="obd", damping=1.0)
        left = repair(to_deterministic(plain, sparsity=share, scores=worth), network, loader)
        repaired.append((share, accuracy(left, images.test)))
        sparse = left if share == SPARSE else sparse
    slimmer = prune_and_repair(network, loader, sparsity=CHANNELS, granularity="channel", steps=2).network
    inputs, folder = images.val[0][:2], whole.parent
    export_onnx(sparse, folder / "sparse.onnx", inputs, sparse=True)
    export_onnx(compact(slimmer, inputs), folder / "compact.onnx", inputs)
    files = {
        "whole": whole,
        f"{SPARSE:.0%} of the weights removed": folder / "sparse.onnx",
        f"{CHANNELS:.0%} of the channels cut out": folder / "compact.onnx",
    }
    compared = compare_onnx(
        files, images.val[0][:64], batch_sizes=(1, 64), evaluate=lambda file: accuracy(file, images.test)
    )
    return Slimming({"the smallest ones": small, "by their worth, the rest repaired": repaired}, compared)

"""Regression tables with ten fixed splits each, standardised by what a split trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TABLES = ("concrete", "energy", "yacht")
SPLITS = 10


@dataclass(frozen=True, eq=False)
class Split:
    """One split: four fifths of its training rows train, one fifth chooses, the test rows judge.

    Attributes:
        train: Features (N, D) and targets (N, 1), standardised.
        held_out: The same, for settings.
        test: The same, for the figures.
        unit: Standard deviation of the training targets in their own unit.
    """

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unit: float


def load_split(folder: Path, table: str, index: int) -> Split:
    """Read ``<table>.data.csv.gz``, targets in the last column, and a column of ``<table>.test_mask.csv.gz``."""
    rows = torch.tensor(np.loadtxt(folder / f"{table}.data.csv.gz", delimiter=","), dtype=torch.float64)
    mask = torch.tensor(np.loadtxt(folder / f"{table}.test_mask.csv.gz", delimiter=",")[:, index]).bool()
    others = rows[~mask]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(index))
    train, held_out = others[order[len(others) // 5 :]], others[order[: len(others) // 5]]
    mean, std = train.mean(0), train.std(0)
    std[std == 0] = 1

    def pair(part: Tensor) -> tuple[Tensor, Tensor]:
        scaled = ((part - mean) / std).float()
        return scaled[:, :-1], scaled[:, -1:]

    return Split(pair(train), pair(held_out), pair(rows[mask]), float(std[-1]))

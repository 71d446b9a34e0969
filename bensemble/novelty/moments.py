r"""Streaming sums over rows of features: one for each class, and one second moment for all.

From :math:`s_c = \sum_{y_n = c} (x_n - p)` and :math:`M = \sum_n (x_n - p)(x_n - p)^T` follow, in one pass, the class
means, the overall mean, the overall covariance M / n - m m^T and the shared covariance of the classes, which is the
overall one less the covariance of the class means. The pivot p, the mean of the first batch, keeps the subtraction from
cancelling where means are large. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.ranks import from_every_process, sum_over_processes

__all__ = ["Moments", "Statistics"]


@dataclass(frozen=True)
class Statistics:
    """Means and covariances of one layer.

    Attributes:
        mean: Overall mean, (k,).
        class_means: Mean of each class, (C, k).
        within: Shared covariance of the classes, (k, k).
        overall: Overall covariance, (k, k).
    """

    mean: Tensor
    class_means: Tensor
    within: Tensor
    overall: Tensor


class Moments:
    """The sums of one layer.

    Args:
        size: Number of features k.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._pivot: Tensor | None = None
        self._sums = torch.zeros(0, size, dtype=torch.float64)
        self._second = torch.zeros(size, size, dtype=torch.float64)

    def add(self, rows: Tensor, numbers: Tensor, num_classes: int) -> None:
        """Take in rows of shape (N, k) in float64, with the number of the class of each."""
        if not len(rows):
            return
        if self._pivot is None:
            self._pivot = rows.mean(0)
            self._sums, self._second = self._sums.to(rows.device), self._second.to(rows.device)
        if num_classes > len(self._sums):
            self._sums = torch.cat([self._sums, self._sums.new_zeros(num_classes - len(self._sums), self._size)])
        shifted = rows - self._pivot
        self._sums.index_add_(0, numbers.to(rows.device), shifted)
        self._second.addmm_(shifted.T, shifted)

    def statistics(self, counts: Tensor, places: Tensor, num_classes: int) -> Statistics:
        """Means and covariances over all processes, which must all call this.

        Args:
            counts: Rows of each class of this process, in its own numbers.
            places: For each of these classes its number in all processes.
            num_classes: Number of classes of all processes.
        """
        device = self._second.device
        counts, places = counts.to(device), places.to(device)
        pivots = [p for p in from_every_process(None if self._pivot is None else self._pivot.cpu()) if p is not None]
        pivot = pivots[0].to(device)
        move = (self._pivot if self._pivot is not None else pivot) - pivot
        cross = torch.outer(self._sums.sum(0), move)
        second = self._second + cross + cross.T + counts.sum() * torch.outer(move, move)
        sums = torch.zeros(num_classes, self._size + 1, dtype=torch.float64, device=device)
        own = torch.cat([self._sums + counts[:, None] * move, counts[:, None]], 1)
        sums = sum_over_processes(sums.index_add_(0, places, own))
        second, counts = sum_over_processes(second), sums[:, -1:]
        mean = sums[:, :-1].sum(0) / counts.sum()
        class_means = sums[:, :-1] / counts
        overall = second / counts.sum() - torch.outer(mean, mean)
        spread = (class_means - mean) * (counts / counts.sum()).sqrt()
        return Statistics(pivot + mean, pivot + class_means, overall - spread.T @ spread, overall)

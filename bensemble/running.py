"""Predictions gathered sample by sample and batch by batch, without holding the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import InvalidValueError
from .likelihoods import DiscreteLikelihood, Likelihood
from .predictive import ClassPrediction, Prediction, RegressionPrediction

__all__ = ["RunningMoments", "assemble"]


class RunningMoments:
    """Running mean and variance over samples (Welford 1962), and what else a prediction is made of."""

    def __init__(self, keep: bool) -> None:
        self._keep, self._count = keep, 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._spread: Tensor | None = None
        self._samples: list[Tensor] = []
        self._spreads: list[Tensor] = []

    def add(self, expected: Tensor, spread: Tensor | None) -> None:
        """Take in one sample: its expected observation, and the uncertainty in the data given it."""
        self._count += 1
        if self._mean is None or self._squares is None:
            self._mean, self._squares, self._spread = expected.clone(), torch.zeros_like(expected), spread
        else:
            _check_same("a sample", expected.shape, "the first", self._mean.shape)
            change = expected - self._mean
            self._mean = self._mean + change / self._count
            self._squares = self._squares + change * (expected - self._mean)
            if spread is not None and self._spread is not None:
                self._spread = self._spread + (spread - self._spread) / self._count
        if self._keep:
            self._samples.append(expected)
            if spread is not None:
                self._spreads.append(spread)

    def result(self) -> dict[str, Tensor]:
        """The moments by name; names with ``sample`` have the sample axis in front."""
        if self._mean is None or self._squares is None:
            raise RuntimeError("no sample was added")
        std = (self._squares / (self._count - 1)).sqrt() if self._count > 1 else torch.full_like(self._mean, torch.nan)
        found = {"mean": self._mean, "std": std}
        if self._spread is not None:
            found["spread"] = self._spread
        if self._samples:
            found["samples"] = torch.stack(self._samples)
        if self._spreads:
            found["sample_spreads"] = torch.stack(self._spreads)
        return found


def assemble(
    parts: list[dict[str, Tensor]], likelihood: Likelihood | None, num_samples: int, method: str
) -> Prediction:
    """One prediction out of the moments of every batch."""
    if not parts:
        raise InvalidValueError("predict: inputs must hold at least one batch, got a loader without any.")
    found = {name: _join([part[name] for part in parts], 1 if name.startswith("sample") else 0) for name in parts[0]}
    if num_samples == 1 and method == "deterministic":
        found["std"] = torch.zeros_like(found["mean"])
    common: dict[str, Any] = {
        "mean": found["mean"],
        "std": found["std"],
        "num_samples": num_samples,
        "samples": found.get("samples"),
        "likelihood": likelihood,
        "method": method,
    }
    if isinstance(likelihood, DiscreteLikelihood):
        return ClassPrediction(**common, expected_entropy=found["spread"])
    if likelihood is not None:
        return RegressionPrediction(**common, noise_variance=found["spread"], noise_samples=found.get("sample_spreads"))
    return Prediction(**common)


def _join(tensors: list[Tensor], axis: int) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    for tensor in tensors[1:]:
        _check_same("a batch", tensor.shape[axis + 1 :], "the first", tensors[0].shape[axis + 1 :])
    return torch.cat(tensors, axis)


def _check_same(one: str, shape: torch.Size, other: str, reference: torch.Size) -> None:
    if shape != reference:
        raise InvalidValueError(
            f"predict: outputs of {one} must have the shape {tuple(reference)} of {other}, got {tuple(shape)}; "
            "pad batches to one length, or predict them one by one."
        )

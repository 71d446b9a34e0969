"""Predictions gathered sample by sample and batch by batch, without holding the samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidValueError
from ..gaussian import precise
from ..likelihoods import DiscreteLikelihood, Likelihood
from .results import ClassPrediction, Prediction, RegressionPrediction

__all__ = ["RunningMoments", "assemble"]


#: Samples wait until they hold as many numbers: one call for many small tensors, and little memory for large ones.
BLOCK = 2**18


class RunningMoments:
    """Running mean and variance over samples, and what else a prediction is made of.

    Blocks of samples are merged as by Chan, Golub & LeVeque 1983 ("Algorithms for Computing the Sample Variance",
    equation 2.1).

    Args:
        likelihood: What outputs mean; None for raw ones.
        keep: Whether to keep the samples.
        keep_logits: Whether to keep the outputs of classifiers; None for as the samples.
    """

    def __init__(self, likelihood: Likelihood | None, keep: bool, keep_logits: bool | None = None) -> None:
        self._likelihood, self._keep, self._count = likelihood, keep, 0
        keep_logits = keep if keep_logits is None else keep_logits
        self._keep_logits = keep_logits and isinstance(likelihood, DiscreteLikelihood)
        self._waiting: list[Tensor] = []
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None
        self._spread: Tensor | None = None
        self._samples: list[Tensor] = []
        self._spreads: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, raw: Tensor) -> None:
        """Take in the output of one sample."""
        if self._mean is None and not self._waiting and self._likelihood is not None:
            self._likelihood.check(raw)
        if self._waiting:
            _check_same("a sample", raw.shape, "the first", self._waiting[0].shape)
        self._waiting.append(raw)
        if len(self._waiting) * raw.numel() >= BLOCK:
            self._merge()

    def _merge(self) -> None:
        """Work off the samples that wait."""
        block, self._waiting = torch.stack(self._waiting), []
        expected, spread = self._expected(block)
        if self._mean is not None:
            _check_same("a sample", expected.shape[1:], "the first", self._mean.shape)
        added, before = len(expected), self._count
        self._count += added
        mean = expected.mean(0)
        squares = (expected - mean).square().sum(0)
        if self._mean is None or self._squares is None:
            self._mean, self._squares = mean, squares
        else:
            change = mean - self._mean
            self._mean = self._mean + change * (added / self._count)
            self._squares = self._squares + squares + change.square() * (before * added / self._count)
        if spread is not None:
            share = added / self._count
            self._spread = spread.mean(0) if self._spread is None else self._spread.lerp(spread.mean(0), share)
        if self._keep_logits:
            self._logits.append(precise(block))
        if self._keep:
            self._samples.append(expected)
            if spread is not None:
                self._spreads.append(spread)

    def _expected(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """Expected observations and the uncertainty in the data, for each sample of a block."""
        if self._likelihood is None:
            return precise(block), None
        if isinstance(self._likelihood, DiscreteLikelihood):  # the samples are so many more examples
            size, rows = block.shape[:2], block.flatten(0, 1)
            return self._likelihood.expect(rows).unflatten(0, size), self._likelihood.spread(rows).unflatten(0, size)
        expected, spreads = [self._likelihood.expect(s) for s in block], [self._likelihood.spread(s) for s in block]
        return torch.stack(expected), torch.stack(spreads)

    def result(self) -> dict[str, Tensor]:
        """The moments by name; those whose name starts with ``sample`` have the sample axis in front."""
        if self._waiting:
            self._merge()
        assert self._mean is not None
        assert self._squares is not None
        std = (self._squares / (self._count - 1)).sqrt() if self._count > 1 else torch.full_like(self._mean, torch.nan)
        found = {"mean": self._mean, "std": std}
        if self._spread is not None:
            found["spread"] = self._spread
        if self._samples:
            found["samples"] = torch.cat(self._samples)
        if self._spreads:
            found["sample_spreads"] = torch.cat(self._spreads)
        if self._logits:
            found["sample_logits"] = torch.cat(self._logits)
        return found


def assemble(
    parts: list[dict[str, Tensor]], likelihood: Likelihood | None, num_samples: int, method: str
) -> Prediction:
    """One prediction out of the moments of every batch."""
    if not parts:
        raise InvalidValueError("predict: inputs must hold at least one batch, got a loader without any.")
    found = {
        name: _join([part[name] for part in parts], 1 if name.startswith(("sample", "member")) else 0)
        for name in parts[0]
    }
    if num_samples == 1 and method == "deterministic":
        found["std"] = torch.zeros_like(found["mean"])
    common: dict[str, Any] = {
        "mean": found["mean"],
        "std": found["std"],
        "num_samples": num_samples,
        "samples": found.get("samples"),
        "logits": found.get("sample_logits"),
        "logit_mean": found.get("member_means"),
        "logit_variance": found.get("member_variances"),
        "likelihood": likelihood,
        "method": method,
        "novelty": found.get("novelty"),
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

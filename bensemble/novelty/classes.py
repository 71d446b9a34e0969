"""The classes that a distance is measured to: classes, label sets, or quantile bins of a number.

A code is what names a class: an integer, or the labels of a set. A :class:`ClassTable` numbers the codes as they come.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError
from ..likelihoods import Bernoulli, Categorical, Gaussian, GaussianHead, Likelihood
from ..models.outputs import describe

__all__ = ["ClassTable", "bin_edges", "class_codes", "kind_of", "target_values", "term_shape"]

#: Bins of a regression's target, with equally many examples each.
BINS = 10
#: Label sets that still count as few.
MOST_SETS = 256

Code = Any  # int or tuple of ints


def kind_of(likelihood: Likelihood) -> str:
    """``"categorical"``, ``"bernoulli"`` or ``"regression"``."""
    if isinstance(likelihood, Categorical):
        return "categorical"
    if isinstance(likelihood, Bernoulli):
        return "bernoulli"
    if isinstance(likelihood, (Gaussian, GaussianHead)):
        return "regression"
    raise InvalidTypeError(
        f"fit_novelty: likelihood must be Categorical, Bernoulli, Gaussian or GaussianHead, got "
        f"{type(likelihood).__name__}; its targets name no classes."
    )


def term_shape(likelihood: Likelihood, raw: Tensor) -> torch.Size:
    """The shape of a novelty for these outputs: (B,), or (B, ...) with the positions of tokens or pixels."""
    if isinstance(likelihood, Categorical):
        axis = likelihood.axis(raw)
        return raw.shape[:axis] + raw.shape[axis + 1 :]
    if isinstance(likelihood, Bernoulli):
        return raw.shape[:1] + raw.shape[2:]
    if raw.ndim > 2:
        raise InvalidValueError(
            f"fit_novelty: outputs of a regression must be one for each example, got shape {tuple(raw.shape)}; "
            "novelty bins one number of each example."
        )
    return raw.shape[:1]


def class_codes(likelihood: Likelihood, raw: Tensor, target: Any, edges: Tensor | None) -> tuple[Tensor, Tensor]:
    """The code of each term of a batch, and which terms count.

    Args:
        likelihood: What the outputs mean; it checks the target.
        raw: The outputs.
        target: The target.
        edges: Edges of the bins of a regression.

    Returns:
        int64 codes of shape (N,), or (N, K) for sets of K labels, and bool of shape (N,).
    """
    likelihood.terms(raw, target)
    if isinstance(likelihood, Categorical):
        return target.flatten().long(), (target != likelihood.ignore_index).flatten()
    if isinstance(likelihood, Bernoulli):
        if not bool(((target == 0) | (target == 1)).all()):
            raise InvalidValueError("fit_novelty: target must hold 0 and 1, got values between; round them first.")
        codes = target.long().unsqueeze(1) if target.ndim == 1 else target.long().movedim(1, -1).flatten(0, -2)
    else:
        assert edges is not None
        codes = torch.searchsorted(edges, target_values(target).to(edges.device), right=True).to(target.device)
    return codes, torch.ones(len(codes), dtype=torch.bool, device=codes.device)


def target_values(target: Any) -> Tensor:
    """The one number of each example of a regression in float64 on the CPU, shape (B,)."""
    if not isinstance(target, Tensor) or not target.ndim or target.numel() != len(target):
        raise InvalidValueError(
            f"fit_novelty: target of a regression must be one number for each example, got {describe(target)}; "
            "several numbers have no quantile bins, so fit a novelty by classes of your own."
        )
    return target.detach().flatten().cpu().double().contiguous()


def bin_edges(values: Tensor) -> Tensor:
    """The inner edges of bins with equally many values each; equal edges count once."""
    ordered = values.sort().values
    places = [len(ordered) * number // BINS for number in range(1, BINS)]
    return ordered[places].unique() if len(ordered) else ordered


class ClassTable:
    """Numbers the classes in the order in which they come, and counts their terms.

    Attributes:
        codes: The code of each class.
        counts: Terms of each class, float64 on the CPU.
    """

    def __init__(self) -> None:
        self.codes: list[Code] = []
        self.counts = torch.zeros(0, dtype=torch.float64)
        self._numbers: dict[Code, int] = {}

    def numbers(self, codes: Tensor) -> Tensor:
        """The number of the class of each term, shape (N,) on the CPU; new classes get new numbers."""
        if not len(codes):
            return torch.zeros(0, dtype=torch.long)
        distinct, where = codes.cpu().unique(dim=0, return_inverse=True)
        keys = [tuple(code) if isinstance(code, list) else code for code in distinct.tolist()]
        for key in keys:
            if key not in self._numbers:
                self._numbers[key] = len(self.codes)
                self.codes.append(key)
        if codes.ndim > 1 and len(self.codes) > MOST_SETS:
            raise InvalidValueError(
                f"fit_novelty: targets must hold at most {MOST_SETS} label sets, got more; there are too few examples "
                "of each set to know its mean. Fit a novelty on fewer labels."
            )
        grown = torch.zeros(len(self.codes), dtype=torch.float64)
        grown[: len(self.counts)] = self.counts
        found = torch.tensor([self._numbers[key] for key in keys], dtype=torch.long)[where]
        self.counts = grown + torch.bincount(found, minlength=len(self.codes))
        return found

"""The distances and energies of held-out terms, from which a score is standardised, in bounded memory."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Likelihood
from ..models.ranks import from_every_process
from .classes import class_codes, kind_of, target_values

__all__ = ["HeldoutTerms", "heldout_codes"]

#: Terms that are kept in one process. Of more, such as all pixels of many images, a random part is kept.
MOST = 2**18


class HeldoutTerms:
    """Distances to each layer, energy and class code of held-out terms.

    Args:
        generator: Chooses which terms are kept where there are too many.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator, self._limit = generator, 1.0
        self._values: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._codes: list[Tensor] = []
        self._count = 0

    def add(self, values: Tensor, codes: Tensor) -> None:
        """Take in terms: distances and energy as (N, L + 1) in float64, and their class codes as (N, ...)."""
        keys = torch.rand(len(values), generator=self._generator, dtype=torch.float64)
        chosen = keys < self._limit
        self._values.append(values.cpu()[chosen])
        self._codes.append(codes.cpu()[chosen])
        self._keys.append(keys[chosen])
        self._count += int(chosen.sum())
        while self._count > MOST:
            self._limit /= 2
            chosen = torch.cat(self._keys) < self._limit
            for entries in (self._values, self._codes, self._keys):
                entries[:] = [torch.cat(entries)[chosen]]
            self._count = int(chosen.sum())

    def gathered(self) -> tuple[Tensor, str]:
        """The terms of all processes in the order of their ranks, and a digest of their codes."""
        own = (torch.cat(self._values), torch.cat(self._codes)) if self._values else None
        found = [pair for pair in from_every_process(own) if pair is not None]
        if not found:
            return torch.zeros(0, 0, dtype=torch.float64), ""
        codes = torch.cat([codes for _, codes in found]).contiguous()
        return torch.cat([values for values, _ in found]), hashlib.sha256(codes.numpy().tobytes()).hexdigest()


def heldout_codes(likelihood: Likelihood, raw: Tensor, target: Any, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """An integer of each held-out term, by which ensembles recognise the data, and which terms count; in ``shape``."""
    if target is None:
        return torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    if kind_of(likelihood) == "regression":
        return target_values(target).view(torch.long).view(shape), torch.ones(shape, dtype=torch.bool)
    codes, kept = class_codes(likelihood, raw, target, None)
    if codes.ndim > 1:
        codes = (codes * 3 ** (torch.arange(codes.shape[1], device=codes.device) % 32)).sum(1)
    return codes.view(shape), kept.view(shape)

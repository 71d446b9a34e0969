"""How many weights of a network are zero, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bensemble.checks import check_module
from bensemble.layers.weights import PosteriorModule
from bensemble.posterior import Posterior
from bensemble.tables import Printed, text_table
from bensemble.torch_internals import buffers_of

__all__ = ["SparsityReport", "SparsityRow", "sparsity"]


@dataclass(frozen=True)
class SparsityRow:
    """Zeros of one weight tensor.

    Attributes:
        name: Original name of the parameter.
        total: Number of its weights.
        zeros: How many of them are zero, or pruned.
        prunable: Whether pruning may touch it.
    """

    name: str
    total: int
    zeros: int
    prunable: bool = True

    @property
    def sparsity(self) -> float:
        """Share of weights that are zero."""
        return self.zeros / self.total if self.total else 0.0


@dataclass(frozen=True)
class SparsityReport(Printed):
    """Zeros of every weight tensor with two or more dimensions; biases and vectors are counted apart.

    Example:
        >>> round(convert.sparsity(pruned).sparsity, 2)
        0.8
    """

    rows: tuple[SparsityRow, ...]
    vectors: SparsityRow

    @property
    def total(self) -> int:
        """Number of weights, without biases and vectors."""
        return sum(row.total for row in self.rows)

    @property
    def nonzero(self) -> int:
        """Number of weights that are left, without biases and vectors."""
        return self.total - sum(row.zeros for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Share of weights removed, without biases and vectors."""
        return 1.0 - self.nonzero / self.total if self.total else 0.0

    @property
    def compression(self) -> float:
        """Weights before over weights left."""
        return self.total / self.nonzero if self.nonzero else float("inf")

    def __str__(self) -> str:
        lines = [
            f"{self.nonzero:,} of {self.total:,} weights are left: {100 * self.sparsity:.1f} % removed, "
            f"{self.compression:.1f}x fewer. Biases and vectors: {self.vectors.zeros:,} of {self.vectors.total:,} zero."
        ]
        cells = [
            (
                row.name,
                f"{100 * row.sparsity:.1f} %",
                f"{row.total - row.zeros:,} of {row.total:,}",
                "" if row.prunable else "not prunable",
            )
            for row in self.rows
        ]
        return "\n".join([*lines, *text_table(cells, right=(1,), indent="  ")])


def sparsity(module: nn.Module) -> SparsityReport:
    """Count zeros in a deterministic or a Bayesian network; masks of torch.nn.utils.prune and of posteriors apply.

    A parameter that is shared counts once.

    Raises:
        InvalidTypeError: ``module`` is not a module.

    Example:
        >>> print(convert.sparsity(pruned))
    """
    check_module("sparsity", module)
    rows: list[SparsityRow] = []
    vectors = SparsityRow("biases and vectors", 0, 0)
    seen: set[int] = set()
    with torch.no_grad():
        for path, part in module.named_modules():
            for name, parameter, value, prunable in _weights(part):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                row = SparsityRow(f"{path}.{name}" if path else name, value.numel(), int((value == 0).sum()), prunable)
                if value.dim() < 2:
                    vectors = SparsityRow(vectors.name, vectors.total + row.total, vectors.zeros + row.zeros)
                else:
                    rows.append(row)
    return SparsityReport(tuple(rows), vectors)


def _weights(module: nn.Module) -> list[tuple[str, Tensor, Tensor, bool]]:
    """(original name, the Parameter, its value as the forward sees it, prunable) for the module's own parameters."""
    posteriors: dict[str, Posterior] = {}
    if isinstance(module, PosteriorModule):
        posteriors = {f"{p.stem}_{part}": p for p in module._posteriors() for part in ("mu", "rho")}
    found: list[tuple[str, Tensor, Tensor, bool]] = []
    for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if isinstance(parameter, nn.UninitializedParameter):
            continue
        posterior = posteriors.get(key)
        if posterior is not None:
            if key.endswith("_mu"):
                found.append((posterior.name, parameter, posterior.mean(), posterior.prunable))
            continue
        mask = buffers_of(module).get(key.removesuffix("_orig") + "_mask") if key.endswith("_orig") else None
        value = parameter if mask is None else parameter * mask
        found.append((key.removesuffix("_orig") if mask is not None else key, parameter, value, True))
    return found

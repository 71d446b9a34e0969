"""One weight of a repair: its sums over the batches, its solution, and the way back into the network."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from .layers import Layer
from .report import RepairRow
from .solving import Sums, solved, with_bias
from .walking import Job, Pair

__all__ = ["Task", "removed_share"]

#: What damping is chosen from, as multiples of the mean of the diagonal of A.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
#: Inputs of one output, up to which a layer is repaired: A takes 2 GiB there.
WIDEST = 16384
#: How far a layer's outputs may be from the product of its inputs and weights, by more than rounding.
LINEAR = 0.02


class Task:
    """A weight to solve for.

    Args:
        job: The weight and its uses.
        network: The network to change.
        dense: The network before pruning.
        generator: Chooses positions of images.
    """

    def __init__(self, job: Job, network: nn.Module, dense: nn.Module, generator: torch.Generator) -> None:
        self.job, self.network, self.dense, self.generator = job, network, dense, generator
        self.layer = job.layers[0]
        self.matrix, self.has_bias = _matrix(self.layer, network)
        self.wanted, _ = _matrix(self.layer, dense)
        kept = self.matrix != 0
        if self.has_bias:  # a dead output keeps its bias
            kept[..., -1] = kept[..., :-1].any(-1)
        self.kept = kept
        self.removed = removed_share(self.layer, network)
        self.note = f"more than {WIDEST:,} inputs" if self.matrix.shape[-1] > WIDEST else ""
        self.fit: Sums | None = None if self.note else Sums(self.matrix)
        self.heldout: Sums | None = None if self.note else Sums(self.matrix)
        self.is_changed = False

    def add(self, pair: Pair) -> None:
        """Add one use of the weight."""
        if self.note or self.fit is None or self.heldout is None:
            return
        inputs, outputs = pair.original
        if pair.pruned.shape != inputs.shape:  # such as an expert, to which a pruned gate sends other examples
            self.note = "it sees other examples than in the original"
            return
        module = self.network.get_submodule(pair.layer.owner)
        at = pair.layer.positions(outputs, self.generator)
        seen, targets = pair.layer.rows(module, pair.pruned, pair.targets, at)
        self.is_changed = self.is_changed or not torch.equal(pair.pruned, inputs)
        if not (bool(seen.isfinite().all()) and bool(targets.isfinite().all())):
            self.note = "its inputs or outputs are not finite"
        elif not self._is_linear(*pair.layer.rows(module, inputs, outputs, at)):
            self.note = "its outputs are not its inputs times its weight"
        else:
            (self.heldout if pair.is_heldout else self.fit).add(seen, targets, pair.weights)

    def _is_linear(self, inputs: Tensor, targets: Tensor) -> bool:
        outputs = with_bias(inputs, self.wanted) @ self.wanted.mT
        return bool((outputs - targets).norm() <= LINEAR * targets.norm())

    def finish(self, damping: float | None, seconds: float) -> RepairRow:
        """Solve, and write the new weights if they are better."""
        started = time.perf_counter()
        name = self.job.label
        if not self.note and not self.is_changed and self.removed == 0:
            self.note = "nothing removed here or before"
        if self.note or self.fit is None or self.heldout is None:
            return RepairRow(name, self.removed, seconds=seconds, note=self.note)
        fit, judge = (self.fit if self.fit.count else self.heldout), (self.heldout if self.heldout.count else self.fit)
        before = judge.error(self.matrix)
        best, after, chosen = self.matrix, before, 0.0
        for value in DAMPINGS if damping is None else (damping,):
            found = solved(fit, self.matrix, self.kept, value)
            error = judge.error(found) if bool(found.isfinite().all()) else float("inf")
            if error < after:
                best, after, chosen = found, error, value
        if best is not self.matrix:
            _write(self.layer, self.network, best, self.has_bias)
        note = "" if best is not self.matrix else "no better than it was"
        return RepairRow(name, self.removed, before, after, chosen, seconds + time.perf_counter() - started, note)


def _matrix(layer: Layer, network: nn.Module) -> tuple[Tensor, bool]:
    """The weights in float64 as (groups, outputs, inputs), with the bias as the last column; whether there is one."""
    weight, bias = layer.tensors(network)
    matrix = layer.matrix(network.get_submodule(layer.owner), weight.detach())
    matrix = (matrix.cpu() if matrix.device.type == "mps" else matrix).double()
    if bias is None:
        return matrix, False
    return torch.cat([matrix, bias.detach().to(matrix).reshape(*matrix.shape[:2], 1)], -1), True


def _write(layer: Layer, network: nn.Module, matrix: Tensor, has_bias: bool) -> None:
    """Put weights and bias where they belong."""
    module = network.get_submodule(layer.owner)
    weight, bias = layer.tensors(network)
    found = layer.from_matrix(module, matrix[..., :-1] if has_bias else matrix).to(weight)
    mask = getattr(module, f"{layer.weight}_mask", None)
    if mask is not None:
        held = getattr(module, f"{layer.weight}_orig")
        held.copy_(torch.where(mask.bool(), found, held))
    weight.copy_(found)
    if has_bias and bias is not None:
        bias.copy_(matrix[..., -1].reshape(bias.shape))


def removed_share(layer: Layer, network: nn.Module) -> float:
    """The share of a weight's entries that are zero."""
    weight = layer.tensors(network)[0]
    return 0.0 if weight.is_meta or not weight.numel() else float((weight == 0).double().mean())

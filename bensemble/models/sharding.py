"""Tensors of which every process holds a part: what FSDP2 (``torch.distributed.fsdp.fully_shard``) makes of Parameters.

Buffers are not sharded: masks and the tensors of priors are whole in every process, in the shape of the weight. So a
mask is cut to the part that the process holds, and what concerns a whole weight is put together from all parts. That
needs all processes: where one of them does not call, the others wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import BensembleError, InvalidValueError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "PartialSums",
    "check_in_one_process",
    "holds_shards",
    "is_sharded",
    "once_for_all",
    "part_here",
    "part_of",
    "sharded_like",
    "whole",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is distributed; without importing torch.distributed.tensor for the question."""
    if type(tensor) in (Tensor, nn.Parameter):
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def holds_shards(model: nn.Module) -> bool:
    """Whether Parameters of the model are put together anew for each forward, and do not say when they have changed."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return any(isinstance(module, fsdp) for module in model.modules()) or any(map(is_sharded, model.parameters()))


def check_in_one_process(verb: str, model: nn.Module) -> None:
    """Raise for a model whose gradients are averaged over processes.

    Raises:
        InvalidValueError: It is distributed.
    """
    if holds_shards(model) or isinstance(model, nn.parallel.DistributedDataParallel):
        raise InvalidValueError(
            f"{verb}: the model must be in one process, got {type(model).__name__}, whose gradients are averages over "
            f"processes; call {verb} in one process before the model is wrapped or sharded, or load its file there."
        )


def whole(tensor: Tensor) -> Tensor:
    """The tensor as every process may use it: put together from all parts where it is sharded; differentiable."""
    return _sharded(tensor).full_tensor() if is_sharded(tensor) else tensor


def part_here(tensor: Tensor) -> Tensor:
    """The part that this process holds, which may be empty; differentiable."""
    return _sharded(tensor).to_local() if is_sharded(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process would hold if it were sharded like another one of its shape."""
    return part_here(sharded_like(tensor, like))


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every process has as a whole, sharded as another one is."""
    if not is_sharded(like) or is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    layout = _sharded(like)
    # Without a source rank every process cuts its part out of what it has, and none waits for another.
    return distribute_tensor(
        tensor.detach().to(layout.device), layout.device_mesh, layout.placements, src_data_rank=None
    )


def once_for_all(verb: str, action: Callable[[], None], of: Tensor | None) -> None:
    """Run an action in one of the processes that hold parts of a tensor, while the others wait for its end.

    Args:
        verb: The public function, for errors.
        action: What to do.
        of: The tensor; None, or one that is not sharded, where this process is on its own.

    Raises:
        BensembleError: The action failed in the process that ran it, which raises its own error.
    """
    if of is None or not is_sharded(of):
        action()
        return
    from torch.distributed.tensor import DTensor, Partial

    mesh, failure = _sharded(of).device_mesh, None
    if not any(mesh.get_coordinate() or ()):
        try:
            action()
        except BaseException as err:  # the others must not wait for ever
            failure = err
    failures = torch.tensor(float(failure is not None), device=of.device)
    everywhere = DTensor.from_local(failures, mesh, [Partial()] * mesh.ndim, run_check=False).full_tensor()
    if failure is not None:
        raise failure
    if bool(everywhere):
        raise BensembleError(f"{verb}: the process that does it for all has failed; its own error says why.")


class PartialSums:
    """A sum of scalars, some of which every process knows for its part of a tensor only.

    Parts are added up here first, so that the processes meet once for all tensors that are sharded alike.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._total = torch.zeros((), device=device)
        self._parts: dict[Hashable, tuple[DTensor, Tensor]] = {}

    def add(self, value: Tensor, of: Tensor | None = None) -> None:
        """Add a scalar.

        Args:
            value: What to add.
            of: The tensor of which ``value`` speaks about the part here; None where it is the same everywhere.
        """
        if of is None or not is_sharded(of):
            self._total = self._total + whole(value).to(self._total.device)
            return
        layout = _sharded(of)
        key = (layout.device_mesh, layout.placements)
        before = self._parts[key][1] if key in self._parts else 0.0
        self._parts[key] = (layout, before + value)

    def total(self) -> Tensor:
        """The sum, a plain scalar that is the same in every process; its gradient reaches each part once."""
        total = self._total
        for layout, value in self._parts.values():
            total = total + _over_all_parts(value, layout).to(total.device)
        return total


def _over_all_parts(value: Tensor, layout: DTensor) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    placements = [Replicate() if place.is_replicate() else Partial() for place in layout.placements]
    return DTensor.from_local(value, layout.device_mesh, placements, run_check=False).full_tensor()


def _sharded(tensor: Any) -> DTensor:
    return tensor

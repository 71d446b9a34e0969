"""Several processes: sums and lists over all of them, errors in all of them, a warning if all draw the same noise.

Data-parallel processes average their gradients. Noise averages out with them only if it differs between processes, but
many programs use the same seed in every process.
"""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import BensembleError, one_line
from ..torch_internals import default_store

__all__ = [
    "failing_together",
    "from_every_process",
    "gathered",
    "num_processes",
    "own_rank",
    "sum_over_processes",
    "warn_of_equal_noise",
]

#: Number of calls after which a process no longer looks for the digests of the others.
_TRIES = 10

_tries_left: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def warn_of_equal_noise(verb: str, device: torch.device) -> None:
    """Warn, once for each process group, if all processes are about to draw the same noise.

    Each process writes a digest of its random state into the store of the process group and reads the digests of the
    others. It does not wait for them, so a call in one process only does not hang.

    Args:
        verb: The public function that warns.
        device: The device on which noise is drawn.
    """
    if not _several():
        return
    group: Any = dist.group.WORLD
    left = _tries_left.setdefault(group, _TRIES)
    if not left:
        return
    _tries_left[group] = left - 1
    store, ranks = default_store(), range(dist.get_world_size())
    keys = [f"bensemble/random_state/{rank}" for rank in ranks]
    if left == _TRIES:
        store.set(keys[dist.get_rank()], _digest(device))
    if not store.check(keys):
        return
    _tries_left[group] = 0
    if len({store.get(key) for key in keys}) == 1:
        warnings.warn(
            f"{verb}: all {len(ranks)} processes have the same random state, so they draw the same noise, which does "
            "not average out between them; call torch.manual_seed(seed + rank) once the model is made.",
            UserWarning,
            stacklevel=3,
        )


def from_every_process(value: Any) -> list[Any]:
    """The value of every process in the order of their ranks; all processes must call this. It is pickled."""
    if not _several():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def gathered(tensor: Tensor) -> Tensor:
    """The tensors of all processes in the order of their ranks, joined along the first axis."""
    return torch.cat(from_every_process(tensor)) if _several() else tensor


def num_processes() -> int:
    """How many processes there are; 1 without others."""
    return dist.get_world_size() if _several() else 1


def own_rank() -> int:
    """The number of this process, from 0; 0 without others."""
    return dist.get_rank() if _several() else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, which must all call this, on its own device."""
    if not _several():
        return tensor
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = tensor.detach().to(device, copy=True).contiguous()
    dist.all_reduce(total)
    return total.to(tensor.device)


@contextmanager
def failing_together(verb: str) -> Iterator[None]:
    """If the block fails in one process, it fails in all of them, so that none waits for another in vain.

    Args:
        verb: The public function, for the error.

    Raises:
        BensembleError: The block failed in another process.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as err:  # raised below, once the others know
        failure = err
    failures = from_every_process(None if failure is None else one_line(failure))
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise BensembleError(f"{verb}: process {rank} of {len(failures)} has failed, got {message}.")


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _digest(device: torch.device) -> str:
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return hashlib.sha256(bytes(state.tolist())).hexdigest()

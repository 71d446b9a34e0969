"""Training in several processes: whether the noise of each of them is its own.

Data-parallel processes average their gradients, and the noise averages out with them if each draws its own. The habit
of seeding every process alike makes all of them draw the same.
"""

from __future__ import annotations

import hashlib
import warnings
import weakref
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["warn_of_equal_noise"]

#: How often a process asks what the others said, before it takes them for absent.
_TRIES = 10

_tries_left: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def warn_of_equal_noise(verb: str, device: torch.device) -> None:
    """Warn, once for each process group, when all processes are about to draw the same noise.

    Each process writes a digest of its random state into the store of the process group and reads those of the others.
    Nobody waits: a process that is on its own here, to write a log say, does not hang.

    Args:
        verb: The public function that asks.
        device: Where the noise is drawn.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return
    group: Any = dist.group.WORLD
    left = _tries_left.setdefault(group, _TRIES)
    if not left:
        return
    _tries_left[group] = left - 1
    store, ranks = dist.distributed_c10d._get_default_store(), range(dist.get_world_size())
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


def _digest(device: torch.device) -> str:
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return hashlib.sha256(bytes(state.tolist())).hexdigest()

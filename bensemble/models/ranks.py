"""Training in several processes: a warning if all of them draw the same noise.

Data-parallel processes average their gradients. Noise averages out with them only if it differs between processes, but
many programs use the same seed in every process.
"""

from __future__ import annotations

import hashlib
import warnings
import weakref
from typing import Any

import torch
import torch.distributed as dist

from ..torch_internals import default_store

__all__ = ["warn_of_equal_noise"]

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
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
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


def _digest(device: torch.device) -> str:
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return hashlib.sha256(bytes(state.tolist())).hexdigest()

"""Writing a checkpoint: whole or not at all, the same bytes for the same model."""

from __future__ import annotations

import os
from dataclasses import replace

from torch import Tensor, nn

from ..checks import check_module
from ..errors import CheckpointError, refuse, shown
from ..layers.linear_op import LinearOpLayer
from ..layers.sampled import SampledWeights
from ..layers.weights import PosteriorWeights
from ..models.sharding import is_sharded, once_for_all, whole
from ..models.state import unwrapped
from ..posterior import Posterior
from .finite import NOT_FINITE, is_finite
from .header import Header, PosteriorEntry, describe_prior
from .writing import checked_target, replacing

__all__ = ["save"]


def save(bnn: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a Bayesian model as safetensors with everything that is needed to rebuild it.

    Means, rho, masks, priors, ties and every other parameter and buffer go in. Needs the ``io`` extra. What wraps the
    model, DistributedDataParallel or torch.compile, stays out. A model sharded by ``fully_shard`` is in no process as a
    whole: all of them must call, one writes, and the file is there when the call returns.

    Args:
        bnn: A model with posteriors.
        path: The file; an existing one is replaced when the new one is complete.

    Raises:
        CheckpointError: the model has no posteriors, a prior of its own making, or weights that are not finite.
        InvalidValueError: the path cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    bnn = unwrapped(check_module("save", bnn))
    entries = _entries(bnn)
    if not entries:
        raise CheckpointError(f"save: {type(bnn).__name__} has no posteriors; save its state_dict as you always do.")
    state = bnn.state_dict(keep_vars=True)
    tensors, shared = _distinct(state)
    weights = [name for name in tensors if isinstance(state[name], nn.Parameter)]
    broken = [f"'{name}' is {NOT_FINITE}" for name in weights if not is_finite(tensors[name])]
    refuse("save", broken, CheckpointError)
    header = Header(tuple(entries), shared)
    header = replace(header, digest=header.digest_of(tensors))

    def write() -> None:
        target = checked_target(path, "save")
        try:
            with replacing(target) as temporary:
                save_file(tensors, temporary, metadata={"bensemble": header.to_json()})
        except (OSError, SafetensorError) as err:
            raise CheckpointError(
                f"save: '{target}' cannot be written, got {shown(err, 200)}; the old file is as it was."
            ) from err

    once_for_all("save", write, of=next(filter(is_sharded, bnn.parameters()), None))


def _entries(bnn: nn.Module) -> list[PosteriorEntry]:
    """Every distinct posterior with all its places, in the model's order."""
    places: dict[int, list[tuple[str, Posterior]]] = {}
    for path, module in bnn.named_modules():
        if isinstance(module, PosteriorWeights):
            for posterior in module._posteriors():
                name = f"{path}.{posterior.name}" if path else posterior.name
                places.setdefault(id(posterior.mu), []).append((name, posterior))
    found = []
    for tied in places.values():
        name, first = tied[0]
        found.append(
            PosteriorEntry(
                places=tuple(name for name, _ in tied),
                tiers=tuple("sampled" if isinstance(p.layer, SampledWeights) else "local" for _, p in tied),
                shape=tuple(first.mu.shape),
                prior=describe_prior(name, first),
                mask=first.mask is not None,
                prunable=tuple(p.prunable for _, p in tied),
                estimators=tuple(p.layer.estimator if isinstance(p.layer, LinearOpLayer) else "local" for _, p in tied),
            )
        )
    return found


def _distinct(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, dense and on the CPU, and which names stand for a tensor of another name."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"save: '{name}' must be a tensor, got {type(tensor).__name__}; safetensors holds no other."
            )
        if id(tensor) in first:
            shared[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = whole(tensor.detach()).cpu().contiguous().clone()
    return tensors, shared

"""Writing a checkpoint. The same model always gives the same bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..checks import check_module
from ..errors import CheckpointError, needs_extra, refuse, shown
from ..layers.linear_in_weights import LinearOpLayer
from ..layers.sampled import SampledWeights
from ..models.sharding import is_sharded, once_for_all, whole
from ..models.state import unwrapped
from ..posteriors import tied_posteriors
from ..torch_internals import parameters_of, persistent_buffers_of, state_versions
from .finite import NOT_FINITE, is_finite
from .header import Header, PosteriorEntry, describe_prior
from .unsaved import unsaved_sizes
from .writing import checked_target, replacing

__all__ = ["save"]


def save(bnn: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a Bayesian model as safetensors with everything that is needed to rebuild it.

    The file holds means, rho, masks, priors, ties and all other parameters and buffers, but no wrapper such as
    DistributedDataParallel or torch.compile. Needs the ``io`` extra. For a model sharded by ``fully_shard``, all
    processes must call ``save``; one of them writes, and the file is complete when the call returns.

    Args:
        bnn: A model with posteriors.
        path: The file; an existing file is replaced when the new one is complete.

    Raises:
        CheckpointError: The model has no posteriors, a prior that is not built in, weights that are not finite, or a
            ``state_dict`` that leaves out a part.
        InvalidValueError: The path cannot be written.

    Example:
        >>> bensemble.save(bnn, "bnn.safetensors")
    """
    with needs_extra("save", "io"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file

    bnn = unwrapped(check_module("save", bnn))
    entries = _entries(bnn)
    if not entries:
        raise CheckpointError(f"save: {type(bnn).__name__} has no posteriors; save its state_dict instead.")
    state = bnn.state_dict(keep_vars=True)
    tensors, shared = _distinct(state)
    weights = [name for name in tensors if isinstance(state[name], nn.Parameter)]
    broken = [f"'{name}' is {NOT_FINITE}" for name in weights if not is_finite(tensors[name])]
    refuse("save", broken, CheckpointError)
    hidden = list(_hidden(bnn, state))
    if hidden:
        more = f" and {len(hidden) - 1} more" if hidden[1:] else ""
        raise CheckpointError(
            f"save: state_dict() of {type(bnn).__name__} must hold every tensor, got none of '{hidden[0]}'{more}; "
            "let it return them, or save what it returns with safetensors."
        )
    versions = _versions(state)
    version = 4 if versions else 3 if any(e.basis or e.is_last for e in entries) else 2
    header = Header(tuple(entries), shared, version, versions=versions)
    header = replace(header, digest=header.digest_of(tensors))

    metadata = {"bensemble": header.to_json(), **unsaved_sizes(bnn)}

    def write() -> None:
        target = checked_target(path, "save")
        try:
            with replacing(target) as temporary:
                save_file(tensors, temporary, metadata=metadata)
        except (OSError, SafetensorError) as err:
            raise CheckpointError(
                f"save: '{target}' cannot be written, got {shown(err, 200)}; the old file is unchanged."
            ) from err

    once_for_all("save", write, of=next(filter(is_sharded, bnn.parameters()), None))


def _hidden(bnn: nn.Module, state: dict[str, Tensor]) -> Iterator[str]:
    """The names that the model's own ``state_dict`` leaves out or changes, so that the file could not be loaded."""
    for path, module in bnn.named_modules():
        for name, tensor in {**parameters_of(module), **persistent_buffers_of(module)}.items():
            full = f"{path}.{name}".lstrip(".")
            if tensor is not None and state.get(full) is not tensor:
                yield full


def _versions(state: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What modules noted beside their tensors, other than a version of 1, which all have."""
    noted = state_versions(state)
    try:
        return {path: json.loads(json.dumps(note)) for path, note in noted.items() if note != {"version": 1}}
    except (TypeError, ValueError) as err:
        raise CheckpointError(
            f"save: what modules note in the state dict must be plain values, got {shown(err, 200)}; save "
            "bnn.state_dict() with torch.save."
        ) from err


def _entries(bnn: nn.Module) -> list[PosteriorEntry]:
    """Every distinct posterior with all its places, in the order of the model."""
    found = []
    for tied in tied_posteriors(bnn):
        name, first = tied[0]
        found.append(
            PosteriorEntry(
                places=tuple(name for name, _ in tied),
                tiers=tuple("sampled" if isinstance(p.layer, SampledWeights) else "local" for _, p in tied),
                shape=tuple(first.mu.shape),
                prior=describe_prior(name, first),
                mask=first.mask is not None,
                basis=first.basis is not None,
                prunable=tuple(p.prunable for _, p in tied),
                estimators=tuple(p.layer.estimator if isinstance(p.layer, LinearOpLayer) else "local" for _, p in tied),
                is_last=_last_flags([p.layer for _, p in tied]),
            )
        )
    return found


def _last_flags(layers: list[nn.Module]) -> tuple[bool, ...]:
    """For each layer whether it is the model's last one; empty where none is."""
    flags = tuple(isinstance(layer, LinearOpLayer) and layer.is_last for layer in layers)
    return flags if any(flags) else ()


def _distinct(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, dense and on the CPU, and for each further name of a shared tensor its first name."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"save: '{name}' must be a tensor, got {type(tensor).__name__}; safetensors holds no other."
            )
        if tensor.is_meta:
            raise CheckpointError(f"save: '{name}' must have values, got a tensor on the meta device; load them first.")
        if id(tensor) in first:
            shared[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = whole(tensor.detach()).cpu().contiguous().clone()
    return tensors, shared

"""Reading a checkpoint into a fresh deterministic model, or into the Bayesian model it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..errors import CheckpointError, refuse, shown
from ..layers.linear_op import LinearOpLayer
from ..layers.registry import bayesian_type
from ..layers.swap import NewPosterior, make_bayesian, restorer
from ..layers.weights import PosteriorWeights
from ..models.sharding import is_sharded, sharded_like
from ..models.state import unwrapped
from ..priors import Normal
from .finite import NOT_FINITE, is_finite
from .header import Header, PosteriorEntry, read_header, restore_prior

__all__ = ["load"]

M = TypeVar("M", bound=nn.Module)


def load(path: str | os.PathLike[str], model: M) -> M:
    """Read a checkpoint written by :func:`save`; the model is changed in place and given back.

    Args:
        path: The file. It is never unpickled, and nothing in it is executed.
        model: A fresh deterministic model, which is converted as the header says, or the Bayesian model itself, which
            may be wrapped or sharded; every process reads the file then.

    Returns:
        The same model, Bayesian, with everything that was saved.

    Raises:
        CheckpointError: the file is missing, damaged or from a newer version, or does not fit the model; every
            mismatch is listed, and the model is as it was.
    """
    check_module("load", model)
    header, tensors = _read(path)
    inner = unwrapped(model)
    _read_into(inner, header, tensors, path, wrapped=inner is not model)
    return model


def _read_into(
    model: nn.Module, header: Header, tensors: dict[str, Tensor], path: str | os.PathLike[str], wrapped: bool
) -> None:
    """Convert the model where it has no posteriors yet, and fill it; as it was where anything fails."""
    problems = list(_too_late(header, model, wrapped)) or list(_mismatches(header, tensors, model))
    refuse(f"load: '{path}' does not fit {type(model).__name__}", problems, CheckpointError)
    undo = [restorer(module) for module in model.modules()]
    try:
        _convert(header, tensors, model)
        state = {**tensors, **{name: tensors[first] for name, first in header.shared.items()}}
        present = model.state_dict(keep_vars=True)
        model.load_state_dict({key: sharded_like(t, like=present.get(key, t)) for key, t in state.items()}, strict=True)
    except BaseException as err:
        for restore in reversed(undo):
            restore()
        if isinstance(err, RuntimeError):
            raise CheckpointError(
                f"load: '{path}' does not fit {type(model).__name__}, got {shown(err, 200)}; "
                "load it into the model that was saved."
            ) from err
        raise


def _too_late(header: Header, model: nn.Module, wrapped: bool) -> Iterator[str]:
    """The weights that would become Bayesian only now, after the model was wrapped or sharded."""
    for entry in header.posteriors:
        module, name = _owner(model, entry.places[0])
        weight = None if module is None else _weight(module, name)
        if weight is None or (isinstance(module, PosteriorWeights) and module._posterior(name) is not None):
            continue
        if wrapped or is_sharded(weight):
            state = "sharded" if is_sharded(weight) else "wrapped"
            yield f"'{entry.places[0]}' is deterministic and {state}; load into the plain model first, then wrap it."


def _read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"load: '{path}' is no file; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = read_header(str(path), (file.metadata() or {}).get("bensemble"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, UnicodeDecodeError) as err:
        raise CheckpointError(
            f"load: '{path}' is damaged or no safetensors file ({shown(err, 200)}); get it again."
        ) from err
    if header.version > 1 and header.digest != header.digest_of(tensors):
        raise CheckpointError(f"load: '{path}' is damaged, got other bytes than were saved; get the file again.")
    return header, tensors


def _mismatches(header: Header, tensors: dict[str, Tensor], model: nn.Module) -> Iterator[str]:
    """Everything about the model that the checkpoint does not fit, one sentence each."""
    state = model.state_dict(keep_vars=True)
    left = dict(state)
    available = set(tensors) | set(header.shared)
    for entry in header.posteriors:
        found = {}
        for place, tier in zip(entry.places, entry.tiers, strict=True):
            module, name = _owner(model, place)
            weight = None if module is None else _weight(module, name)
            if module is None or weight is None:
                yield f"the model has no weight '{place}'."
                continue
            found[id(weight)] = place
            for key in [key for key in left if left[key] is weight]:
                left.pop(key)
            if tuple(weight.shape) != entry.shape:
                yield f"'{place}' has shape {tuple(weight.shape)} in the model, got {entry.shape} in the file."
            if tier == "local" and not isinstance(module, PosteriorWeights) and bayesian_type(type(module)) is None:
                yield f"'{place}' belongs to {type(module).__name__}, which has no Bayesian twin here; register one."
            for part in ("mu", "rho", "mask") if entry.mask else ("mu", "rho"):
                key = f"{_prefix(module, place, tier)}{part}"
                stored = tensors.get(header.shared.get(key, key))
                if stored is None or tuple(stored.shape) != entry.shape:
                    got = "none" if stored is None else f"shape {tuple(stored.shape)}"
                    yield f"'{place}' needs '{key}' of shape {entry.shape} in the file, got {got}."
                elif not is_finite(stored):
                    yield f"'{key}' is {NOT_FINITE}"
        if len(found) > 1:
            yield f"{', '.join(map(repr, found.values()))} are one shared weight in the file, but not in the model."
    prefixes = {
        _prefix(_owner(model, place)[0], place, tier)
        for entry in header.posteriors
        for place, tier in zip(entry.places, entry.tiers, strict=True)
    }
    posterior_keys = {
        key for key in available | set(left) if any(key.startswith(p) and "." not in key[len(p) :] for p in prefixes)
    }
    # A module that the model holds under several names has its tensors in the file under each of them.
    posterior_keys |= {key for key, first in header.shared.items() if first in posterior_keys}
    for key, tensor in left.items():
        if key in posterior_keys:
            continue
        stored = tensors.get(header.shared.get(key, key))
        if stored is None:
            yield f"'{key}' is in the model but not in the file."
        elif isinstance(tensor, Tensor) and (stored.shape != tensor.shape or stored.dtype != tensor.dtype):
            yield (
                f"'{key}' is {tuple(tensor.shape)} {tensor.dtype} in the model, "
                f"got {tuple(stored.shape)} {stored.dtype} in the file."
            )
        elif isinstance(tensor, nn.Parameter) and not is_finite(stored):
            yield f"'{key}' is {NOT_FINITE}"
    for key in sorted(available - posterior_keys - set(left)):
        yield f"'{key}' is in the file but not in the model."


def _owner(model: nn.Module, place: str) -> tuple[nn.Module | None, str]:
    path, _, name = place.rpartition(".")
    try:
        return model.get_submodule(path), name
    except AttributeError:
        return None, name


def _weight(module: nn.Module, name: str) -> Tensor | None:
    """The Parameter of that original name: itself, or the mean of its posterior."""
    if isinstance(module, PosteriorWeights):
        posterior = module._posterior(name)
        if posterior is not None:
            return posterior.mu
    return module._parameters.get(name)


def _prefix(module: nn.Module | None, place: str, tier: str) -> str:
    """What the names of the posterior tensors of one place start with, such as ``fc.w_``."""
    name = place.rpartition(".")[2]
    twin = bayesian_type(type(module)) if module is not None and tier == "local" else None
    stems = module._stems if isinstance(module, PosteriorWeights) else twin._stems if twin is not None else {}
    return f"{place.removesuffix(name)}{stems.get(name, name)}_"


def _convert(header: Header, tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Give every weight in the header its posterior, with priors and masks ready to be loaded into."""
    modules: dict[int, tuple[nn.Module, dict[str, NewPosterior], bool]] = {}
    for entry in header.posteriors:
        rho: nn.Parameter | None = None
        for place, tier, prunable in zip(entry.places, entry.tiers, entry.prunable, strict=True):
            module, name = _owner(model, place)
            assert module is not None
            weight = _weight(module, name)
            assert isinstance(weight, nn.Parameter)
            if isinstance(module, PosteriorWeights) and module._posterior(name) is not None:
                continue
            if rho is None:
                dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
                rho = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=weight.requires_grad)
            kept = modules.setdefault(id(module), (module, {}, tier == "local"))
            kept[1][name] = NewPosterior(weight, rho, Normal(), prunable)
    for module, posteriors, local in modules.values():
        make_bayesian(module, posteriors, local)
    for entry in header.posteriors:
        for place, estimator in zip(entry.places, entry.estimators, strict=True):
            _prepare(entry, place, estimator, tensors, header, model)


def _prepare(
    entry: PosteriorEntry, place: str, estimator: str, tensors: dict[str, Tensor], header: Header, model: nn.Module
) -> None:
    layer, name = _owner(model, place)
    assert isinstance(layer, PosteriorWeights)
    stem = layer._stems.get(name, name)
    path = place.rpartition(".")[0]
    prefix = f"{path}.{stem}" if path else stem
    keys = {part: f"{prefix}_prior_{part}" for part in ("sigma", "mean") if entry.prior.get(part) == "tensor"}
    held = {part: tensors[header.shared.get(key, key)] for part, key in keys.items()}
    device = getattr(layer, f"{stem}_mu").device
    layer._set_prior(stem, restore_prior(entry.prior, {part: t.clone().to(device) for part, t in held.items()}))
    if isinstance(layer, LinearOpLayer):
        layer.estimator = estimator

"""Reading a checkpoint into a fresh deterministic model, or into the Bayesian model it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..basis import Basis
from ..checks import check_module
from ..errors import CheckpointError, refuse, shown
from ..layers.class_choice import bayesian_class
from ..layers.linear_in_weights import LinearOpLayer
from ..layers.registry import bayesian_type
from ..layers.swap import NewPosterior, make_bayesian, restorer
from ..layers.weights import PosteriorModule
from ..models.sharding import is_sharded, sharded_like
from ..models.state import unwrapped
from ..priors import Normal
from ..torch_internals import parameters_of, state_versions, with_versions
from .finite import NOT_FINITE, is_finite
from .header import Header, PosteriorEntry, read_header, restore_prior
from .reading import read_tensors
from .unsaved import warn_of_others

__all__ = ["load"]

M = TypeVar("M", bound=nn.Module)


def load(path: str | os.PathLike[str], model: M) -> M:
    """Read a checkpoint written by :func:`save` into a model, in place.

    Args:
        path: The file. It is never unpickled, and nothing in it is executed.
        model: A new deterministic model, which becomes Bayesian as the header says, or the Bayesian model itself. The
            Bayesian model may be wrapped or sharded; then every process reads the file.

    Returns:
        The same model, Bayesian, with everything that was saved.

    Raises:
        CheckpointError: The file is missing, damaged, from a newer version, or does not fit the model. Mismatches are
            listed, and the model is unchanged.

    Warns of buffers with ``persistent=False`` whose values are not those of the model that was saved.

    Example:
        >>> bensemble.save(bnn, "bnn.safetensors")
        >>> bnn = bensemble.load("bnn.safetensors", model)
    """
    check_module("load", model)
    header, stored, unsaved = _read(path)
    inner = unwrapped(model)
    _read_into(inner, header, stored, path, wrapped=inner is not model)
    warn_of_others(str(path), inner, unsaved)
    return model


def _read_into(
    model: nn.Module, header: Header, stored: dict[str, Tensor], path: str | os.PathLike[str], wrapped: bool
) -> None:
    """Convert the model where it has no posteriors yet, and load the tensors. If this fails, the model is unchanged."""
    problems = list(_too_late(header, model, wrapped)) or list(_mismatches(header, stored, model))
    refuse(f"load: '{path}' does not fit {type(model).__name__}", problems, CheckpointError)
    undo = [restorer(module) for module in model.modules()]
    try:
        _convert(header, stored, model)
        present = model.state_dict(keep_vars=True)
        state = {key: sharded_like(t, like=present.get(key, t)) for key, t in stored.items()}
        model.load_state_dict(with_versions(state, {**state_versions(present), **header.versions}))
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
    """The weights of a wrapped or sharded model that would have to become Bayesian."""
    for entry in header.posteriors:
        module, name = _owner(model, entry.places[0])
        weight = None if module is None else _weight(module, name)
        if weight is None or (isinstance(module, PosteriorModule) and module._posterior(name) is not None):
            continue
        if wrapped or is_sharded(weight):
            state = "sharded" if is_sharded(weight) else "wrapped"
            yield f"'{entry.places[0]}' is deterministic and {state}; load into the plain model first, then wrap it."


def _read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor], str | None]:
    """The header, every tensor of the file under each of its names, and what it says of buffers that it lacks."""
    (header, unsaved), tensors = read_tensors(
        path, lambda found: (read_header(str(path), found.get("bensemble")), found.get("bensemble.unsaved"))
    )
    if header.version > 1 and header.digest != header.digest_of(tensors):
        raise CheckpointError(f"load: '{path}' is damaged, got other bytes than were saved; get the file again.")
    tensors |= {name: tensors[first] for name, first in header.shared.items() if first in tensors}
    return header, tensors, unsaved


def _mismatches(header: Header, stored: dict[str, Tensor], model: nn.Module) -> Iterator[str]:
    """Every reason why the checkpoint does not fit the model, one sentence each."""
    rest = model.state_dict(keep_vars=True)
    prefixes: set[str] = set()
    lookups: set[str] = set()  # names at which a table reads the mean of a posterior
    for entry in header.posteriors:
        found: dict[int, str] = {}
        for place, tier in zip(entry.places, entry.tiers, strict=True):
            module, name = _owner(model, place)
            prefix = _prefix(module, place, tier)
            prefixes.add(prefix)
            weight = None if module is None else _weight(module, name)
            if module is None or weight is None:
                yield f"the model has no weight '{place}'."
                continue
            found[id(weight)] = place
            if tier == "local" and not isinstance(module, PosteriorModule) and bayesian_type(type(module)) is None:
                yield f"'{place}' belongs to {type(module).__name__}, which has no Bayesian twin here; register one."
            yield from _posterior_mismatches(entry, place, prefix, weight, stored)
        if len(found) > 1:
            yield f"{', '.join(map(repr, found.values()))} are one shared weight in the file, but not in the model."
        mean = stored.get(f"{prefix}mu")
        same = {key for key in rest.keys() & stored.keys() if mean is not None and stored[key] is mean}
        for key in sorted(key for key in same if id(rest[key]) not in found):
            yield f"'{place}' and '{key}' are one shared weight in the file, but not in the model."
        lookups |= same
        rest = {key: tensor for key, tensor in rest.items() if id(tensor) not in found}
    posterior_keys = {
        key
        for key in stored.keys() | rest.keys()
        if any(key.startswith(p) and "." not in key[len(p) :] for p in prefixes)
    }
    # A module that the model holds under several names has its tensors in the file under each of them.
    posterior_keys |= lookups | {key for key, first in header.shared.items() if first in posterior_keys}
    yield from _other_mismatches(
        {key: tensor for key, tensor in rest.items() if key not in posterior_keys},
        {key: tensor for key, tensor in stored.items() if key not in posterior_keys},
    )


def _posterior_mismatches(
    entry: PosteriorEntry, place: str, prefix: str, weight: Tensor, stored: dict[str, Tensor]
) -> Iterator[str]:
    """What is wrong with the posterior of one weight, in the model and in the file."""
    if tuple(weight.shape) != entry.shape:
        yield f"'{place}' has shape {tuple(weight.shape)} in the model, got {entry.shape} in the file."
    for part in ("mu", "rho", "mask") if entry.mask else ("mu", "rho"):
        key = prefix + part
        if key not in stored or tuple(stored[key].shape) != entry.shape:
            got = f"shape {tuple(stored[key].shape)}" if key in stored else "none"
            yield f"'{place}' needs '{key}' of shape {entry.shape} in the file, got {got}."
        elif not is_finite(stored[key]):
            yield f"'{key}' is {NOT_FINITE}"
    if entry.basis:
        yield from _basis_mismatches(entry, place, prefix, stored)


def _basis_mismatches(entry: PosteriorEntry, place: str, prefix: str, stored: dict[str, Tensor]) -> Iterator[str]:
    """What is wrong with the basis of one posterior in the file."""
    outer, inner = stored.get(f"{prefix}basis_outer"), stored.get(f"{prefix}basis_inner")
    if outer is None or not entry.shape:
        yield f"'{place}' needs '{prefix}basis_outer' in the file, got none."
        return
    for problem in Basis(outer, inner).problems(torch.Size(entry.shape)):
        yield f"'{prefix}basis' {problem}"


def _other_mismatches(expected: dict[str, Any], stored: dict[str, Tensor]) -> Iterator[str]:
    """What is wrong with the Parameters and buffers that belong to no posterior."""
    for key, tensor in expected.items():
        found = stored.get(key)
        if found is None:
            yield f"'{key}' is in the model but not in the file."
        elif isinstance(tensor, Tensor) and (found.shape != tensor.shape or found.dtype != tensor.dtype):
            yield (
                f"'{key}' is {tuple(tensor.shape)} {tensor.dtype} in the model, "
                f"got {tuple(found.shape)} {found.dtype} in the file."
            )
        elif isinstance(tensor, nn.Parameter) and not is_finite(found):
            yield f"'{key}' is {NOT_FINITE}"
    for key in sorted(stored.keys() - expected.keys()):
        yield f"'{key}' is in the file but not in the model."


def _owner(model: nn.Module, place: str) -> tuple[nn.Module | None, str]:
    """The module that has the weight of this name, None without one, and the weight's name there."""
    path, _, name = place.rpartition(".")
    try:
        return model.get_submodule(path), name
    except AttributeError:
        return None, name


def _weight(module: nn.Module, name: str) -> Tensor | None:
    """The Parameter of that original name, or the mean of its posterior."""
    posterior = module._posterior(name) if isinstance(module, PosteriorModule) else None
    return parameters_of(module).get(name) if posterior is None else posterior.mu


def _prefix(module: nn.Module | None, place: str, tier: str) -> str:
    """The start of the names of one posterior's tensors, such as ``fc.w_``."""
    name = place.rpartition(".")[2]
    twin = bayesian_type(type(module)) if module is not None and tier == "local" else None
    stems = module._stems if isinstance(module, PosteriorModule) else twin._stems if twin is not None else {}
    return f"{place.removesuffix(name)}{stems.get(name, name)}_"


def _convert(header: Header, stored: dict[str, Tensor], model: nn.Module) -> None:
    """Give every weight in the header its posterior, with the priors and masks to load into."""
    modules: dict[int, tuple[nn.Module, dict[str, NewPosterior], bool]] = {}
    for entry in header.posteriors:
        rho: nn.Parameter | None = None
        for place, tier, prunable in zip(entry.places, entry.tiers, entry.prunable, strict=True):
            module, name = _owner(model, place)
            assert module is not None
            if isinstance(module, PosteriorModule) and module._posterior(name) is not None:
                continue
            weight = parameters_of(module)[name]
            if rho is None:
                dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
                rho = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=weight.requires_grad)
            _, posteriors, _ = modules.setdefault(id(module), (module, {}, tier == "local"))
            posteriors[name] = NewPosterior(weight, rho, Normal(), prunable)
    for module, posteriors, local in modules.values():
        make_bayesian(module, bayesian_class(module, posteriors, local), posteriors)
    for entry in header.posteriors:
        for number, place in enumerate(entry.places):
            _prepare(entry, number, place, stored, model)


def _prepare(entry: PosteriorEntry, number: int, place: str, stored: dict[str, Tensor], model: nn.Module) -> None:
    """Give a layer what the file knows of one of its posteriors: the prior, the estimator, whether it is the last."""
    layer, name = _owner(model, place)
    assert isinstance(layer, PosteriorModule)
    stem = layer._stems.get(name, name)
    device = getattr(layer, f"{stem}_mu").device
    parts = [part for part in ("sigma", "mean") if entry.prior.get(part) == "tensor"]
    prefix = place.removesuffix(name) + stem
    tensors = {part: stored[f"{prefix}_prior_{part}"].clone().to(device) for part in parts}
    layer._set_prior(stem, restore_prior(entry.prior, tensors))
    if isinstance(layer, LinearOpLayer):
        layer.estimator = entry.estimators[number]
        if entry.is_last and entry.is_last[number]:
            layer.is_last = True

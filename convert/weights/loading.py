"""``load_weights``: trained weights, as people have them in files, into a model.

A prefix of all names is removed: that of a wrapper (`module.` DataParallel, `_orig_mod.` torch.compile), or the
attribute of the Lightning module that holds the network. So are wrappers of parts, inside of names. A checkpoint of
`bensemble.save`, or names in `_mu` and `_rho`, make the model Bayesian first.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bensemble.checkpoint import load
from bensemble.checkpoint.finite import NOT_FINITE, is_finite
from bensemble.checks import check_module
from bensemble.errors import CheckpointError, one_line, shown
from bensemble.layers.swap import restorer

from ..surgery import bayesify
from .files import find_state_dict, is_checkpoint, read_file

__all__ = ["load_weights", "load_with_notes"]

M = TypeVar("M", bound=nn.Module)
log = logging.getLogger("bensemble.load_weights")

WRAPPERS = ("module.", "_orig_mod.", "model.")
#: Wrappers of one part of a network.
PARTS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def load_weights(model: M, path: str | os.PathLike[str], *, key: str | None = None) -> M:
    """Load trained weights into a model, from a checkpoint as training scripts write them.

    Read are safetensors files, torch files of tensors and plain data, and the index of several such files; nothing in
    them is executed. The state dict may lie under a key and its names behind a prefix, as those of Lightning,
    Accelerate, DataParallel and torch.compile do: what was chosen is logged under ``bensemble.load_weights``. A
    checkpoint of :func:`bensemble.save`, or a state dict with posteriors, makes the model Bayesian first.

    Args:
        model: A network of the same architecture, changed in place.
        path: The file.
        key: Where in the file the state dict is, dotted where mappings are nested, such as ``"ema"``. Default: the file
            itself, or the first of ``state_dict``, ``model_state_dict`` and ``model`` that holds one.

    Returns:
        The same model.

    Raises:
        CheckpointError: The file is missing, damaged, of another model, or holds several such models. The model is as
            it was.

    Example:
        >>> torch.save({"state_dict": nn.ModuleDict({"net": model}).state_dict()}, "epoch=9.ckpt")  # as Lightning does
        >>> model = convert.load_weights(model, "epoch=9.ckpt")
    """
    loaded, notes = load_with_notes(check_module("load_weights", model), Path(path), key)
    for note in notes:
        log.info("'%s': %s", path, note)
    return loaded  # type: ignore[return-value]


def load_with_notes(model: nn.Module, path: Path, key: str | None = None) -> tuple[nn.Module, list[str]]:
    """The same, and notes about what was chosen, for the user to read."""
    undo = [restorer(module) for module in model.modules()]
    held = [t for t in model.state_dict(keep_vars=True).values() if isinstance(t, Tensor)]
    values = [t.detach().clone() for t in held]
    try:
        return _into(model, path, key)
    except BaseException:
        for restore in reversed(undo):
            restore()
        with torch.no_grad():
            for tensor, value in zip(held, values, strict=True):
                tensor.copy_(value)
        raise


def _into(model: nn.Module, path: Path, key: str | None) -> tuple[nn.Module, list[str]]:
    if key is None and is_checkpoint(path):
        return load(path, model), ["made the model Bayesian as the header of the checkpoint says"]
    state, notes = find_state_dict(read_file(path), path, key)
    state, inside = _without_wrapped_parts(state, model)
    notes += inside
    prefix = _prefix(state, model, path)
    if prefix:
        others = [name for name in state if not name.startswith(prefix)]
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        notes.append(f"removed the prefix '{prefix}' from every name")
        if others:
            notes.append(f"left out {len(others)} other tensors, such as '{shown(others[0])}'")
    posteriors = _posterior_names(state, model)
    if posteriors:
        model = bayesify(model, include=posteriors, prior="normal", inplace=True)
        state = {name: value for name, value in state.items() if "_prior_" not in name}
        notes.append(f"made {len(posteriors)} parameters of the model Bayesian, as they are in the file")
    problems = _load(model, state)
    if problems:
        raise CheckpointError(
            f"weights: '{path}' is of another model: {problems}; name the model with the arguments that it was trained "
            "with, or choose another part of the file with key=."
        )
    _check_ties(state, model, path)
    for name, parameter in model.named_parameters():
        # a rho of minus infinity says that the weight is pruned
        if not is_finite(parameter.clamp_min(-50.0) if name.endswith("_rho") else parameter):
            raise CheckpointError(f"weights: '{shown(name)}' in '{path}' is {NOT_FINITE}")
    return model, notes


def _without_wrapped_parts(state: dict[str, Any], model: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """Names without the wrappers of parts, as in ``features.module.0.weight``, where the model has no such names."""
    own = {part for name in model.state_dict(keep_vars=True) for part in name.split(".")}
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        first = next((place for place, part in enumerate(parts) if f"{part}." not in WRAPPERS), 0)
        inner = [part for part in parts[first:-1] if part not in PARTS or part in own]
        renamed[".".join([*parts[:first], *inner, parts[-1]])] = value
    if len(renamed) < len(state) or renamed.keys() == state.keys():
        return state, []
    changed = next(name for name, new in zip(state, renamed, strict=True) if name != new)
    return renamed, [f"removed the wrappers of parts from names such as '{shown(changed)}'"]


def _check_ties(state: dict[str, Any], model: nn.Module, path: Path) -> None:
    """Refuse different values for one weight of the model, of which the last would win."""
    first: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or name not in state:
            continue
        other = first.setdefault(id(tensor), name)
        if other != name and not torch.equal(state[other], state[name]):
            raise CheckpointError(
                f"weights: '{path}' holds different values for '{shown(other)}' and '{shown(name)}', which are one "
                "weight in the model; build the model without that tie, as it was trained."
            )


def _prefix(state: dict[str, Any], model: nn.Module, path: Path) -> str:
    """What stands before every name of the model in a file: the attribute of a wrapper, of a Lightning module, ...

    Where no prefix fits all names, that of the wrappers that all names of the file begin with.

    Raises:
        CheckpointError: Several fit, as for a teacher and a student.
    """
    own = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(own.items())}
    wanted = list(first.values())  # safetensors stores a tensor with two names once

    def fits(prefix: str) -> bool:
        return all(any(prefix + spelled in state for spelled in _spellings(name)) for name in wanted)

    if not wanted or fits(""):
        return ""
    starts = {name[: -len(end)] for name in state for end in _spellings(wanted[0]) if name.endswith(f".{end}")}
    found = sorted(filter(fits, starts))
    if len(found) > 1:
        listed = " and ".join(f"'{prefix}'" for prefix in found)
        raise CheckpointError(
            f"weights: '{path}' holds the weights of {len(found)} such models, under {listed}; write those that you "
            "want alone, with torch.save(model.state_dict(), path)."
        )
    return found[0] if found else _wrappers(state, own)


def _wrappers(state: dict[str, Any], own: dict[str, Any]) -> str:
    """The prefixes of wrappers that all names of a file begin with, and no name of the model."""
    wrappers = [wrapper for wrapper in WRAPPERS if not any(name.startswith(wrapper) for name in own)]
    prefix = ""
    while found := [w for w in wrappers if state and all(name.startswith(prefix + w) for name in state)]:
        prefix += found[0]
    return prefix


def _spellings(name: str) -> tuple[str, ...]:
    """A name as it may stand in a file: itself, or the mean of its posterior."""
    path, dot, leaf = name.rpartition(".")
    stems = {"weight": ("w", "weight"), "bias": ("b", "bias")}.get(leaf, (leaf,))
    return name, *(f"{path}{dot}{stem}_mu" for stem in stems)


def _posterior_names(state: dict[str, Any], model: nn.Module) -> list[str]:
    """The parameters of a deterministic model for which a state dict holds ``<stem>_mu`` and ``<stem>_rho``."""
    own, found = {name for name, _ in model.named_parameters()}, []
    for name in state:
        if name.endswith("_rho") and name not in own and f"{name[:-4]}_mu" in state:
            path, dot, stem = name[:-4].rpartition(".")
            candidates = {f"{path}{dot}{known}": None for known in (stem, {"w": "weight", "b": "bias"}.get(stem, stem))}
            found += [candidate for candidate in candidates if candidate in own]
    return found


def _load(model: nn.Module, state: dict[str, Any]) -> str:
    """Load, and say what did not fit: nothing is an empty text."""
    try:
        found = model.load_state_dict(state, strict=False)
        if not found.missing_keys and not found.unexpected_keys:
            return ""
        refusal = ""
    except RuntimeError as err:  # names that do not fit do not raise; shapes do, and whatever the model checks itself
        refusal = one_line(err)
    own = model.state_dict(keep_vars=True)
    tied = {id(own[name]) for name in state if name in own}  # safetensors stores a tensor with two names once
    problems = {
        "missing": [f"'{name}'" for name in own if name not in state and id(own[name]) not in tied],
        "unexpected": [f"'{name}'" for name in state if name not in own],
        "of another shape": [
            f"'{name}' {_shape(state[name])} instead of {_shape(tensor)}"
            for name, tensor in own.items()
            if name in state and _shape(state[name]) != _shape(tensor)
        ],
    }
    parts = []
    for what, names in problems.items():
        if names:
            listed = ", ".join(map(shown, names[:4])) + (", ..." if len(names) > 4 else "")
            parts.append(f"{len(names)} {what} ({listed})")
    return ", ".join(parts) or refusal


def _shape(value: Any) -> str:
    """The shape of a tensor, and nothing for a module's extra state."""
    return "x".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else ""

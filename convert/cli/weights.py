"""Weights from a file into a model.

Wrappers leave a prefix on every name (`module.` DataParallel, `_orig_mod.` torch.compile, `model.` Lightning), which
is taken away where the model has none. A checkpoint of `bensemble.save`, or names in `_mu` and `_rho`, make the model
Bayesian first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bensemble.checkpoint import load
from bensemble.checkpoint.finite import NOT_FINITE, is_finite
from bensemble.errors import CheckpointError, shown

from .failures import first_line
from .weight_files import find_state_dict, is_checkpoint, read_file

__all__ = ["fit_names", "load_weights"]

PREFIXES = ("module.", "_orig_mod.", "model.")


def load_weights(model: nn.Module, path: Path, key: str | None = None) -> tuple[nn.Module, list[str]]:
    """Load a file into a model: each has all names of the other, in the same shapes.

    Args:
        model: Gets the weights in place. Where the file holds posteriors that the model has not, it becomes Bayesian.
        path: A safetensors file, or one written by ``torch.save``.
        key: Where in the file the state dict is, dotted where it is nested; found by itself if None.

    Returns:
        The model, and what was chosen on the way, for the user to read.

    Raises:
        CheckpointError: The file cannot be read without running code, holds no state dict, or one of another model.
    """
    if key is None and is_checkpoint(path):
        return load(path, model), ["made the model Bayesian as the header of the checkpoint says"]
    state, notes = find_state_dict(read_file(path), path, key)
    state, note = fit_names(state, model)
    notes += [note] if note else []
    posteriors = _posterior_names(state, model)
    if posteriors:
        from ..surgery.converting import bayesify

        model = bayesify(model, include=posteriors, prior="normal", inplace=True)
        state = {name: value for name, value in state.items() if "_prior_" not in name}
        notes.append(f"made {len(posteriors)} parameters of the model Bayesian, as they are in the file")
    problems = _load(model, state)
    broken = [name for name, held in state.items() if name in dict(model.named_parameters()) and _is_broken(name, held)]
    if broken and not problems:
        raise CheckpointError(f"weights: '{shown(broken[0])}' in '{path}' is {NOT_FINITE}")
    if problems:
        raise CheckpointError(
            f"weights: '{path}' is of another model: {problems}; name the model with the arguments that it was trained "
            "with, or choose another part of the file with --key."
        )
    return model, notes


def fit_names(state: dict[str, Any], model: nn.Module) -> tuple[dict[str, Any], str]:
    """The state dict without the prefixes that wrappers left, and a note if there were any.

    Of all ways to take common prefixes away, the one with which most names are the model's own; the shortest of equals.
    """
    own = set(model.state_dict())
    modules = {_module_of(name) for name in own}
    names = list(state)
    if "n_averaged" in state and all(name.startswith("module.") for name in names if name != "n_averaged"):
        names.remove("n_averaged")  # a counter that torch.optim.swa_utils.AveragedModel puts beside the weights
    prefixes = [""]
    while longer := [p for p in PREFIXES if names and all(name.startswith(prefixes[-1] + p) for name in names)]:
        prefixes.append(prefixes[-1] + longer[0])

    def fit(prefix: str) -> tuple[int, int]:
        bare = [name.removeprefix(prefix) for name in names]
        return sum(name in own for name in bare), sum(_module_of(name) in modules for name in bare)

    best = max(prefixes, key=fit)
    if not best:
        return state, ""
    return {name.removeprefix(best): state[name] for name in names}, f"removed the prefix '{best}' from every name"


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _posterior_names(state: dict[str, Any], model: nn.Module) -> list[str]:
    """The parameters of a deterministic model for which a state dict holds ``<stem>_mu`` and ``<stem>_rho``."""
    own, found = {name for name, _ in model.named_parameters()}, []
    for name in state:
        if name.endswith("_rho") and name not in own and f"{name[:-4]}_mu" in state:
            path, dot, stem = name[:-4].rpartition(".")
            candidates = [f"{path}{dot}{known}" for known in (stem, {"w": "weight", "b": "bias"}.get(stem, stem))]
            found += [candidate for candidate in dict.fromkeys(candidates) if candidate in own]
    return found


def _load(model: nn.Module, state: dict[str, Any]) -> str:
    """Load, and say what did not fit: nothing is an empty text."""
    refusal = ""
    try:
        found = model.load_state_dict(state, strict=False)
        missing, unexpected = _not_tied(found.missing_keys, state, model), list(found.unexpected_keys)
    except RuntimeError as err:  # names that do not fit do not raise; shapes do, and whatever the model checks itself
        refusal = first_line(err)
        own = model.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
    shapes = [
        f"'{name}' {_shape(state[name])} instead of {_shape(value)}"
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and isinstance(state.get(name), Tensor) and state[name].shape != value.shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(shown(name) for name in names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (
            ("missing", [f"'{name}'" for name in missing]),
            ("unexpected", [f"'{name}'" for name in unexpected]),
            ("of another shape", shapes),
        )
        if names
    ]
    return ", ".join(parts) or refusal


def _not_tied(missing: list[str], state: dict[str, Any], model: nn.Module) -> list[str]:
    """The missing names without those that share a tensor with one in the file: safetensors stores it once."""
    own = model.state_dict(keep_vars=True)
    loaded = {id(own[name]) for name in state if name in own}
    return [name for name in missing if id(own.get(name)) not in loaded]


def _is_broken(name: str, held: Any) -> bool:
    """Whether a weight is not finite; a rho of minus infinity says that the weight is pruned."""
    if not isinstance(held, Tensor):
        return False
    return not is_finite(held.nan_to_num(nan=float("nan"), neginf=-50.0) if name.endswith("_rho") else held)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[:8])) or "scalar"

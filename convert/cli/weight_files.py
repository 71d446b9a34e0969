"""Weight files: safetensors, or torch files read without running anything in them, and the state dict in them.

A file holds a state dict, or a mapping with state dicts under keys.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bensemble.errors import CheckpointError, shown

from ..archives import check_unpacked
from .shards import read_shards

__all__ = ["find_state_dict", "is_checkpoint", "read_file"]

#: Which of several state dicts in a file is meant where ``--key`` does not say it.
USUAL_KEYS = ("state_dict", "model_state_dict", "model")


def read_file(path: Path) -> Any:
    """What a weights file holds: tensors and plain data, nothing that would have to be executed."""
    if path.is_dir():
        raise CheckpointError(f"weights: '{path}' is a folder; name the .safetensors or .pt file in it.")
    if path.name.endswith(".index.json") and path.is_file():
        return read_shards(path, _read_one)
    return _read_one(path)


def is_checkpoint(path: Path) -> bool:
    """True for a file of ``bensemble.save``, whose header says how to make the model Bayesian."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # a pipe would wait for somebody to write
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "bensemble" in (file.metadata() or {})
    except (SafetensorError, OSError):  # whatever it is, `read_file` says so
        return False


def find_state_dict(content: Any, path: Path, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The state dict in what a file holds, and a note where it was found under a key.

    The file itself, or what lies at ``key``, dotted where it is nested; without a key the first usual one, or the only
    one that there is.
    """
    whole = _is_state_dict(content)
    if whole and key is None:
        return dict(content), []
    places = dict(_state_dicts(content))
    listing = shown(", ".join(places) or "none", 300)
    if key is not None:
        if key not in places:
            cure = "leave --key out, the file is a state dict" if whole else "choose one with --key"
            raise CheckpointError(f"weights: '{path}' has no state dict at '{key}', got: {listing}; {cure}.")
        return dict(places[key]), []
    if not places:
        held = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"weights: '{path}' holds no state dict, got {shown(held, 300)}; "
            "write torch.save(model.state_dict(), path)."
        )
    candidates = [place for place in USUAL_KEYS if place in places] or list(places)
    if candidates[0] not in USUAL_KEYS and len(places) > 1:
        raise CheckpointError(f"weights: '{path}' holds several state dicts, got: {listing}; choose one with --key.")
    taken = candidates[0]
    others = shown(", ".join(place for place in places if place != taken), 300)
    return dict(places[taken]), [f"took '{shown(taken)}'" + (f", not {others}; choose with --key" if others else "")]


def _read_one(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise CheckpointError(f"weights: '{path}' is a device or a pipe, got no file; save it to a file first.")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError as err:
        raise CheckpointError(f"weights: there is no file '{path}'; check the path.") from err
    except OSError as err:
        raise CheckpointError(f"weights: '{path}' cannot be read ({err.strerror}); check its permissions.") from err
    if not head:
        raise CheckpointError(f"weights: '{path}' is empty; download or save it again.")
    if path.suffix == ".safetensors" or head[8:] == b"{":
        return _read_safetensors(path)
    return _read_torch(path, zipped=head.startswith(b"PK"))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as err:
        raise CheckpointError(
            f"weights: '{path}' is truncated or not a safetensors file ({shown(err, 200)}); get it again."
        ) from err


def _read_torch(path: Path, zipped: bool) -> Any:
    try:
        if zipped:
            check_unpacked(path)
        # Namespaces of command line options lie beside the weights in many published files; they are plain data.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        raise CheckpointError(f"weights: '{path}' {_why_unreadable(str(err))}") from err


def _why_unreadable(refusal: str) -> str:
    """What a torch file is instead, by the refusal of ``torch.load``, and what to do."""
    pickled = re.search(r"GLOBAL ([\w.]+)", refusal)
    if pickled is not None:
        return (
            f"holds a pickled '{pickled[1]}', which only running code could rebuild; nothing was executed. "
            "If you trust the file, load it in Python and write torch.save(model.state_dict(), path)."
        )
    if "TorchScript" in refusal:
        return "is a TorchScript program, not weights; write torch.save(torch.jit.load(path).state_dict(), new_path)."
    return (
        "is truncated or not a file of weights; get it again, or write it with "
        "torch.save(model.state_dict(), path) or safetensors."
    )


def _is_state_dict(value: Any) -> bool:
    """True for a mapping from names to tensors; a module's extra state may be anything."""
    if not isinstance(value, Mapping) or not any(isinstance(item, Tensor) for item in value.values()):
        return False
    return all(
        isinstance(name, str) and (isinstance(item, Tensor) or name.endswith("_extra_state"))
        for name, item in value.items()
    )


def _state_dicts(content: Any, path: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every state dict in nested mappings, with its dotted key; what optimizers keep is none."""
    if isinstance(content, Mapping) and depth:
        for name, value in content.items():
            if _is_state_dict(value):
                yield f"{path}{name}", value
            elif "optim" not in str(name):
                yield from _state_dicts(value, f"{path}{name}.", depth - 1)

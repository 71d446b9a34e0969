"""Weight files, read without running anything in them, and the state dict in them.

A file is a safetensors file, a torch file of tensors and plain data, or the index of several such files:

    {"metadata": {...}, "weight_map": {"layer.weight": "model-00001-of-00002.safetensors", ...}}
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bensemble.errors import CheckpointError, needs_extra, shown

from ..archives import check_unpacked

__all__ = ["find_state_dict", "is_checkpoint", "read_file"]

#: Where a file holds its state dict, unless ``key`` names another place.
USUAL_KEYS = ("state_dict", "model_state_dict", "model")

#: Most bytes of an index; a model with 100,000 weights needs about a tenth of this.
LONGEST = 64 * 2**20

#: A shard: a file name without a folder. An index is not allowed, because it could list itself.
SHARD = re.compile(r"[^/\\:]{1,240}\.(safetensors|bin|pt|pth)")


def read_file(path: Path) -> Any:
    """The tensors and plain data in a weights file, or all tensors of an index."""
    return _read_shards(path) if path.name.endswith(".index.json") and path.is_file() else _read_one(path)


def is_checkpoint(path: Path) -> bool:
    """True for a file of ``bensemble.save``, whose header says how to make the model Bayesian."""
    with needs_extra("weights", "io"):
        from safetensors import SafetensorError, safe_open

    if not path.is_file():  # opening a pipe would wait for a writer
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return "bensemble" in (file.metadata() or {})
    except (SafetensorError, OSError):  # `read_file` gives the reason
        return False


def find_state_dict(content: Any, path: Path, key: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The state dict in a file, and a note where it was found under a usual key.

    Without a key it is the file itself or the entry under a usual key. A key is dotted where mappings are nested.
    """
    if key is None and _is_state_dict(content):
        return dict(content), []
    for place in USUAL_KEYS if key is None else [key]:
        entry = content
        for part in place.split("."):
            entry = entry.get(part) if isinstance(entry, Mapping) else None
        if _is_state_dict(entry):
            return dict(entry), [f"took '{place}'"] if key is None else []
    wanted = " or ".join(map(repr, USUAL_KEYS if key is None else [key]))
    held = ", ".join(map(repr, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"weights: '{path}' holds no state dict at {wanted}, got {shown(held, 300)}; "
        "name the place with key=, or write the file with torch.save(model.state_dict(), path)."
    )


def _is_state_dict(value: Any) -> bool:
    """True for a mapping from names to tensors; a module's extra state may be anything."""
    if not isinstance(value, Mapping) or not any(isinstance(item, Tensor) for item in value.values()):
        return False
    return all(
        isinstance(name, str) and (isinstance(item, Tensor) or name.endswith("_extra_state"))
        for name, item in value.items()
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors that an index lists; only files in its own folder are accepted."""
    try:
        if index.stat().st_size > LONGEST:
            raise ValueError(f"it has {index.stat().st_size} bytes")
        listed = json.loads(index.read_bytes())
        files = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(files, dict) or not files:
            raise ValueError("it has no weight_map")
        for file in files.values():
            if not (isinstance(file, str) and file.isprintable() and SHARD.fullmatch(file)):
                raise ValueError(f"it lists {str(file)[:80]!r}, which is not the name of a weights file in its folder")
    except (OSError, ValueError, RecursionError) as err:
        raise CheckpointError(
            f"weights: '{index}' is not an index of weights ({shown(err, 200)}); get it again, or name another file."
        ) from err
    shards: dict[str, Any] = {}
    state: dict[str, Tensor] = {}
    for name, file in files.items():
        if file not in shards:
            shards[file] = _read_one(index.parent / file)
        held = shards[file].get(name) if isinstance(shards[file], dict) else None
        if not isinstance(held, Tensor):
            raise CheckpointError(
                f"weights: '{index}' lists '{shown(name)}' in {file!r}, which holds no such tensor; "
                "get both from one place."
            )
        state[name] = held
    return state


def _read_one(path: Path) -> Any:
    """The content of one file; its first bytes decide the format."""
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is a folder, a device or a pipe")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as err:
        raise CheckpointError(
            f"weights: '{path}' cannot be read ({err.strerror or err}); give the path of a weights file."
        ) from err
    try:
        if path.suffix == ".safetensors" or head[8:] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        if head.startswith(b"PK"):
            check_unpacked(path)
        # Many published files hold command line options beside the weights; a Namespace of them is plain data.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        raise CheckpointError(f"weights: '{path}' {_why_unreadable(str(err))}") from err


def _why_unreadable(refusal: str) -> str:
    """What is wrong with a file, by the error of its reader, and what to do."""
    pickled = re.search(r"GLOBAL ([\w.]+)", refusal)
    if pickled is not None:
        return (
            f"holds a pickled '{pickled[1]}', which only running code could rebuild; nothing was executed. "
            "If you trust the file, load it in Python and write torch.save(model.state_dict(), path)."
        )
    if "TorchScript" in refusal:
        return "is a TorchScript program, not weights; write torch.save(torch.jit.load(path).state_dict(), new_path)."
    return (
        "is truncated or not a weights file; get it again, or write it with "
        "torch.save(model.state_dict(), path) or safetensors."
    )

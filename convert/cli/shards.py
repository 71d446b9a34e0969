"""Weights in several files, listed by an index beside them, as Hugging Face writes large models.

    {"metadata": {...}, "weight_map": {"layer.weight": "model-00001-of-00002.safetensors", ...}}

An index comes from outside, so a name in it may only be that of a file in its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from bensemble.checkpoint.header import unique_keys
from bensemble.errors import CheckpointError, shown

__all__ = ["read_shards"]

#: Bytes of an index; that of a model with 100,000 weights has about a tenth of this.
LONGEST = 64 * 2**20

#: What a shard may be; an index in an index would never end.
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Tensor]:
    """All weights that an index lists; ``read`` reads one of the files."""
    shards: dict[str, Any] = {}
    state: dict[str, Tensor] = {}
    for name, file in _weight_map(index).items():
        if file not in shards:
            if not (index.parent / file).is_file():
                raise CheckpointError(
                    f"weights: '{index}' lists {file!r}, which is no file beside it; get all of them."
                )
            shards[file] = read(index.parent / file)
        held = shards[file].get(name) if isinstance(shards[file], dict) else None
        if not isinstance(held, Tensor):
            raise CheckpointError(
                f"weights: '{index}' lists '{shown(name)}' in {file!r}, which holds no such tensor; "
                "get both from one place."
            )
        state[name] = held
    return state


def _weight_map(index: Path) -> dict[str, str]:
    """The file of every weight."""
    try:
        if index.stat().st_size > LONGEST:
            raise ValueError(f"it has {index.stat().st_size} bytes")
        listed = json.loads(index.read_bytes(), object_pairs_hook=unique_keys)["weight_map"]
        if not isinstance(listed, dict) or not listed:
            raise TypeError("weight_map is no map of names")
        elsewhere = [str(file)[:80] for file in listed.values() if not _is_plain(file)]
        if elsewhere:
            raise ValueError(f"a shard is no file in its folder, {elsewhere[0]!r}")
        return listed
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as err:
        what = "it has no weight_map" if isinstance(err, KeyError) else shown(err, 200)
        raise CheckpointError(
            f"weights: '{index}' is no index of weights ({what}); get it again, or name one file of weights."
        ) from err


def _is_plain(file: Any) -> bool:
    """True for a name without a folder and without anything that a file system or a terminal treats specially."""
    plain = isinstance(file, str) and file.isprintable() and len(file) < 256
    return plain and not set(file) & set("/\\:") and file.endswith(ENDINGS)

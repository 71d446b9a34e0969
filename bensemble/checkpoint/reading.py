"""Reading a file of safetensors: its header first, then every tensor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..errors import CheckpointError, needs_extra, shown

__all__ = ["read_tensors"]

H = TypeVar("H")


def read_tensors(path: str | os.PathLike[str], header_of: Callable[[dict[str, str]], H]) -> tuple[H, dict[str, Tensor]]:
    """What the metadata of a file says, and its tensors by name. Nothing is unpickled.

    Args:
        path: The file.
        header_of: Makes the header of the metadata, and refuses what is not one before a tensor is read.

    Raises:
        CheckpointError: It is not a file, not one of safetensors, or damaged.
    """
    with needs_extra("load", "io"):
        from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise CheckpointError(f"load: '{path}' is not a file; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            header = header_of(file.metadata() or {})
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, UnicodeDecodeError) as err:
        raise CheckpointError(
            f"load: '{path}' is damaged or not a safetensors file ({shown(err, 200)}); get it again. "
            "Weights of torch.save go into the model with load_state_dict."
        ) from err

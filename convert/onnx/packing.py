"""The last steps of an export: the graph verified as it is, then rounded or stored sparsely, and measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from .finishing import serialized
from .inputs.trials import Trials
from .shrinking.quantization import Quantization
from .shrinking.sparse import store_sparse
from .verification import measured, verified

__all__ = ["Packed", "pack"]


@dataclass(frozen=True)
class Packed:
    """A written file.

    Attributes:
        proto: What it holds.
        data: Its bytes.
        facts: Fields of the report that the file's summary does not give.
    """

    proto: onnx.ModelProto
    data: bytes
    facts: dict[str, Any]


def pack(
    path: Path,
    proto: onnx.ModelProto,
    trials: Trials,
    names: Sequence[str],
    rounding: Quantization | None,
    sparse: bool,
    verify: bool,
) -> Packed:
    """Write a graph to a file, in the form that the user asked for.

    Args:
        path: The file, where a failure leaves what it likes.
        proto: The float graph; it is changed in place.
        trials: What the model answers.
        names: The names of the outputs in the file.
        rounding: Quantization, or None.
        sparse: Whether weights with many zeros are stored by their nonzero entries.
        verify: Whether the file is run.

    Raises:
        ExportError: The graph is not valid, too large, or cannot be quantised.
        VerificationError: The float graph does not reproduce the model, or the quantised one gives no numbers.
    """
    data = serialized(proto, verify)
    path.write_bytes(data)
    facts = verified(path, trials, names) if verify else {}
    if rounding is None and not sparse:
        return Packed(proto, data, facts)
    own: dict[str, Any] = {}
    if rounding is not None:
        proto = rounding.apply(proto, rounding.batches(trials))
        own["quantization"] = rounding.description
    if sparse:
        own["sparse_tensors"] = store_sparse(proto)
    data = serialized(proto, verify)
    path.write_bytes(data)
    if verify and rounding is not None:
        facts = measured(path, trials, names, rounding.batches(trials))
    elif verify:
        facts = verified(path, trials, names)
    return Packed(proto, data, {**facts, **own})

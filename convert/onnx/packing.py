"""The last steps of an export: the float graph verified, then quantised or stored sparsely, and measured again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from .files.inspection import summarize
from .files.report import ExportReport
from .finishing import serialized
from .inputs.trials import Trials
from .options import ExportOptions
from .shrinking.sparse import store_sparse
from .verification import Measured, Verified, measured, verified

__all__ = ["pack"]


def pack(
    file: Path, proto: onnx.ModelProto, trials: Trials, names: Sequence[str], options: ExportOptions
) -> ExportReport:
    """Write a graph to a file, in the form that the user asked for.

    Args:
        file: Where to write; after an error its content is undefined.
        proto: The float graph; it is changed in place.
        trials: What the model answers.
        names: The names of the outputs in the file.
        options: What was asked for.

    Raises:
        ExportError: The graph is not valid, too large, or cannot be quantised.
        VerificationError: The float graph does not reproduce the model, or the quantised one gives NaN or infinity.
    """
    quantization, verify = options.quantization, options.verify
    data = serialized(proto, verify)
    file.write_bytes(data)
    found: Verified | Measured | None = verified(file, trials, names) if verify else None
    if quantization is not None:
        proto = quantization.apply(proto, quantization.batches(trials))
    sparse_tensors = store_sparse(proto) if options.sparse else 0
    if quantization is not None or options.sparse:
        data = serialized(proto, verify)
        file.write_bytes(data)
        if verify and quantization is not None:
            found = measured(file, trials, names, quantization.batches(trials))
        elif verify:
            found = verified(file, trials, names)
    return summarize(
        ExportReport,
        options.path,
        proto,
        data,
        quantization=None if quantization is None else quantization.description,
        sparse_tensors=sparse_tensors,
        **({} if found is None else vars(found)),
    )

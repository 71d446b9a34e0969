"""Variants of a network side by side: every file measured in one run, on the same data, in interleaved rounds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from bensemble.checks import check_takes
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.batches import Inputs, Unpack, call, device_of, is_loader, read_batches, to_device
from bensemble.models.outputs import OutputSelector, describe, tensor_paths
from bensemble.models.state import evaluating

from .measuring import error_of
from .running import OnnxModel
from .sessions import BATCH_SIZES
from .variants import Comparison, Variant, checked_metric, side_by_side

__all__ = ["Comparison", "Variant", "compare_onnx"]


def compare_onnx(
    files: Mapping[str, str | os.PathLike[str]],
    data: Inputs | Iterable[Any],
    *,
    model: nn.Module | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = 7,
    max_batches: int | None = None,
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
) -> Comparison:
    """Measure ONNX files of one network in one run: size, gzip size, latency, error and a metric of the user.

    Latency is CPU time on one thread, all files taking turns for ``rounds`` rounds, at every batch size that the
    first file takes; ratios between files hold on a busy machine. Errors are against the torch model in eval mode.

    Args:
        files: ``{name: path}``; the first is the reference of the ratios.
        data: Inputs of one call (tensor, tuple, mapping) or a loader of batches, whose targets are left out.
        model: The torch model that the files come from; None leaves the errors out.
        evaluate: ``callable(model) -> float``, the task metric. It gets each file as an
            :class:`~convert.onnx.files.running.OnnxModel`, which is called like the torch model, and ``model`` itself,
            whose type of outputs the files then have, unless ``output`` names one of them.
        batch_sizes: Batch sizes to time, made of the first batch's examples, repeated where there are fewer. A size
            that the first file does not take is left out.
        rounds: Rounds of timing; 0 times nothing.
        max_batches: Use that many batches of a loader for the error; default all.
        output: Which output of the model the files give, where they give one of several.
        unpack: ``callable(batch) -> (inputs, target)`` for batches of another form.

    Raises:
        InvalidTypeError, InvalidValueError: No files, a file that cannot be read or run on the data, data without a
            batch, outputs of other shapes, NaN, or a metric that is not a number.

    Example:
        >>> report = convert.export_onnx(pruned, "pruned.onnx", x)
        >>> files = {"dense": "plain.onnx", "pruned": "pruned.onnx"}
        >>> print(convert.compare_onnx(files, val_loader, model=model, evaluate=accuracy))
    """
    if not isinstance(files, Mapping) or not files:
        raise InvalidTypeError(f"compare_onnx: files must map names to paths, got {files!r}.")
    if evaluate is not None:
        check_takes("compare_onnx", "evaluate", evaluate, "model")
    if isinstance(data, Iterator):  # every file reads it
        data = list(data)
    first = next(iter(_inputs(data, unpack, torch.device("cpu"), 1)), None)
    if first is None:
        raise InvalidValueError("compare_onnx: data must hold a batch, got none.")
    arrays = {path.replace(".", "_"): tensor.detach().cpu().numpy() for path, tensor in tensor_paths(first)}
    found = side_by_side(files, arrays, batch_sizes=batch_sizes, rounds=rounds, what=describe(first))
    with evaluating(*([] if model is None else [model])):
        like = None
        if model is not None and evaluate is not None and output is None:
            with torch.no_grad():
                like = call(model, to_device(first, device_of(model)))
        variants = []
        for variant in found.variants:
            file, error = OnnxModel(variant.path, like=like), None
            if model is not None:
                error = error_of(file, model, _inputs(data, unpack, device_of(model), max_batches), output)
            variants.append(replace(variant, error=error, metric=_metric(evaluate, file, variant.name)))
        metric = _metric(evaluate, model, "model") if model is not None else None
    return Comparison(tuple(variants), metric)


def _inputs(data: Any, unpack: Unpack | None, device: torch.device, most: int | None) -> Iterable[Inputs]:
    if not is_loader(data):
        return [to_device(data, device)]
    return (inputs for inputs, _ in islice(read_batches(data, unpack, device), most))


def _metric(evaluate: Callable[[nn.Module], float] | None, model: nn.Module, name: str) -> float | None:
    if evaluate is None:
        return None
    with torch.no_grad():
        value = evaluate(model)
    return checked_metric("compare_onnx", value, name)

"""Variants of a network side by side: every file measured in one run, on the same data, in interleaved rounds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bensemble.checks import check_takes
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.batches import Inputs, Unpack, batch_size, call, device_of, is_loader, read_batches, to_device
from bensemble.models.outputs import OutputSelector
from bensemble.models.state import evaluating
from bensemble.tables import text_table

from .inspection import inspect_onnx
from .measuring import BATCH_SIZES, Deviation, Timing, checked_metric, error_of, interleaved, resized_batch
from .running import OnnxModel

__all__ = ["Comparison", "Variant", "compare_onnx"]


@dataclass(frozen=True)
class Variant:
    """One file.

    Attributes:
        name: Its key in ``files``.
        path: The file.
        size: Bytes.
        gzip_size: Bytes after gzip.
        parameters: Stored weights.
        sparsity: Share of them that is 0.
        latency: By batch size, on one thread; the ratio is to the first file.
        error: Against the torch model; None without one.
        metric: The result of ``evaluate``; None without it.
    """

    name: str
    path: Path
    size: int
    gzip_size: int
    parameters: int
    sparsity: float
    latency: Mapping[int, Timing] = field(default_factory=dict)
    error: Deviation | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Files side by side; ``print`` shows a table.

    Attributes:
        variants: The files, in the order given; the first is the reference of all ratios.
        model_metric: The result of ``evaluate`` for the torch model, None without one.
    """

    variants: tuple[Variant, ...]
    model_metric: float | None = None

    def __getitem__(self, name: str) -> Variant:
        """A variant by name."""
        return next(variant for variant in self.variants if variant.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """Plain dicts, for JSON or a table library."""
        return [{**asdict(variant), "path": str(variant.path)} for variant in self.variants]

    def __str__(self) -> str:
        first = self.variants[0]
        sizes = list(first.latency)
        header = ["file", "kB", "gzip kB", "weights", "zeros"]
        header += [f"ms at {size}" if size else "ms" for size in sizes]
        header += ["max error", "agrees"] * (first.error is not None) + ["metric"] * (first.metric is not None)
        lines = [header, *(_cells(variant, first, sizes) for variant in self.variants)]
        if self.model_metric is not None:
            lines.append(["(torch model)", *[""] * (len(header) - 2), f"{self.model_metric:.4g}"])
        return "\n".join(text_table(lines, right=range(1, len(header))))


def _cells(variant: Variant, first: Variant, sizes: Sequence[int]) -> list[str]:
    cells = [variant.name, f"{variant.size / 1e3:,.1f}", f"{variant.gzip_size / 1e3:,.1f}", f"{variant.parameters:,}"]
    cells.append(f"{variant.sparsity:.1%}")
    for size in sizes:
        timing = variant.latency.get(size)
        ratio = "" if variant is first or timing is None else f" ({timing.ratio:.2f}x)"
        cells.append(f"{timing.ms:.3g}{ratio}" if timing else "-")
    if variant.error is not None:
        agrees = variant.error.agreement
        cells += [f"{variant.error.relative_error:.1e}", "-" if agrees is None else f"{agrees:.1%}"]
    return cells + ([f"{variant.metric:.4g}"] if variant.metric is not None else [])


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
        >>> print(compare_onnx({"dense": "a.onnx", "int8": "b.onnx"}, loader, model=model, evaluate=accuracy))
    """
    if not isinstance(files, Mapping) or not files:
        raise InvalidTypeError(f"compare_onnx: files must map names to paths, got {files!r}.")
    if evaluate is not None:
        check_takes("compare_onnx", "evaluate", evaluate, "model")
    if isinstance(data, Iterator):  # every file reads it
        data = list(data)
    summaries = {name: inspect_onnx(path) for name, path in files.items()}
    models = {name: OnnxModel(path) for name, path in files.items()}
    first = next(iter(_inputs(data, unpack, torch.device("cpu"), 1)), None)
    if first is None:
        raise InvalidValueError("compare_onnx: data must hold a batch, got none.")
    latency = _latency(models, first, batch_sizes, rounds) if rounds else {name: {} for name in files}
    with evaluating(*([] if model is None else [model])):
        if model is not None and evaluate is not None and output is None:
            with torch.no_grad():
                like = call(model, to_device(first, device_of(model)))
            models = {name: OnnxModel(path, like=like) for name, path in files.items()}
        variants = [
            Variant(
                name=name,
                path=summary.path,
                size=summary.size,
                gzip_size=summary.gzip_size,
                parameters=summary.parameters,
                sparsity=summary.sparsity,
                latency=latency[name],
                error=None
                if model is None
                else error_of(models[name], model, _inputs(data, unpack, device_of(model), max_batches), output),
                metric=_metric(evaluate, models[name], name),
            )
            for name, summary in summaries.items()
        ]
        metric = _metric(evaluate, model, "model") if model is not None else None
    return Comparison(tuple(variants), metric)


def _inputs(data: Any, unpack: Unpack | None, device: torch.device, most: int | None) -> Iterable[Inputs]:
    if not is_loader(data):
        return [to_device(data, device)]
    return (inputs for inputs, _ in islice(read_batches(data, unpack, device), most))


def _latency(
    models: Mapping[str, OnnxModel], inputs: Inputs, batch_sizes: Sequence[int], rounds: int
) -> dict[str, dict[int, Timing]]:
    """Timings by file and batch size, at the sizes that the first file takes; the given batch where it takes none."""
    reference, first = next(iter(models.items()))
    resized = {size: resized_batch(inputs, size) for size in batch_sizes}
    batches = {size: batch for size, batch in resized.items() if _takes(first, batch)} or {batch_size(inputs): inputs}
    found: dict[str, dict[int, Timing]] = {name: {} for name in models}
    for size, batch in batches.items():
        for model in models.values():
            model.outputs(batch)  # raises with a readable message where a file rejects the batch
        runs = {name: partial(model.session.run, None, model.feed(batch)) for name, model in models.items()}
        for name, timing in interleaved(runs, reference, rounds).items():
            found[name][size] = timing
    return found


def _takes(model: OnnxModel, inputs: Inputs) -> bool:
    try:
        model.outputs(inputs)
    except InvalidValueError:
        return False
    return True


def _metric(evaluate: Callable[[nn.Module], float] | None, model: nn.Module, name: str) -> float | None:
    if evaluate is None:
        return None
    with torch.no_grad():
        value = evaluate(model)
    return checked_metric("compare_onnx", value, name)

"""From a model's outputs to the file: other inputs tried, traced, finished, verified, quantised, measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from bensemble.checkpoint.writing import replacing
from bensemble.errors import ExportError, InvalidValueError, one_line

from .files.inspection import summarize
from .files.measuring import Deviation
from .files.report import ExportReport
from .files.running import OnnxModel
from .finishing import check_ranges, finished, serialized
from .inputs.arguments import FlatModel, checked_names
from .inputs.axes import Axis
from .inputs.trials import Trials, run_trials
from .options import ExportOptions
from .shrinking.sparse import store_sparse
from .sidecar import sidecar, sidecar_path
from .source_lines import located
from .tracing import quiet, trace
from .uncertainty.closed import ClosedModel
from .uncertainty.metadata import uncertainty_metadata
from .uncertainty.networks import SampledModel
from .uncertainty.novelty import FileNovelty
from .verification import Agreement, latency, measured, verified

__all__ = ["assembled"]

logger = logging.getLogger("bensemble.onnx")


def assembled(model: FlatModel, axes: Sequence[Axis], options: ExportOptions) -> ExportReport:
    """Write a model with as many of the axes dynamic as work; those that are not required may be fixed."""
    options.stage("trying other inputs")
    with quiet(options.verbose):
        trials = run_trials(model, axes)
    try:
        return _write(trials, options)
    except ExportError as err:
        required = [axis for axis in trials.axes if axis.required]
        if len(required) == len(trials.axes):
            raise
        logger.info("exporting with a fixed length of integer inputs, because of %s", one_line(err))
    return assembled(model, required, options)


def _write(trials: Trials, options: ExportOptions) -> ExportReport:
    """Trace a model and write the file; beside an uncertainty file its sidecar, or neither."""
    names = _output_names(options.output_names, tuple(trials.example.outputs), trials.model.arguments.names)
    metadata = _metadata(trials, options)
    if options.quantization is not None:  # wrong calibration data is refused before the slow export
        if (novelty := _novelty(trials)) is None:
            next(iter(options.quantization.batches(trials)))
        else:
            novelty.check_heldout(_scores(novelty, trials.model.named, options.quantization.with_targets(trials)))
    options.stage("tracing")
    traced = trace(trials, options.opset, options.verbose)
    options.stage("optimising the graph")
    check_ranges(trials, traced, options.verify)
    proto = finished(trials, traced, names, metadata, options.opset)
    try:
        with replacing(options.target) as temporary, located(traced.lines), ExitStack() as stack:
            report = _pack(temporary, proto, trials, names, options)
            if options.uncertainty is not None:
                beside = stack.enter_context(replacing(sidecar_path(options.target)))
                beside.write_bytes(sidecar(options.target.name, report, temporary.read_bytes()))
            return report
    except OSError as err:
        raise ExportError(
            f"export_onnx: '{options.target}' cannot be written, got {one_line(err)}; try again."
        ) from err


def _pack(
    file: Path, proto: onnx.ModelProto, trials: Trials, names: Sequence[str], options: ExportOptions
) -> ExportReport:
    """Verify the float graph, then quantise it or store it sparsely, as asked for, and measure it again."""
    quantization, verify = options.quantization, options.verify
    data = serialized(proto, verify)
    file.write_bytes(data)
    if verify:
        options.stage("verifying in ONNX Runtime")
    found: Agreement | Deviation | None = verified(file, trials, names) if verify else None
    before: dict[str, Any] = {}
    if quantization is not None:
        before = {"float_size": len(data), "float_latency_ms": latency(file, trials) if verify else {}}
        options.stage("quantising")
        proto = quantization.apply(proto, quantization.batches(trials), trials.model.heads)
        if (novelty := _novelty(trials)) is not None:
            file.write_bytes(serialized(proto, verify))
            novelty.recount(proto, _scores(novelty, OnnxModel(file).outputs, quantization.with_targets(trials)))
    sparse_tensors = store_sparse(proto) if options.sparse else 0
    if quantization is not None or options.sparse:
        data = serialized(proto, verify)
        file.write_bytes(data)
    if verify and quantization is not None:
        found = measured(file, trials, names, quantization.batches(trials))
    elif verify and options.sparse:
        found = verified(file, trials, names)
    if verify:
        options.stage("measuring the latency")
    return summarize(
        ExportReport,
        options.path,
        proto,
        data,
        quantization=None if quantization is None else quantization.description,
        sparse_tensors=sparse_tensors,
        latency_ms=latency(file, trials) if verify else {},
        **before,
        **({} if found is None else vars(found)),
    )


def _novelty(trials: Trials) -> FileNovelty | None:
    return trials.model.novelty if isinstance(trials.model, (SampledModel, ClosedModel)) else None


def _scores(
    novelty: FileNovelty, outputs: Callable[[Any], dict[str, Tensor]], batches: Iterable[tuple[tuple[Tensor, ...], Any]]
) -> Tensor:
    """What the model or its file gives for the held-out terms."""
    return torch.cat([novelty.counted(outputs(tensors)["novelty"], target) for tensors, target in batches])


def _metadata(trials: Trials, options: ExportOptions) -> dict[str, str]:
    """The user's strings and those that tell what the file is."""
    found = {**options.metadata, "bensemble.outputs": options.outputs, "bensemble.model": trials.model.name}
    if options.uncertainty is not None:
        assert isinstance(trials.model, (SampledModel, ClosedModel))
        found |= uncertainty_metadata(options.uncertainty, trials.model, trials.example.outputs, options.metadata)
    if options.quantization is not None:
        found["bensemble.quantization"] = options.quantization.description
    return found


def _output_names(wanted: Sequence[str] | None, found: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs' names in the file, different from the inputs'."""
    if wanted is None:
        return tuple(f"{name}_out" if name in inputs else name for name in found)
    names = checked_names("output_names", wanted, found)
    shared = ", ".join(repr(name) for name in names if name in inputs)
    if shared:
        raise InvalidValueError(f"export_onnx: output_names must differ from the inputs' names, got {shared} in both.")
    return names

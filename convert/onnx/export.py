"""``export_onnx``: a model as one ONNX file that ONNX Runtime confirms."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bensemble.calibration import Calibration
from bensemble.checkpoint.writing import checked_target, replacing
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError, refuse
from bensemble.likelihoods import Likelihood
from bensemble.models.batches import Inputs
from bensemble.models.outputs import OutputSelector
from bensemble.models.state import unwrapped

from .deployable import deployable
from .files.inspection import summarize
from .files.report import ExportReport
from .finishing import check_ranges, finished
from .inputs.arguments import FlatModel, checked_names, read_arguments
from .inputs.axes import dynamic_axes
from .inputs.trials import Trials, one_line, run_trials
from .packing import pack
from .shrinking.quantization import quantization_options
from .tracing import quiet, trace
from .uncertainty.networks import UncertaintyModel
from .uncertainty.options import MOST_BYTES, uncertainty_options

__all__ = ["export_onnx"]

logger = logging.getLogger("bensemble.onnx")


def export_onnx(
    model: nn.Module | Sequence[nn.Module],
    path: str | os.PathLike[str],
    example_inputs: Inputs,
    *,
    outputs: str = "mean",
    method: str = "samples",
    num_samples: int = 16,
    likelihood: Likelihood | str | None = None,
    calibration: Calibration | None = None,
    output: OutputSelector | None = None,
    quantize: str | None = None,
    calibration_data: Any = None,
    sparse: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
    generator: torch.Generator | None = None,
    verify: bool = True,
    verbose: bool = False,
) -> ExportReport:
    """Write a model as one self-contained ONNX file, and make sure that ONNX Runtime computes what the model does.

    The file holds the model in eval mode, pruned by the masks of its layers; a Bayesian model at its posterior mean, or
    ``num_samples`` frozen draws of it with what they say about the uncertainty. It is written beside ``path`` and
    renamed, whole or not at all. The same model gives the same bytes. The model, its training flags and the random
    state stay as they are.

    Args:
        model: Any module that torch.export can follow, Bayesian or not. It is exported from a copy on the CPU. For
            uncertainty also a sequence of them: an ensemble, as ``predict`` takes it.
        path: Where to write. An old file is replaced only by a verified new one.
        example_inputs: A tensor for ``model(t)``, a tuple for ``model(*t)``, a mapping for ``model(**m)``. A batch of
            one will do. What is no tensor becomes a constant.
        outputs: ``"mean"``, the model's own outputs; or ``"uncertainty"``: ``probs``, ``entropy`` and
            ``mutual_information`` in nats for classes, else ``mean`` and ``std`` over the posterior, with a noise model
            ``noise_std`` as well. The file needs no random numbers and answers the same every time.
        method: How uncertainty is computed: ``"samples"``, by weight draws in one graph, which share what comes before
            the first posterior; or ``"moments"``, in one pass by :func:`convert.moments`.
        num_samples: Weight draws K of ``method="samples"``; what they may take together with the rest is 2 GiB.
        likelihood: What the outputs mean, as in :func:`bensemble.predict`.
        calibration: A :class:`bensemble.Calibration`: its temperature and conformal threshold (output
            ``prediction_set``) become part of the graph, its reference distribution of the metadata.
        output: Which output to keep: a key, a dotted path, an index or a callable. Default: all tensors that the model
            returns, named by their keys, fields or positions; for uncertainty, what ``predict`` takes.
        quantize: ``"int8"`` rounds weights (per output channel) and activations to eight bits, with ONNX Runtime's own
            quantizer. The report then says how far the file is from the model on ``calibration_data``.
        calibration_data: Typical inputs that tell the range of every activation, prepared as the model's inputs are: a
            tensor, tuple or mapping for one call, or a loader or list of batches. A hundred examples go a long way.
            A model without convolutions may do without: its activations' ranges are then measured at every call.
        sparse: Store weights by their nonzero entries where that takes fewer bytes, from two thirds of zeros on.
            Outputs and latency are the same; only the file is smaller.
        input_names: Names in place of those of forward's arguments.
        output_names: Names in place of those of the outputs; the outputs of uncertainty keep theirs.
        dynamic_shapes: ``{input name: {axis: name}}``, the axes that may vary, for the inputs that should not follow
            the rule: axis 0 is ``batch``, axis 1 of integer inputs is ``sequence`` where the model accepts other
            lengths. A name may also be a ``torch.export.Dim`` with bounds; ``{}`` fixes all axes of an input.
        opset: Version of the operator set. Default: what torch's exporter prefers.
        metadata: Strings to store in the file; keys that start with ``bensemble.`` are the toolkit's own. ``classes``,
            names separated by commas, is what :mod:`convert.runtime` calls the classes.
        generator: Source of the weight draws; the draws are those of ``predict`` with such a generator. Default: one
            with seed 0.
        verify: Run the written file in ONNX Runtime at the example and at another size of every dynamic axis. The
            largest difference may be 1e-5 of the largest output for float32 (float64 1e-10, float16 2e-2), or ten
            times what rounding makes of the model itself, against float64, where that is more (up to 1e-2); integer
            outputs must be equal.
        verbose: Let torch's exporter print, log and warn.

    Returns:
        Sizes, latency, error, sparsity, inputs and outputs; it prints well.

    Raises:
        InvalidTypeError, InvalidValueError: An argument that cannot work, or a path that cannot be written.
        ExportError: The model rejects the inputs, cannot be traced or quantised, or does not fit into one file.
        VerificationError: The file does not reproduce the model, or ONNX Runtime cannot run it.

    Example:
        >>> print(export_onnx(bnn, "sure.onnx", images[:1], metadata={"classes": "cat,dog"}))
    """
    models = _members(model, outputs)
    _check(outputs, output_names, opset, metadata)
    uncertainty = uncertainty_options(outputs, method, num_samples, likelihood, calibration, generator)
    rounding = quantization_options(quantize, calibration_data, outputs)
    if (verify or rounding) and find_spec("onnxruntime") is None:
        raise ExportError(
            f"export_onnx: {'verify=True' if verify else 'quantize'} needs onnxruntime, which is not installed; "
            "install bensemble with its onnx extra, from the source tree: pip install '.[onnx]'."
        )
    target = checked_target(path, "export_onnx")
    if uncertainty is not None:
        uncertainty.check(models)
    with ExitStack() as stack:
        networks = [stack.enter_context(deployable(member, computed_weights=uncertainty is None)) for member in models]
        arguments = read_arguments(networks[0], example_inputs, input_names)
        _check_size(networks)
        own = {**(metadata or {}), "bensemble.models.outputs": outputs, "bensemble.model": type(networks[0]).__name__}
        flat = FlatModel(networks[0], arguments, output)
        if uncertainty is not None:
            flat = uncertainty.model(models, networks, arguments, output)
        axes = dynamic_axes(arguments, dynamic_shapes)
        with quiet(verbose):
            trials = run_trials(flat, axes)
        names = _output_names(output_names, tuple(trials.example.outputs), arguments.names)
        if isinstance(flat, UncertaintyModel) and uncertainty is not None:
            own |= uncertainty.metadata(flat.count, trials.example.outputs, own)
        if rounding is not None:
            next(iter(rounding.batches(trials)))  # what is wrong with calibration data shows before the export
            own["bensemble.quantization"] = rounding.description

        def attempt(trials: Trials) -> ExportReport:
            traced = trace(trials, opset, verbose)
            check_ranges(trials, traced, verify)
            proto = finished(trials, traced, names, own)
            try:
                with replacing(target) as temporary:
                    packed = pack(temporary, proto, trials, names, rounding, sparse, verify)
            except OSError as err:
                raise ExportError(
                    f"export_onnx: '{target}' cannot be written, got {one_line(err)}; try again."
                ) from err
            return summarize(ExportReport, Path(path), packed.proto, packed.data, **packed.facts)

        try:
            return attempt(trials)
        except ExportError as err:
            required = [axis for axis in trials.axes if axis.required]
            if len(required) == len(trials.axes):
                raise
            logger.info("exporting with a fixed length of integer inputs, because of %s", one_line(err))
        with quiet(verbose):
            trials = run_trials(flat, required)
        return attempt(trials)


def _members(model: Any, outputs: str) -> list[nn.Module]:
    """The model, or the models of an ensemble, without wrappers."""
    several = isinstance(model, (list, tuple)) and outputs == "uncertainty" and len(model) > 0
    models = list(model) if several else [model]
    for member in models:
        if not isinstance(member, nn.Module):
            raise InvalidTypeError(
                f"export_onnx: model must be a torch.nn.Module, got {type(member).__name__}; "
                "an ensemble is a sequence of them, with outputs='uncertainty'."
            )
        if isinstance(member, torch.jit.ScriptModule):
            raise InvalidTypeError(
                "export_onnx: model must be Python code, got a ScriptModule; give the module it came from."
            )
    return [unwrapped(member) for member in models]


def _check(
    outputs: str, output_names: Sequence[str] | None, opset: int | None, metadata: Mapping[str, str] | None
) -> None:
    """Refuse arguments that cannot work, before anything happens."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidTypeError(f"export_onnx: metadata must be a mapping of strings, got {type(metadata).__name__}.")
    problems = []
    if outputs not in ("mean", "uncertainty"):
        problems.append(f"outputs: must be 'mean' or 'uncertainty', got {outputs!r}.")
    if outputs == "uncertainty" and output_names is not None:
        problems.append(f"output_names: must be left out with outputs='uncertainty', got {output_names!r}.")
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int) or opset < 1):
        problems.append(f"opset: must be a positive integer, got {opset!r}.")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str) or not key:
            problems.append(f"metadata: must map strings to strings, got {key!r}: {value!r}.")
        elif key.startswith("bensemble."):
            problems.append(f"metadata: {key!r} is reserved; choose a key that does not start with 'bensemble.'.")
    refuse("export_onnx", problems, InvalidValueError)


def _output_names(wanted: Sequence[str] | None, found: tuple[str, ...], inputs: tuple[str, ...]) -> tuple[str, ...]:
    """The outputs' names in the file, different from the inputs'."""
    if wanted is None:
        return tuple(f"{name}_out" if name in inputs else name for name in found)
    names = checked_names("output_names", wanted, found)
    shared = ", ".join(repr(name) for name in names if name in inputs)
    if shared:
        raise InvalidValueError(f"export_onnx: output_names must differ from the inputs' names, got {shared} in both.")
    return names


def _check_size(networks: Sequence[nn.Module]) -> None:
    """Refuse weights that no single file can hold, before the exporter spends minutes on them."""
    tensors = {id(tensor): tensor for network in networks for tensor in (*network.parameters(), *network.buffers())}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MOST_BYTES:
        raise ExportError(
            f"export_onnx: the weights of {type(networks[0]).__name__} must fit into one file of 2 GiB, got "
            f"{size / 2**30:.2f} GiB; export in float16 (model.half()), or a smaller model."
        )

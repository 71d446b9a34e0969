"""``export_onnx``: a model as one ONNX file that is verified in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bensemble.calibration import Calibration
from bensemble.checkpoint.writing import checked_target
from bensemble.errors import ExportError
from bensemble.likelihoods import Likelihood
from bensemble.models.batches import Inputs
from bensemble.models.outputs import OutputSelector
from bensemble.models.undisturbed import undisturbed
from bensemble.novelty import Novelty

from ..planning.copying import check_shapes
from .assembly import assembled
from .deployable import deployable
from .files.report import ExportReport
from .inputs.arguments import FlatModel, read_arguments
from .inputs.axes import dynamic_axes
from .options import ExportOptions, checked_models
from .shrinking.quantization import quantization_options
from .sidecar import check_sidecar
from .uncertainty.options import MOST_BYTES, check_draws_fit, num_bytes, uncertainty_options

__all__ = ["export_onnx"]


def export_onnx(
    model: nn.Module | Sequence[nn.Module],
    path: str | os.PathLike[str],
    example_inputs: Inputs,
    *,
    outputs: str = "mean",
    method: str | None = None,
    num_samples: int | None = None,
    likelihood: Likelihood | str | None = None,
    novelty: Novelty | Sequence[Novelty] | None = None,
    calibration: Calibration | None = None,
    reject: Mapping[str, float] | None = None,
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
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Write a model as one self-contained ONNX file, and check that ONNX Runtime computes what the model does.

    The file holds the model in eval mode, pruned by the masks of its layers; a Bayesian model at its posterior mean, or
    ``num_samples`` frozen weight draws and their uncertainty. It is written beside ``path`` and renamed at the end, so
    a failure leaves no partial file. The same model gives the same bytes. The model, its training flags and the random
    state stay as they are. Beside an uncertainty file lies ``NAME.onnx.json``, a copy of its metadata for
    clients that cannot read it.

    Args:
        model: Any module that torch.export can follow, Bayesian or not. A copy on the CPU is exported. For uncertainty
            also a sequence of them: an ensemble, as ``predict`` takes it.
        path: Where to write. An old file is replaced only by a verified new one.
        example_inputs: A tensor for ``model(t)``, a tuple for ``model(*t)``, a mapping for ``model(**m)``. A batch of
            one is enough. Values that are not tensors become constants.
        outputs: ``"mean"``, the model's own outputs; or ``"uncertainty"``: ``probs``, ``entropy`` and
            ``mutual_information`` in nats for classes, else ``mean`` and ``std`` over the posterior, with a noise model
            ``noise_std`` as well. The file draws no random numbers: the same input always gives the same output.
        method: How uncertainty is computed: ``"closed"``, in one forward, where the last layer alone is Bayesian (see
            :func:`convert.last_layer`); ``"samples"``, by weight draws in one graph that share the layers before the
            first posterior. Default: the first where it is possible.
        num_samples: Number of weight draws K, in pairs of opposite noise. A runtime holds them all, so they may take 2
            GiB; the file holds means, deviations and one table of numbers that all noise is read from. Default: as
            many as the predictions that were calibrated, 16 without a calibration.
        likelihood: What the outputs mean, as in :func:`bensemble.predict`.
        novelty: What :func:`bensemble.fit_novelty` returned for this model, for an ensemble one for each member: adds
            ``novelty`` and ``novelty_pvalue``. With it, a deterministic model has an uncertainty file too.
        calibration: A :class:`bensemble.Calibration`: its temperature and conformal threshold (output
            ``prediction_set``, in regression ``lower`` and ``upper``) become part of the graph, its reference
            distribution of the metadata.
        reject: Thresholds that the file carries for ``Answer.reject``, by uncertainty, such as ``{"entropy": 0.5,
            "novelty_pvalue": 0.01}``: predictions above a threshold, or with a p-value up to it, are rejected.
        output: Which output to keep: a key, a dotted path, an index or a callable. Default: all tensors that the model
            returns, named by their keys, fields or positions; for uncertainty, what ``predict`` takes.
        quantize: ``"int8"`` stores weights (per output channel) and activations in eight bits, by ONNX Runtime's own
            quantizer; of a file in closed form the last layer, and all that follows it, stay float32. The report gives
            the error of the file on ``calibration_data``.
        calibration_data: Typical inputs that give the range of every activation, prepared as the model's inputs are: a
            tensor, tuple or mapping for one call, or a loader or list of batches. A hundred examples are usually
            enough. Without it, a model that has no convolutions measures the ranges at every call. With a novelty: the
            ``val_loader`` of ``fit_novelty``, among whose scores in eight bits p-values are then counted.
        sparse: Store weights by their nonzero entries where that takes fewer bytes, from two thirds of zeros on.
            Outputs and latency are the same; only the file is smaller.
        input_names: Names in place of those of forward's arguments.
        output_names: Names in place of those of the outputs; the outputs of uncertainty keep theirs.
        dynamic_shapes: ``{input name: {axis: name}}``, the axes that may vary, for the inputs that should not follow
            the rule: axis 0 is ``batch``, axis 1 of integer inputs (not of uint8 pictures) is ``sequence`` where the
            model accepts other lengths. A name may also be a ``torch.export.Dim`` with bounds; ``{}`` fixes all axes of
            an input.
        opset: Version of the operator set. Default: the lowest that the graph needs, from 18 on.
        metadata: Strings to store in the file; keys that start with ``bensemble.`` are reserved. ``classes``, names
            separated by commas, is what :mod:`convert.runtime` calls the classes.
        generator: Source of the weight draws, which are other ones than those of ``predict``. Default: one with seed 0.
        verify: Run the written file in ONNX Runtime at the example and at another size of every dynamic axis. The
            largest difference may be 1e-5 of the largest output for float32 (float64 1e-10, float16 2e-2), or ten
            times the model's own rounding error, measured against float64, where that is more (up to 1e-2); integer
            outputs must be equal.
        verbose: Let torch's exporter print, log and warn.
        progress: Called with the name of each stage as it begins, such as ``"tracing"``, which takes the longest.

    Returns:
        Sizes, latency, error, sparsity, inputs and outputs; ``print`` shows a table.

    Raises:
        InvalidTypeError, InvalidValueError: An argument that cannot work, or a path that cannot be written.
        ExportError: The model rejects the inputs, cannot be traced or quantised, or does not fit into one file.
        VerificationError: The file does not reproduce the model, or ONNX Runtime cannot run it.

    Example:
        >>> print(convert.export_onnx(bnn, "digits.onnx", x, metadata={"classes": ",".join("0123456789")}))
    """
    models = checked_models(model, outputs)
    uncertainty = uncertainty_options(
        models, outputs, method, num_samples, likelihood, novelty, calibration, generator, reject
    )
    options = ExportOptions(
        target=checked_target(path, "export_onnx"),
        path=Path(path),
        outputs=outputs,
        output_names=output_names,
        opset=opset,
        metadata={} if metadata is None else metadata,
        uncertainty=uncertainty,
        quantization=quantization_options(
            quantize,
            calibration_data,
            outputs,
            None if uncertainty is None else uncertainty.method,
            novelty is not None,
        ),
        sparse=sparse,
        verify=verify,
        verbose=verbose,
        progress=progress,
    )
    for member in models:
        check_shapes("export_onnx", member)
    uncertainty = options.uncertainty
    if uncertainty is not None:
        check_sidecar(options.target)
        check_draws_fit(models, uncertainty)
    with ExitStack() as stack:
        stack.enter_context(undisturbed(*models))
        networks = [stack.enter_context(deployable(member, computed_weights=uncertainty is None)) for member in models]
        arguments = read_arguments(networks[0], example_inputs, input_names)
        _check_size(networks)
        if uncertainty is None:
            flat = FlatModel(networks[0], arguments, output)
        else:
            means = [stack.enter_context(deployable(member, False)) for member in uncertainty.read_apart(models)]
            flat = uncertainty.model(models, networks, means, arguments, output)
        return assembled(flat, dynamic_axes(arguments, dynamic_shapes), options)


def _check_size(networks: Sequence[nn.Module]) -> None:
    """Refuse weights that no single file can hold, before the slow export."""
    size = num_bytes(tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    if size > MOST_BYTES:
        raise ExportError(
            f"export_onnx: the weights of {type(networks[0]).__name__} must fit into one file of 2 GiB, got "
            f"{size / 2**30:.2f} GiB; export in float16 (model.half()), or a smaller model."
        )

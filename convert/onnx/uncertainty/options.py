"""The options of an uncertainty file, checked before anything is computed, and the draws that it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.calibration import Calibration
from bensemble.checks import check_count
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError
from bensemble.fingerprints import posterior_fingerprint
from bensemble.likelihoods import DiscreteLikelihood, Likelihood, resolve
from bensemble.models.outputs import OutputSelector
from bensemble.posteriors import named_posteriors
from bensemble.prediction.closed import closed_form

from ..inputs.arguments import Arguments
from .closed import ClosedModel
from .draws import weight_draws
from .networks import SampledModel
from .novelty import FileNovelty
from .statistics import Statistics
from .thresholds import checked_thresholds

__all__ = ["MOST_BYTES", "UncertaintyOptions", "check_draws_fit", "num_bytes", "uncertainty_options"]

#: A protobuf message, and so a self-contained ONNX file, holds less than 2 GiB.
MOST_BYTES = 2**31 - 1
#: Draws in a file where neither the caller nor a calibration says how many.
NUM_SAMPLES = 16


@dataclass(frozen=True)
class UncertaintyOptions:
    """The options of an uncertainty file, checked.

    Attributes:
        method: ``"closed"`` or ``"samples"``.
        num_samples: Number of draws K.
        likelihood: What the outputs mean.
        novelty: What ``fit_novelty`` returned, for an ensemble one for each member, or None.
        calibration: Temperature, conformal threshold and reference, or None.
        generator: Source of the draws, or None for seed 0.
        thresholds: Above which uncertainty the runtime rejects a prediction, by output.
    """

    method: str
    num_samples: int
    likelihood: Likelihood | None
    novelty: Any
    calibration: Calibration | None
    generator: torch.Generator | None
    thresholds: dict[str, float]

    def read_apart(self, models: Sequence[nn.Module]) -> Sequence[nn.Module]:
        """The models whose novelty has to be read from a network of its own, because weights are drawn."""
        drawn = self.method == "samples" and any(any(True for _ in named_posteriors(m)) for m in models)
        return models if drawn and self.novelty is not None else ()

    def model(
        self,
        sources: Sequence[nn.Module],
        networks: Sequence[nn.Module],
        means: Sequence[nn.Module],
        arguments: Arguments,
        selector: OutputSelector | None,
    ) -> SampledModel | ClosedModel:
        """The model that is traced and that the file is compared with.

        Args:
            sources: The Bayesian model, or the members of an ensemble.
            networks: Their deterministic copies on the CPU.
            means: Other copies, which the novelty reads where the networks get weight draws.
            arguments: How their call is put together.
            selector: Which output the uncertainty is about.
        """
        novelty = None if self.novelty is None else FileNovelty(self.novelty, sources, means or networks)
        statistics = Statistics(self.likelihood)
        if self.calibration is not None:
            threshold = self.calibration.conformal_threshold
            statistics = Statistics(
                self.likelihood, self.calibration.temperature, threshold if threshold < math.inf else None
            )
        if self.method == "closed":
            return ClosedModel(sources, networks, arguments, selector, statistics, novelty)
        generator = torch.Generator().manual_seed(0) if self.generator is None else self.generator
        draws = weight_draws(sources, self.num_samples, generator)
        return SampledModel(networks, arguments, selector, draws, statistics, novelty, means)


def uncertainty_options(
    models: Sequence[nn.Module],
    outputs: str,
    method: str | None,
    num_samples: int | None,
    likelihood: Any,
    novelty: Any,
    calibration: Any,
    generator: Any,
    reject: Any,
) -> UncertaintyOptions | None:
    """The options of ``outputs="uncertainty"``, checked; None for the mean.

    Raises:
        InvalidTypeError, InvalidValueError: A value that cannot work, or an option that has no effect with the mean.
    """
    given = {"likelihood": likelihood, "calibration": calibration, "generator": generator}
    given |= {"novelty": novelty, "reject": reject}
    if outputs == "mean":
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise InvalidValueError(
                f"export_onnx: {', '.join(unused)} must come with outputs='uncertainty', got outputs='mean'."
            )
        return None
    if method not in (None, "closed", "samples"):
        raise InvalidValueError(f"export_onnx: method must be 'closed', 'samples' or None, got {method!r}.")
    if num_samples is not None:
        check_count("export_onnx", "num_samples", num_samples, least=2)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"export_onnx: generator must be a torch.Generator, got {generator!r}.")
    resolved = resolve(likelihood)
    if calibration is not None:
        _check_calibration(calibration, resolved)
    chosen = _chosen_method(models, method, resolved)
    if num_samples is None:
        calibrated = (calibration is not None and calibration.method == "weights" and calibration.num_samples) or 0
        num_samples = max(calibrated // len(models), 2) if calibrated else NUM_SAMPLES
    if calibration is not None:
        made = _as_predicted(models, chosen, num_samples, resolved)
        calibration.check_made_for("export_onnx", posterior_fingerprint(models), *made, resolved)
    thresholds = checked_thresholds(reject, resolved, novelty)
    return UncertaintyOptions(chosen, num_samples, resolved, novelty, calibration, generator, thresholds)


def _as_predicted(
    models: Sequence[nn.Module], method: str, num_samples: int, likelihood: Likelihood | None
) -> tuple[int, str]:
    """The number of samples and the method of predictions that say what the file will say."""
    if method == "closed":
        forms = (closed_form(model, likelihood) for model in models)
        return sum(form.num_draws for form in forms if form is not None), "closed"
    if not any(True for model in models for _ in named_posteriors(model)):
        return len(models), "deterministic"
    return num_samples * len(models), "weights"


def _chosen_method(models: Sequence[nn.Module], method: str | None, likelihood: Likelihood | None) -> str:
    """The method that was asked for, or the closed form where every model has one."""
    without = [model for model in models if closed_form(model, likelihood) is None]
    if method == "closed" and without:
        raise InvalidValueError(
            "export_onnx: method='closed' needs a model whose last layer alone is Bayesian, found by bayesify and not "
            f"pruned, got {type(without[0]).__name__} with likelihood={likelihood!r}; convert it with "
            "bayesify(model, include=last_layer(model, x), example_inputs=x), or use method='samples'."
        )
    return method or ("samples" if without else "closed")


def _check_calibration(calibration: Any, likelihood: Likelihood | None) -> None:
    if not isinstance(calibration, Calibration):
        raise InvalidTypeError(
            f"export_onnx: calibration must be what bensemble.calibrate returned, got {calibration!r}."
        )
    if likelihood is None or isinstance(likelihood, DiscreteLikelihood) != ("entropy" in calibration.reference):
        raise InvalidValueError(
            f"export_onnx: calibration must be of predictions by the same likelihood, got one with a reference of "
            f"{' and '.join(calibration.reference)} for likelihood={likelihood!r}."
        )


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """The size of tensors in memory, each once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in tensors}.values())


def check_draws_fit(models: Sequence[nn.Module], options: UncertaintyOptions) -> None:
    """Refuse a model with nothing uncertain, or more draws than a runtime should hold, before anything is computed.

    Raises:
        InvalidValueError: ``num_samples`` draws exceed 2 GiB; says how many fit. An ensemble is Bayesian in part.
        ExportError: The model has no posterior, and there is no novelty.
    """
    num_samples = 1 if options.method == "closed" else options.num_samples
    posteriors = [[posterior for _, posterior in named_posteriors(model)] for model in models]
    if not all(posteriors) and len(models) == 1 and options.novelty is None:
        raise ExportError(
            f"export_onnx: outputs='uncertainty' needs a Bayesian model, got {type(models[0]).__name__} without a "
            "posterior; bayesify it and fit_posterior, pass novelty=fit_novelty(...), or export outputs='mean'."
        )
    if any(posteriors) and not all(posteriors):
        raise InvalidValueError(
            "export_onnx: an ensemble must be all Bayesian or all deterministic, got both; bayesify the rest."
        )
    every = [posterior for found in posteriors for posterior in found]
    drawn = sum(num_bytes([posterior.mu]) for posterior in every)
    own = [tensor for p in every for tensor in (p.mu, p.rho, p.mask) if tensor is not None]
    shared = num_bytes([t for model in models for t in (*model.parameters(), *model.buffers())]) - num_bytes(own)
    size = shared + num_samples * drawn
    if size > MOST_BYTES:
        fitting = max((MOST_BYTES - shared) // max(drawn, 1), 0)
        cure = f"num_samples={fitting} fits" if fitting > 1 else "no two draws fit"
        raise InvalidValueError(
            f"export_onnx: num_samples draws of the weights, all held by a runtime, must fit into 2 GiB, got "
            f"{num_samples} draws of {type(models[0]).__name__} with {size / 2**30:.2f} GiB; {cure}, and so does a "
            "posterior on fewer layers."
        )

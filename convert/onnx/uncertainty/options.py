"""What may be asked of an uncertainty file, checked before anything is computed, and what it says about itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.calibration import Calibration
from bensemble.checks import check_count
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, DiscreteLikelihood, Likelihood, resolve
from bensemble.models.outputs import OutputSelector
from bensemble.posterior import named_posteriors
from bensemble.prediction.weight_samples import WeightSamples

from ...runtime import class_names
from ..inputs.arguments import Arguments
from .networks import MomentsModel, SampledModel, UncertaintyModel, moment_network
from .statistics import Statistics

__all__ = ["MOST_BYTES", "UncertaintyOptions", "uncertainty_options"]

#: A protobuf message, and so a self-contained ONNX file, holds less than 2 GiB.
MOST_BYTES = 2**31 - 1

#: References of a calibration whose names in the file are others.
OWN_NAMES = {"epistemic_std": "std"}


@dataclass(frozen=True)
class UncertaintyOptions:
    """What was asked of an uncertainty file, checked.

    Attributes:
        method: How the uncertainty is computed.
        num_samples: Number of draws K.
        likelihood: What the outputs mean.
        calibration: Temperature, conformal threshold and reference, or None.
        generator: Source of the draws, or None for seed 0.
    """

    method: str
    num_samples: int
    likelihood: Likelihood | None
    calibration: Calibration | None
    generator: torch.Generator | None

    def check(self, models: Sequence[nn.Module]) -> None:
        """Refuse what cannot be written, before anything is computed."""
        check_draws_fit(models, self.num_samples if self.method == "samples" else 2)
        if self.method == "moments" and len(models) > 1:
            raise InvalidValueError(
                f"export_onnx: method='moments' must get one model, got {len(models)}; use method='samples'."
            )

    def model(
        self,
        sources: Sequence[nn.Module],
        networks: Sequence[nn.Module],
        arguments: Arguments,
        selector: OutputSelector | None,
    ) -> UncertaintyModel:
        """The model that is traced and that the file is compared with.

        Args:
            sources: The Bayesian model, or the members of an ensemble.
            networks: Their deterministic copies on the CPU.
            arguments: How their call is put together.
            selector: Which output the uncertainty is about.
        """
        if self.method == "moments":
            return MomentsModel(
                moment_network(sources[0], arguments, selector), arguments, self.likelihood, self._statistics()
            )
        generator = torch.Generator().manual_seed(0) if self.generator is None else self.generator
        draws = [weight_draws(source, self.num_samples, generator) for source in sources]
        return SampledModel(networks, arguments, selector, draws, self._statistics())

    def metadata(self, count: int, outputs: Mapping[str, Tensor], own: Mapping[str, str]) -> dict[str, str]:
        """What the file says about itself.

        Args:
            count: Number of networks in the file.
            outputs: The outputs at the example.
            own: The user's strings.

        Raises:
            InvalidValueError: The user's ``classes`` are not as many as the outputs tell apart.
        """
        uncertainty = outputs["entropy" if "entropy" in outputs else "std"]
        found = {
            "bensemble.method": self.method,
            "bensemble.num_samples": str(count),
            "bensemble.likelihood": "none" if self.likelihood is None else _described(self.likelihood),
            "bensemble.terms": str(uncertainty[0].numel()),
        }
        if isinstance(self.likelihood, (Bernoulli, Categorical)):
            shape = self.likelihood.class_probs(outputs["probs"]).shape
            axis = (
                self.likelihood.axis(outputs["probs"]) if isinstance(self.likelihood, Categorical) else len(shape) - 1
            )
            found["bensemble.class_axis"] = str(axis)
            classes = class_names(own.get("classes", ""))
            if classes and len(classes) != shape[axis]:
                raise InvalidValueError(
                    f"export_onnx: metadata['classes'] must name {shape[axis]} classes, got {len(classes)}: "
                    f"{', '.join(classes)}."
                )
        if self.calibration is not None:
            reference = {OWN_NAMES.get(name, name): values for name, values in self.calibration.reference.items()}
            found["bensemble.calibration"] = self.calibration.to_json()
            found["bensemble.reference"] = json.dumps(reference)
        return found

    def _statistics(self) -> Statistics:
        if self.calibration is None:
            return Statistics(self.likelihood)
        threshold = self.calibration.conformal_threshold if isinstance(self.likelihood, DiscreteLikelihood) else None
        return Statistics(self.likelihood, self.calibration.temperature, threshold)


def uncertainty_options(
    outputs: str, method: str, num_samples: int, likelihood: Any, calibration: Any, generator: Any
) -> UncertaintyOptions | None:
    """The options of ``outputs="uncertainty"``, checked; None for the mean.

    Raises:
        InvalidTypeError, InvalidValueError: A value that cannot work, or an option that the mean has no use for.
    """
    given = {"likelihood": likelihood, "calibration": calibration, "generator": generator}
    if outputs == "mean":
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise InvalidValueError(
                f"export_onnx: {', '.join(unused)} must come with outputs='uncertainty', got outputs='mean'."
            )
        return None
    if method not in ("samples", "moments"):
        raise InvalidValueError(f"export_onnx: method must be 'samples' or 'moments', got {method!r}.")
    check_count("export_onnx", "num_samples", num_samples, least=2)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"export_onnx: generator must be a torch.Generator, got {generator!r}.")
    resolved = resolve(likelihood)
    if calibration is not None:
        _check_calibration(calibration, resolved)
    return UncertaintyOptions(method, num_samples, resolved, calibration, generator)


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


def _described(likelihood: Likelihood) -> str:
    """Name and settings that are plain values, as ``Categorical(dim=1)``."""
    settings = {key: value for key, value in vars(likelihood).items() if isinstance(value, (int, float, str))}
    return f"{type(likelihood).__name__}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def weight_draws(model: nn.Module, num_samples: int, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """K draws of every posterior, the same that ``predict`` makes with such a generator, pruned by the masks.

    Returns:
        K tensors on the CPU for each weight, by its name in the deterministic model. A tied weight has one name.
    """
    posteriors = dict(named_posteriors(model))
    draws: dict[str, list[Tensor]] = {name: [] for name in posteriors}
    samples = WeightSamples(model, num_samples, generator, several=False)
    with torch.no_grad():
        for k in range(num_samples):
            frame = samples.frame(k)
            for name, posterior in posteriors.items():
                assert frame is not None  # the model has posteriors
                draws[name].append(frame.sample(posterior).cpu())
    return draws


def check_draws_fit(models: Sequence[nn.Module], num_samples: int) -> None:
    """Refuse a model without posteriors, or more draws than one file holds, before anything is computed.

    Raises:
        InvalidValueError: ``num_samples`` draws exceed 2 GiB; says how many fit. An ensemble is Bayesian in part.
        ExportError: The model has no posterior.
    """
    posteriors = [[posterior for _, posterior in named_posteriors(model)] for model in models]
    if not all(posteriors) and len(models) == 1:
        raise ExportError(
            f"export_onnx: outputs='uncertainty' needs a Bayesian model, got {type(models[0]).__name__} without a "
            "posterior; bayesify it and fit_posterior, or export outputs='mean'."
        )
    if any(posteriors) and not all(posteriors):
        raise InvalidValueError(
            "export_onnx: an ensemble must be all Bayesian or all deterministic, got both; bayesify the rest."
        )
    every = [posterior for found in posteriors for posterior in found]
    drawn = sum(posterior.mu.numel() * posterior.mu.element_size() for posterior in every)
    own = {id(tensor) for p in every for tensor in (p.mu, p.rho, p.mask) if tensor is not None}
    tensors = {id(tensor): tensor for model in models for tensor in (*model.parameters(), *model.buffers())}
    shared = sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in own)
    size = shared + num_samples * drawn
    if size > MOST_BYTES:
        fitting = max((MOST_BYTES - shared) // max(drawn, 1), 0)
        cure = f"num_samples={fitting} fits" if fitting > 1 else "no two draws fit"
        raise InvalidValueError(
            f"export_onnx: num_samples draws of the weights must fit into one file of 2 GiB, got {num_samples} draws "
            f"of {type(models[0]).__name__} with {size / 2**30:.2f} GiB; {cure}, and so does a posterior on fewer "
            "layers."
        )

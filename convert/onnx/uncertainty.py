"""A Bayesian model as ONNX sees it when it is to say how sure it is: K frozen weight draws and their statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from bensemble.batches import call
from bensemble.calibration import Calibration
from bensemble.checks import check_count
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, DiscreteLikelihood, Likelihood, resolve
from bensemble.outputs import OutputSelector, select_output
from bensemble.posterior import named_posteriors
from bensemble.weight_samples import WeightSamples

from ..runtime import class_names
from .inputs import Arguments, FlatModel
from .members import members, replicate
from .statistics import SCALES, Statistics

__all__ = ["MOST_BYTES", "SampledModel", "UncertaintyOptions", "uncertainty_options"]

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

    def check(self, model: nn.Module) -> None:
        """Refuse what cannot be written, before anything is computed."""
        check_draws_fit(model, self.num_samples)

    def model(
        self, source: nn.Module, network: nn.Module, arguments: Arguments, selector: OutputSelector | None
    ) -> FlatModel:
        """The model that is traced and that the file is compared with.

        Args:
            source: The Bayesian model.
            network: Its deterministic copy on the CPU.
            arguments: How its call is put together.
            selector: Which output the uncertainty is about.
        """
        draws = weight_draws(source, self.num_samples, self.generator)
        return SampledModel(network, arguments, selector, draws, self._statistics())

    def metadata(self, outputs: Mapping[str, Tensor], own: Mapping[str, str]) -> dict[str, str]:
        """What the file says about itself.

        Args:
            outputs: The outputs at the example.
            own: The user's strings.

        Raises:
            InvalidValueError: The user's ``classes`` are not as many as the outputs tell apart.
        """
        uncertainty = outputs["entropy" if "entropy" in outputs else "std"]
        found = {
            "bensemble.method": self.method,
            "bensemble.num_samples": str(self.num_samples),
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
    if method != "samples":
        raise InvalidValueError(f"export_onnx: method must be 'samples', got {method!r}.")
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


def weight_draws(model: nn.Module, num_samples: int, generator: torch.Generator | None) -> dict[str, list[Tensor]]:
    """K draws of every posterior, the same that ``predict`` makes with such a generator, pruned by the masks.

    Args:
        model: A Bayesian model.
        num_samples: Number of draws K.
        generator: Source of the noise; default one with seed 0, so that the same model gives the same file.

    Returns:
        K tensors on the CPU for each weight, by its name in the deterministic model. A tied weight has one name.
    """
    source = torch.Generator().manual_seed(0) if generator is None else generator
    samples = WeightSamples(model, num_samples, source, several=False)
    posteriors = dict(named_posteriors(model))
    draws: dict[str, list[Tensor]] = {name: [] for name in posteriors}
    with torch.no_grad():
        for k in range(num_samples):
            frame = samples.frame(k)
            assert frame is not None  # the model has posteriors
            for name, posterior in posteriors.items():
                draws[name].append(posterior.draw(frame.noise_of(posterior)).cpu())
    return draws


def check_draws_fit(model: nn.Module, num_samples: int) -> None:
    """Refuse a model without posteriors, or more draws than one file holds, before anything is computed.

    Raises:
        InvalidValueError: ``num_samples`` draws exceed 2 GiB; says how many fit.
        ExportError: The model has no posterior.
    """
    posteriors = [posterior for _, posterior in named_posteriors(model)]
    if not posteriors:
        raise ExportError(
            f"export_onnx: outputs='uncertainty' needs a Bayesian model, got {type(model).__name__} without a "
            "posterior; bayesify it and fit_posterior, or export outputs='mean'."
        )
    drawn = sum(posterior.mu.numel() * posterior.mu.element_size() for posterior in posteriors)
    own = {id(tensor) for p in posteriors for tensor in (p.mu, p.rho, p.mask) if tensor is not None}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shared = sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in own)
    size = shared + num_samples * drawn
    if size > MOST_BYTES:
        fitting = max((MOST_BYTES - shared) // drawn, 0)
        cure = f"num_samples={fitting} fits" if fitting > 1 else "no two draws fit"
        raise InvalidValueError(
            f"export_onnx: num_samples draws of the weights must fit into one file of 2 GiB, got {num_samples} draws "
            f"of {type(model).__name__} with {size / 2**30:.2f} GiB; {cure}, and so does a posterior on fewer layers."
        )


class SampledModel(FlatModel):
    """K networks and their statistics: one network with a marker to trace, K networks one after the other to run.

    Args:
        network: The deterministic network.
        arguments: How its call is put together.
        selector: Which of its outputs the uncertainty is about.
        draws: K weights for each posterior, by name.
        statistics: What the file answers.
    """

    scales = SCALES
    rewrites = True

    def __init__(
        self,
        network: nn.Module,
        arguments: Arguments,
        selector: OutputSelector | None,
        draws: Mapping[str, Sequence[Tensor]],
        statistics: Statistics,
    ) -> None:
        super().__init__(network, arguments, selector)
        self._draws = {id(network.get_parameter(name)): values for name, values in draws.items()}
        self._count = len(next(iter(draws.values())))
        self._statistics = statistics

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What is traced: one network, whose output :meth:`rewrite` takes for K of them."""
        return tuple(self._statistics.of_samples(members(self._output(tensors), self._count)).values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name, from K runs of the network."""
        outputs = []
        for k in range(self._count):
            with torch.no_grad():
                for parameter in self.network.parameters():
                    if id(parameter) in self._draws:
                        parameter.copy_(self._draws[id(parameter)][k])
            outputs.append(self._output([tensor.clone() for tensor in tensors]))
        return self._statistics.of_samples(torch.stack(outputs))

    def rewrite(self, proto: onnx.ModelProto) -> None:
        """Put the K networks into a freshly traced graph."""
        parameters = self.named_parameters(remove_duplicate=False)
        replicate(proto, {name: self._draws[id(p)] for name, p in parameters if id(p) in self._draws})

    def _output(self, tensors: Sequence[Tensor]) -> Tensor:
        return select_output(call(self.network, self.arguments.rebuild(tensors)), self.selector)

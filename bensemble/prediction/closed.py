r"""The prediction of a model whose last layer alone is Bayesian, without weight samples.

The pre-activations of that layer are exactly Gaussian, :math:`y \sim N(m, Q\,\mathrm{diag}(v)\,Q^T)`, and the model's
outputs are elements of y, possibly divided by a constant, or y at other positions, as in a segmenter that resizes its
logits. A linear map of positions that is the same for all channels and keeps constants commutes with the layer, so its
outputs are as Gaussian, with the v of resized inputs. Class probabilities come from the probit approximation,
:math:`\mathrm{softmax}(m / \sqrt{1 + \pi\,\mathrm{var}/8})` (MacKay 1992, "The Evidence Framework Applied to
Classification Networks"; Daxberger et al. 2021), and the mutual information from antithetic pairs of logits with fixed
noise. Softmax ignores a common shift of all logits, and the data says nothing about it, so that direction is
taken out of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..basis import Basis, mix
from ..gaussian import precise
from ..layers.linear_in_weights import LinearOpLayer
from ..likelihoods import Bernoulli, Categorical, DiscreteLikelihood, Gaussian, Likelihood
from ..models.batches import Inputs, call, to_device
from ..models.forwards import is_about_memory
from ..models.outputs import OutputSelector, select_output
from ..posteriors import bayesian_layers
from .gathering import RunningMoments
from .noise import FEW_PAIRS, MANY_PAIRS, fixed_noise
from .places import output_places, resizing

__all__ = [
    "ClosedForm",
    "OutputGaussian",
    "Recorded",
    "closed_form",
    "expected_entropy",
    "mixing",
    "mixture",
    "probit",
    "recorded",
]


def closed_form(model: nn.Module, likelihood: Likelihood | None) -> ClosedForm | None:
    """The closed form of a model; None where it has none, so that weights must be sampled."""
    layers = [layer for _, layer in bayesian_layers(model) if any(True for _ in layer._posteriors())]
    if len(layers) != 1 or type(likelihood) not in (Categorical, Bernoulli, Gaussian, type(None)):
        return None
    layer = layers[0]
    if not isinstance(layer, LinearOpLayer) or not layer.is_last or layer._posterior("weight") is None:
        return None
    if layer.channel_axis is None:  # one draw of a kernel moves several positions
        return None
    return None if any(p.mask is not None for p in layer._posteriors()) else ClosedForm(model, layer, likelihood)


class ClosedForm:
    """Predicts batch by batch.

    Args:
        model: In evaluation mode.
        layer: Its last layer, the only one with posteriors.
        likelihood: Categorical, Bernoulli, Gaussian, or None for raw outputs.

    Attributes:
        noise: Of its draws, as in :func:`fixed_noise`.
    """

    def __init__(self, model: nn.Module, layer: LinearOpLayer, likelihood: Likelihood | None) -> None:
        self.model, self.layer, self.likelihood = model, layer, likelihood
        least = FEW_PAIRS if isinstance(likelihood, DiscreteLikelihood) else MANY_PAIRS
        self.noise = fixed_noise(len(layer.channel_rows(layer.w_mu)), least)

    @property
    def num_draws(self) -> int:
        """Draws of the outputs behind a prediction."""
        return 2 * len(self.noise)

    def record(self, inputs: Inputs, output: OutputSelector | None) -> Recorded | None:
        """One forward of a batch; None if the outputs are not what the layer gives, moved or resized."""
        axis = self.layer.channel_axis
        return recorded(self.model, self.layer, to_device(inputs, self.layer.w_mu.device), output, axis)

    def outputs(self, seen: Recorded) -> OutputGaussian:
        """The Gaussian of the outputs of a batch, for the present posterior."""
        own, offset, basis = self.layer.variances_in_basis()
        return self._gaussian(seen, own, offset, basis)

    def outputs_of_unit_bias(self, seen: Recorded) -> OutputGaussian:
        """The same if every bias had variance 1 and the weights none."""
        own, bias, basis = self.layer.variances_in_basis()
        assert bias is not None
        return self._gaussian(seen, torch.zeros_like(own), torch.ones_like(bias), basis)

    def _gaussian(self, seen: Recorded, own: Tensor, offset: Tensor | None, basis: Basis | None) -> OutputGaussian:
        """From the variances of weight and bias in their basis."""
        axis = self.layer.channel_axis
        assert axis is not None
        inner, outer = (None, None) if basis is None else (basis.inner, basis.outer)
        variance = self.layer.variance_at(seen.input, own, offset, inner, seen.resized)
        mixed = mixing(outer, self.likelihood, seen.mean, variance.shape[axis])
        return OutputGaussian(seen.mean, variance, mixed, axis, self.noise.to(variance), seen.placed)


@dataclass(frozen=True, eq=False)
class Recorded:
    """One batch at the last layer.

    Attributes:
        input: What the layer takes.
        mean: The model's outputs at the mean weights.
        placed: What the model makes of the layer's output, without what does not depend on it, where it moves elements.
        resized: What it does to the positions of each channel, in blocks of channels, where it resizes them instead.
    """

    input: Tensor
    mean: Tensor
    placed: Callable[[Tensor], Tensor] | None = None
    resized: Callable[[Tensor], Iterable[Tensor]] | None = None


def recorded(
    model: nn.Module, layer: nn.Module, inputs: Inputs, output: OutputSelector | None, axis: int | None
) -> Recorded | None:
    """One forward of a batch on the model's device; None if the outputs are not what the layer gives, moved or resized.

    The channels of what the layer takes and gives are on ``axis``, counted from the end.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(module: Any, args: tuple[Any, ...], result: Tensor) -> Tensor:
        seen.append((args[0].detach(), result.detach().requires_grad_()))
        torch.set_grad_enabled(True)  # what follows is recorded, to see which element goes where
        return seen[-1][1]

    handle = layer.register_forward_hook(hook)
    try:
        with torch.no_grad():
            raw = select_output(call(model, inputs), output)
    finally:
        handle.remove()
    if len(seen) != 1:
        return None
    ((phi, result),), mean = seen, precise(raw.detach())
    found = output_places(raw, result)
    if found is not None:
        places, factors = found
        return Recorded(phi, mean, placed=lambda tensor: tensor.flatten()[places].view_as(mean) * factors)
    assert axis is not None
    if phi.movedim(axis, 0).shape[1:] != result.movedim(axis, 0).shape[1:]:  # the layer strides
        return None
    try:
        resized = resizing(raw, result, axis)
    except RuntimeError as err:  # no second derivatives: torch.compile, some functions of the user's
        if is_about_memory(err):
            raise
        return None
    return None if resized is None else Recorded(phi, mean, resized=resized)


def mixing(basis: Tensor | None, likelihood: Likelihood | None, mean: Tensor, channels: int) -> Tensor | None:
    """The basis of the pre-activations, for logits without their common direction; None where nothing is mixed."""
    if not isinstance(likelihood, Categorical) or mean.shape[likelihood.axis(mean)] != channels:
        return basis
    centering = torch.eye(channels, device=mean.device, dtype=mean.dtype) - 1 / channels
    return centering if basis is None else centering @ basis


class OutputGaussian:
    """The Gaussian of a batch of outputs.

    Args:
        mean: The outputs at the mean weights.
        coordinates: Variance of each coordinate of the layer's output, before mixing.
        mixing: Matrix over the channels of the layer's output; None for none.
        axis: The axis of these channels, counted from the end.
        noise: Standard normal numbers, (pairs, channels).
        placed: What the model makes of the layer's output; None where it is the output.

    Attributes:
        mean: Of each output, in its shape.
        variance: Of each output, in its shape.
    """

    def __init__(
        self,
        mean: Tensor,
        coordinates: Tensor,
        mixing: Tensor | None,
        axis: int,
        noise: Tensor,
        placed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.mean, self._coordinates, self._mixing, self._axis = mean, coordinates, mixing, axis
        self._noise, self._placed = noise, placed
        variance = coordinates if mixing is None else mix(coordinates, mixing.square(), axis)
        self.variance = variance if placed is None else placed(variance.sqrt()).square()

    def divided_by(self, temperature: float) -> OutputGaussian:
        """The Gaussian of the outputs divided by a number."""
        mean, coordinates = self.mean / temperature, self._coordinates / temperature**2
        return OutputGaussian(mean, coordinates, self._mixing, self._axis, self._noise, self._placed)

    @property
    def num_draws(self) -> int:
        """How many draws there are."""
        return 2 * len(self._noise)

    def probit(self) -> Tensor:
        """The logits of the probit approximation."""
        return probit(self.mean, self.variance)

    def draws(self, size: int = 1) -> Iterator[Tensor]:
        """Draws of the outputs, ``size`` pairs of opposite ones at once on a first axis."""
        deviation, shape = self._coordinates.sqrt(), [1] * self._coordinates.ndim
        shape[self._axis] = self._noise.shape[1]
        for half in self._noise.split(size):
            noise = torch.cat([half, -half])
            shift = deviation * noise.view(len(noise), *shape)
            shift = shift if self._mixing is None else mix(shift, self._mixing, self._axis)
            yield self.mean + (shift if self._placed is None else torch.stack([self._placed(x) for x in shift]))

    def prediction(self, likelihood: Likelihood | None, keep: bool) -> dict[str, Tensor]:
        """What :func:`bensemble.prediction.gathering.assemble` makes a prediction of."""
        if isinstance(likelihood, Categorical | Bernoulli):
            moments = RunningMoments(likelihood, keep)
            for pair in self.draws():
                for draw in pair:
                    moments.add(draw)
            found, probs = moments.result(), likelihood.expect(self.probit())
            found["std"] *= (1 - 0.5 / len(self._noise)) ** 0.5  # the second moments of the draws are exact
            found |= {"mean": probs, "spread": expected_entropy(likelihood, probs, found["mean"], found["spread"])}
            found.pop("sample_spreads", None)
            return found | {"member_means": self.mean[None], "member_variances": self.variance[None]}
        found = {"mean": self.mean, "std": self.variance.sqrt()}
        if likelihood is not None:
            found["spread"] = likelihood.spread(self.mean)
        if keep:
            found["samples"] = torch.cat(list(self.draws()))
        return found


def probit(mean: Tensor, variance: Tensor) -> Tensor:
    """Logits whose softmax or sigmoid is, nearly, the mean of those of Gaussian logits."""
    return mean / (1 + math.pi / 8 * variance).sqrt()


def expected_entropy(likelihood: DiscreteLikelihood, probs: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    """Entropy of the probabilities less the mutual information of draws, from their mean and their mean entropy."""
    information = (likelihood.entropy(mean) - spread).clamp_min(0)
    return (likelihood.entropy(probs) - information).clamp_min(0)


def mixture(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The prediction of several members, each with the same weight."""
    if len(parts) == 1:
        return parts[0]
    means, variances = (torch.stack([p[name] for p in parts]) for name in ("mean", "std"))
    found = {"mean": means.mean(0), "std": (variances.square().mean(0) + means.var(0, correction=0)).sqrt()}
    if "spread" in parts[0]:
        found["spread"] = torch.stack([p["spread"] for p in parts]).mean(0)
    for name in parts[0]:
        if name.startswith(("sample", "member")):
            found[name] = torch.cat([p[name] for p in parts])
    return found

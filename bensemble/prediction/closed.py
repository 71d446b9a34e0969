r"""The prediction of a model whose last layer alone is Bayesian, without weight samples.

The pre-activations of that layer are exactly Gaussian, :math:`y \sim N(m, Q\,\mathrm{diag}(v)\,Q^T)`, and the model's
outputs are elements of y, possibly divided by a constant. Class probabilities come from the probit approximation,
:math:`\mathrm{softmax}(m / \sqrt{1 + \pi\,\mathrm{var}/8})` (MacKay 1992, "The Evidence Framework Applied to
Classification Networks"; Daxberger et al. 2021), and the mutual information from ``PAIRS`` antithetic pairs of logits
with fixed noise. Softmax ignores a common shift of all logits, and the data says nothing about it, so that direction is
taken out of the variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..basis import mix
from ..gaussian import precise
from ..layers.linear_in_weights import LinearOpLayer
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..models.batches import Inputs, call, to_device
from ..models.outputs import OutputSelector, select_output
from ..posteriors import bayesian_layers
from .gathering import RunningMoments

__all__ = ["PAIRS", "ClosedForm", "OutputGaussian", "Recorded", "closed_form", "mixture", "output_places"]

#: Antithetic pairs of logits.
PAIRS = 32


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
    """

    def __init__(self, model: nn.Module, layer: LinearOpLayer, likelihood: Likelihood | None) -> None:
        self._model, self._layer, self.likelihood = model, layer, likelihood

    def record(self, inputs: Inputs, output: OutputSelector | None) -> Recorded | None:
        """One forward of a batch; None if the outputs are not elements of what the layer gives."""
        seen: list[tuple[Tensor, Tensor]] = []

        def hook(module: Any, args: tuple[Any, ...], result: Tensor) -> Tensor:
            seen.append((args[0].detach(), result.detach().requires_grad_()))
            torch.set_grad_enabled(True)  # what follows is recorded, to see which element goes where
            return seen[-1][1]

        handle = self._layer.register_forward_hook(hook)
        try:
            with torch.no_grad():
                raw = select_output(call(self._model, to_device(inputs, self._layer.w_mu.device)), output)
        finally:
            handle.remove()
        if len(seen) != 1:
            return None
        phi, result = seen[0]
        found = output_places(raw, result)
        return None if found is None else Recorded(phi, precise(raw.detach()), result.shape, *found)

    def outputs(self, recorded: Recorded) -> OutputGaussian:
        """The Gaussian of the outputs of a batch, for the present posterior."""
        variance, basis = self._layer.preactivation_variance(recorded.input)
        return OutputGaussian(recorded, variance, self._mixing(basis, recorded), self._axis)

    @property
    def _axis(self) -> int:
        axis = self._layer.channel_axis
        assert axis is not None
        return axis

    def _mixing(self, basis: Tensor | None, recorded: Recorded) -> Tensor | None:
        """The basis of the pre-activations, without the common direction of all logits."""
        likelihood, mean = self.likelihood, recorded.mean
        if not isinstance(likelihood, Categorical):
            return basis
        classes = recorded.shape[self._axis]
        if mean.shape[likelihood.axis(mean)] != classes:
            return basis
        centering = torch.eye(classes, device=mean.device, dtype=mean.dtype) - 1 / classes
        return centering if basis is None else centering @ basis


@dataclass(frozen=True, eq=False)
class Recorded:
    """One batch at the last layer.

    Attributes:
        input: What the layer takes.
        mean: The model's outputs at the mean weights.
        shape: Shape of what the layer gives.
        places: The element of that, flat, behind each output.
        factors: What it is multiplied with, in the shape of ``mean``.
    """

    input: Tensor
    mean: Tensor
    shape: torch.Size
    places: Tensor
    factors: Tensor


class OutputGaussian:
    """The Gaussian of a batch of outputs.

    Args:
        recorded: The batch.
        variance: Variance of each coordinate of the layer's output, before mixing.
        mixing: Matrix over the channels of the layer's output; None for none.
        axis: The axis of these channels, counted from the end.

    Attributes:
        mean: Of each output, in its shape.
        variance: Of each output, in its shape.
    """

    def __init__(self, recorded: Recorded, variance: Tensor, mixing: Tensor | None, axis: int) -> None:
        self.mean, self._recorded, self._deviation = recorded.mean, recorded, variance.sqrt()
        self._mixing, self._axis = mixing, axis
        spread = variance if mixing is None else mix(variance, mixing.square(), axis)
        self.variance = self._placed(spread) * recorded.factors

    def _placed(self, result: Tensor) -> Tensor:
        """What the model makes of the layer's output, without what does not depend on it."""
        return result.flatten()[self._recorded.places].view_as(self.mean) * self._recorded.factors

    def tempered(self) -> Tensor:
        """The logits of the probit approximation."""
        return self.mean / (1 + math.pi / 8 * self.variance).sqrt()

    def draws(self) -> Iterator[Tensor]:
        """Antithetic draws of the outputs, with the same noise at every position and in every batch."""
        noise = torch.randn(PAIRS, self._deviation.shape[self._axis], generator=torch.Generator().manual_seed(0))
        for z in noise.to(self._deviation):
            shift = self._deviation * z.view([-1 if a == 0 else 1 for a in range(-self._axis)])
            shift = self._placed(shift if self._mixing is None else mix(shift, self._mixing, self._axis))
            yield self.mean + shift
            yield self.mean - shift

    def prediction(self, likelihood: Likelihood | None, keep: bool) -> dict[str, Tensor]:
        """What :func:`bensemble.prediction.gathering.assemble` makes a prediction of."""
        if isinstance(likelihood, Categorical | Bernoulli):
            moments = RunningMoments(likelihood, keep)
            for draw in self.draws():
                moments.add(draw)
            found, probs = moments.result(), likelihood.expect(self.tempered())
            information = (likelihood.entropy(found["mean"]) - found["spread"]).clamp_min(0)
            found |= {"mean": probs, "spread": (likelihood.entropy(probs) - information).clamp_min(0)}
            found.pop("sample_spreads", None)
            return found
        found = {"mean": self.mean, "std": self.variance.sqrt()}
        if likelihood is not None:
            found["spread"] = likelihood.spread(self.mean)
        if keep:
            found["samples"] = torch.stack(list(self.draws()))
        return found


def mixture(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The prediction of several members, each with the same weight."""
    if len(parts) == 1:
        return parts[0]
    means, variances = (torch.stack([p[name] for p in parts]) for name in ("mean", "std"))
    found = {"mean": means.mean(0), "std": (variances.square().mean(0) + means.var(0, correction=0)).sqrt()}
    if "spread" in parts[0]:
        found["spread"] = torch.stack([p["spread"] for p in parts]).mean(0)
    if "samples" in parts[0]:
        found["samples"] = torch.cat([p["samples"] for p in parts])
    return found


def output_places(raw: Tensor, result: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which element of a layer's output each output is, flat, and its constant factor; None if it is no such thing.

    Vector-Jacobian products with coded vectors tell: each element of the layer's output goes to one place at most.
    """
    if not raw.requires_grad or not raw.is_floating_point() or not raw.numel():
        return None

    def product(vector: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(raw, result, vector.to(raw.dtype), retain_graph=True)
        return precise(found.flatten())

    slope = product(torch.ones_like(raw))
    used = slope.nonzero().squeeze(1)
    if len(used) != raw.numel():
        return None
    coarsest = max(torch.finfo(raw.dtype).eps, torch.finfo(result.dtype).eps)
    base = 16 if coarsest > 1e-4 else 1024  # so few digits that half precision tells them apart
    numbers, target = torch.arange(raw.numel(), device=raw.device), torch.zeros_like(used)
    for power in range(max(1, math.ceil(math.log(raw.numel(), base)))):
        digits = numbers // base**power % base
        target += (product(digits.view(raw.shape)) / slope)[used].round().long() * base**power
    if not torch.equal(target.sort().values, numbers):
        return None
    order = target.argsort()
    places, factors = used[order], slope[used[order]].to(precise(raw).dtype).view(raw.shape)
    rebuilt = precise(result.detach()).flatten()[places].view_as(raw) * factors
    largest = float(rebuilt.abs().nan_to_num(0.0, 0.0, 0.0).max())
    rounding = max(1e-4, 32 * coarsest)
    close = torch.allclose(rebuilt, precise(raw.detach()), rtol=rounding, atol=rounding / 10 * largest, equal_nan=True)
    return (places, factors) if close else None

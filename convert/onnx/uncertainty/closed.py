"""What an uncertainty file in closed form computes: each network once, and the Gaussian of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from bensemble.errors import ExportError
from bensemble.gaussian import precise
from bensemble.likelihoods import Likelihood
from bensemble.models.batches import Inputs, call
from bensemble.models.outputs import OutputSelector, select_output
from bensemble.posteriors import bayesian_layers
from bensemble.prediction.closed import OutputGaussian, Recorded, closed_form, mixing, recorded
from bensemble.torch_internals import parameters_of

from ..inputs.arguments import Arguments, FlatModel
from .novelty import FileNovelty
from .replication import replicate, through
from .statistics import SCALES, Statistics

__all__ = ["ClosedModel"]


class ClosedModel(FlatModel):
    """Networks whose last layers alone are Bayesian, and the statistics of their Gaussian outputs.

    Args:
        sources: The Bayesian model, or the members of an ensemble.
        networks: Their deterministic copies on the CPU.
        arguments: How their call is put together.
        selector: Which of their outputs the uncertainty is about.
        statistics: The outputs of the file.
        novelty: How strange the inputs are to the networks, or None.
    """

    scales = SCALES

    def __init__(
        self,
        sources: Sequence[nn.Module],
        networks: Sequence[nn.Module],
        arguments: Arguments,
        selector: OutputSelector | None,
        statistics: Statistics,
        novelty: FileNovelty | None,
    ) -> None:
        super().__init__(networks[0] if len(networks) == 1 else nn.ModuleList(networks).eval(), arguments, selector)
        self.name, self.count = type(networks[0]).__name__, len(networks)
        self.slack = statistics.slack | ({} if novelty is None else novelty.slack)
        pairs = zip(sources, networks, strict=True)
        self._members = tuple(_Member(source, network, statistics.likelihood) for source, network in pairs)
        self.members = nn.ModuleList(self._members)
        self.heads = [member.weight for member in self._members]
        self.novelty, self._statistics = novelty, statistics

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is traced; :meth:`rewrite` follows the variances through what comes after the last layer."""
        return tuple(self._outputs(tensors, trace=True).values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name."""
        return self._outputs([tensor.clone() for tensor in tensors], trace=False)

    def rewrite(self, proto: onnx.ModelProto) -> list[onnx.TensorProto]:
        """Replace the markers of a freshly traced graph."""
        replicate(proto, ())
        return []

    def _outputs(self, tensors: Sequence[Tensor], trace: bool) -> dict[str, Tensor]:
        inputs, gaussians, scores = self.arguments.rebuild(tensors), [], []
        for index, member in enumerate(self._members):
            with ExitStack() as stack:
                found = None if self.novelty is None else stack.enter_context(self.novelty.watching(index, inputs))
                gaussian = member.traced(inputs, self.selector) if trace else member.run(inputs, self.selector)
            gaussians.append(gaussian)
            if self.novelty is not None and found is not None:
                scores.append(self.novelty.score(index, gaussian.mean, found))
        self.rewrites = any(not member.is_output for member in self._members)
        answers = self._statistics.of_gaussians(gaussians)
        return answers if self.novelty is None else answers | self.novelty.outputs(scores)


class _Member(nn.Module):
    """One network, with the variances of its last layer.

    Attributes:
        is_output: Whether the layer's output has been the network's output, element by element, in every run so far.
        is_resized: Whether in any run the network resized it.
    """

    own: Tensor
    offset: Tensor | None
    inner: Tensor | None
    mixing: Tensor | None
    noise: Tensor

    def __init__(self, source: nn.Module, network: nn.Module, likelihood: Likelihood | None) -> None:
        super().__init__()
        form = closed_form(source, likelihood)
        assert form is not None
        layer = form.layer
        self._name = next(name for name, module in bayesian_layers(source) if module is layer)
        assert layer.channel_axis is not None
        self._layer, self._network, self._axis = (layer,), (network,), layer.channel_axis
        self._likelihood, self.is_output, self.is_resized = likelihood, True, False
        with torch.no_grad():
            own, offset, basis = layer.variances_in_basis()
        tensors = {
            "own": own,
            "offset": offset,
            "inner": None if basis is None else basis.inner,
            "noise": form.noise,
            "mixing": None if basis is None else basis.outer,
        }
        for name, tensor in tensors.items():
            self.register_buffer(
                name, None if tensor is None else tensor.detach().to("cpu", precise(own).dtype).contiguous()
            )
        self._is_mixed = False  # whether the mixing leaves out the common direction of the logits

    @property
    def weight(self) -> np.ndarray:
        """The weight of the last layer of the copy."""
        return parameters_of(self._network[0].get_submodule(self._name))["weight"].detach().float().numpy()

    def run(self, inputs: Inputs, selector: OutputSelector | None) -> OutputGaussian:
        """The Gaussian of the outputs; where each of them comes from is found by derivatives."""
        network = self._network[0]
        seen = recorded(network, network.get_submodule(self._name), inputs, selector, self._axis)
        if seen is None:
            raise ExportError(
                f"export_onnx: method='closed' needs outputs that are elements of what '{self._name}' gives, or these "
                f"resized, got others from {type(network).__name__}; use method='samples'."
            )
        variance = self._variance(seen.input, seen.resized)
        self._note(seen, variance)
        if not self._is_mixed:
            matrix = mixing(self.mixing, self._likelihood, seen.mean, variance.shape[self._axis])
            self.mixing, self._is_mixed = matrix, True
        return OutputGaussian(seen.mean, variance, self.mixing, self._axis, self.noise, seen.placed)

    def traced(self, inputs: Inputs, selector: OutputSelector | None) -> OutputGaussian:
        """The same by operations alone."""
        network, seen = self._network[0], []

        def hook(module: Any, args: tuple[Any, ...], result: Tensor) -> None:
            seen.append((args[0], result))

        handle = network.get_submodule(self._name).register_forward_hook(hook)
        try:
            raw = select_output(call(network, inputs), selector)
        finally:
            handle.remove()
        ((phi, result),) = seen

        def placed(tensor: Tensor, shape: Sequence[int] | None = None) -> Tensor:
            return precise(through(raw, result, tensor.to(result.dtype), shape))

        if self.is_resized:
            shape = [*raw.shape]
            shape[self._axis] = phi.shape[self._axis]
            variance = self._variance(phi, lambda features: [placed(features, shape)])
            return OutputGaussian(precise(raw), variance, self.mixing, self._axis, self.noise)
        way = None if self.is_output else placed
        return OutputGaussian(precise(raw), self._variance(phi), self.mixing, self._axis, self.noise, way)

    def _variance(self, phi: Tensor, resized: Callable[[Tensor], Iterable[Tensor]] | None = None) -> Tensor:
        return self._layer[0].variance_at(phi, self.own, self.offset, self.inner, resized)

    def _note(self, seen: Recorded, variance: Tensor) -> None:
        numbers = torch.arange(variance.numel(), dtype=torch.float64).view_as(variance)
        same = seen.placed is not None and variance.shape == seen.mean.shape
        self.is_output = self.is_output and same and torch.equal(seen.placed(numbers), numbers)  # type: ignore[misc]
        self.is_resized = self.is_resized or seen.resized is not None

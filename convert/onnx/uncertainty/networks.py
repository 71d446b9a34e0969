"""What an uncertainty file computes: K networks or their moments, and the statistics of their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from bensemble.errors import ConversionError, ExportError
from bensemble.likelihoods import Gaussian, Likelihood
from bensemble.models.batches import call
from bensemble.models.outputs import OutputSelector, select_output
from bensemble.prediction.moment_model import MomentModel

from ...planning.copying import copy_model
from ..inputs.arguments import Arguments, FlatModel
from .replication import members, replicate
from .statistics import SCALES, Statistics

__all__ = ["MomentsModel", "SampledModel", "UncertaintyModel", "moment_network"]


class UncertaintyModel(FlatModel):
    """Base of the models that an uncertainty file is made of.

    Attributes:
        count: Number of networks in the file, over all draws.
    """

    scales = SCALES
    count: int = 1


class MomentsModel(UncertaintyModel):
    """Mean and variance of the outputs in one pass, and what follows from them.

    Args:
        network: What :func:`convert.moments` returned.
        arguments: How its call is put together.
        likelihood: What the outputs mean.
        statistics: What the file answers.
    """

    def __init__(
        self, network: MomentModel, arguments: Arguments, likelihood: Likelihood | None, statistics: Statistics
    ) -> None:
        super().__init__(network, arguments)
        self.network: MomentModel
        self._by_points = not (likelihood is None or isinstance(likelihood, Gaussian))
        self._statistics = statistics

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name."""
        inputs = self.arguments.rebuild(tensors)
        if self._by_points:
            return self._statistics.of_samples(call(self.network.points, inputs))
        return self._statistics.of_moments(*call(self.network, inputs))


class SampledModel(UncertaintyModel):
    """Networks and their statistics: to trace, each with a marker for its K draws; to run, draw after draw.

    Args:
        networks: The deterministic networks, more than one for an ensemble.
        arguments: How their call is put together.
        selector: Which of their outputs the uncertainty is about.
        draws: For each network K weights for each posterior, by name; none for a network without.
        statistics: What the file answers.
    """

    rewrites = True

    def __init__(
        self,
        networks: Sequence[nn.Module],
        arguments: Arguments,
        selector: OutputSelector | None,
        draws: Sequence[Mapping[str, Sequence[Tensor]]],
        statistics: Statistics,
    ) -> None:
        super().__init__(networks[0] if len(networks) == 1 else nn.ModuleList(networks).eval(), arguments, selector)
        self.count = sum(len(next(iter(drawn.values()), [None])) for drawn in draws)
        self._networks = tuple(networks)
        self._draws = {
            id(network.get_parameter(name)): values
            for network, drawn in zip(networks, draws, strict=True)
            for name, values in drawn.items()
        }
        self._counts = [len(next(iter(drawn.values()), [None])) for drawn in draws]
        self._statistics = statistics

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is traced: each network once, for whose output :meth:`rewrite` puts those of its draws."""
        stacks = [
            members(self._output(network, tensors), count, index)
            for index, (network, count) in enumerate(zip(self._networks, self._counts, strict=True))
        ]
        return tuple(self._statistics.of_samples(torch.cat(stacks) if len(stacks) > 1 else stacks[0]).values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name, from one run for each draw."""
        outputs = []
        for network, count in zip(self._networks, self._counts, strict=True):
            for k in range(count):
                with torch.no_grad():
                    for parameter in network.parameters():
                        if id(parameter) in self._draws:
                            parameter.copy_(self._draws[id(parameter)][k])
                outputs.append(self._output(network, [tensor.clone() for tensor in tensors]))
        return self._statistics.of_samples(torch.stack(outputs))

    def rewrite(self, proto: onnx.ModelProto) -> None:
        """Put the networks of all draws into a freshly traced graph."""
        parameters = self.named_parameters(remove_duplicate=False)
        replicate(proto, {name: self._draws[id(p)] for name, p in parameters if id(p) in self._draws})

    def _output(self, network: nn.Module, tensors: Sequence[Tensor]) -> Tensor:
        return select_output(call(network, self.arguments.rebuild(tensors)), self.selector)


def moment_network(model: nn.Module, arguments: Arguments, selector: OutputSelector | None) -> MomentModel:
    """What :func:`convert.moments` makes of a model, on the CPU.

    Raises:
        ExportError: It has no rule for an operation of the model.
    """
    from ...graph.moments import moments  # torch.fx comes with it

    source = copy_model("export_onnx", model).cpu()
    try:
        return moments(source, arguments.template, output=selector)
    except ConversionError as err:
        reason = str(err).splitlines()[0].removeprefix("moments: ")
        raise ExportError(
            f"export_onnx: method='moments' cannot follow the model: {reason} Use method='samples'."
        ) from err

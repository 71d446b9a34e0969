"""What an uncertainty file computes: K networks and the statistics of their outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from bensemble.models.batches import call
from bensemble.models.outputs import OutputSelector, select_output

from ..inputs.arguments import Arguments, FlatModel
from .draws import WeightDraws, form_draws
from .novelty import FileNovelty
from .replication import members, replicate
from .statistics import SCALES, Statistics

__all__ = ["SampledModel"]


class SampledModel(FlatModel):
    """Networks and the statistics of their outputs. Traced, each network once; run, once for each draw.

    Args:
        networks: The deterministic networks, more than one for an ensemble.
        arguments: How their call is put together.
        selector: Which of their outputs the uncertainty is about.
        draws: For each network the draws of each posterior, by name; empty for a network without posteriors.
        statistics: The outputs of the file.
        novelty: How strange the inputs are to the networks, or None.
        means: For the novelty of networks with draws their copies at the mean weights; empty without draws.

    Attributes:
        count: Number of networks in the file: all draws of all networks.
        is_drawn: Whether there are draws.
    """

    scales = SCALES
    rewrites = True

    def __init__(
        self,
        networks: Sequence[nn.Module],
        arguments: Arguments,
        selector: OutputSelector | None,
        draws: Sequence[Mapping[str, WeightDraws]],
        statistics: Statistics,
        novelty: FileNovelty | None = None,
        means: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__(networks[0] if len(networks) == 1 else nn.ModuleList(networks).eval(), arguments, selector)
        self.name = type(networks[0]).__name__
        self._networks = tuple(networks)
        self._draws = {
            id(network.get_parameter(name)): drawn
            for network, found in zip(networks, draws, strict=True)
            for name, drawn in found.items()
        }
        self.is_drawn = bool(self._draws)
        self._counts = [next(iter(found.values())).count if found else 1 for found in draws]
        self.count = sum(self._counts)
        self._statistics, self.novelty, self.means = statistics, novelty, nn.ModuleList(means).eval()
        self.slack = statistics.slack | ({} if novelty is None else novelty.slack)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What is traced: each network once; :meth:`rewrite` replaces its output by those of its draws."""
        scores: list[Tensor] = []
        stacks = [
            members(self._output(network, tensors, scores), count, index)
            for index, (network, count) in enumerate(zip(self._networks, self._counts, strict=True))
        ]
        answers = self._statistics.of_samples(torch.cat(stacks) if len(stacks) > 1 else stacks[0], self.is_drawn)
        return tuple((answers | self._strangeness(tensors, scores)).values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs by name, from one run for each draw."""
        outputs: list[Tensor] = []
        scores: list[Tensor] = []
        for network, count in zip(self._networks, self._counts, strict=True):
            for k in range(count):
                with torch.no_grad():
                    for parameter in network.parameters():
                        if id(parameter) in self._draws:
                            parameter.copy_(self._draws[id(parameter)].samples[k])
                outputs.append(self._output(network, [tensor.clone() for tensor in tensors], scores))
        return self._statistics.of_samples(torch.stack(outputs), self.is_drawn) | self._strangeness(tensors, scores)

    def rewrite(self, proto: onnx.ModelProto) -> list[onnx.TensorProto]:
        """Put the networks of all draws, and what forms these, into a freshly traced graph."""
        parameters = self.named_parameters(remove_duplicate=False)
        draws = {name: self._draws[id(p)] for name, p in parameters if id(p) in self._draws}
        replicate(proto, draws)
        return form_draws(proto, draws)

    def _output(self, network: nn.Module, tensors: Sequence[Tensor], scores: list[Tensor]) -> Tensor:
        """The output of a network; the novelty of one without draws is scored in the same run."""
        inputs = self.arguments.rebuild(tensors)
        if self.novelty is None or (self.means and network not in self.means):
            return select_output(call(network, inputs), self.selector)
        with self.novelty.watching(len(scores), inputs) as found:
            output = select_output(call(network, inputs), self.selector)
        scores.append(self.novelty.score(len(scores), output, found))
        return output

    def _strangeness(self, tensors: Sequence[Tensor], scores: list[Tensor]) -> dict[str, Tensor]:
        if self.novelty is None:
            return {}
        for network in self.means:
            self._output(network, [tensor.clone() for tensor in tensors], scores)
        return self.novelty.outputs(scores)

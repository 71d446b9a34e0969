r"""What a network lost against the one that it was made of, on held-out inputs, without labels.

In nats: the mean divergence of its predictions from those before, :math:`KL(p \| q)`; of a regression the squared
difference over twice the variance. In points of accuracy, where there are classes: the mean of
:math:`\max_c p_c - p_{\arg\max q}`, which is what it is expected to lose if the probabilities before were right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.gaussian import precise
from bensemble.likelihoods import Categorical, DiscreteLikelihood, Likelihood
from bensemble.models.batches import Unpack, device_of, split_batch, to_device
from bensemble.models.forwards import forward
from bensemble.models.outputs import OutputSelector
from bensemble.models.state import evaluating
from bensemble.models.undisturbed import unwritten

__all__ = ["ExpectedLoss", "HeldOut", "in_last_tenth"]


def in_last_tenth(index: int, num_batches: int | None) -> bool:
    """Whether a batch is held out: one of the last tenth, or every tenth where their number is unknown."""
    if num_batches is None:
        return index % 10 == 9
    return index >= num_batches - max(1, num_batches // 10)


@dataclass(frozen=True)
class ExpectedLoss:
    """What a network lost on held-out inputs.

    Attributes:
        nats: Mean divergence of its predictions from those before.
        drop: Accuracy that it is expected to lose, 0.01 for a point; nan where there are no classes.
        standard_error: Of ``drop``, or of ``nats`` where there are no classes.
        num_terms: Terms of the likelihood that this is a mean over.

    Example:
        >>> drop = convert.prune_and_repair(model, loader, sparsity=0.5, steps=1).loss.drop
    """

    nats: float
    drop: float
    standard_error: float
    num_terms: int

    @property
    def ranked(self) -> tuple[float, float]:
        """What is compared: the drop in accuracy, then the nats; the divergence does not tell which class wins."""
        return (0.0 if math.isnan(self.drop) else self.drop), self.nats


class HeldOut:
    """Inputs that are kept, and what the network answers before it is pruned.

    Args:
        verb: The public function that asks.
        network: The network before.
        likelihood: What its outputs mean.
        output: Which part of a structured output.
    """

    def __init__(
        self, verb: str, network: nn.Module, likelihood: Likelihood, output: OutputSelector | None = None
    ) -> None:
        self.verb, self.network, self.likelihood, self.output = verb, network, likelihood, output
        self.batches: list[tuple[Any, Tensor]] = []
        self.is_seen = False

    @torch.no_grad()
    def add(self, inputs: Any) -> None:
        """Keep a batch."""
        inputs = to_device(inputs, device_of(self.network))
        with evaluating(self.network), unwritten(self.network):
            self.batches.append((inputs, forward(self.verb, self.network, inputs, self.output).clone()))

    def splitting(self, loader: Iterable[Any], num_batches: int | None, unpack: Unpack | None) -> Iterator[Any]:
        """The batches of a loader as (inputs, target) without the last tenth, which is kept; a single one is both."""
        last = None
        self.is_seen = num_batches == 1
        for index, batch in enumerate(loader):
            last = split_batch(batch, unpack)
            if in_last_tenth(index, num_batches):
                self.add(last[0])
            if num_batches == 1 or not in_last_tenth(index, num_batches):
                yield last
        if last is not None and not self.batches:
            self.add(last[0])
            self.is_seen = True

    @torch.no_grad()
    def loss(self, network: nn.Module) -> ExpectedLoss:
        """What another network lost on what was kept."""
        nats, drops = [], []
        with evaluating(network), unwritten(network):
            for inputs, before in self.batches:
                after = forward(self.verb, network, inputs, self.output)
                nats.append(self._divergence(before, after).flatten().cpu())
                if isinstance(self.likelihood, DiscreteLikelihood):
                    p, q = (self.likelihood.class_probs(self.likelihood.expect(raw)) for raw in (before, after))
                    axis = self._class_axis(before)
                    told = p.gather(axis, q.argmax(axis, keepdim=True)).squeeze(axis)
                    drops.append((p.amax(axis) - told).flatten().cpu())
        shown = torch.cat(drops or nats).double()
        error = float(shown.std(correction=0) / max(len(shown) - 1, 1) ** 0.5)
        drop = float(shown.mean()) if drops else float("nan")
        return ExpectedLoss(float(torch.cat(nats).double().mean()), drop, error, len(shown))

    def _divergence(self, before: Tensor, after: Tensor) -> Tensor:
        """The divergence of each term in nats; infinite where the other network has no finite answer."""
        likelihood = self.likelihood
        p, q = likelihood.expect(before), likelihood.expect(after)
        if isinstance(likelihood, DiscreteLikelihood):
            p, q = likelihood.class_probs(p), likelihood.class_probs(q)
            tiny = torch.finfo(p.dtype).tiny
            found = (p * (p.clamp_min(tiny).log() - q.clamp_min(tiny).log())).sum(self._class_axis(before))
        else:
            found = (p - q).square() / (2 * precise(likelihood.spread(before)))
        return found.nan_to_num(torch.inf)

    def _class_axis(self, raw: Tensor) -> int:
        return self.likelihood.axis(raw) if isinstance(self.likelihood, Categorical) else -1

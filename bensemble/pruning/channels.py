r"""Channels as the units of pruning: which weights make a channel, and which channels can only go together.

A group of channels is scored as a whole by :math:`\sqrt{\sum\mu^2 / \sum\sigma^2}` over all weights that make it, which
is the signal-to-noise ratio when all of them agree. Residual connections add the channels of several layers; such
channels are of use until all of them are gone, so they form one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import InvalidValueError
from ..gaussian import precise
from ..layers.linear_op import LinearOpLayer
from ..posterior import Posterior, named_posteriors
from ..posteriors import by_canonical_name

__all__ = ["ChannelGroups", "single_channels"]


@dataclass(frozen=True, repr=False, eq=False)
class ChannelGroups:
    """Channels that can only go together, as the ``granularity`` of pruning; :func:`convert.channel_groups` finds them.

    Attributes:
        made: For weights by original parameter name the number of the group that each of their entries helps to make,
            -1 for what stays; in the shape of the weight, or one that broadcasts to it.
        read: The same for weights that read a group and are pruned with it: where zeros in ``made`` alone would not
            end it, as in an attention head with a bias.
        notes: What could not be followed, and why.
    """

    made: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()

    @cached_property
    def count(self) -> int:
        """Number of groups."""
        return max((int(ids.max()) + 1 for ids in self.made.values() if ids.numel()), default=0)

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """For every group the names of the weights that make it; equal for the channels of one layer or stage."""
        found: list[list[str]] = [[] for _ in range(self.count)]
        for name, ids in self.made.items():
            for group in ids.unique().tolist():
                if group >= 0:
                    found[group].append(name)
        return tuple(map(tuple, found))

    def families(self) -> dict[tuple[str, ...], Tensor]:
        """Groups that the same weights make, by the names of those weights."""
        found: dict[tuple[str, ...], list[int]] = {}
        for group, names in enumerate(self.layers):
            found.setdefault(names, []).append(group)
        return {names: torch.tensor(groups) for names, groups in found.items()}

    def scores(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The signal-to-noise ratio of every group, 0 where all is pruned, and its number of weights."""
        signal, noise = (torch.zeros(self.count, dtype=torch.float64) for _ in range(2))
        sizes = torch.zeros(self.count, dtype=torch.int64)
        for posterior, ids in self._found(model, self.made).values():
            ids = ids.expand(posterior.mu.shape).reshape(-1)
            chosen = ids >= 0
            ids = ids[chosen]
            for total, values in ((signal, precise(posterior.mean()).square()), (noise, posterior.variance())):
                total.index_add_(0, ids, values.detach().reshape(-1).cpu().double()[chosen])
            sizes += torch.bincount(ids, minlength=self.count)
        return (signal / noise).sqrt().where(noise > 0, 0), sizes

    def masks(self, model: nn.Module, kept: Tensor) -> dict[str, Tensor]:
        """Masks by original parameter name that end every group which is not among the kept ones (bool)."""
        stays = torch.cat([kept, torch.ones(1, dtype=torch.bool)])  # the last one is what -1 means
        masks: dict[str, Tensor] = {}
        for part in (self.made, self.read):
            for name, (posterior, ids) in self._found(model, part).items():
                mask = stays[ids].expand(posterior.mu.shape)
                masks[name] = mask & masks[name] if name in masks else mask
        return masks

    def _found(self, model: nn.Module, part: Mapping[str, Tensor]) -> dict[str, tuple[Posterior, Tensor]]:
        """The posteriors of some weights, or an error where the groups are those of another model."""
        found = by_canonical_name("prune", "granularity", model, part)
        for name, (posterior, ids) in found.items():
            shape = posterior.mu.shape
            if ids.ndim != len(shape) or any(a not in (1, b) for a, b in zip(ids.shape, shape, strict=True)):
                raise InvalidValueError(
                    f"prune: the channel groups of '{name}' are of shape {tuple(ids.shape)}, got a weight of shape "
                    f"{tuple(shape)}; find the groups of this model."
                )
        return found

    def __str__(self) -> str:
        lines = [f"{self.count} groups of channels"]
        for names, groups in self.families().items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  {len(groups):>5} of {', '.join(names[:3])}{more}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    __repr__ = __str__


def single_channels(model: nn.Module) -> ChannelGroups:
    """Every output channel of every linear layer and convolution as a group of its own."""
    made: dict[str, Tensor] = {}
    count = 0
    for name, posterior in named_posteriors(model):
        layer = posterior.layer
        if not (posterior.prunable and posterior.mu.ndim >= 2 and isinstance(layer, LinearOpLayer)):
            continue
        places = layer.channel_rows(torch.arange(posterior.mu.numel()).view(posterior.mu.shape))
        ids = torch.empty(posterior.mu.numel(), dtype=torch.int64)
        ids[places] = torch.arange(count, count + len(places))[:, None].expand(places.shape)
        made[name] = _narrowed(ids.view(posterior.mu.shape))
        count += len(places)
    return ChannelGroups(made, {})


def _narrowed(ids: Tensor) -> Tensor:
    """One entry along every axis where nothing varies."""
    for axis in range(ids.ndim):
        first = ids.narrow(axis, 0, 1)
        ids = first if torch.equal(ids, first.expand_as(ids)) else ids
    return ids.clone()

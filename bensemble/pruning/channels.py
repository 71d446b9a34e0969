r"""Channels as the units of pruning: which weights make a channel, and which channels are pruned together.

A group of channels has one score, :math:`\sqrt{\sum\mu^2 / \sum\sigma^2}` over all weights that make it; this is their
signal-to-noise ratio if it is the same for all of them. Where scores are given, it is their mean. Residual connections
add channels of several layers. Such a sum can be removed only if all of these channels are zero, so they form one
group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import InvalidValueError
from ..gaussian import precise
from ..layers.linear_in_weights import LinearOpLayer
from ..posterior import Posterior
from ..posteriors import by_canonical_name, named_posteriors

__all__ = ["ChannelGroups", "single_channels"]


@dataclass(frozen=True, repr=False, eq=False)
class ChannelGroups:
    """Groups of channels that are pruned together, a ``granularity`` of pruning; see :func:`convert.channel_groups`.

    Attributes:
        made: By original parameter name, the number of the group that each entry of the weight helps to make, or -1 for
            entries that are never pruned; in the shape of the weight, or a shape that broadcasts to it.
        read: The same for weights that read a group. They are pruned with it where zeros in ``made`` do not make the
            group zero, as in an attention head with a bias.
        notes: Which parts of the network could not be followed, and why.

    Example:
        >>> convert.channel_groups(convert.bayesify(model), x).count
        24
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
        """For every group the names of the weights that make it; the channels of one layer have the same names."""
        found: list[list[str]] = [[] for _ in range(self.count)]
        for name, ids in self.made.items():
            for group in ids.unique().tolist():
                if group >= 0:
                    found[group].append(name)
        return tuple(map(tuple, found))

    def families(self) -> dict[tuple[str, ...], Tensor]:
        """The groups that the same weights make, by the names of these weights."""
        found: dict[tuple[str, ...], list[int]] = {}
        for group, names in enumerate(self.layers):
            found.setdefault(names, []).append(group)
        return {names: torch.tensor(groups) for names, groups in found.items()}

    def scores(self, model: nn.Module, given: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The signal-to-noise ratio of every group, 0 if it is pruned, and its number of weights.

        Args:
            model: The model of the groups.
            given: Scores of weights by original parameter name, -inf where pruned. Then a group has their mean, with 0
                for what is pruned, and -inf if all is.
        """
        signal, noise = (torch.zeros(self.count, dtype=torch.float64) for _ in range(2))
        sizes = torch.zeros(self.count, dtype=torch.int64)
        for name, (posterior, ids) in self._found(model, self.made).items():
            if given is not None and name not in given:
                raise InvalidValueError(f"prune: scores must hold '{name}', which makes channels, got none for it.")
            ids = ids.expand(posterior.mu.shape).reshape(-1)
            chosen = ids >= 0
            ids = ids[chosen]
            if given is None:
                summed = precise(posterior.mean()).square(), posterior.variance()
            else:
                alive = given[name] > -torch.inf
                summed = torch.where(alive, given[name], 0), alive
            for total, values in zip((signal, noise), summed, strict=True):
                total.index_add_(0, ids, values.detach().reshape(-1).cpu().double()[chosen])
            sizes += torch.bincount(ids, minlength=self.count)
        if given is None:
            return (signal / noise).sqrt().where(noise > 0, 0), sizes
        return (signal / sizes).where(noise > 0, -torch.inf), sizes

    def masks(self, model: nn.Module, kept: Tensor) -> dict[str, Tensor]:
        """Masks by original parameter name that prune every group which is not in ``kept`` (bool)."""
        stays = torch.cat([kept, torch.ones(1, dtype=torch.bool)])  # index -1: entries that are never pruned
        masks: dict[str, Tensor] = {}
        for part in (self.made, self.read):
            for name, (posterior, ids) in self._found(model, part).items():
                mask = stays[ids].expand(posterior.mu.shape)
                masks[name] = mask & masks[name] if name in masks else mask
        return masks

    def _found(self, model: nn.Module, part: Mapping[str, Tensor]) -> dict[str, tuple[Posterior, Tensor]]:
        """The posteriors of some weights, or an error if the groups belong to another model."""
        found = by_canonical_name("prune", "granularity", model, part)
        for name, (posterior, ids) in found.items():
            shape = posterior.mu.shape
            if ids.ndim != len(shape) or any(a not in (1, b) for a, b in zip(ids.shape, shape, strict=True)):
                raise InvalidValueError(
                    f"prune: the channel groups of '{name}' have shape {tuple(ids.shape)}, got a weight of shape "
                    f"{tuple(shape)}; compute the groups of this model."
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
    """A group for each output channel of each linear layer and convolution."""
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
    """The tensor with length 1 along every axis where its entries do not vary."""
    for axis in range(ids.ndim):
        first = ids.narrow(axis, 0, 1)
        ids = first if torch.equal(ids, first.expand_as(ids)) else ids
    return ids.clone()

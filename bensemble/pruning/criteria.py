r"""Which weights or channels stay, by their signal-to-noise ratio.

The ratio of a weight is :math:`|\mu| / \sigma`; channels are scored as a whole, see
:mod:`bensemble.pruning.channels`. A criterion is a threshold on the ratio, or a share of the weights to prune.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checks import check_module, check_number
from ..errors import InvalidValueError
from ..posterior import Posterior
from ..posteriors import first_match, named_posteriors
from .channels import ChannelGroups, single_channels

__all__ = ["channel_masks", "check_granularity", "pruning_scores", "weight_masks"]


def check_granularity(granularity: str | ChannelGroups) -> None:
    """Raise unless ``granularity`` is one of those that :func:`bensemble.pruning_masks` knows."""
    if granularity not in ("weight", "channel") and not isinstance(granularity, ChannelGroups):
        raise InvalidValueError(
            f"prune: granularity must be 'weight', 'channel' or the channel groups of a model, got {granularity!r}."
        )


def weight_masks(
    model: nn.Module, threshold: float | None, sparsity: float | Mapping[str, float] | None
) -> dict[str, Tensor]:
    """Masks that keep or prune each weight on its own; one of threshold and sparsity is given."""
    if threshold is not None:
        return {name: p.snr() > threshold for name, p in named_posteriors(model) if p.prunable}
    scores = {name: p.snr() for name, p in _matrices(model).items()}
    if not isinstance(sparsity, Mapping):
        return _lowest(scores, sparsity or 0.0)
    shares, masks = _shares(model, sparsity), dict[str, Tensor]()
    for name in scores:
        if name in shares:
            masks |= _lowest({name: scores[name]}, shares[name])
    return masks


def channel_masks(
    model: nn.Module,
    threshold: float | None,
    sparsity: float | Mapping[str, float] | None,
    granularity: str | ChannelGroups,
) -> dict[str, Tensor]:
    """Masks that keep or prune whole channels; one of threshold and sparsity is given."""
    groups, scores, sizes, kept = _scored_channels(model, granularity)
    if threshold is not None:
        kept |= scores > threshold
    elif not isinstance(sparsity, Mapping):
        total = sum(p.mu.numel() for p in _matrices(model).values())
        kept |= _affordable(scores, sizes, kept, (sparsity or 0.0) * total)
    else:
        shares = _shares(model, sparsity)
        for names, family in groups.families().items():
            share = next((shares[name] for name in names if name in shares), 0.0)
            kept[family] |= _affordable(scores[family], sizes[family], kept[family], share * int(sizes[family].sum()))
    return groups.masks(model, kept)


@torch.no_grad()
def pruning_scores(model: nn.Module, granularity: str | ChannelGroups = "weight") -> tuple[Tensor, Tensor]:
    """The signal-to-noise ratios that a threshold is compared with: of all prunable weights, or of channels.

    Returns:
        The ratios, without biases and other vectors, and the number of weights behind each ratio.
    """
    check_module("prune", model)
    if granularity == "weight":
        ratios = torch.cat([torch.empty(0), *(p.snr().flatten().cpu() for p in _matrices(model).values())])
        return ratios, torch.ones_like(ratios, dtype=torch.int64)
    _, scores, sizes, kept = _scored_channels(model, granularity)
    return scores[~kept], sizes[~kept]


def _matrices(model: nn.Module) -> dict[str, Posterior]:
    """The prunable posteriors without biases and other vectors, which a share neither prunes nor counts."""
    return {name: p for name, p in named_posteriors(model) if p.prunable and p.mu.ndim >= 2}


def _lowest(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks that prune the given share of all weights: the lowest scores, and of equal scores the first."""
    if not scores:
        return {}
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    count = round(sparsity * flat.numel())
    kept = torch.ones_like(flat)
    if count:
        limit = flat.kthvalue(count).values
        kept[flat < limit] = 0
        ties = (flat == limit).nonzero().flatten()
        kept[ties[: count - int((flat < limit).sum())]] = 0
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _scored_channels(model: nn.Module, granularity: object) -> tuple[ChannelGroups, Tensor, Tensor, Tensor]:
    """The groups of channels, their scores and sizes, and which are never pruned (bool): the best of each layer."""
    groups = granularity if isinstance(granularity, ChannelGroups) else single_channels(model)
    scores, sizes = groups.scores(model)
    best = torch.zeros(groups.count, dtype=torch.bool)
    for family in groups.families().values():
        best[family[scores[family].argmax()]] = True
    return groups, scores, sizes, best


def _affordable(scores: Tensor, sizes: Tensor, kept: Tensor, count: float) -> Tensor:
    """Which groups stay (bool) if the lowest scores are pruned until they hold ``count`` weights."""
    order = torch.where(kept, torch.inf, scores).argsort(stable=True)
    stays = torch.ones_like(kept)
    stays[order] = sizes[order].cumsum(0) > round(count)
    return stays


def _shares(model: nn.Module, sparsity: Mapping[str, float]) -> dict[str, float]:
    """The share to prune of every weight tensor that a pattern matches."""
    for pattern, share in sparsity.items():
        check_number("prune", f"sparsity of {pattern!r}", share, least=0, below=1)
    matched = first_match("prune", "sparsity", model, sparsity)
    return {name: float(sparsity[pattern]) for name, pattern in matched.items()}

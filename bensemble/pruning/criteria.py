r"""Which weights or channels stay, by their signal-to-noise ratio or by scores that are given.

The ratio of a weight is :math:`|\mu| / \sigma`; channels are scored as a whole, see
:mod:`bensemble.pruning.channels`. A criterion is a threshold on the ratio, or a share of the weights to prune; or a
pattern, which is a share of its own, see :mod:`bensemble.pruning.patterns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..checks import check_module, check_number
from ..errors import InvalidTypeError, InvalidValueError, refuse
from ..posterior import Posterior
from ..posteriors import by_canonical_name, first_match, named_posteriors
from .channels import ChannelGroups, single_channels
from .patterns import is_pattern, pattern_masks

__all__ = ["check_granularity", "chosen_masks", "matrices", "pruning_scores"]

#: By original parameter name; weights without a score are neither pruned nor counted.
Scores: TypeAlias = Mapping[str, Tensor]


def check_granularity(granularity: str | ChannelGroups) -> None:
    """Raise unless ``granularity`` is one of those that :func:`bensemble.pruning_masks` knows."""
    if granularity not in ("weight", "channel") and not isinstance(granularity, ChannelGroups):
        if is_pattern(granularity):
            return
        raise InvalidValueError(
            "prune: granularity must be 'weight', 'channel' or the channel groups of a model, or 'n:m', such as "
            f"'2:4', got {granularity!r}."
        )


def chosen_masks(
    model: nn.Module,
    threshold: float | None,
    sparsity: float | Mapping[str, float] | None,
    granularity: str | ChannelGroups,
    scores: Scores | None,
) -> dict[str, Tensor]:
    """Masks by one criterion: one of threshold and sparsity is given, or neither for a pattern.

    Args:
        model: A model with Bayesian layers.
        threshold: The score up to which is pruned.
        sparsity: The share to prune, of all weights that have a score or of each layer.
        granularity: The unit.
        scores: Instead of the signal-to-noise ratio.
    """
    ranked = None if scores is None else _checked_scores(model, scores)
    if is_pattern(granularity):
        return pattern_masks(matrices(model), _by_ratio(model) if ranked is None else ranked, str(granularity))
    if granularity != "weight":
        return _channel_masks(model, threshold, sparsity, granularity, ranked)
    if threshold is not None:
        return {name: score > threshold for name, score in (_with_vectors(model) if ranked is None else ranked).items()}
    ranked = _by_ratio(model) if ranked is None else ranked
    if not isinstance(sparsity, Mapping):
        return _lowest(ranked, sparsity or 0.0)
    shares, masks = _shares(model, sparsity), dict[str, Tensor]()
    for name in ranked:
        if name in shares:
            masks |= _lowest({name: ranked[name]}, shares[name])
    return masks


def _channel_masks(
    model: nn.Module,
    threshold: float | None,
    sparsity: float | Mapping[str, float] | None,
    granularity: str | ChannelGroups,
    ranked: dict[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Masks that keep or prune whole channels."""
    groups, scores, sizes, kept = _scored_channels(model, granularity, ranked)
    if threshold is not None:
        kept |= scores > threshold
    elif not isinstance(sparsity, Mapping):
        total = sum(p.mu.numel() for p in matrices(model).values())
        kept |= _affordable(scores, sizes, kept, (sparsity or 0.0) * total)
    else:
        shares = _shares(model, sparsity)
        for names, family in groups.families().items():
            share = next((shares[name] for name in names if name in shares), 0.0)
            kept[family] |= _affordable(scores[family], sizes[family], kept[family], share * int(sizes[family].sum()))
    return groups.masks(model, kept)


@torch.no_grad()
def pruning_scores(
    model: nn.Module, granularity: str | ChannelGroups = "weight", scores: Scores | None = None
) -> tuple[Tensor, Tensor]:
    """What a threshold is compared with: scores of all prunable weights, or of channels.

    Args:
        model: A model with Bayesian layers.
        granularity: The unit.
        scores: Instead of the signal-to-noise ratio.

    Returns:
        The scores, without biases and other vectors, and the number of weights behind each.
    """
    check_module("prune", model)
    ranked = None if scores is None else _checked_scores(model, scores)
    if granularity == "weight":
        of_weights = _by_ratio(model) if ranked is None else ranked
        flat = torch.cat([torch.empty(0), *(score.flatten().cpu() for score in of_weights.values())])
        return flat, torch.ones_like(flat, dtype=torch.int64)
    _, found, sizes, kept = _scored_channels(model, granularity, ranked)
    return found[~kept], sizes[~kept]


def matrices(model: nn.Module) -> dict[str, Posterior]:
    """The prunable posteriors without biases and other vectors, which a share neither prunes nor counts."""
    return {name: p for name, p in named_posteriors(model) if p.prunable and p.mu.ndim >= 2}


def _by_ratio(model: nn.Module) -> dict[str, Tensor]:
    """The signal-to-noise ratios of all that a share may prune."""
    return {name: p.snr() for name, p in matrices(model).items()}


def _with_vectors(model: nn.Module) -> dict[str, Tensor]:
    """The signal-to-noise ratios of all that a threshold may prune, biases too."""
    return {name: p.snr() for name, p in named_posteriors(model) if p.prunable}


def _checked_scores(model: nn.Module, scores: Scores) -> dict[str, Tensor]:
    """The scores by canonical name in the order of the model, the lowest where a weight is pruned already."""
    found = by_canonical_name("prune", "scores", model, scores)
    problems = []
    for name, (posterior, score) in found.items():
        if not isinstance(score, Tensor):
            problems.append(f"the scores of '{name}' must be a tensor, got {type(score).__name__}.")
        elif score.shape != posterior.mu.shape or score.is_complex() or bool(score.isnan().any()):
            wrong = "that are NaN" if score.shape == posterior.mu.shape else f"of shape {tuple(score.shape)}"
            problems.append(
                f"the scores of '{name}' must be numbers of shape {tuple(posterior.mu.shape)}, got some {wrong}."
            )
        elif not posterior.prunable:
            problems.append(
                f"'{name}' cannot be pruned: a zero in its mean is not a zero in the weight; give no score."
            )
    wrong_type = not all(isinstance(score, Tensor) for _, score in found.values())
    refuse("prune", problems, InvalidTypeError if wrong_type else InvalidValueError)
    ranked = {}
    for name, posterior in named_posteriors(model):
        if name in found:
            score, mask = found[name][1].detach().to(posterior.mu.device), posterior.mask
            ranked[name] = score if mask is None else torch.where(mask != 0, score, -torch.inf)
    return ranked


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


def _scored_channels(
    model: nn.Module, granularity: object, ranked: dict[str, Tensor] | None
) -> tuple[ChannelGroups, Tensor, Tensor, Tensor]:
    """The groups of channels, their scores and sizes, and which are never pruned (bool): the best of each layer."""
    groups = granularity if isinstance(granularity, ChannelGroups) else single_channels(model)
    scores, sizes = groups.scores(model, ranked)
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

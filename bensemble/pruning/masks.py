r"""Pruning by the posterior: which weights the data does not determine, over a whole model.

A weight whose signal-to-noise ratio :math:`|\mu| / \sigma` is small can be zero at no cost (Graves 2011, "Practical
Variational Inference for Neural Networks", section 6; Blundell et al. 2015, section 5.3). Channels are scored and go as
a whole; see :mod:`bensemble.pruning.channels`.

Masks are 1 where a weight is kept and 0 where it is pruned, by original parameter name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checks import check_module, check_number
from ..errors import InvalidTypeError, InvalidValueError, refuse
from ..gaussian import precise
from ..layers.linear_op import LinearOpLayer
from ..posterior import Posterior, named_posteriors
from ..posteriors import by_canonical_name, first_match
from .channels import ChannelGroups, single_channels

__all__ = [
    "apply_masks",
    "check_granularity",
    "clear_masks",
    "prune",
    "pruned_share",
    "pruning_masks",
    "pruning_scores",
]

GRANULARITIES = ("weight", "channel")


@torch.no_grad()
def pruning_masks(
    model: nn.Module,
    *,
    threshold: float | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    granularity: str | ChannelGroups = "weight",
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks for a whole model by at most one criterion; nothing is changed. What is pruned already stays so.

    Only prunable posteriors get a mask: those where a zero mean is a zero in the weight that reaches the operation.

    Args:
        model: A model with Bayesian layers.
        threshold: Keep where the signal-to-noise ratio exceeds this; Graves' value is 0.83. Biases are judged too, as
            in the layers' ``get_pruning_masks``; not where channels are pruned.
        sparsity: Prune this share of the weights, those with the lowest ratio in the whole model. Biases, and all
            other vectors, are neither pruned nor counted. A mapping prunes each layer by a share of its own:
            ``{"head": 0.5, "encoder.*": 0.9}``, by the name of a parameter or a module or a pattern, the first that
            matches; ``{"*": 0.9}`` is the same share everywhere, and what nothing matches stays.
        granularity: ``"weight"``; ``"channel"`` for output channels of linear layers and convolutions, each by itself;
            or what ``convert.channel_groups(model, x)`` gives, where channels that residual connections add, attention
            heads and neurons go together, so that ``convert.compact`` can remove them. Biases stay, and so does the
            best channel of each layer.
        masks: Masks by original parameter name, checked and given back under canonical names. An embedding, also one
            that is tied to a head, is pruned only here.

    Returns:
        Float masks by original parameter name; empty where no criterion is given.

    Raises:
        InvalidValueError: A value out of range, a mask of the wrong name or shape, or more than one criterion.
        InvalidTypeError: An argument of the wrong type.
    """
    check_module("prune", model)
    given = {"threshold": threshold, "sparsity": sparsity, "masks": masks}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise InvalidValueError(f"prune: threshold, sparsity and masks exclude each other, got {' and '.join(chosen)}.")
    check_granularity(granularity)
    if granularity != "weight" and (masks is not None or not chosen):
        raise InvalidValueError("prune: granularity='channel' must come with threshold or sparsity.")
    if threshold is not None:
        check_number("prune", "threshold", threshold, least=0)
    elif sparsity is not None and not isinstance(sparsity, Mapping):
        check_number("prune", "sparsity", sparsity, least=0, below=1)
    if masks is not None:
        return {name: _combined(p, mask) for name, (p, mask) in _checked(model, masks).items()}
    if not chosen:
        return {}
    if granularity == "weight":
        found = _weight_masks(model, threshold, sparsity)
    else:
        found = _channel_masks(model, threshold, sparsity, granularity)
    posteriors = dict(named_posteriors(model))
    return {name: _combined(posteriors[name], mask) for name, mask in found.items()}


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune in place where the masks are 0; the masks hold while training goes on.

    Args:
        model: A model with Bayesian layers.
        masks: Zeros and ones by original parameter name. Masks that are there already stay in force.

    Raises:
        InvalidValueError, InvalidTypeError: A name that has no posterior, or a mask of the wrong type, shape or value;
            nothing has changed then.
    """
    check_module("apply_masks", model)
    for posterior, mask in _checked(model, masks).values():
        posterior.set_mask(_combined(posterior, mask))


def clear_masks(model: nn.Module) -> None:
    """Lift every mask in place. Pruned means stay at 0 until training moves them."""
    for _, posterior in named_posteriors(check_module("clear_masks", model)):
        posterior.set_mask(None)


def prune(
    model: nn.Module,
    *,
    threshold: float | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    granularity: str | ChannelGroups = "weight",
    masks: Mapping[str, Tensor] | None = None,
) -> float:
    """Prune in place by exactly one criterion of :func:`pruning_masks`; training may go on afterwards.

    Returns:
        Sparsity of the model: the share of all posterior weights, biases included, that are pruned now.

    Example:
        >>> bensemble.prune(bnn, threshold=0.83)
        0.957
    """
    if threshold is None and sparsity is None and masks is None:
        raise InvalidValueError("prune: one of threshold, sparsity and masks must be given.")
    wanted = pruning_masks(model, threshold=threshold, sparsity=sparsity, granularity=granularity, masks=masks)
    apply_masks(model, wanted)
    return pruned_share(model)


def pruned_share(model: nn.Module) -> float:
    """Share of all posterior weights, biases included, that are pruned."""
    posteriors = [posterior for _, posterior in named_posteriors(model)]
    pruned = sum(int((p.mask == 0).sum()) for p in posteriors if p.mask is not None)
    return pruned / max(sum(p.mu.numel() for p in posteriors), 1)


def check_granularity(granularity: str | ChannelGroups) -> None:
    """Raise unless this is a way to prune."""
    if granularity not in GRANULARITIES and not isinstance(granularity, ChannelGroups):
        raise InvalidValueError(
            f"prune: granularity must be 'weight', 'channel' or the channel groups of a model, got {granularity!r}."
        )


@torch.no_grad()
def pruning_scores(model: nn.Module, granularity: str | ChannelGroups = "weight") -> tuple[Tensor, Tensor]:
    """What ``threshold`` is compared with: signal-to-noise ratios of all prunable weights, or of channels.

    Returns:
        The ratios, without those of biases and other vectors, and how many weights go with each.
    """
    check_module("prune", model)
    if granularity == "weight":
        ratios = torch.cat([torch.empty(0), *(p.snr().flatten().cpu() for p in _matrices(model).values())])
        return ratios, torch.ones_like(ratios, dtype=torch.int64)
    groups = _groups(model, granularity)
    scores, sizes = groups.scores(model)
    kept = _best(groups, scores)
    return scores[~kept], sizes[~kept]


def _matrices(model: nn.Module) -> dict[str, Posterior]:
    """The prunable posteriors without biases and other vectors, which are neither pruned nor counted by a share."""
    return {name: p for name, p in named_posteriors(model) if p.prunable and p.mu.ndim >= 2}


def _weight_masks(
    model: nn.Module, threshold: float | None, sparsity: float | Mapping[str, float] | None
) -> dict[str, Tensor]:
    """What stays, weight by weight."""
    if threshold is not None:
        return {name: p.snr() > threshold for name, p in named_posteriors(model) if p.prunable}
    scores = {name: p.snr() for name, p in _matrices(model).items()}
    if not isinstance(sparsity, Mapping):
        return _lowest(scores, sparsity or 0.0)
    shares = _shares(model, sparsity)
    return {
        name: mask
        for name, score in scores.items()
        if name in shares
        for mask in _lowest({name: score}, shares[name]).values()
    }


def _lowest(scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks that prune the given share of all weights, those with the lowest scores; of equal ones the first go."""
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


def _channel_masks(
    model: nn.Module,
    threshold: float | None,
    sparsity: float | Mapping[str, float] | None,
    granularity: str | ChannelGroups,
) -> dict[str, Tensor]:
    """What stays, channel by channel."""
    groups = _groups(model, granularity)
    scores, sizes = groups.scores(model)
    kept = _best(groups, scores)
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


def _groups(model: nn.Module, granularity: object) -> ChannelGroups:
    return granularity if isinstance(granularity, ChannelGroups) else single_channels(model)


def _best(groups: ChannelGroups, scores: Tensor) -> Tensor:
    """The best channel of every layer, without which nothing would pass it."""
    best = torch.zeros(groups.count, dtype=torch.bool)
    for family in groups.families().values():
        best[family[scores[family].argmax()]] = True
    return best


def _affordable(scores: Tensor, sizes: Tensor, kept: Tensor, count: float) -> Tensor:
    """What stays (bool) when the lowest ones go, as long as they hold at most so many weights."""
    order = torch.where(kept, torch.inf, scores).argsort(stable=True)
    stays = torch.ones_like(kept)
    stays[order] = sizes[order].cumsum(0) > round(count)
    return stays


def _shares(model: nn.Module, sparsity: Mapping[str, float]) -> dict[str, float]:
    """The share of every weight that a mapping names."""
    for pattern, share in sparsity.items():
        check_number("prune", f"sparsity of {pattern!r}", share, least=0, below=1)
    matched = first_match("prune", "sparsity", model, sparsity)
    return {name: float(sparsity[pattern]) for name, pattern in matched.items()}


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, tuple[Posterior, Tensor]]:
    """The masks with their posteriors, or one error that lists everything wrong with them."""
    found = by_canonical_name("prune", "masks", model, masks)
    problems, wrong_type = [], False
    for name, (posterior, mask) in found.items():
        if not isinstance(mask, Tensor):
            wrong_type = True
            problems.append(f"mask of '{name}' must be a tensor, got {type(mask).__name__}.")
        elif mask.shape != posterior.mu.shape:
            problems.append(f"mask of '{name}' must have shape {tuple(posterior.mu.shape)}, got {tuple(mask.shape)}.")
        elif not bool(((mask == 0) | (mask == 1)).all()):
            problems.append(f"mask of '{name}' must hold zeros and ones only; 1 keeps, 0 prunes.")
        elif not posterior.prunable and not _is_table(posterior):
            problems.append(f"'{name}' cannot be pruned: a zero in its mean is no zero in the weight that is used.")
    refuse("prune", problems, InvalidTypeError if wrong_type else InvalidValueError)
    return found


def _is_table(posterior: Posterior) -> bool:
    """Whether only a lookup protects a weight from being pruned: an embedding, alone or tied to twins."""
    layers = [place.layer for place in (posterior, *posterior.ties)]
    tables = [isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) for layer in layers]
    return any(tables) and all(t or isinstance(layer, LinearOpLayer) for t, layer in zip(tables, layers, strict=True))


def _combined(posterior: Posterior, mask: Tensor) -> Tensor:
    """The mask on the device of its weight, with what is pruned already."""
    mask = mask.detach().to(posterior.mu.device, precise(posterior.mu).dtype)
    return mask if posterior.mask is None else mask * posterior.mask

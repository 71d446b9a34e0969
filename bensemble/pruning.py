r"""Pruning by the posterior: which weights the data does not determine, over a whole model.

A weight whose signal-to-noise ratio :math:`|\mu| / \sigma` is small can be zero at no cost (Graves 2011, "Practical
Variational Inference for Neural Networks", section 6; Blundell et al. 2015, section 5.3). A channel is scored as a
whole by :math:`\sqrt{\sum\mu^2 / \sum\sigma^2}`, which is the same ratio when all its weights agree.

Masks are 1 where a weight is kept and 0 where it is pruned, by original parameter name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .checks import check_module, check_number
from .errors import InvalidTypeError, InvalidValueError, refuse
from .gaussian import precise
from .layers.linear_op import LinearOpLayer
from .naming import by_canonical_name
from .posterior import Posterior, named_posteriors

__all__ = ["apply_masks", "check_granularity", "clear_masks", "prune", "pruning_masks", "pruning_scores"]

GRANULARITIES = ("weight", "channel")


@torch.no_grad()
def pruning_masks(
    model: nn.Module,
    *,
    threshold: float | None = None,
    sparsity: float | None = None,
    granularity: str = "weight",
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks for a whole model by at most one criterion; nothing is changed. What is pruned already stays so.

    Only prunable posteriors get a mask: those where a zero mean is a zero in the weight that reaches the operation.

    Args:
        model: A model with Bayesian layers.
        threshold: Keep where the signal-to-noise ratio exceeds this; Graves' value is 0.83. Biases are judged too, as
            in the layers' ``get_pruning_masks``; not with ``granularity="channel"``.
        sparsity: Prune this share of the weights, those with the lowest ratio in the whole model. Biases, and all
            other vectors, are neither pruned nor counted.
        granularity: ``"weight"``, or ``"channel"`` for whole output channels of linear layers and convolutions; their
            biases stay.
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
    if granularity == "channel" and (masks is not None or not chosen):
        raise InvalidValueError("prune: granularity='channel' must come with threshold or sparsity.")
    if masks is not None:
        return {name: _combined(p, mask) for name, (p, mask) in _checked(model, masks).items()}
    if not chosen:
        return {}
    posteriors, scores = _scored(model, granularity, vectors=threshold is not None)
    if threshold is not None:
        check_number("prune", "threshold", threshold, least=0)
        return {name: _combined(posteriors[name], score > threshold) for name, score in scores.items()}
    share = check_number("prune", "sparsity", sparsity, least=0, below=1)
    found = _lowest(scores, share, granularity == "channel")
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
    sparsity: float | None = None,
    granularity: str = "weight",
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
    posteriors = [posterior for _, posterior in named_posteriors(model)]
    pruned = sum(int((p.mask == 0).sum()) for p in posteriors if p.mask is not None)
    return pruned / max(sum(p.mu.numel() for p in posteriors), 1)


def check_granularity(granularity: str) -> None:
    """Raise unless this is a way to prune."""
    if granularity not in GRANULARITIES:
        raise InvalidValueError(f"prune: granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}.")


@torch.no_grad()
def pruning_scores(model: nn.Module, granularity: str = "weight") -> dict[str, Tensor]:
    """What ``threshold`` is compared with: the signal-to-noise ratio of every prunable weight or of its channel.

    Returns:
        Tensors in the shape of the weights, without biases and other vectors, by original parameter name.
    """
    return _scored(check_module("prune", model), granularity, vectors=False)[1]


def _scored(model: nn.Module, granularity: str, vectors: bool) -> tuple[dict[str, Posterior], dict[str, Tensor]]:
    """The prunable posteriors and their scores; channels and vectors exclude each other."""
    channels = granularity == "channel"
    posteriors = {name: p for name, p in named_posteriors(model) if p.prunable}
    if channels or not vectors:
        posteriors = {name: p for name, p in posteriors.items() if p.mu.ndim >= 2}
    if channels:
        posteriors = {name: p for name, p in posteriors.items() if isinstance(p.layer, LinearOpLayer)}
    score = _channel_ratio if channels else Posterior.snr
    return posteriors, {name: score(p) for name, p in posteriors.items()}


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


def _channel_ratio(posterior: Posterior) -> Tensor:
    """sqrt(sum mu^2 / sum sigma^2) of the output channel of each weight, in its shape; 0 where all is pruned."""
    layer, mean = posterior.layer, precise(posterior.mean())
    assert isinstance(layer, LinearOpLayer)
    places = layer.channel_rows(torch.arange(mean.numel(), device=mean.device).view(mean.shape))
    signal = mean.flatten()[places].square().sum(1, keepdim=True)
    noise = posterior.variance().flatten()[places].sum(1, keepdim=True)
    ratio = torch.empty_like(mean).flatten()
    ratio[places] = (signal / noise).sqrt().where(noise > 0, 0).expand(places.shape)
    return ratio.view(mean.shape)


def _lowest(scores: dict[str, Tensor], sparsity: float, whole_channels: bool) -> dict[str, Tensor]:
    """Masks that prune the given share of all weights, those with the lowest scores.

    Among equal scores the first ones go; equal scores of a channel go together, or stay where they would be too many.
    """
    if not scores:
        return {}
    flat = torch.cat([score.flatten().cpu() for score in scores.values()])
    count = round(sparsity * flat.numel())
    kept = torch.ones_like(flat)
    if count:
        limit = flat.kthvalue(count).values
        kept[flat < limit] = 0
        ties, room = (flat == limit).nonzero().flatten(), count - int((flat < limit).sum())
        kept[ties[: room if not whole_channels or len(ties) <= room else 0]] = 0
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view_as(score) for (name, score), part in zip(scores.items(), parts, strict=True)}

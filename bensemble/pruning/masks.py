r"""Pruning masks of a whole model: making, setting and lifting them.

A weight with a small signal-to-noise ratio :math:`|\mu| / \sigma` can be set to zero at little cost (Graves 2011,
"Practical Variational Inference for Neural Networks", section 6; Blundell et al. 2015, section 5.3).

Masks are 1 where a weight is kept and 0 where it is pruned, by original parameter name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..checks import check_module, check_number
from ..errors import InvalidTypeError, InvalidValueError, refuse
from ..gaussian import precise
from ..layers.linear_in_weights import LinearOpLayer
from ..posterior import Posterior, mask_problem
from ..posteriors import by_canonical_name, named_posteriors
from .channels import ChannelGroups
from .criteria import check_granularity, chosen_masks
from .patterns import is_pattern

__all__ = ["apply_masks", "clear_masks", "prune", "pruned_share", "pruning_masks"]


@torch.no_grad()
def pruning_masks(
    model: nn.Module,
    *,
    threshold: float | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    granularity: str | ChannelGroups = "weight",
    scores: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks for a whole model by at most one criterion; the model is not changed. Pruned weights stay pruned.

    Only prunable posteriors get a mask: those where a zero in the mean is a zero in the weight that the layer uses.

    Args:
        model: A model with Bayesian layers.
        threshold: Keep weights whose signal-to-noise ratio exceeds this; Graves' value is 0.83. Biases are pruned too,
            as in ``get_pruning_masks`` of a layer, but not if channels are pruned.
        sparsity: Prune this share of the weights: those with the lowest ratio in the whole model. Biases and other
            vectors are neither pruned nor counted. A mapping gives a share for each layer,
            ``{"head": 0.5, "encoder.*": 0.9}``: keys are names of parameters or modules, or patterns, and the first
            match counts. ``{"*": 0.9}`` prunes the same share of every layer; layers without a match are not pruned.
        granularity: ``"weight"``; ``"channel"`` for single output channels of linear layers and convolutions; or
            ``convert.channel_groups(model, x)``, which groups the channels that residual connections add, attention
            heads and neurons, so that ``convert.compact`` can remove them. Biases and the best channel of each layer
            are never pruned. Or ``"2:4"``, in general ``"n:m"``, without threshold and sparsity: of every m
            consecutive inputs of an output n stay, in convolutions at each place of the kernel; layers whose number of
            inputs is no multiple of m stay as they are.
        scores: Rank by these, by original parameter name, instead of by the signal-to-noise ratio, see
            :func:`convert.prune_scores`; a threshold and a share then concern the weights that have a score, and
            channels have the mean of theirs.
        masks: Masks by original parameter name, which are checked and returned under canonical names. An embedding,
            also one that is tied to a head, is pruned only in this way.

    Returns:
        Float masks by original parameter name; empty if no criterion is given.

    Raises:
        InvalidValueError: A value is out of range, a mask has the wrong name or shape, or there are two criteria.
        InvalidTypeError: An argument has the wrong type.

    Example:
        >>> masks = bensemble.pruning_masks(bnn, sparsity=0.5)
    """
    check_module("prune", model)
    given = {"threshold": threshold, "sparsity": sparsity, "masks": masks}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise InvalidValueError(f"prune: threshold, sparsity and masks exclude each other, got {' and '.join(chosen)}.")
    check_granularity(granularity)
    pattern = is_pattern(granularity)
    if pattern and chosen:
        raise InvalidValueError(f"prune: granularity={granularity!r} is a share of its own, got {chosen[0]} too.")
    if granularity != "weight" and not pattern and (masks is not None or not chosen):
        raise InvalidValueError("prune: granularity='channel' must come with threshold or sparsity.")
    if scores is not None and (masks is not None or not (chosen or pattern)):
        raise InvalidValueError("prune: scores must come with threshold, sparsity or a granularity such as '2:4'.")
    if threshold is not None:
        check_number("prune", "threshold", threshold, least=0 if scores is None else None)
    elif sparsity is not None and not isinstance(sparsity, Mapping):
        check_number("prune", "sparsity", sparsity, least=0, below=1)
    if masks is not None:
        return {name: _combined(p, mask) for name, (p, mask) in _checked(model, masks).items()}
    if not chosen and not pattern:
        return {}
    found = chosen_masks(model, threshold, sparsity, granularity, scores)
    posteriors = dict(named_posteriors(model))
    return {name: _combined(posteriors[name], mask) for name, mask in found.items()}


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Prune in place where the masks are 0; the masks stay in force during training.

    Args:
        model: A model with Bayesian layers.
        masks: Zeros and ones by original parameter name. Earlier masks stay in force.

    Raises:
        InvalidValueError, InvalidTypeError: A name has no posterior, or a mask has the wrong type, shape or value.
            Everything is checked before anything is changed.

    Example:
        >>> bensemble.apply_masks(bnn, bensemble.pruning_masks(bnn, sparsity=0.5))
    """
    check_module("apply_masks", model)
    for posterior, mask in _checked(model, masks).values():
        posterior.set_mask(_combined(posterior, mask))


def clear_masks(model: nn.Module) -> None:
    """Remove every mask in place. Pruned means stay 0 until training changes them.

    Example:
        >>> bensemble.clear_masks(bnn)
    """
    for _, posterior in named_posteriors(check_module("clear_masks", model)):
        posterior.set_mask(None)


def prune(
    model: nn.Module,
    *,
    threshold: float | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    granularity: str | ChannelGroups = "weight",
    scores: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> float:
    """Prune in place by exactly one criterion of :func:`pruning_masks`; the model can be trained further.

    Returns:
        Sparsity of the model: the share of all posterior weights, biases included, that are pruned.

    Example:
        >>> share = bensemble.prune(bnn, threshold=0.83)
    """
    pattern = is_pattern(granularity)
    if threshold is None and sparsity is None and masks is None and not pattern:
        raise InvalidValueError("prune: one of threshold, sparsity and masks must be given.")
    wanted = pruning_masks(
        model, threshold=threshold, sparsity=sparsity, granularity=granularity, scores=scores, masks=masks
    )
    apply_masks(model, wanted)
    return pruned_share(model)


def pruned_share(model: nn.Module) -> float:
    """Share of all posterior weights, biases included, that are pruned."""
    posteriors = [posterior for _, posterior in named_posteriors(model)]
    pruned = sum(int((p.mask == 0).sum()) for p in posteriors if p.mask is not None)
    return pruned / max(sum(p.mu.numel() for p in posteriors), 1)


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, tuple[Posterior, Tensor]]:
    """The masks with their posteriors, or one error that lists everything that is wrong with them."""
    found = by_canonical_name("prune", "masks", model, masks)
    problems = []
    for name, (posterior, mask) in found.items():
        problem = mask_problem(name, mask, posterior.mu.shape)
        if problem is None and not posterior.prunable and not _is_table(posterior):
            problem = f"'{name}' cannot be pruned: a zero in its mean is not a zero in the weight that the layer uses."
        problems += [problem] if problem else []
    wrong_type = not all(isinstance(mask, Tensor) for _, mask in found.values())
    refuse("prune", problems, InvalidTypeError if wrong_type else InvalidValueError)
    return found


def _is_table(posterior: Posterior) -> bool:
    """Whether a weight that is not prunable is an embedding, alone or tied to twins, which a given mask may prune."""
    layers = [place.layer for place in (posterior, *posterior.ties)]
    tables = [isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) for layer in layers]
    return any(tables) and all(t or isinstance(layer, LinearOpLayer) for t, layer in zip(tables, layers, strict=True))


def _combined(posterior: Posterior, mask: Tensor) -> Tensor:
    """The mask on the device of its weight, combined with the mask that the weight has."""
    mask = mask.detach().to(posterior.mu.device, precise(posterior.mu).dtype)
    return mask if posterior.mask is None else mask * posterior.mask

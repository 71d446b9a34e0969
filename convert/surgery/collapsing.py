"""From Bayesian back to deterministic: ``to_deterministic``.

It returns the user's own model, a copy unless ``inplace=True``. If a change fails, all earlier ones are undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from bensemble.checks import check_module
from bensemble.errors import ConversionError, refuse
from bensemble.layers.registry import bayesian_type
from bensemble.layers.sampled import SampledWeights
from bensemble.layers.swap import make_deterministic, restorer
from bensemble.models.sharding import holds_shards
from bensemble.posteriors import bayesian_layers, is_bayesian, named_posteriors
from bensemble.pruning.channels import ChannelGroups
from bensemble.pruning.masks import apply_masks, pruning_masks

from ..planning.copying import copy_model
from .undoing import undone_on_failure, value_restorer

__all__ = ["to_deterministic"]

M = TypeVar("M", bound=nn.Module)


def to_deterministic(
    bnn: M,
    *,
    threshold: float | None = None,
    sparsity: float | Mapping[str, float] | None = None,
    granularity: str | ChannelGroups = "weight",
    scores: Mapping[str, Tensor] | None = None,
    masks: dict[str, Tensor] | None = None,
    sample: bool = False,
    keep_masks: bool = False,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> M:
    """Collapse every posterior to its mean, prune what was asked for, and give back plain torch.nn modules.

    Original types, parameter names, ties and hooks come back. Without pruning, ``to_deterministic(bayesify(m))``
    equals ``m`` bit for bit. Masks that the layers hold already always apply.

    Args:
        bnn: A model with Bayesian layers.
        threshold: Prune weights with a signal-to-noise ratio ``|mu| / sigma`` of at most this (Graves 2011: 0.83).
        sparsity: Prune this share of the weights, those with the lowest ratio in the whole model; biases stay. A
            mapping gives layers shares of their own, see :func:`bensemble.pruning_masks`.
        granularity: ``"weight"``; ``"channel"`` to score and prune whole output channels; or what
            :func:`convert.channel_groups` finds, channels, attention heads and neurons that :func:`convert.compact` can
            remove; or ``"2:4"``, which needs neither threshold nor sparsity.
        scores: Rank by these instead of by the ratio, see :func:`convert.prune_scores`.
        masks: Zeros and ones by original parameter name, instead of ``threshold`` and ``sparsity``.
        sample: Take one draw from the posterior instead of the mean.
        keep_masks: Leave the masks in place as ``torch.nn.utils.prune`` masks, for training on.
        generator: Source of the noise for ``sample=True``.
        inplace: Change the model itself instead of a copy. In a copy, tensors with a history, such as kept activations,
            are detached.

    Raises:
        InvalidTypeError, InvalidValueError: an argument that cannot work.
        ConversionError: the model has no Bayesian layers.

    Example:
        >>> pruned = convert.to_deterministic(bnn, sparsity=0.8)
    """
    check_module("to_deterministic", bnn)
    if not is_bayesian(bnn):
        raise ConversionError(
            f"to_deterministic: {type(bnn).__name__} has no Bayesian layers, got a deterministic model; "
            "it can be used as it is."
        )
    _check_way_back(bnn)
    wanted = pruning_masks(
        bnn, threshold=threshold, sparsity=sparsity, granularity=granularity, scores=scores, masks=masks
    )
    target = bnn if inplace else copy_model("to_deterministic", bnn)
    layers = [layer for _, layer in bayesian_layers(target)]
    undo: list[Callable[[], None]] = [restorer(layer) for layer in layers]
    if inplace and (wanted or sample):
        undo += [value_restorer(posterior.mu) for _, posterior in named_posteriors(target)]
    with undone_on_failure(undo):
        apply_masks(target, wanted)
        values = _plain_parameters(target, sample, generator)
        kept_masks = []
        for layer in layers:
            held = list(layer._posteriors())
            masked = [(p.name, p.mask) for p in held if keep_masks and p.mask is not None]
            module = make_deterministic(layer, {p.name: values[id(p.mu)] for p in held})
            kept_masks += [(module, name, mask) for name, mask in masked]
    for module, name, mask in kept_masks:
        torch_prune.custom_from_mask(module, name, mask)
    return target


def _check_way_back(bnn: nn.Module) -> None:
    """Raise for sharded models, and for layers without a deterministic type to go back to."""
    if holds_shards(bnn):
        raise ConversionError(
            f"to_deterministic: the model is sharded, got {type(bnn).__name__}; bensemble.save it in all processes and "
            "bensemble.load the file into a plain model."
        )
    problems = []
    for path, layer in bayesian_layers(bnn):
        base = getattr(layer, "deterministic_class", None)
        if base is None or not (isinstance(layer, SampledWeights) or bayesian_type(base) is type(layer)):
            problems.append(
                f"'{path}' is a {type(layer).__name__}, which stands for no deterministic type; "
                "register it as the twin of one."
            )
    refuse("to_deterministic", problems)


def _plain_parameters(model: nn.Module, sample: bool, generator: torch.Generator | None) -> dict[int, nn.Parameter]:
    """The mean of each posterior by identity, set to the value that the plain weight gets."""
    values: dict[int, nn.Parameter] = {}
    with torch.no_grad():
        for _, posterior in named_posteriors(model):
            mu = posterior.mu
            if sample:
                mu.copy_(posterior.draw(posterior.draw_noise(generator)))
            elif posterior.mask is not None:
                mu.copy_(posterior.mean())
            assert isinstance(mu, nn.Parameter)
            values[id(mu)] = mu
    return values

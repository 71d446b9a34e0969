"""Patterns of zeros that hardware can skip: of every m consecutive inputs of an output, n weights stay.

Of every four, two: the sparse matrix units of graphics processors (Mishra et al. 2021, "Accelerating Sparse Deep Neural
Networks"). Consecutive along the input channels, as these units read them, at each place of a kernel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InvalidValueError
from ..layers.linear_in_weights import LinearOpLayer
from ..posterior import Posterior

__all__ = ["is_pattern", "pattern_masks"]


def is_pattern(granularity: object) -> bool:
    """Whether a granularity is a pattern ``"n:m"`` with 0 < n < m."""
    found = re.fullmatch(r"(\d+):(\d+)", granularity) if isinstance(granularity, str) else None
    return found is not None and 0 < int(found[1]) < int(found[2])


def pattern_masks(posteriors: Mapping[str, Posterior], scores: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Masks that keep the n best of every m inputs; weights without a score, or that m does not divide, have none.

    Raises:
        InvalidValueError: No weight can have the pattern.
    """
    keep, of = map(int, pattern.split(":"))
    masks = {}
    for name, score in scores.items():
        places = _inputs_last(posteriors[name]) if name in posteriors else None
        if places is None or places.shape[-1] % of:
            continue
        places = places.reshape(-1, of).to(score.device)
        best = score.reshape(-1)[places].topk(keep, dim=-1).indices
        mask = torch.zeros(score.numel(), device=score.device)
        mask[places.gather(-1, best)] = 1
        masks[name] = mask.view(score.shape)
    if not masks:
        raise InvalidValueError(
            f"prune: granularity={pattern!r} needs weights whose number of inputs is a multiple of {of}, got none."
        )
    return masks


def _inputs_last(posterior: Posterior) -> Tensor:
    """Where each entry lies in the flat weight, (outputs, places of the kernel, inputs)."""
    flat = torch.arange(posterior.mu.numel()).view(posterior.mu.shape)
    rows = posterior.layer.channel_rows(flat) if isinstance(posterior.layer, LinearOpLayer) else flat.flatten(1)
    return rows.unflatten(1, (-1, posterior.mu.shape[2:].numel())).transpose(1, 2)

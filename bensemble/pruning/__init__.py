"""Pruning masks by signal-to-noise ratio, for single weights or whole channels: made, set and lifted here.

Removing pruned channels from a network, which changes shapes, belongs in ``convert``.
"""

from .channels import ChannelGroups
from .masks import apply_masks, clear_masks, prune, pruning_masks

__all__ = ["ChannelGroups", "apply_masks", "clear_masks", "prune", "pruning_masks"]

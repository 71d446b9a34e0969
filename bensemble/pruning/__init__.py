"""Which weights go: masks by signal-to-noise ratio, weight by weight or channel by channel.

Masks are set on the layers here. Removing what they switch off from a network is the work of ``convert``.
"""

from .channels import ChannelGroups
from .masks import apply_masks, clear_masks, prune, pruning_masks

__all__ = ["ChannelGroups", "apply_masks", "clear_masks", "prune", "pruning_masks"]

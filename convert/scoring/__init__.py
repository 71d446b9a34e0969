"""What each weight is worth to a trained network, without training, and what a network lost by pruning.

Masks and criteria belong in ``bensemble.pruning``; what is left is solved for in ``repairing``.
"""

from .loss import ExpectedLoss
from .scores import prune_scores

__all__ = ["ExpectedLoss", "prune_scores"]

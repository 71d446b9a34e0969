"""The weights that are left after pruning, in closed form: what the network computed before, without labels.

What a layer computes as a product of rows is written in ``layers``, the algebra in ``solving``, the way through the
network in ``walking``. ``gradual`` removes weights a part at a time, with a repair after each; ``in_training`` does so
while a network trains on.
"""

from .gradual import Pruned, PruneStep, prune_and_repair
from .in_training import GradualPruning
from .repair import repair, repair_report
from .report import RepairReport, RepairRow

__all__ = [
    "GradualPruning",
    "PruneStep",
    "Pruned",
    "RepairReport",
    "RepairRow",
    "prune_and_repair",
    "repair",
    "repair_report",
]

"""The weights that are left after pruning, in closed form: what the network computed before, without labels.

What a layer computes as a product of rows is written in ``layers``, the algebra in ``solving``, the way through the
network in ``walking``. ``gradual`` removes weights a part at a time, with a repair after each.
"""

from .gradual import Pruned, PruneStep, prune_and_repair
from .repair import repair, repair_report
from .report import RepairReport, RepairRow

__all__ = ["PruneStep", "Pruned", "RepairReport", "RepairRow", "prune_and_repair", "repair", "repair_report"]

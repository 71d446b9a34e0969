"""The weights that are left after pruning, in closed form: what the network computed before, without labels.

What a layer computes as a product of rows is written in ``layers``, the algebra in ``solving``, the way through the
network in ``walking``.
"""

from .repair import repair, repair_report
from .report import RepairReport, RepairRow

__all__ = ["RepairReport", "RepairRow", "repair", "repair_report"]

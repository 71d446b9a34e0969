"""What a conversion would do, and why: the plan, and how it is made.

Code here only reads a model or runs a copy of it. Code that changes a model belongs into ``surgery``.
"""

from .conversion import plan
from .ending import last_layer
from .rows import ConversionPlan, PlanRow

__all__ = ["ConversionPlan", "PlanRow", "last_layer", "plan"]

"""What a conversion would do, and why: the plan, and what it is made from.

Everything here looks at a model, or at a copy of it. What changes a model belongs into ``surgery``.
"""

from .conversion import ConversionPlan, PlanRow, plan

__all__ = ["ConversionPlan", "PlanRow", "plan"]

"""From deterministic to Bayesian and back: what carries out a plan.

How one module changes its class is written in ``bensemble.layers``. What to convert is decided in ``planning``.
"""

from .collapsing import to_deterministic
from .converting import bayesify

__all__ = ["bayesify", "to_deterministic"]

"""From deterministic to Bayesian and back: what carries out a plan.

How one module changes its class is written in ``bensemble.layers``. What to convert is decided in ``planning``.
"""

from .converting import bayesify, to_deterministic

__all__ = ["bayesify", "to_deterministic"]

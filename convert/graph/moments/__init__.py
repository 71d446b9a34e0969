"""Moment propagation: mean and variance of a Bayesian network's outputs in one pass."""

from __future__ import annotations

from .building import moments
from .checking import MomentsReport, check_moments
from .network import MomentNetwork

__all__ = ["MomentNetwork", "MomentsReport", "check_moments", "moments"]

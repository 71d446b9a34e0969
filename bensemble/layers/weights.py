"""A module whose weights have posteriors, put together: storage, reading, assigning, state dicts."""

from __future__ import annotations

from .assigning import WeightAssignment
from .reading import WeightReading, weight_property
from .state_dicts import PosteriorStateDict

__all__ = ["PosteriorModule", "weight_property"]


class PosteriorModule(WeightReading, WeightAssignment, PosteriorStateDict):
    """A module that holds posteriors. Every Bayesian layer is one, and every module with sampled weights."""

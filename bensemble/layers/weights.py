"""The class of every module with posteriors, put together from its four parts.

``storage`` holds the tensors, ``reading`` gives out weights, ``assigning`` answers assignments to their names, and
``state_dicts`` saves and loads.
"""

from __future__ import annotations

from .assigning import WeightAssignment
from .reading import WeightReading, weight_property
from .state_dicts import PosteriorStateDict

__all__ = ["PosteriorModule", "weight_property"]


class PosteriorModule(WeightReading, WeightAssignment, PosteriorStateDict):
    """A module with posteriors: the base of every Bayesian layer and of every module with sampled weights."""

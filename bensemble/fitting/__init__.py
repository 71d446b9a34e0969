"""Posteriors and priors without training: sigma from the curvature of the loss, and values that a user sets.

Training by the evidence lower bound does not belong here; see ``objective`` and ``recipes``.
"""

from .fit_report import FitReport
from .posterior_assignment import set_posterior
from .posterior_fit import fit_posterior
from .prior_assignment import set_prior

__all__ = ["FitReport", "fit_posterior", "set_posterior", "set_prior"]

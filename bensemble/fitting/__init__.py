"""Posteriors without training: sigma from the curvature of the loss, or from elsewhere."""

from .assignment import set_posterior
from .posterior_fit import fit_posterior
from .report import FitReport

__all__ = ["FitReport", "fit_posterior", "set_posterior"]

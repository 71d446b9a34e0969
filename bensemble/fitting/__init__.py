"""Posteriors without training: sigma from the curvature of the loss, or from elsewhere."""

from .fit_report import FitReport
from .posterior_assignment import set_posterior
from .posterior_fit import fit_posterior

__all__ = ["FitReport", "fit_posterior", "set_posterior"]

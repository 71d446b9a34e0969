"""Decisions on predictions: temperature, conformal sets and intervals from held-out data, and rejection curves.

Everything here takes a finished prediction and targets. What runs a model belongs in ``prediction``.
"""

from .calibrating import calibrate
from .calibration import Calibration
from .rejection import RejectionCurve, rejection_curve

__all__ = ["Calibration", "RejectionCurve", "calibrate", "rejection_curve"]

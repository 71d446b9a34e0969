"""Decisions on a prediction: temperature and conformal sets by held-out data, and when to say "I don't know"."""

from .calibrating import Calibration, calibrate
from .rejection import RejectionCurve, rejection_curve

__all__ = ["Calibration", "RejectionCurve", "calibrate", "rejection_curve"]

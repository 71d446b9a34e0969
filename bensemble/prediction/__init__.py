"""The predictive distribution of a model or an ensemble, by weight samples.

``contexts`` holds ``sampling``, ``monte_carlo`` holds ``predict``, ``results`` what it returns and ``gathering`` how
samples become it. Decisions on a prediction, such as a temperature or a threshold, belong into ``calibration``.
"""

from .contexts import sampling
from .monte_carlo import predict
from .results import ClassPrediction, Prediction, RegressionPrediction

__all__ = ["ClassPrediction", "Prediction", "RegressionPrediction", "predict", "sampling"]

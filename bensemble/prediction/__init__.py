"""The predictive distribution of a model or an ensemble: by weight samples, or by the points of a moment model.

``monte_carlo`` holds ``predict``, ``results`` what it returns, ``gathering`` how samples become it. ``ensembles`` asks
each model: by ``weight_samples``, with the deterministic ``prefix`` computed once, or a ``moment_model``.
"""

from .monte_carlo import predict
from .results import ClassPrediction, Prediction, RegressionPrediction

__all__ = ["ClassPrediction", "Prediction", "RegressionPrediction", "predict"]

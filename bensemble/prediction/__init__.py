"""The predictive distribution of a model: by weight samples, or by local noise where that is proven right.

``monte_carlo`` holds ``predict``; ``results`` what it returns, ``gathering`` how samples become it. ``members`` are
the models that are asked: by ``weight_samples``, with the deterministic ``prefix`` computed once; by ``local_samples``,
where ``rows`` shows that no example sees another.
"""

from .contexts import sampling
from .monte_carlo import predict
from .results import ClassPrediction, Prediction, RegressionPrediction

__all__ = ["ClassPrediction", "Prediction", "RegressionPrediction", "predict", "sampling"]

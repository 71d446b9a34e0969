r"""Split conformal prediction: the score of each term of the calibration data, and the threshold for alpha.

Of n scores, the :math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest is the threshold (Vovk et al. 2005; Angelopoulos &
Bates 2023, "Conformal Prediction: A Gentle Introduction", section 1). A class belongs to the set if its score
:math:`1 - p_k` is at most the threshold; in regression the score is :math:`|y - m| / \sigma`. For data exchangeable
with the calibration data and for any model, the sets then contain the truth with probability at least
:math:`1 - \alpha` on average over data.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import InvalidValueError
from ..likelihoods import DiscreteLikelihood
from ..likelihoods.base import check_finite, check_same_shape
from ..prediction.results import Prediction, RegressionPrediction

__all__ = ["conformal_scores", "conformal_threshold"]


def conformal_scores(prediction: Prediction, targets: Tensor) -> Tensor:
    """The conformal score of each term, one axis: high where the target fits the prediction badly."""
    if isinstance(prediction, RegressionPrediction):
        check_same_shape("calibrate", prediction.mean, targets)
        check_finite("calibrate", targets)
        scores = ((targets - prediction.mean).abs() / prediction.total_std).flatten()
    else:
        assert isinstance(prediction.likelihood, DiscreteLikelihood)
        scores = 1 - prediction.likelihood.probability(prediction.mean, targets)
    if not len(scores):
        raise InvalidValueError("calibrate: targets must hold at least one that counts, got none.")
    return scores


def conformal_threshold(prediction: Prediction, scores: Tensor, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score, or the largest possible score if there are fewer scores."""
    most = math.inf if isinstance(prediction, RegressionPrediction) else 1.0
    rank = len(scores) + 1 - math.floor((len(scores) + 1) * alpha + 1e-9)
    if rank > len(scores):
        return most
    # The margin keeps a class in its set if another program rounds its probability differently.
    return min(float(scores.double().kthvalue(rank).values) + 1e-6, most)

r"""Likelihoods p(y | output): what a model's outputs mean.

Each says, for the outputs of one weight sample w: the negative log likelihood of a target per term, the expected
observation E[y | w], the uncertainty that is in the data itself, and the Fisher information of the outputs. A term is
one prediction: an example, a token, a pixel, one entry of a vector of targets. Everything is in nats and computed in
float32, or float64 for float64 outputs.

Strings are shortcuts: ``"categorical"``, ``"bernoulli"``, ``"gaussian_head"``; None stands for raw outputs.
"""

from __future__ import annotations

from ..errors import InvalidTypeError, InvalidValueError
from .base import DiscreteLikelihood, Likelihood
from .continuous import Gaussian, GaussianHead
from .discrete import Bernoulli, Categorical

__all__ = ["Bernoulli", "Categorical", "DiscreteLikelihood", "Gaussian", "GaussianHead", "Likelihood", "resolve"]


def resolve(likelihood: Likelihood | str | None) -> Likelihood | None:
    """The likelihood that a string stands for; a likelihood or None as it is.

    Raises:
        InvalidValueError: An unknown string, or ``"gaussian"``, whose noise has to be said.
        InvalidTypeError: Something else.
    """
    if likelihood is None or isinstance(likelihood, Likelihood):
        return likelihood
    known = {"categorical": Categorical, "bernoulli": Bernoulli, "gaussian_head": GaussianHead}
    if not isinstance(likelihood, str):
        raise InvalidTypeError(f"likelihood: must be a string, a Likelihood or None, got {likelihood!r}.")
    if likelihood == "gaussian":
        raise InvalidValueError("likelihood: 'gaussian' must say its noise; pass Gaussian(sigma) or 'gaussian_head'.")
    if likelihood not in known:
        raise InvalidValueError(f"likelihood: must be one of {', '.join(known)}, got {likelihood!r}.")
    return known[likelihood]()

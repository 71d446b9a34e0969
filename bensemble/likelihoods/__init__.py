"""Likelihoods p(y | output): what the outputs of a model mean, one class for each kind of data.

What a prediction, a fit or a calibration does with a likelihood belongs into their own folders.

For the outputs of one weight sample w a likelihood gives the negative log likelihood of each term of a target, the
expected observation E[y | w], the uncertainty of the data itself, and a probe of the Fisher information. A term is one
prediction: an example, a token, a pixel, or one entry of a vector of targets. Everything is in nats and computed in
float32, or in float64 for float64 outputs.

Strings are shortcuts: ``"categorical"``, ``"bernoulli"``, ``"gaussian_head"``. None stands for raw outputs.
"""

from __future__ import annotations

from ..errors import InvalidTypeError, InvalidValueError
from .base import DiscreteLikelihood, Likelihood
from .continuous import Gaussian, GaussianHead
from .discrete import Bernoulli, Categorical

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscreteLikelihood",
    "Gaussian",
    "GaussianHead",
    "Likelihood",
    "required",
    "resolve",
]


def required(verb: str, likelihood: Likelihood | str | None) -> Likelihood:
    """The likelihood as :func:`resolve` gives it, or an error for None."""
    resolved = resolve(likelihood)
    if resolved is None:
        raise InvalidValueError(f"{verb}: likelihood must say what the outputs mean, got None.")
    return resolved


def resolve(likelihood: Likelihood | str | None) -> Likelihood | None:
    """The likelihood that a string stands for. A likelihood, or None for raw outputs, is returned unchanged.

    Raises:
        InvalidValueError: The string is unknown, or it is ``"gaussian"``, which needs the noise as a number.
        InvalidTypeError: ``likelihood`` is something else.

    Example:
        >>> bensemble.likelihoods.resolve("categorical")
        Categorical(dim=None, ignore_index=-100)
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

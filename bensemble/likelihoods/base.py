"""The base classes of the likelihoods, and the checks of targets that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError

__all__ = [
    "DiscreteLikelihood",
    "Likelihood",
    "Signs",
    "check_axis",
    "check_finite",
    "check_same_shape",
    "check_tensor",
]

#: Gives independent random signs in the shape, dtype and device of a tensor.
Signs: TypeAlias = Callable[[Tensor], Tensor]


class Likelihood(ABC):
    """Base of the likelihoods. A subclass defines the three abstract methods, and :meth:`probe` for GGN curvature.

    Example:
        >>> p.likelihood.num_terms(labels)
        297
    """

    @abstractmethod
    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood of each term in nats, one axis, differentiable; ignored terms are left out."""

    @abstractmethod
    def expect(self, output: Tensor) -> Tensor:
        """The expected observation E[y | w]: probabilities, or the mean of a Gaussian."""

    @abstractmethod
    def spread(self, output: Tensor) -> Tensor:
        """The uncertainty of the data given w: an entropy in nats, or the variance of the noise."""

    def probe(self, output: Tensor, signs: Signs, target: Tensor | None = None) -> Tensor:
        r"""A vector v in the shape of ``output`` with :math:`E[v v^T] = F`, the Fisher information of the output.

        Args:
            output: The outputs of the model.
            signs: Returns independent random signs in the shape of a tensor.
            target: Says which terms are ignored; v is 0 there. May be None.
        """
        raise InvalidTypeError(
            f"fit_posterior: {type(self).__name__} does not define probe(output, signs), which curvature='ggn' needs; "
            "use curvature='fisher'."
        )

    def check(self, output: Tensor) -> None:  # noqa: B027  # a hook; most likelihoods accept any output
        """Raise if the outputs cannot be those of this likelihood, such as probabilities instead of logits."""

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood in nats, the mean over the terms; a scalar, 0 if every term is ignored."""
        terms = self.terms(output, target)
        return terms.sum() / max(terms.numel(), 1)

    def num_terms(self, target: Tensor) -> int:
        """Number of terms in this target; the ``num_data`` of the ELBO if the target is the whole training set."""
        return target.numel()


class DiscreteLikelihood(Likelihood):
    """Base of likelihoods whose expected observation is a distribution over finitely many values.

    Calibration needs the last three methods.

    Example:
        >>> isinstance(p.likelihood, bensemble.likelihoods.DiscreteLikelihood)
        True
    """

    @abstractmethod
    def entropy(self, probs: Tensor) -> Tensor:
        """Entropy in nats of expected observations, in the shape of :meth:`spread`."""

    def logits(self, probs: Tensor) -> Tensor:
        """Outputs for which :meth:`expect` returns the given probabilities."""
        raise self._cannot("logits(probs)")

    def probability(self, probs: Tensor, target: Tensor) -> Tensor:
        """The probability of each term of the target, one axis; ignored terms are left out."""
        raise self._cannot("probability(probs, target)")

    def class_probs(self, probs: Tensor) -> Tensor:
        """The probability of each value of an observation, along one axis."""
        raise self._cannot("class_probs(probs)")

    def _cannot(self, method: str) -> InvalidTypeError:
        return InvalidTypeError(
            f"calibrate: {type(self).__name__} does not define {method}; define it in the subclass."
        )


def described(likelihood: Likelihood) -> str:
    """Name and settings that are plain values, as ``Categorical(dim=1)``."""
    settings = {key: value for key, value in vars(likelihood).items() if isinstance(value, (int, float, str))}
    return f"{type(likelihood).__name__}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def check_tensor(verb: str, target: Any) -> None:
    """Raise unless the target is a tensor."""
    if not isinstance(target, Tensor):
        raise InvalidTypeError(f"{verb}: target must be a tensor, got {type(target).__name__}; use torch.as_tensor.")


def check_axis(what: str, axis: int, output: Tensor) -> int:
    """The axis counted from the front, or an error if the outputs have no such axis or it is the batch axis."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -output.ndim <= axis < output.ndim:
        raise InvalidValueError(f"{what} must be an axis of the outputs, got {axis!r} for shape {tuple(output.shape)}.")
    if axis % output.ndim == 0:
        raise InvalidValueError(f"{what} must not be the batch axis, got {axis!r} for shape {tuple(output.shape)}.")
    return axis % output.ndim


def check_same_shape(verb: str, output: Tensor, target: Any) -> None:
    """Raise unless the target is a tensor in the shape of the predictions; it is not broadcast."""
    check_tensor(verb, target)
    if target.shape != output.shape:
        raise InvalidValueError(
            f"{verb}: target must have the shape {tuple(output.shape)} of the predictions, got {tuple(target.shape)}; "
            "reshape it, targets are not broadcast."
        )


def check_finite(verb: str, target: Tensor) -> None:
    """Raise unless the target holds finite real numbers."""
    if target.is_complex() or not (torch.compiler.is_compiling() or bool(target.isfinite().all())):
        raise InvalidValueError(f"{verb}: target must hold finite real numbers; leave out the examples that do not.")

"""The base of the likelihoods, and the checks they share."""

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
    "dtype_name",
    "tracing",
]

#: Gives independent random signs in the shape, dtype and device of a tensor.
Signs: TypeAlias = Callable[[Tensor], Tensor]


class Likelihood(ABC):
    """Base of the likelihoods. A new one defines the three abstract methods; GGN curvature needs :meth:`probe` too."""

    @abstractmethod
    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood of each term in nats, one axis, differentiable; ignored terms are left out."""

    @abstractmethod
    def expect(self, output: Tensor) -> Tensor:
        """The expected observation E[y | w]: probabilities, or the mean of a Gaussian."""

    @abstractmethod
    def spread(self, output: Tensor) -> Tensor:
        """The uncertainty in the data given w: an entropy in nats, or the variance of the noise."""

    def probe(self, output: Tensor, signs: Signs, target: Tensor | None = None) -> Tensor:
        r"""A vector v in the shape of ``output`` with :math:`E[v v^T] = F`, the Fisher information of the output.

        Args:
            output: The model's outputs.
            signs: Gives independent random signs like a tensor.
            target: Where given, says which terms are ignored; v is 0 there.
        """
        raise InvalidTypeError(
            f"fit_posterior: {type(self).__name__} does not define probe(output, signs), which curvature='ggn' needs; "
            "use curvature='fisher'."
        )

    def check(self, output: Tensor) -> None:  # noqa: B027  # a hook; most outputs may have any value
        """Raise when the outputs cannot be what this likelihood takes them for."""

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood in nats, the mean over the terms; a scalar, 0 where every term is ignored."""
        terms = self.terms(output, target)
        return terms.sum() / max(terms.numel(), 1)

    def num_terms(self, target: Tensor) -> int:
        """Number of terms of :meth:`nll` in this target; over the training set, the ``num_data`` of the ELBO."""
        return target.numel()


class DiscreteLikelihood(Likelihood):
    """Base of likelihoods whose expected observation is a distribution over finitely many values."""

    @abstractmethod
    def entropy(self, probs: Tensor) -> Tensor:
        """Entropy in nats of expected observations, in the shape of :meth:`spread`."""

    def logits(self, probs: Tensor) -> Tensor:
        """Outputs that :meth:`expect` turns into the given probabilities; needed to calibrate, as are the next two."""
        raise self._cannot("logits(probs)")

    def probability(self, probs: Tensor, target: Tensor) -> Tensor:
        """The probability of each term of the target, one axis; ignored terms are left out."""
        raise self._cannot("probability(probs, target)")

    def class_probs(self, probs: Tensor) -> Tensor:
        """A probability for each value that an observation can take, along one axis."""
        raise self._cannot("class_probs(probs)")

    def _cannot(self, method: str) -> InvalidTypeError:
        return InvalidTypeError(
            f"calibrate: {type(self).__name__} does not define {method}; define it in the subclass."
        )


def tracing() -> bool:
    """Whether torch.compile traces; values cannot be looked at then."""
    return torch.compiler.is_compiling()


def dtype_name(tensor: Tensor) -> str:
    """The dtype as users write it, without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def check_tensor(verb: str, target: Any) -> None:
    """Raise unless the target is a tensor."""
    if not isinstance(target, Tensor):
        raise InvalidTypeError(f"{verb}: target must be a tensor, got {type(target).__name__}.")


def check_axis(what: str, axis: int, output: Tensor) -> int:
    """The axis counted from the front, or an error unless it is one of the outputs and not the batch."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -output.ndim <= axis < output.ndim:
        raise InvalidValueError(f"{what} must be an axis of the outputs, got {axis!r} for shape {tuple(output.shape)}.")
    if axis % output.ndim == 0:
        raise InvalidValueError(f"{what} must not be the batch axis, got {axis!r} for shape {tuple(output.shape)}.")
    return axis % output.ndim


def check_same_shape(verb: str, output: Tensor, target: Any) -> None:
    """Raise unless the target is a tensor in the shape of the predictions: nothing is broadcast."""
    check_tensor(verb, target)
    if target.shape != output.shape:
        raise InvalidValueError(
            f"{verb}: target must have the shape {tuple(output.shape)} of the predictions, got {tuple(target.shape)}; "
            "reshape it, nothing is broadcast."
        )


def check_finite(verb: str, target: Tensor) -> None:
    """Raise unless the target holds finite real numbers."""
    if target.is_complex() or not (tracing() or bool(target.isfinite().all())):
        raise InvalidValueError(f"{verb}: target must hold finite real numbers; leave out the examples that do not.")

"""Likelihoods of classes and of binary outcomes, from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError
from ..gaussian import precise
from .base import DiscreteLikelihood, Signs, check_axis, check_same_shape, check_tensor

__all__ = ["Bernoulli", "Categorical"]

#: Number of values needed to decide that outputs are probabilities; two logits may sum to 1 by chance.
ENOUGH_CLASS_VALUES = 8
ENOUGH_VALUES = 32


@dataclass(frozen=True)
class Categorical(DiscreteLikelihood):
    """Classes from logits; a term is one position of the target.

    Attributes:
        dim: Axis of the classes. Default: axis 1 of outputs with two axes (B, C).
        ignore_index: Target value of positions to ignore, such as padding.

    Example:
        >>> loss = bensemble.likelihoods.Categorical().nll(model(x), y)
    """

    dim: int | None = None
    ignore_index: int = -100

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of each position that is not ignored.

        Args:
            output: Logits.
            target: Class indices of any integer dtype, in the shape of ``output`` without the class axis.
        """
        logits, target = self._rows(output, target)
        return F.cross_entropy(logits, target, reduction="none")

    def expect(self, output: Tensor) -> Tensor:
        """Class probabilities, in the shape of ``output``."""
        return precise(output).softmax(self.axis(output))

    def spread(self, output: Tensor) -> Tensor:
        """Entropy of the classes in nats, in the shape of ``output`` without the class axis."""
        log_probs = precise(output).log_softmax(self.axis(output))
        return -(log_probs.exp() * log_probs.clamp_min(-1e30)).sum(self.axis(output))

    def entropy(self, probs: Tensor) -> Tensor:
        """Entropy of the classes in nats, in the shape of ``probs`` without the class axis."""
        return torch.special.entr(probs).sum(self.axis(probs))

    def probe(self, output: Tensor, signs: Signs, target: Tensor | None = None) -> Tensor:
        r""":math:`\sum_c s_c \sqrt{p_c}\,(e_c - p)`, whose outer product is diag(p) - p p^T on average."""
        if target is not None:
            self._check_target(output, target)
        probs = self.expect(output)
        signed = signs(probs) * probs.sqrt()
        probe = signed - probs * signed.sum(self.axis(output), keepdim=True)
        return probe if target is None else probe * (target != self.ignore_index).unsqueeze(self.axis(output))

    def check(self, output: Tensor) -> None:
        """Raise if ``output`` holds probabilities; log probabilities are valid logits."""
        values, dim = precise(output), self.axis(output)
        if values.numel() - values.numel() // values.shape[dim] < ENOUGH_CLASS_VALUES:
            return
        error = float((values.sum(dim) - 1).abs().max())
        if error < (1e-4 if output.dtype == values.dtype else 1e-2) and bool((values >= 0).all()):
            raise InvalidValueError(
                "Categorical: outputs must be logits, got values that are probabilities (not negative, sum 1 over the "
                "classes); remove the softmax from the model, or select its input with output=."
            )

    def logits(self, probs: Tensor) -> Tensor:
        """The logarithm; 0 counts as the smallest normal number."""
        return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()

    def probability(self, probs: Tensor, target: Tensor) -> Tensor:
        """The probability of the class at each position that is not ignored."""
        rows, target = self._rows(probs, target)
        return rows.gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def class_probs(self, probs: Tensor) -> Tensor:
        """The probabilities unchanged."""
        return probs

    def num_terms(self, target: Tensor) -> int:
        """Number of positions that are not ignored."""
        return int((target != self.ignore_index).sum())

    def _rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A row of classes and a class index for each position that is not ignored."""
        dim = self.axis(output)
        self._check_target(output, target)
        kept = target != self.ignore_index
        target, rows = target[kept].long(), precise(output).movedim(dim, -1)[kept]
        if (
            not torch.compiler.is_compiling()
            and target.numel()
            and not 0 <= int(target.min()) <= int(target.max()) < rows.shape[-1]
        ):
            raise InvalidValueError(
                f"Categorical: target must lie in 0..{rows.shape[-1] - 1}, or be {self.ignore_index} to be ignored, "
                f"got {int(target.min())}..{int(target.max())}; renumber the classes."
            )
        return rows, target

    def _check_target(self, output: Tensor, target: Tensor) -> None:
        """Raise unless the target holds one integer for each row of classes."""
        dim = self.axis(output)
        check_tensor("Categorical", target)
        shape = output.shape[:dim] + output.shape[dim + 1 :]
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise InvalidTypeError(
                f"Categorical: target must hold class indices, got {str(target.dtype).removeprefix('torch.')}; "
                f"use .long(), or .argmax({dim}) where each class has a column."
            )
        if target.shape != shape:
            raise InvalidValueError(
                f"Categorical: target must have shape {tuple(shape)} for outputs {tuple(output.shape)} with classes on "
                f"axis {dim}, got {tuple(target.shape)}; reshape it or set Categorical(dim=...)."
            )

    def axis(self, output: Tensor) -> int:
        """The class axis of ``output``, counted from the front."""
        if self.dim is None and output.ndim == 1:
            raise InvalidValueError(
                f"Categorical: outputs must be a row of logits for each example, got shape {tuple(output.shape)}; "
                "give one example as x[None], and use Bernoulli() for one logit."
            )
        if self.dim is None and output.ndim != 2:
            raise InvalidValueError(
                f"Categorical: dim must be given for outputs of {output.ndim} axes, got shape {tuple(output.shape)}; "
                "use Categorical(dim=1) for (B, C, H, W), Categorical(dim=-1) for (B, T, C)."
            )
        axis = check_axis("Categorical(dim)", 1 if self.dim is None else self.dim, output)
        if output.shape[axis] < 2:
            raise InvalidValueError(
                f"Categorical: axis {axis} must hold two classes or more, got outputs of shape {tuple(output.shape)}; "
                "use Bernoulli() for one logit, Gaussian(sigma) for a regression."
            )
        return axis


@dataclass(frozen=True)
class Bernoulli(DiscreteLikelihood):
    """Independent binary outcomes from logits; every element is a term.

    Example:
        >>> p = bensemble.predict(bnn, x, likelihood=bensemble.likelihoods.Bernoulli())
    """

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross entropy of each element.

        Args:
            output: Logits.
            target: 0 and 1, bool, or probabilities, in the shape of ``output``.
        """
        return F.binary_cross_entropy_with_logits(
            precise(output), self._checked(output, target), reduction="none"
        ).flatten()

    def expect(self, output: Tensor) -> Tensor:
        """Probability of the outcome 1."""
        return precise(output).sigmoid()

    def spread(self, output: Tensor) -> Tensor:
        """Entropy of each element in nats."""
        size = precise(output).abs()
        rare = (-size).exp()  # by exp alone: a runtime's sigmoid keeps few digits of a small probability
        return rare.log1p() + size * rare / (1 + rare)

    def entropy(self, probs: Tensor) -> Tensor:
        """Entropy of each element in nats."""
        return torch.special.entr(probs) + torch.special.entr(1 - probs)

    def probe(self, output: Tensor, signs: Signs, target: Tensor | None = None) -> Tensor:
        """Random signs times sqrt(p (1 - p))."""
        logits = precise(output)
        return signs(logits) * (logits.sigmoid() * (-logits).sigmoid()).sqrt()

    def logits(self, probs: Tensor) -> Tensor:
        """log(p / (1 - p)), with p clamped to values that the dtype distinguishes from 0 and 1."""
        limits = torch.finfo(probs.dtype)
        return probs.clamp(limits.tiny, 1 - limits.eps / 2).logit()

    def probability(self, probs: Tensor, target: Tensor) -> Tensor:
        """The probability of each outcome."""
        wide = self._checked(probs, target)
        if not bool(((wide == 0) | (wide == 1)).all()):
            raise InvalidValueError(
                "calibrate: target must hold 0 and 1 for Bernoulli, got values between; round them first."
            )
        return torch.where(wide == 1, probs, 1 - probs).flatten()

    def class_probs(self, probs: Tensor) -> Tensor:
        """(1 - p, p) along an additional last axis."""
        return torch.stack((1 - probs, probs), -1)

    def _checked(self, output: Tensor, target: Tensor) -> Tensor:
        """The target as numbers from 0 to 1."""
        check_same_shape("Bernoulli", output, target)
        wide = target.to(precise(output).dtype)
        if not torch.compiler.is_compiling() and not bool(((wide >= 0) & (wide <= 1)).all()):
            raise InvalidValueError(
                f"Bernoulli: target must lie in 0..1, got {float(wide.min()):g}..{float(wide.max()):g}; rescale it."
            )
        return wide

    def check(self, output: Tensor) -> None:
        """Raise if ``output`` holds probabilities: many values, all in [0, 1], over a range of at least 0.9."""
        if output.numel() < ENOUGH_VALUES:
            return
        low, high = float(output.min()), float(output.max())
        if low >= 0 and high <= 1 and high - low > 0.9:
            raise InvalidValueError(
                f"Bernoulli: outputs must be logits, got {output.numel()} values between {low:.3g} and {high:.3g}, "
                "which are probabilities; remove the sigmoid from the model, or select its input with output=."
            )

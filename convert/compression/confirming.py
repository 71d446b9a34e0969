"""Whether the chosen file holds on data that the search did not see, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bensemble.checks import check_takes
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.batches import call, is_loader, split_batch
from bensemble.models.outputs import OutputSelector, describe, select_output

__all__ = ["Confirmation", "ExampleScores", "compared", "example_scores"]

#: model -> the score of every example, higher is better.
ExampleScores: TypeAlias = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Confirmation:
    """A file beside that at the posterior mean, on data that the search did not see.

    Attributes:
        drop: By how much its mean score is lower.
        standard_error: Of the drop, from the paired differences of the examples; nan where there is one number only.
        num_examples: How many scores there are.
        max_drop: The bound that was asked for; None without one.
        refused: Files that the search preferred, and that lost more than the bound here.

    Example:
        >>> found = convert.compress(bnn, accuracy, x, "small.onnx", max_drop=0.01, scores="snr", confirm=val_loader)
        >>> print(found.confirmed)
    """

    drop: float
    standard_error: float
    num_examples: int
    max_drop: float | None = None
    refused: tuple[str, ...] = ()

    @property
    def is_sure(self) -> bool:
        """Whether the drop is below the bound by two standard errors or more."""
        return self.max_drop is None or self.drop + 2 * self.standard_error <= self.max_drop

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.2g}"
        text = f"on {self.num_examples:,} examples that the search did not see: drop {self.drop:.4g}{error}"
        if not self.is_sure:
            text += f"; the bound of {self.max_drop:g} is within the noise, more examples would tell"
        for name in self.refused:
            text += f"; not confirmed: {name}"
        return text


def example_scores(confirm: Any, output: OutputSelector | None) -> ExampleScores:
    """The scores that ``confirm`` asks for: those of a callable, or for a loader with labels 1 where a class is right.

    Raises:
        InvalidTypeError: ``confirm`` is neither.
    """
    if callable(confirm):
        check_takes("compress", "confirm", confirm, "model")
        return lambda model: _as_scores(confirm(model))
    if isinstance(confirm, (str, Iterator)) or not isinstance(confirm, Iterable) or not is_loader(confirm):
        raise InvalidTypeError(
            "compress: confirm must be a loader with labels that can be read again, or callable(model), got "
            f"{type(confirm).__name__}."
        )
    return lambda model: torch.cat([_is_right(model, batch, output) for batch in confirm])


def compared(baseline: Tensor, found: Tensor, max_drop: float | None) -> Confirmation:
    """The scores of the examples by a file beside those by the file at the posterior mean."""
    if found.shape != baseline.shape:
        raise InvalidValueError(
            f"compress: confirm must score the same examples for every file, got {len(found)} after {len(baseline)}."
        )
    lost = baseline - found
    error = float(lost.std() / len(lost) ** 0.5) if len(lost) > 1 else float("nan")
    return Confirmation(round(float(lost.mean()), 12), error, len(lost), max_drop)


def _as_scores(value: Any) -> Tensor:
    scores = torch.as_tensor(value, dtype=torch.float64).flatten()
    if not len(scores) or not bool(scores.isfinite().all()):
        raise InvalidValueError("compress: confirm must give finite scores, got none or some that are not.")
    return scores


def _is_right(model: nn.Module, batch: Any, output: OutputSelector | None) -> Tensor:
    """1 for every example whose class is the label, else 0."""
    inputs, labels = split_batch(batch)
    result = call(model, inputs)
    logits = result if output is not None else select_output(result)  # with an output the file returns that tensor
    if not isinstance(labels, Tensor) or labels.is_floating_point() or logits.argmax(1).shape != labels.shape:
        raise InvalidTypeError(
            f"compress: confirm as a loader needs the class of every example, got {describe(labels)} for outputs of "
            f"shape {tuple(logits.shape)}; pass a callable(model) that scores the examples."
        )
    return (logits.argmax(1) == labels.to(logits.device)).double().flatten()

"""How novelty reaches a prediction: what ``predict`` asks of it, and the check that it fits the models.

The room ``novelty`` comes after this one, so its classes are described here by a protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from ..errors import InvalidTypeError, InvalidValueError
from ..models.batches import Inputs
from ..models.outputs import OutputSelector

__all__ = ["InputNovelty", "NoveltyLike", "bound_novelty"]


class InputNovelty(Protocol):
    """Scores of inputs, and their p-values among familiar ones."""

    @property
    def smallest_pvalue(self) -> float:
        """The smallest p-value that an input can get."""

    def score(self, inputs: Inputs) -> Tensor:
        """How strange each input of one call is, (B, ...)."""

    def listening(
        self, inputs: Inputs, output: OutputSelector | None
    ) -> AbstractContextManager[Callable[[Sequence[Tensor]], Tensor] | None]:
        """While open, each member runs once on the inputs of a call; then their outputs give the scores."""

    def pvalue(self, scores: Tensor) -> Tensor:
        """The share of familiar inputs at least as strange, in the shape of the scores."""


class NoveltyLike(InputNovelty, Protocol):
    """What ``predict(novelty=)`` takes, made by :func:`bensemble.fit_novelty`."""

    def on(self, model: nn.Module) -> NoveltyLike:
        """The novelty for a copy of the network; an error for another network."""

    def together(self, others: Sequence[Any]) -> InputNovelty:
        """The novelty of an ensemble of this one's model and those of the others."""


def bound_novelty(novelty: Any, models: Sequence[nn.Module]) -> InputNovelty | None:
    """The novelty of these models, from one for each.

    Raises:
        InvalidTypeError: It is neither None nor a novelty nor a list of them.
        InvalidValueError: There are more or fewer than models, or one belongs to another model.
    """
    if novelty is None:
        return None
    several = list(novelty) if isinstance(novelty, (list, tuple)) else [novelty]
    if not all(callable(getattr(entry, "together", None)) for entry in several):
        kinds = ", ".join(sorted({type(entry).__name__ for entry in several}))
        raise InvalidTypeError(
            f"predict: novelty must come from fit_novelty, one for each model, got {kinds or 'an empty list'}."
        )
    if len(several) != len(models):
        raise InvalidValueError(
            f"predict: novelty must be one for each of the {len(models)} models, got {len(several)}; fit one for each."
        )
    members: list[NoveltyLike] = [entry.on(model) for entry, model in zip(several, models, strict=True)]
    return members[0] if len(members) == 1 else members[0].together(members[1:])

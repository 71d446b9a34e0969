"""The novelty of an ensemble: the mean of its members' scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidValueError
from ..models.batches import Inputs
from ..models.outputs import OutputSelector
from .pvalues import conformal_pvalue

__all__ = ["NoveltyEnsemble"]


class NoveltyEnsemble:
    """The novelties of the members of an ensemble, with p-values of their mean score.

    Args:
        members: Objects of :class:`bensemble.Novelty` that were fitted with the same held-out data in the same order.

    Raises:
        InvalidValueError: They were fitted with different held-out data, so there is no mean of their held-out scores.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        if len({(len(member.heldout), member.heldout_digest) for member in members}) > 1:
            lengths = ", ".join(str(len(member.heldout)) for member in members)
            raise InvalidValueError(
                f"novelty: the members of an ensemble must have the same held-out data in one order, got {lengths} "
                "terms with other targets; fit them with one val_loader that does not shuffle."
            )
        self.members = tuple(members)
        self.heldout = torch.stack([member.heldout.cpu() for member in members]).mean(0).sort().values

    @property
    def smallest_pvalue(self) -> float:
        """1/(n + 1) for n held-out terms."""
        return 1 / (len(self.heldout) + 1)

    def score(self, inputs: Inputs) -> Tensor:
        """The mean score of the members, on the device of the first one's model."""
        return _mean_score([member.score(inputs) for member in self.members])

    @contextmanager
    def listening(
        self, inputs: Inputs, output: OutputSelector | None
    ) -> Iterator[Callable[[Sequence[Tensor]], Tensor] | None]:
        """The same from somebody else's forwards of the members; see :meth:`bensemble.Novelty.listening`."""
        with ExitStack() as stack:
            heard = [stack.enter_context(member.listening(inputs, output)) for member in self.members]
            if None in heard:
                yield None
            else:
                yield lambda raws: _mean_score([score([raw]) for score, raw in zip(heard, raws, strict=True)])

    def pvalue(self, scores: Tensor) -> Tensor:
        """The p-value of mean scores; see :meth:`bensemble.Novelty.pvalue`."""
        return conformal_pvalue(self.heldout, scores)


def _mean_score(scores: list[Tensor]) -> Tensor:
    return torch.stack([score.to(scores[0].device) for score in scores]).mean(0)

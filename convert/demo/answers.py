"""What the uncertainty file answers, in words, and which images to show for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from convert.runtime import Answer, UncertaintySession

from .data import Images

__all__ = ["Shown", "answered", "in_words"]

#: Images of a kind in the gallery, and which strangers it shows.
COUNT, KINDS = 10, ("photographs", "upside down")


class Shown(NamedTuple):
    """One image with the answer of the file.

    Attributes:
        image: Shape (1, side, side), 0 for the black of a digit and 1 for its white.
        answer: The answer for this image alone.
        truth: Its digit; None for what is none.
    """

    image: Tensor
    answer: Answer
    truth: int | None


def answered(file: Path, images: Images) -> tuple[Shown, Shown, dict[str, list[Shown]]]:
    """Ask ONNX Runtime about images.

    Returns:
        Of the strangers that the file refuses, the photograph for which its probabilities are surest; of the digits
        that it does not refuse, the least sure one between two; and rows of others by what they are.
    """
    session = UncertaintySession(file)

    def shown(kind: str, which: Iterable[Any]) -> list[Shown]:
        inputs, truth = images.test if kind == "digits" else (images.strangers[kind], None)
        black, white = images.test[0].aminmax()
        pictures = (inputs - black) / (white - black)
        return [Shown(pictures[i], answers[kind][int(i)], None if truth is None else int(truth[i])) for i in which]

    answers = {kind: session(images.strangers[kind].numpy()) for kind in KINDS}
    answers["digits"] = familiar = session(images.test[0].numpy())
    torn = ~familiar.reject() & (familiar.prediction_set.sum(1) == 2)
    hard = np.where(torn if torn.any() else ~familiar.reject(), familiar.entropy, -1).argmax()
    sure = np.where(answers["photographs"].reject(), answers["photographs"].scores(), -1).argmax()
    rows = {
        "The first digits of the test": shown("digits", np.arange(COUNT)),
        "The digits it is least sure of": shown("digits", familiar.entropy.argsort()[::-1][:COUNT]),
    }
    for kind in KINDS:
        order = answers[kind].novelty.argsort()
        spread = order[np.linspace(0, len(order) - 1, COUNT).astype(int)]
        rows[f"{kind.capitalize()}, from the least to the most strange"] = shown(kind, spread)
    return shown("photographs", [sure])[0], shown("digits", [hard])[0], rows


def in_words(answer: Answer, *, short: bool = False) -> str:
    """What the answer for one image says: that it is a stranger, or which digits it may be, the likeliest first."""
    if answer.reject():
        return "never seen" if short else "I have never seen such a thing."
    order = [answer.classes[i] for i in answer.probs.argsort()[::-1]]
    likely = [name for name in order if name in answer.sets()] or order[:2]
    if short:
        return " ".join(likely)
    *most, last = [f"{'an' if name == '8' else 'a'} {name}" for name in likely]
    words = f"{', '.join(most)} or {last}." if most else f"{last}."
    return words.capitalize()

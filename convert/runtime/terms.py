"""What a monitor reads from answers: the terms of each example, by measure, and a reference made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .answers import Answer
from .files import message

__all__ = ["MEASURES", "batches", "measured", "terms_of"]

#: What a monitor compares with its reference, where the file has one: outputs, and the most probable class.
MEASURES = ("entropy", "mutual_information", "std", "novelty", "class")


def batches(what: str, answers: Any) -> Iterator[Mapping[str, Any]]:
    """An answer or several, each of a batch; ``what`` names them in errors."""
    for answer in [answers] if isinstance(answers, Mapping) or not isinstance(answers, Iterable) else answers:
        if not isinstance(answer, Mapping):
            raise TypeError(
                f"{what} must be what the session returns, or several of them, got {type(answers).__name__}; pass "
                "session(inputs)."
            )
        single = isinstance(answer, Answer) and not answer.is_batch
        yield {name: array[None] for name, array in answer.items()} if single else answer


def terms_of(name: str, answer: Mapping[str, Any], class_axis: int, noise: np.random.Generator) -> np.ndarray:
    """The terms of each example, (examples, terms); the most probable classes are made continuous by noise."""
    if name == "class":
        probs = np.asarray(answer.get("probs", 0.0))
        if probs.ndim <= class_axis:
            raise ValueError(f"update: an answer must have the array 'probs', got {', '.join(answer)}.")
        best = probs.argmax(class_axis)
        best = best.reshape(len(best), math.prod(best.shape[1:]))
        return best + noise.random(best.shape)
    if name not in answer:
        raise ValueError(f"update: an answer must have '{name}', got {', '.join(answer)}.")
    try:
        array = np.atleast_1d(np.asarray(answer[name], dtype=np.float64))
    except (TypeError, ValueError) as err:
        raise TypeError(f"update: '{name}' must be an array of numbers, got {message(err)}.") from err
    return array.reshape(len(array), max(math.prod(array.shape[1:]), 1))


def measured(
    answers: Sequence[Mapping[str, Any]], class_axis: int
) -> tuple[dict[str, int], dict[str, Sequence[float]]]:
    """A reference: how many examples answers have, and the quantiles of each measure."""
    counts, quantiles, noise = {}, {}, np.random.default_rng(0)  # the same for every worker
    for name in MEASURES if answers else ():
        if all(name in a or (name == "class" and np.ndim(a.get("probs", 0.0)) > class_axis) for a in answers):
            terms = [terms_of(name, answer, class_axis, noise) for answer in answers]
            counts[name], values = sum(map(len, terms)), np.concatenate([found.ravel() for found in terms])
            if not np.isfinite(values).all():
                raise ValueError(f"Monitor: reference must be finite, got NaN or infinity in '{name}'.")
            quantiles[name] = np.quantile(values, np.linspace(0, 1, 101)).tolist() if counts[name] else []
    return counts, quantiles

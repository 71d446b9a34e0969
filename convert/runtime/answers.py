"""What a file answers: its outputs by name, with the names of the classes and the thresholds of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

__all__ = ["Answer"]

#: Outputs of which low values are suspicious: p-values.
LOW = ("novelty_pvalue",)


class Answer(Mapping[str, np.ndarray]):
    """The outputs of a file for a batch: arrays as attributes, under the names of the file's outputs.

    ``answer[3]`` is the answer for one example, whose arrays have no batch axis; ``answer[:8]`` that for several.

    Attributes:
        classes: Names of the classes, empty where the file has none.
        class_axis: Axis of ``probs`` and ``prediction_set`` that holds the classes, None for numbers.
        thresholds: From the file, by output: what :meth:`reject` compares with.
        is_batch: Whether the arrays have a batch axis.

    Example:
        >>> guesses, rejected = answer.labels(), answer.reject()
    """

    __slots__ = ("_arrays", "class_axis", "classes", "is_batch", "thresholds")

    _arrays: dict[str, np.ndarray]
    classes: tuple[str, ...]
    class_axis: int | None
    thresholds: Mapping[str, float]
    is_batch: bool

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        classes: tuple[str, ...] = (),
        class_axis: int | None = None,
        thresholds: Mapping[str, float] | None = None,
        is_batch: bool = True,
    ) -> None:
        values = (dict(arrays), class_axis, classes, is_batch, dict(thresholds or {}))
        for name, value in zip(Answer.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def labels(self) -> Any:
        """The most probable class of each example: its name, or its index where the file has no class names.

        An example whose probabilities are NaN has no label: then the labels are objects, and this one is None.
        """
        probs = self._probs("labels")
        best: Any = probs.argmax(self.class_axis)
        none = ~np.isfinite(probs).all(self.class_axis)
        names = np.asarray(self._class_names("labels", probs))[best] if self.classes else best
        return np.array(np.where(none, None, names))[()] if none.any() else names

    def scores(self) -> Any:
        """The probability of each label; NaN where there is none."""
        return self._probs("scores").max(self.class_axis)

    def sets(self) -> list[Any]:
        """The prediction set of each example as a list of class names or indices."""
        if "prediction_set" not in self or self.class_axis is None:
            if "lower" in self:
                raise ValueError("sets: the file is of a regression, which has intervals; call interval().")
            raise ValueError("sets: the file holds no conformal threshold; export it with calibration=.")
        names = self._class_names("sets", self["prediction_set"])
        return _names(np.moveaxis(self["prediction_set"], self.class_axis, -1), names)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the conformal interval of a regression."""
        if "lower" not in self or "upper" not in self:
            raise ValueError("interval: the file holds no conformal interval; export a regression with calibration=.")
        return self["lower"], self["upper"]

    def reject(self) -> np.ndarray:
        """Which predictions somebody else should make, by the thresholds in the file; a boolean array.

        An uncertainty is rejected above its threshold, a p-value at its level or below, NaN always. One of them is
        enough. The array has the shape of the outputs that are compared; where they differ, such as the deviations of
        three numbers and the novelty of the example, one entry for each example.

        Raises:
            ValueError: The file holds no thresholds.
        """
        if not self.thresholds:
            raise ValueError(
                "reject: the file holds no thresholds; export it with reject={'novelty_pvalue': 0.01, 'entropy': 0.5}."
            )
        found: list[Any] = []
        for name, threshold in self.thresholds.items():
            kept = self[name] > threshold if name in LOW else self[name] <= threshold
            found.append(np.asarray(~kept))
        if len({rejected.shape for rejected in found}) > 1:
            axis = 1 if self.is_batch else 0
            found = [rejected.any(tuple(range(axis, rejected.ndim))) for rejected in found]
        return np.asarray(np.any(found, axis=0))

    def to_dict(self) -> dict[str, Any]:
        """Lists, numbers, strings and booleans, ready for ``json.dumps``; NaN and infinity become None.

        The outputs by name; classifiers have ``label`` and ``score`` as well, ``set`` in place of ``prediction_set``,
        and a file with thresholds ``rejected``.
        """
        found: dict[str, Any] = {name: _plain(array) for name, array in self.items()}
        if self.class_axis is not None and "probs" in self and self.class_axis < self.probs.ndim:
            found |= {"label": _plain(self.labels()), "score": _plain(self.scores())}
        if found.pop("prediction_set", None) is not None:
            found["set"] = self.sets()
        if self.thresholds:
            found["rejected"] = _plain(self.reject())
        return found

    def _probs(self, verb: str) -> np.ndarray:
        if self.class_axis is None or "probs" not in self or self.class_axis >= self.probs.ndim:
            raise ValueError(f"{verb}: an answer with {', '.join(self)} chooses no class; only classifiers do.")
        return self.probs

    def _class_names(self, verb: str, array: np.ndarray) -> Sequence[Any]:
        """The class names along the class axis of an output; indices where the file has no names."""
        count = array.shape[self.class_axis] if self.class_axis is not None and self.class_axis < array.ndim else 0
        if self.classes and len(self.classes) != count:
            raise ValueError(f"{verb}: the file names {len(self.classes)} classes, got {count} in its outputs.")
        return self.classes or range(count)

    def __getattr__(self, name: str) -> np.ndarray:
        if name in Answer.__slots__ or name not in self._arrays:
            raise AttributeError(f"answer has no {name!r}; it has {', '.join(map(repr, self._arrays))}.")
        return self._arrays[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"answer is frozen, {name!r} cannot be set.")

    @overload
    def __getitem__(self, key: str) -> np.ndarray: ...

    @overload
    def __getitem__(self, key: int | slice) -> Answer: ...

    def __getitem__(self, key: str | int | slice) -> np.ndarray | Answer:
        if isinstance(key, str):
            return self._arrays[key]
        if not isinstance(key, (int, np.integer, slice)) or isinstance(key, bool):
            raise TypeError(f"answer: takes the name of an output, a number or a slice, got {type(key).__name__}.")
        if not self.is_batch:
            raise TypeError("answer: of one example it has no others; take one from the answer for the batch.")
        if isinstance(key, slice):
            parts = {name: array[key] for name, array in self._arrays.items()}
            return Answer(parts, self.classes, self.class_axis, self.thresholds)
        count = min(map(len, self._arrays.values()))
        if not -count <= key < count:
            raise IndexError(f"answer: has {count} examples, got number {key}.")
        one = {name: array[key, ...] for name, array in self._arrays.items()}
        axis = None if self.class_axis is None else self.class_axis - 1
        return Answer(one, self.classes, axis, self.thresholds, is_batch=False)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> Any:
        return Answer, (self._arrays, self.classes, self.class_axis, self.thresholds, self.is_batch)

    def __repr__(self) -> str:
        count = f"{len(next(iter(self._arrays.values())))} examples" if self.is_batch else "one example"
        lines = [f"Answer: {count}"]
        for name, array in self._arrays.items():
            shown = f"{array.min():.4g} .. {array.mean():.4g} .. {array.max():.4g}" if array.size else "empty"
            lines.append(f"  {name:<19}{array.shape!s:<18}{shown}")
        return "\n".join(lines)


def _names(sets: np.ndarray, names: Sequence[Any]) -> list[Any]:
    if sets.ndim == 1:
        return [name for name, inside in zip(names, sets, strict=True) if inside]
    return [_names(one, names) for one in sets]


def _plain(values: Any) -> Any:
    """An array as Python numbers, None for what is not finite."""
    array = np.asarray(values)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        array = array.astype(object)
        array[~np.isfinite(np.asarray(values))] = None
    return array.tolist()

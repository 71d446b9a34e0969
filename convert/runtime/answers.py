"""What a file answers: its outputs by name, with the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Answer"]


class Answer(Mapping[str, np.ndarray]):
    """The outputs of a file for a batch: arrays as attributes, under the names of the file's outputs.

    Attributes:
        classes: Names of the classes, empty where the file has none.
        class_axis: Axis of ``probs`` and ``prediction_set`` that holds the classes, None for numbers.
    """

    __slots__ = ("_arrays", "class_axis", "classes")

    _arrays: dict[str, np.ndarray]
    classes: tuple[str, ...]
    class_axis: int | None

    def __init__(
        self, arrays: Mapping[str, np.ndarray], classes: tuple[str, ...] = (), class_axis: int | None = None
    ) -> None:
        for name, value in (("_arrays", dict(arrays)), ("classes", classes), ("class_axis", class_axis)):
            object.__setattr__(self, name, value)

    def labels(self) -> np.ndarray:
        """The most probable class of each example: its name, or its index where the file has no class names.

        An example whose probabilities are NaN has no label: then the labels are objects, and this one is None.
        """
        if self.class_axis is None or "probs" not in self or self.class_axis >= self.probs.ndim:
            raise ValueError(f"labels: an answer with {', '.join(self)} chooses no class; only classifiers do.")
        best, none = self.probs.argmax(self.class_axis), ~np.isfinite(self.probs).all(self.class_axis)
        names = np.asarray(self._class_names("labels", self.probs))[best] if self.classes else best
        return np.array(np.where(none, None, names)) if none.any() else names

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

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> Any:
        return Answer, (self._arrays, self.classes, self.class_axis)

    def __repr__(self) -> str:
        lines = [f"Answer: {len(next(iter(self._arrays.values())))} examples"]
        for name, array in self._arrays.items():
            shown = f"{array.min():.4g} .. {array.mean():.4g} .. {array.max():.4g}" if array.size else "empty"
            lines.append(f"  {name:<19}{array.shape!s:<18}{shown}")
        return "\n".join(lines)


def _names(sets: np.ndarray, names: Sequence[Any]) -> list[Any]:
    if sets.ndim == 1:
        return [name for name, inside in zip(names, sets, strict=True) if inside]
    return [_names(one, names) for one in sets]

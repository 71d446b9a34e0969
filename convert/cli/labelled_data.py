"""Labelled data from an .npz file, and the score of a model on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .example_inputs import computes_in_float64, read_arrays
from .failures import WrongUsage

__all__ = ["LabelledData", "read_data"]

#: Names under which the labels may stand in a file; every other array is an input.
LABELS = ("labels", "label", "targets", "target", "y")

#: Examples in one forward.
BATCH = 256


@dataclass(frozen=True)
class LabelledData:
    """Inputs of a model, by argument name or in order, with a label for each example.

    Attributes:
        inputs: Tensors, all with the examples along axis 0.
        named: Whether the names are arguments of forward.
        labels: Class numbers, shape (N,); None where the file has none.
    """

    inputs: dict[str, Any]
    named: bool
    labels: Any | None

    def batch(self, start: int, stop: int) -> Any:
        """Some of the examples, as one call takes them."""
        part = {name: tensor[start:stop] for name, tensor in self.inputs.items()}
        if self.named:
            return part
        return tuple(part.values()) if len(part) > 1 else next(iter(part.values()))

    def __len__(self) -> int:
        return min(len(tensor) for tensor in self.inputs.values())

    def accuracy(self) -> Callable[[Any], float]:
        """``evaluate`` for :func:`convert.compress`: the share of examples whose label has the largest output."""
        from bensemble.errors import InvalidValueError
        from bensemble.models.batches import call
        from bensemble.models.outputs import select_output

        labels = self.labels
        assert labels is not None

        def evaluate(model: Any) -> float:
            right = 0
            for start in range(0, len(self), BATCH):
                scores = select_output(call(model, self.batch(start, start + BATCH)), None)
                wanted = labels[start : start + BATCH]
                if scores.ndim != 2 or len(scores) != len(wanted):
                    raise InvalidValueError(
                        f"data: accuracy needs scores of shape (examples, classes), got {tuple(scores.shape)}; "
                        "name a function of your own with --evaluate."
                    )
                right += int((scores.argmax(1).cpu() == wanted).sum())
            return right / len(self)

        return evaluate


def read_data(path: Path, model: Any = None, need_labels: bool = False) -> LabelledData:
    """Inputs and labels of an .npz file.

    Args:
        path: The file. Its array ``labels`` (or ``label``, ``targets``, ``target``, ``y``) holds class numbers.
        model: The model that takes the inputs: two and more arrays go to forward by their names.
        need_labels: Whether a file without labels is an error.

    Raises:
        InvalidValueError: The file cannot be read.
        WrongUsage: It holds no inputs or no labels, or arrays of different lengths.
    """
    from bensemble.errors import shown

    arrays = read_arrays(path, "data", wide=model is not None and computes_in_float64(model))
    found = next((name for name in LABELS if name in arrays), None)
    labels = arrays.pop(found) if found is not None else None
    if not arrays:
        raise WrongUsage(f"data: '{path}' holds no inputs; write it with numpy.savez(path, inputs=x, labels=y).")
    if labels is None and need_labels:
        raise WrongUsage(
            f"data: '{path}' holds no labels, only {shown(', '.join(arrays), 300)}; add an array "
            "'labels', or name a function of your own with --evaluate."
        )
    rows = arrays if labels is None else {**arrays, "labels": labels}
    lengths = {name: len(array) if array.ndim else 0 for name, array in rows.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise WrongUsage(
            f"data: the arrays of '{path}' must have one example for each row, got "
            f"{shown(', '.join(f'{size} in {name}' for name, size in lengths.items()), 300)}."
        )
    if labels is not None and (labels.ndim != 1 or labels.is_floating_point()):
        raise WrongUsage(
            f"data: labels of '{path}' must be class numbers, one for each example, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    in_order = len(arrays) == 1 or all(name == f"arr_{i}" for i, name in enumerate(arrays))
    return LabelledData(arrays, not in_order, labels)

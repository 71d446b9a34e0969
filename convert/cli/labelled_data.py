"""Labelled data from an .npz file, and the score of a model on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .example_inputs import in_order, load_file, tensors
from .failures import WrongUsage
from .model_name import ModelName

__all__ = ["BATCH", "check_labels", "first_examples", "read_arrays", "read_data", "score"]

#: Names under which the labels may stand in a file; every other array is an input.
LABELS = ("labels", "label", "targets", "target", "y")

#: Examples in one forward, and those that int8 is calibrated with.
BATCH = 256


def read_data(path: Path, model: Any = None, need_labels: bool = False) -> tuple[Any, Any]:
    """The inputs in a file, as one call of a model takes them, and the class numbers, None where there are none.

    Several inputs go to forward by their names, or in order where they are arr_0, arr_1, ...
    """
    arrays, labels = read_arrays(path, need_labels)
    found = tensors(arrays, path, "data", model)
    values = tuple(found.values())
    inputs = values[0] if len(values) == 1 else values if in_order(found) else found
    return inputs, None if labels is None else tensors({"labels": labels}, path, "data")["labels"]


def read_arrays(path: Path, need_labels: bool = False) -> tuple[dict[str, Any], Any]:
    """The same as numpy arrays by name."""
    from bensemble.errors import shown

    arrays = load_file(path, "data")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    found = next((name for name in LABELS if name in arrays), None)
    labels = None if found is None else arrays.pop(found)
    held = shown(", ".join(f"{size} in {name}" for name, size in lengths.items()), 300)
    if not arrays or (labels is None and need_labels):
        raise WrongUsage(
            f"data: '{path}' must hold inputs and labels, got {held or 'nothing'}; write it with "
            "numpy.savez(path, inputs=x, labels=y). Without labels, name a function of your own with --evaluate."
        )
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise WrongUsage(f"data: the arrays of '{path}' must have one row for each example, got {held}.")
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "biu"):
        raise WrongUsage(
            f"data: labels of '{path}' must be class numbers, one for each example, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    return arrays, labels


def check_labels(shape: Any, labels: Any, examples: int) -> None:
    """Raise unless the scores of some examples have one for each class among the labels."""
    from bensemble.errors import InvalidValueError

    low, high = int(labels.min()), int(labels.max())
    if len(shape) != 2 or shape[0] != examples:
        raise InvalidValueError(
            f"data: accuracy needs scores of shape (examples, classes), got {tuple(shape)}; "
            "name a function of your own with --evaluate."
        )
    if not 0 <= low <= high < shape[1]:
        raise InvalidValueError(
            f"data: labels must lie in 0..{shape[1] - 1} for the model's {shape[1]} outputs, got {low}..{high}; "
            "number the classes as the model does."
        )


def first_examples(inputs: Any, size: int = BATCH) -> Any:
    """The first examples, as one call takes them."""
    from bensemble.models.batches import split_inputs

    return next(split_inputs(inputs, size))


def score(name: ModelName | None, inputs: Any, labels: Any) -> Any:
    """``evaluate`` for a search or a comparison: the user's function, or the accuracy; None where nothing is labelled.

    Accuracy is the share of examples whose label has the largest output.
    """
    if name is not None:
        from .model_building import look_up

        if name.called:
            raise WrongUsage(f"--evaluate: names a function without arguments, got {name.text!r}.")
        return look_up(name)
    if labels is None:
        return None
    from bensemble.models.batches import call, split_inputs
    from bensemble.models.outputs import select_output

    def accuracy(model: Any) -> float:
        right = 0
        for part, wanted in zip(split_inputs(inputs, BATCH), labels.split(BATCH), strict=True):
            scores = select_output(call(model, part), None)
            check_labels(scores.shape, labels, len(wanted))
            right += int((scores.argmax(1).cpu() == wanted).sum())
        return right / len(labels)

    return accuracy

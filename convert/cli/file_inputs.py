"""What `bensemble report` gives to ONNX files: numpy arrays, so that it runs where torch is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .example_inputs import InputText, load_file
from .failures import WrongUsage
from .labelled_data import BATCH, check_labels

if TYPE_CHECKING:
    from ..onnx.files.sessions import OnnxFile

__all__ = ["accuracy", "random_arrays"]


def random_arrays(texts: Sequence[InputText], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs by name, or in order where they have none; integers are 0 or 1, as every embedding has these rows."""
    generator, found = np.random.default_rng(seed), dict[str, np.ndarray]()
    for text in texts:
        if text.file is not None:
            found |= load_file(text.file, "input")
            continue
        name = text.name or f"input {len(found)}"
        if text.dtype == "bfloat16":
            raise WrongUsage("input: numpy has no bfloat16; give the inputs in another dtype.")
        if text.dtype.startswith("float"):
            found[name] = generator.standard_normal(text.shape).astype(text.dtype)
        elif text.dtype == "bool" or name.endswith("mask"):
            found[name] = np.ones(text.shape, text.dtype)
        else:
            found[name] = generator.integers(0, 2, text.shape).astype(text.dtype)
    return found


def accuracy(file: OnnxFile, arrays: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """The share of examples whose label has the largest output."""
    from bensemble.errors import InvalidValueError

    right = 0
    for start in range(0, len(labels), BATCH):
        outputs = file.run({name: array[start : start + BATCH] for name, array in arrays.items()})
        floating = [array for array in outputs.values() if array.dtype.kind == "f"]
        named = [outputs[name] for name in ("logits", "out", "probs") if name in outputs]
        chosen, wanted = named[:1] or floating, labels[start : start + BATCH]
        if len(chosen) != 1:  # one of several without a usual name is not guessed
            raise InvalidValueError(
                f"data: accuracy needs one output of scores, logits or probs, got {', '.join(outputs)}; "
                "name a function of your own with --evaluate."
            )
        scores = chosen[0]
        check_labels(scores.shape, labels, len(wanted))
        right += int((scores.argmax(1) == wanted).sum())
    return right / len(labels)

"""The ``bensemble.*`` strings of an uncertainty file, checked field by field: it may come from anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .files import UncertaintyFileError, literal

__all__ = ["SCHEMA", "FileMetadata", "check_kind", "class_names", "read_metadata"]

#: Newest version of the ``bensemble.*`` metadata that this package reads.
SCHEMA = 1


@dataclass(frozen=True)
class FileMetadata:
    """What the strings of a file say; :class:`UncertaintySession` describes the fields of the same names.

    Attributes:
        class_axis: Axis of ``probs`` and ``prediction_set`` that holds the classes, None for numbers.
    """

    likelihood: str
    classes: tuple[str, ...]
    class_axis: int | None
    reference: Mapping[str, tuple[float, ...]]
    num_data: int
    counts: Mapping[str, int]
    thresholds: Mapping[str, float]


def check_kind(path: object, metadata: Mapping[str, str]) -> None:
    """Refuse a file that is none of uncertainty, or newer than this package.

    Raises:
        UncertaintyFileError: It is one; ``path`` names it.
    """
    schema, outputs = metadata.get("bensemble.schema"), metadata.get("bensemble.outputs")
    if schema is None or outputs is None:
        raise UncertaintyFileError(
            f"UncertaintySession: '{path}' is ONNX without bensemble's metadata; write it with "
            "export_onnx(..., outputs='uncertainty'), or run it with onnxruntime itself."
        )
    if schema not in map(str, range(1, SCHEMA + 1)):
        raise UncertaintyFileError(
            f"UncertaintySession: '{path}' must be of schema {SCHEMA} or older, got {literal(schema)}; "
            "update this package."
        )
    if outputs != "uncertainty":
        raise UncertaintyFileError(
            f"UncertaintySession: '{path}' must hold uncertainty, got a file of outputs="
            f"{literal(outputs)}; write it with export_onnx(..., outputs='uncertainty')."
        )


def read_metadata(metadata: Mapping[str, str], outputs: Mapping[str, Sequence[Any]]) -> FileMetadata:
    """The fields of an uncertainty file.

    Args:
        metadata: Its strings.
        outputs: The shape of each of its outputs.

    Raises:
        AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError: A field is damaged.
    """
    axis = metadata.get("bensemble.class_axis")
    class_axis = None if axis is None else int(axis)
    shape = outputs.get("probs", ())
    if class_axis is not None and not 0 < class_axis <= len(shape):  # Bernoulli's is one more
        raise ValueError(f"class axis {class_axis} of {len(shape)} axes")
    found = json.loads(metadata.get("bensemble.reference", "{}"))
    reference = {str(name): _checked_quantiles(name, values) for name, values in found.items()}
    num_data = json.loads(metadata.get("bensemble.calibration", "{}")).get("num_data", 0)
    terms = int(metadata.get("bensemble.terms", "1"))
    if type(num_data) is not int or not 0 <= num_data < 2**53 or terms < 1:
        raise ValueError(f"{num_data!r} calibration terms, {terms} for each example")
    counts = dict.fromkeys(reference, num_data // terms)
    novelty = json.loads(metadata.get("bensemble.novelty", "{}"))
    if novelty:
        reference["novelty"] = _checked_quantiles("novelty", novelty["quantiles"])
        if type(novelty["num_data"]) is not int or not 0 < novelty["num_data"] < 2**53:
            raise ValueError(f"{novelty['num_data']!r} held-out terms of the novelty")
        counts["novelty"] = novelty["num_data"] // terms
    return FileMetadata(
        likelihood=metadata["bensemble.likelihood"],
        classes=class_names(metadata.get("classes", "")),
        class_axis=class_axis,
        reference=reference,
        num_data=num_data // terms,
        counts=counts,
        thresholds=_checked_thresholds(json.loads(metadata.get("bensemble.reject", "{}")), outputs),
    )


def class_names(text: str) -> tuple[str, ...]:
    """The names of the classes in the user's metadata ``classes``: a JSON list, or separated by commas."""
    if text.lstrip().startswith("["):
        return tuple(str(name) for name in json.loads(text))
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def _checked_thresholds(found: Any, outputs: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds of a file: finite numbers by the names of outputs."""
    thresholds = {str(name): value for name, value in found.items()}
    for name, value in thresholds.items():
        if name not in outputs or type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"the threshold {literal(value)} of {literal(name)}")
    return thresholds


def _checked_quantiles(name: str, values: Any) -> tuple[float, ...]:
    """The reference of one measure: finite numbers in ascending order."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) < 2 or any(type(value) not in (int, float) for value in values):
        raise TypeError(f"{len(numbers)} quantiles of {literal(name)}")
    if not all(map(math.isfinite, numbers)) or any(a > b for a, b in pairwise(numbers)):
        raise ValueError(f"quantiles of {literal(name)} that are not in order")
    return numbers

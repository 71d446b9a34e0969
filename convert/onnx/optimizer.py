"""The optimizer of torch's exporter, without its tolerance for constants.

Its rules drop ``x + c`` where c is within 1e-8 of 0, and ``x * c`` where c is within 1e-5 of 1. But such a constant is
often all that stands between a division and 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from onnxscript.rewriter import _matcher

__all__ = ["exact_constants"]


@contextmanager
def exact_constants() -> Iterator[None]:
    """Compare whole numbers in the patterns of onnxscript's rules exactly; every dtype holds them exactly."""

    def matches(value: float, wanted: float, *, rel_tol: float, abs_tol: float) -> bool:
        whole = float(wanted).is_integer()
        return value == wanted if whole else math.isclose(value, wanted, rel_tol=rel_tol, abs_tol=abs_tol)

    names = vars(_matcher)
    kept, names["math"] = names["math"], SimpleNamespace(isclose=matches)
    try:
        yield
    finally:
        names["math"] = kept

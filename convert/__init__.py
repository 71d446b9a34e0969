"""From deterministic to Bayesian and back, and out to ONNX.

Names load on first use, so that ``convert.runtime`` works where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .noise import NoiseReport, check_noise
    from .planning import ConversionPlan, PlanRow, plan
    from .zeros import SparsityReport, sparsity
    from .surgery import bayesify, to_deterministic

_HOMES = {
    "ConversionPlan": "planning",
    "NoiseReport": "noise",
    "PlanRow": "planning",
    "SparsityReport": "zeros",
    "bayesify": "surgery",
    "check_noise": "noise",
    "plan": "planning",
    "sparsity": "zeros",
    "to_deterministic": "surgery",
}

__all__ = [
    "ConversionPlan",
    "NoiseReport",
    "PlanRow",
    "SparsityReport",
    "bayesify",
    "check_noise",
    "plan",
    "sparsity",
    "to_deterministic",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

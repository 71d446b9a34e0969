"""From deterministic to Bayesian and back, and out to ONNX.

Names load on first use, so that ``convert.runtime`` works where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression import Compression, Confirmation, UnmetConstraintsError, compress
    from .graph.compaction import CompactionReport, channel_groups, compact, compaction_report
    from .onnx import Comparison, ExportReport, OnnxModel, OnnxSummary, compare_onnx, export_onnx, inspect_onnx
    from .planning import ConversionPlan, PlanRow, last_layer, plan
    from .repairing import (
        GradualPruning,
        Pruned,
        PruneStep,
        RepairReport,
        RepairRow,
        prune_and_repair,
        repair,
        repair_report,
    )
    from .reports import NoiseReport, SparsityReport, check_noise, sparsity
    from .scoring import ExpectedLoss, prune_scores
    from .surgery import bayesify, to_deterministic
    from .weights import load_weights

_HOMES = {
    "CompactionReport": "graph.compaction",
    "Compression": "compression",
    "Comparison": "onnx",
    "Confirmation": "compression",
    "ConversionPlan": "planning",
    "ExportReport": "onnx",
    "ExpectedLoss": "scoring",
    "GradualPruning": "repairing",
    "NoiseReport": "reports",
    "OnnxModel": "onnx",
    "OnnxSummary": "onnx",
    "PlanRow": "planning",
    "PruneStep": "repairing",
    "Pruned": "repairing",
    "RepairReport": "repairing",
    "RepairRow": "repairing",
    "SparsityReport": "reports",
    "UnmetConstraintsError": "compression",
    "bayesify": "surgery",
    "channel_groups": "graph.compaction",
    "check_noise": "reports",
    "compact": "graph.compaction",
    "compress": "compression",
    "compaction_report": "graph.compaction",
    "compare_onnx": "onnx",
    "export_onnx": "onnx",
    "inspect_onnx": "onnx",
    "last_layer": "planning",
    "load_weights": "weights",
    "plan": "planning",
    "prune_and_repair": "repairing",
    "prune_scores": "scoring",
    "repair": "repairing",
    "repair_report": "repairing",
    "sparsity": "reports",
    "to_deterministic": "surgery",
}

__all__ = [
    "CompactionReport",
    "Comparison",
    "Compression",
    "Confirmation",
    "ConversionPlan",
    "ExpectedLoss",
    "ExportReport",
    "GradualPruning",
    "NoiseReport",
    "OnnxModel",
    "OnnxSummary",
    "PlanRow",
    "PruneStep",
    "Pruned",
    "RepairReport",
    "RepairRow",
    "SparsityReport",
    "UnmetConstraintsError",
    "bayesify",
    "channel_groups",
    "check_noise",
    "compact",
    "compaction_report",
    "compare_onnx",
    "compress",
    "export_onnx",
    "inspect_onnx",
    "last_layer",
    "load_weights",
    "plan",
    "prune_and_repair",
    "prune_scores",
    "repair",
    "repair_report",
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

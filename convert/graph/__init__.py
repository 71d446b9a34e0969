"""Exact passes over the graph of a model."""

from __future__ import annotations

from .compaction import compact, compaction_report
from .report import CompactionReport, LayerChange

__all__ = ["CompactionReport", "LayerChange", "compact", "compaction_report"]

"""Exact passes over the graph of a model."""

from __future__ import annotations

from .compaction.compacting import compact, compaction_report
from .compaction.grouping import channel_groups
from .compaction.summary import CompactionReport, LayerChange

__all__ = ["CompactionReport", "LayerChange", "channel_groups", "compact", "compaction_report"]

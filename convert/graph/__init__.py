"""Exact passes over the graph of a model."""

from __future__ import annotations

from .channels import channel_groups
from .compaction import compact, compaction_report
from .report import CompactionReport, LayerChange

__all__ = ["CompactionReport", "LayerChange", "channel_groups", "compact", "compaction_report"]

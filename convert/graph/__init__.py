"""Exact passes over the graph of a model: its capture, and one folder for each pass.

A pass returns another model with the same outputs. What needs ONNX belongs into ``onnx``.
"""

from .compaction import CompactionReport, LayerChange, channel_groups, compact, compaction_report

__all__ = ["CompactionReport", "LayerChange", "channel_groups", "compact", "compaction_report"]

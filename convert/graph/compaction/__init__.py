"""Removing channels that are constant or unread, exactly: follow atoms through the graph, solve, cut.

What an operation does to channels is a rule, in ``rules``. How a model becomes a graph is in ``convert.graph.capture``.
"""

from .compacting import compact, compaction_report
from .grouping import channel_groups
from .summary import CompactionReport, LayerChange

__all__ = ["CompactionReport", "LayerChange", "channel_groups", "compact", "compaction_report"]

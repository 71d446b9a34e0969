"""The search for the smallest file that is good enough. Every candidate is measured in ONNX Runtime.

How one candidate is pruned, compacted or rounded is decided in ``surgery``, ``graph`` and ``onnx``.
"""

from .confirming import Confirmation
from .results import Compression, Point, UnmetConstraintsError
from .search import compress

__all__ = ["Compression", "Confirmation", "Point", "UnmetConstraintsError", "compress"]

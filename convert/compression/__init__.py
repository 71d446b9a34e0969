"""The search for the smallest file that is still good enough, every candidate measured in ONNX Runtime."""

from .results import Compression, Point, UnmetConstraintsError
from .search import compress

__all__ = ["Compression", "Point", "UnmetConstraintsError", "compress"]

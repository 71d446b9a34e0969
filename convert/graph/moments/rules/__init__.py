"""Moment rules, by kind of operation; importing a file registers its rules."""

from __future__ import annotations

from ..registry import RULES
from . import activation, convolution, joining, linear, movement, normalisation, pooling, softmax

__all__ = ["FILES", "RULES"]

FILES = (activation, convolution, joining, linear, movement, normalisation, pooling, softmax)

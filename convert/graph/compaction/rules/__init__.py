"""What each operation does to atoms and constants: one rule for each kind of operation, by name.

A rule takes the ``Flow`` and a ``Call`` of the folder above and returns what is known about the result. Names are those
of ``torch.ops.aten``, ``torch.nn.functional`` and tensor methods, which agree. A module has the rule of its function.
"""

from __future__ import annotations

from . import attention, elementwise, joining, movement, normalisation, pooling, products, slicing
from .lookup import RULES, Rule, rule
from .modules import as_function

__all__ = ["RULES", "Rule", "as_function", "rule"]

#: Importing a file of rules registers them.
FILES = (attention, elementwise, joining, movement, normalisation, pooling, products, slicing)

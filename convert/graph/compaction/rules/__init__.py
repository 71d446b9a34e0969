"""Transfer rules: what each operation does to atoms and constants, by the name of the operation.

A rule takes the ``Flow`` and a ``Call`` of the folder above and returns what is known about the result. Names are those
of ``torch.ops.aten``, ``torch.nn.functional`` and tensor methods, which agree.
"""

from __future__ import annotations

from . import attention, copies, elementwise, joining, modules, movement, normalisation, pooling, products, slicing
from .lookup import MODULE_RULES, RULES, module_rule, rule

__all__ = ["MODULE_RULES", "RULES", "module_rule", "rule"]

#: Importing a file of rules registers them.
FILES = (attention, copies, elementwise, joining, modules, movement, normalisation, pooling, products, slicing)

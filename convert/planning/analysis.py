"""What is known about a model's forward: which modules it calls, and which operations the weights reach.

A probe forward on example inputs sees every operation (``probe.py``). A torch.fx trace needs no inputs
(``fx_trace.py``). Where neither is possible, nothing is known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from bensemble.torch_internals import parameters_of

__all__ = ["Analysis"]


@dataclass
class Analysis:
    """What is known about a model's forward.

    Attributes:
        source: "probe", "fx" or "unknown".
        calls: How often the forward calls each module, by path.
        inside: Modules that run within a fused module: path -> path of the module that uses their weights.
        operations: By identity of a Parameter, the names of the operations where it meets data, outside of what
            torch.fx calls as a whole.
        seen: Identities of the Parameters that the forward reads.
        altered: Identities of the Parameters that are computed with before they meet data.
        written: Identities of the Parameters that the forward writes into.
    """

    source: str = "unknown"
    calls: Counter[str] = field(default_factory=Counter)
    inside: dict[str, str] = field(default_factory=dict)
    operations: dict[int, set[str]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    altered: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """Whether a forward was seen."""
        return self.source != "unknown"

    def is_complete(self, model: nn.Module) -> bool:
        """Whether every Parameter was read or belongs to a module that runs; some heads run in one mode only."""
        return all(
            id(parameter) in self.seen or path in self.calls or path in self.inside
            for path, module in model.named_modules()
            for parameter in parameters_of(module).values()
            if parameter is not None
        )

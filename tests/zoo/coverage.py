"""Which share of a model's weights became Bayesian, by a definition that does not ask the library.

Eligible is every trainable floating parameter of two or more dimensions, unless the type of its module is an
embedding or a norm. Position tables and tokens are exempt, each named in the result, and at most 2 % of a model:
what exceeds that counts as eligible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

#: Types of norms, by their name: libraries define their own.
NORM = re.compile(r"Norm|^AffineTransform", re.IGNORECASE)
#: Position tables and tokens, by the last parts of the parameter's name.
POSITION_OR_TOKEN = re.compile(
    r"(pos|token|cls|query|queries|latent|prompt|register|rel_|relative|class_embed|embedding|anchor|probe|prefix|tags?$)",
    re.IGNORECASE,
)
EXEMPT_SHARE = 0.02


@dataclass(frozen=True)
class Coverage:
    """Counts of weight elements.

    Attributes:
        eligible: Elements that should be Bayesian.
        bayesian: Eligible elements that are.
        exempt: Position tables and tokens that stayed deterministic, by name.
        left_out: Eligible parameters that stayed deterministic, by name, largest first, at most ten.
        disguised: Those of them with a single dimension above 1: vectors in effect.
    """

    eligible: int
    bayesian: int
    exempt: dict[str, int]
    left_out: dict[str, int]
    disguised: frozenset[str]

    def is_small_part(self, name: str) -> bool:
        """Whether a parameter is a vector in effect, or goes by the name of a table or token."""
        return name in self.disguised or POSITION_OR_TOKEN.search(name.rpartition(".")[2]) is not None

    @property
    def share(self) -> float:
        """Bayesian share of the eligible elements."""
        return self.bayesian / self.eligible if self.eligible else 1.0


def measure_coverage(source: nn.Module, bayesian: set[str]) -> Coverage:
    """Compare the parameters of the source with the names of the posteriors."""
    total = sum(p.numel() for p in source.parameters())
    exempt: dict[str, int] = {}
    left: dict[str, int] = {}
    eligible = covered = 0
    for name, parameter in source.named_parameters():
        if name in bayesian:
            if parameter.ndim >= 2:
                eligible += parameter.numel()
                covered += parameter.numel()
            continue
        if parameter.ndim < 2 or not parameter.requires_grad or not parameter.is_floating_point():
            continue
        path, _, leaf = name.rpartition(".")
        owner = source.get_submodule(path)
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or NORM.search(type(owner).__name__):
            continue
        (exempt if POSITION_OR_TOKEN.search(leaf) else left)[name] = parameter.numel()
    if sum(exempt.values()) > EXEMPT_SHARE * total:
        left |= exempt
        exempt = {}
    eligible += sum(left.values())
    largest = dict(sorted(left.items(), key=lambda item: -item[1])[:10])
    disguised = {name for name in left if sum(size > 1 for size in source.get_parameter(name).shape) < 2}
    return Coverage(eligible, covered, exempt, largest, frozenset(disguised))

"""Whether a score tells the network from outputs that mean nothing.

Where it does not, as with labels of other data, a network without weights drops by nothing, and a search ends there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import InvalidValueError
from bensemble.models.outputs import tensor_paths, with_tensors

__all__ = ["check_baseline", "warn_of_ruin"]

#: Seeds of the random outputs.
SEEDS = (0, 1, 2)


def check_baseline(
    evaluate: Callable[[nn.Module], float], network: nn.Module, score: float, max_drop: float | None = None
) -> float:
    """Compare a network's score with those of its mean output for every example, and of random outputs.

    Returns:
        The best of these, minus infinity without any.

    Outputs that ``evaluate`` cannot score are left out.

    Raises:
        InvalidValueError: All scores are equal, the network's is 0 and none is lower, it is no better than the mean
            output and the best of the random ones, or further below the random ones than they are apart.

    Warns:
        UserWarning: The mean output meets ``max_drop`` as well.
    """
    constant = _scores(evaluate, [_Meaningless(network)])
    random = _scores(evaluate, [_Meaningless(network, seed) for seed in SEEDS])
    others = constant + random
    shown = f"random outputs score {', '.join(f'{value:.4g}' for value in others[len(constant) :])}"
    shown = f"the same output for every example scores {constant[0]:.4g}, {shown}" if constant else shown
    cure = "Look at whether labels and outputs belong together and count classes alike, and whether higher is better."
    if len(random) > 1 and all(value == score for value in others):
        raise InvalidValueError(
            f"compress: evaluate must tell the network from outputs that mean nothing, got {score:.4g} for all. {cure}"
        )
    at_zero = score == 0 and others and score <= min(others)
    at_chance = constant and len(random) > 1 and score <= min(*constant, max(random))
    if at_zero or at_chance or (len(random) > 1 and score < 2 * min(random) - max(random)):
        raise InvalidValueError(
            f"compress: the network must score above chance before it is pruned, got {score:.4g}, but {shown}. {cure}"
        )
    if max_drop is not None and constant and constant[0] >= score - max_drop:
        warnings.warn(
            f"compress: the search may end at a network that says one thing, because {shown}, and the network "
            f"{score:.4g}, with max_drop={max_drop:g}; lower max_drop, or choose another score.",
            UserWarning,
            stacklevel=4,
        )
    return max(others, default=float("-inf"))


def warn_of_ruin(name: str, score: float, baseline: float, chance: float, cures: str) -> None:
    """Warn of a file that keeps less than half of what the network scores above outputs that mean nothing."""
    if score - chance < (baseline - chance) / 2 and chance < baseline:
        warnings.warn(
            f"compress: the best file that fits, '{name}', scores {score:.4g}, the network {baseline:.4g} and outputs "
            f"that mean nothing {chance:.4g}; give max_drop{cures}.",
            UserWarning,
            stacklevel=4,
        )


def _scores(evaluate: Callable[[nn.Module], float], networks: list[nn.Module]) -> list[float]:
    found = []
    for network in networks:
        try:
            value = float(evaluate(network))
        except Exception:  # a metric may refuse such outputs
            continue
        found += [value] if value == value else []
    return found


class _Meaningless(nn.Module):
    """A network whose outputs do not depend on its inputs: the mean over its first batch, with noise from a seed."""

    def __init__(self, network: nn.Module, seed: int | None = None) -> None:
        super().__init__()
        self.network, self.first = network, dict[str, Tensor]()
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        output = self.network(*inputs, **named)
        return with_tensors(output, (self._instead(path, tensor) for path, tensor in tensor_paths(output)))

    def _instead(self, path: str, tensor: Tensor) -> Tensor:
        if not tensor.ndim or not len(tensor):
            return tensor
        first = self.first.setdefault(path, tensor.detach())
        if not tensor.is_floating_point():
            rows = torch.zeros(len(tensor), dtype=torch.long)
            if self.generator is not None:
                rows = torch.randint(len(first), rows.shape, generator=self.generator)
            return first[rows.to(first.device)]
        mean = first.mean(0).expand_as(tensor)
        if self.generator is None:
            return mean.clone()
        noise = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float32).to(tensor)
        return mean + first.std(correction=0) * noise

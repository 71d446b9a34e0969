"""How much of a model is pruned at each step of a training."""

from __future__ import annotations

from ..checks import check_number

__all__ = ["gradual_sparsity"]


def gradual_sparsity(step: float, total: float, sparsity: float, begin: float = 0.3, end: float = 0.8) -> float:
    r"""Share of the weights to have pruned by a step, :math:`s \, (1 - (1 - t)^3)`: it rises fast, then slowly.

    t rises from 0 to 1 between two points of the training (Zhu & Gupta 2017, "To prune, or not to prune", equation 1).

    Args:
        step: Steps or epochs done.
        total: Steps or epochs of the whole training.
        sparsity: The final share s.
        begin: Share of the training at which pruning begins.
        end: Share of the training at which the final share is reached; the rest is recovery.

    Raises:
        InvalidValueError: A value is out of range.

    Example:
        >>> [round(bensemble.recipes.gradual_sparsity(step, 100, sparsity=0.9), 2) for step in (30, 50, 80)]
        [0.0, 0.71, 0.9]
    """
    check_number("gradual_sparsity", "step", step, least=0)
    check_number("gradual_sparsity", "total", total, above=0)
    check_number("gradual_sparsity", "sparsity", sparsity, least=0, below=1)
    check_number("gradual_sparsity", "begin", begin, least=0, most=1)
    check_number("gradual_sparsity", "end", end, least=0, most=1)
    done = step / total
    if done >= max(begin, end):
        return sparsity
    if done <= begin:
        return 0.0
    return sparsity * (1 - (1 - (done - begin) / (end - begin)) ** 3)

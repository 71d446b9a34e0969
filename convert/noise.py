"""Does the noise of every posterior reach the output?

A layer whose noise is silently bypassed is the worst failure of a Bayesian network: its uncertainty is simply missing.
:func:`check_noise` gives each posterior by itself a sample while all others stay at their means, and looks whether
the output moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.batches import call
from bensemble.checks import check_module
from bensemble.errors import ConversionError, InvalidValueError
from bensemble.frames import Frame, draw_frame, open_frame
from bensemble.outputs import tensor_paths
from bensemble.posterior import Posterior, named_posteriors

from .analysis import Analysis, analyse

__all__ = ["NoiseReport", "NoiseRow", "check_noise"]


@dataclass(frozen=True)
class NoiseRow:
    """What one posterior does to the output.

    Attributes:
        name: Original name of its weight.
        change: Largest absolute change of any output when this weight alone is sampled.
        reason: Why its noise does not arrive; empty when it does.
    """

    name: str
    change: float
    reason: str = ""

    @property
    def reaches_output(self) -> bool:
        """Whether the output moved."""
        return self.change > 0.0


@dataclass(frozen=True)
class NoiseReport:
    """One row for each posterior. True where all noise arrives."""

    rows: tuple[NoiseRow, ...]

    @property
    def silent(self) -> tuple[NoiseRow, ...]:
        """The posteriors whose noise does not reach the output."""
        return tuple(row for row in self.rows if not row.reaches_output)

    def __bool__(self) -> bool:
        return not self.silent

    def __str__(self) -> str:
        arrived = len(self.rows) - len(self.silent)
        head = f"The noise of {arrived} of {len(self.rows)} posteriors reaches the output."
        return "\n".join([head, *(f"  {row.name}: {row.reason}" for row in self.silent)])


def check_noise(bnn: nn.Module, example_inputs: Any, *, generator: torch.Generator | None = None) -> NoiseReport:
    """Sample each posterior by itself and see whether the output moves, in eval mode and without gradients.

    Costs one forward for each posterior. The model, its training flags and the global random state are left alone.

    Args:
        bnn: A model with Bayesian layers.
        example_inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
        generator: Source of the noise; default is a fixed seed.

    Raises:
        InvalidTypeError: ``bnn`` is not a module.
        ConversionError: it has no Bayesian layers.
        InvalidValueError: it rejects the inputs, or its output has no floating-point tensor.

    Example:
        >>> report = check_noise(bnn, x)
        >>> assert report, report
    """
    check_module("check_noise", bnn)
    posteriors = list(named_posteriors(bnn))
    if not posteriors:
        raise ConversionError(f"check_noise: {type(bnn).__name__} has no Bayesian layers; call bayesify first.")
    generator = generator or torch.Generator().manual_seed(0)
    training = {module: module.training for module in bnn.modules()}
    try:
        bnn.eval()
        with torch.random.fork_rng(), torch.no_grad():
            sample = draw_frame(bnn, generator)
            seed = torch.initial_seed()
            mean = _outputs(bnn, example_inputs, seed)
            changes = {
                name: _difference(mean, _alone(bnn, sample, posterior, example_inputs, seed))
                for name, posterior in posteriors
            }
    finally:
        for module, flag in training.items():
            module.training = flag
    analysis = analyse("check_noise", bnn, example_inputs) if min(changes.values()) == 0.0 else Analysis()
    return NoiseReport(
        tuple(
            NoiseRow(name, changes[name], "" if changes[name] else _why_silent(name, posterior, analysis))
            for name, posterior in posteriors
        )
    )


def _alone(bnn: nn.Module, sample: Frame, posterior: Posterior, inputs: Any, seed: int) -> list[Tensor]:
    """Outputs when one posterior, at every place where it is tied, is sampled and all others are at their means."""
    assert sample.noise is not None
    held = sample.noise_of(posterior)
    noise = {key: eps if eps is held else torch.zeros_like(eps) for key, eps in sample.noise.items()}
    with open_frame(Frame(sample.layers, noise)):
        return _outputs(bnn, inputs, seed)


def _outputs(bnn: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    """All floating-point tensors of one forward, under the same randomness every time."""
    torch.manual_seed(seed)
    try:
        tensors = [tensor for _, tensor in tensor_paths(call(bnn, inputs))]
    except Exception as err:
        raise InvalidValueError(
            f"check_noise: the model rejects example_inputs ({type(err).__name__}: {err})."
        ) from err
    found = [tensor for tensor in tensors if tensor.is_floating_point()]
    if not found:
        raise InvalidValueError(
            "check_noise: the output holds no floating-point tensor, so noise cannot be seen in it."
        )
    return found


def _difference(first: list[Tensor], second: list[Tensor]) -> float:
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return float("inf")
    changes = ((a.double() - b.double()).abs().nan_to_num(0.0) for a, b in zip(first, second, strict=True))
    return max((float(change.max()) for change in changes if change.numel()), default=0.0)


def _why_silent(name: str, posterior: Posterior, analysis: Analysis) -> str:
    path = name.rpartition(".")[0]
    mask = posterior.mask
    if mask is not None and not bool(mask.any()):
        return "every weight is pruned"
    if analysis.known and not analysis.calls[path] and id(posterior.mu) not in analysis.operations:
        return "its layer is not called with these inputs"
    if not bool((posterior.sigma() > 0).any()):
        return "sigma is 0"
    return "its layer is called, but the output does not depend on the weight with these inputs"

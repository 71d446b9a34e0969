"""Does the noise of every posterior reach the output?

A layer whose noise is silently bypassed is the worst failure of a Bayesian network: its uncertainty is simply missing.
:func:`check_noise` gives each posterior by itself a sample while all others stay at their means, and looks whether
the output moves. Where it does not, the mean is moved instead: some weights a network ignores whatever they are, such
as the bias of the keys in attention, which shifts all scores of a query alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.checks import check_module
from bensemble.errors import ConversionError, InvalidValueError
from bensemble.models.outputs import tensor_paths
from bensemble.models.state import evaluating
from bensemble.models.undisturbed import Snapshot, undisturbed
from bensemble.noise.stack import HeldSample, holding, mean_mode
from bensemble.posterior import Posterior
from bensemble.posteriors import named_posteriors
from bensemble.tables import Printed

from ..planning.entries import Entry, entries
from ..planning.probe import probe_calls

__all__ = ["NoiseReport", "NoiseRow", "check_noise"]

#: How much noise a weight gets, in units of sigma, to see whether less of it is lost in the precision of the output.
FAR = 20.0
#: What rounding alone may change, in units of the precision of the output; in half precision every step is one unit.
ROUNDING, ROUNDING_HALF = 64, 2


@dataclass(frozen=True)
class NoiseRow:
    """What one posterior does to the output.

    Attributes:
        name: Original name of its weight.
        change: Largest absolute change of any output when this weight alone is sampled.
        reason: Why its noise does not arrive; empty when it does.
        ignored: Whether the network itself takes no notice: no noise is lost.
    """

    name: str
    change: float
    reason: str = ""
    ignored: bool = False

    @property
    def reaches_output(self) -> bool:
        """Whether the output moved, by more than rounding where the network ignores the weight."""
        return self.change > 0.0 and not self.ignored


@dataclass(frozen=True)
class NoiseReport(Printed):
    """One row for each posterior. True where no noise is lost: all of it arrives, or the network ignores the weight.

    Example:
        >>> lost = convert.check_noise(bnn, x).silent
    """

    rows: tuple[NoiseRow, ...]

    @property
    def silent(self) -> tuple[NoiseRow, ...]:
        """The posteriors whose noise should reach the output and does not."""
        return tuple(row for row in self.rows if not row.reaches_output and not row.ignored)

    @property
    def ignored(self) -> tuple[NoiseRow, ...]:
        """The posteriors of weights on which the output does not depend, up to rounding."""
        return tuple(row for row in self.rows if row.ignored)

    def __bool__(self) -> bool:
        return not self.silent

    def __str__(self) -> str:
        arrived = sum(row.reaches_output for row in self.rows)
        head = f"The noise of {arrived} of {len(self.rows)} posteriors reaches the output."
        return "\n".join([head, *(f"  {row.name}: {row.reason}" for row in (*self.silent, *self.ignored))])


def check_noise(
    bnn: nn.Module,
    example_inputs: Any,
    *,
    entry_points: Mapping[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> NoiseReport:
    """Sample each posterior by itself and see whether the output moves, in eval mode and without gradients.

    Costs one forward for each posterior, and up to two more where the output stays as it is. The model, its training
    flags and the global random state are left alone.

    Args:
        bnn: A model with Bayesian layers.
        example_inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments; a list for several forwards.
        entry_points: Methods that are called as well, each with its inputs: ``{"encode": x}``.
        generator: Source of the noise; default is a fixed seed.

    Raises:
        InvalidTypeError: ``bnn`` is not a module.
        ConversionError: it has no Bayesian layers.
        InvalidValueError: it rejects the inputs, or its output has no floating-point tensor.

    Example:
        >>> report = convert.check_noise(bnn, x)
        >>> assert report, report
    """
    check_module("check_noise", bnn)
    posteriors = dict(named_posteriors(bnn))
    if not posteriors:
        raise ConversionError(f"check_noise: {type(bnn).__name__} has no Bayesian layers; call bayesify first.")
    calls = entries("check_noise", bnn, example_inputs, entry_points)
    generator = generator or torch.Generator().manual_seed(0)
    reasons: dict[str, tuple[str, bool]] = {}
    with undisturbed(bnn), evaluating(bnn), mean_mode(bnn):
        trial = _Trial(bnn, calls)
        changes = {name: trial.sample(p, p.draw_noise(generator)) for name, p in posteriors.items()}
        quiet = [name for name, change in changes.items() if change <= trial.rounding]
        unread = _unread(bnn, calls, posteriors, quiet) if quiet else {}
        for name in quiet:
            noise = posteriors[name].draw_noise(generator)
            reasons[name] = _why_quiet(trial, posteriors[name], noise, changes[name], unread.get(name))
    return NoiseReport(tuple(NoiseRow(name, change, *reasons.get(name, ())) for name, change in changes.items()))


class _Trial:
    """The same calls of one model under the same random state, compared with those at the means."""

    def __init__(self, bnn: nn.Module, calls: list[Entry]) -> None:
        self.bnn, self.calls, self.seed = bnn, calls, torch.initial_seed()
        self.before = Snapshot(bnn)
        self.mean = self.outputs()
        self.rounding = max(map(_rounding, self.mean))

    def outputs(self) -> list[Tensor]:
        """The outputs of all calls, none of which leaves a trace for the next."""
        found = []
        for entry in self.calls:
            try:
                found += _outputs(self.bnn, entry, self.seed)
            finally:
                self.before.restore()
        return found

    def sample(self, posterior: Posterior, noise: Tensor) -> float:
        """How far the output moves when one posterior, wherever it is tied, is sampled."""
        places = (posterior, *posterior.ties)
        held = {(id(place.layer), place.stem): noise for place in places}
        for place in places:
            for other in place.layer._posteriors():
                held.setdefault((id(place.layer), other.stem), torch.zeros_like(other.rho))
        with holding(HeldSample({id(place.layer): place.layer for place in places}, held)):
            return _difference(self.mean, self.outputs())

    def depends_on(self, posterior: Posterior, noise: Tensor) -> bool:
        """Whether the output moves by more than rounding when the mean itself is moved."""
        with _moved(posterior, noise):
            return _difference(self.mean, self.outputs()) > self.rounding


@contextmanager
def _moved(posterior: Posterior, noise: Tensor) -> Iterator[None]:
    """The mean of one posterior moved by its own size, or by its noise where that is more; put back afterwards."""
    mu, mask = posterior.mu.data, posterior.mask
    kept, size = mu.clone(), mu.double().square().mean().sqrt()
    step = torch.maximum(FAR * posterior.sigma().double(), torch.where(size > 0, size, 1.0)) * noise
    try:
        mu.add_((step if mask is None else step * mask).to(mu.dtype))
        yield
    finally:
        mu.copy_(kept)


def _why_quiet(
    trial: _Trial, posterior: Posterior, noise: Tensor, change: float, unread: str | None
) -> tuple[str, bool]:
    """Why the noise of a posterior does not arrive, and whether that is because the network ignores the weight."""
    if posterior.mask is not None and not bool(posterior.mask.any()):
        return "every weight is pruned", False
    if unread and not trial.depends_on(posterior, noise):
        return unread, False
    if torch.equal(posterior.draw(FAR * noise), posterior.mean()):
        return "sigma is 0 to the precision of the weight", False
    if not trial.depends_on(posterior, noise):
        return "the output does not depend on this weight: with another mean it is the same up to rounding", True
    if change > 0.0:
        return "", False
    if trial.sample(posterior, FAR * noise) > 0.0:
        return f"too small for the precision of the output; {FAR:.0f} times as much arrives", True
    return "the output depends on this weight, and its noise is bypassed: code reads the mean past the layer", False


def _unread(bnn: nn.Module, calls: list[Entry], posteriors: dict[str, Posterior], names: list[str]) -> dict[str, str]:
    """Why no operation reads the weights of some of the names."""
    analysis = probe_calls("check_noise", bnn, calls)
    found = {}
    for name in names:
        path, posterior = name.rpartition(".")[0], posteriors[name]
        if not analysis.known or id(posterior.mu) in (*analysis.operations, *analysis.seen):
            continue
        found[name] = (
            "its layer is not called, not reached by these example inputs; if other calls reach it, pass them: a list "
            "of example_inputs, or entry_points={'encode': x}"
        )
        if analysis.calls[path]:
            found[name] = "its layer is called, but no operation reads this weight"
        if "forward" in vars(posterior.layer):
            found[name] += "; a forward set on the layer itself runs code of the model that it was copied from"
    return found


def _outputs(bnn: nn.Module, entry: Entry, seed: int) -> list[Tensor]:
    """All floating-point tensors of one call, under the same randomness every time."""
    torch.manual_seed(seed)
    try:
        tensors = [tensor for _, tensor in tensor_paths(entry.run(bnn))]
    except Exception as err:
        raise entry.rejected("check_noise", err) from err
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


def _rounding(output: Tensor) -> float:
    """The largest change of an output that may be rounding."""
    finite = output.double().abs().nan_to_num(0.0, posinf=0.0)
    units = ROUNDING if output.dtype in (torch.float32, torch.float64) else ROUNDING_HALF
    return units * torch.finfo(output.dtype).eps * float(finite.max()) if finite.numel() else 0.0

"""What a fit did, for reading."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FitReport", "FitRow"]


@dataclass(frozen=True)
class FitRow:
    """One fitted posterior.

    Attributes:
        name: Original parameter name.
        shape: Its shape.
        width: Standard deviation that a weight gets about which the data says nothing.
        sigma: Median standard deviation after the fit.
        snr: Median signal-to-noise ratio |mu| / sigma after the fit.
    """

    name: str
    shape: tuple[int, ...]
    width: float
    sigma: float
    snr: float


@dataclass(frozen=True)
class FitReport:
    """The result of :func:`bensemble.fit_posterior`.

    Attributes:
        curvature: ``"ggn"`` or ``"fisher"``.
        num_terms: Terms of the likelihood that the curvature sums over: examples, tokens or pixels.
        num_passes: Backward passes of the curvature.
        beta: Tempering that was chosen, or given: the weight of the KL whose optimum this posterior is.
        reach: Standard deviation that a weight gets about which the data says nothing, over the root mean square of its
            tensor.
        nll: Held-out negative log likelihood per term, in nats, of the predictive distribution; None if not measured.
        mean_nll: The same for the network at the posterior mean.
        tried: Every ``(beta, reach)`` that was tried, with its held-out NLL.
        heldout: Which data decided, and how many terms of it.
        rows: One row for each posterior.
    """

    curvature: str
    num_terms: int
    num_passes: int
    beta: float
    reach: float
    nll: float | None
    mean_nll: float | None
    tried: tuple[tuple[tuple[float, float], float], ...]
    heldout: str
    rows: tuple[FitRow, ...]

    def __str__(self) -> str:
        lines = [f"Posterior fitted by the diagonal {self.curvature.upper()} over {self.num_terms} terms"]
        if self.nll is None or self.mean_nll is None:
            lines.append(f"  beta {self.beta:.3g}, as given")
        else:
            lines.append(f"  beta {self.beta:.3g} and reach {self.reach:.3g}, chosen on {self.heldout}")
            lines.append(f"  NLL per term {self.nll:.4f}, of the mean network {self.mean_nll:.4f} nats")
        width = max([len(row.name) for row in self.rows] + [4])
        lines.append(f"  {'name':<{width}}  {'shape':<18}{'sigma':>10}{'at most':>10}{'SNR':>10}")
        shown = self.rows if len(self.rows) <= 30 else (*self.rows[:15], None, *self.rows[-14:])
        for row in shown:
            lines.append(
                f"  ... {len(self.rows) - 29} more"
                if row is None
                else f"  {row.name:<{width}}  {row.shape!s:<18}{row.sigma:>10.3g}{row.width:>10.3g}{row.snr:>10.3g}"
            )
        return "\n".join(lines)

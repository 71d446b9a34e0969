"""The result of a fit, printed as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..tables import Printed, text_table

__all__ = ["FitReport", "FitRow"]


@dataclass(frozen=True)
class FitRow:
    """One fitted posterior.

    Attributes:
        name: Original parameter name.
        shape: Shape of the weight.
        width: Sigma of a weight about which the data says nothing.
        sigma: Median sigma after the fit.
        snr: Median signal-to-noise ratio |mu| / sigma after the fit.
    """

    name: str
    shape: tuple[int, ...]
    width: float
    sigma: float
    snr: float


@dataclass(frozen=True)
class Comparison:
    """NLL per held-out term in nats of three predictions, each chosen on one half of the terms, measured on the other.

    Attributes:
        network: The network as it was.
        tempered: The network with one temperature.
        fitted: The predictive distribution of the fitted posterior.
        gain: ``tempered - fitted``: what the noise buys beyond a temperature.
        error: Standard error of ``gain``.
        last_layer: Whether the posterior is that of the last layer alone.
    """

    network: float
    tempered: float
    fitted: float
    gain: float
    error: float
    last_layer: bool

    @classmethod
    def of(cls, network: Tensor, tempered: Tensor | None, fitted: Tensor, last_layer: bool) -> Comparison | None:
        """From the NLL of every term; None where outputs are no logits, so that no temperature was measured."""
        if tempered is None:
            return None
        difference = tempered - fitted
        error = float(difference.std()) / max(difference.numel(), 1) ** 0.5 if difference.numel() > 1 else math.inf
        means = [float(terms.mean()) for terms in (network, tempered, fitted)]
        return cls(means[0], means[1], means[2], float(difference.mean()), error, last_layer)

    @property
    def verdict(self) -> str:
        """What follows, in words."""
        if self.gain > 2 * self.error:
            return "the noise predicts better than one temperature does"
        result = "worse than" if self.gain < -2 * self.error else "no better than"
        better = "an ensemble" if self.last_layer else "a last layer alone (convert.last_layer) or an ensemble"
        return (
            f"the noise predicts {result} one temperature does; {better} may predict better, and fit_novelty tells "
            "unfamiliar inputs"
        )


@dataclass(frozen=True)
class FitReport(Printed):
    """The result of :func:`bensemble.fit_posterior`.

    Attributes:
        curvature: ``"ggn"`` or ``"fisher"``.
        structure: ``"diagonal"`` or ``"kronecker"``.
        num_terms: Terms of the likelihood that the curvature sums over: examples, tokens or pixels.
        num_passes: Backward passes of the curvature.
        beta: Tempering that was chosen or given: the posterior is optimal for this weight of the KL.
        reach: Sigma of a weight about which the data says nothing, divided by the root mean square of its tensor.
        nll: Held-out negative log likelihood per term of the predictive distribution, in nats; None if not measured.
        mean_nll: The same for the network at the posterior mean.
        tried: Every candidate ``(beta, reach)`` with its held-out NLL.
        heldout: The data that beta and reach were chosen on, and its number of terms.
        rows: One row for each posterior.
        comparison: With the network and with one temperature, on held-out data; None without ``val_loader`` and for
            outputs that are no logits.
        bias_sigma: Standard deviation that the biases of a last layer got in addition, the same for all classes: what
            one temperature above 1 does. 0 where it improves nothing.

    Example:
        >>> beta = bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader).beta
    """

    curvature: str
    structure: str
    num_terms: int
    num_passes: int
    beta: float
    reach: float
    nll: float | None
    mean_nll: float | None
    tried: tuple[tuple[tuple[float, float], float], ...]
    heldout: str
    rows: tuple[FitRow, ...]
    comparison: Comparison | None = None
    bias_sigma: float = 0.0

    def __str__(self) -> str:
        lines = [f"Posterior fitted by the {self.structure} {self.curvature.upper()} over {self.num_terms} terms"]
        if self.nll is None or self.mean_nll is None:
            lines.append(f"  beta {self.beta:.3g}, as given")
        else:
            chosen = f"beta {self.beta:.3g} and reach {self.reach:.3g}"
            if self.bias_sigma:
                chosen = f"beta {self.beta:.3g}, reach {self.reach:.3g} and {self.bias_sigma:.3g} more for the biases"
            lines.append(f"  {chosen}, chosen on {self.heldout}")
            lines.append(f"  NLL per term {self.nll:.4f}, of the mean network {self.mean_nll:.4f} nats")
        if self.comparison is not None:
            found = self.comparison
            gain = f"{found.gain:.4f} +- {found.error:.4f}"
            pair = f"with one temperature {found.tempered:.4f}, fitted {found.fitted:.4f}, better by {gain}"
            lines.append(f"  chosen on one half and measured on the other: {pair};")
            lines.append(f"  {found.verdict}")
        cells = [
            (row.name, str(row.shape), f"{row.sigma:.3g}", f"{row.width:.3g}", f"{row.snr:.3g}") for row in self.rows
        ]
        if len(cells) > 30:
            cells = [*cells[:15], (f"... {len(cells) - 29} more", "", "", "", ""), *cells[-14:]]
        header = ("name", "shape", "sigma", "at most", "SNR")
        return "\n".join([*lines, *text_table([header, *cells], right=(2, 3, 4), indent="  ")])

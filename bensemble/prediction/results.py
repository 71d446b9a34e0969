r"""What a prediction says: the predictive mean over the posterior, and how uncertain it is.

For weight samples :math:`w_s` and the expected observation :math:`E[y | x, w_s]` (probabilities, or the mean of a
Gaussian), ``mean`` and ``std`` are their moments over s. The law of total variance (and the chain rule of entropy)
splits the whole uncertainty into what more data would remove and what is in the data (Depeweg et al. 2018,
"Decomposition of Uncertainty in Bayesian Deep Learning", equations 2 to 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import InvalidValueError
from ..likelihoods import DiscreteLikelihood, Likelihood
from ..tables import Printed
from .rejecting import rejected

__all__ = ["ClassPrediction", "Prediction", "RegressionPrediction"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Prediction(Printed):
    """A prediction without a likelihood: the model's raw outputs, averaged over the posterior.

    Attributes:
        mean: Predictive mean, shape (B, ...), float32 or float64.
        std: Standard deviation over the posterior, same shape; 0 for a deterministic model, nan for one sample.
        num_samples: Number of samples S.
        samples: One value per weight sample, shape (S, B, ...), whose mean is ``mean``; None when they were not kept.
        logits: The model's output for each of the samples of a prediction of classes, (S, B, ...): of a
            deterministic model always, else where the samples are kept. A temperature divides them.
        logit_mean: In closed form, the means of the Gaussian logits of each of M members, (M, B, ...).
        logit_variance: Their variances.
        likelihood: What the outputs were taken for.
        method: How the samples were made: ``"weights"``, each one function for all examples; ``"closed"``, draws of
            the outputs of a model whose last layer alone is Bayesian, with ``mean`` exact or by probit;
            ``"linearized"``, of the network that is linear in its weights; ``"deterministic"``.
        temperature: At which :class:`bensemble.Calibration` tempered the prediction; 1 as ``predict`` returns it.
        novelty: How strange each input is to the network, (B, ...), larger for stranger ones, without a unit; None
            without ``predict(novelty=)``.
        novelty_pvalue: The share of held-out familiar inputs at least as strange, in the same shape; None without.
        smallest_pvalue: The smallest p-value that an input can get.
        fingerprint: A digest of the posterior that predicted, by which a calibration knows it again; None for sharded
            models and without a likelihood.

    Example:
        >>> logits, std = bensemble.predict(bnn, x).mean, bensemble.predict(bnn, x).std
    """

    mean: Tensor
    std: Tensor
    num_samples: int
    samples: Tensor | None = None
    logits: Tensor | None = None
    logit_mean: Tensor | None = None
    logit_variance: Tensor | None = None
    likelihood: Likelihood | None = None
    method: str = "weights"
    temperature: float = 1.0
    novelty: Tensor | None = None
    novelty_pvalue: Tensor | None = None
    smallest_pvalue: float = 0.0
    fingerprint: str | None = None

    @property
    def mcse(self) -> Tensor:
        """Monte Carlo standard error of ``mean``, std / sqrt(S): what more samples would still change."""
        return torch.zeros_like(self.std) if self.method == "closed" else self.std / math.sqrt(self.num_samples)

    def quantile(self, q: float) -> Tensor:
        """The value that a share ``q`` of the samples stays below, in the shape of ``mean``.

        Raises:
            InvalidValueError: ``q`` lies outside 0..1, or the samples were not kept.
        """
        check_number("quantile", "q", q, least=0, most=1)
        if self.samples is None:
            raise InvalidValueError("quantile: the samples were not kept; call predict with keep_samples=True.")
        ordered, place = self.samples.sort(0).values, q * (len(self.samples) - 1)
        low = min(int(place), max(len(ordered) - 2, 0))
        return torch.lerp(ordered[low], ordered[min(low + 1, len(ordered) - 1)], place - low)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the central interval that holds the given share of the distribution."""
        check_number("interval", "level", level, above=0, below=1)
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def __repr__(self) -> str:
        kept = "not kept" if self.samples is None else "kept"
        lines = [
            f"{type(self).__name__}: {len(self.mean)} examples, {self.num_samples} samples ({self.method}, {kept})"
        ]
        lines += [f"  {'':<19}{'shape':<18}smallest .. mean .. largest"]
        names = (*self._shown(), *(("novelty", "novelty_pvalue") if self.novelty is not None else ()))
        rows = [(name, getattr(self, name)) for name in names]
        lines += [f"  {name:<19}{tuple(t.shape)!s:<18}{_ranges(t)}" for name, t in rows]
        return "\n".join(lines)

    def _shown(self) -> tuple[str, ...]:
        return ("mean", "std", "mcse")

    def __getattr__(self, name: str) -> Any:
        for kind, likelihood in ((ClassPrediction, "categorical"), (RegressionPrediction, "gaussian_head")):
            if not name.startswith("_") and name in dir(kind):
                raise AttributeError(
                    f"{type(self).__name__} has no '{name}', because predict was called with "
                    f"likelihood={self.likelihood!r}; pass likelihood={likelihood!r} or another that fits."
                )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ClassPrediction(Prediction):
    """A prediction of classes, or of yes and no: ``samples`` and ``mean`` are probabilities. Entropies are in nats.

    Attributes:
        expected_entropy: E H[p]: the uncertainty in the data (aleatoric), without the class axis.

    Example:
        >>> guesses, entropy = p.probs.argmax(-1), p.entropy
    """

    expected_entropy: Tensor

    @property
    def probs(self) -> Tensor:
        """Predictive probabilities, the mean over the samples."""
        return self.mean

    @property
    def entropy(self) -> Tensor:
        """H[E p]: the whole uncertainty of the prediction."""
        assert isinstance(self.likelihood, DiscreteLikelihood)
        return self.likelihood.entropy(self.mean)

    @property
    def mutual_information(self) -> Tensor:
        """H[E p] - E H[p], between prediction and weights: what more data would remove (epistemic); not negative."""
        return (self.entropy - self.expected_entropy).clamp_min(0)

    def reject(
        self,
        *,
        share: float | None = None,
        threshold: float | None = None,
        level: float | None = None,
        by: str = "entropy",
    ) -> Tensor:
        """Which predictions to hand to somebody who knows better.

        Novelty is for strangers: inputs of a kind that the network has never seen. For errors on familiar inputs the
        entropy is the better number.

        Args:
            share: Reject this share of the predictions, the most uncertain ones.
            threshold: Reject every prediction whose uncertainty exceeds this many nats; novelty has no unit.
            level: Reject every prediction whose ``novelty_pvalue`` is at most this: about this share of the familiar
                ones.
            by: ``"entropy"``, ``"mutual_information"``, ``"expected_entropy"`` or ``"novelty"``.

        Returns:
            Boolean tensor in the shape of ``entropy``, True where rejected.

        Raises:
            InvalidValueError: Not exactly one of ``share``, ``threshold`` and ``level``, or a value out of range.

        Example:
            >>> sure = ~p.reject(share=0.1)
            >>> novelty = bensemble.fit_novelty(bnn, loader, val_loader)
            >>> p = bensemble.predict(bnn, images, likelihood="categorical", novelty=novelty)
            >>> strangers = p.reject(by="novelty", level=0.01)
        """
        measures = ("entropy", "mutual_information", "expected_entropy")
        return rejected(self, measures, by, share, threshold, level)

    def _shown(self) -> tuple[str, ...]:
        return ("probs", "std", "mcse", "entropy", "expected_entropy", "mutual_information")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RegressionPrediction(Prediction):
    """A prediction with Gaussian noise: ``samples`` and ``mean`` are the mean of the Gaussian.

    Attributes:
        noise_variance: Variance of the noise, the mean over the samples, shape of ``mean``.
        noise_samples: Variance of the noise for each weight sample, (S, B, ...); None when samples were not kept.

    Example:
        >>> r = bensemble.predict(nn.Linear(1, 2), torch.rand(9, 1), likelihood="gaussian_head")
        >>> low, high = r.interval(0.9)
    """

    noise_variance: Tensor
    noise_samples: Tensor | None = None

    @property
    def epistemic_std(self) -> Tensor:
        """Standard deviation of the mean over the posterior: what more data would remove. The same as ``std``."""
        return self.std

    @property
    def noise_std(self) -> Tensor:
        """Standard deviation of the noise in the data, root of its mean variance."""
        return self.noise_variance.sqrt()

    @property
    def total_std(self) -> Tensor:
        """Standard deviation of a new observation: sqrt(epistemic_std^2 + noise_std^2)."""
        return (self.std.square() + self.noise_variance).sqrt()

    def quantile(self, q: float) -> Tensor:
        r"""Quantile of a new observation, in the shape of ``mean``.

        The predictive distribution is a mixture of one Gaussian per weight sample; its quantile is found by bisection
        of :math:`\frac1S\sum_s\Phi((y - m_s)/\sigma_s)`. Where samples were not kept it is that of a normal with
        ``mean`` and ``total_std``.

        Raises:
            InvalidValueError: ``q`` is not within 0..1, both excluded.
        """
        check_number("quantile", "q", q, above=0, below=1)
        z = math.sqrt(2) * float(torch.special.erfinv(torch.tensor(2 * q - 1, dtype=torch.float64)))
        if self.samples is None or self.noise_samples is None:
            return self.mean + z * self.total_std
        sigma = self.noise_samples.sqrt()
        parts = self.samples + z * sigma  # the quantiles of the components enclose that of the mixture
        low, high = parts.amin(0), parts.amax(0)
        for _ in range(50):
            middle = (low + high) / 2
            below = torch.special.ndtr((middle - self.samples) / sigma).mean(0) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def reject(
        self,
        *,
        share: float | None = None,
        threshold: float | None = None,
        level: float | None = None,
        by: str = "total_std",
    ) -> Tensor:
        """Which predictions to hand to somebody who knows better; see :meth:`ClassPrediction.reject`.

        Args:
            share: Reject this share of the predictions, the most uncertain ones.
            threshold: Reject every prediction whose uncertainty exceeds this, in the units of the target.
            level: Reject every prediction whose ``novelty_pvalue`` is at most this.
            by: ``"total_std"``, ``"epistemic_std"``, ``"noise_std"`` or ``"novelty"``.
        """
        return rejected(self, ("total_std", "epistemic_std", "noise_std"), by, share, threshold, level)

    def _shown(self) -> tuple[str, ...]:
        return ("mean", "epistemic_std", "noise_std", "total_std", "mcse")


def _ranges(tensor: Tensor) -> str:
    """Smallest, mean and largest value, for printing."""
    if not tensor.numel():
        return "empty"
    return f"{tensor.min():.4g} .. {tensor.mean():.4g} .. {tensor.max():.4g}"

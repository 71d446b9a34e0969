r"""A posterior for a trained network without training it: sigma from the curvature at the trained weights.

Around an optimum the posterior that minimises ``elbo_loss(nll, kl, num_data, beta)`` with a prior N(0, s^2) is, to
second order and for fixed means,

.. math:: \sigma_i^2 = \Big(\frac{1}{\beta}\sum_n h_{n,i} + \frac{1}{s^2}\Big)^{-1}

with :math:`h_{n,i}` the diagonal curvature of term n (the Laplace approximation; MacKay 1992, Daxberger et al. 2021).
s is the root mean square of each tensor times a reach of at most 1, so a weight that the data says nothing about
spreads at most over the size of its peers. beta and reach are what the data allows: a diagonal posterior leaves out
the correlations that hold a network together, so at beta = 1 it is far too wide; and the weights of a dead unit have no
curvature, though a step of their size would wake it. The values with the best held-out likelihood are taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checks import check_count, check_module, check_number
from ..errors import InvalidTypeError, InvalidValueError
from ..gaussian import precise, rho_from_sigma
from ..likelihoods import Likelihood, resolve
from ..models.batches import Unpack, batch_size, device_of, split_batch
from ..models.outputs import OutputSelector
from ..models.sharding import check_in_one_process
from ..models.state import evaluating
from ..posterior import Posterior, named_posteriors
from .curvature import diagonal_curvature
from .fit_report import FitReport, FitRow
from .heldout import best_scale, heldout_terms, largest_scale

__all__ = ["fit_posterior"]

#: Examples of the training loader that choose beta and reach where no held-out loader is given, and the likelihood in
#: nats per term that the noise may cost there.
OWN_EXAMPLES = 1000
ALLOWANCE = 0.002

_log = logging.getLogger("bensemble")


def fit_posterior(
    bnn: nn.Module,
    loader: Iterable[Any],
    *,
    likelihood: Likelihood | str,
    curvature: str = "ggn",
    val_loader: Iterable[Any] | None = None,
    beta: float | None = None,
    num_samples: int = 10,
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> FitReport:
    """Fit every sigma of a Bayesian model to data in one pass; the means stay where they are.

    The model is in evaluation mode meanwhile and gets every training flag back. If anything fails, its sigmas are what
    they were. See the text above for the formula.

    Args:
        bnn: A Bayesian model at trained weights.
        loader: The training data, read once.
        likelihood: What the outputs mean, such as ``"categorical"``.
        curvature: ``"ggn"``, the generalised Gauss-Newton matrix, which needs no targets; or ``"fisher"``, the
            empirical Fisher, which takes the targets as they are and gets small where the network fits them well.
        val_loader: Held-out data with targets, held in memory, that chooses ``beta`` and reach. Without it the first
            examples of ``loader`` do; the network has seen those, so the noise comes out rather too small than too
            large.
        beta: Take this tempering, with a reach of 1, and look at no targets; smaller gives a narrower posterior.
        num_samples: Weight samples for each candidate of ``beta`` and reach.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)`` for the batches of both loaders.
        generator: Source of all randomness. With it, torch's global random state is left as it was; without it the
            fit follows ``torch.manual_seed``.
        progress: Called with (batches done, batches in all or None) during the pass over the data.

    Returns:
        A :class:`FitReport`, which prints as a table.

    Raises:
        InvalidTypeError, InvalidValueError: An argument that cannot work, a model without posteriors, an empty loader,
            targets that are missing or do not fit, or values that are not finite.

    Example:
        >>> report = bensemble.fit_posterior(bnn, train_loader, likelihood="categorical", val_loader=val_loader)
        >>> print(report)
    """
    resolved, generator = _checked(bnn, likelihood, curvature, beta, num_samples, generator)
    for name, given in (("loader", loader), ("val_loader", val_loader)):
        if isinstance(given, (Tensor, tuple, Mapping, Dataset)):
            raise InvalidTypeError(
                f"fit_posterior: {name} must give batches, got {type(given).__name__}; wrap the data in a DataLoader, "
                "or pass a list of batches."
            )
    posteriors = dict(named_posteriors(bnn))
    widths = {name: _width(posterior) for name, posterior in posteriors.items()}
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))  # a DataLoader draws a seed whenever it starts
        stack.enter_context(evaluating(bnn))
        stack.enter_context(_restored_on_failure(posteriors))
        batches = _Recorder(loader, unpack, OWN_EXAMPLES if val_loader is None and beta is None else 0)
        with _means_require_grad(posteriors), torch.enable_grad():
            found = diagonal_curvature(
                bnn, batches, resolved, curvature, output=output, generator=generator, progress=progress
            )
        nll = mean_nll = None
        tried: dict[tuple[float, float], float] = {}
        reach = 1.0
        heldout = "nothing, beta was given"
        if beta is None:
            pairs = batches.recorded if val_loader is None else [split_batch(batch, unpack) for batch in val_loader]
            _check_pairs(pairs)
            mean_terms = heldout_terms(bnn, pairs, resolved, output)

            def evaluate(beta: float, reach: float) -> Tensor:
                _set_sigmas(posteriors, found.values, widths, beta, reach)
                terms = heldout_terms(bnn, pairs, resolved, output, num_samples, seed)
                mean = float(terms.mean())
                _log.debug("fit_posterior: beta %.3g, reach %.3g give a held-out NLL of %.5f", beta, reach, mean)
                return terms

            if val_loader is not None:
                beta, reach, tried = best_scale(evaluate, mean_terms)
                heldout = f"{mean_terms.numel()} held-out terms"
            else:
                beta, reach, tried = largest_scale(evaluate, mean_terms, ALLOWANCE)
                heldout = f"{mean_terms.numel()} training terms, at a cost of at most {ALLOWANCE:g} nats each"
            nll, mean_nll = tried[beta, reach], float(mean_terms.mean())
        _set_sigmas(posteriors, found.values, widths, beta, reach)
    rows = tuple(_row(name, posterior, widths[name] * reach) for name, posterior in posteriors.items())
    return FitReport(
        curvature, found.num_terms, found.num_passes, beta, reach, nll, mean_nll, tuple(tried.items()), heldout, rows
    )


class _Recorder:
    """The pairs of a loader, of which the first examples are kept while they pass by."""

    def __init__(self, loader: Iterable[Any], unpack: Unpack | None, examples: int) -> None:
        self._loader, self._unpack, self._room = loader, unpack, examples
        self.recorded: list[tuple[Any, Any]] = []
        self.num_batches = len(loader) if isinstance(loader, Sized) else None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self._loader:
            pair = split_batch(batch, self._unpack)
            if self._room > 0:
                self.recorded.append(pair)
                self._room -= batch_size(pair[0])
            yield pair


def _checked(
    bnn: nn.Module,
    likelihood: Likelihood | str | None,
    curvature: str,
    beta: float | None,
    num_samples: int,
    generator: torch.Generator | None,
) -> tuple[Likelihood, torch.Generator]:
    """The likelihood and the source of randomness, after every argument was looked at."""
    check_module("fit_posterior", bnn)
    if next(iter(named_posteriors(bnn)), None) is None:
        raise InvalidValueError(
            f"fit_posterior: {type(bnn).__name__} has no posteriors, got a deterministic model; call convert.bayesify."
        )
    check_in_one_process("fit_posterior", bnn)
    resolved = resolve(likelihood)
    if resolved is None:
        raise InvalidValueError("fit_posterior: likelihood must say what the outputs mean, got None.")
    if curvature not in ("ggn", "fisher"):
        raise InvalidValueError(f"fit_posterior: curvature must be 'ggn' or 'fisher', got {curvature!r}.")
    if beta is not None:
        check_number("fit_posterior", "beta", beta, above=0)
    check_count("fit_posterior", "num_samples", num_samples)
    if generator is None:
        generator = torch.Generator(device_of(bnn)).manual_seed(int(torch.randint(2**62, ())))
    if not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"fit_posterior: generator must be a torch.Generator, got {generator!r}.")
    return resolved, generator


def _check_pairs(pairs: list[tuple[Any, Any]]) -> None:
    """Raise unless there is held-out data, with targets."""
    if not pairs:
        raise InvalidValueError("fit_posterior: val_loader must give at least one batch, got none.")
    if any(target is None for _, target in pairs):
        raise InvalidValueError(
            "fit_posterior: choosing beta needs targets, got a batch without; pass unpack= or val_loader=, or beta."
        )


@torch.no_grad()
def _width(posterior: Posterior) -> float:
    """Root mean square of the weights that are kept; where all are 0 the largest of the layer, else 1e-3."""

    def root_mean_square(p: Posterior) -> float:
        kept = p.mu.numel() if p.mask is None else max(int(p.mask.sum()), 1)
        return float((precise(p.mean()).square().sum() / kept).sqrt())

    return root_mean_square(posterior) or max(map(root_mean_square, posterior.layer._posteriors())) or 1e-3


@torch.no_grad()
def _set_sigmas(
    posteriors: dict[str, Posterior], curvature: dict[str, Tensor], widths: dict[str, float], beta: float, reach: float
) -> None:
    """sigma^2 = 1 / (h / beta + 1 / s^2), in place."""
    for name, posterior in posteriors.items():
        precision = curvature[name].double() / beta + (widths[name] * reach) ** -2
        posterior.rho.copy_(rho_from_sigma(precision.rsqrt()))


@contextmanager
def _means_require_grad(posteriors: dict[str, Posterior]) -> Iterator[None]:
    """Frozen means take part in the curvature too."""
    flags = [(posterior.mu, posterior.mu.requires_grad) for posterior in posteriors.values()]
    try:
        for mu, _ in flags:
            mu.requires_grad_(True)
        yield
    finally:
        for mu, flag in flags:
            mu.requires_grad_(flag)


@contextmanager
def _restored_on_failure(posteriors: dict[str, Posterior]) -> Iterator[None]:
    """Put every rho back when the body fails."""
    before = {name: posterior.rho.detach().clone() for name, posterior in posteriors.items()}
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, posterior in posteriors.items():
                posterior.rho.copy_(before[name])
        raise


@torch.no_grad()
def _row(name: str, posterior: Posterior, width: float) -> FitRow:
    sigma, ratio = posterior.sigma().median(), posterior.snr().median()
    return FitRow(name, tuple(posterior.mu.shape), width, float(sigma), float(ratio))

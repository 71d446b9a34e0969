r"""A posterior for a trained network without training it: sigma from the curvature at the trained weights.

Around an optimum the posterior that minimises ``elbo_loss(nll, kl, num_data, beta)`` with a prior N(0, s^2) is, to
second order and for fixed means,

.. math:: \sigma_i^2 = \Big(\frac{1}{\beta}\sum_n h_{n,i} + \frac{1}{s^2}\Big)^{-1}

with :math:`h_{n,i}` the diagonal curvature of term n (the Laplace approximation; MacKay 1992, Daxberger et al. 2021).
s is the root mean square of each tensor times the reach, a factor of at most 1 where weights are sampled: it limits
sigma for weights about which the data says nothing. beta and reach are chosen by held-out likelihood. At beta = 1 a
diagonal posterior is far too wide, because it leaves out the correlations between weights. The weights of a dead unit
have no curvature, but a step of their own size would activate the unit: that is what the reach is for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..basis import Basis
from ..checks import check_count, check_number, check_takes
from ..errors import InvalidTypeError, InvalidValueError
from ..likelihoods import Likelihood, required
from ..models.batches import Unpack, batch_size, device_of, same_data, split_batch
from ..models.outputs import OutputSelector
from ..models.ranks import failing_together, from_every_process, num_processes, own_rank
from ..models.sharding import holds_shards, is_sharded
from ..models.state import evaluating, unwrapped
from ..posterior import Posterior
from ..posteriors import check_bayesian, named_posteriors
from ..prediction.monte_carlo import trust
from .candidates import Candidates
from .comparison import crossed, tempered_terms
from .curvature import diagonal_curvature
from .fit_report import Comparison, FitReport, FitRow
from .kronecker import check_structure, kronecker_curvature
from .scale_search import best_scale, largest_scale, scanned_scale
from .sigmas import restored_on_failure, set_sigmas, width

__all__ = ["fit_posterior"]

#: Number of training examples that choose beta and reach if no held-out loader is given.
OWN_EXAMPLES = 1000
#: Likelihood that the noise may cost on these examples, in nats per term.
ALLOWANCE = 0.002


def fit_posterior(
    bnn: nn.Module,
    loader: Iterable[Any],
    *,
    likelihood: Likelihood | str,
    curvature: str = "ggn",
    structure: str = "auto",
    val_loader: Iterable[Any] | None = None,
    beta: float | None = None,
    num_samples: int = 10,
    batch_dim: int | None = None,
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> FitReport:
    """Fit every sigma of a Bayesian model to data in one pass; the means do not change.

    The model is in evaluation mode during the fit; every training flag is restored. If the fit fails, the sigmas are
    unchanged. The formula is at the top of this module.

    With torch.distributed every process calls this, reads its own share of both loaders, and gets the posterior of all
    the data. For a last layer of at most 64 outputs it is that of one process; the random signs of other fits differ.
    Of a sharded model (``fully_shard``) the last layer can be fitted, if its own weights are not sharded.

    Args:
        bnn: A Bayesian model at trained weights, or its data parallel wrapper.
        loader: The training data, read once.
        likelihood: What the outputs mean, such as ``"categorical"``.
        curvature: ``"ggn"``, the generalised Gauss-Newton matrix, needs no targets. ``"fisher"``, the empirical
            Fisher, uses the targets and becomes small where the network fits them well.
        structure: ``"diagonal"``; ``"kronecker"``, for Linear layers and 1x1 convolutions, a posterior that is
            diagonal in the eigenbasis of the Kronecker-factored curvature; ``"auto"``, the latter where the posterior
            is that of one last layer, see ``convert.last_layer``.
        val_loader: Held-out data with targets, kept in memory, to choose ``beta`` and reach. Default: the first
            examples of ``loader``. The network was trained on these, so sigma is more likely too small than too large.
        beta: Use this tempering with a reach of 1 and ignore the targets. A smaller beta gives a narrower posterior.
        num_samples: Weight samples for each candidate of ``beta`` and reach.
        batch_dim: The axis of inputs and targets that counts the examples, such as 1 for a recurrent network that takes
            time first. Default: found by comparing outputs and slopes of a batch with those of its pieces; a batch that
            cannot be cut is taken whole.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)`` for the batches of both loaders.
        generator: Source of all randomness; torch's global random state then stays unchanged. Default: a generator
            seeded from torch's global random state.
        progress: Called with (batches done, total number of batches or None) during the pass over the data.

    Returns:
        A :class:`FitReport`, which prints as a table.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work, the model has no posteriors, a loader is empty,
            targets are missing or do not fit, or values are not finite.

    Example:
        >>> print(bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader))
    """
    resolved, generator = _checked(bnn, likelihood, curvature, beta, num_samples, generator)
    bnn = unwrapped(bnn)
    for name, given in (("loader", loader), ("val_loader", val_loader)):
        if isinstance(given, (Tensor, tuple, Mapping, Dataset)):
            raise InvalidTypeError(
                f"fit_posterior: {name} must give batches, got {type(given).__name__}; wrap the data in a DataLoader, "
                "or pass a list of batches."
            )
    if val_loader is not None and same_data(loader, val_loader):
        warnings.warn(
            "fit_posterior: val_loader is the training data itself, on which the network is sure, so sigma comes out "
            "too small; hold some data out, or leave val_loader out.",
            UserWarning,
            stacklevel=2,
        )
    if progress is not None:
        check_takes("fit_posterior", "progress", progress, "done", "total")
    if batch_dim is not None:
        check_count("fit_posterior", "batch_dim", batch_dim, least=0)
    posteriors = dict(named_posteriors(bnn))
    kronecker = check_structure(structure, bnn, curvature)
    widths = {name: width(posterior, kronecker) for name, posterior in posteriors.items()}
    if holds_shards(bnn):
        _check_shards(posteriors, kronecker)
    seed, generator = _shared(generator)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))  # a DataLoader draws a seed when it starts
        stack.enter_context(evaluating(bnn))
        stack.enter_context(restored_on_failure(posteriors))
        recorded: list[tuple[Any, Any]] = []
        kept = OWN_EXAMPLES // num_processes() if val_loader is None and beta is None else 0
        batches = _recording(loader, unpack, kept, recorded, bnn)
        with _means_require_grad(posteriors), torch.enable_grad():
            options: dict[str, Any] = {
                "num_batches": len(loader) if isinstance(loader, Sized) else None,
                "output": output, "generator": generator, "progress": progress,
            }  # fmt: skip
            bases: dict[str, Basis] = {}
            if kronecker:
                found, bases = kronecker_curvature(bnn, batches, resolved, **options)
            else:
                with failing_together("fit_posterior"):
                    found = diagonal_curvature(bnn, batches, resolved, curvature, batch_dim=batch_dim, **options)
                found = found.over_processes()
        for name, posterior in posteriors.items():
            posterior.set_basis(bases.get(name))
        nll = mean_nll = comparison = None
        tried: dict[tuple[float, float], float] = {}
        reach, bias_sigma = 1.0, 0.0
        heldout = "nothing, beta was given"
        if beta is None:
            pairs = recorded if val_loader is None else [split_batch(batch, unpack, bnn) for batch in val_loader]
            candidates = Candidates(
                bnn, pairs, resolved, output, partial(set_sigmas, posteriors, found.values, widths), num_samples, seed
            )
            mean_terms, closed = candidates.mean_terms, candidates.closed
            if val_loader is not None:
                if closed is None:
                    beta, reach, tried = best_scale(candidates, mean_terms)
                else:
                    beta, reach, bias_sigma, tried = scanned_scale(candidates, closed.has_bias)
                heldout = f"{mean_terms.numel()} held-out terms"
                tempered = tempered_terms(bnn, pairs, resolved, output)
                comparison = Comparison.of(mean_terms, tempered, crossed(candidates.terms), closed is not None)
            else:
                beta, reach, tried = largest_scale(candidates, mean_terms, ALLOWANCE)
                heldout = f"{mean_terms.numel()} training terms, at a cost of at most {ALLOWANCE:g} nats each"
            nll, mean_nll = tried[beta, reach], float(mean_terms.mean())
        set_sigmas(posteriors, found.values, widths, beta, reach, bias_sigma)
    trust(bnn)
    rows = tuple(_row(name, posterior, widths[name] * reach) for name, posterior in posteriors.items())
    return FitReport(
        curvature, "kronecker" if kronecker else "diagonal", found.num_terms, found.num_passes, beta, reach,
        nll, mean_nll, tuple(tried.items()), heldout, rows, comparison, bias_sigma,
    )  # fmt: skip


def _recording(
    loader: Iterable[Any], unpack: Unpack | None, examples: int, recorded: list[tuple[Any, Any]], model: nn.Module
) -> Iterator[tuple[Any, Any]]:
    """The batches of a loader as inputs and target; batches with the first examples are also added to ``recorded``."""
    for batch in loader:
        pair = split_batch(batch, unpack, model)
        if examples > 0:
            recorded.append(pair)
            examples -= batch_size(pair)  # the inputs may be an object
        yield pair


def _checked(
    bnn: nn.Module,
    likelihood: Likelihood | str | None,
    curvature: str,
    beta: float | None,
    num_samples: int,
    generator: torch.Generator | None,
) -> tuple[Likelihood, torch.Generator]:
    """The likelihood and the source of randomness, after all arguments are checked."""
    check_bayesian("fit_posterior", bnn)
    resolved = required("fit_posterior", likelihood)
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


def _check_shards(posteriors: dict[str, Posterior], kronecker: bool) -> None:
    """A slope through shards would gather them; those of a last layer end before them."""
    inside = [name for name, p in posteriors.items() if is_sharded(p.mu) or not getattr(p.layer, "is_last", False)]
    if inside or not kronecker:
        name = next(iter(inside or posteriors))
        raise InvalidValueError(
            "fit_posterior: of a sharded model a last layer that is not sharded itself can be fitted, in its Kronecker "
            f"factors, got '{name}'; shard the trunk alone, or save the model and fit it in a plain one."
        )


def _shared(generator: torch.Generator) -> tuple[int, torch.Generator]:
    """One seed for all processes, and a generator for each, of which the first one's is the user's."""
    own = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    seed, rank = from_every_process(own)[0], own_rank()
    return seed, torch.Generator(generator.device).manual_seed(seed + rank) if rank else generator


@contextmanager
def _means_require_grad(posteriors: dict[str, Posterior]) -> Iterator[None]:
    """Let all means require gradients, also frozen ones; the flags are restored."""
    flags = [(posterior.mu, posterior.mu.requires_grad) for posterior in posteriors.values()]
    try:
        for mu, _ in flags:
            mu.requires_grad_(True)
        yield
    finally:
        for mu, flag in flags:
            mu.requires_grad_(flag)


@torch.no_grad()
def _row(name: str, posterior: Posterior, width: float) -> FitRow:
    sigma, ratio = posterior.sigma().median(), posterior.snr().median()
    return FitRow(name, tuple(posterior.mu.shape), width, float(sigma), float(ratio))

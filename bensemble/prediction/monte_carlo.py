"""Predict by weight samples: each sample is one function, the same for every example of every batch.

Local reparameterization would be cheaper and wrong in general: it draws the noise of a convolution or a sequence at
every position anew, which averages it away. So prediction holds weights, and runs batch by batch, sample by sample.
What comes before the first sampled weight is computed once (:mod:`bensemble.prediction.prefix`).
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_count, check_module, check_takes
from ..errors import InvalidTypeError, InvalidValueError
from ..fingerprints import posterior_fingerprint
from ..likelihoods import Likelihood, resolve
from ..models.batches import Inputs, Unpack, check_finite_inputs, is_loader, is_shuffled, split_batch
from ..models.forwards import naming_batch
from ..models.outputs import OutputSelector, describe
from ..models.sharding import whole
from ..models.state import evaluating, unwrapped
from ..posteriors import named_posteriors
from .chunks import Chunks
from .closed import ClosedForm, closed_form, mixture
from .ensembles import Member, memory_errors
from .gathering import RunningMoments, assemble
from .results import ClassPrediction, Prediction, RegressionPrediction
from .strangers import InputNovelty, NoveltyLike, bound_novelty

__all__ = ["ClassPrediction", "Prediction", "RegressionPrediction", "predict", "trust"]

_trusted: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.no_grad()
def predict(
    model: nn.Module | Sequence[nn.Module],
    inputs: Inputs | Iterable[Any],
    num_samples: int = 30,
    *,
    likelihood: Likelihood | str | None = None,
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    keep_samples: bool | None = None,
    chunk_size: int | None = None,
    novelty: NoveltyLike | Sequence[NoveltyLike] | None = None,
    linearize: bool = False,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Prediction:
    """The predictive distribution of a Bayesian model, or of an ensemble, by Monte Carlo over the weights.

    The model runs in evaluation mode without gradients, and gets every training flag back. A loader is read once.

    Args:
        model: A Bayesian model; a plain one, which gives one sample; or a sequence of them as an ensemble, where
            Bayesian members give ``num_samples`` samples each.
        inputs: A tensor, tuple or mapping for one call, or a loader, whose targets are ignored.
        num_samples: Weight samples S.
        likelihood: What the outputs mean, such as ``"categorical"``; None for raw outputs.
        output: Which part of a structured output: a key, an index or a callable.
        unpack: ``callable(batch) -> (inputs, target)`` for a loader's batches.
        keep_samples: Whether the prediction carries the samples; default for the inputs of one call, not for a loader.
        chunk_size: Most examples, along axis 0, in one forward; default the whole input, or the loader's batch. What
            gives other outputs in chunks stays whole: time first, graphs, batch statistics.
        novelty: What :func:`bensemble.fit_novelty` returned for this network, plain or Bayesian; for an ensemble a
            list, one for each member. The prediction then has ``novelty`` and ``novelty_pvalue``: in closed form from
            the same forward, else at the cost of one more of each member.
        linearize: Take the samples of the network that is linear in its weights around the means, by forward-mode
            derivatives, at about three times the cost: for a posterior of many layers that was fitted without
            training, above all in regression. Without effect where the prediction has a closed form.
        generator: Source of the noise. With it, the same call gives the same samples, and torch's global random state
            is left as it was. Without it the noise follows ``torch.manual_seed``, and the global state advances.
        progress: Called with (forwards done, forwards in all or None) after each forward.

    Returns:
        A :class:`Prediction`; a :class:`ClassPrediction` for Categorical and Bernoulli, a
        :class:`RegressionPrediction` for the Gaussians. On the model's device for one call, on the CPU for a loader.

    Raises:
        InvalidTypeError: An argument has the wrong type.
        InvalidValueError: Inputs or outputs that are not finite (a mask may hold -inf), outputs that cannot be what
            ``likelihood`` says, or do not fit together; an operation that cannot be linearized.
        OutOfMemoryError: A forward does not fit into memory; ``chunk_size`` bounds it.

    Example:
        >>> p = bensemble.predict(bnn, x, likelihood="categorical")
        >>> probs, entropy, epistemic = p.probs, p.entropy, p.mutual_information
    """
    models = _as_models(model)
    loader = is_loader(inputs)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"predict: generator must be a torch.Generator, got {generator!r}.")
    check_count("predict", "num_samples", num_samples)
    if chunk_size is not None:
        check_count("predict", "chunk_size", chunk_size)
    if progress is not None:
        check_takes("predict", "progress", progress, "done", "total")
    if loader and is_shuffled(inputs):
        warnings.warn(
            "predict: the loader shuffles, so the predictions are in another order than its data set and do not fit "
            "targets that are; pass shuffle=False.",
            stacklevel=3,
        )
    resolved = resolve(likelihood)
    strangeness = bound_novelty(novelty, models)
    keep = (not loader) if keep_samples is None else keep_samples
    for member in models:
        _warn_if_untouched(member)
    with ExitStack() as stack:
        stack.enter_context(evaluating(*models))
        if generator is not None:
            # A DataLoader draws a seed from the global generator whenever it starts.
            stack.enter_context(torch.random.fork_rng(devices=[]))
        several = loader or chunk_size is not None
        forms = [closed_form(member, resolved) for member in models]
        members = [Member(member, num_samples, generator, several, linearize) for member in models]
        if len({member.bayesian for member in members}) > 1:
            raise InvalidValueError(
                "predict: an ensemble must be all Bayesian or all deterministic, got both; bayesify the rest."
            )
        num_samples = sum(member.count for member in members)
        count = len(models) if all(forms) else num_samples
        batches: Iterable[Any] = (split_batch(b, unpack, models[0])[0] for b in inputs) if loader else [inputs]
        chunks = Chunks(models, chunk_size, output)
        pieces: Iterable[Inputs] = (chunk for batch in _finite(batches) for chunk in chunks.of(batch))
        if not loader:
            pieces = list(pieces)
        known = pieces if not loader else inputs if chunk_size is None else None
        forwards = _Forwards(progress, count, len(known) if isinstance(known, Sized) else None)
        parts = []
        for index, piece in enumerate(pieces):
            part = _predict_closed(forms, piece, index, output, keep, strangeness) if all(forms) else None
            if part is None:
                forms = [None]
                part = _predict_piece(members, piece, output, resolved, keep, forwards)
                _check_finite(part, index)
            else:
                forwards.count(len(models))
            if strangeness is not None and "novelty" not in part:
                part["novelty"] = strangeness.score(piece)
            parts.append({name: tensor.cpu() for name, tensor in part.items()} if loader else part)
    if all(forms):
        draws = sum(form.num_draws for form in forms if form is not None)
        prediction = assemble(parts, resolved, draws, "closed")
    else:
        prediction = assemble(parts, resolved, num_samples, min(member.method for member in members))
    if resolved is not None:
        prediction = replace(prediction, fingerprint=posterior_fingerprint(models))
    if strangeness is None or prediction.novelty is None:
        return prediction
    pvalue, smallest = strangeness.pvalue(prediction.novelty), strangeness.smallest_pvalue
    return replace(prediction, novelty_pvalue=pvalue, smallest_pvalue=smallest)


def _finite(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """The batches, each one checked."""
    for index, batch in enumerate(batches):
        check_finite_inputs("predict", batch, index)
        yield batch


class _Forwards:
    """Counts forward passes for a progress display."""

    def __init__(self, report: Callable[[int, int | None], None] | None, samples: int, pieces: int | None) -> None:
        self._report, self._done = report, 0
        self._total = None if pieces is None else samples * pieces

    def count(self, forwards: int = 1) -> None:
        """So many more forwards are done."""
        self._done += forwards
        if self._report is not None:
            self._report(self._done, self._total)


def _predict_piece(
    members: list[Member],
    piece: Inputs,
    output: OutputSelector | None,
    likelihood: Likelihood | None,
    keep: bool,
    forwards: _Forwards,
) -> dict[str, Tensor]:
    """The moments of one batch over every sample of every member."""
    moments = RunningMoments(likelihood, keep, keep_logits=keep or sum(member.count for member in members) == 1)
    for member in members:
        for raw in member.outputs(piece, output):
            moments.add(raw.to(members[0].device))
            forwards.count()
    return moments.result()


def _predict_closed(
    forms: list[ClosedForm | None],
    piece: Inputs,
    index: int,
    output: OutputSelector | None,
    keep: bool,
    strangeness: InputNovelty | None,
) -> dict[str, Tensor] | None:
    """The same in closed form, checked, and then the novelty; None if the outputs are not those of the last layer."""
    parts, means = [], []
    with ExitStack() as stack:
        score = None if strangeness is None else stack.enter_context(strangeness.listening(piece, output))
        for form in forms:
            assert form is not None
            with memory_errors(piece), naming_batch("predict", form.model, piece):
                recorded = form.record(piece, output)
            if recorded is None:
                return None
            means.append(recorded.mean)
            parts.append(form.outputs(recorded).prediction(form.likelihood, keep))
    found = mixture(parts)
    _check_finite(found, index)  # an output that is not finite has no score either
    return found if score is None else found | {"novelty": score(means)}


def _check_finite(found: dict[str, Tensor], index: int) -> None:
    for name in ("mean", "spread"):
        broken = ~found.get(name, found["mean"]).isfinite()
        if bool(broken.any()):
            what = "outputs" if name == "mean" else "the noise that the outputs hold"
            raise InvalidValueError(
                f"predict: {what} must be finite, got {int(broken.sum())} of {broken.numel()} values that are not, in "
                f"batch {index}; look at the inputs, at sigma and at half precision."
            )


def _as_models(model: Any) -> list[nn.Module]:
    """The members of the ensemble."""
    if isinstance(model, nn.Module) and not isinstance(model, nn.ModuleList):
        return [model]
    if not isinstance(model, (Sequence, nn.ModuleList)) or isinstance(model, str) or not len(model):
        raise InvalidTypeError(
            f"predict: model must be a torch.nn.Module or a sequence of them, got {describe(model)}."
        )
    return [check_module("predict", member) for member in model]


def trust(model: nn.Module) -> None:
    """Do not warn of this model: its posterior was fitted or set, also where every sigma came out the same."""
    _trusted.add(unwrapped(model))


def _warn_if_untouched(model: nn.Module) -> None:
    """Warn once per model whose posterior is still as it was made: every tensor of rho is one constant."""
    rhos = [posterior.rho for _, posterior in named_posteriors(model) if posterior.rho.numel() > 1]
    if not rhos or unwrapped(model) in _trusted or not all(_is_one_constant(rho) for rho in rhos):
        return
    trust(model)
    warnings.warn(
        "predict: the posterior is neither trained nor fitted, so the uncertainty is only that of init_sigma; "
        "call bensemble.fit_posterior or train with the ELBO.",
        stacklevel=4,
    )


def _is_one_constant(rho: Tensor) -> bool:
    values = whole(rho).flatten()
    return bool((values == values[0]).all())

"""``fit_novelty``: one pass over training data for Gaussians in feature space, one over held-out data for p-values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..checks import check_count, check_module
from ..errors import InvalidTypeError
from ..likelihoods import Likelihood, required
from ..models.batches import Unpack, same_data
from ..models.outputs import OutputSelector
from ..models.ranks import from_every_process
from ..models.state import unwrapped
from .classes import kind_of
from .passes import NoveltyFit, Progress
from .scoring import Novelty

__all__ = ["fit_novelty"]


@torch.no_grad()
def fit_novelty(
    model: nn.Module,
    loader: Iterable[Any],
    val_loader: Iterable[Any],
    *,
    likelihood: Likelihood | str = "categorical",
    layers: str | Sequence[str] = "all",
    projection: int | None = 128,
    joint: bool = True,
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Novelty:
    """Learn what inputs a trained network knows, to tell strangers from familiar inputs; the model does not change.

    The score is the relative Mahalanobis distance of the features of all layers (Ren et al. 2021) plus the energy of
    the logits (Liu et al. 2020); see :class:`Novelty`. The training data is read once, for a regression twice. Features
    are summed up batch by batch and never stored. Under torch.distributed all processes must call this, each with its
    own share of both loaders; the result is that of one process with all data.

    Args:
        model: A trained model, plain or Bayesian; of a Bayesian one the posterior means are used.
        loader: The training data with targets. Classes are those of the targets: of ``Bernoulli`` the label sets, of a
            regression ten bins of the target with equally many examples each.
        val_loader: Held-out data that the network was not trained on. Positions with the likelihood's ``ignore_index``
            are left out where there are targets.
        likelihood: What the outputs mean, such as ``"categorical"``.
        layers: ``"all"``: the pre-activations of every Linear, convolution and attention but the last one called. Or
            the paths of modules, whose outputs are taken.
        projection: Leading directions of the features that are kept, beside as many of the class means; outside of
            them one variance serves all. More than four times as many features are summed into that number first, with
            fixed random signs. None keeps all, which costs memory and time with the square of their number.
        joint: One Gaussian over the features of all layers. False: one for each layer, each projected for itself, and
            the sum of their standardised distances; it misses more strangers where layers differ in what they tell.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)`` for the batches of both loaders.
        generator: Source of the projection's seed; without it the seed is 0. The global random state is not used.
        progress: Called with (batches done, total number of batches or None).

    Returns:
        A :class:`Novelty`, bound to the model.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work; a loader is empty; the training data has no
            targets or one class only; there are no layers; features are not finite.

    Example:
        >>> novelty = bensemble.fit_novelty(model, loader, val_loader)
        >>> strange = novelty.pvalue(novelty.score(x)) <= 0.01
    """
    inner = unwrapped(check_module("fit_novelty", model))
    resolved = required("fit_novelty", likelihood)
    kind = kind_of(resolved)
    for name, given in (("loader", loader), ("val_loader", val_loader)):
        _check_loader(name, given, twice=kind == "regression" and name == "loader")
    if projection is not None:
        check_count("fit_novelty", "projection", projection)
    if not isinstance(joint, bool):
        raise InvalidTypeError(f"fit_novelty: joint must be True or False, got {joint!r}.")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InvalidTypeError(f"fit_novelty: generator must be a torch.Generator, got {generator!r}.")
    if same_data(loader, val_loader):
        warnings.warn(
            "fit_novelty: val_loader is the training data itself, which the network knows better than any new input, "
            "so p-values come out too small; hold some data out.",
            UserWarning,
            stacklevel=2,
        )
    own = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
    fit = NoveltyFit(inner, resolved, layers, projection, joint, from_every_process(own)[0], output, unpack)
    done = Progress(progress, loader, val_loader)
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed when it starts
        fit.learn(loader, fit.edges(loader) if kind == "regression" else None, done)
        return fit.finish(val_loader, done)


def _check_loader(name: str, given: Any, twice: bool) -> None:
    if isinstance(given, (Tensor, tuple, str, Mapping, Dataset)) or not isinstance(given, Iterable):
        raise InvalidTypeError(
            f"fit_novelty: {name} must give batches, got {type(given).__name__}; wrap the data in a DataLoader, or "
            "pass a list of batches."
        )
    if twice and iter(given) is given:
        raise InvalidTypeError(
            f"fit_novelty: {name} of a regression is read twice, for its bins and for its features, got "
            f"{type(given).__name__}, which can be read once; pass a DataLoader or a list of batches."
        )

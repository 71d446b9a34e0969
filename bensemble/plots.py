"""Plots of uncertainty with matplotlib, which is imported when a plot is drawn.

Each function takes one thing, several in a list, or several by name. It draws into ``axes=`` or a new figure, and
returns the axes; ``axes.figure.savefig("picture.svg")`` writes the picture. New figures have colours that can be told
apart by the colour-blind (Okabe & Ito 2008, "Color Universal Design"); a second call with the same axes takes the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from .calibration.rejection import RejectionCurve
from .checks import check_count, check_module
from .errors import InvalidTypeError, InvalidValueError, needs_extra, one_line
from .likelihoods.base import check_same_shape
from .models.outputs import describe
from .objective import quantiles
from .posteriors import named_posteriors
from .prediction.results import ClassPrediction, Prediction, RegressionPrediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["coverage", "labelled", "on_axes", "rejection", "reliability", "set_sizes", "snr", "uncertainties"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_T = TypeVar("_T")
#: One of something, several, or several by name.
Named: TypeAlias = _T | Sequence[_T] | Mapping[str, _T]


def reliability(
    probs: Named[Tensor | ClassPrediction],
    targets: Tensor,
    *,
    bins: int = 15,
    least: int = 5,
    colours: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Reliability diagram: accuracy over confidence; a calibrated model is on the diagonal.

    Args:
        probs: Probabilities (N, C), or the prediction that has them; several by the name of the model.
        targets: The classes, shape (N,).
        bins: Number of bins of confidence, all of the same width.
        least: Bins with fewer examples are left out, because their accuracy is too uncertain.
        colours: A colour by the name of the model.
        axes: Axes to draw into.

    Example:
        >>> bensemble.plots.reliability(p, labels).figure.savefig("reliability.svg")
    """
    check_count("reliability", "bins", bins)
    if colours is not None and not isinstance(colours, Mapping):
        raise InvalidTypeError(f"reliability: colours must map names to colours, got {colours!r}.")
    truth, tables = _tensor("reliability", "targets", targets), dict[str, Tensor]()
    for name, given in _named("reliability", "probs", probs).items():
        table = _tensor("reliability", "probs", given.probs if isinstance(given, ClassPrediction) else given)
        if table.ndim != 2 or not bool(((table >= 0) & (table <= 1 + 1e-4)).all()):
            raise InvalidValueError(
                f"reliability: probs must be probabilities of the shape (N, C), got {describe(table)} with "
                f"{int((~((table >= 0) & (table <= 1 + 1e-4))).sum())} values outside 0..1; take those of predict."
            )
        if truth.shape != table.shape[:1] or truth.is_floating_point():
            raise InvalidValueError(
                f"reliability: targets must be the class numbers of the {len(table)} examples, got {describe(truth)}."
            )
        tables[name] = table
    axes = on_axes(axes)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for name, table in tables.items():
        confidence, guess = table.max(-1)
        place = (confidence * bins).long().clamp_max(bins - 1)
        counts = torch.bincount(place, minlength=bins)
        right = torch.bincount(place, (guess == truth).double(), bins)
        said = torch.bincount(place, confidence.double(), bins)
        full = counts >= max(least, 1)
        colour = None if colours is None else colours.get(name)
        axes.plot(said[full] / counts[full], right[full] / counts[full], "o-", ms=4, color=colour, label=name or None)
    return labelled(axes, "confidence", "accuracy")


def rejection(curves: Named[RejectionCurve], *, axes: Axes | None = None) -> Axes:
    """Risk over the share of predictions kept, from :func:`bensemble.rejection_curve`; several by name of the model.

    Example:
        >>> axes = bensemble.plots.rejection(bensemble.rejection_curve(p, labels))
    """
    named = _named("rejection", "curves", curves, RejectionCurve, "rejection_curve(prediction, targets)")
    axes = on_axes(axes)
    for name, curve in named.items():
        label = f"by {curve.by.replace('_', ' ')}"
        axes.plot(100 * curve.kept.cpu(), curve.risk.cpu(), label=f"{name}, {label}" if name else label)
    return labelled(axes, "kept, %", "risk")


def uncertainties(
    predictions: Named[Prediction], *, by: str | None = None, bins: int = 30, axes: Axes | None = None
) -> Axes:
    """Histograms of one uncertainty by the name of the data, such as familiar and unfamiliar data.

    Args:
        predictions: Predictions of the same model.
        by: ``"entropy"``, ``"mutual_information"``, ``"total_std"`` or any other attribute of a prediction; default
            the entropy of classes, the ``total_std`` of a regression, and ``std`` without a likelihood.
        bins: Number of bins over the range of all data.
        axes: Axes to draw into.

    Example:
        >>> noise = bensemble.predict(bnn, torch.rand_like(images), likelihood="categorical")
        >>> axes = bensemble.plots.uncertainties({"digits": p, "noise": noise})
    """
    check_count("uncertainties", "bins", bins)
    named = _named("uncertainties", "predictions", predictions, Prediction, "predict(...)")
    if by is None:
        kinds = {ClassPrediction: "entropy", RegressionPrediction: "total_std"}
        by = kinds.get(type(next(iter(named.values()))), "std")
    values = dict[str, Tensor]()
    for name, prediction in named.items():
        found = getattr(prediction, str(by), None)
        if not isinstance(found, Tensor):
            raise InvalidValueError(
                f"uncertainties: by must be an uncertainty that each prediction has, got {by!r} for a "
                f"{type(prediction).__name__}; call predict with a likelihood, or choose another."
            )
        values[name] = found.flatten().cpu()
    axes = on_axes(axes)
    everything = torch.cat(list(values.values()))
    least = min(float(everything.min()), 0.0)  # a novelty may be negative
    most = max(float(everything.max()), 0.0) or 1.0
    for name, found in values.items():
        weights = torch.full_like(found, 1 / len(found))
        axes.hist(found, bins=bins, range=(least, most), weights=weights, alpha=0.6, label=name or None)
    return labelled(axes, by.replace("_", " "), "share")


def set_sizes(sets: Named[Tensor], *, axes: Axes | None = None) -> Axes:
    """Sizes of conformal sets, from ``Calibration.prediction_set`` (.., C); several by the name of the data.

    Example:
        >>> axes = bensemble.plots.set_sizes(calibration.prediction_set(p))
    """
    named = {name: _tensor("set_sizes", "sets", given) for name, given in _named("set_sizes", "sets", sets).items()}
    for members in named.values():
        if members.dtype != torch.bool or not members.ndim or not members.numel():
            raise InvalidTypeError(
                f"set_sizes: sets must say of each class whether it is in the set, got {describe(members)}; "
                "take what Calibration.prediction_set(prediction) gives."
            )
    axes = on_axes(axes)
    for number, (name, members) in enumerate(named.items()):
        sizes = members.sum(-1).flatten()
        shares = torch.bincount(sizes, minlength=members.shape[-1] + 1) / len(sizes)
        width = 0.8 / len(named)
        places = torch.arange(len(shares)) + (number + 0.5) * width - 0.4
        axes.bar(places.tolist(), shares.tolist(), width, label=name or None)
    return labelled(axes, "classes in the set", "share")


def coverage(
    predictions: Named[RegressionPrediction], targets: Tensor, *, points: int = 19, axes: Axes | None = None
) -> Axes:
    """Share of targets inside the interval of a nominal level; a calibrated model is on the diagonal.

    Args:
        predictions: Predictions of the same data by the name of the model.
        targets: The truth, in the shape of ``mean``.
        points: Number of levels between 0 and 1.
        axes: Axes to draw into.

    Example:
        >>> r = bensemble.predict(nn.Linear(1, 2), torch.rand(9, 1), likelihood="gaussian_head")
        >>> axes = bensemble.plots.coverage(r, targets=torch.rand(9, 1))
    """
    check_count("coverage", "points", points)
    truth = _tensor("coverage", "targets", targets)
    source = "predict(..., likelihood='gaussian_head' or Gaussian(sigma))"
    named = _named("coverage", "predictions", predictions, RegressionPrediction, source)
    for prediction in named.values():
        check_same_shape("coverage", prediction.mean, truth)
    axes = on_axes(axes)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    levels = [(i + 1) / (points + 1) for i in range(points)]
    for name, prediction in named.items():
        truth, found = truth.to(prediction.mean.device), []
        for level in levels:
            low, high = prediction.interval(level)
            found.append(float(((low <= truth) & (truth <= high)).float().mean()))
        axes.plot(levels, found, "o-", ms=3, label=name or None)
    return labelled(axes, "nominal level", "share inside")


def snr(model: nn.Module, *, axes: Axes | None = None) -> Axes:
    """Signal-to-noise ratios of the weights of each posterior: the median, and the range of 90 % of them.

    Args:
        model: A Bayesian model; weights that are pruned are left out.
        axes: Axes to draw into.

    Example:
        >>> axes = bensemble.plots.snr(bnn)
    """
    named = dict(named_posteriors(check_module("snr", model)))
    if not named:
        raise InvalidValueError(f"snr: a {type(model).__name__} had no posteriors; draw that of its Bayesian version.")
    axes = on_axes(axes)
    for number, posterior in enumerate(named.values()):
        found = posterior.snr().detach().flatten().float().cpu()
        kept = found if posterior.mask is None else found[posterior.mask.flatten().cpu().bool()]
        low, middle, high = quantiles(kept, (0.05, 0.5, 0.95))
        axes.plot([low, high], [number, number], color=COLOURS[0], linewidth=3, alpha=0.4, solid_capstyle="butt")
        axes.plot([middle], [number], "o", color=COLOURS[0], ms=4)
    axes.set_yticks(range(len(named)), list(named))
    axes.invert_yaxis()
    axes.set_xscale("log")
    return labelled(axes, "|mu| / sigma", "")


def on_axes(axes: Axes | None) -> Axes:
    """The given axes, or those of a new figure; without pyplot, which has global state."""
    with needs_extra("plots", "plots"):
        from matplotlib.axes import Axes as AnyAxes
        from matplotlib.figure import Figure

    if axes is None:
        axes = Figure(figsize=(5.2, 3.6), dpi=110, layout="constrained").subplots()
        axes.set_prop_cycle(color=COLOURS)
        return axes
    if not isinstance(axes, AnyAxes):
        raise InvalidTypeError(
            f"plots: axes must be axes of matplotlib, got {describe(axes)}; take one of figure.subplots()."
        )
    return axes


def _named(verb: str, what: str, given: Any, kind: type = object, source: str = "") -> dict[str, Any]:
    """What to draw by its name: of a mapping its keys, of a list the numbers, and no name for a single one."""
    found = dict(given) if isinstance(given, Mapping) else {"": given}
    if isinstance(given, (list, tuple)):
        found = {str(number): one for number, one in enumerate(given, 1)}
    if not found:
        raise InvalidValueError(f"{verb}: {what} must hold at least one, got none.")
    for name, one in found.items():
        if not isinstance(one, kind):
            place = f" under {name!r}" if name else ""
            raise InvalidTypeError(f"{verb}: {what} must come from {source}, got {describe(one)}{place}.")
    return found


def _tensor(verb: str, what: str, value: Any) -> Tensor:
    """A tensor on the CPU, from what torch.as_tensor takes."""
    try:
        return torch.as_tensor(value).detach().cpu()
    except Exception as err:
        raise InvalidTypeError(f"{verb}: {what} must be tensors, got {describe(value)} ({one_line(err)}).") from err


def labelled(axes: Axes, x: str, y: str) -> Axes:
    """The axes with names, a legend where there is something to tell apart, and no frame."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return axes

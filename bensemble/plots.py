"""Plots of uncertainty with matplotlib, which is imported when a plot is drawn.

Each function draws into ``axes=``, or into a new figure, and returns the axes; ``axes.figure.savefig("picture.png")``
writes the picture. Colours come from matplotlib's cycle, so a second call with the same axes uses other colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .calibration.rejection import RejectionCurve
from .errors import InvalidTypeError
from .prediction.results import Prediction, RegressionPrediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["coverage", "rejection", "reliability", "set_sizes", "uncertainties"]


def reliability(
    probs: Mapping[str, Tensor],
    targets: Tensor,
    *,
    bins: int = 15,
    least: int = 5,
    colours: Mapping[str, str] | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Reliability diagram: accuracy over confidence; a calibrated model is on the diagonal.

    Args:
        probs: Probabilities (N, C) by the name of the model.
        targets: The classes, shape (N,).
        bins: Number of bins of confidence, all of the same width.
        least: Bins with fewer examples are left out, because their accuracy is too uncertain.
        colours: A colour by the name of the model.
        axes: Axes to draw into.
    """
    axes = _axes(axes)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for name, table in probs.items():
        confidence, guess = table.cpu().max(-1)
        place = (confidence * bins).long().clamp_max(bins - 1)
        counts = torch.bincount(place, minlength=bins)
        right = torch.bincount(place, (guess == targets.cpu()).double(), bins)
        said = torch.bincount(place, confidence.double(), bins)
        full = counts >= max(least, 1)
        colour = None if colours is None else colours[name]
        axes.plot(said[full] / counts[full], right[full] / counts[full], "o-", ms=4, color=colour, label=name)
    return _labelled(axes, "confidence", "accuracy")


def rejection(curves: Mapping[str, RejectionCurve], *, axes: Axes | None = None) -> Axes:
    """Risk over the share of predictions kept, from :func:`bensemble.rejection_curve`, by the name of the model."""
    axes = _axes(axes)
    for name, curve in curves.items():
        axes.plot(100 * curve.kept.cpu(), curve.risk.cpu(), label=f"{name}, by {curve.by.replace('_', ' ')}")
    return _labelled(axes, "kept, %", "risk")


def uncertainties(
    predictions: Mapping[str, Prediction], *, by: str = "entropy", bins: int = 30, axes: Axes | None = None
) -> Axes:
    """Histograms of one uncertainty by the name of the data, such as familiar and unfamiliar data.

    Args:
        predictions: Predictions of the same model.
        by: ``"entropy"``, ``"mutual_information"``, ``"total_std"`` or any other attribute of a prediction.
        bins: Number of bins over the range of all data.
        axes: Axes to draw into.
    """
    axes = _axes(axes)
    values = {name: getattr(prediction, by).flatten().cpu() for name, prediction in predictions.items()}
    most = max((float(found.max()) for found in values.values()), default=1.0) or 1.0
    for name, found in values.items():
        weights = torch.full_like(found, 1 / len(found))
        axes.hist(found, bins=bins, range=(0, most), weights=weights, alpha=0.6, label=name)
    return _labelled(axes, by.replace("_", " "), "share")


def set_sizes(sets: Mapping[str, Tensor], *, axes: Axes | None = None) -> Axes:
    """Sizes of conformal sets, from ``Calibration.prediction_set`` (.., C), by the name of the data."""
    axes = _axes(axes)
    for number, (name, members) in enumerate(sets.items()):
        sizes = members.sum(-1).flatten().cpu()
        shares = torch.bincount(sizes, minlength=members.shape[-1] + 1) / len(sizes)
        width = 0.8 / len(sets)
        places = torch.arange(len(shares)) + (number + 0.5) * width - 0.4
        axes.bar(places.tolist(), shares.tolist(), width, label=name)
    return _labelled(axes, "classes in the set", "share")


def coverage(
    predictions: Mapping[str, RegressionPrediction], targets: Tensor, *, points: int = 19, axes: Axes | None = None
) -> Axes:
    """Share of targets inside the interval of a nominal level; a calibrated model is on the diagonal.

    Args:
        predictions: Predictions of the same data by the name of the model.
        targets: The truth, in the shape of ``mean``.
        points: Number of levels between 0 and 1.
        axes: Axes to draw into.
    """
    axes = _axes(axes)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    levels = [(i + 1) / (points + 1) for i in range(points)]
    for name, prediction in predictions.items():
        if not isinstance(prediction, RegressionPrediction):
            raise InvalidTypeError(
                f"coverage: '{name}' must be the prediction of a regression, got {type(prediction).__name__}; "
                "pass likelihood='gaussian_head' or Gaussian(sigma) to predict."
            )
        truth, found = targets.to(prediction.mean.device), []
        for level in levels:
            low, high = prediction.interval(level)
            found.append(float(((low <= truth) & (truth <= high)).float().mean()))
        axes.plot(levels, found, "o-", ms=3, label=name)
    return _labelled(axes, "nominal level", "share inside")


def _axes(axes: Axes | None) -> Axes:
    """The given axes, or those of a new figure; without pyplot, which has global state."""
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=(5.2, 3.6), dpi=110, layout="constrained").subplots()


def _labelled(axes: Axes, x: str, y: str) -> Axes:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return axes

"""The pictures of the demo, each drawn into a matplotlib figure of its own, or into a part of the overview."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from bensemble import plots

from .contest import BINS, entropy

__all__ = ["accuracy_against_sparsity", "entropies", "gallery", "overview", "reliability", "snr_histograms"]

#: One colour for each network, in every picture.
COLOURS = {"deterministic": "#7d8590", "Bayesian": "#2563eb", "pruned": "#e0701a"}

#: Images (N, 1, H, W) and their probabilities (N, C), by the name of the row.
Rows = Mapping[str, tuple[Tensor, Tensor]]
#: (sparsity, accuracy) by the name of the way of choosing weights.
Curves = Mapping[str, Sequence[tuple[float, float]]]


def new_figure(width: float, height: float) -> Figure:
    """A figure without pyplot, so that no backend and no global state is involved."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def snr_histograms(ratios: Mapping[str, Tensor], threshold: float) -> Figure:
    """One histogram of log10 |mu| / sigma for each weight tensor; what lies left of the line can go."""
    figure = new_figure(2.6 * len(ratios), 2.6)
    axes = figure.subplots(1, len(ratios), sharex=True, squeeze=False)[0]
    for axis, (name, ratio) in zip(axes, ratios.items(), strict=True):
        logs = ratio.flatten().clamp_min(1e-4).log10()
        axis.hist(logs, bins=40, range=(-4, 2.5), color=COLOURS["pruned"], alpha=0.85)
        axis.axvline(torch.tensor(threshold).log10(), color="black", linewidth=1)
        share = float((ratio > threshold).float().mean())
        axis.set_title(f"{name}\n{ratio.numel():,} weights, {share:.1%} stay", fontsize=9)
        axis.set_xlabel("signal to noise", fontsize=9)
        axis.set_xticks([-4, -2, 0, 2], ["0.0001", "0.01", "1", "100"])
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


def accuracy_against_sparsity(figure: FigureBase, curves: Curves, chosen: tuple[float, float]) -> Axes:
    """Accuracy over the share of weights removed, with a circle where the threshold of the demo lies."""
    axis: Axes = figure.subplots()
    for (name, points), network in zip(curves.items(), ("pruned", "deterministic"), strict=True):
        shares, accuracies = 100 * torch.tensor(points, dtype=torch.float64).T
        axis.plot(shares, accuracies, "o-", ms=3, color=COLOURS[network], label=name)
    axis.plot(100 * chosen[0], 100 * chosen[1], "o", ms=9, mfc="none", mec="black", label="threshold 0.83")
    _label(axis, "weights removed, %", "accuracy, %")
    axis.legend(frameon=False, loc="lower left", fontsize=9)
    return axis


def reliability(probs: Mapping[str, Tensor], digits: Tensor) -> Figure:
    """How often a network is right when it says how sure it is; on the diagonal it keeps its word.

    Confidences that fewer than five images have are left out above, and counted below.
    """
    figure = new_figure(5.2, 3.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    plots.reliability(probs, digits, bins=BINS, colours=COLOURS, axes=top).set_xlabel("")
    for name, p in probs.items():
        counts = torch.bincount((p.amax(-1) * BINS).long().clamp_max(BINS - 1), minlength=BINS)
        bottom.plot((torch.arange(BINS) + 0.5) / BINS, counts, "o-", ms=3, color=COLOURS[name])
    bottom.set_yscale("symlog")
    _label(bottom, "confidence", "images")
    return figure


def entropies(figure: FigureBase, probs: Mapping[str, tuple[Tensor, Tensor]]) -> Sequence[Axes]:
    """How unsure each network is about digits, and about photographs."""
    axes: Sequence[Axes] = figure.subplots(1, len(probs), sharey=True, squeeze=False)[0]
    for axis, (name, (familiar, unfamiliar)) in zip(axes, probs.items(), strict=True):
        for p, label, colour in ((familiar, "digits", COLOURS[name]), (unfamiliar, "photographs", "#c026a3")):
            weights = torch.full((len(p),), 1 / len(p))
            axis.hist(entropy(p), bins=30, range=(0, 2.31), weights=weights, alpha=0.6, color=colour, label=label)
        axis.set_title(name, fontsize=10)
        _label(axis, "entropy, nats")
        axis.legend(frameon=False, fontsize=9)
    return axes


def gallery(figure: FigureBase, rows: Rows, columns: int) -> None:
    """Images with what the Bayesian network takes them for, and how unsure it is."""
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, (images, probs)) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, image, p in zip(line, images, probs, strict=False):
            axis.imshow(image[0].numpy(), cmap="gray")
            guess, unsure = int(p.argmax()), float(entropy(p))
            words = f"{guess}{'?' if unsure > 0.5 else ''}  {unsure:.2f}"
            axis.text(0.5, -0.06, words, transform=axis.transAxes, ha="center", va="top", fontsize=8)
        line[0].set_title(name, loc="left", fontsize=9).set_in_layout(False)  # it may be wider than its image


def overview(rows: Rows, probs: tuple[Tensor, Tensor], curves: Curves, chosen: tuple[float, float]) -> Figure:
    """The whole story in one picture: images with their uncertainty, two histograms, one curve."""
    figure = new_figure(11, 3.4)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.25, 1, 1], squeeze=False)[0]
    gallery(left, rows, 4)
    entropies(middle, {"Bayesian": probs})[0].set_title("It knows what it does not know", fontsize=10)
    title = "and works without most of its weights"
    accuracy_against_sparsity(right, curves, chosen).set_title(title, fontsize=10)
    return figure


def _label(axis: Axes, x: str, y: str = "") -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)

"""The pictures of the demo, each a matplotlib figure made from tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from bensemble import plots

from .metrics import BINS, entropy

__all__ = ["COLOURS", "accuracy_against_sparsity", "entropies", "gallery", "overview", "reliability", "snr_histograms"]

#: One colour for each network, in every picture.
COLOURS = {"deterministic": "#7d8590", "Bayesian": "#2563eb", "pruned": "#e0701a"}
_STYLE = {"spines.right": False, "spines.top": False}


def snr_histograms(ratios: Mapping[str, Tensor], threshold: float) -> Figure:
    """One histogram of log10 |mu| / sigma for each weight tensor; what lies left of the line can go.

    Args:
        ratios: Signal-to-noise ratios by name of the weight tensor.
        threshold: Where pruning cuts.
    """
    figure = _figure(2.6 * len(ratios), 2.6)
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


def accuracy_against_sparsity(
    curves: Mapping[str, Sequence[tuple[float, float]]], chosen: tuple[float, float]
) -> Figure:
    """Accuracy over the share of weights removed.

    Args:
        curves: (sparsity, accuracy) by the name of the way of choosing weights.
        chosen: Where the threshold of the demo lies.
    """
    figure = _figure(5.2, 3.4)
    _draw_sparsity(figure.subplots(), curves, chosen)
    return figure


def reliability(probs: Mapping[str, Tensor], digits: Tensor) -> Figure:
    """How often a network is right when it says how sure it is; on the diagonal it keeps its word.

    Confidences that fewer than five images have are left out above, and counted below.

    Args:
        probs: Predicted probabilities by network.
        digits: The truth.
    """
    figure = _figure(5.2, 3.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    plots.reliability(probs, digits, bins=BINS, colours=COLOURS, axes=top).set_xlabel("")
    for name, p in probs.items():
        counts = torch.bincount((p.amax(-1) * BINS).long().clamp_max(BINS - 1), minlength=BINS)
        bottom.plot((torch.arange(BINS) + 0.5) / BINS, counts, "o-", ms=3, color=COLOURS[name])
    bottom.set_yscale("symlog")
    bottom.set_ylabel("images")
    bottom.set_xlabel("confidence")
    bottom.spines[["top", "right"]].set_visible(False)
    return figure


def entropies(familiar: Mapping[str, Tensor], unfamiliar: Mapping[str, Tensor]) -> Figure:
    """How unsure each network is about digits, and about photographs.

    Args:
        familiar: Probabilities for digits by network.
        unfamiliar: Probabilities for photographs by network.
    """
    figure = _figure(7.8, 2.6)
    axes = figure.subplots(1, len(familiar), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, familiar, strict=True):
        _draw_entropies(axis, name, familiar[name], unfamiliar[name])
    axes[0].set_ylabel("share of images")
    return figure


def gallery(rows: Mapping[str, tuple[Tensor, Tensor]], columns: int = 10) -> Figure:
    """Images with what the Bayesian network takes them for, and how unsure it is.

    Args:
        rows: Images (N, 1, H, W) and their probabilities (N, C), by the name of the row.
        columns: Images in a row.
    """
    figure = _figure(1.05 * columns, 1.5 * len(rows))
    _draw_gallery(figure.subplots(len(rows), columns, squeeze=False), rows)
    return figure


def overview(
    rows: Mapping[str, tuple[Tensor, Tensor]],
    familiar: Tensor,
    unfamiliar: Tensor,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    chosen: tuple[float, float],
) -> Figure:
    """The whole story in one picture: images with their uncertainty, two histograms, one curve."""
    figure = _figure(11, 3.4)
    left, middle, right = figure.subfigures(1, 3, width_ratios=[1.25, 1, 1], squeeze=False)[0]
    _draw_gallery(left.subplots(len(rows), 4, squeeze=False), rows)
    axis = middle.subplots()
    _draw_entropies(axis, "Bayesian", familiar, unfamiliar)
    axis.set_title("It knows what it does not know", fontsize=10)
    axis = right.subplots()
    _draw_sparsity(axis, curves, chosen)
    axis.set_title("and works without most of its weights", fontsize=10)
    return figure


def _figure(width: float, height: float) -> Figure:
    """A figure without pyplot, so that no backend and no global state is involved."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _draw_sparsity(
    axis: Axes, curves: Mapping[str, Sequence[tuple[float, float]]], chosen: tuple[float, float]
) -> None:
    colours = [COLOURS["pruned"], COLOURS["deterministic"]]
    for (name, points), colour in zip(curves.items(), colours, strict=False):
        axis.plot([100 * s for s, _ in points], [100 * a for _, a in points], "o-", ms=3, color=colour, label=name)
    axis.plot(100 * chosen[0], 100 * chosen[1], "o", ms=9, mfc="none", mec="black", label="threshold 0.83")
    axis.set_xlabel("weights removed, %")
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False, loc="lower left", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_entropies(axis: Axes, name: str, familiar: Tensor, unfamiliar: Tensor) -> None:
    for probs, label, colour in ((familiar, "digits", COLOURS[name]), (unfamiliar, "photographs", "#c026a3")):
        values = entropy(probs)
        weights = torch.full_like(values, 1 / len(values))
        axis.hist(values, bins=30, range=(0, 2.31), weights=weights, alpha=0.6, color=colour, label=label)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("entropy, nats")
    axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_gallery(axes: Any, rows: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for line, (name, (images, probs)) in zip(axes, rows.items(), strict=True):
        for number, axis in enumerate(line):
            axis.axis("off")
            if number < len(images):
                axis.imshow(images[number, 0].numpy(), cmap="gray")
                guess, unsure = int(probs[number].argmax()), float(entropy(probs[number]))
                axis.text(
                    0.5,
                    -0.06,
                    f"{guess}?  {unsure:.2f}" if unsure > 0.5 else f"{guess}  {unsure:.2f}",
                    transform=axis.transAxes,
                    ha="center",
                    va="top",
                    fontsize=8,
                )
        line[0].set_title(name, loc="left", fontsize=9).set_in_layout(False)  # it may be wider than its image

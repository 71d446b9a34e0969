"""The pictures of the demo: images as PNG, diagrams as SVG in the colours of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib import image as png
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["curves", "diagram", "embedded", "histograms"]

#: Stands for the colour of the page's text, which is not the same by day and by night.
INK = "#010203"
COLOURS = ("#3b82f6", "#e8710a")


def embedded(image: Tensor) -> str:
    """A gray image (1, H, W), from 0 to 1, as the address of a PNG inside the page."""
    buffer = io.BytesIO()
    png.imsave(buffer, image[0].numpy(), cmap="gray", vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def histograms(values: Mapping[str, Tensor], threshold: float, unit: str) -> Figure:
    """Shares of images over one number by what they are; what lies right of the line is refused."""
    figure, axis = _figure(unit, "share of images")
    low, high = (float(f([f(v) for v in values.values()])) for f in (min, max))
    for (name, numbers), colour in zip(values.items(), COLOURS, strict=True):
        weights = [1 / len(numbers)] * len(numbers)
        axis.hist(numbers, bins=30, range=(low, high), weights=weights, alpha=0.7, color=colour, label=name)
    axis.axvline(threshold, color=INK, linewidth=1, linestyle="--")
    axis.legend(frameon=False, labelcolor=INK)
    return figure


def curves(points: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> Figure:
    """Lines through shares, in percent."""
    figure, axis = _figure(x, y)
    for (name, line), colour in zip(points.items(), COLOURS[::-1], strict=True):
        shares, values = zip(*line, strict=True)
        axis.plot([100 * x for x in shares], [100 * y for y in values], "o-", ms=4, color=colour, label=name)
    axis.legend(frameon=False, labelcolor=INK, loc="lower left")
    axis.set_ylim(0, 102)
    return figure


def diagram(figure: Figure) -> str:
    """A figure as SVG to stand in the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": figure.axes[0].get_xlabel()}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(INK, "currentColor")


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    """A figure without pyplot, so that no backend and no global state is involved."""
    figure = Figure(figsize=(4.6, 3), layout="constrained")
    axis: Axes = figure.subplots()
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    axis.tick_params(colors=INK)
    axis.spines[:].set_color(INK)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis

"""How cost grows: a training step against width, depth and batch, prediction against samples, and a billion parameters.

A line, fixed cost plus cost per unit, is fitted to each curve by relative least squares; its largest deviation tells
linear growth from any other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import Case, Trainer, mlp
from rounds import interleave, peak_memory, print_table, write_json
from torch import nn

import bensemble
from convert import bayesify

WIDTHS, DEPTHS, BATCHES = (128, 256, 512, 1024, 2048), (1, 2, 4, 8, 16), (16, 32, 64, 128, 256, 512)
SAMPLES = (4, 8, 16, 32, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="image of the curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = {
        "weights": [(784 * w + w * w, *steps(mlp(784, w, w), 128, options.rounds)) for w in WIDTHS],
        "layers": [(d, *steps(mlp(*[512] * (d + 1)), 128, options.rounds)) for d in DEPTHS],
        "batch": [(b, *steps(mlp(784, 512, 512), b, options.rounds)) for b in BATCHES],
        "samples of a prediction": [(s, *predictions(s, options.rounds)) for s in SAMPLES],
    }
    figures = {name: [dict(zip(FIELDS, point, strict=True)) for point in points] for name, points in curves.items()}
    rows = []
    for name, points in figures.items():
        first, last = points[0], points[-1]
        rows.append([name, f"{first['size']:,} .. {last['size']:,}", described(points, "seconds", 1e3, "ms")])
        rows[-1] += [described(points, "memory", 2**-20, "MiB"), f"{first['ratio']:.2f} .. {last['ratio']:.2f}"]
    print_table(["against", "from .. to", "time", "memory", "of deterministic, first .. last"], rows)
    huge = billion()
    print(f"\n{huge['parameters']:,} parameters: {huge['meta seconds']:.1f} s on the meta device.")
    print(f"In place, of {huge[GIB]:.2f} GiB of weights: {huge['in place GiB']:.2f} GiB more, which is rho;")
    print(f"their KL in one pass: {huge['kl seconds']:.1f} s.")
    write_json(options.json, {**figures, "a billion parameters": huge})
    if options.plot:
        plot(figures, options.plot)


FIELDS, GIB = ("size", "seconds", "ratio", "memory"), "weights GiB"


def steps(network: nn.Sequential, batch: int, rounds: int) -> tuple[float, float, int]:
    """Seconds of a Bayesian step, its ratio to the deterministic one, and the peak of its memory."""
    case = Case(lambda: network, (batch, network[0].in_features), inner=False)
    trainers = {
        "deterministic": Trainer(network, case, None, fused=True),
        "Bayesian": Trainer(bayesify(network), case, bensemble.kl_divergence, fused=True),
    }
    timing = interleave({name: trainer.step for name, trainer in trainers.items()}, "deterministic", rounds)["Bayesian"]
    return timing.seconds, timing.ratio, trainers["Bayesian"].peak_memory()


def predictions(samples: int, rounds: int) -> tuple[float, float, int]:
    """The same of ``predict``; the ratio is to as many deterministic forwards."""
    network, x = mlp().eval(), torch.randn(32, 784)
    bnn = bayesify(network)

    @torch.no_grad()
    def forwards() -> None:
        for _ in range(samples):
            network(x)

    def predict() -> Any:
        return bensemble.predict(bnn, x, samples, likelihood="categorical")

    timing = interleave({"deterministic": forwards, "Bayesian": predict}, "deterministic", rounds)["Bayesian"]
    return timing.seconds, timing.ratio, peak_memory(predict)


def line(points: list[dict[str, Any]], field: str) -> tuple[float, float, float]:
    """Fixed cost, cost per unit, and the largest deviation from their line as a share of the cost."""
    size, cost = (torch.tensor([point[key] for point in points], dtype=torch.float64) for key in ("size", field))
    columns = torch.stack([1 / cost, size / cost], 1)
    fixed, each = torch.linalg.lstsq(columns, torch.ones_like(cost)[:, None]).solution.flatten()
    return float(fixed), float(each), float(((fixed + each * size) / cost - 1).abs().max())


def described(points: list[dict[str, Any]], field: str, scale: float, unit: str) -> str:
    fixed, each, deviation = line(points, field)
    return f"{scale * fixed:.3g} + {scale * each:.3g} each {unit}, within {100 * deviation:.0f} %"


def billion() -> dict[str, Any]:
    """A network of a billion parameters converted on the meta device; a fifth of it in place, with memory."""

    def build(layers: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(8192, 8192, bias=False) for _ in range(layers)))

    with torch.device("meta"):
        network = build(15)
    meta_seconds = timed(lambda: bayesify(network, inplace=True))
    small = build(3)
    weights = sum(p.numel() for p in small.parameters())
    extra = peak_memory(lambda: bayesify(small, inplace=True))
    with torch.no_grad():
        kl_seconds = timed(lambda: bensemble.kl_divergence(small))
    return {
        "parameters": 15 * 8192**2,
        "meta seconds": meta_seconds,
        GIB: 4 * weights / 2**30,
        "in place GiB": extra / 2**30,
        "kl seconds": kl_seconds,
    }


def timed(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def plot(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Milliseconds against size, one panel for each curve, with its fitted line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, len(figures), figsize=(3.2 * len(figures), 3), layout="constrained")
    for axis, (name, points) in zip(axes, figures.items(), strict=True):
        sizes, seconds = ([point[key] for point in points] for key in ("size", "seconds"))
        fixed, each, _ = line(points, "seconds")
        axis.loglog(sizes, [1e3 * (fixed + each * size) for size in sizes], color="gray", linewidth=0.8)
        axis.loglog(sizes, [1e3 * value for value in seconds], "o")
        axis.set(xlabel=name, title="")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("milliseconds, and the fitted line")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

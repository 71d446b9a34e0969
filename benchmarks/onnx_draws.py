"""Sixteen weight draws in a file: from one table of numbers, beside sixteen stored networks with independent draws.

Two networks trained on scikit-learn's digits, a fitted posterior over all of their weights. For each file its size,
the time to load it, its latency over that of the deterministic file on one thread (median over rounds of times from the
same round), and how far its answers for held-out images are from those of many independent draws: the root mean square
over images, its mean over seeds of the draws with the standard error of that mean.

Run ``python benchmarks/onnx_draws.py``; three minutes.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
import warnings
from pathlib import Path

import torch
from onnx_uncertainty import lenet5, session
from rounds import interleave, print_table, write_json
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bensemble
from bensemble.likelihoods import Categorical
from convert import bayesify, export_onnx, to_deterministic
from convert.onnx.uncertainty.draws import weight_draws
from convert.onnx.uncertainty.statistics import Statistics

K = 16
MEASURES = ("probs", "entropy", "mutual_information")
BATCHES = (1, 16, 128)


def cnn() -> nn.Sequential:
    """A small CNN for images of 8 by 8 pixels."""
    features = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(network: nn.Module, x: Tensor, y: Tensor, epochs: int = 20) -> nn.Module:
    """The network after some epochs of Adam."""
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return network.eval()


def holding(bnn: nn.Module, draws: list[dict[str, Tensor]]) -> list[nn.Module]:
    """Deterministic networks that hold draws."""
    networks = []
    for weights in draws:
        network = copy.deepcopy(to_deterministic(bnn)).eval()
        with torch.no_grad():
            for name, weight in weights.items():
                network.get_parameter(name).copy_(weight)
        networks.append(network)
    return networks


def from_table(bnn: nn.Module, seed: int) -> list[dict[str, Tensor]]:
    """The draws of a file."""
    (found,) = weight_draws([bnn], K, torch.Generator().manual_seed(seed))
    return [{name: each.samples[k] for name, each in found.items()} for k in range(K)]


def independent(bnn: nn.Module, seed: int) -> list[dict[str, Tensor]]:
    """Independent draws."""
    generator = torch.Generator().manual_seed(seed)
    posteriors = dict(bensemble.named_posteriors(bnn))
    with torch.no_grad():
        return [{name: p.draw(p.draw_noise(generator)) for name, p in posteriors.items()} for _ in range(K)]


def answers(bnn: nn.Module, draws: list[dict[str, Tensor]], x: Tensor) -> dict[str, Tensor]:
    """What a file with these draws says."""
    with torch.no_grad():
        outputs = torch.stack([network(x) for network in holding(bnn, draws)])
    return Statistics(Categorical()).of_samples(outputs, paired=False)


def errors(bnn: nn.Module, x: Tensor, seeds: int, many: int) -> dict[str, dict[str, Tensor]]:
    """For each way to draw and each measure the root mean square error over the images by seed."""
    generator = torch.Generator().manual_seed(10**6)
    truth = bensemble.predict(bnn, x, many, likelihood="categorical", generator=generator, keep_samples=False)
    found: dict[str, dict[str, Tensor]] = {}
    for label, draw in (("stored", independent), ("table", from_table)):
        each = [answers(bnn, draw(bnn, seed), x) for seed in range(seeds)]
        found[label] = {
            name: torch.stack([(e[name] - getattr(truth, name)).square().mean().sqrt() for e in each])
            for name in MEASURES
        }
    return found


def measure(name: str, size: int, rounds: int, seeds: int, many: int, folder: Path) -> list[list[str]]:
    """The rows of one network."""
    torch.manual_seed(0)
    pixels, y = map(torch.tensor, load_digits(return_X_y=True))
    x = nn.functional.interpolate(pixels.float().view(-1, 1, 8, 8) / 16, (size, size), mode="bilinear")
    order = torch.randperm(len(x))
    fit, val, test = order[:1000], order[1000:1300], order[1300:1500]
    network = trained({"digits CNN": cnn, "LeNet-5": lenet5}[name](), x[fit], y[fit])
    bnn = bayesify(network)
    loaders = [[(x[rows], y[rows])] for rows in (fit, val)]
    bensemble.fit_posterior(bnn, loaders[0], val_loader=loaders[1], likelihood="categorical")
    found = errors(bnn, x[test], seeds, many)
    options = {"outputs": "uncertainty", "likelihood": "categorical"}
    sizes = {
        "mean": export_onnx(network, folder / "mean", x[:2]).size,
        "stored": export_onnx(holding(bnn, independent(bnn, 0)), folder / "stored", x[:2], **options).size,
        "table": export_onnx(bnn, folder / "table", x[:2], num_samples=K, **options).size,
    }
    sessions, load = {}, {}
    for file in sizes:
        times = []
        for _ in range(5):
            before = time.process_time()
            sessions[file] = session(folder / file)
            times.append(time.process_time() - before)
        load[file] = min(times)
    ratios: dict[str, list[str]] = {file: [] for file in sizes}
    for batch in BATCHES:
        feed = {"input": x[:batch].numpy()}
        runs = {file: lambda s=s, feed=feed: s.run(None, feed) for file, s in sessions.items()}
        for file, timing in interleave(runs, "mean", rounds).items():
            ratios[file].append(f"{timing.ratio:.2f}")
    rows = []
    for file in sizes:
        rms = [f"{1e3 * v.mean():.2f} ± {1e3 * v.std() / len(v) ** 0.5:.2f}" for v in found.get(file, {}).values()]
        cells = [f"{sizes[file] / 1e3:.0f}", f"{1e3 * load[file]:.1f}", ", ".join(ratios[file])]
        rows.append([name, file, *cells, *(rms or ["", "", ""])])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--many", type=int, default=1000, help="independent draws that stand for the truth")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    for name, size in (("digits CNN", 8), ("LeNet-5", 28)):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows += measure(name, size, options.rounds, options.seeds, options.many, Path(folder))
    latency = f"latency over mean, batch {', '.join(map(str, BATCHES))}"
    rms = [f"{name} x 1,000" for name in MEASURES]
    print_table(["network", "file", "kB", "load ms", latency, *rms], rows)
    write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    main()

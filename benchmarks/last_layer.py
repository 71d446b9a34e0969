"""One forward against many: a posterior of the last layer and novelty, beside a temperature and deep ensembles.

LeNet-300-100 on 10,000 digits. Every row has the same networks and training. Temperatures and scales are chosen on
2,000 other training digits, the 10,000 test digits used once. The seconds of a fit include the search for its scale.

python benchmarks/last_layer.py --mnist mnist.npz
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "contest"))

from scores import auroc, class_scores, entropy

import bensemble
from convert import bayesify, last_layer

MEMBERS, EPOCHS = 5, 8
COLUMNS = ("accuracy", "nll", "ece", "brier", "risk", "rotated", "shifted", "forwards", "seconds")


def train(x: Tensor, y: Tensor, seed: int) -> tuple[nn.Module, float]:
    """A network, and the CPU seconds that its training took."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer, start = torch.optim.Adam(net.parameters(), 1e-3), time.process_time()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval(), time.process_time() - start


def strangers(x: Tensor) -> dict[str, Tensor]:
    """Digits turned by 90 degrees, and digits 8 pixels to the right and down."""
    images = x.view(-1, 28, 28)
    shifted = torch.zeros_like(images)
    shifted[:, 8:, 8:] = images[:, :-8, :-8]
    return {"rotated": images.rot90(1, (1, 2)).flatten(1), "shifted": shifted.flatten(1)}


def risk(probs: Tensor, y: Tensor) -> float:
    """Area under the risk-coverage curve by entropy, times 1000."""
    wrong = (probs.argmax(1) != y).double()[entropy(probs).argsort()]
    return 1000 * float((wrong.cumsum(0) / torch.arange(1, len(y) + 1)).mean())


def judge(answer: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
    """All columns of a method that answers with probabilities; strangers by entropy."""
    probs = answer(x)
    found = {**class_scores(probs, y), "risk": risk(probs, y)}
    return found | {name: auroc(entropy(probs), entropy(answer(z))) for name, z in strangers(x).items()}


def one_seed(data: dict[str, Tensor], seed: int) -> dict[str, dict[str, float]]:
    """Every row for one seed."""
    places = torch.randperm(60_000, generator=torch.Generator().manual_seed(seed))
    rows, held = places[:10_000], places[10_000:12_000]
    x, y, x_val, y_val = data["x_train"][rows], data["y_train"][rows], data["x_train"][held], data["y_train"][held]
    trained = [train(x, y, 100 * seed + member) for member in range(MEMBERS)]
    nets, seconds = [net for net, _ in trained], statistics.mean(s for _, s in trained)
    loader, val_loader = list(zip(x.split(500), y.split(500), strict=True)), [(x_val, y_val)]

    def fit(net: nn.Module, include: str | None, structure: str) -> tuple[nn.Module, float]:
        start = time.process_time()
        bnn = bayesify(net, include=include, example_inputs=x[:2])
        bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader, structure=structure)
        return bnn, time.process_time() - start

    def probs(model: Any) -> Callable[[Tensor], Tensor]:
        return lambda z: bensemble.predict(model, z, 16, likelihood="categorical", keep_samples=False).probs

    def tempered(model: Any) -> Callable[[Tensor], Tensor]:
        calibration = bensemble.calibrate(bensemble.predict(model, x_val, likelihood="categorical"), y_val, alpha=0.1)
        return lambda z: calibration.apply(bensemble.predict(model, z, likelihood="categorical")).probs

    name = last_layer(nets[0], x[:2])
    heads = [fit(net, name, "kronecker") for net in nets]
    diagonal, whole = fit(nets[0], name, "diagonal"), fit(nets[0], None, "diagonal")
    methods: dict[str, tuple[Callable[[Tensor], Tensor], int, float]] = {
        "deterministic": (probs(nets[0]), 1, seconds),
        "with one temperature": (tempered(nets[0]), 1, seconds),
        "whole network, diagonal": (probs(whole[0]), 16, whole[1]),
        "last layer, diagonal": (probs(diagonal[0]), 1, diagonal[1]),
        "last layer, Kronecker": (probs(heads[0][0]), 1, heads[0][1]),
        "deep ensemble of 5": (probs(nets), MEMBERS, MEMBERS * seconds),
        "with one temperature, ensemble": (tempered(nets), MEMBERS, MEMBERS * seconds),
        "ensemble of last layers": (probs([bnn for bnn, _ in heads]), MEMBERS, sum(s for _, s in heads)),
    }
    x_test, y_test = data["x_test"], data["y_test"]
    found = {}
    for method, (answer, forwards, cost) in methods.items():
        found[method] = {**judge(answer, x_test, y_test), "forwards": forwards, "seconds": cost}
    start = time.process_time()
    novelty = bensemble.fit_novelty(nets[0], loader, val_loader)
    cost = time.process_time() - start
    familiar = novelty.score(x_test)
    by_novelty = {kind: auroc(familiar, novelty.score(z)) for kind, z in strangers(x_test).items()}
    return found | {"novelty": {**by_novelty, "forwards": 1, "seconds": cost}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, required=True, help="npz file of MNIST")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.mnist) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    data = {k: a.float().flatten(1) / 255 if k[0] == "x" else a.long() for k, a in arrays.items()}
    seeds = [one_seed(data, seed) for seed in range(arguments.seeds)]
    print("| method |", " | ".join(COLUMNS), "|")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for method in seeds[0]:
        cells = []
        for column in COLUMNS:
            values = [seed[method][column] for seed in seeds if column in seed[method]]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            cells.append("" if not values else f"{statistics.mean(values):.4g} ± {error:.2g}")
        print(f"| {method} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()

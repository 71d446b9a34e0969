"""Uncertainty files with a novelty in eight bits: are p-values honest, are strangers told, what is saved.

Networks for 10,000 digits of MNIST, 2,000 held-out ones for the posterior of the last layer, the novelty and the ranges
of the quantizer; 8,000 others are the familiar ones, 3,000 of them turned by a quarter or moved by six and three pixels
the strangers. "As fitted" is the share of p-values if those of the int8 file were counted among the scores of the float
network. Where the data comes from is written in benchmarks/pruning_untrained.py.

python benchmarks/eight_bit_novelty.py --mnist mnist.npz
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rounds import print_table, write_json
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent / "contest"))

from scores import auroc

import bensemble
from bensemble.novelty.pvalues import conformal_pvalue
from convert import bayesify, compare_onnx, export_onnx, last_layer
from convert.runtime import UncertaintySession


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def normed() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64), (64, 128), (128, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if after < 128 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


OUTPUTS = ("probs", "novelty", "novelty_pvalue")
NETWORKS: dict[str, Callable[[], nn.Module]] = {"CNN": lenet, "CNN with norms": normed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help="npz file of MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.mnist:
        parser.error("--mnist must name an npz file of MNIST")
    torch.set_num_threads(1)
    with np.load(arguments.mnist) as file:
        x, y = torch.tensor(file["x_train"]).float().view(-1, 1, 28, 28) / 255, torch.tensor(file["y_train"]).long()
    found = {}
    for name, build in NETWORKS.items():
        rows = [judged(build, x, y, seed) for seed in range(arguments.seeds)]
        found[name] = {key: [row[key] for row in rows] for key in rows[0]}
        print(f"\n{name}, {arguments.seeds} seeds")
        print_table(
            ["", "int8", "float"], [[key, *map(_shown, zip(*found[name][key], strict=True))] for key in found[name]]
        )
        sys.stdout.flush()
    write_json(arguments.json, found)


def judged(build: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int) -> dict[str, tuple[float, float]]:
    """What the int8 file and the float file of one network say, and cost."""
    torch.manual_seed(seed)
    train, held_out, rest = torch.randperm(len(y)).split([10_000, 2_000, len(y) - 12_000])
    model, familiar = trained(build(), x[train], y[train]), x[rest[:8_000]]
    loader, held = ([*zip(x[part].split(500), y[part].split(500), strict=True)] for part in (train, held_out))
    sure = bayesify(model, include=last_layer(model, x[:2]))
    bensemble.fit_posterior(sure, loader, likelihood="categorical", val_loader=held)
    novelty = bensemble.fit_novelty(sure, loader, held)
    options: dict[str, Any] = {"outputs": "uncertainty", "likelihood": "categorical", "novelty": novelty}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("int8", "float")}
        export_onnx(sure, paths["float"], x[:1], **options)
        export_onnx(sure, paths["int8"], x[:1], **options, quantize="int8", calibration_data=held)
        table = compare_onnx({name: paths[name] for name in ("float", "int8")}, familiar[:64], batch_sizes=(1, 64))
        answers = {name: read(path, familiar) for name, path in paths.items()}
        turned, moved = familiar[:3_000].rot90(1, (2, 3)), familiar[:3_000].roll((6, 3), (2, 3))
        strange = {name: [read(path, z)["novelty"] for z in (turned, moved)] for name, path in paths.items()}
    as_fitted = conformal_pvalue(novelty.heldout.sort().values, answers["int8"]["novelty"].double())
    both = ("int8", "float")
    row = {"kB": tuple(table[n].size / 1e3 for n in both)}
    row |= {f"time at {size}": tuple(table[n].latency[size].ratio for n in both) for size in (1, 64)}
    row["right, %"] = tuple(
        100 * (answers[n]["probs"].argmax(1) == y[rest[:8_000]]).double().mean().item() for n in both
    )
    for level in (0.01, 0.05):
        row[f"familiar refused at {level:.0%}"] = tuple(share(answers[n]["novelty_pvalue"], level) for n in both)
        row[f"as fitted, at {level:.0%}"] = (share(as_fitted, level), share(answers["float"]["novelty_pvalue"], level))
    for kind, index in (("turned", 0), ("moved", 1)):
        row[f"AUROC, {kind}"] = tuple(auroc(answers[n]["novelty"], strange[n][index]) for n in both)
    return row  # type: ignore[return-value]


def trained(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for part in [part for _ in range(4) for part in torch.randperm(len(y)).split(100)]:
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
    return model.eval()


def read(path: Path, x: Tensor) -> dict[str, Tensor]:
    session = UncertaintySession(path)
    answers = [session(part.numpy()) for part in x.split(500)]
    return {key: torch.from_numpy(np.concatenate([a[key] for a in answers])) for key in OUTPUTS}


def share(pvalues: Tensor, level: float) -> float:
    return 100 * (pvalues <= level).double().mean().item()


def _shown(values: tuple[float, ...]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()

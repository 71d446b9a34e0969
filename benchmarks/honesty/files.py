"""What the file of each method costs: its size, and its latency in ONNX Runtime on one thread, over the plain one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from onnx_uncertainty import session
from rounds import interleave, print_table

import bensemble
from convert import bayesify, export_onnx, last_layer

from .rows import batches, fitted
from .tasks import Task, trained

BATCHES = (1, 64)
#: Weight samples of the whole network, as in the tables.
SAMPLES = 16
ROUNDS = 25


def measured(task: Task, folder: Path) -> dict[str, dict[str, float]]:
    """Print the table for the networks of one seed; also its figures by file and column.

    Args:
        task: The task.
        folder: Where trained networks are kept.
    """
    nets, x = [trained(task, seed, folder)[0] for seed in task.seeds], task.test[0][:2]
    bnns = [fitted(task, net, last_layer(net, x), "auto")[0] for net in nets]
    whole = bayesify(nets[0], example_inputs=x)
    bensemble.fit_posterior(whole, batches(task.train), likelihood="categorical", val_loader=batches(task.held_out))
    novelty = bensemble.fit_novelty(bnns[0], batches(task.train), batches(task.held_out))
    uncertain: dict[str, Any] = {"outputs": "uncertainty", "likelihood": "categorical"}
    variants: dict[str, tuple[Any, dict[str, Any]]] = {
        "deterministic": (nets[0], {}),
        "whole network, 16 samples": (whole, {**uncertain, "num_samples": SAMPLES}),
        "last layer": (bnns[0], uncertain),
        "last layer and novelty": (bnns[0], {**uncertain, "novelty": novelty}),
        "ensemble of last layers": (bnns, uncertain),
    }
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: Path(directory) / f"{number}.onnx" for number, name in enumerate(variants)}
        sizes = {
            name: export_onnx(model, paths[name], x, **options).size for name, (model, options) in variants.items()
        }
        sessions = {name: session(path) for name, path in paths.items()}
    figures = {name: {"kB": size / 1e3, "size": size / sizes["deterministic"]} for name, size in sizes.items()}
    for batch in BATCHES:
        pictures = task.test[0][:batch].numpy()
        runs = {n: lambda s=s, p=pictures: s.run(None, {s.get_inputs()[0].name: p}) for n, s in sessions.items()}
        for name, timing in interleave(runs, "deterministic", ROUNDS).items():
            figures[name] |= {f"latency at {batch}": timing.ratio, f"us at {batch}": 1e6 * timing.seconds}
    print("\nFiles, over the deterministic file\n")
    print_table(
        ["file", *figures["deterministic"]],
        [[name, *(f"{value:.3g}" for value in row.values())] for name, row in figures.items()],
    )
    return figures

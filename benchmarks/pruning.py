"""How many weights MNIST needs: LeNet-300-100 and LeNet-5-Caffe through the whole chain, beside published figures.

Everything was chosen on 10,000 held-out training pictures; the test pictures are looked at once for each seed. Weights
are counted without biases; the error is that of the plain network. Unlike what is published, ours come from training
pictures moved by up to a pixel, and from tuning that also follows the answers of the network before pruning. What was
computed is kept in the folder --cache; a run that was broken off goes on from there.

python benchmarks/pruning.py --mnist mnist.npz --cache cache
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "contest"))
sys.path.insert(0, str(Path(__file__).parent / "sparse"))

from digits import Digits, load_digits
from results import Result, measured
from rounds import print_table, write_json
from settings import PUBLISHED, SUBJECTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, default=os.environ.get("BENSEMBLE_MNIST"), help="npz file of MNIST")
    parser.add_argument("--cache", type=Path, required=True, help="folder for finished networks")
    parser.add_argument("--network", choices=list(SUBJECTS), action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.mnist:
        parser.error("--mnist must name an npz file of MNIST")
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    digits = load_digits(arguments.mnist)
    found = {name: judge(name, digits, arguments) for name in arguments.network or SUBJECTS}
    write_json(arguments.json, {name: [result.row() for result in results] for name, results in found.items()})


def judge(name: str, digits: Digits, arguments: argparse.Namespace) -> list[Result]:
    """Every seed of one network, and the table."""
    results = [measured(name, seed, digits, arguments.cache) for seed in range(arguments.seeds)]
    print(f"\n{name}")
    rows = [[f"seed {result.seed}", *result.cells()] for result in results]
    if len(results) > 1:
        rows.append(["mean", *_over(statistics.mean, results)])
        rows.append(["standard deviation", *_over(statistics.stdev, results)])
    published = PUBLISHED[name.partition(",")[0]]
    rows += [[source, f"{fewer:g}x", f"{error:.2f}", *[""] * 6] for source, fewer, error in published]
    header = ["", "fewer weights", "test error, %", "held-out error, %", "before, %"]
    print_table([*header, "dense parameters", "of before", "file of before", "ms at 128, of before"], rows)
    return results


def _over(statistic: Callable[[list[float]], float], results: list[Result]) -> list[str]:
    fields = ("fewer", "error", "held_out", "error_before")
    values = [statistic([getattr(result, field) for result in results]) for field in fields]
    return [f"{values[0]:.1f}x", *(f"{value:.2f}" for value in values[1:]), *[""] * 4]


if __name__ == "__main__":
    main()

"""One forward against many: a posterior of the last layer and novelty, beside one temperature and deep ensembles.

A table for each task whose data is given. All rows of a task have the same networks and training; temperatures and
scales are chosen on held-out data, the test data is used once. Features of pretrained networks are kept in the folder
--cache. The seconds are CPU seconds of the training (plain networks) or of the fit with the search for its scale.

python benchmarks/last_layer.py --mnist mnist.npz --cifar cifar10.zip --clinc clinc150.json --uci uci --cache cache
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "contest"))

from honesty import cifar, clinc, digits, uci
from honesty.features import PICTURE_PACKAGES, SENTENCE_PACKAGES, missing
from honesty.rows import one_seed
from honesty.table import differences, show
from honesty.tasks import Task
from rounds import write_json
from tables import SPLITS, TABLES
from uncertainty import FASHION

#: Whose NLL is compared, paired by seed.
PAIRS = [
    ("last layer", "deterministic"),
    ("last layer", "with one temperature"),
    ("ensemble of last layers", "deep ensemble of 5"),
    ("ensemble of last layers", "the ensemble with one temperature"),
]
TASKS = ("mnist", "cifar", "clinc", "uci")


def classes(name: str, about: str, make: Callable[[Any, int], Task], data: Any, seeds: int) -> dict[str, Any]:
    """Print the table of a task of classes, and differences in NLL."""
    found = []
    for seed in range(seeds):
        found.append(one_seed(make(data, seed), seed))
        print(f"{name}: seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    table = show(f"{name}: {about}", found)
    return {"seeds": found, "table": table, "differences": differences(found, "nll", PAIRS)}


def regressions(folder: Path, splits: int) -> dict[str, Any]:
    """Print the tables of all regression tables, and differences in NLL."""
    figures = {}
    for name in TABLES:
        found = uci.answers(folder, name, splits)
        table = show(f"UCI {name}", found, "split")
        figures[name] = {"splits": found, "table": table, "differences": differences(found, "nll", uci.PAIRS)}
    return figures


def absent(task: str, arguments: argparse.Namespace) -> str | None:
    """Why a task cannot be run, or None."""
    if getattr(arguments, task) is None:
        return f"--{task} was not given"
    if (arguments.cache / f"{task}-features.pt").exists():
        return None
    return missing({"cifar": PICTURE_PACKAGES, "clinc": SENTENCE_PACKAGES}.get(task, ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="npz file of MNIST; its digits are strangers to CIFAR-10 as well")
    parser.add_argument("--cifar", type=Path, help="zip file with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="test pictures of Fashion-MNIST, IDX, gzipped")
    parser.add_argument("--clinc", type=Path, help="JSON file of CLINC150, data_full")
    parser.add_argument("--uci", type=Path, help="folder with <table>.data.csv.gz and <table>.test_mask.csv.gz")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder for features")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for task in arguments.tasks:
        reason = absent(task, arguments)
        if reason is not None:
            print(f"{task} is left out: {reason}.")
        elif task == "mnist":
            data = digits.load(arguments.mnist)
            figures[task] = classes("MNIST", "LeNet-300-100, 10,000 digits", digits.task, data, arguments.seeds)
        elif task == "cifar":
            data = cifar.load(arguments.cifar, arguments.fashion, arguments.mnist, arguments.cache)
            about = "a head on EfficientNet-Lite0 features, six classes"
            figures[task] = classes("CIFAR-10", about, cifar.task, data, arguments.seeds)
        elif task == "clinc":
            data = clinc.load(arguments.clinc, arguments.cache)
            about = "a head on MiniLM features, 150 intents"
            figures[task] = classes("CLINC150", about, clinc.task, data, arguments.seeds)
        else:
            figures[task] = regressions(arguments.uci, arguments.splits)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()

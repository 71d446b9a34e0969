"""One forward against many: a posterior of the last layer and novelty, beside one temperature and deep ensembles.

A table for each task whose data is given. All rows of a task have the same networks and training; temperatures, scales
and the rate of dropout are chosen on held-out data, the test data is used once. Trained networks, and features of
pretrained ones, are kept in the folder --cache. The seconds are CPU seconds of the training (plain networks) or of the
fit with the search for its scale.

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

from honesty import cifar, clinc, clothes, digits, files, uci
from honesty.features import PICTURE_PACKAGES, SENTENCE_PACKAGES, missing
from honesty.rows import best_rate, one_seed
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
    ("ensemble of last layers with one temperature", "the ensemble with one temperature"),
]
TASKS = ("mnist", "fashion", "cifar", "clinc", "uci", "files")


def classes(
    name: str, about: str, make: Callable[[Any, int], Task], data: Any, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Print the table of a task of classes, and differences in NLL."""
    found, seeds, folder = [], arguments.seeds, arguments.cache / "networks"
    rate = best_rate(make(data, 0), folder)  # of the first seed, for all
    for seed in range(seeds):
        found.append(one_seed(make(data, seed), folder, rate))
        print(f"{name}: seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    table = show(f"{name}: {about}", found)
    dropout = f"MC dropout, rate {rate:g}"
    pairs = [*PAIRS, (dropout, "with one temperature"), ("last layer", dropout)]
    return {"seeds": found, "table": table, "differences": differences(found, "nll", pairs)}


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
    given = getattr(arguments, {"files": "mnist"}.get(task, task))
    if given is None or (task == "fashion" and not given.exists()):
        return f"--{'mnist' if task == 'files' else task} was not given"
    if (arguments.cache / f"{task}-features.pt").exists():
        return None
    return missing({"cifar": PICTURE_PACKAGES, "clinc": SENTENCE_PACKAGES}.get(task, ()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="npz file of MNIST; its digits are strangers to other tasks as well")
    parser.add_argument("--cifar", type=Path, help="zip file with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--fashion", type=Path, default=FASHION.parent, help="folder of Fashion-MNIST, IDX, gzipped")
    parser.add_argument("--clinc", type=Path, help="JSON file of CLINC150, data_full")
    parser.add_argument("--uci", type=Path, help="folder with <table>.data.csv.gz and <table>.test_mask.csv.gz")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder for networks and features")
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
            data = digits.load(arguments.mnist, arguments.fashion)
            figures[task] = classes("MNIST", "LeNet-300-100, 10,000 digits", digits.task, data, arguments)
        elif task == "fashion":
            data = clothes.load(arguments.fashion, arguments.mnist, arguments.cifar)
            about = "ResNet-8 with BatchNorm, 6,000 clothes"
            figures[task] = classes("Fashion-MNIST", about, clothes.task, data, arguments)
        elif task == "cifar":
            data = cifar.load(arguments.cifar, arguments.fashion, arguments.mnist, arguments.cache)
            about = "a head on EfficientNet-Lite0 features, six classes"
            figures[task] = classes("CIFAR-10", about, cifar.task, data, arguments)
        elif task == "clinc":
            data = clinc.load(arguments.clinc, arguments.cache)
            about = "a head on MiniLM features, 150 intents"
            figures[task] = classes("CLINC150", about, clinc.task, data, arguments)
        elif task == "files":
            own = digits.task(digits.load(arguments.mnist, arguments.fashion), 0)
            figures[task] = files.measured(own, arguments.cache / "networks")
        else:
            figures[task] = regressions(arguments.uci, arguments.splits)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()

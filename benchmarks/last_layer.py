"""One forward against many: a posterior of the last layer and novelty, beside one temperature and deep ensembles.

A table for each task whose data is given. All rows of a task have the same networks and training; temperatures and
scales are chosen on held-out data, the test data is used once. Features of pretrained networks are kept in the folder
--cache. The seconds are CPU seconds of the training (plain networks) or of the fit with the search for its scale.

python benchmarks/last_layer.py --mnist mnist.npz --cifar cifar10.zip --clinc clinc150.json --uci uci --cache cache
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "contest"))

from honesty import cifar, clinc, digits, uci
from honesty.features import PICTURE_PACKAGES, SENTENCE_PACKAGES, missing
from honesty.rows import one_seed
from honesty.table import differences, show
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="npz file of MNIST")
    parser.add_argument("--cifar", type=Path, help="zip file with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="test pictures of Fashion-MNIST, IDX, gzipped")
    parser.add_argument("--clinc", type=Path, help="JSON file of CLINC150, data_full")
    parser.add_argument("--uci", type=Path, help="folder with <table>.data.csv.gz and <table>.test_mask.csv.gz")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder for features")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}

    def classes(name: str, about: str, make: Any, data: Any) -> None:
        seeds = []
        for seed in range(arguments.seeds):
            seeds.append(one_seed(make(data, seed), seed))
            print(f"{name}: seed {seed + 1} of {arguments.seeds}", file=sys.stderr, flush=True)
        figures[name] = {"seeds": seeds, "table": show(f"{name}: {about}", seeds)}
        figures[name]["differences"] = differences(seeds, "nll", PAIRS)

    if arguments.mnist is None:
        print("MNIST is left out: --mnist was not given.")
    else:
        classes("MNIST", "LeNet-300-100, 10,000 digits", digits.task, digits.load(arguments.mnist))
    reason = missing(PICTURE_PACKAGES) if arguments.cifar else "--cifar was not given"
    if reason:
        print(f"CIFAR-10 is left out: {reason}.")
    else:
        data = cifar.load(arguments.cifar, arguments.fashion, arguments.mnist, arguments.cache)
        classes("CIFAR-10", "a head on EfficientNet-Lite0 features, six classes", cifar.task, data)
    reason = missing(SENTENCE_PACKAGES) if arguments.clinc else "--clinc was not given"
    if reason:
        print(f"CLINC150 is left out: {reason}.")
    else:
        data = clinc.load(arguments.clinc, arguments.cache)
        classes("CLINC150", "a head on MiniLM features, 150 intents", clinc.task, data)
    if arguments.uci is None:
        print("The regression tables are left out: --uci was not given.")
    else:
        for table in TABLES:
            splits = uci.answers(arguments.uci, table, arguments.splits)
            figures[table] = {"splits": splits, "table": show(f"UCI {table}", splits, "split")}
            figures[table]["differences"] = differences(splits, "nll", uci.PAIRS)
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()

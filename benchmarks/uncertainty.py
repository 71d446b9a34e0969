"""Is the uncertainty any good? Pictures and regression tables, ours beside what else there is.

Everything that was computed is kept in the folder --cache, so a run that was broken off goes on where it was.

python benchmarks/uncertainty.py --mnist mnist.npz --fashion t10k-images-idx3-ubyte.gz --uci uci --cache cache
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "contest"))

from pictures import judge_pictures
from regression import judge_tables
from rounds import write_json
from tables import TABLES

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")  # Debian's dataset-fashion-mnist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="npz file of MNIST")
    parser.add_argument("--fashion", type=Path, default=FASHION, help="test pictures of Fashion-MNIST, IDX, gzipped")
    parser.add_argument("--uci", type=Path, help="folder with <table>.data.csv.gz and <table>.test_mask.csv.gz")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--cache", type=Path, required=True, help="folder for trained networks and answers")
    parser.add_argument("--rows", nargs="+", help="only these rows for MNIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "scikit-learn", "torchmetrics")]
    print(", ".join(versions))
    figures = {}
    if arguments.mnist:
        figures["MNIST"] = judge_pictures(
            arguments.mnist, arguments.fashion, arguments.cache, arguments.seeds, arguments.rows
        )
    if arguments.uci:
        figures["UCI"] = judge_tables(arguments.uci, arguments.tables, arguments.cache, arguments.splits)
    if not figures:
        parser.error("neither --mnist nor --uci was given")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()

"""Load every saved model of a folder where ``convert`` cannot be imported, and compare what it computes.

Run as ``python -m patterns.reload FOLDER`` by the tests.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from zoo.forward import first_difference, run

from bensemble import sampling


def main(folder: Path) -> None:
    """Print the name of each model that computes what it computed before it was saved."""
    for file in sorted(folder.glob("*.pt")):
        bnn, inputs, outputs = torch.load(file, weights_only=False)
        difference = first_difference(outputs, run(bnn, inputs))
        assert difference is None, f"{file.stem}: {difference}"
        with sampling(bnn):
            assert first_difference(outputs, run(bnn, inputs)) is not None, f"{file.stem}: no noise after loading"
        print(file.stem)


if __name__ == "__main__":
    sys.modules["convert"] = None  # type: ignore[assignment]  # makes every import of it fail
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))

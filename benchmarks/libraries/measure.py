"""One library in a process of its own: its steps over deterministic ones, printed as one line of JSON.

python benchmarks/libraries/measure.py blitz --rounds 9
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from adapters import LIBRARIES, SIGMA, Library
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from networks import CASES, Case, Trainer
from rounds import interleave

#: The peers know Linear and Conv2d only.
LAYERS_ONLY = [name for name in CASES if "transformer" not in name]
DRAWS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = LIBRARIES[options.library]()
    names = [name for name in LAYERS_ONLY if options.only in name]
    print(json.dumps({name: measured(library, CASES[name], options.rounds) for name in names}))


def measured(library: Library, case: Case, rounds: int) -> dict[str, Any]:
    """Ratios of time and memory, and the variance of the gradients; what went wrong where a library cannot."""
    torch.manual_seed(0)
    network = case.build()
    try:
        figures: dict[str, Any] = {"variance": variance(library, network, case)}
        for kind, fused in (("step", False), ("fused step", True)):
            trainers = {
                "deterministic": Trainer(copy.deepcopy(network), case, None, fused),
                "Bayesian": Trainer(library.convert(copy.deepcopy(network)), case, library.kl, fused),
            }
            timing = interleave({name: t.step for name, t in trainers.items()}, "deterministic", rounds)
            figures[kind] = timing["Bayesian"].ratio
            if not fused:
                figures["memory"] = trainers["Bayesian"].peak_memory() / trainers["deterministic"].peak_memory()
        return figures
    except Exception as err:
        return {"error": f"{type(err).__name__}: {err}".splitlines()[0]}


def variance(library: Library, network: nn.Module, case: Case) -> dict[str, float]:
    """Sum over all weights of the variance of the gradients of the loss without KL, by mean and by spread.

    Every weight has the same standard deviation, and the input is the same in each of ``DRAWS`` draws.
    """
    bayesian = library.convert(copy.deepcopy(network)).train()
    library.set_sigma(bayesian)
    pairs = library.pairs(bayesian)
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(1))
    draws: list[list[Tensor]] = [[], []]
    for _ in range(DRAWS):
        loss = bayesian(x).square().mean()
        for kept, parameters in zip(draws, zip(*pairs, strict=True), strict=True):
            found = torch.autograd.grad(loss, parameters, retain_graph=True)
            kept.append(torch.cat([g.flatten() for g in found]))
    mean, spread = (float(torch.stack(kept).var(0).sum()) for kept in draws)
    if library.logarithmic:
        spread *= _slope_of_softplus() ** 2
    return {"mean": mean, "spread": spread}


def _slope_of_softplus() -> float:
    """What turns a slope in log sigma into one in rho: d sigma / d rho over d sigma / d log sigma."""
    rho = torch.tensor(SIGMA).expm1().log()
    return float(torch.sigmoid(rho)) / SIGMA


if __name__ == "__main__":
    main()

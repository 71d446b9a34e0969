"""What a Bayesian training step costs, over the deterministic step of the same network in the same round.

step = zero_grad + forward + KL + backward + Adam. Memory is the peak of allocated tensor bytes during one step, beyond
parameters, gradients that exist already and optimizer state.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from networks import CASES, Trainer
from rounds import interleave, print_table, write_json

from bensemble import kl_divergence
from convert import bayesify

KINDS = {
    "local reparameterization": {},
    "its variance in bfloat16": {"variance_dtype": torch.bfloat16},
    "weight sampling": {"estimator": "weights"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, figures = [], {}
    for name, case in CASES.items():
        if options.only not in name:
            continue
        network = case.build()
        networks = {"deterministic": (network, None)}
        networks |= {kind: (bayesify(network, **arguments), kl_divergence) for kind, arguments in KINDS.items()}
        trainers = {kind: Trainer(net, case, kl, fused=False) for kind, (net, kl) in networks.items()}
        fused = {kind: Trainer(net, case, kl, fused=True) for kind, (net, kl) in networks.items()}
        timings = {
            "forward": interleave({k: t.forward for k, t in trainers.items()}, "deterministic", options.rounds),
            "forward + backward": interleave(
                {k: t.backward for k, t in trainers.items()}, "deterministic", options.rounds
            ),
            "step": interleave({k: t.step for k, t in trainers.items()}, "deterministic", options.rounds),
            "fused step": interleave({k: t.step for k, t in fused.items()}, "deterministic", options.rounds),
        }
        memory = {kind: trainer.peak_memory() for kind, trainer in trainers.items()}
        figures[name] = {
            "milliseconds": 1e3 * timings["step"]["deterministic"].seconds,
            "ratios": {what: {k: t.ratio for k, t in found.items()} for what, found in timings.items()},
            "memory": {kind: size / memory["deterministic"] for kind, size in memory.items()},
        }
        columns = [*figures[name]["ratios"].values(), figures[name]["memory"]]
        cells = [" / ".join(f"{column[kind]:.2f}" for kind in KINDS) for column in columns]
        rows.append([name, f"{figures[name]['milliseconds']:.1f}", *cells])
    print(f"Ratios to the deterministic network: {' / '.join(KINDS)}.\n")
    print_table(["case", "deterministic step, ms", *timings, "memory of a step"], rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()

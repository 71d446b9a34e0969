"""The KL of a large network and its gradient, against the plain formula under autograd."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rounds import interleave, print_table, write_json
from torch import Tensor, nn

import bensemble
from bensemble.gaussian import kl_normal, sigma_from_rho
from convert import bayesify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=11, help="number of 1000 x 1000 layers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = bayesify(nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(options.layers))), prior="normal")

    def plain() -> None:
        total: Tensor = torch.zeros(())
        for _, p in bensemble.named_posteriors(network):
            total = total + kl_normal(p.mu, sigma_from_rho(p.rho), 0.0, 1.0)
        network.zero_grad()
        total.backward()

    def ours() -> None:
        network.zero_grad()
        bensemble.kl_divergence(network).backward()

    timings = interleave({"plain": plain, "bensemble": ours}, "plain", options.rounds)
    rows = [[name, f"{1e3 * t.seconds:.1f}", f"{t.ratio:.2f}"] for name, t in timings.items()]
    print_table([f"KL and gradient of {options.layers} M weights", "ms", "ratio"], rows)
    write_json(options.json, {name: t.ratio for name, t in timings.items()})


if __name__ == "__main__":
    main()

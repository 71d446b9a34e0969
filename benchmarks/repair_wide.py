"""Seconds and peak memory of ``repair`` for three layers of 4,096 units: 50 million weights, 90 % of them removed.

python benchmarks/repair_wide.py
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch
from networks import mlp
from rounds import print_table, write_json

from convert import repair


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--removed", type=float, default=0.9)
    parser.add_argument("--damping", type=float, help="given, not chosen: a third of the time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, pruned = (mlp(*[arguments.width] * 4).eval() for _ in range(2))
    pruned.load_state_dict(network.state_dict())
    for weight in (p for p in pruned.parameters() if p.ndim > 1):
        weight[weight.abs() < weight.abs().flatten().kthvalue(int(arguments.removed * weight.numel())).values] = 0
    mixing = torch.randn(64, arguments.width)
    loader = list((torch.randn(arguments.inputs, 64) @ mixing / 8).split(200))
    before, started, cpu = _peak(), time.perf_counter(), time.process_time()
    repaired = repair(pruned, network, loader, damping=arguments.damping)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    x = torch.randn(200, 64) @ mixing / 8
    wanted = network(x)
    errors = [float((other(x) - wanted).square().sum() / wanted.square().sum()) for other in (pruned, repaired)]
    weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    figures = {"weights": weights, "seconds": seconds, "CPU seconds": cpu, "peak MiB before": before, "after": _peak()}
    figures |= {"error pruned": errors[0], "repaired": errors[1]}
    print_table(list(figures), [[f"{value:.4g}" for value in figures.values()]])
    write_json(arguments.json, figures)


def _peak() -> float:
    """Most memory that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

"""What the surroundings of a training loop do to its steps: fused Adam, threads, and what the C library keeps.

Every setting runs in a process of its own, because the allocator and the threads are set up when a process starts. The
processes take turns, round by round, and wall time is compared: the median over rounds of each over the plain setting.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from networks import CASES, Trainer
from rounds import print_table, write_json

from bensemble import kl_divergence
from convert import bayesify


@dataclass(frozen=True)
class Setting:
    """How a process runs.

    Attributes:
        threads: Of torch.
        fused: Whether Adam is the fused one.
        variables: Environment variables.
    """

    threads: int = 1
    fused: bool = False
    variables: dict[str, str] = field(default_factory=dict)


#: glibc then neither maps large blocks afresh each time nor hands memory back to the kernel.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}

SETTINGS = {
    "plain: one thread, default Adam": Setting(),
    "fused Adam": Setting(fused=True),
    "freed memory is kept": Setting(variables=KEEP),
    "two threads": Setting(threads=2),
    "all three": Setting(threads=2, fused=True, variables=KEEP),
}
PLAIN = next(iter(SETTINGS))
NETWORKS = ("Linear 4096, batch 64", "MLP 784-400-400-10, batch 128", "ResNet-18-like, width 32, batch 16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for the steps of one process")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("SETTING", "NETWORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        setting, network = options.measure
        print(" ".join(map(str, measured(SETTINGS[setting], network, options.seconds))))
        return
    figures: dict[str, dict[str, list[float]]] = {}
    for network in NETWORKS:
        rounds = [
            {name: in_own_process(name, network, options.seconds) for name in SETTINGS} for _ in range(options.rounds)
        ]
        for name in SETTINGS:
            ratios = ([mine / its for mine, its in zip(r[name], r[PLAIN], strict=True)] for r in rounds)
            figures.setdefault(name, {})[network] = [statistics.median(column) for column in zip(*ratios, strict=True)]
    print("A step over the same step in the plain setting: deterministic / Bayesian.\n")
    rows = [
        [name, *(" / ".join(f"{ratio:.2f}" for ratio in figures[name][network]) for network in NETWORKS)]
        for name in SETTINGS
    ]
    print_table(["setting", *NETWORKS], rows)
    write_json(options.json, figures)


def in_own_process(setting: str, network: str, seconds: float) -> list[float]:
    """Seconds of a deterministic and of a Bayesian step."""
    chosen = SETTINGS[setting]
    variables = os.environ | {"OMP_NUM_THREADS": str(chosen.threads)} | chosen.variables
    command = [sys.executable, "-W", "ignore", __file__, "--measure", setting, network, "--seconds", str(seconds)]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return [float(value) for value in done.stdout.split()]


def measured(setting: Setting, network: str, seconds: float) -> tuple[float, float]:
    """Median wall seconds of a deterministic and of a Bayesian step in this process."""
    torch.set_num_threads(setting.threads)
    model, case = CASES[network].build(), CASES[network]
    deterministic = Trainer(model, case, None, setting.fused)
    bayesian = Trainer(bayesify(model), case, kl_divergence, setting.fused)
    return _median_step(deterministic, seconds), _median_step(bayesian, seconds)


def _median_step(trainer: Trainer, seconds: float) -> float:
    trainer.step()
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 3:
        start = time.perf_counter()
        trainer.step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()

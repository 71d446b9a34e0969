"""``python -m properties``: thousands of random networks, and the seeded faults. Prints the census."""

from __future__ import annotations

import argparse
import sys

import torch

from .census import LEAST_SHARE, REQUIRED, Census, describe, draw_recipes, shrunk
from .checks import PROPERTIES, check_recipe
from .faults import FAULTS, examples_until_caught
from .recipes import TRAITS


def main() -> int:
    """Run both and say what failed; the exit code is 1 for any failure, fault not caught, or share too small."""
    parser = argparse.ArgumentParser(prog="properties")
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of hypothesis, which draws the recipes")
    parser.add_argument("--onnx-each", type=int, default=16, help="every so manyth network becomes an ONNX file")
    parser.add_argument("--skip", type=int, default=0, help="how many of the models another run has done")
    parser.add_argument("--no-faults", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn = draw_recipes(options.models, options.seed)
    census = Census()
    census.run(drawn, options.onnx_each, check_recipe, options.skip)
    done = len(census.passed) + len(census.failed)
    print(f"\nseed {options.seed}: {done:,} distinct networks, {census.written:,} of them as ONNX files, through")
    counts = f"{len(PROPERTIES) + 2} to {len(PROPERTIES) + 5} properties"
    print(f"{counts} in {census.seconds:,.0f} processor seconds; {len(census.failed)} failures")
    if census.failed:
        first, drawn_with = census.failed[0][0], (options.models, options.seed)
        print(f"the first of them shrinks to\n{shrunk(first, lambda r: check_recipe(r, onnx=True), *drawn_with)}")
    print(describe(drawn))
    small = [trait for trait in REQUIRED if sum(map(TRAITS[trait], drawn)) < LEAST_SHARE * len(drawn)]
    if small:
        print(f"fewer than {LEAST_SHARE:.0%} have: {', '.join(small)}")
    missed = 0
    if not options.no_faults:
        print("\n| fault in our own code | caught after | by |\n|---|---:|---|")
        for fault in FAULTS:
            count, found = examples_until_caught(fault)
            missed += count is None
            print(f"| {fault.name} | {'NOT CAUGHT' if count is None else count} | {found} |", flush=True)
    return int(bool(census.failed or small or missed))


if __name__ == "__main__":
    sys.exit(main())

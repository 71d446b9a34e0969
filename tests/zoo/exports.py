"""``python -m tests.zoo.exports [--every N]``: how many of the models that torch exports does export_onnx verify?

Each model runs in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from .entries import LIBRARIES, entries, entry
from .sample import SAMPLE


def main() -> None:
    """Run the models and print a table of what was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    parser.add_argument("--every", type=int, help="every Nth model of each library; default: the sample of the tests")
    parser.add_argument("--seconds", type=float, default=180, help="limit for one model")
    parser.add_argument("--here", metavar="LIBRARY/NAME", help="one model in this process")
    options = parser.parse_args()
    if options.here:
        print(_result(options.here))
        return
    counts: Counter[str] = Counter()
    for library in options.library or SAMPLE:
        listed = entries(library)
        chosen = listed[:: options.every] if options.every else [e for e in listed if e.name in SAMPLE[library]]
        for one in chosen:
            command = [sys.executable, "-W", "ignore", "-m", "tests.zoo.exports", "--here", one.key]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=options.seconds)
                words = (done.stdout.strip().splitlines() or [f"died with {done.returncode}"])[-1]
            except subprocess.TimeoutExpired:
                words = "not done in time"
            counts[words.partition(":")[0]] += 1
            print(f"{one.key:45} {words}", flush=True)
    print(dict(counts))


def _result(key: str) -> str:
    """What became of one model: "both", "torch alone", "export_onnx alone" or "neither", and why."""
    torch.manual_seed(0)
    built = entry(key).build()
    model = built.model.eval()
    ours, theirs = _failure(_exported, model, built.inputs), _failure(_exported_by_torch, model, built.inputs)
    if ours is None:
        return "both" if theirs is None else "export_onnx alone"
    return f"torch alone: {ours}" if theirs is None else f"neither: {ours}"


def _failure(run: Any, model: torch.nn.Module, inputs: Any) -> str | None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(model, Path(folder) / "model.onnx", inputs)
        except Exception as err:
            return f"{type(err).__name__}, {err}".replace("\n", " ")[:300]
    return None


def _exported(model: torch.nn.Module, path: Path, inputs: Any) -> None:
    from convert import export_onnx

    export_onnx(model, path, inputs)


def _exported_by_torch(model: torch.nn.Module, path: Path, inputs: Any) -> None:
    named = isinstance(inputs, dict)
    args = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    torch.onnx.export(model, args, str(path), kwargs=inputs if named else None, dynamo=True, verbose=False)


if __name__ == "__main__":
    main()

"""What an export costs beside ``torch.onnx.export`` alone, which neither checks its file nor optimises for any runtime.

CPU time on one thread, the median over rounds of ratios from the same round; each variant has exported once before, so
imports count for nobody. The files are those of a network that is trained no further: weights do not change the time.

Run ``python benchmarks/exporting.py``; ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from onnx_uncertainty import lenet5, resnet18
from rounds import interleave, print_table, write_json
from torch import nn

from convert import bayesify, export_onnx, last_layer


def torch_alone(network: nn.Module, x: torch.Tensor, path: Path) -> None:
    """The exporter of torch as most people call it, with a batch of any size."""
    with contextlib.redirect_stdout(io.StringIO()):
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(network, (x,), path, dynamo=True, dynamic_shapes=shapes, external_data=False)


def variants(network: nn.Module, x: torch.Tensor, folder: Path) -> dict[str, Callable[[], Any]]:
    """The exports of one network."""
    network.eval()
    sure, whole = bayesify(network, include=last_layer(network, x)), bayesify(network)
    kinds: dict[str, Any] = {"outputs": "uncertainty", "likelihood": "categorical"}
    return {
        "torch.onnx.export": lambda: torch_alone(network, x, folder / "torch.onnx"),
        "mean": lambda: export_onnx(network, folder / "mean.onnx", x),
        "mean, verify=False": lambda: export_onnx(network, folder / "mean.onnx", x, verify=False),
        "uncertainty, closed": lambda: export_onnx(sure, folder / "closed.onnx", x, **kinds),
        "uncertainty, 16 samples": lambda: export_onnx(whole, folder / "samples.onnx", x, num_samples=16, **kinds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    networks = {"LeNet-5": (lenet5(), torch.rand(8, 1, 28, 28)), "ResNet-18": (resnet18(), torch.rand(2, 3, 64, 64))}
    rows, written = [], {}
    for name, (network, x) in networks.items():
        with tempfile.TemporaryDirectory() as folder:
            timings = interleave(variants(network, x, Path(folder)), "torch.onnx.export", options.rounds)
        rows += [[name, kind, f"{t.seconds:.2f}", f"{t.ratio:.2f}"] for kind, t in timings.items()]
        written |= {f"{name}, {kind}": t.ratio for kind, t in timings.items()}
    print_table(["network", "export", "CPU s", "over torch's"], rows)
    write_json(options.json, written)


if __name__ == "__main__":
    main()

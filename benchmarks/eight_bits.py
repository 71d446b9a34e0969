"""int8 files on processors without VNNI, which add products of bytes in pairs in 16 bits, where they may saturate.

Five networks trained on half of scikit-learn's digits. Each gets two int8 files: as ``export_onnx`` writes it, with
weights of seven bits, and with all eight. Both run in exact arithmetic (the graph as it stands, in float32) and in
ONNX Runtime's own kernels on a Haswell, which is emulated by QEMU. Errors are root mean squares over those of the
outputs of the float network, for the other half of the digits.

Run ``python benchmarks/eight_bits.py``; ten minutes. Needs ``qemu-x86_64`` (Debian: qemu-user).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from onnx_draws import cnn, trained
from onnx_uncertainty import lenet5, resnet18
from onnxruntime import quantization
from sklearn.datasets import load_digits
from torch import Tensor, nn

from convert import export_onnx

QUANTIZE = quantization.quantize_static

#: Runs every file of a folder on x.npy of that file, as the processor at hand does it.
CLIENT = """
import pathlib, sys, numpy, onnxruntime
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if "exact" in sys.argv[2:]:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, numpy.load(path.with_suffix(".x.npy"))
    found = [session.run(None, {name: x[at : at + 64]})[0] for at in range(0, len(x), 64)]
    numpy.save(path.with_suffix(f".{sys.argv[2]}.npy"), numpy.concatenate(found))
"""


class Encoder(nn.Module):
    """Two transformer encoder layers over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.1 * torch.randn(8, 32))
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.body(self.embed(rows) + self.place).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.lstm(rows)[0][:, -1])


def resized(images: Tensor, side: int, channels: int) -> Tensor:
    larger = nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return larger.expand(-1, channels, -1, -1).contiguous()


def ten_classes() -> nn.Module:
    return nn.Sequential(*resnet18()[:-1], nn.Linear(512, 10))


#: Name, network, its inputs from images of shape (n, 1, 8, 8), epochs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor], int]] = {
    "digits CNN": (cnn, lambda images: images, 20),
    "LeNet-5": (lenet5, lambda images: resized(images, 28, 1), 20),
    "ResNet-18": (ten_classes, lambda images: resized(images, 32, 3), 12),
    "encoder": (Encoder, lambda images: images[:, 0], 40),
    "LSTM": (Recurrent, lambda images: images[:, 0], 40),
}


def rounded(bits: int, *arguments: Any, **options: Any) -> None:
    """ONNX Runtime's quantizer, with this many bits for the weights."""
    QUANTIZE(*arguments, **{**options, "reduce_range": bits == 7})


def write(folder: Path, seed: int) -> dict[str, np.ndarray]:
    """The files, their inputs, and the outputs of the float networks."""
    images, y = load_digits(return_X_y=True)
    torch.manual_seed(seed)
    order = torch.randperm(len(y))
    x, y = torch.tensor(images, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16, torch.tensor(y)[order]
    np.save(folder / "labels.npy", y[898:].numpy())
    found = {}
    for name, (make, prepare, epochs) in NETWORKS.items():
        inputs = prepare(x)
        network = trained(make().train(), inputs[:898], y[:898], epochs)
        with torch.no_grad():
            found[name] = torch.cat([network(rows) for rows in inputs[898:].split(64)]).numpy()
        for bits in (7, 8):
            path = folder / f"{name} {bits}.onnx"
            with patch.object(quantization, "quantize_static", partial(rounded, bits)):
                export_onnx(network, path, inputs[:2], quantize="int8", calibration_data=inputs[:300])
            np.save(path.with_suffix(".x.npy"), inputs[898:].numpy())
    return found


def main(seed: int) -> None:
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        sys.exit("qemu-x86_64 is not installed (Debian: apt-get install qemu-user)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outputs, client = write(folder, seed), [sys.executable, "-c", CLIENT, name]
        subprocess.run([*client, "exact"], check=True)
        haswell = subprocess.run([emulator, "-cpu", "Haswell", *client, "haswell"], capture_output=True, text=True)
        if haswell.returncode:
            sys.exit(haswell.stderr[-2000:])
        labels = np.load(folder / "labels.npy")
        print(f"onnxruntime {onnxruntime.__version__}, seed {seed}, {len(labels)} digits\n")
        columns = ("exact, 8", "Haswell, 8", "exact, 7", "Haswell, 7", "last over first", "right, float", "right, 7")
        print(f"| network | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for network, want in outputs.items():
            errors, right = {}, (want.argmax(1) == labels).mean()
            for bits in (8, 7):
                for how in ("exact", "haswell"):
                    answers = np.load(folder / f"{network} {bits}.{how}.npy")
                    errors[bits, how] = np.sqrt(np.mean((answers - want) ** 2) / np.mean(want**2))
            row = " | ".join(f"{100 * error:.2f} %" for error in errors.values())
            ratio, int8 = errors[7, "haswell"] / errors[8, "exact"], (answers.argmax(1) == labels).mean()
            print(f"| {network} | {row} | {ratio:.2f} | {100 * right:.1f} % | {100 * int8:.1f} % |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    warnings.filterwarnings("ignore")
    main(parser.parse_args().seed)

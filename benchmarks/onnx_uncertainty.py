"""What an uncertainty file costs in ONNX Runtime: size and latency over those of the mean network, on one thread.

Weight draws of the whole network, a closed-form last layer, and the same with the novelty of all layers and of the last
features alone. The fits are to random numbers, which neither size nor latency can tell. The sessions take turns; every
ratio is the median over rounds of two times from the same round.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from networks import mlp
from rounds import interleave, print_table, write_json
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify, export_onnx, last_layer


class Block(nn.Module):
    """The residual block of a ResNet-18."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            if inputs != width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


def resnet18() -> nn.Sequential:
    """The layers of torchvision's ResNet-18, 11.7 million parameters."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for width in (64, 128, 256, 512):
        blocks += [Block(inputs, width, 1 if width == 64 else 2), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def lenet5() -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU()]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), *head)


class Encoder(nn.Module):
    """Two transformer encoder layers of width 64 over 32 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.embed = nn.Linear(16, 64)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


@dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        make: Builds it.
        example: Shape of one example.
        features: The layer whose outputs are the last features.
        classes: Number of outputs.
        batches: Batch sizes.
        fitted: Shape of an example for the fits, where it is not the same.
    """

    make: Callable[[], nn.Module]
    example: tuple[int, ...]
    features: str
    classes: int = 10
    batches: tuple[int, ...] = (1, 64)
    fitted: tuple[int, ...] | None = None


ROWS = {
    "LeNet-300-100": Row(lambda: mlp(784, 300, 100, 10), (784,), "2"),
    "MLP 784-400-400-10": Row(mlp, (784,), "2"),
    "LeNet-5": Row(lenet5, (1, 28, 28), "9"),
    "transformer encoder": Row(Encoder, (32, 16), "encoder.layers.1.linear2"),
    "ResNet-18": Row(resnet18, (3, 224, 224), "11.conv2", 1000, (1, 4), (3, 64, 64)),
}


def session(path: Path) -> onnxruntime.InferenceSession:
    """A session on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def write_files(row: Row, num_samples: int, folder: Path) -> dict[str, int]:
    """The size in bytes of each file, by its name in the folder; the first is the mean network."""
    network = row.make().eval()
    x = torch.randn(2, *row.example)
    inputs = torch.randn(2000, *(row.fitted or row.example))
    loader = DataLoader(TensorDataset(inputs, torch.arange(2000) % row.classes), batch_size=50)
    head = last_layer(network, x)
    sure = bayesify(network, include=head, example_inputs=x)
    bensemble.fit_posterior(sure, loader, likelihood="categorical")
    kinds = {
        f"samples, K = {num_samples}": (bayesify(network), {"num_samples": num_samples, "method": "samples"}),
        "closed form": (sure, {}),
        "closed form, novelty": (sure, {"novelty": bensemble.fit_novelty(sure, loader, loader)}),
        "closed form, novelty of the last features": (
            sure,
            {"novelty": bensemble.fit_novelty(sure, loader, loader, layers=[row.features])},
        ),
    }
    sizes = {"mean": export_onnx(network, folder / "mean", x).size}
    for name, (model, options) in kinds.items():
        report = export_onnx(model, folder / name, x, outputs="uncertainty", likelihood="categorical", **options)
        sizes[name] = report.size
    return sizes


def measure(row: Row, num_samples: int, rounds: int, folder: Path) -> dict[str, tuple[float, dict[int, float]]]:
    """For each file but the mean network's its size and, by batch size, its latency, as ratios to the mean network."""
    sizes = write_files(row, num_samples, folder)
    sessions = {name: session(folder / name) for name in sizes}
    found: dict[str, tuple[float, dict[int, float]]] = {
        name: (size / sizes["mean"], {}) for name, size in sizes.items()
    }
    for batch in row.batches:
        feed = {sessions["mean"].get_inputs()[0].name: torch.randn(batch, *row.example).numpy()}
        runs = {name: lambda s=s, feed=feed: s.run(None, feed) for name, s in sessions.items()}
        for name, timing in interleave(runs, "mean", rounds).items():
            found[name][1][batch] = timing.ratio
    return {name: figures for name, figures in found.items() if name != "mean"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--samples", type=int, default=16, help="weight draws K")
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, dict[str, tuple[float, dict[int, float]]]] = {}
    rows: list[list[str]] = []
    for name, row in ROWS.items():
        if options.only and options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the posterior is neither trained nor fitted; latency does not care
            figures[name] = measure(row, options.samples, options.rounds, Path(folder))
        rows += [
            [name, file, f"{size:.2f}", ", ".join(f"{ratio:.2f} (batch {b})" for b, ratio in ratios.items())]
            for file, (size, ratios) in figures[name].items()
        ]
    print_table(["network", "file", "size", "latency"], rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()

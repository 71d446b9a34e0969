"""What zeros, compaction and eight bits bring in ONNX Runtime: a ResNet-18 at 224 pixels on one thread.

Half of the output channels of every layer are dead, their norms' shifts left in place; another copy has 90 % of its
weights zero one by one. All files are timed in interleaved rounds of one run; ratios are to the dense file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from onnx_uncertainty import resnet18
from rounds import print_table, write_json
from torch import nn

from convert import Comparison, OnnxModel, compact, compare_onnx, export_onnx


def kill_channels(network: nn.Module) -> nn.Module:
    """Zero the first half of the output channels of every convolution; norms keep their shifts."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data[: module.out_channels // 2] = 0
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def kill_weights(network: nn.Module, share: float) -> nn.Module:
    """Zero that share of every weight of two or more dimensions, at random."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < share] = 0
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(16, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "compacted", "int8", "compacted int8")}
        network = kill_channels(resnet18())
        small = compact(network, images[:2])
        for name, model in (("dense", network), ("compacted", small)):
            export_onnx(model, files[name], images[:2])
        for name, model in (("int8", network), ("compacted int8", small)):
            export_onnx(model, files[name], images[:2], quantize="int8", calibration_data=images)
        channels = compare_onnx(files, images, model=network, batch_sizes=(1,), rounds=options.rounds)
        pruned = kill_weights(resnet18(), 0.9)
        zeros = {name: Path(folder) / f"zeros {name}.onnx" for name in ("dense", "sparse")}
        for name, path in zeros.items():
            export_onnx(pruned, path, images[:2], sparse=name == "sparse")
        weights = compare_onnx(zeros, images, model=pruned, batch_sizes=(1,), rounds=options.rounds)
        same = torch.equal(OnnxModel(zeros["dense"])(images), OnnxModel(zeros["sparse"])(images))
    show("half of the channels dead", channels)
    show("90 % of the weights zero", weights)
    print(f"\nOutputs of the sparse file are {'those' if same else 'NOT those'} of the dense one, bit for bit.")
    write_json(options.json, {"channels": channels.rows(), "weights": weights.rows(), "identical": same})


def show(title: str, found: Comparison) -> None:
    """A table with ratios to the first file."""
    first = found.variants[0]
    rows = [
        [
            *(variant.name, f"{variant.size / 1e6:.2f}", f"{variant.size / first.size:.3f}"),
            *(f"{variant.gzip_size / 1e6:.2f}", f"{variant.latency[1].ms:.1f}", f"{variant.latency[1].ratio:.3f}"),
            f"{variant.error.relative_error:.1e}",
        ]
        for variant in found.variants
        if variant.error is not None
    ]
    print(f"\nResNet-18, 224 px, {title}\n")
    print_table(["file", "MB", "over dense", "gzip MB", "ms at batch 1", "over dense", "error / max"], rows)


if __name__ == "__main__":
    main()

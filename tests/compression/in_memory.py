"""Networks in memory in place of files, for what does not depend on ONNX."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from convert import bayesify
from convert.compression import Point


class Files:
    """Stands in for the exporter and ONNX Runtime: each path keeps the network itself."""

    def __init__(self):
        self.networks = {}

    def export(self, model, path, example_inputs, **options):
        self.networks[path] = model
        path.write_bytes(b"file")
        weights = sum(parameter.numel() for parameter in model.parameters())
        return SimpleNamespace(parameters=weights, size=4 * weights, gzip_size=4 * weights)

    def compare(self, paths, example_inputs, *, batch_sizes, rounds):
        latency = {batch_sizes[0]: SimpleNamespace(ms=1.0, ratio=1.0)}
        return {name: SimpleNamespace(latency=latency) for name in paths}


def mlp(width=32):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))
    model = bayesify(network, init_sigma=lambda name, weight: weight.abs() + 0.01)
    return model.eval(), torch.randn(64, 16)


def closeness(model, x):
    """A score that only the network itself has, 0, and nothing else comes near."""
    wanted = model.eval()(x).detach()
    return lambda network: -100 * float((network(x) - wanted).square().mean())


def measured(metric, size, latency):
    return Point("p", 1.0, "weight", None, metric, 1 - metric, 0.5, 10, size, size, latency, 1.0)

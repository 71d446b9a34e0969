"""The fixed set of files, and what Python says for their inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import bensemble
from bensemble.likelihoods import Categorical
from convert import bayesify, compact, export_onnx, last_layer, to_deterministic
from convert.onnx.uncertainty.draws import weight_draws

__all__ = ["build", "coded", "decoded"]

BATCH, HELD_OUT = 5, 99


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.body = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.down(x)))


def cnn() -> nn.Module:
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 3))


NETWORKS: dict[str, tuple[Any, Any]] = {
    "CNN": (cnn, lambda count: torch.randn(count, 1, 8, 8)),
    "encoder": (Encoder, lambda count: torch.randint(0, 20, (count, 7))),
    "recurrent": (Recurrent, lambda count: torch.randn(count, 9, 6)),
    "segmenter": (Segmenter, lambda count: torch.randn(count, 1, 8, 8)),
}


def build(folder: Path) -> list[dict[str, Any]]:
    """Write all files and say for each what goes in, what Python says comes out, and how exact it can be."""
    torch.manual_seed(0)
    found: list[dict[str, Any]] = []

    def add(name: str, model: Any, expected: Mapping[str, Tensor], inputs: Tensor, **options: Any) -> None:
        path = folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
        if "likelihood" not in options:
            options["output_names"] = ["output"]
        report = export_onnx(model, path, inputs[:1], **options)
        print(f"{name}: {report.size:,} bytes", flush=True)
        values = {key: value.detach().numpy() for key, value in expected.items()}
        tolerance = 2e-2 if inputs.dtype == torch.float16 else 1e-5
        entry: dict[str, Any] = {"file": path.name, "label": name, "tolerance": tolerance, "rounding": None}
        entry["runtimes"] = report.runtimes
        if report.rms_error is not None:
            entry |= {"tolerance": 0.05, "rounding": report.rms_error}
        entry["inputs"] = [{**coded(inputs.numpy(), report.inputs[0].dtype), "name": report.inputs[0].name}]
        entry["outputs"] = [{**coded(values[info.name], info.dtype), "name": info.name} for info in report.outputs]
        found.append(entry)

    for name, (make, draw) in NETWORKS.items():
        net, x = make().eval(), draw(BATCH)
        likelihood = Categorical(dim=1)
        bnn = bayesify(net, init_sigma=0.05, example_inputs=x).eval()
        sure = {"outputs": "uncertainty", "likelihood": likelihood, "num_samples": 16}
        add(f"{name}, mean", net, {"output": net(x)}, x)
        add(f"{name}, samples", bnn, predicted(drawn(bnn), x, likelihood), x, **sure)
        add(f"{name}, int8", net, {"output": net(x)}, x, quantize="int8", calibration_data=draw(100))
        if name in ("CNN", "segmenter"):
            head = bayesify(net, include=last_layer(net, x), init_sigma=0.3, example_inputs=x).eval()
            train, held_out = [labelled(net, draw(200))], [labelled(net, draw(HELD_OUT))]
            novelty = bensemble.fit_novelty(head, train, held_out, likelihood=likelihood)
            expected = predicted(head, x, likelihood, novelty=novelty)
            add(f"{name}, closed form with novelty", head, expected, x, **sure, novelty=novelty)
        if name == "CNN":
            others = [net, cnn().eval(), cnn().eval()]
            add("CNN, ensemble", others, predicted(others, x, likelihood), x, **sure)
            thin = sparse(net)
            add("CNN, sparse", thin, {"output": thin(x)}, x, sparse=True)
            half = make().eval().half()
            add("CNN, float16", half, {"output": half(x.half())}, x.half())
            smaller = compact(without_channels(net), x)
            add("CNN, compacted", smaller, {"output": smaller(x)}, x)
    return found


def labelled(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs, and the class that a network thinks most probable."""
    return x, net(x).argmax(1)


def predicted(model: Any, x: Tensor, likelihood: Categorical, **more: Any) -> dict[str, Tensor]:
    """What ``predict`` says."""
    p = bensemble.predict(model, x, likelihood=likelihood, **more)
    names = ["probs", "entropy", "mutual_information", *(["novelty", "novelty_pvalue"] if more else [])]
    return {name: getattr(p, name).float() for name in names}


def drawn(bnn: nn.Module) -> list[nn.Module]:
    """Networks that hold the draws of a file."""
    (draws,) = weight_draws([bnn], 16, torch.Generator().manual_seed(0))
    networks = [to_deterministic(bnn).eval() for _ in range(16)]
    with torch.no_grad():
        for k, network in enumerate(networks):
            for name, each in draws.items():
                network.get_parameter(name).copy_(each.samples[k])
    return networks


def sparse(net: nn.Module) -> nn.Module:
    """A copy with nine tenths of zeros."""
    thin = cnn().eval()
    thin.load_state_dict(net.state_dict())
    for module in thin:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.remove(prune.l1_unstructured(module, "weight", 0.9), "weight")
    return thin


def without_channels(net: nn.Module) -> nn.Module:
    """A copy with half of the channels of the first layers at zero."""
    thin = cnn().eval()
    thin.load_state_dict(net.state_dict())
    with torch.no_grad():
        for index in (0, 5):
            half = len(thin[index].weight) // 2
            thin[index].weight[:half] = 0
            thin[index].bias[:half] = 0
        thin[1].bias[:8] = thin[1].running_mean[:8] = 0
    return thin


def coded(array: np.ndarray, dtype: str) -> dict[str, Any]:
    """An array for JSON; float16 as its bits, which JavaScript has no numbers for."""
    values = np.asarray(array, dtype=dtype)
    flat = values.view("uint16") if dtype == "float16" else values
    return {"dtype": dtype, "shape": list(values.shape), "data": flat.ravel().tolist()}


def decoded(value: Mapping[str, Any]) -> np.ndarray:
    """The array of :func:`coded`."""
    dtype = value["dtype"]
    flat = np.array(value["data"], dtype="uint16" if dtype == "float16" else dtype)
    return (flat.view("float16") if dtype == "float16" else flat).reshape(value["shape"])


def write(folder: Path) -> list[dict[str, Any]]:
    """Build the files, and beside them ``files.json`` for the clients."""
    found = build(folder)
    (folder / "files.json").write_text(json.dumps(found))
    return found

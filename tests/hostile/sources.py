"""The whole files that are then damaged: one of each kind that we read, made by the code that users make them with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import bensemble
from convert import bayesify, export_onnx
from convert.runtime import Monitor, UncertaintySession

__all__ = ["INPUTS", "Network", "Picture", "make_sources"]

INPUTS = torch.linspace(-1, 1, 2 * 36).reshape(2, 1, 6, 6)


class Network(nn.Module):
    """Local twins, sampled weights, a norm with buffers, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Linear(6, 10)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.norm(x + self.attention(x, x, x, need_weights=False)[0]))


class Picture(nn.Sequential):
    """A classifier of small pictures."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def make_sources(folder: Path) -> None:
    """Write every source into a folder; the same bytes every time."""
    torch.manual_seed(0)
    with_mask = bayesify(Network(), prior="pretrained")
    bensemble.prune(with_mask, sparsity=0.3)
    bensemble.save(with_mask, folder / "model.checkpoint")
    state = Network().state_dict()
    _save_weights(state, folder)
    bnn = bayesify(Picture(), init_sigma=0.1).eval()
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(0.1 * torch.rand_like(posterior.rho))  # as if it were trained
    x = torch.randn(200, 1, 6, 6)
    generator = torch.Generator().manual_seed(1)
    held_out = bensemble.predict(bnn, x, 4, likelihood="categorical", generator=generator)
    calibration = bensemble.calibrate(held_out, torch.distributions.Categorical(probs=held_out.probs).sample())
    (folder / "calibration.json").write_text(calibration.to_json())
    export_onnx(bnn, folder / "plain.onnx", x[:1])
    options = {"outputs": "uncertainty", "likelihood": "categorical", "calibration": calibration}
    export_onnx(bnn, folder / "sure.onnx", x[:1], metadata={"classes": "cat,dog,eel"}, **options)
    for name in ("plain", "sure"):  # as a tool leaves them that reads and writes them: without the digest in front
        onnx.save(onnx.load(folder / f"{name}.onnx"), folder / f"{name}-edited.onnx")
    session = UncertaintySession(folder / "sure.onnx", threads=1)
    monitor = Monitor(session)
    monitor.update(session(x.numpy()))
    (folder / "monitor.json").write_text(monitor.to_json())
    np.savez(folder / "data.npz", inputs=x[:8].numpy(), labels=np.arange(8) % 3)
    images = {name: np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2) for name, n in (("x_train", 2010), ("x_test", 5))}
    digits = {f"y_{name[2:]}": np.arange(len(images[name])) % 10 for name in images}
    np.savez(folder / "mnist.npz", **images, **digits)


def _save_weights(state: dict[str, Tensor], folder: Path) -> None:
    import json

    from safetensors.torch import save_file

    single = {name: value for name, value in state.items() if name != "head.weight"}  # stored once
    save_file(single, folder / "weights.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, folder / "weights.pt")
    torch.save(state, folder / "weights.legacy", _use_new_zipfile_serialization=False)
    names, shards = sorted(single), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"shard-{number}.safetensors"
        save_file({name: single[name] for name in part}, folder / file)
        shards |= dict.fromkeys(part, file)
    size = sum(value.numel() * value.element_size() for value in single.values())
    index = {"metadata": {"total_size": size}, "weight_map": shards}
    (folder / "weights.index.json").write_text(json.dumps(index, indent=2))

"""Networks that the export tests share, and a session that knows nothing of the code under test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def run_file(path: Path, **inputs: Tensor) -> dict[str, np.ndarray]:
    """The outputs of a file by name, from ONNX Runtime with its own settings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()}), strict=True))


def assert_same(got: np.ndarray, expected: Tensor, bound: float = 1e-5) -> None:
    """The promise of ``verify``: largest difference at most ``bound`` times the largest expected value."""
    assert got.shape == tuple(expected.shape)
    expected = expected.detach()
    assert np.abs(got - expected.numpy()).max() <= bound * expected.abs().max().item()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def cnn() -> nn.Sequential:
    """A CNN whose BatchNorm has seen data, so that train and eval differ."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )
    net(torch.randn(16, 1, 8, 8) * 3 + 1)
    return net


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.skip = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + self.skip(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(4, 3)
        self.table = nn.Linear(2, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.image(image) + self.table(table)


class Config:
    def __init__(self) -> None:
        self.use_cache = True


class TinyText(nn.Module):
    """Shaped like a Hugging Face encoder: dict inputs, an attention mask, a mapping out, a cache by default."""

    def __init__(self, most: int = 16) -> None:
        super().__init__()
        self.config = Config()
        self.words = nn.Embedding(20, 8)
        self.positions = nn.Embedding(most, 8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: None = None) -> dict:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, torch.finfo(scores.dtype).min)
        x = x + scores.softmax(-1) @ self.value(x)
        out = {"logits": self.head(x[:, 0]), "hidden_states": (x, x * 2)}
        return {**out, "cache": self.key(x)} if self.config.use_cache else out


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int = 1) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.body = kind(4, 8, num_layers=layers, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.words(ids))[0])


@dataclass
class Answer:
    logits: Tensor
    features: list[Tensor]
    note: str = "kept out of the file"


class Structured(nn.Module):
    """Returns what ``make`` builds of the input and the layer's output."""

    def __init__(self, make) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.make = make

    def forward(self, x: Tensor):
        return self.make(x, self.layer(x))


class OnShape(nn.Module):
    """Doubles the input where ``test(batch size)`` is true."""

    def __init__(self, test) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.test = test

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * 2 if self.test(x.shape[0]) else x)

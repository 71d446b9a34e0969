"""CLINC150: a head on MiniLM features learns 150 intents; strangers are queries out of their scope."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from .features import cached, of_sentences
from .tasks import MEMBERS, Task, head, standardised

EPOCHS, HIDDEN = 30, (256, 128)


def load(path: Path, cache: Path) -> dict[str, Any]:
    """Features of a JSON file with lists of pairs (query, intent) under train, val, test and oos_test."""
    return cached(cache / "clinc-features.pt", lambda: _features(path))


def task(data: dict[str, Any], seed: int) -> Task:
    """The parts are given: seeds differ in their networks only."""
    parts = standardised(*(data[f"x_{part}"] for part in ("train", "val", "test", "oos_test")))
    pairs = [(x, data[f"y_{part}"]) for x, part in zip(parts[:3], ("train", "val", "test"), strict=True)]
    classes = int(data["y_train"].max()) + 1
    seeds = range(100 * seed, 100 * seed + MEMBERS)

    def network(rate: float) -> torch.nn.Module:
        return head(parts[0].shape[1], HIDDEN, classes, rate)

    return Task("clinc", network, seeds, EPOCHS, *pairs, {"out of scope": parts[3]})


def _features(path: Path) -> dict[str, torch.Tensor]:
    queries = json.loads(path.read_text())
    intents = sorted({intent for _, intent in queries["train"]})
    found = {}
    for part in ("train", "val", "test", "oos_test"):
        found[f"x_{part}"] = of_sentences([query for query, _ in queries[part]])
        if part != "oos_test":
            found[f"y_{part}"] = torch.tensor([intents.index(intent) for _, intent in queries[part]])
    return found

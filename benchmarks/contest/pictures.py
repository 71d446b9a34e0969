"""MNIST: every method and seed answers once, and is judged."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from image_methods import methods
from images import Images, load_images
from rounds import print_table
from scores import auroc, brier_terms, class_scores, ece_bootstrap, entropy, nll_terms, paired_bootstrap
from torch import Tensor

#: Order of the rows; what is not here is left out.
ROWS = (
    "deterministic", "deterministic, trained with dropout", "MC dropout", "deep ensemble of 5",
    "laplace-torch, last layer", "ours, training-free", "ours, fine-tuned",
)  # fmt: skip


def judge_pictures(mnist: Path, fashion: Path, cache: Path, seeds: int, wanted: list[str] | None) -> dict[str, Any]:
    """Print the table of all methods, and differences to the deterministic network and to MC dropout."""
    images = load_images(mnist, fashion)
    found = methods()
    answers = {
        name: [answer(name, found[name], cache, images, seed) for seed in range(seeds)]
        for name in ROWS
        if name in found and name in (wanted or ROWS)
    }
    y = images.test.y
    figures = {name: [scores(reply, y) for reply in replies] for name, replies in answers.items()}
    columns = list(next(iter(figures.values()))[0])
    print(f"\nLeNet-5 on MNIST, mean of {seeds} seeds\n")
    print_table(
        ["method", *columns, "forwards", "settings (first seed)"],
        [
            [name, *(f"{statistics.mean(row[c] for row in rows):.4g}" for c in columns)]
            + [answers[name][0][column] for column in ("cost", "settings")]
            for name, rows in figures.items()
        ],
    )
    return {"scores": figures, "differences": differences(answers, y)}


def answer(name: str, method: Any, cache: Path, images: Images, seed: int) -> dict[str, Any]:
    """What a method says about the test pictures and the strangers, from the cache where it spoke before."""
    path = cache / "answers" / f"mnist-{name.replace(' ', '_')}-seed{seed}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    torch.manual_seed(seed)
    reply = method(cache, images, seed)
    found = {
        "probs": reply.probs(images.test.x).float(),
        "strangers": {place: entropy(reply.probs(x)).float() for place, x in images.strangers.items()},
        "settings": reply.settings,
        "cost": reply.cost,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    print(f"{name}, seed {seed}: {class_scores(found['probs'], images.test.y)}, {reply.settings}", flush=True)
    return found


def scores(reply: dict[str, Any], y: Tensor) -> dict[str, float]:
    familiar = entropy(reply["probs"]).float()
    strange = {f"AUROC {place}": auroc(familiar, values) for place, values in reply["strangers"].items()}
    return class_scores(reply["probs"], y) | strange


def differences(answers: dict[str, list[dict[str, Any]]], y: Tensor) -> dict[str, Any]:
    """Every row of ours against two others, paired by test picture; below 0 is better."""
    found = {}
    rows = []
    for ours in (name for name in answers if name.startswith("ours")):
        for other in (name for name in ("deterministic", "MC dropout") if name in answers):
            row = {}
            for kind, terms in (("NLL", nll_terms), ("Brier", brier_terms)):
                pairs = zip(answers[ours], answers[other], strict=True)
                gaps = torch.stack([terms(mine["probs"], y) - terms(its["probs"], y) for mine, its in pairs])
                row[kind] = paired_bootstrap(gaps)
            pairs = list(zip(answers[ours], answers[other], strict=True))
            eces = [ece_bootstrap(mine["probs"], its["probs"], y) for mine, its in pairs]
            gap, error = (statistics.mean(values) for values in zip(*eces, strict=True))
            found[f"{ours} - {other}"] = row | {"ECE": (gap, error)}
            intervals = [f"{mean:+.5f} ({low:+.5f} .. {high:+.5f})" for mean, low, high in row.values()]
            rows.append([f"{ours} - {other}", *intervals, f"{gap:+.3f} ± {error:.3f}"])
    print("\nPaired differences with 95 % bootstrap intervals; ECE in points with its bootstrap error of one seed\n")
    print_table(["difference", "NLL", "Brier", "ECE"], rows)
    return found

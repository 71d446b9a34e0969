"""Train the network of the page and export it: digits.onnx and its sidecar, into a folder.

python examples/browser/train.py build/browser

The digits are those of scikit-learn, or MNIST's where BENSEMBLE_MNIST names its npz file.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify, export_onnx, last_layer


def load():
    """Ink from 0 to 1, shape (N, 1, side, side), the digits, and how they lie in their frame, in pixels."""
    if path := os.environ.get("BENSEMBLE_MNIST"):
        with np.load(path) as file:
            order = np.random.default_rng(0).permutation(len(file["y_train"]))[:10_000]
            x, y, white, frame = file["x_train"][order], file["y_train"][order], 255, {"box": "20", "pen": "2.4"}
    else:
        digits = load_digits()  # in the order of their 13 writers: those of the end are strangers to the network
        x, y, white, frame = digits.images, digits.target, 16, {"box": "8", "pen": "1.5"}
    return torch.tensor(x).float()[:, None] / white, torch.tensor(y).long(), frame


def by_other_hands(x):
    """The digits turned, slanted, narrower or wider, moved, by a thinner pen, at four times their resolution."""
    turn, slant, move = 0.1 * torch.randn(len(x)), 0.1 * torch.randn(len(x)), 0.04 * torch.randn(len(x), 2)
    width, height = 1 + 0.12 * torch.randn(len(x)), 1 + 0.05 * torch.randn(len(x))
    rows = [torch.stack([width, slant + turn, move[:, 0]], 1), torch.stack([-turn, height, move[:, 1]], 1)]
    fine = F.interpolate(x, scale_factor=4, mode="bilinear")
    fine = torch.lerp(fine, -F.max_pool2d(-fine, 3, 1, 1), torch.rand(len(x), 1, 1, 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(fine.shape), align_corners=False)
    return F.avg_pool2d(F.grid_sample(fine, grid, align_corners=False), 4)


def network(side):
    def block(channels, width):
        return [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*block(1, 32), *block(32, 64), *head)


def main(folder):
    torch.manual_seed(0)
    x, y, frame = load()
    train, chosen, held_out = (slice(0, len(x) // 2), slice(len(x) // 2, len(x) * 5 // 8), slice(len(x) * 5 // 8, None))
    model = network(x.shape[-1])
    epochs, loader = 40 if len(x) < 5000 else 10, DataLoader(TensorDataset(x[train], y[train]), 64, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * len(loader))
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(by_other_hands(images)), labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()

    # What is familiar is learned from the digits as they are: turned ones would make more of the world familiar.
    fit, choose, compare = (DataLoader(TensorDataset(x[part], y[part]), 500) for part in (train, chosen, held_out))

    bnn = bayesify(model, include=last_layer(model, x[:2]), example_inputs=x[:2])
    bensemble.fit_posterior(bnn, fit, likelihood="categorical", val_loader=choose)
    novelty = bensemble.fit_novelty(bnn, fit, compare)
    prediction = bensemble.predict(bnn, x[held_out], likelihood="categorical", novelty=novelty)
    options = {"likelihood": "categorical", "calibration": bensemble.calibrate(prediction, y[held_out], alpha=0.02)}
    options |= {"novelty": novelty, "reject": {"novelty_pvalue": 0.01}}
    options["metadata"] = {"classes": ",".join("0123456789"), **{f"frame.{key}": text for key, text in frame.items()}}
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(export_onnx(bnn, Path(folder) / "digits.onnx", x[:1], outputs="uncertainty", **options))
    print(
        f"right: {(prediction.probs.argmax(1) == y[held_out]).float().mean():.1%} of {len(y[held_out])} digits held out"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "build/browser")

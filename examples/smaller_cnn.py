"""Faster without labels: channels of a trained CNN go, the rest is repaired and cut out, and the files are timed.

python examples/smaller_cnn.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble.plots import labelled, on_axes
from convert import bayesify, channel_groups, compact, compare_onnx, export_onnx, prune_and_repair

# %% A network with BatchNorm, trained on the bundled digits
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
x = x.float().view(-1, 1, 8, 8) / 16
order = torch.randperm(len(x))
x, y = x[order], y[order]
loader, x_test, y_test = DataLoader(TensorDataset(x[:1200], y[:1200]), 100, shuffle=True), x[1200:], y[1200:]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
    nn.Linear(1024, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(8):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
model.eval()


def accuracy(network):
    with torch.no_grad():
        return float((network(x_test).argmax(1) == y_test).float().mean())


# %% Remove whole channels, solve for what is left, cut the zeros out, and write a file of each
groups = channel_groups(bayesify(model), x[:2])
files = {"whole": "whole.onnx"}
export_onnx(model, "whole.onnx", x[:1])
for share in (0.54, 0.7, 0.75):  # 17 of 32 channels leave blocks of 16; with 0.5 the file is slower than the whole
    pruned = prune_and_repair(model, list(x[:300].split(100)), sparsity=share, granularity=groups, steps=3).network
    files[f"{share:.0%} removed"] = f"small{share}.onnx"
    export_onnx(compact(pruned, x[:2]), files[f"{share:.0%} removed"], x[:1])

# %% Time all files in one run, and choose: the fastest that loses at most one point
table = compare_onnx(files, x_test, model=model, evaluate=accuracy, batch_sizes=(64,))
print(table)
before = table["whole"]
good = [file for file in table.variants if file.metric >= before.metric - 0.01]
after = min(good, key=lambda file: file.latency[64].ratio)
axes = on_axes(None)
for file in table.variants:
    axes.plot(file.latency[64].ms, 100 * file.metric, "o", label=f"{file.name}, {file.size / 1e3:.0f} kB")
labelled(axes, "ms for 64 images, one thread", "accuracy, %").figure.savefig("smaller_cnn.svg")
print(f"before: {before.metric:.1%} right, {before.size / 1e3:.0f} kB, {before.latency[64].ms:.2f} ms")
ratio = after.latency[64].ratio
print(f"after:  {after.metric:.1%} right, {after.size / 1e3:.0f} kB, {ratio:.2f} times the time, ", end="")
print(f"{100 * (before.metric - after.metric):.1f} points lost, {after.name}")

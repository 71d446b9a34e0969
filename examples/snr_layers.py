"""Signal-to-noise ratios of two posteriors by layer, fitted and trained to prune, and what files the second one gives.

python examples/snr_layers.py
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import plots, recipes
from convert import bayesify, compress, sparsity, to_deterministic

# %% A network that is larger than the task
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
x = x.float() / 16
order = torch.randperm(len(x))
train, val, new = (TensorDataset(x[i], y[i]) for i in order.split([1000, 300, 497]))
loader, val_loader = DataLoader(train, 50, shuffle=True), DataLoader(val, 300)
model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(20):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
model.eval()

# %% Two posteriors of the same network
fitted = bayesify(model)
bensemble.fit_posterior(fitted, loader, likelihood="categorical", val_loader=val_loader)
trained = bayesify(model, prior="ard")
recipes.learn_to_prune(trained, loader, likelihood="categorical", epochs=40)


def right(network, data=new):
    with torch.no_grad():
        return float((network(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean())


# %% Files of other thresholds, judged on held-out digits: which are not beaten in size and accuracy?
files = compress(trained, lambda net: right(net, val), x[:16], "digits.onnx", max_drop=0.01, scores=["snr"])
print(files)

# %% Side by side: the dot is the median of a layer, the bar holds 90 % of its weights
figure = Figure(figsize=(11, 3.2), layout="constrained")
*layers, front = figure.subplots(1, 3)
for axes, (name, bnn) in zip(layers, {"fitted": fitted, "trained": trained}.items(), strict=True):
    plots.snr(bnn, axes=axes).set_title(name)
    axes.axvline(0.83, color="black", linewidth=0.8, linestyle=":")
files.plot(axes=front).set_title("files of the trained one")
figure.savefig("snr_layers.svg")


def told(network):
    lost = 100 * (right(model) - right(network))
    return f"{1 - sparsity(network).sparsity:.0%} of the weights, {right(network):.1%} right, {lost:.1f} points lost"


# %% Remove what is below 0.83, of either posterior
pruned = to_deterministic(trained, threshold=0.83)
print(sparsity(pruned))
print("before: ", told(model))
print("fitted: ", told(to_deterministic(fitted, threshold=0.83)))
print("trained:", told(pruned))

"""Signal-to-noise ratios of two posteriors, layer by layer: fitted in one pass, and trained to prune.

python examples/snr_layers.py
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import plots, recipes
from convert import bayesify, sparsity, to_deterministic

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

# %% Side by side: the dot is the median of a layer, the bar holds 90 % of its weights
figure = Figure(figsize=(8, 3.2), layout="constrained")
for axes, (name, bnn) in zip(figure.subplots(1, 2), {"fitted": fitted, "trained": trained}.items(), strict=True):
    plots.snr(bnn, axes=axes).set_title(name)
    axes.axvline(0.83, color="black", linewidth=0.8, linestyle=":")
figure.savefig("snr_layers.svg")


def told(network):
    right = (network(new.tensors[0]).argmax(1) == new.tensors[1]).float().mean()
    return f"{right:.1%} right with {1 - sparsity(network).sparsity:.0%} of the weights"


# %% Remove what is below 0.83, of either posterior
pruned = to_deterministic(trained, threshold=0.83)
print(sparsity(pruned))
print("before: ", told(model))
print("fitted: ", told(to_deterministic(fitted, threshold=0.83)))
print("trained:", told(pruned))

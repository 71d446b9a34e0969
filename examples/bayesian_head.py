"""Choose what becomes Bayesian. Here only the head is converted; the trunk stays deterministic.

python examples/bayesian_head.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify, plan, to_deterministic


class Network(nn.Module):
    """A standard network for images of 8x8 pixels."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images):
        return self.head(self.trunk(images))


def train(network, loader, epochs):
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()


def main():
    torch.manual_seed(0)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    loader = DataLoader(TensorDataset(x[:897], y[:897]), 64, shuffle=True)
    val_loader = DataLoader(TensorDataset(x[897:1197], y[897:1197]), 300)
    network = Network()
    train(network, loader, epochs=20)
    network.eval()

    # A name selects the module and all its submodules. Globs, types, modules and callables work too:
    #   include="head.2"   include="*.weight"   exclude=nn.Conv2d   include=network.head
    #   include=lambda name, module: isinstance(module, nn.Linear) and module.out_features == 10
    print(plan(network, include="head"))
    bnn = bayesify(network, include="head")
    print("Posteriors:", ", ".join(name for name, _ in bensemble.named_posteriors(bnn)))
    assert type(bnn.trunk[0]) is nn.Conv2d

    fit = bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader)
    print(f"NLL on held-out images: {fit.mean_nll:.4f} for the mean network, {fit.nll:.4f} for the Bayesian one.")
    p = bensemble.predict(bnn, x[1197:], likelihood="categorical")
    right = p.probs.argmax(-1) == y[1197:]
    kept = ~p.reject(share=0.1)
    print(f"before: it answers everything, {right.float().mean():.1%} right")
    print(f"after:  without the tenth of the highest entropy, {right[kept].float().mean():.1%} right")

    curve = bensemble.rejection_curve(p, y[1197:], by="entropy")
    bensemble.plots.rejection(curve).figure.savefig("bayesian_head.svg")

    back = to_deterministic(bnn)
    assert torch.equal(back(x), network(x))  # the conversion back restores the original network


if __name__ == "__main__":
    main()

"""Label the digits about which an ensemble disagrees, or digits at random? Three repeats of both.

python examples/active_learning.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import bensemble
from bensemble.plots import labelled, on_axes

START, STEP, ROUNDS, MEMBERS = 20, 20, 7, 5
x, y = map(torch.tensor, load_digits(return_X_y=True))
x = x.float() / 16


def trained(inputs, labels, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


# %% Label, train, ask for the next labels
def run(informed, seed):
    """Accuracy on 597 new digits after each round."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    pool, test = order[:1200], order[1200:]
    known, rest, found = pool[:START], pool[START:], []
    for number in range(ROUNDS):
        members = [trained(x[known], y[known], 1000 * seed + 10 * number + m) for m in range(MEMBERS)]
        p = bensemble.predict(members, x[test], likelihood="categorical")
        found.append(float((p.probs.argmax(1) == y[test]).float().mean()))
        if informed:
            unsure = bensemble.predict(members, x[rest], likelihood="categorical").mutual_information
            rest = rest[unsure.argsort(descending=True)]
        known, rest = torch.cat([known, rest[:STEP]]), rest[STEP:]
    return found


# %% The same starts for both
curves = {
    name: torch.tensor([run(informed, seed) for seed in range(3)]).mean(0)
    for name, informed in {"at random": False, "by mutual information": True}.items()
}
labels = [START + STEP * number for number in range(ROUNDS)]
axes = on_axes(None)
for name, accuracy in curves.items():
    axes.plot(labels, 100 * accuracy, "o-", label=name)
labelled(axes, "labels", "accuracy, %").figure.savefig("active_learning.svg")
before, after = curves.values()
print(f"before: {labels[-1]} labels at random, {before[-1]:.1%} right")
print(f"after:  {labels[-1]} labels by mutual information, {after[-1]:.1%} right; ", end="")
reached = next((n for n, a in zip(labels, after, strict=True) if a >= before[-1]), None)
print(f"what random labels reach takes {reached}" if reached else "random labels are better here")
behind = ", ".join(str(n) for n, a, b in zip(labels, before, after, strict=True) if b < a) or "no"
print(f"Random labels were better at {behind} labels.")

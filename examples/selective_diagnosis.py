"""Risk over the share of tumour cells that a network judges itself; the rest goes to an expert.

python examples/selective_diagnosis.py
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import plots
from convert import bayesify, last_layer

# %% 569 biopsies by four of their thirty measurements, none of which is a size: the task is hard
torch.manual_seed(0)
x, y = map(torch.tensor, load_breast_cancer(return_X_y=True))
x = ((x - x.mean(0)) / x.std(0)).float()[:, [1, 4, 8, 9]]
order = torch.randperm(len(x))
train, val, chosen, new = (TensorDataset(x[i], y[i]) for i in order.split([150, 80, 120, 219]))
loader, val_loader = DataLoader(train, 50, shuffle=True), DataLoader(val, 80)

model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(60):
    for inputs, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
model.eval()

# %% A posterior of the last layer, and a threshold from cases that trained nothing
bnn = bayesify(model, include=last_layer(model, x[:2]), example_inputs=x[:2])
print(bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader))
held_out = bensemble.predict(bnn, chosen.tensors[0], likelihood="categorical")
_, threshold = bensemble.rejection_curve(held_out, chosen.tensors[1], by="entropy").at(0.8)

# %% New cases: who answers which, and how often it is wrong
p = bensemble.predict(bnn, new.tensors[0], likelihood="categorical")
wrong = p.probs.argmax(1) != new.tensors[1]
for_expert = p.reject(by="entropy", threshold=threshold)
curve = bensemble.rejection_curve(p, new.tensors[1], by="entropy")
plots.rejection(curve).figure.savefig("selective_diagnosis.svg")
print(f"before: the network answers every case, and {wrong.float().mean():.1%} of its answers are wrong")
own = wrong[~for_expert].float().mean()
print(f"after:  it answers {(~for_expert).float().mean():.0%} of them, {own:.1%} wrong; ", end="")
print(f"of the {for_expert.sum()} for the expert it would have got {wrong[for_expert].float().mean():.0%} wrong")
alone = bensemble.predict(model, new.tensors[0], likelihood="categorical")
same = bensemble.rejection_curve(alone, new.tensors[1], by="entropy").at(float((~for_expert).float().mean()))[0]
print(f"The entropy of the network without a posterior: {same:.1%} wrong of as many. What helps is to leave cases out.")

"""A regression on few patients: the interval that it believes in, and the conformal one.

python examples/honest_intervals.py
"""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import plots
from bensemble.likelihoods import Gaussian
from convert import bayesify, last_layer

# %% Progression of diabetes after a year, from ten measurements of 442 patients
torch.manual_seed(0)
x, y = map(torch.tensor, load_diabetes(return_X_y=True, scaled=False))
x, y = ((x - x.mean(0)) / x.std(0)).float(), ((y - y.mean()) / y.std()).float()[:, None]
order = torch.randperm(len(x))
train, val, cal, new = (TensorDataset(x[i], y[i]) for i in order.split([150, 60, 100, 132]))
loader, val_loader = DataLoader(train, 50, shuffle=True), DataLoader(val, 60)

model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(100):
    for inputs, targets in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
model.eval()

# %% Before: the noise is the error on the training data
with torch.no_grad():
    error = float((model(train.tensors[0]) - train.tensors[1]).square().mean().sqrt())
before = bensemble.predict(model, new.tensors[0], likelihood=Gaussian(error))

# %% After: noise of held-out data, a posterior of the last layer, and a conformal interval
with torch.no_grad():
    noise = float((model(val.tensors[0]) - val.tensors[1]).square().mean().sqrt())
likelihood = Gaussian(noise)
bnn = bayesify(model, include=last_layer(model, x[:2]), example_inputs=x[:2])
bensemble.fit_posterior(bnn, loader, likelihood=likelihood, val_loader=val_loader)
after = bensemble.predict(bnn, new.tensors[0], likelihood=likelihood)
held_out = bensemble.predict(bnn, cal.tensors[0], likelihood=likelihood)
calibration = bensemble.calibrate(held_out, cal.tensors[1], alpha=0.1)
named = {"as trained": before, "posterior, held-out noise": after}
plots.coverage(named, new.tensors[1]).figure.savefig("honest_intervals.svg")


def told(low, high):
    inside = ((low <= new.tensors[1]) & (new.tensors[1] <= high)).float().mean()
    return f"{inside:.0%} of new patients inside, width {(high - low).mean():.2f}"


print("promised: 90 % of new patients inside")
print("before:", told(*before.interval(0.9)), "(the noise of the training data)")
print("       ", told(*after.interval(0.9)), "(that of held-out data, and a posterior)")
print("after: ", told(*calibration.interval(after)), "(conformal)")

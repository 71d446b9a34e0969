"""An overconfident network, one temperature, and conformal sets: they hold the truth as often as promised.

python examples/conformal_sets.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import bensemble
from bensemble import plots

# %% A network that learnt 200 digits by heart is too sure of others
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
x = x.float() / 16 + 0.35 * torch.randn(x.shape)  # a bad scanner
order = torch.randperm(len(x))
(x_train, x_cal, x_new), (y_train, y_cal, y_new) = (part[order].split([200, 600, 997]) for part in (x, y))
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(300):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x_train), y_train).backward()
    optimizer.step()
model.eval()

# %% Calibrate on digits that chose nothing
held_out = bensemble.predict(model, x_cal, likelihood="categorical")
calibration = bensemble.calibrate(held_out, y_cal, alpha=0.05)
print(calibration)
trained = bensemble.predict(model, x_new, likelihood="categorical")
tempered = calibration.apply(trained)
plots.reliability({"as trained": trained, "calibrated": tempered}, y_new).figure.savefig("conformal_sets.svg")

# %% A set of the classes that add up to 95 % by the network's own word, and the conformal set
probs, classes = trained.probs.sort(dim=1, descending=True)
believed = torch.zeros_like(trained.probs, dtype=torch.bool).scatter(1, classes, probs.cumsum(1) - probs < 0.95)
sets = calibration.prediction_set(trained)


def told(members):
    held = members.gather(1, y_new[:, None]).float().mean()
    return f"sets hold the answer {held:.1%} of the time, with {members.sum(1).float().mean():.2f} classes on average"


print("promised: 95 %")
print("before:", told(believed))
print("after: ", told(sets))

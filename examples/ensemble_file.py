"""Five networks, each with a Bayesian last layer, in one file: a deep ensemble that needs one forward of each.

python examples/ensemble_file.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import plots
from convert import bayesify, export_onnx, last_layer
from convert.runtime import UncertaintySession

# %% Data: few digits to learn from, so that the networks disagree
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
x = x.float() / 16 + 0.25 * torch.randn(x.shape)  # a bad scanner
order = torch.randperm(len(x))
train, val, new = (TensorDataset(x[i], y[i]) for i in order.split([200, 300, 1297]))
loader, val_loader, (x_new, y_new) = DataLoader(train, 50, shuffle=True), DataLoader(val, 300), new.tensors


def member(seed):
    """A trained network and the same network with a posterior of its last layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    bnn = bayesify(model.eval(), include=last_layer(model, x[:2]), example_inputs=x[:2])
    bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader)
    return model, bnn


# %% Five of them
networks, bayesian = zip(*(member(seed) for seed in range(5)), strict=True)
predictions = {
    "one network": bensemble.predict(networks[0], x_new, likelihood="categorical"),
    "its last layer Bayesian": bensemble.predict(bayesian[0], x_new, likelihood="categorical"),
    "five networks": bensemble.predict(list(networks), x_new, likelihood="categorical"),
    "five Bayesian last layers": bensemble.predict(list(bayesian), x_new, likelihood="categorical"),
}
held_out = bensemble.predict(networks[0], val.tensors[0], likelihood="categorical")
scaled = bensemble.calibrate(held_out, val.tensors[1]).apply(predictions["one network"])
predictions["one network with one temperature"] = scaled
plots.reliability(predictions, y_new).figure.savefig("ensemble_file.svg")

# %% One file
one = export_onnx(bayesian[0], "one.onnx", x[:1], outputs="uncertainty", likelihood="categorical")
five = export_onnx(list(bayesian), "five.onnx", x[:1], outputs="uncertainty", likelihood="categorical")
answer = UncertaintySession("five.onnx")(x_new.numpy())
print("The file and Python differ by at most ", end="")
print(f"{(torch.tensor(answer.probs) - predictions['five Bayesian last layers'].probs).abs().max():.0e}.")


def told(name):
    right = (predictions[name].probs.argmax(1) == y_new).float().mean()
    return f"{right:.1%} right, NLL {nn.functional.nll_loss(predictions[name].probs.log(), y_new):.3f}, {name}"


print("before:", told("one network"))
print("       ", told("one network with one temperature"))
print("       ", told("its last layer Bayesian"))
print("       ", told("five networks"))
print("after: ", told("five Bayesian last layers"), end="; ")
print(f"{five.size / one.size:.1f} times the file of one")

"""A scanner grows dim: the monitor of an uncertainty file raises an alarm without a single label.

python examples/drifting_stream.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble.plots import labelled, on_axes
from convert import bayesify, export_onnx, last_layer
from convert.runtime import Monitor, UncertaintySession

# %% A small network and its file, calibrated on digits that it did not see
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
clean = x.float() / 16
noise = 0.25 * torch.randn(clean.shape)
x = clean + noise
order = torch.randperm(len(x))
train, val, cal, new = (TensorDataset(x[i], y[i]) for i in order.split([500, 200, 500, 597]))
loader, val_loader = DataLoader(train, 50, shuffle=True), DataLoader(val, 200)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(40):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
bnn = bayesify(model.eval(), include=last_layer(model, x[:2]), example_inputs=x[:2])
bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader)
calibration = bensemble.calibrate(bensemble.predict(bnn, cal.tensors[0], likelihood="categorical"), cal.tensors[1])
export_onnx(bnn, "stream.onnx", x[:1], outputs="uncertainty", likelihood="categorical", calibration=calibration)

# %% 300 digits as they were; then the light fails, two per mille with each digit, and the noise of the sensor stays
labels = new.tensors[1]
contrast = torch.cat([torch.ones(300), 1 - 0.002 * torch.arange(1, 298)])
stream = clean[order[-597:]] * contrast[:, None] + noise[order[-597:]]
session = UncertaintySession("stream.onnx")
monitor, evidence, alarm = Monitor(session, false_alarm_rate=0.01), [], None
for number in range(len(stream)):
    monitor.update(session(stream[number : number + 1].numpy()))
    verdict = monitor.verdict()
    evidence.append(verdict.evidence)
    if verdict.drifted and alarm is None:
        alarm = number + 1
        print(verdict)

# %% What the labels would have said, had there been any
axes = on_axes(None)
axes.plot(evidence, label="evidence of the monitor")
axes.axhline(torch.tensor(100.0).log().item(), color="black", linewidth=0.8, linestyle=":", label="alarm")
axes.axvline(300, color="black", linewidth=0.8, label="the scanner grows dim")
labelled(axes, "digits seen", "evidence, nats").figure.savefig("drifting_stream.svg")
with torch.no_grad():
    right = (model(stream).argmax(1) == labels).float()
early = "no alarm" if alarm is None or alarm > 300 else "a false alarm"
print(f"before: {right[:300].mean():.1%} of 300 digits right, {early}")
print(f"after:  {right[-100:].mean():.1%} of the last 100 right", end="; ")
print(f"alarm after digit {alarm}, at a contrast of {contrast[alarm - 1]:.0%}" if alarm else "no alarm")
if alarm:
    print(f"        {right[300:alarm].mean():.1%} right from 300 to the alarm, {right[alarm:].mean():.1%} after it")

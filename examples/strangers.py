"""A ResNet of torchvision learns digits; its file, asked about a photograph, refuses to answer.

python examples/strangers.py
"""

import torch
import torchvision
from sklearn.datasets import load_digits, load_sample_image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble import plots
from convert import bayesify, export_onnx, last_layer
from convert.runtime import UncertaintySession

# %% Digits, and pieces of a photograph in the same format: one grey channel, eight by eight
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
x = x.float().view(-1, 1, 8, 8) / 16
order = torch.randperm(len(x))
train, val, new = (TensorDataset(x[i], y[i]) for i in order.split([1000, 400, 397]))
loader, val_loader = DataLoader(train, 100, shuffle=True), DataLoader(val, 100)
photo = torch.tensor(load_sample_image("china.jpg")).float().mean(-1)[None, None] / 255
photo = nn.functional.avg_pool2d(photo, 4)  # 106 x 160 pixels
pieces = photo.unfold(2, 8, 8).unfold(3, 8, 8).reshape(-1, 1, 8, 8)
pieces = (pieces - pieces.amin((2, 3), True)) / (pieces.amax((2, 3), True) - pieces.amin((2, 3), True) + 1e-3)

# %% A ResNet-18 with a first layer for small grey images
model = torchvision.models.resnet18(num_classes=10)
model.conv1, model.maxpool = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.Identity()
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
for _ in range(4):
    for images, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
model.eval()

# %% The last layer becomes Bayesian; novelty learns what the network was shown
bnn = bayesify(model, include=last_layer(model, x[:2]), example_inputs=x[:2])
print(bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=val_loader))
novelty = bensemble.fit_novelty(bnn, loader, val_loader)
predictions = {
    name: bensemble.predict(bnn, inputs, likelihood="categorical", novelty=novelty)
    for name, inputs in {"digits": new.tensors[0], "a photograph": pieces}.items()
}
plots.uncertainties(predictions, by="novelty").figure.savefig("strangers.svg")

# %% One file that refuses
options = {"likelihood": "categorical", "novelty": novelty, "reject": {"novelty_pvalue": 0.01}}
export_onnx(bnn, "strangers.onnx", x[:1], outputs="uncertainty", **options)
session = UncertaintySession("strangers.onnx")
digits, strangers = session(new.tensors[0].numpy()), session(pieces.numpy())
right = (torch.tensor(digits.probs).argmax(1) == new.tensors[1]).float().mean()
refused = digits.reject().mean()
level = torch.tensor(digits.probs).amax(1).quantile(float(refused))  # the confidence below which as many digits lie
unsure = (torch.tensor(strangers.probs).amax(1) < level).float().mean()
print(f"{right:.1%} of the new digits are right. Either way below refuses {refused:.1%} of them; of the photograph,")
print(f"before: least confident answers refused, {unsure:.0%} is refused and the rest is called a digit")
print(f"after:  highest novelty refused, {strangers.reject().mean():.0%} is refused")

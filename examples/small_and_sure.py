"""Small and sure: most of a CNN goes in whole channels, and the file that is left says what it does not know.

python examples/small_and_sure.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import binary_auroc

import bensemble
from convert import bayesify, channel_groups, compact, compare_onnx, export_onnx, last_layer, prune_and_repair
from convert.runtime import UncertaintySession

# %% A CNN, trained on the bundled digits
torch.manual_seed(0)
x, y = map(torch.tensor, load_digits(return_X_y=True))
order = torch.randperm(len(x))
x, y = (x.float().view(-1, 1, 8, 8) / 16)[order], y[order]
(x_train, x_val, x_test), (y_train, y_val, y_test) = x.split([1000, 300, 497]), y.split([1000, 300, 497])
loader = DataLoader(TensorDataset(x_train, y_train), 100, shuffle=True)
val_loader = DataLoader(TensorDataset(x_val, y_val), 100)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(),
    nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for images, labels in [batch for _ in range(8) for batch in loader]:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
model.eval()

# %% Remove 70 % of the weights in whole channels, repair the rest without labels, cut the zeros out
groups = channel_groups(bayesify(model), x[:2])
pruned = prune_and_repair(model, list(x_train[:300].split(100)), sparsity=0.7, granularity=groups).network
narrow = compact(pruned, x[:2])


# %% What an uncertainty file of a network is worth: a posterior of its last layer, and its novelty
def write(network, path, **options):
    sure = bayesify(network, include=last_layer(network, x[:2]), example_inputs=x[:2])
    bensemble.fit_posterior(sure, loader, likelihood="categorical", val_loader=val_loader)
    novelty = bensemble.fit_novelty(sure, loader, val_loader)
    export_onnx(sure, path, x[:1], outputs="uncertainty", likelihood="categorical", novelty=novelty, **options)


def judged(name, ask, measure):
    """One line about a file: turned digits are the strangers."""
    known, strange = ask(x_test), ask(x_test.rot90(1, (2, 3)))
    probs = torch.as_tensor(known.probs)
    scores = torch.cat([torch.as_tensor(getattr(answer, measure)) for answer in (known, strange)])
    told = binary_auroc(scores, torch.arange(2).repeat_interleave(len(x_test)))
    nll = nn.functional.nll_loss(probs.clamp_min(1e-12).log(), y_test)
    size, ratio, right = table[name].size / 1e3, table[name].latency[64].ratio, (probs.argmax(1) == y_test).float()
    worth = f"{right.mean():.1%} right, NLL {nll:.3f}, {told:.3f} by {measure}"
    return f"{size:.0f} kB, {ratio:.2f} of the time, {worth}: {name}"


export_onnx(model, "plain.onnx", x[:1])
write(model, "sure.onnx")
write(narrow, "small_and_sure.onnx")
write(narrow, "small_int8.onnx", quantize="int8", calibration_data=val_loader)  # p-values count among its scores
files = ("plain", "sure", "small_and_sure", "small_int8")
table = compare_onnx({name: f"{name}.onnx" for name in files}, x_test, batch_sizes=(1, 64))

# %% Before and after
print("The numbers at the end are AUROC: turned digits told from digits, by the best number that the file has.")
print("before:", judged("plain", lambda images: bensemble.predict(model, images, likelihood="categorical"), "entropy"))
for name in files[1:]:
    session = UncertaintySession(f"{name}.onnx")
    print("after: ", judged(name, lambda images, ask=session: ask(images.numpy()), "novelty"))

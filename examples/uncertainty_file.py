"""Write an uncertainty file for a service: digits with class probabilities, novelty, prediction sets and a threshold.

python examples/uncertainty_file.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from convert import bayesify, export_onnx, last_layer
from convert.runtime import UncertaintySession


def main():
    torch.manual_seed(0)
    x, y = map(torch.tensor, load_digits(return_X_y=True))
    x = x.float() / 16
    loader = DataLoader(TensorDataset(x[:900], y[:900]), 64, shuffle=True)
    chosen = DataLoader(TensorDataset(x[900:1200], y[900:1200]), 300)  # for the scale of the posterior
    held_out = DataLoader(TensorDataset(x[1200:], y[1200:]), 300)  # for calibration and novelty

    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(30):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    bnn = bayesify(network, include=last_layer(network, x[:2]), example_inputs=x[:2])
    bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=chosen)
    novelty = bensemble.fit_novelty(bnn, loader, held_out)
    calibration = bensemble.calibrate(bensemble.predict(bnn, x[1200:], likelihood="categorical"), y[1200:])
    report = export_onnx(
        bnn,
        "digits.onnx",
        x[:1],
        outputs="uncertainty",
        likelihood="categorical",
        novelty=novelty,
        calibration=calibration,
        reject={"novelty_pvalue": 0.01},
    )
    print(report)
    session = UncertaintySession("digits.onnx")
    digits, noise = session(x[1200:].numpy()), session(torch.rand(300, 64).numpy())
    print(f"before: {(noise.probs.max(1) > 0.5).mean():.0%} of noise is called a digit with more than 50 % confidence")
    print(f"after:  {noise.reject().mean():.0%} of it is refused, and {digits.reject().mean():.1%} of the digits are")


if __name__ == "__main__":
    main()

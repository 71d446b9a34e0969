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
    order = torch.randperm(len(x))
    x, y = x[order].float() / 16, y[order]
    loader = DataLoader(TensorDataset(x[:800], y[:800]), 64, shuffle=True)
    chosen = DataLoader(TensorDataset(x[800:1000], y[800:1000]), 200)  # for the scale of the posterior
    x_cal, y_cal, x_new, y_new = x[1000:1400], y[1000:1400], x[1400:], y[1400:]

    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(30):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    bnn = bayesify(network, include=last_layer(network, x[:2]), example_inputs=x[:2])
    bensemble.fit_posterior(bnn, loader, likelihood="categorical", val_loader=chosen)
    novelty = bensemble.fit_novelty(bnn, loader, DataLoader(TensorDataset(x_cal, y_cal), 400))
    calibration = bensemble.calibrate(bensemble.predict(bnn, x_cal, likelihood="categorical"), y_cal)
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
    digits, noise = session(x_new.numpy()), session(torch.rand(300, 64).numpy())
    right = (digits.probs.argmax(1) == y_new.numpy()).mean()
    sure = (noise.probs.max(1) > 0.5).mean()
    print(f"before: {right:.1%} of new digits are right; {sure:.0%} of noise is a digit with more than 50 % confidence")
    print(
        f"after:  {noise.reject().mean():.0%} of noise is refused, and {digits.reject().mean():.1%} of the digits are"
    )


if __name__ == "__main__":
    main()

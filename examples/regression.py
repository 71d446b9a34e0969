"""Regression with Bayesian layers: the error band has the right coverage on the data and is wide outside it.

python examples/regression.py --picture band.png
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import bensemble
from bensemble import BayesianLinear
from bensemble.likelihoods import GaussianHead
from convert import to_deterministic


def measure(x):
    """Measurements of a curve, with noise that grows from left to right."""
    return torch.sin(3 * x) + (0.2 + 0.1 * x) * torch.randn_like(x)


def train(network, likelihood, x, y, steps):
    optimizer = torch.optim.Adam(bensemble.param_groups(network, lr=5e-3, rho_lr=1e-2))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    network.train()
    for step in range(steps):
        nll, kl = likelihood.nll(network(x), y), bensemble.kl_divergence(network)
        optimizer.zero_grad()
        bensemble.elbo_loss(nll, kl, num_data=len(x), beta=bensemble.kl_warmup(step, steps)).backward()
        optimizer.step()
        schedule.step()
    network.eval()


def draw(picture, x, y, network, likelihood):
    from matplotlib.figure import Figure

    grid = torch.linspace(-2, 2, 201)[:, None]
    p = bensemble.predict(network, grid, 200, likelihood=likelihood)
    low, high = p.interval(0.9)
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(grid[:, 0], low[:, 0], high[:, 0], alpha=0.25, label="90 % of new measurements")
    axis.plot(grid, p.mean, label="mean")
    axis.plot(x, y, ".", color="black", markersize=2, label="measurements")
    axis.legend(frameon=False)
    figure.savefig(picture)


def main(steps, picture):
    torch.manual_seed(0)
    x = torch.rand(1000, 1) * 2 - 1
    y = measure(x)
    network = nn.Sequential(
        BayesianLinear(1, 50, prior_sigma=3.0, init_sigma=0.05),
        nn.ReLU(),
        BayesianLinear(50, 2, prior_sigma=0.3, init_sigma=0.05),
    )
    likelihood = GaussianHead()  # two outputs: the mean and the log of the noise variance
    train(network, likelihood, x, y, steps)

    fresh = torch.linspace(-1.5, 1.5, 3000)[:, None]
    truth, known = measure(fresh), fresh.abs() < 1
    print("The 90 % band holds, of new measurements where the data was, and as far again beside it:")
    for name, net in {"before: noise alone,": to_deterministic(network), "after:  a posterior,": network}.items():
        low, high = bensemble.predict(net, fresh, 100, likelihood=likelihood).interval(0.9)
        inside = ((low < truth) & (truth < high)).float()
        print(f"{name} {inside[known].mean():.0%} and {inside[~known].mean():.0%}, ", end="")
        print(f"with a width of {(high - low)[known].mean():.2f} and {(high - low)[~known].mean():.2f}")
    if picture:
        draw(picture, x, y, network, likelihood)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--picture", type=Path)
    main(**vars(parser.parse_args()))

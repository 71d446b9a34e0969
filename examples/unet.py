"""A small U-Net that segments cells, with a map of its uncertainty: python examples/unet.py."""

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, TensorDataset

import bensemble
from bensemble.likelihoods import Bernoulli
from convert import bayesify


class UNet(nn.Module):
    """One downsampling step, one upsampling step, and a skip connection."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, images):
        skip = self.down(images)
        return self.head(torch.cat([skip, self.up(self.bottom(skip))], 1))


def make_cells(count, size=32):
    """Images of bright discs with noise, and the masks of the discs."""
    grid = torch.arange(size).float()
    centres, radii = torch.rand(count, 3, 2, 1, 1) * size, 3 + 3 * torch.rand(count, 3, 1, 1)
    distance = torch.hypot(grid[:, None] - centres[:, :, 0], grid - centres[:, :, 1])
    truth = (distance < radii).any(1, keepdim=True).float()
    return avg_pool2d(truth, 3, 1, 1) + 0.3 * torch.randn_like(truth), truth


def train(network, loader, epochs, loss):
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            (lost := loss(network(x), y)).backward()
            optimizer.step()
        print(f"  epoch {epoch + 1}: loss {lost:.4f}")


def main():
    torch.manual_seed(0)
    loader, held_out = (DataLoader(TensorDataset(*make_cells(count)), 16, shuffle=True) for count in (256, 32))
    network, likelihood = UNet(), Bernoulli()
    train(network, loader, 6, likelihood.nll)

    bnn = bayesify(network.eval(), estimator="weights")  # the noise of a weight is the same at every pixel
    fit = bensemble.fit_posterior(bnn, loader, likelihood=likelihood, val_loader=held_out)
    print(f"NLL per held-out pixel: {fit.mean_nll:.4f} for the mean network, {fit.nll:.4f} for the Bayesian one.")

    images, truth = make_cells(8)
    p = bensemble.predict(bnn, images, 30, likelihood=likelihood)
    right = (p.probs > 0.5) == truth.bool()
    print("Entropy and mutual information in nats, of pixels")
    for name, part in (("right", right), ("wrong", ~right)):
        print(f"  where {name}  {p.entropy[part].mean():.3f}  {p.mutual_information[part].mean():.5f}")
    print(f"{(~right).float().mean():.1%} of the pixels are wrong; the twentieth of highest entropy holds of these")
    alone = bensemble.predict(network, images, likelihood=likelihood).entropy
    for name, entropy in (("before: the network alone", alone), ("after:  with its posterior", p.entropy)):
        print(f"{name} {(entropy >= entropy.quantile(0.95))[~right].float().mean():.0%}")
    figure = Figure(figsize=(6, 5), layout="constrained")
    rows = {"image": images, "probability of a cell": p.probs, "entropy: where to look again": p.entropy}
    for axes, (title, part) in zip(figure.subplots(3, 1), rows.items(), strict=True):
        axes.imshow(torch.cat([*part[:4, 0]], 1).clamp(0, 1), cmap="gray")
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig("unet.png")


if __name__ == "__main__":
    main()

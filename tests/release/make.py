"""Writes the files of this folder with the release that is installed: `python make.py FOLDER`."""

import sys
from pathlib import Path

import torch
from torch import nn

import bensemble
from convert import bayesify


def source() -> nn.Module:
    """A network with twins, sampled weights and a tie."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Unflatten(1, (2, 4)),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Flatten(), nn.Linear(8, 8, bias=False),
        nn.Tanh(), nn.Linear(8, 8),
    )  # fmt: skip
    model[9].weight = model[7].weight
    return model.eval()


def main(folder: Path) -> None:
    """Three kinds of file, and what the network that was written answers."""
    bnn = bayesify(source(), prior="ard")
    with torch.no_grad():
        for number, (_, posterior) in enumerate(bensemble.named_posteriors(bnn)):
            posterior.rho.add_(torch.randn(posterior.rho.shape, generator=torch.Generator().manual_seed(number)))
    bensemble.prune(bnn, sparsity=0.3)
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(7))
    with torch.no_grad(), bensemble.sampling(bnn, torch.Generator().manual_seed(1)):
        sample = bnn(x)
    expected = {"x": x, "mean": bnn(x).detach(), "sample": sample, "kl": bensemble.kl_divergence(bnn).detach()}
    bensemble.save(bnn, folder / "checkpoint.safetensors")
    torch.save(bnn.state_dict(), folder / "state.pt")
    torch.save(bnn, folder / "model.pt")
    torch.save(expected, folder / "expected.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

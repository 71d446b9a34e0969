"""Small networks and their curvature."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble.fitting import fit_posterior
from bensemble.posteriors import named_posteriors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def loader(*tensors, batch_size=16):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def curvature_of(bnn, data, likelihood, kind="ggn", **options):
    """The sum of h, read back from the sigmas at beta = 1."""
    report = fit_posterior(bnn, data, likelihood=likelihood, curvature=kind, beta=1.0, generator=seeded(), **options)
    widths = {row.name: row.width for row in report.rows}
    return {name: p.sigma().detach().double() ** -2 - widths[name] ** -2 for name, p in named_posteriors(bnn)}


def mlp(outputs):
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


X = torch.randn(40, 3, dtype=torch.float64)


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


INPUTS, LABELS = torch.randn(20, 3), torch.randint(2, (20,))


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

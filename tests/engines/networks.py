"""One small network with everything that is stored in a way of its own, and its training."""

import torch
import torch.nn.functional as F
from torch import nn

import bensemble
from convert import bayesify


class Mixed(nn.Module):
    """A convolution, attention, a recurrent layer, tied weights, a norm, and sizes that two processes cannot halve."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 3, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.gru = nn.GRU(6, 5, batch_first=True)
        self.norm = nn.LayerNorm(5)
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.conv(x)).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(self.gru(x)[0][:, -1])
        return self.head(x + self.second(torch.tanh(self.first(x))))


class Small(nn.Sequential):
    """For what takes many runs."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(12, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 3))


class OwnPrior:
    """A user's own: a normal of width 0.3, with a term that is no sum over weights."""

    def kl(self, mu, sigma):
        ratio = (mu.square() + sigma.square()) / 0.09
        return 0.5 * (ratio - 1).sum() - (sigma / 0.3).log().sum() + (1 + mu.square().sum()).sqrt()


def built_in_priors(name, weight):
    """One of each kind that a checkpoint can hold, by the name of the weight."""
    return "pretrained" if name.startswith("conv") else "ard" if name.startswith("gru") else "empirical"


def all_priors(name, weight):
    """The user's own as well."""
    return OwnPrior() if name == "attention.in_proj_weight" else built_in_priors(name, weight)


def make(seed=0, prior=built_in_priors, pruned=True, dtype=torch.float32, estimator="local", network=Mixed):
    """The network, Bayesian; the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        bnn = bayesify(network().to(dtype), prior=prior, init_sigma=0.05, estimator=estimator)
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.data.add_(0.3 * torch.randn_like(posterior.rho))  # as after training
        if pruned:
            bensemble.prune(bnn, sparsity=0.3)
    return bnn


def data(count=16, dtype=torch.float32, seed=0):
    """Inputs and classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 4, generator=generator, dtype=dtype)
    return x, torch.randint(0, 3, (count,), generator=generator)


def loss_of(bnn, batch, kl_of=None):
    """The bound of one batch."""
    x, y = batch
    kl = bensemble.kl_divergence(bnn if kl_of is None else kl_of)
    return bensemble.elbo_loss(F.cross_entropy(bnn(x), y), kl, num_data=200)


def part(tensors, rank, size=2):
    """The share of one process."""
    return tuple(tensor[rank::size] for tensor in tensors)


def train(bnn, batches, optimizer):
    """One step for each batch; the losses."""
    losses = []
    for batch in batches:
        loss = loss_of(bnn, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses

"""Every way to give a small regression network an error band, each tuned on the same held-out rows.

All networks have two hidden layers of 50 units. "Constant noise" predicts the mean alone and has one noise for all
rows; "Gaussian head", MC dropout and the ensemble end in a mean and a log variance for each row
(:class:`bensemble.likelihoods.GaussianHead`). Ours starts from one of these trained networks, the better one on
held-out rows: that with constant noise, which gets an output for the log variance, or that of MC dropout. Dropout stays
on where ours is trained on, and is off where it answers.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tables import Split
from torch import Tensor, nn

import bensemble
from bensemble.likelihoods import GaussianHead
from convert import bayesify

STEPS, TUNING_STEPS, BATCH, RATE, DECAY = 1000, 1500, 128, 1e-2, 1e-3
SAMPLES, MEMBERS = 50, 5
DROPOUT_RATES = (0.02, 0.05, 0.1)
BETAS = (0.02, 0.1)
TUNING_RATE, RHO_RATE = 3e-3, 1e-2
HEAD = GaussianHead()


@dataclass(frozen=True)
class Mixture:
    """A predictive distribution: a mixture of Gaussians for each row.

    Attributes:
        means: (S, N, 1).
        variances: (S, N, 1).
    """

    means: Tensor
    variances: Tensor

    def nll(self, y: Tensor) -> Tensor:
        """Negative log density of each row, (N,)."""
        terms = -0.5 * ((y - self.means).square() / self.variances + self.variances.log() + math.log(2 * math.pi))
        return math.log(len(terms)) - terms.logsumexp(0).flatten()

    def cdf(self, y: Tensor) -> Tensor:
        """Share of the distribution below y, (N,)."""
        return torch.special.ndtr((y - self.means) / self.variances.sqrt()).mean(0).flatten()


#: From features to a predictive distribution.
Model = Callable[[Tensor], Mixture]


@dataclass(frozen=True)
class Answer:
    """A method, ready to answer; fields as in ``image_methods.Answer``."""

    model: Model
    settings: str
    cost: str


def mlp(split: Split, outputs: int, dropout: float = 0.0) -> nn.Module:
    layers = (nn.Linear(split.train[0].shape[1], 50), nn.ReLU(), nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(50, 50), nn.ReLU(), nn.Dropout(dropout), nn.Linear(50, outputs))


def descend(
    network: nn.Module,
    groups: object,
    split: Split,
    loss: Callable[[Tensor, Tensor, int], Tensor],
    judge: Callable[[], float],
    steps: int = STEPS,
    every: int = 100,
) -> float:
    """Train with falling rates, and keep the weights with the best held-out value; early stopping in five lines."""
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY, fused=True)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 1.2 * (1 - step / steps)))
    x, y = split.train
    best, kept = math.inf, network.state_dict()
    for step in range(steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),))
        network.train()
        optimizer.zero_grad()
        loss(x[rows], y[rows], step).backward()
        optimizer.step()
        schedule.step()
        if step % every == every - 1:
            value = judge()
            if value < best:
                best, kept = value, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)
    network.eval()
    return best


def constant_noise(split: Split, seed: int) -> Answer:
    """Squared error, and the noise that held-out rows show."""
    network, variance = trained_mean(split, seed)

    @torch.no_grad()
    def model(x: Tensor) -> Mixture:
        mean = network(x)[None]
        return Mixture(mean, torch.full_like(mean, variance))

    return Answer(model, f"AdamW {RATE:g}, decay {DECAY:g}, best of {STEPS} steps", "1")


@functools.lru_cache(maxsize=1)
def trained_mean(split: Split, seed: int) -> tuple[nn.Module, float]:
    torch.manual_seed(seed)
    network = mlp(split, 1)
    x, y = split.held_out

    def judge() -> float:
        with torch.no_grad():
            return float(F.mse_loss(network.eval()(x), y))

    return network, descend(network, network.parameters(), split, lambda x, y, _: F.mse_loss(network(x), y), judge)


def trained_head(split: Split, seed: int, dropout: float = 0.0) -> tuple[nn.Module, float, Model]:
    """A network with a Gaussian head, its held-out NLL, and its answers: over masks where it has dropout."""
    torch.manual_seed(seed)
    network = mlp(split, 2, dropout)

    @torch.no_grad()
    def model(x: Tensor) -> Mixture:
        network.train(dropout > 0)  # nothing but dropout heeds the flag
        mean, log_variance = torch.stack([network(x) for _ in range(SAMPLES if dropout else 1)]).chunk(2, 2)
        return Mixture(mean, log_variance.exp())

    def judge() -> float:
        return float(model(split.held_out[0]).nll(split.held_out[1]).mean())

    best = descend(network, network.parameters(), split, lambda x, y, _: HEAD.nll(network(x), y), judge)
    return network, best, model


def gaussian_head(split: Split, seed: int) -> Answer:
    return Answer(trained_head(split, seed)[2], "the same, mean and log variance", "1")


def mc_dropout(split: Split, seed: int) -> Answer:
    return Answer(trained_with_dropout(split, seed)[1], f"Gaussian head; rate of {DROPOUT_RATES}", str(SAMPLES))


@functools.lru_cache(maxsize=1)
def trained_with_dropout(split: Split, seed: int) -> tuple[nn.Module, Model]:
    """The network of the rate with the best held-out NLL, and its answers over masks."""
    network, _, model = min((trained_head(split, seed, rate) for rate in DROPOUT_RATES), key=lambda fit: fit[1])
    return network, model


def deep_ensemble(split: Split, seed: int) -> Answer:
    members = [trained_head(split, 100 * member + seed)[2] for member in range(MEMBERS)]

    def model(x: Tensor) -> Mixture:
        parts = [member(x) for member in members]
        return Mixture(torch.cat([part.means for part in parts]), torch.cat([part.variances for part in parts]))

    return Answer(model, "Gaussian heads", str(MEMBERS))


def laplace_last_layer(split: Split, seed: int) -> Answer:
    """laplace-torch on the network with constant noise; prior precision and noise by held-out NLL, on a grid."""
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    network, variance = trained_mean(split, seed)
    best: tuple[float, Model] = (math.inf, lambda x: Mixture(x, x))
    for share in (0.5, 0.75, 1.0):
        noise = (share * variance) ** 0.5
        posterior = Laplace(
            network, "regression", subset_of_weights="last_layer", hessian_structure="full", sigma_noise=noise
        )
        posterior.fit(DataLoader(TensorDataset(*split.train), 500))
        for exponent in range(-2, 5):
            posterior.prior_precision = 10.0**exponent

            def model(
                x: Tensor, posterior: Laplace = posterior, precision: float = 10.0**exponent, noise: float = noise
            ) -> Mixture:
                posterior.prior_precision = precision
                mean, spread = (part.detach() for part in posterior(x))
                return Mixture(mean[None], spread[None, :, :, 0] + noise**2)

            value = float(model(split.held_out[0]).nll(split.held_out[1]).mean())
            if value < best[0]:
                best = value, model
    return Answer(best[1], "constant noise; full, noise and prior precision by grid", "1")


def sampled(bnn: nn.Module, num_samples: int = SAMPLES) -> Model:
    def model(x: Tensor) -> Mixture:
        generator = torch.Generator().manual_seed(0)
        p = bensemble.predict(bnn, x, num_samples, likelihood=HEAD, generator=generator)
        return Mixture(p.samples, p.noise_samples)

    return model


def heldout_nll(bnn: nn.Module, split: Split, num_samples: int) -> float:
    return float(sampled(bnn, num_samples)(split.held_out[0]).nll(split.held_out[1]).mean())


@functools.lru_cache(maxsize=1)
def fitted(split: Split, seed: int) -> tuple[nn.Module, str]:
    """The posterior of ``fit_posterior`` around the better of two trained networks, and which it is."""
    starts = {
        "constant noise": with_log_variance(*trained_mean(split, seed)),
        "dropout": trained_with_dropout(split, seed)[0].eval(),
    }
    loader = list(zip(split.train[0].split(BATCH), split.train[1].split(BATCH), strict=True))
    found = {name: bayesify(start) for name, start in starts.items()}
    for bnn in found.values():
        bensemble.fit_posterior(
            bnn, loader, likelihood=HEAD, val_loader=[split.held_out], num_samples=30,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    best = min(found, key=lambda name: heldout_nll(found[name], split, SAMPLES))
    return found[best], best


def with_log_variance(network: nn.Module, variance: float) -> nn.Module:
    """A copy of a network of means, with the logarithm of a constant variance as a second output."""
    network = copy.deepcopy(network)
    mean = network[-1]
    network[-1] = nn.Linear(mean.in_features, 2)
    with torch.no_grad():
        network[-1].weight.copy_(torch.cat([mean.weight, torch.zeros_like(mean.weight)]))
        network[-1].bias.copy_(torch.tensor([float(mean.bias), math.log(variance)]))
    return network


def training_free(split: Split, seed: int) -> Answer:
    bnn, start = fitted(split, seed)
    return Answer(sampled(bnn), f"fit_posterior; the better of two networks, here {start}", str(SAMPLES))


def fine_tuned(split: Split, seed: int) -> Answer:
    """The recipe for uncertainty in docs/recipes.md, with early stopping; no step at all is a candidate too."""
    kept = fitted(split, seed)[0]
    best = heldout_nll(kept, split, SAMPLES)
    for beta in BETAS:
        bnn = copy.deepcopy(fitted(split, seed)[0])

        def loss(x: Tensor, y: Tensor, step: int, bnn: nn.Module = bnn, beta: float = beta) -> Tensor:
            return bensemble.elbo_loss(HEAD.nll(bnn(x), y), bensemble.kl_divergence(bnn), len(split.train[1]), beta)

        groups = bensemble.param_groups(bnn, lr=TUNING_RATE, rho_lr=RHO_RATE)
        descend(bnn, groups, split, loss, lambda bnn=bnn: heldout_nll(bnn.eval(), split, 20), TUNING_STEPS)
        value = heldout_nll(bnn, split, SAMPLES)
        if value < best:
            best, kept = value, bnn
    return Answer(
        sampled(kept),
        f"beta of {BETAS}, Adam {TUNING_RATE:g} / {RHO_RATE:g}, best of {TUNING_STEPS} steps",
        str(SAMPLES),
    )


def methods() -> dict[str, Callable[[Split, int], Answer]]:
    """Every method whose library is here, by its name in the table."""
    found: dict[str, Callable[[Split, int], Answer]] = {
        "constant noise": constant_noise,
        "Gaussian head": gaussian_head,
        "MC dropout": mc_dropout,
        "deep ensemble of 5": deep_ensemble,
        "ours, training-free": training_free,
        "ours, fine-tuned": fine_tuned,
    }
    if importlib.util.find_spec("laplace") is not None:
        found["laplace-torch, last layer"] = laplace_last_layer
    return found

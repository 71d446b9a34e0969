"""Every way to say how sure LeNet-5 is, each tuned on the same held-out pictures."""

from __future__ import annotations

import copy
import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from images import Images, Pairs
from lenet import LeNet5, descend, trained
from scores import nll_terms
from torch import Tensor, nn

import bensemble
from convert import bayesify

SAMPLES, MEMBERS = 20, 5
DROPOUT_RATES = (0.1, 0.25, 0.5)
BETAS = (1e-3, 1e-2)
#: Held-out pictures that choose the scale of a posterior.
FEW = 2500


@dataclass(frozen=True)
class Answer:
    """A method, ready to answer.

    Attributes:
        probs: From pictures (B, 1, 28, 28) to class probabilities (B, 10).
        settings: What was chosen, and how.
        cost: Forward passes of the network for one prediction.
    """

    probs: Callable[[Tensor], Tensor]
    settings: str
    cost: str


def networks(folder: Path, images: Images, seed: int) -> list[LeNet5]:
    """The pretrained network of a seed and four more; ensembles of neighbouring seeds share members."""
    return [trained(folder, images.train, member) for member in range(seed, seed + MEMBERS)]


def deterministic(folder: Path, images: Images, seed: int) -> Answer:
    network = trained(folder, images.train, seed)
    return Answer(lambda x: predicted(network, x), "6 epochs, AdamW 2e-3, decay 0.05", "1")


def mc_dropout(folder: Path, images: Images, seed: int) -> Answer:
    """Dropout before each Linear, kept on (Gal & Ghahramani 2016)."""
    rate = best_rate(folder, images)
    return Answer(dropped(trained(folder, images.train, seed, rate)), f"rate {rate:g} of {DROPOUT_RATES}", str(SAMPLES))


def trained_with_dropout(folder: Path, images: Images, seed: int) -> Answer:
    """The network behind that, with dropout off."""
    rate = best_rate(folder, images)
    network = trained(folder, images.train, seed, rate)
    return Answer(lambda x: predicted(network, x), f"the network of MC dropout, rate {rate:g}, off", "1")


def best_rate(folder: Path, images: Images) -> float:
    """The rate with the best held-out NLL for seed 0, over masks."""
    few = Pairs(images.held_out.x[:FEW], images.held_out.y[:FEW])

    def nll(rate: float) -> float:
        return float(nll_terms(dropped(trained(folder, images.train, 0, rate))(few.x), few.y).mean())

    return min(DROPOUT_RATES, key=nll)


def dropped(network: LeNet5) -> Callable[[Tensor], Tensor]:
    """Mean probabilities over masks; the trunk before the first mask runs once."""

    @torch.no_grad()
    def probs(x: Tensor) -> Tensor:
        network.eval()
        network.dropout.train()
        torch.manual_seed(0)
        return torch.cat(
            [torch.stack([network(part).softmax(1) for _ in range(SAMPLES)]).mean(0) for part in x.split(500)]
        )

    return probs


def deep_ensemble(folder: Path, images: Images, seed: int) -> Answer:
    """Five networks from five starts (Lakshminarayanan et al. 2017)."""
    members = networks(folder, images, seed)
    return Answer(lambda x: predicted(members, x), f"{MEMBERS} deterministic networks", str(MEMBERS))


def laplace_last_layer(folder: Path, images: Images, seed: int) -> Answer:
    """laplace-torch: last layer, Kronecker-factored, probit; its prior precision by held-out NLL."""
    from laplace import Laplace
    from torch.utils.data import DataLoader, TensorDataset

    network = trained(folder, images.train, seed).to(memory_format=torch.contiguous_format)  # it takes views
    posterior = Laplace(network, "classification", subset_of_weights="last_layer", hessian_structure="kron")
    posterior.fit(DataLoader(TensorDataset(images.train.x, images.train.y), 500))
    few = DataLoader(TensorDataset(images.held_out.x[:FEW], images.held_out.y[:FEW]), 500)
    posterior.optimize_prior_precision(method="gridsearch", val_loader=few, pred_type="glm", link_approx="probit")

    def probs(x: Tensor) -> Tensor:
        return torch.cat([posterior(part, pred_type="glm", link_approx="probit").detach() for part in x.split(500)])

    precision = float(posterior.prior_precision.flatten()[0])
    return Answer(probs, f"kron, probit, prior precision {precision:.3g} by grid", "1")


def training_free(folder: Path, images: Images, seed: int) -> Answer:
    bnn, settings = fitted(folder, images, seed)
    return Answer(lambda x: predicted(bnn, x), settings, str(SAMPLES))


def fine_tuned(folder: Path, images: Images, seed: int, epochs: int = 2, lr: float = 5e-4) -> Answer:
    """The recipe for uncertainty in docs/recipes.md: of two betas, and of all epochs, the best held-out NLL is kept."""
    start = fitted(folder, images, seed)[0]
    many = Pairs(images.held_out.x[: 2 * FEW], images.held_out.y[: 2 * FEW])
    tried = [(heldout_nll(start, many), start, "no step at all")]
    for beta in BETAS:
        bnn = copy.deepcopy(start)
        optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr, rho_lr=1e-2), fused=True)

        def loss(x: Tensor, y: Tensor, bnn: nn.Module = bnn, beta: float = beta) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits = bnn(x)
            kl = bensemble.kl_divergence(bnn)
            return bensemble.elbo_loss(F.cross_entropy(logits.float(), y), kl, len(images.train.y), beta)

        def keep(epoch: int, bnn: nn.Module = bnn, beta: float = beta) -> None:
            settings = f"beta {beta:g}, epoch {epoch} of {epochs}"
            tried.append((heldout_nll(bnn, many), copy.deepcopy(bnn).eval(), settings))

        descend(bnn.train(), optimizer, images.train, epochs, loss, keep)
    _, kept, settings = min(tried, key=lambda entry: entry[0])
    return Answer(lambda x: predicted(kept, x), f"{settings}; betas {BETAS}, Adam {lr:g} / 1e-2", str(SAMPLES))


@functools.cache
def fitted(folder: Path, images: Images, seed: int) -> tuple[nn.Module, str]:
    """The posterior of ``fit_posterior`` around one of two pretrained networks, the better one on held-out pictures."""
    few = Pairs(images.held_out.x[:FEW], images.held_out.y[:FEW])
    many = Pairs(images.held_out.x[: 2 * FEW], images.held_out.y[: 2 * FEW])
    found = []
    for rate in (0.0, best_rate(folder, images)):
        bnn = bayesify(trained(folder, images.train, seed, rate))
        report = bensemble.fit_posterior(
            bnn, images.train, likelihood="categorical", val_loader=few, generator=torch.Generator().manual_seed(seed)
        )
        settings = f"network trained with dropout {rate:g}; beta {report.beta:.2g}, reach {report.reach:.2g}"
        found.append((heldout_nll(bnn, many), bnn, settings))
    _, bnn, settings = min(found, key=lambda entry: entry[0])
    return bnn, settings


def heldout_nll(bnn: nn.Module, held_out: Pairs) -> float:
    return float(nll_terms(predicted(bnn, held_out.x, 10), held_out.y).mean())


def predicted(model: nn.Module | list[LeNet5], x: Tensor, num_samples: int = SAMPLES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    loader = Pairs(x, torch.zeros(len(x)).long())
    return bensemble.predict(model, loader, num_samples, likelihood="categorical", generator=generator).probs


def methods() -> dict[str, Callable[[Path, Images, int], Answer]]:
    """Every method whose library is here, by its name in the table."""
    found: dict[str, Callable[[Path, Images, int], Answer]] = {
        "deterministic": deterministic,
        "deterministic, trained with dropout": trained_with_dropout,
        "MC dropout": mc_dropout,
        "deep ensemble of 5": deep_ensemble,
        "ours, training-free": training_free,
        "ours, fine-tuned": fine_tuned,
    }
    if importlib.util.find_spec("laplace") is not None:
        found["laplace-torch, last layer"] = laplace_last_layer
    return found

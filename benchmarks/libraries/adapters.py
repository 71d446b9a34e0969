"""Each library the way its README says: Linear and Conv2d replaced, with the weights they had, and the KL of the whole.

A library is imported when its adapter is asked for: the published bensemble and this one have one name, and never meet
in one process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Standard deviation of every weight while gradients are compared.
SIGMA = 0.05


@dataclass(frozen=True)
class Library:
    """A converted network's divergence, and where it keeps what it learns.

    Attributes:
        convert: From a network to its Bayesian copy with the same means; may change its argument.
        kl: Divergence of a converted network after a forward, in nats.
        pairs: Means and spread parameters.
        logarithmic: Whether the spread parameter is log sigma; else sigma is its softplus.
    """

    convert: Callable[[nn.Module], nn.Module]
    kl: Callable[[nn.Module], Tensor]
    pairs: Callable[[nn.Module], list[tuple[nn.Parameter, nn.Parameter]]]
    logarithmic: bool = False

    @torch.no_grad()
    def set_sigma(self, network: nn.Module, sigma: float = SIGMA) -> None:
        """Give every weight the same standard deviation."""
        value = torch.tensor(sigma)
        for _, spread in self.pairs(network):
            spread.fill_(value.log() if self.logarithmic else value.expm1().log())


def ours(estimator: str) -> Library:
    bensemble, convert = importlib.import_module("bensemble"), importlib.import_module("convert")
    return Library(
        lambda network: convert.bayesify(network, estimator=estimator),
        bensemble.kl_divergence,
        lambda network: [(p.mu, p.rho) for _, p in bensemble.named_posteriors(network)],
    )


def published_bensemble() -> Library:
    conv = importlib.import_module("bensemble.layers.conv").BayesianConv2d
    linear = importlib.import_module("bensemble.layers.linear").BayesianLinear

    def make(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Linear):
            return linear(layer.in_features, layer.out_features)
        return conv(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            layer.groups,
        )  # fmt: skip

    def kl(network: nn.Module) -> Any:
        return sum(layer.kl_divergence() for layer in network.modules() if isinstance(layer, (linear, conv)))

    return Library(_replacing(make, "w_mu", "b_mu"), kl, _named_pairs("_mu", "_rho"))


def bayesian_torch(kind: str) -> Library:
    models = importlib.import_module("bayesian_torch.models.dnn_to_bnn")
    settings = {
        "prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0,
        "type": kind, "moped_enable": True, "moped_delta": 0.1,
    }  # fmt: skip

    def convert(network: nn.Module) -> nn.Module:
        whole = nn.Sequential(network)
        models.dnn_to_bnn(whole, settings)
        return whole

    return Library(convert, models.get_kl_loss, _named_pairs("mu_", "rho_"))


def blitz() -> Library:
    modules = importlib.import_module("blitz.modules")
    losses = importlib.import_module("blitz.losses")

    def make(layer: nn.Module) -> nn.Module:
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            return modules.BayesianLinear(layer.in_features, layer.out_features, bias=bias)
        return modules.BayesianConv2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.groups, layer.stride, layer.padding,
            layer.dilation, bias,
        )  # fmt: skip

    def pairs(network: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        samplers = (m for m in network.modules() if type(m).__name__ == "TrainableRandomDistribution")
        return [(sampler.mu, sampler.rho) for sampler in samplers]

    return Library(_replacing(make, "weight_mu", "bias_mu"), losses.kl_divergence_from_nn, pairs)


def torchbnn() -> Library:
    package = importlib.import_module("torchbnn")

    def make(layer: nn.Module) -> nn.Module:
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            return package.BayesLinear(0.0, 1.0, layer.in_features, layer.out_features, bias)
        return package.BayesConv2d(
            0.0, 1.0, layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, bias,
        )  # fmt: skip

    loss = package.BKLLoss(reduction="sum")
    return Library(
        _replacing(make, "weight_mu", "bias_mu"), lambda network: loss(network).sum(),
        _named_pairs("_mu", "_log_sigma"), logarithmic=True,
    )  # fmt: skip


#: The one that cannot be in one process, or one folder of packages, with this library.
PUBLISHED = "bensemble 0.2.2"

#: Row by row of the table; "local" noise belongs to activations, the others draw weights.
LIBRARIES: dict[str, Callable[[], Library]] = {
    "ours, local": lambda: ours("local"),
    "ours, weights": lambda: ours("weights"),
    PUBLISHED: published_bensemble,
    "bayesian-torch": lambda: bayesian_torch("Reparameterization"),
    "bayesian-torch, Flipout": lambda: bayesian_torch("Flipout"),
    "blitz": blitz,
    "torchbnn": torchbnn,
}


def _replacing(make: Callable[[nn.Module], nn.Module], weight: str, bias: str) -> Callable[[nn.Module], nn.Module]:
    """A conversion for libraries that have none."""

    def convert(network: nn.Module) -> nn.Module:
        whole = nn.Sequential(network)
        for path, layer in list(whole.named_modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                twin = make(layer)
                with torch.no_grad():
                    getattr(twin, weight).copy_(layer.weight)
                    if layer.bias is not None:
                        getattr(twin, bias).copy_(layer.bias)
                parent, _, name = path.rpartition(".")
                setattr(whole.get_submodule(parent), name, twin)
        return whole

    return convert


def _named_pairs(mean: str, spread: str) -> Callable[[nn.Module], list[tuple[nn.Parameter, nn.Parameter]]]:
    def pairs(network: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(_found(network.modules(), mean, spread))

    return pairs


def _found(modules: Iterable[nn.Module], mean: str, spread: str) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
    for module in modules:
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            if mean in name and name.replace(mean, spread) in own:
                yield parameter, own[name.replace(mean, spread)]

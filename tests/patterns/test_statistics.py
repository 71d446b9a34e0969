"""The spread of sampled predictions, against a plain copy whose weights are perturbed by hand.

Two independent Monte Carlo estimates of the same variance, element by element. With n samples each, their difference
has the standard error sqrt(sum of (m4 - s^4) / n), m4 the fourth central moment; the bound is Bonferroni's over all
output elements at a family-wise error of 1e-3. Each comparison has to fail when one sigma is 10 % off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bensemble import named_posteriors, sampling
from convert import bayesify

from .tied import LanguageModel

SAMPLES = 4000
FAMILY_WISE_ERROR = 1e-3


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2), torch.randn(1, 3, 4)


class SelfAttention(nn.MultiheadAttention):
    """Attends from its input to itself."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class TopState(nn.Module):
    """The output sequence of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def attention() -> tuple[nn.Module, Tensor]:
    return SelfAttention(8, 2, batch_first=True), torch.randn(1, 3, 8)


def lstm() -> tuple[nn.Module, Tensor]:
    return TopState(), torch.randn(2, 3, 3)


def weight_norm_conv() -> tuple[nn.Module, Tensor]:
    return parametrizations.weight_norm(nn.Conv1d(3, 4, 3)), torch.randn(1, 3, 6)


def tied_head() -> tuple[nn.Module, Tensor]:
    return LanguageModel(), torch.tensor([[1, 4]])


#: Builder, and the weight whose sigma is tried alone.
CASES = [
    (encoder, "layers.0.linear1.weight"),
    (attention, "in_proj_weight"),
    (lstm, "lstm.weight_ih_l1"),
    (weight_norm_conv, "parametrizations.weight.original1"),
    (tied_head, "embedding.weight"),
]
each_case = pytest.mark.parametrize(("build", "name"), CASES, ids=[build.__name__ for build, _ in CASES])
Build = Callable[[], tuple[nn.Module, Tensor]]


def sampled(bnn: nn.Module, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    outputs = []
    with torch.no_grad():
        for _ in range(SAMPLES):
            with sampling(bnn, generator):
                outputs.append(bnn(x).flatten())
    return torch.stack(outputs).double()


def perturbed(model: nn.Module, x: Tensor, sigmas: dict[str, float]) -> Tensor:
    """Nothing of the library: w + sigma * noise, written into the Parameters of a copy."""
    plain, generator = copy.deepcopy(model), torch.Generator().manual_seed(2)
    parameters = dict(plain.named_parameters())
    means = {name: parameters[name].detach().clone() for name in sigmas}
    outputs = []
    with torch.no_grad():
        for _ in range(SAMPLES):
            for name, sigma in sigmas.items():
                noise = torch.randn(means[name].shape, generator=generator)
                parameters[name].copy_(means[name] + sigma * noise)
            outputs.append(plain(x).flatten())
    return torch.stack(outputs).double()


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether mean and variance of all elements agree within the family-wise bound."""
    bound = NormalDist().inv_cdf(1 - FAMILY_WISE_ERROR / (4 * one.shape[1]))
    mean_error = ((one.var(0) + other.var(0)) / SAMPLES).sqrt()
    means = (one.mean(0) - other.mean(0)).abs() / mean_error
    spread = [(s - s.mean(0)).square() for s in (one, other)]
    variance_error = (sum(s.var(0) for s in spread) / SAMPLES).sqrt()
    variances = (one.var(0) - other.var(0)).abs() / variance_error
    return bool(means.max() < bound and variances.max() < bound)


def relative_sigmas(model: nn.Module, names: list[str]) -> dict[str, float]:
    parameters = dict(model.named_parameters())
    return {name: 0.1 * math.sqrt(float(parameters[name].detach().square().mean())) for name in names}


@pytest.mark.slow
@each_case
def test_sampled_predictions_spread_as_perturbed_weights_do(build: Build, name: str) -> None:
    model, x = build()
    model.eval()
    wide = [n for n, p in model.named_parameters() if p.dim() > 1 and p.shape[-1] > 1]
    sigmas = relative_sigmas(model, wide)
    bnn = bayesify(model, include=wide, init_sigma=lambda key, weight: sigmas[key])
    assert {key for key, _ in named_posteriors(bnn)} == set(wide) >= {name}
    assert agree(sampled(bnn, x), perturbed(model, x, sigmas))


@pytest.mark.slow
@each_case
def test_one_sigma_is_exact_to_ten_percent(build: Build, name: str) -> None:
    model, x = build()
    model.eval()
    sigmas = relative_sigmas(model, [name])
    by_hand = perturbed(model, x, sigmas)
    assert agree(sampled(bayesify(model, include=name, init_sigma=sigmas[name]), x), by_hand)
    assert not agree(sampled(bayesify(model, include=name, init_sigma=1.1 * sigmas[name]), x), by_hand)


def test_the_fused_path_is_kept_for_the_mean_and_left_for_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = encoder()
    bnn = bayesify(model.eval())
    calls = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: (calls.append(1), fused(*args))[1])
    with torch.no_grad():
        assert torch.equal(model(x), bnn(x))
        assert len(calls) == 4, "two layers of each model"
        with sampling(bnn):
            assert not torch.equal(model(x), bnn(x))


def test_attention_stays_fused_for_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = attention()
    bnn = bayesify(model.eval())
    calls = []
    fused = torch._native_multi_head_attention
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *args: (calls.append(1), fused(*args))[1])
    with torch.no_grad():
        assert torch.equal(model(x), bnn(x))
        assert len(calls) == 2
        with sampling(bnn):
            first = bnn(x)
            assert torch.equal(first, bnn(x))
            assert not torch.equal(first, model(x))

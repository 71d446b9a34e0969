"""Sampled predictions are those of a plain copy whose weights are perturbed by hand.

A forward inside ``sampling`` uses the weights that one reads there, and these are draws from N(mu, sigma^2): the two
together say all about the spread of the outputs. The first is exact. The second compares moments of draws of each
weight within standard errors, and has to fail when the sigma of one weight is 10 % off.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bensemble import named_posteriors, sampling
from bensemble.testing.moments import Moments, require_same_moments
from convert import bayesify

from .tied import LanguageModel

SAMPLES = 2500


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


def read(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Weights as the model hands them out."""
    owners = ((name, *name.rpartition(".")[::2]) for name in names)
    return {name: getattr(model.get_submodule(path), leaf).detach() for name, path, leaf in owners}


def assert_forwards_use_what_is_read(bnn: nn.Module, model: nn.Module, names: list[str], x: Tensor) -> None:
    """Each sample gives what a copy of the model gives with the weights of that sample, and no other sample does."""
    plain = copy.deepcopy(model)
    parameters, outputs = dict(plain.named_parameters()), []
    with torch.no_grad():
        for seed in range(10):
            with sampling(bnn, torch.Generator().manual_seed(seed)):
                for name, weight in read(bnn, names).items():
                    parameters[name].copy_(weight)
                outputs.append(bnn(x))
            torch.testing.assert_close(outputs[-1], plain(x))
            assert not any(torch.equal(outputs[-1], other) for other in outputs[:-1])


def moments_of_draws(bnn: nn.Module, means: dict[str, Tensor], count: int = SAMPLES) -> dict[str, Moments]:
    generator, found = torch.Generator().manual_seed(1), {name: Moments() for name in means}
    with torch.no_grad():
        for _ in range(count):
            with sampling(bnn, generator):
                for name, weight in read(bnn, list(means)).items():
                    found[name].add((weight - means[name])[None])
    return found


def assert_draws_have(found: dict[str, Moments], means: dict[str, Tensor], sigmas: dict[str, float]) -> None:
    for name, moments in found.items():
        require_same_moments(
            moments, torch.zeros_like(means[name]), torch.full_like(means[name], sigmas[name] ** 2), name
        )


def relative_sigmas(model: nn.Module, names: list[str]) -> dict[str, float]:
    parameters = dict(model.named_parameters())
    return {name: 0.1 * math.sqrt(float(parameters[name].detach().square().mean())) for name in names}


@pytest.mark.slow
@each_case
def test_sampled_predictions_are_those_of_perturbed_weights(build: Build, name: str) -> None:
    model, x = build()
    model.eval()
    wide = [n for n, p in model.named_parameters() if p.dim() > 1 and p.shape[-1] > 1]
    sigmas, means = relative_sigmas(model, wide), read(model, wide)
    bnn = bayesify(model, include=wide, init_sigma=lambda key, weight: sigmas[key])
    assert {key for key, _ in named_posteriors(bnn)} == set(wide) >= {name}
    assert_forwards_use_what_is_read(bnn, model, wide, x)
    assert_draws_have(moments_of_draws(bnn, means, 1000), means, sigmas)


@pytest.mark.slow
@each_case
def test_one_sigma_is_exact_to_ten_percent(build: Build, name: str) -> None:
    model, x = build()
    model.eval()
    sigmas, means = relative_sigmas(model, [name]), read(model, [name])
    bnn = bayesify(model, include=name, init_sigma=sigmas[name])
    assert_forwards_use_what_is_read(bnn, model, [name], x)
    assert_draws_have(moments_of_draws(bnn, means), means, sigmas)
    wrong = bayesify(model, include=name, init_sigma=1.1 * sigmas[name])
    with pytest.raises(AssertionError, match=r"the variance of .* standard errors off"):
        assert_draws_have(moments_of_draws(wrong, means), means, sigmas)


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

r"""The spread of predict, however it makes its samples, is that of a plain network whose weights are perturbed by hand.

The log ratio of two variances from N samples each has variance :math:`(\kappa_1 + \kappa_2 - 2) / N`, with kurtosis
:math:`\kappa`. Each element has to lie within the normal quantile for the number of elements (family-wise, 1e-6), and
the mean over all elements within five standard errors by the jackknife over groups of samples. The copy with one sigma
10 % larger must fail one of the two; noise of that tensor alone is compared there, since in the whole network a tenth
of one sigma of many may be less than 2,000 samples can show.
"""

import copy
from dataclasses import dataclass
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bensemble import named_posteriors, predict
from bensemble.gaussian import rho_from_sigma, sigma_from_rho
from convert import bayesify

SAMPLES, GROUPS = 2000, 20


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.second, self.head = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.second(torch.relu(self.first(x)))
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.low = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        high = torch.relu(self.down(x))
        return self.out(torch.cat([high, torch.relu(self.up(torch.relu(self.low(high))))], 1))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


@dataclass
class TokenOutput:
    loss: Tensor | None = None
    logits: Tensor | None = None


class TokenClassifier(nn.Module):
    """Named inputs, a dataclass out, as the models of transformers have it."""

    def __init__(self):
        super().__init__()
        self.words, self.query, self.key, self.value = nn.Embedding(11, 4), *(nn.Linear(4, 4) for _ in range(3))
        self.norm, self.classifier = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.words(input_ids)
        mask = attention_mask[:, None, :].bool()
        mixed = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), attn_mask=mask)
        return TokenOutput(logits=self.classifier(self.norm(x + mixed)))


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def pooled():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def trunk_and_head():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 1, enable_nested_tensor=False)


torch.manual_seed(0)
IMAGES, TOKENS = torch.randn(3, 1, 6, 6), torch.randn(2, 3, 4)
WORDS = {"input_ids": torch.randint(0, 11, (2, 4)), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
#: Name -> network, inputs, options of predict, how samples are made, a weight whose sigma is wrong in one copy.
CASES = {
    "mlp": (mlp, torch.randn(4, 4), {}, "weights", "2.weight"),
    "pooled": (pooled, IMAGES, {}, "weights", "0.weight"),
    "head after a trunk": (trunk_and_head, IMAGES, {}, "weights", "4.weight"),
    "residual": (Residual, IMAGES, {"chunk_size": 2}, "weights", "head.weight"),
    "per pixel": (UNet, IMAGES[:1], {}, "weights", "up.weight"),
    "encoder": (encoder, TOKENS, {}, "weights", "layers.0.self_attn.in_proj_weight"),
    "lstm": (Tagger, TOKENS[..., :3], {}, "weights", "lstm.weight_hh_l0"),
    "token classifier": (TokenClassifier, WORDS, {}, "weights", "classifier.weight"),
}


def prepared(build, include=None):
    """A network with lively weights, and its Bayesian copy with sigmas that differ from weight to weight."""
    torch.manual_seed(3)
    plain = build().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    bnn = bayesify(plain, include=include).eval()
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            scale = posterior.mu.square().mean().sqrt()
            posterior.rho.copy_(rho_from_sigma(0.2 * scale * (0.5 + torch.rand(posterior.rho.shape))))
    return plain, bnn


@torch.no_grad()
def perturbed(plain, bnn, inputs, factors, seed=9):
    """Outputs of copies of the plain network with perturbed weights, one row for each."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for name, posterior in named_posteriors(bnn):
        noise = torch.randn((SAMPLES, *posterior.mu.shape), generator=generator)
        drawn[name] = posterior.mu + factors.get(name, 1.0) * sigma_from_rho(posterior.rho) * noise
    args, named = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})

    def outputs(weights):
        out = functional_call(plain, weights, args, named)
        return (out.logits if isinstance(out, TokenOutput) else out).flatten()

    if any(isinstance(module, nn.LSTM) for module in plain.modules()):  # vmap has no rule for it
        one_by_one = ({name: values[i] for name, values in drawn.items()} for i in range(SAMPLES))
        return torch.stack([outputs(weights) for weights in one_by_one]).double()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nor for the fused encoder and attention
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(outputs, chunk_size=200)(drawn).double()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def agree(one, other):
    """Whether all standard deviations agree by both bounds."""
    ratio, error = _log_ratio(one, other), ((_kurtosis(one) + _kurtosis(other) - 2) / SAMPLES).sqrt()
    quantile = NormalDist().inv_cdf(1 - 1e-6 / (2 * ratio.numel()))
    groups = torch.arange(SAMPLES) % GROUPS
    left_out = torch.stack([_log_ratio(one[groups != g], other[groups != g]).mean() for g in range(GROUPS)])
    pooled_error = ((GROUPS - 1) / GROUPS * (left_out - left_out.mean()).square().sum()).sqrt()
    return bool((ratio.abs() < quantile * error).all()) and abs(float(ratio.mean())) < 5 * float(pooled_error)


def _log_ratio(one, other):
    return one.var(0).log() - other.var(0).log()


def _kurtosis(values):
    centred = values - values.mean(0)
    return centred.pow(4).mean(0) / centred.square().mean(0).square()


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_spread_is_that_of_perturbed_weights(name):
    build, inputs, options, method, wrong = CASES[name]
    plain, bnn = prepared(build, "4" if name.startswith("head") else None)
    prediction = predict(bnn, inputs, SAMPLES, keep_samples=True, generator=torch.Generator().manual_seed(1), **options)
    assert prediction.method == method
    samples = prediction.samples.flatten(1).double()
    assert agree(samples, perturbed(plain, bnn, inputs, {}))
    torch.testing.assert_close(prediction.std.flatten().double(), samples.std(0), rtol=1e-4, atol=1e-6)
    alone = copy.deepcopy(bnn)
    with torch.no_grad():
        for other, posterior in named_posteriors(alone):
            if other != wrong:
                posterior.rho.fill_(-49.0)
    one = predict(alone, inputs, SAMPLES, keep_samples=True, generator=torch.Generator().manual_seed(2), **options)
    one = one.samples.flatten(1).double()
    moving = one.std(0) > 1e-5 * one.abs().amax()
    byhand = perturbed(plain, alone, inputs, {wrong: 1.0})[:, moving]
    tenth = perturbed(plain, alone, inputs, {wrong: 1.1})[:, moving]
    assert agree(one[:, moving], byhand)
    assert not agree(one[:, moving], tenth)

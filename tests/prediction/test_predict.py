"""What ``predict`` returns, for classes, ensembles and any form of inputs and outputs."""

import copy
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.distributions import Categorical as TorchCategorical
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from bensemble.likelihoods import Categorical
from bensemble.prediction.monte_carlo import ClassPrediction, Prediction, predict

from .networks import PLAIN, X, bayesian, cnn, seeded


def test_entropies_follow_their_definitions():
    bnn = bayesian(cnn(), 1.0)
    prediction = predict(bnn, X, 50, likelihood="categorical", generator=seeded())
    probs = predict(bnn, X, 50, generator=seeded()).samples.softmax(-1)
    assert isinstance(prediction, ClassPrediction)
    assert_close(prediction.samples, probs)
    assert_close(prediction.probs, probs.mean(0))
    assert_close(prediction.entropy, TorchCategorical(probs.mean(0)).entropy())
    assert_close(prediction.expected_entropy, TorchCategorical(probs).entropy().mean(0))
    information = torch.distributions.kl_divergence(TorchCategorical(probs), TorchCategorical(probs.mean(0))).mean(0)
    assert_close(prediction.mutual_information, information, rtol=1e-4, atol=1e-6)
    assert prediction.mutual_information.min() > 0.01


def test_mutual_information_is_not_negative_where_rounding_would_make_it_so():
    bnn = bayesian(nn.Sequential(nn.Flatten(), nn.Linear(36, 10)), 1e-6)
    prediction = predict(bnn, torch.randn(500, 36), 7, likelihood="categorical", generator=seeded())
    assert (prediction.entropy < prediction.expected_entropy).any()
    assert (prediction.mutual_information >= 0).all()


def test_bernoulli_predictions_are_per_element():
    bnn = bayesian(cnn(2), 1.0)
    prediction = predict(bnn, X, 50, likelihood="bernoulli", generator=seeded())
    probs = predict(bnn, X, 50, generator=seeded()).samples.sigmoid()
    assert_close(prediction.probs, probs.mean(0))
    reference = torch.distributions.Bernoulli(probs)
    assert_close(prediction.expected_entropy, reference.entropy().mean(0))
    assert_close(prediction.entropy, torch.distributions.Bernoulli(probs.mean(0)).entropy())


def test_class_maps_have_entropies_per_pixel():
    bnn = bayesian(PLAIN["per pixel"]())
    prediction = predict(bnn, X, 4, likelihood=Categorical(dim=1), generator=seeded())
    assert prediction.probs.shape == (7, 2, 12, 12)
    assert prediction.entropy.shape == prediction.mutual_information.shape == (7, 12, 12)
    assert_close(prediction.probs.sum(1), torch.ones(7, 12, 12))


def test_a_deterministic_model_needs_one_pass():
    plain, calls = cnn(), []
    prediction = predict(plain, X, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)]
    assert prediction.num_samples == 1
    assert_close(prediction.mean, plain.eval()(X).detach())
    assert prediction.std.abs().max() == prediction.mcse.abs().max() == 0
    assert_close(prediction.quantile(0.3), prediction.mean)


def test_one_sample_of_a_posterior_has_no_deviation():
    assert predict(bayesian(cnn()), X, 1).std.isnan().all()


def test_an_ensemble_of_plain_models():
    members = [cnn().eval() for _ in range(3)]
    prediction = predict(members, X, likelihood="categorical")
    probs = torch.stack([member(X) for member in members]).softmax(-1).detach()
    assert prediction.num_samples == 3
    assert_close(prediction.samples, probs)
    assert_close(prediction.std, probs.std(0))
    assert_close(predict(nn.ModuleList(members), X, likelihood="categorical").mean, probs.mean(0))


def test_an_ensemble_of_bayesian_models_weighs_them_alike():
    members = [bayesian(cnn()), bayesian(cnn())]
    both = predict(members, X, 4, generator=seeded())
    generator = seeded()
    alone = [predict(member, X, 4, generator=generator) for member in members]
    assert both.num_samples == 8
    assert_close(both.mean, (alone[0].mean + alone[1].mean) / 2)
    assert_close(both.samples, torch.cat([alone[0].samples, alone[1].samples]))


class Dictionary(nn.Module):
    """Inputs by name and a structured output, as in Hugging Face models."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, values, mask=None, labels=None):
        assert labels is None
        hidden = self.body(values if mask is None else values * mask)
        return {"logits": hidden, "hidden": hidden + 1}


def test_mappings_in_and_out():
    bnn = bayesian(Dictionary())
    values, mask = torch.randn(5, 4), torch.ones(5, 1)
    direct = predict(bnn, {"values": values, "mask": mask}, 3, likelihood="categorical", generator=seeded())
    loader = [UserDict(values=values[i : i + 2], mask=mask[i : i + 2], labels=torch.zeros(1)) for i in (0, 2, 4)]
    read = predict(bnn, loader, 3, likelihood="categorical", generator=seeded())
    assert_close(direct.mean, read.mean)
    assert_close(predict(bnn, (values, mask), 3, likelihood="categorical", generator=seeded()).mean, direct.mean)
    hidden = predict(bnn, (values,), 3, output="hidden", generator=seeded())
    assert_close(hidden.mean, predict(bnn, values, 3, output="logits", generator=seeded()).mean + 1)
    unpacked = predict(bnn, [(0, values)], 3, unpack=lambda b: (b[1], b[0]), generator=seeded())
    assert_close(unpacked.mean + 1, hidden.mean)


def test_progress_counts_forwards():
    bnn, calls = bayesian(cnn()), []
    loader = DataLoader(TensorDataset(X), batch_size=3)
    predict(bnn, loader, 2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 6) for i in range(6)]
    calls.clear()
    predict(bnn, iter(list(loader)), 2, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, None)
    calls.clear()
    predict(bnn, X, 2, chunk_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8, 8)


def test_half_precision_outputs_become_float32():
    bnn = bayesian(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))).bfloat16()
    prediction = predict(bnn, X.bfloat16(), 4, likelihood="categorical")
    assert prediction.probs.dtype == prediction.std.dtype == prediction.entropy.dtype == torch.float32
    assert predict(bayesian(cnn()).double(), X.double(), 2).mean.dtype == torch.float64


def test_rejecting_hands_on_the_most_uncertain():
    prediction = predict(bayesian(cnn(), 1.0), X, 20, likelihood="categorical")
    order = prediction.entropy.argsort(descending=True)
    for share, count in [(0.0, 0), (0.3, 2), (1.0, 7)]:
        rejected = prediction.reject(share=share)
        assert set(rejected.nonzero().flatten().tolist()) == set(order[:count].tolist())
    limit = float(prediction.mutual_information.median())
    assert torch.equal(
        prediction.reject(threshold=limit, by="mutual_information"), prediction.mutual_information > limit
    )


def test_predictions_are_frozen_print_and_explain_what_they_lack():
    raw = predict(cnn(), X)
    assert type(raw) is Prediction
    with pytest.raises(AttributeError, match=r"has no 'probs'.*likelihood=None; pass likelihood='categorical'"):
        _ = raw.probs
    with pytest.raises(AttributeError, match=r"has no 'total_std'.*pass likelihood='gaussian_head'"):
        _ = predict(cnn(), X, likelihood="categorical").total_std
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = raw.nonsense
    with pytest.raises(AttributeError):
        raw.mean = X
    assert "Prediction: 7 examples, 1 samples (deterministic, kept)" in repr(raw)
    assert "mutual_information" in repr(predict(cnn(), X, likelihood="categorical"))
    assert "total_std" in repr(predict(cnn(4), X, likelihood="gaussian_head", keep_samples=False))
    assert_close(copy.deepcopy(raw).mean, raw.mean)

"""What an uncertainty file computes from K outputs, against the definitions in float64."""

import pytest
import torch

from bensemble.likelihoods import Bernoulli, Categorical
from convert.onnx.uncertainty.statistics import Statistics


def exact_information(probs: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """H[mean p] - mean H[p], in float64."""
    entropy = torch.special.entr(probs).sum(axis)
    return torch.special.entr(probs.mean(0)).sum(axis) - entropy.mean(0)


@pytest.mark.parametrize("spread", [1e-3, 1e-2, 0.3, 3.0, 30.0])
def test_information_keeps_its_precision_where_draws_agree(spread):
    logits = torch.randn(1, 50, 10) + spread * torch.randn(16, 50, 10)
    exact = exact_information(logits.double().softmax(-1))
    found = Statistics(Categorical()).of_samples(logits)["mutual_information"]
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=1e-9)
    if spread == 1e-3:  # the difference of entropies in float32 is nothing but rounding there
        naive = exact_information(logits.softmax(-1)).double()
        assert (naive - exact).abs().max() > 0.1 * exact.max()


@pytest.mark.parametrize("spread", [1e-2, 3.0])
def test_information_of_yes_or_no(spread):
    logits = torch.randn(1, 50, 3) + spread * torch.randn(16, 50, 3)
    yes = logits.double().sigmoid()
    exact = exact_information(torch.stack([yes, 1 - yes], -1))
    found = Statistics(Bernoulli()).of_samples(logits)["mutual_information"]
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=1e-8)


def test_certain_and_impossible_classes_give_numbers():
    sure = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    found = Statistics(Categorical()).of_samples(sure)
    torch.testing.assert_close(found["probs"], torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(found["entropy"], torch.full((1,), 2.0).log())
    torch.testing.assert_close(found["mutual_information"], torch.full((1,), 2.0).log())
    same = Statistics(Categorical()).of_samples(sure[:1].expand(4, 1, 3))
    assert same["entropy"].item() == same["mutual_information"].item() == 0.0


def test_temperature_and_threshold():
    logits = torch.randn(4, 20, 3)
    plain = Statistics(Categorical()).of_samples(logits / 2.0)
    found = Statistics(Categorical(), 2.0, 0.7).of_samples(logits)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value)
    assert torch.equal(found["prediction_set"], 1 - found["probs"] <= 0.7)

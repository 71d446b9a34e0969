import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bensemble import predict, rejection_curve
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Categorical, Gaussian


def classes(dim=None, outputs=3, likelihood=None):
    members = [nn.Linear(4, outputs) for _ in range(3)]
    return predict(
        members, torch.randn(*((50, 4) if dim is None else (10, 5, 4))), likelihood=likelihood or Categorical(dim)
    )


@pytest.mark.parametrize("by", ["entropy", "mutual_information", "expected_entropy"])
def test_the_risk_is_that_of_the_surest(by):
    prediction, targets = classes(), torch.randint(0, 3, (50,))
    curve = rejection_curve(prediction, targets, by)
    wrong = (prediction.probs.argmax(-1) != targets).double()
    for count in (1, 20, 45, 50):
        kept = getattr(prediction, by).argsort()[:count]
        assert float(curve.risk[count - 1]) == pytest.approx(float(wrong[kept].mean()))
        assert curve.at(count / 50) == (float(curve.risk[count - 1]), float(getattr(prediction, by)[kept].max()))
        if count < 50:
            rejected = prediction.reject(share=1 - count / 50, by=by)
            assert float(wrong[~rejected].mean()) == pytest.approx(float(curve.risk[count - 1]))
    assert curve.area == pytest.approx(float(curve.risk.mean()))
    assert_close(curve.kept, torch.arange(1, 51) / 50)
    assert repr(curve).startswith(f"RejectionCurve by {by}: 50 terms, area ")


def test_perfect_uncertainty_has_the_least_risk():
    prediction = classes()
    targets = prediction.probs.argmax(-1)
    targets[prediction.entropy.argsort(descending=True)[:10]] = (
        targets[prediction.entropy.argsort(descending=True)[:10]] + 1
    ) % 3
    curve = rejection_curve(prediction, targets)
    assert curve.by == "entropy"
    assert curve.at(0.8)[0] == 0
    assert curve.at(1.0)[0] == pytest.approx(0.2)


def test_ignored_positions_yes_and_no_and_regressions():
    targets = torch.randint(0, 3, (10, 5))
    targets[:, 3:] = -100
    assert len(rejection_curve(classes(-1), targets).kept) == 30
    answers = classes(outputs=2, likelihood="bernoulli")
    truth = (answers.probs > 0.5).float()
    assert rejection_curve(answers, truth).area == 0
    assert rejection_curve(answers, 1 - truth).area == 1
    numbers = classes(likelihood=Gaussian(0.5))
    curve = rejection_curve(numbers, numbers.mean + 2)
    assert curve.by == "total_std"
    assert_close(curve.risk, torch.full((150,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: rejection_curve(classes(), torch.zeros(50).long(), "std"),
            InvalidValueError,
            "by must be one of entr",
        ),
        (lambda: rejection_curve(classes(), torch.zeros(3).long()), InvalidValueError, r"must have shape \(50,\)"),
        (lambda: rejection_curve(classes(), torch.full((50,), -100)), InvalidValueError, "at least one that counts"),
        (
            lambda: rejection_curve(classes(), torch.zeros(50).long()).at(0),
            InvalidValueError,
            "at: share must be finite and above 0",
        ),
        (
            lambda: rejection_curve(predict(nn.Linear(2, 2), torch.zeros(3, 2)), torch.zeros(3)),
            InvalidTypeError,
            "rejection_curve: prediction must be of classes or of a regression, got Prediction",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()

"""Scores that do not tell a network from outputs that mean nothing."""

from __future__ import annotations

import tempfile

import pytest
import torch
from torch import nn

from bensemble.errors import InvalidValueError
from convert import compress
from convert.compression.chance import check_baseline

from .digits import accuracy, data, posterior

pytestmark = pytest.mark.xdist_group("one search")  # its fixtures are made once


def _scores(labels, **changes):
    """A search with a trained network by its accuracy for these labels."""
    model, images = posterior(), data().search[0]
    options = {"max_drop": 0.01, "refine": 0, "granularities": ["channel"], "scores": "snr", **changes}
    with tempfile.TemporaryDirectory() as folder:
        compress(model, accuracy(images, labels), images[:16], f"{folder}/x.onnx", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (lambda y: y + 10, "evaluate must tell the network from outputs that mean nothing, got 0 for all"),
        (lambda y: y + 1, "must score above chance before it is pruned, got 0[.0-9]*, but the same output for every"),
        (lambda y: 9 - y, "must score above chance"),
    ],
)
def test_labels_that_do_not_belong_to_the_outputs_are_refused_before_the_search(labels, match):
    with pytest.raises(InvalidValueError, match=match):
        _scores(labels(data().search[1]))


@pytest.mark.slow
@pytest.mark.usefixtures("in_memory")
def test_labels_of_other_examples_are_warned_of():
    shuffled = data().search[1].roll(1)
    with pytest.warns(UserWarning, match="the search may end at a network that says one thing"):
        _scores(shuffled, max_drop=0.1)


@pytest.mark.slow
@pytest.mark.usefixtures("in_memory")
def test_what_ten_examples_chose_must_hold_on_others(tmp_path):
    (images, labels), others = data().search, data().held_out
    evaluate = accuracy(images[:10], labels[:10])
    options = {"max_drop": 0.0, "refine": 0, "granularities": ["channel"], "scores": "snr"}
    alone = compress(posterior(), evaluate, images[:16], tmp_path / "alone.onnx", **options)
    found = compress(posterior(), evaluate, images[:16], tmp_path / "found.onnx", confirm=[others], **options)
    assert found.confirmed.refused[0].startswith(alone.chosen.name)
    assert found.confirmed.drop <= 0


class Fixed(nn.Module):
    """Gives its outputs, whatever the input."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self):
        return self.outputs


Y = torch.arange(200) % 4

SHUFFLED = Y[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
LOGITS = torch.nn.functional.one_hot(Y).float() * 3 + torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("evaluate", "match"),
    [
        (lambda m: 0.7, "evaluate must tell the network from outputs that mean nothing, got 0.7 for all"),
        (lambda m: float((m().argmax(1) == (Y + 1) % 4).float().mean()), "must score above chance .*, got 0.0"),
        (lambda m: float((m().argmax(1) == SHUFFLED).float().mean()), "must score above chance .*, got 0.23"),
        (lambda m: float((m().argmax(1) != Y).float().mean()), "must score above chance .* higher is better"),
        (lambda m: float(torch.nn.functional.cross_entropy(m(), Y)), "must score above chance .*, got 0.3.* higher is"),
        (lambda m: -float(torch.nn.functional.cross_entropy(m(), (Y + 1) % 4)), "must score above chance .*, got -3"),
    ],
)
def test_scores_that_say_nothing_are_refused(evaluate, match):
    network = Fixed(LOGITS)
    with pytest.raises(InvalidValueError, match=match):
        check_baseline(evaluate, network, evaluate(network), 0.01)


def _strict(m):
    if not torch.equal(m(), LOGITS):
        raise ValueError("no such outputs")
    return 0.5


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda m: -float(torch.nn.functional.cross_entropy(m(), Y)),
        lambda m: -float((m() - LOGITS).square().mean()),  # 0, the best there is
        lambda m: float((m()[:4].argmax(1) == Y[:4]).float().mean()),
        _strict,
    ],
)
def test_losses_negated_few_examples_and_metrics_that_refuse_are_no_fault(evaluate):
    network = Fixed(LOGITS)
    check_baseline(evaluate, network, evaluate(network), 0.01)

"""The pictures show the numbers they should; how they look is for people."""

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

from bensemble import plots, predict, rejection_curve
from bensemble.errors import InvalidTypeError
from bensemble.likelihoods import Gaussian


def test_reliability_shows_confidence_and_accuracy():
    probs = torch.tensor([[0.9, 0.1]] * 10 + [[0.35, 0.65]] * 10 + [[0.5, 0.5]] * 2)
    targets = torch.tensor([0] * 8 + [1] * 2 + [1] * 5 + [0] * 5 + [0, 0])
    axes = plots.reliability({"net": probs}, targets, bins=10)
    _, line = axes.lines
    assert_close(torch.tensor(line.get_xydata()).float(), torch.tensor([[0.65, 0.5], [0.9, 0.8]]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["net"]


def test_rejection_shows_the_curve(tmp_path):
    prediction = predict([nn.Linear(2, 3), nn.Linear(2, 3)], torch.randn(20, 2), likelihood="categorical")
    curve = rejection_curve(prediction, torch.zeros(20).long())
    axes = plots.rejection({"net": curve})
    assert_close(torch.tensor(axes.lines[0].get_ydata()), curve.risk)
    axes.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_uncertainties_are_shares():
    net = [nn.Linear(2, 3), nn.Linear(2, 3)]
    known, strange = (predict(net, scale * torch.randn(40, 2), likelihood="categorical") for scale in (1, 5))
    for by in ("entropy", "mutual_information"):
        axes = plots.uncertainties({"known": known, "strange": strange}, by=by)
        heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
        assert heights == pytest.approx([1, 1])


def test_set_sizes_count_classes():
    sets = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
    axes = plots.set_sizes({"net": sets}, axes=Figure().subplots())
    assert [bar.get_height() for bar in axes.containers[0]] == [0.25, 0.5, 0.25, 0]


def test_coverage_counts_what_lies_inside():
    members = [nn.Linear(2, 1) for _ in range(5)]
    prediction = predict(members, torch.randn(500, 2), likelihood=Gaussian(1.0))
    targets = torch.normal(prediction.mean, prediction.total_std)
    axes = plots.coverage({"net": prediction}, targets, points=3)
    found = torch.tensor(axes.lines[1].get_xydata())
    assert_close(found[:, 1], found[:, 0], rtol=0, atol=5 * (0.25 / 500) ** 0.5)
    with pytest.raises(InvalidTypeError, match="coverage: 'net' must be the prediction of a regression, got Pred"):
        plots.coverage({"net": predict(members, torch.randn(5, 2))}, torch.zeros(5, 1))

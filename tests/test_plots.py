"""The pictures show the numbers they should; how they look is for people."""

import sys

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.testing import assert_close

from bensemble import fit_novelty, named_posteriors, plots, predict, prune, rejection_curve
from bensemble.errors import BensembleError
from bensemble.likelihoods import Gaussian
from convert import bayesify


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
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        axes.figure.savefig(tmp_path / f"picture.{kind}")
        assert (tmp_path / f"picture.{kind}").read_bytes().startswith(start)


def test_uncertainties_are_shares():
    net = [nn.Linear(2, 3), nn.Linear(2, 3)]
    known, strange = (predict(net, scale * torch.randn(40, 2), likelihood="categorical") for scale in (1, 5))
    for by in ("entropy", "mutual_information"):
        axes = plots.uncertainties({"known": known, "strange": strange}, by=by)
        heights = [sum(bar.get_height() for bar in bars) for bars in axes.containers]
        assert heights == pytest.approx([1, 1])


def test_a_novelty_below_zero_is_shown():
    net, y = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.arange(200) % 3
    known, held_out = ([(torch.randn(200, 8) + y[:, None], y)] for _ in range(2))
    p = predict(net, known[0][0], likelihood="categorical", novelty=fit_novelty(net, known, held_out))
    assert p.novelty.min() < 0
    axes = plots.uncertainties(p, by="novelty")
    assert sum(bar.get_height() for bar in axes.containers[0]) == pytest.approx(1)


def test_snr_shows_quantiles_of_what_is_kept():
    net = bayesify(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    prune(net, sparsity=0.3)
    axes = plots.snr(net)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(dict(named_posteriors(net)))
    posterior = dict(named_posteriors(net))["0.weight"]
    kept = posterior.snr()[posterior.mask.bool()].sort().values.tolist()
    (low, high), (middle,) = axes.lines[0].get_xdata(), axes.lines[1].get_xdata()
    assert kept[0] <= low <= middle <= high <= kept[-1]
    assert middle == pytest.approx(kept[(len(kept) + 1) // 2 - 1])
    with pytest.raises(BensembleError, match="snr: a Linear had no posteriors"):
        plots.snr(nn.Linear(2, 2))


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


CLASSES = predict([nn.Linear(2, 3), nn.Linear(2, 3)], torch.randn(20, 2), likelihood="categorical")
NUMBERS = predict([nn.Linear(2, 1), nn.Linear(2, 1)], torch.randn(20, 2), likelihood=Gaussian(1.0))
RAW = predict([nn.Linear(2, 1), nn.Linear(2, 1)], torch.randn(20, 2))
Y = torch.zeros(20).long()
CURVE, SETS = rejection_curve(CLASSES, Y), torch.rand(20, 3) > 0.5


def _names(axes):
    return axes.get_legend_handles_labels()[1]


@pytest.mark.parametrize(
    ("draw", "one", "named"),
    [
        (lambda given: plots.rejection(given), CURVE, ["a, by entropy", "b, by entropy"]),
        (lambda given: plots.reliability(given, Y), CLASSES.probs, ["a", "b"]),
        (lambda given: plots.reliability(given, Y.tolist()), CLASSES, ["a", "b"]),
        (lambda given: plots.reliability(given, Y.numpy()), CLASSES.probs.numpy(), ["a", "b"]),
        (lambda given: plots.uncertainties(given), CLASSES, ["a", "b"]),
        (lambda given: plots.uncertainties(given), NUMBERS, ["a", "b"]),
        (lambda given: plots.uncertainties(given), RAW, ["a", "b"]),
        (lambda given: plots.set_sizes(given), SETS, ["a", "b"]),
        (lambda given: plots.set_sizes(given), SETS.numpy(), ["a", "b"]),
        (lambda given: plots.coverage(given, torch.zeros(20, 1)), NUMBERS, ["a", "b"]),
    ],
)
def test_one_a_list_and_a_mapping_are_drawn(tmp_path, draw, one, named):
    assert _names(draw({"a": one, "b": one})) == named
    assert _names(draw([one, one])) == [number + name[1:] for number, name in zip("12", named, strict=True)]
    axes = draw(one)
    assert _names(axes) == [name.removeprefix("a, ") for name in named[:1] if ", " in name]
    axes.figure.savefig(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("draw", "match"),
    [
        (lambda: plots.coverage({"net": RAW}, torch.zeros(20, 1)), "predictions must come from predict.*under 'net'"),
        (lambda: plots.coverage(NUMBERS, torch.zeros(20)), r"target must have the shape \(20, 1\)"),
        (lambda: plots.coverage(NUMBERS, "y"), "coverage: targets must be tensors, got str"),
        (lambda: plots.coverage(NUMBERS, torch.zeros(20, 1), points=0), "points must be at least 1, got 0"),
        (lambda: plots.rejection(CLASSES), "curves must come from rejection_curve.*got ClassPrediction"),
        (lambda: plots.rejection({}), "rejection: curves must hold at least one, got none"),
        (lambda: plots.rejection([CURVE, None]), "got NoneType under '2'"),
        (lambda: plots.rejection(CURVE, axes=Figure().subplots(1, 2)), "axes must be axes of matplotlib, got ndarray"),
        (lambda: plots.rejection(CURVE, axes=Figure()), "axes must be axes of matplotlib, got Figure"),
        (lambda: plots.reliability({"a": CLASSES.probs}, Y[:5]), r"class numbers of the 20 examples, got .* \(5,\)"),
        (lambda: plots.reliability(CLASSES.probs, Y.float()), "class numbers of the 20 examples, got .* float32"),
        (lambda: plots.reliability(9 * CLASSES.probs - 3, Y), "must be probabilities of the shape .* outside 0..1"),
        (lambda: plots.reliability(NUMBERS, Y), "probs must be tensors, got RegressionPrediction"),
        (lambda: plots.reliability(CLASSES, Y, colours="red"), "colours must map names to colours, got 'red'"),
        (lambda: plots.reliability(CLASSES, Y, bins=0), "bins must be at least 1, got 0"),
        (lambda: plots.uncertainties(CLASSES.entropy), "predictions must come from predict.*, got a tensor of shape"),
        (lambda: plots.uncertainties(CLASSES, by="surprise"), "got 'surprise' for a ClassPrediction"),
        (lambda: plots.uncertainties(RAW, by="entropy"), "got 'entropy' for a Prediction; call predict with a like"),
        (lambda: plots.set_sizes(CLASSES), "sets must be tensors, got ClassPrediction"),
        (lambda: plots.set_sizes(CLASSES.probs), "sets must say of each class whether it is in the set, got a tensor"),
        (lambda: plots.set_sizes([["cat"], ["cat", "dog"]]), "sets must be tensors, got a list of 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, match):
    with pytest.raises(BensembleError, match=match) as caught:
        draw()
    assert "\n" not in str(caught.value)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=r"plots: needs matplotlib, which is not installed; .*'\.\[plots\]'"):
        plots.rejection(CURVE)

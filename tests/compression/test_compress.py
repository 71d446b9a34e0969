"""One search on a real, small classifier with files that ONNX Runtime runs; its decisions on recorded measurements."""

from __future__ import annotations

import math
import tempfile
from collections import namedtuple
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bensemble.errors import ConversionError, ExportError, InvalidTypeError, InvalidValueError
from convert import OnnxModel, UnmetConstraintsError, bayesify, compare_onnx, compress
from convert.compression import Point
from convert.compression import files as compression_files
from convert.compression.candidates import SHARES, Candidate
from convert.compression.chance import check_baseline
from convert.compression.files import CandidateFiles
from convert.compression.results import Constraints

from .digits import accuracy, data, posterior
from .recording import DROPS, recorded, replay

pytestmark = pytest.mark.xdist_group("one search")  # its fixtures are made once


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("compress") / "small.onnx"
    images, labels = data().search
    return compress(
        posterior(),
        accuracy(images, labels),
        images[:16],
        path,
        max_drop=0.01,
        calibration_data=data().train[0][:256],
        refine=1,
    )


@pytest.mark.slow
def test_the_bound_holds_on_the_search_and_nearly_on_data_it_did_not_see(found):
    chosen, evaluate = found.chosen, accuracy(*data().held_out)
    assert chosen.drop <= 0.01
    assert found.path.stat().st_size == chosen.size
    assert accuracy(*data().search)(OnnxModel(found.path)) == chosen.metric
    drop = evaluate(posterior()) - evaluate(OnnxModel(found.path))
    # Both are shares of 450 images: five standard errors of the difference of two of them.
    assert drop <= 0.01 + 5 * math.sqrt(2 * 0.05 * 0.95 / 450)


@pytest.mark.slow
def test_the_chosen_file_is_the_smallest_that_meets_the_bound(found):
    assert found.chosen.size == min(point.size for point in found.points if point.drop <= 0.01)
    assert found.chosen.size < 0.35 * found.baseline.size
    assert found.chosen.parameters < found.baseline.parameters


@pytest.mark.slow
def test_every_way_was_tried_and_measured(found):
    assert {point.granularity for point in found.points} == {None, "weight", "channel"}
    assert {point.score for point in found.points} == {None, "snr", "magnitude"}
    assert {point.quantize for point in found.points} == {None, "int8"}
    assert all(point.latency_ms > 0 for point in found.points)
    assert found.points[0] == found.baseline
    assert found.baseline.drop == 0
    assert found.baseline.latency_ratio == 1


@pytest.mark.slow
def test_no_point_of_the_front_is_beaten_and_every_other_one_is(found):
    for point in found.points:
        beaten = any(other.beats(point) for other in found.points)
        assert (point in found.front) == (not beaten)


@pytest.mark.slow
def test_it_prints_the_front_and_draws_all(found):
    import matplotlib

    matplotlib.use("agg")
    text = str(found)
    assert text.startswith(f"{found.path}: {found.chosen.name}, max_drop=0.01; {len(found.points)} files measured")
    assert sum(line.startswith("*") for line in text.splitlines()) == 1
    assert [row["size"] for row in found.rows()] == [point.size for point in found.points]
    axes = found.plot()
    assert sum(len(part.get_offsets()) for part in axes.collections) == len(found.points) + 1


# -- what the search decides, on recorded measurements


def _replayed(monkeypatch, tmp_path, **constraints):
    """The search among recorded files, and what it asked for in order."""
    asked = replay(monkeypatch)
    model, x = _mlp()
    constraints |= {"scores": "snr", "calibration_data": x}
    found = compress(model, lambda network: 1.0, x, tmp_path / "small.onnx", **constraints)
    assert (tmp_path / "small.onnx").stat().st_size == found.chosen.size
    return found, asked


def test_without_a_bound_on_the_drop_the_best_metric_that_fits_is_chosen(monkeypatch, tmp_path):
    size = recorded()["points"][Candidate()].size
    found, _ = _replayed(monkeypatch, tmp_path, max_size=size // 2)
    fitting = [point for point in found.points if point.size <= size // 2]
    assert found.chosen.metric == max(point.metric for point in fitting)
    assert (tmp_path / "small.onnx").stat().st_size <= size // 2


@pytest.mark.parametrize("drop", [drop for drop in DROPS if drop is not None])
def test_the_search_halves_the_gap_between_the_last_good_and_the_first_bad_threshold(monkeypatch, tmp_path, drop):
    found, asked = _replayed(monkeypatch, tmp_path, max_drop=drop)
    assert found.chosen.size == min(point.size for point in found.points if point.drop <= drop)
    assert asked[:2] == [Candidate(), Candidate(quantize="int8")]
    points = recorded()["points"]
    for granularity, thresholds in recorded()["thresholds"].items():
        shares = SHARES[granularity]
        climbed = [c for c in asked if c.granularity == granularity and c.quantize is None]
        first = [c for c in climbed if c.threshold in [thresholds[share] for share in shares]]
        good = [points[c].drop <= drop for c in first]
        assert [c.threshold for c in first] == [thresholds[share] for share in shares[: len(first)]]
        assert (False, False) not in list(pairwise(good))[:-1]  # it stops at two bad ones in a row
        last = max((k for k, holds in enumerate(good) if holds), default=-1)
        low, high = shares[last] if last >= 0 else 0.0, shares[last + 1]
        refined = []
        for _ in range(3):
            middle = (low + high) / 2
            refined.append(Candidate(thresholds[middle], granularity))
            low, high = (middle, high) if points[refined[-1]].drop <= drop else (low, middle)
        assert climbed == list(dict.fromkeys([*first, *refined]))


@pytest.mark.parametrize("drop", DROPS)
def test_eight_bits_are_tried_where_the_float_file_is_good_and_unbeaten(monkeypatch, tmp_path, drop):
    found, asked = _replayed(monkeypatch, tmp_path, **({"max_size": 10**9} if drop is None else {"max_drop": drop}))
    untimed = [replace(point, latency_ms=math.nan) for point in found.points]
    floats = [point for point in untimed if point.quantize is None]
    wanted = {
        (point.threshold, point.granularity)
        for point in floats
        if (drop is None or point.drop <= drop) and not any(other.beats(point) for other in floats)
    }
    rounded = {(c.threshold, c.granularity) for c in asked if c.quantize == "int8"}
    assert rounded == wanted | {(None, None)}  # the mean network comes first, whatever it is like


# -- repair, on networks in memory


class _Files:
    """Stands in for the exporter and ONNX Runtime: each path keeps the network itself."""

    def __init__(self):
        self.networks = {}

    def export(self, model, path, example_inputs, **options):
        self.networks[path] = model
        path.write_bytes(b"file")
        weights = sum(parameter.numel() for parameter in model.parameters())
        return SimpleNamespace(parameters=weights, size=4 * weights, gzip_size=4 * weights)

    def compare(self, paths, example_inputs, *, batch_sizes, rounds):
        latency = {batch_sizes[0]: SimpleNamespace(ms=1.0, ratio=1.0)}
        return {name: SimpleNamespace(latency=latency) for name in paths}


@pytest.fixture
def in_memory(monkeypatch):
    files = _Files()
    monkeypatch.setattr(compression_files, "export_onnx", files.export)
    monkeypatch.setattr(compression_files, "OnnxModel", lambda path, like: files.networks[path])
    monkeypatch.setattr(compression_files, "compare_onnx", files.compare)


def _mlp(width=32):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4))
    model = bayesify(network, init_sigma=lambda name, weight: weight.abs() + 0.01)
    return model.eval(), torch.randn(64, 16)


@pytest.mark.usefixtures("in_memory")
def test_repair_trains_the_pruned_network_and_its_zeros_stay(tmp_path):
    model, x = _mlp()
    wanted, seen = model(x).detach(), []
    close = closeness(model, x)

    def repair(network):
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(30):
            loss = (network(x) - wanted).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seen.append(float((network[0].weight == 0).float().mean()))

    plain = compress(model, close, x, tmp_path / "a.onnx", max_size=10**6, granularities=["channel"], scores="snr")
    repaired = compress(
        model, close, x, tmp_path / "b.onnx", max_size=10**6, granularities=["channel"], repair=repair, scores="snr"
    )
    unrepaired = {point.threshold: point for point in plain.points}
    pruned = [point for point in repaired.points if point.threshold is not None]
    assert pruned
    assert seen == sorted(seen)
    for point in pruned:
        assert point.metric > unrepaired[point.threshold].metric
        assert point.sparsity == pytest.approx(unrepaired[point.threshold].sparsity, abs=1e-3)


@pytest.mark.usefixtures("in_memory")
def test_repair_by_a_loader_needs_no_labels(tmp_path):
    model, x = _mlp()
    wanted = model(x).detach()

    def closeness(network):
        return -float((network(x) - wanted).square().mean())

    options = {"max_size": 10**6, "granularities": ["weight"], "scores": "snr"}
    plain = compress(model, closeness, x, tmp_path / "a.onnx", **options)
    repaired = compress(model, closeness, x, tmp_path / "b.onnx", repair=list(x.split(16)), **options)
    unrepaired = {point.threshold: point.metric for point in plain.points}
    pruned = [point for point in repaired.points if point.threshold in unrepaired and point.threshold is not None]
    assert len(pruned) > 2
    assert all(point.metric >= unrepaired[point.threshold] for point in pruned)
    assert any(point.metric > 0.9 * unrepaired[point.threshold] for point in pruned)


@pytest.mark.usefixtures("in_memory")
def test_repair_runs_once_for_the_float_and_the_int8_file(tmp_path):
    model, x = _mlp()
    calls = []

    def repair(network):  # another network each time, which only the file of the same call can show
        calls.append(network)
        network[2].bias.data.fill_(100.0 * len(calls))

    found = compress(
        model,
        lambda network: float(network(x).mean()),
        x,
        tmp_path / "a.onnx",
        max_size=10**6,
        granularities=["channel"],
        scores="snr",
        repair=repair,
        calibration_data=x,
    )
    pruned = [point for point in found.points if point.threshold is not None]
    floats = {point.threshold: point for point in pruned if point.quantize is None}
    assert len(calls) == len(floats)
    assert len(pruned) > len(floats)
    for point in pruned:
        assert point.metric == pytest.approx(floats[point.threshold].metric, abs=5.0)


# -- what is confirmed


def _searched(tmp_path, confirm, **options):
    model, x = _mlp()
    options = {"max_drop": 3.0, "granularities": ["channel"], "scores": "snr"} | options
    return compress(model, closeness(model, x), x, tmp_path / "small.onnx", confirm=confirm, **options)


@pytest.mark.usefixtures("in_memory")
def test_a_file_is_confirmed_on_paired_examples_that_the_search_did_not_see(tmp_path):
    model, _ = _mlp()
    fresh = torch.randn(200, 16)
    wanted, seen = model(fresh).detach(), []

    def confirm(network):
        seen.append(-(network(fresh) - wanted).square().mean(1))
        return seen[-1]

    found = _searched(tmp_path, confirm)
    assert found.chosen.threshold is not None
    lost = (seen[0] - seen[-1]).double()
    assert found.confirmed.drop == pytest.approx(float(lost.mean()))
    assert found.confirmed.standard_error == pytest.approx(float(lost.std() / 200**0.5))
    assert found.confirmed.num_examples == 200
    assert f"drop {found.confirmed.drop:.4g} ± {found.confirmed.standard_error:.2g}" in str(found)
    assert found.confirmed.is_sure == (found.confirmed.drop + 2 * found.confirmed.standard_error <= 3)


@pytest.mark.usefixtures("in_memory")
def test_a_loader_with_classes_confirms_the_share_that_is_right(tmp_path):
    model, _ = _mlp()
    fresh = torch.randn(90, 16)
    classes = model(fresh).argmax(1)
    found = _searched(tmp_path, list(zip(fresh.split(40), classes.split(40), strict=True)))
    assert (found.confirmed.num_examples, found.confirmed.max_drop) == (90, 3.0)
    assert found.confirmed.drop * 90 == pytest.approx(round(found.confirmed.drop * 90), abs=1e-6)


@pytest.mark.usefixtures("in_memory")
def test_what_is_not_confirmed_is_not_shipped(tmp_path):
    plain = _searched(tmp_path, None)
    assert plain.confirmed is None
    widths = []

    def confirm(network):  # networks without a fifth of their neurons are bad on other data
        widths.append(network[0].out_features)
        return [9.0, 9.0] if widths[-1] > 26 else [5.0, 6.0]

    found = _searched(tmp_path, confirm)
    assert widths[0] == 32
    assert widths[1] <= 26 < widths[-1] < 32
    assert found.chosen.size > plain.chosen.size
    assert len(found.confirmed.refused) == len(widths) - 2  # without the reference and the file that passed
    assert found.confirmed.refused[0] == f"{plain.chosen.name}, drop 3.5"
    assert "not confirmed" in str(found)


@pytest.mark.usefixtures("in_memory")
def test_a_bound_within_the_noise_is_said(tmp_path):
    noisy = iter(torch.tensor([[0.0, 0.0, 0.0, 0.0], [-9.0, 9.0, -9.0, 8.8]]))
    found = _searched(tmp_path, lambda network: next(noisy))
    assert not found.confirmed.is_sure
    assert "the bound of 3 is within the noise" in str(found)
    numbers = iter([0.9, 0.8])
    assert "±" not in str(_searched(tmp_path, lambda network: next(numbers)).confirmed)


@pytest.mark.usefixtures("in_memory")
def test_nothing_is_written_where_nothing_is_confirmed(tmp_path):
    best = iter([9.0])
    size = _searched(tmp_path, None).baseline.size
    (tmp_path / "small.onnx").unlink()
    with pytest.raises(UnmetConstraintsError, match=r"on the data of confirm SNR > .*, drop 8\.9"):
        _searched(tmp_path, lambda network: next(best, 0.1), max_size=size - 1)
    assert not (tmp_path / "small.onnx").exists()


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize(
    ("confirm", "error", "match"),
    [
        (5, InvalidTypeError, "confirm must be a loader with labels .*, or callable.model., got int"),
        (torch.zeros(4, 16), InvalidTypeError, "confirm must be a loader with labels .*, got Tensor"),
        (lambda: 1.0, InvalidTypeError, r"confirm must be callable as \(model\)"),
        (lambda model: [], InvalidValueError, "confirm must give finite scores"),
        (lambda model: math.nan, InvalidValueError, "confirm must give finite scores"),
        (lambda model: 1 / 0, ConversionError, "confirm failed on 'posterior mean', got ZeroDivisionError"),
        ([(torch.zeros(4, 16), torch.zeros(4))], InvalidTypeError, "confirm as a loader needs the class of every"),
        ([torch.zeros(4, 16)], InvalidTypeError, "confirm as a loader needs the class of every example"),
    ],
)
def test_confirm_that_cannot_work_is_refused(tmp_path, confirm, error, match):
    with pytest.raises(error, match=match):
        _searched(tmp_path, confirm)
    assert not (tmp_path / "small.onnx").exists()


# -- what is refused


def _refused(tmp_path, error, match, **changes):
    model, x = _mlp(8)
    path = tmp_path / "small.onnx"
    path.write_bytes(b"old")
    arguments = {"evaluate": closeness(model, x), "example_inputs": x, "path": path, "max_drop": 0.1, **changes}
    with pytest.raises(error, match=match):
        compress(model, **arguments)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.onnx"]
    assert not list(Path(tempfile.gettempdir()).glob("bensemble-*"))


def closeness(model, x):
    """A score that only the network itself has, 0, and nothing else comes near."""
    wanted = model.eval()(x).detach()
    return lambda network: -100 * float((network(x) - wanted).square().mean())


def _fails_on_the_second():
    calls = []

    def evaluate(network):
        calls.append(network)
        if len(calls) == 6:  # after the network itself and four whose outputs mean nothing
            raise KeyError("labels")
        return -float(len(calls))

    return evaluate


def _interrupted(network):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (InvalidValueError, "one of max_drop, max_latency_ms and max_size must be given", {"max_drop": None}),
        (InvalidValueError, "max_drop must be finite and at least 0, got -1", {"max_drop": -1}),
        (InvalidValueError, "max_size must be finite and above 0, got 0", {"max_size": 0}),
        (InvalidTypeError, r"evaluate must be callable as \(model\), got 0.9", {"evaluate": 0.9}),
        (InvalidTypeError, r"repair must be callable as \(network\), got .update_bn", {"repair": "update_bn"}),
        (InvalidValueError, "granularities must be 'weight' or 'channel', got 'head'", {"granularities": ["head"]}),
        (
            InvalidValueError,
            "evaluate must return a number, got NaN for 'posterior mean'",
            {"evaluate": lambda m: math.nan},
        ),
        (InvalidTypeError, "evaluate must return a number, got 'good'", {"evaluate": lambda m: "good"}),
        (
            ConversionError,
            "evaluate failed on 'SNR > .*', got KeyError: 'labels'",
            {"evaluate": _fails_on_the_second()},
        ),
        (KeyboardInterrupt, "^$", {"evaluate": _interrupted}),
        (
            InvalidValueError,
            r"calibration_data must be like example_inputs, .* \(64, 16\) .* got a tensor of shape \(8, 5\)",
            {"calibration_data": torch.randn(8, 5)},
        ),
    ],
    ids=lambda value: None if isinstance(value, (dict, type)) else value[:40],
)
def test_refusals_leave_everything_as_it_was(tmp_path_factory, tmp_path, monkeypatch, error, match, changes):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    _refused(tmp_path, error, match, **changes)


# -- a score that means nothing


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
        (lambda y: y + 1, "must score above chance before it is pruned, got 0, but the same output for every"),
        (lambda y: 9 - y, "must score above chance"),
    ],
)
def test_labels_that_do_not_belong_to_the_outputs_are_refused_before_the_search(labels, match):
    with pytest.raises(InvalidValueError, match=match):
        _scores(labels(data().search[1]))


@pytest.mark.slow
def test_labels_of_other_examples_are_warned_of():
    shuffled = data().search[1].roll(1)
    with pytest.warns(UserWarning, match="the search may end at a network that says one thing"):
        _scores(shuffled, max_drop=0.1)


class Fixed(nn.Module):
    """Gives its outputs, whatever the input."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self):
        return self.outputs


Y = torch.arange(200) % 4
LOGITS = torch.nn.functional.one_hot(Y).float() * 3 + torch.randn(200, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("evaluate", "match"),
    [
        (lambda m: 0.7, "evaluate must tell the network from outputs that mean nothing, got 0.7 for all"),
        (lambda m: float((m().argmax(1) == (Y + 1) % 4).float().mean()), "must score above chance .*, got 0.0"),
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


class Answers(nn.Module):
    """Several outputs in a structure."""

    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(8, 3), form

    def forward(self, x):
        return self.form(self.linear(x))


Pair = namedtuple("Pair", "logits energy")


@dataclass
class Fields:
    logits: torch.Tensor
    energy: torch.Tensor | None = None


@pytest.mark.parametrize(
    ("form", "logits"),
    [
        (lambda y: {"logits": y}, lambda out: out["logits"]),
        (lambda y: {"deep": {"logits": y}, "more": [y.sum(1)]}, lambda out: out["deep"]["logits"]),
        (lambda y: (y, y.sum(1)), lambda out: out[0]),
        (lambda y: [y], lambda out: out[0]),
        (lambda y: Pair(y, y.sum(1)), lambda out: out.logits),
        (lambda y: Fields(y), lambda out: out.logits),
    ],
)
def test_evaluate_gets_the_models_own_type_of_output(tmp_path, form, logits):
    torch.manual_seed(0)
    model, x = bayesify(Answers(form)), torch.randn(200, 8)
    labels = logits(model.eval()(x)).argmax(1)

    def evaluate(network):
        return float((logits(network(x)).argmax(1) == labels).float().mean())

    options = {"granularities": ["weight"], "scores": "snr", "refine": 0}
    found = compress(model, evaluate, x[:4], tmp_path / "z.onnx", max_drop=0.01, **options)
    assert found.baseline.metric > 0.99
    assert evaluate(OnnxModel(found.path, like=model(x))) == found.chosen.metric
    compared = compare_onnx({"a": found.path}, x, model=model, evaluate=evaluate, rounds=0)
    assert compared["a"].metric == found.chosen.metric
    with pytest.raises(InvalidValueError, match="like must have a tensor for each output of"):
        OnnxModel(found.path, like=[x, x, x])


@pytest.mark.usefixtures("in_memory")
def test_constraints_that_no_file_meets_leave_everything_as_it_was(tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    match = "no file meets max_drop=0.1, max_size=10, .* the least for max_size is"
    _refused(tmp_path, UnmetConstraintsError, match, max_size=10)


class Sum(nn.Module):
    """A weight that no matrix product reads."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x + self.weight


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Linear(4, 3).double(), torch.randn(8, 4).double(), "quantize='int8' needs float32 weights, got double"),
        (Sum(), torch.randn(8, 4, 4), "quantize='int8' must find weights of convolutions or .*, got 1 Add"),
    ],
)
def test_a_graph_that_cannot_be_quantised_is_refused_before_the_search(tmp_path, model, x, message):
    points = []
    bnn = bayesify(model, include="weight")
    with pytest.raises(ExportError, match=message):
        compress(
            bnn, closeness(bnn, x), x, tmp_path / "x.onnx", max_drop=0.1, calibration_data=x, progress=points.append
        )
    assert [point.name for point in points] == ["posterior mean"]
    assert not list(tmp_path.iterdir())


def test_a_deterministic_model_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="to_deterministic: Linear has no Bayesian layers"):
        compress(nn.Linear(3, 2), lambda m: 1.0, torch.randn(4, 3), tmp_path / "x.onnx", max_drop=0.1)


def _point(metric, size, latency):
    return Point("p", 1.0, "weight", None, metric, 1 - metric, 0.5, 10, size, size, latency, 1.0)


def test_a_point_beats_another_where_it_is_nowhere_worse_and_somewhere_better():
    assert _point(0.9, 10, 1.0).beats(_point(0.9, 11, 1.0))
    assert not _point(0.9, 10, 1.0).beats(_point(0.9, 10, 1.0))
    assert not _point(0.9, 10, 1.0).beats(_point(0.91, 11, 2.0))


def test_constraints_say_what_a_point_misses():
    constraints = Constraints(max_drop=0.05, max_latency_ms=2.0, max_size=10)
    assert constraints.misses(_point(0.9, 10, 3.0)) == ["max_drop", "max_latency_ms"]
    assert constraints.misses(_point(0.96, 10, 2.0)) == []
    assert "the least for max_size is 10, by 'p', which misses max_drop" in constraints.nearest([_point(0.9, 10, 1.0)])


def test_what_was_measured_is_kept_when_nothing_meets_the_constraints():
    points = [_point(0.9, 10, 1.0), _point(0.8, 8, 1.0)]
    error = UnmetConstraintsError(Constraints(max_size=5), points)
    assert error.points == tuple(points)
    assert isinstance(error, ConversionError)
    assert "no file meets max_size=5, got 2 files: the least for max_size is 8" in str(error)


def test_a_drop_that_equals_the_bound_meets_it(tmp_path):
    model, x = _mlp(8)
    scores = iter([0.9, 0.89])  # 0.9 - 0.89 > 0.01 in floating point
    files = CandidateFiles(model, lambda network: next(scores), x, tmp_path, {"weight": "weight"})
    files.measure(Candidate())
    point = files.measure(Candidate(0.5, "weight"))
    assert Constraints(max_drop=0.01).misses(point) == []

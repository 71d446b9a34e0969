"""The torch-free runtime: what it answers, what it refuses, and that its false-alarm rate is kept."""

import dataclasses
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx_models import TwoInputs, mlp
from torch import nn

import bensemble
from bensemble.likelihoods import Categorical, Gaussian
from convert import bayesify
from convert.onnx import export_onnx
from convert.runtime import EDGES, Answer, Monitor, UncertaintyFileError, UncertaintySession

pytestmark = pytest.mark.xdist_group("uncertainty file")  # its fixtures are made once

CLASSES = ("cat", "dog", "eel")


def model(scale: float = 20.0) -> nn.Module:
    torch.manual_seed(0)
    network = mlp()
    with torch.no_grad():
        network[3].weight.mul_(scale)
    bnn = bayesify(network, init_sigma=0.1)
    with torch.no_grad():
        bnn[0].w_rho.add_(0.1 * torch.rand_like(bnn[0].w_rho))
    return bnn.eval()


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A classifier whose file carries a calibration on 500 examples."""
    bnn, x = model(), torch.randn(500, 4)
    held_out = bensemble.predict(bnn, x, 6, likelihood="categorical", generator=torch.Generator().manual_seed(1))
    targets = torch.distributions.Categorical(probs=held_out.probs).sample()
    calibration = bensemble.calibrate(held_out, targets)
    path = tmp_path_factory.mktemp("runtime") / "sure.onnx"
    options = {"likelihood": "categorical", "calibration": calibration, "metadata": {"classes": "cat, dog,eel"}}
    options["generator"] = torch.Generator().manual_seed(1)
    export_onnx(bnn, path, x[:1], outputs="uncertainty", num_samples=6, **options)
    return bnn, path, calibration


def test_an_answer_has_the_files_outputs_as_fields(calibrated):
    bnn, path, calibration = calibrated
    session, x = UncertaintySession(path, threads=1), torch.randn(7, 4)
    answer = session(x.numpy())
    expected = bensemble.predict(bnn, x, 6, likelihood="categorical", generator=torch.Generator().manual_seed(1))
    expected = calibration.apply(expected)
    assert tuple(answer) == session.outputs == ("probs", "entropy", "mutual_information", "prediction_set")
    for name in ("probs", "entropy", "mutual_information"):
        np.testing.assert_allclose(getattr(answer, name), getattr(expected, name), atol=1e-6)
    assert np.array_equal(session(input=x.numpy()).probs, answer.probs)
    assert list(answer.labels()) == [CLASSES[k] for k in expected.probs.argmax(1)]
    sets = calibration.prediction_set(expected)
    assert answer.sets() == [[CLASSES[k] for k in range(3) if row[k]] for row in sets]


def test_a_session_says_what_the_file_is(calibrated):
    _, path, calibration = calibrated
    session = UncertaintySession(path)
    assert session.inputs == {"input": ("float32", ("batch", 4))}
    assert session.classes == CLASSES
    assert session.num_data == 500
    assert session.reference == calibration.reference
    assert session.metadata["bensemble.num_samples"] == "6"
    for shown in (str(path), "input: float32['batch', 4]", "mutual_information", "Categorical("):
        assert shown in repr(session)


def test_answers_are_frozen_print_well_and_travel_between_processes(calibrated):
    answer = UncertaintySession(calibrated[1])(np.zeros((3, 4), "float32"))
    with pytest.raises(AttributeError, match="answer is frozen, 'probs' cannot be set"):
        answer.probs = 1
    with pytest.raises(AttributeError, match="answer has no 'mean'; it has 'probs', 'entropy'"):
        answer.mean  # noqa: B018
    for shown in ("Answer: 3 examples", "probs", "(3, 3)", "mutual_information"):
        assert shown in repr(answer)
    again = pickle.loads(pickle.dumps(answer))
    assert np.array_equal(again.probs, answer.probs)
    assert again.sets() == answer.sets()


def test_batches_give_the_same_answer(calibrated):
    session, x = UncertaintySession(calibrated[1]), np.random.default_rng(0).normal(size=(10, 4)).astype("float32")
    whole, pieces = session(x), session.in_batches(4, x)
    for name in session.outputs:
        np.testing.assert_allclose(whole[name], pieces[name], atol=1e-6)
    with pytest.raises(ValueError, match="in_batches: size must be a whole number of at least 1, got 0"):
        session.in_batches(0, x)


def test_files_without_classes_answer_with_numbers_and_without_a_threshold_with_no_sets(tmp_path):
    export_onnx(
        model(), tmp_path / "m.onnx", torch.randn(1, 4), outputs="uncertainty", num_samples=2, likelihood="categorical"
    )
    session = UncertaintySession(tmp_path / "m.onnx")
    answer = session(np.zeros((2, 4), "float32"))
    assert answer.labels().dtype == np.int64
    with pytest.raises(ValueError, match="sets: the file holds no conformal threshold; export it with calib"):
        answer.sets()
    with pytest.raises(ValueError, match=r"Monitor: '.*m.onnx' must hold a reference distribution, got none; export"):
        Monitor(session)


def test_classes_of_every_pixel(tmp_path):
    torch.manual_seed(0)
    bnn = bayesify(nn.Conv2d(1, 3, 1), init_sigma=0.3).eval()
    options = {"outputs": "uncertainty", "num_samples": 3, "likelihood": Categorical(dim=1)}
    export_onnx(bnn, tmp_path / "m.onnx", torch.randn(1, 1, 2, 5), metadata={"classes": '["a", "b", "c"]'}, **options)
    answer = UncertaintySession(tmp_path / "m.onnx")(np.ones((4, 1, 2, 5), "float32"))
    assert answer.labels().shape == answer.entropy.shape == (4, 2, 5)
    assert set(answer.labels().flat) <= {"a", "b", "c"}


class Bounded(nn.Module):
    """Answers anything with numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.linear(torch.where(x > 0, x, 0.0).clamp(-1, 1)) + mask


@pytest.mark.parametrize("classes", ["a,b,c", ""])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_example_that_is_not_finite_has_no_label_and_the_others_keep_theirs(tmp_path, classes, value):
    bnn, inputs = bayesify(Bounded()), (torch.randn(2, 4), torch.zeros(2, 3))
    options = {"outputs": "uncertainty", "num_samples": 2, "likelihood": "categorical"}
    export_onnx(bnn, tmp_path / "m.onnx", inputs, **options, metadata={"classes": classes} if classes else None)
    session = UncertaintySession(tmp_path / "m.onnx")
    x, mask = np.random.default_rng(0).random((5, 4), dtype="float32"), np.zeros((5, 3), "float32")
    mask[:, 1] = -np.inf  # as an additive mask has it
    good = session(x, mask)
    assert good.labels().dtype == np.asarray(["a"] if classes else [0]).dtype
    x[3, 2] = value
    for answer in (session(x, mask), session.in_batches(2, x, mask)):
        assert answer.labels()[3] is None
        assert [*np.delete(answer.labels(), 3)] == [*np.delete(good.labels(), 3)]
        assert all(np.isnan(answer[name][3]).all() for name in session.outputs)


def test_regressions_have_no_labels(tmp_path):
    export_onnx(model(), tmp_path / "m.onnx", torch.randn(1, 4), outputs="uncertainty", num_samples=2)
    answer = UncertaintySession(tmp_path / "m.onnx")(np.zeros((2, 4), "float32"))
    assert tuple(answer) == ("mean", "std")
    with pytest.raises(ValueError, match="labels: an answer with mean, std chooses no class; only classifiers do"):
        answer.labels()


def test_a_monitor_takes_a_path_and_mappings(calibrated):
    _, path, _ = calibrated
    answer = UncertaintySession(path, providers="CPUExecutionProvider")(np.random.randn(7, 4).astype("float32"))
    monitors = [Monitor(path) for _ in range(4)]
    forms = (answer, [answer], dict(answer), {name: torch.as_tensor(array) for name, array in answer.items()})
    for monitor, form in zip(monitors, forms, strict=True):
        monitor.update(form)
    assert {monitor.to_json() for monitor in monitors} == {monitors[0].to_json()}
    with pytest.raises(TypeError, match="UncertaintySession: path must be a string or a Path, got NoneType"):
        UncertaintySession(None)


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


REFUSED = {
    "missing": ((zeros(2, 4),), {}, TypeError, "input 'table' is missing; the file takes image, table"),
    "unknown": ((), {"image": 1, "tables": 1, "table": 1}, TypeError, "input 'tables' is unknown; the file takes"),
    "twice": ((zeros(2, 4),), {"image": 1, "table": 1}, TypeError, "input 'image' is given twice; the file takes"),
    "too many": ((1, 2, 3), {}, TypeError, r"takes 2 inputs \(image, table\), got 3"),
    "dtype": ((zeros(2, 4, dtype="float64"), 1), {}, TypeError, "'image' must be a numpy array of float32, got an arr"),
    "no array": (([[1.0] * 4], 1), {}, TypeError, r"'image' must be a numpy array of float32, got list; use numpy.as"),
    "rank": ((zeros(4), zeros(2, 2)), {}, ValueError, r"'image' must have the shape \(batch, 4\) .*, got \(4,\)"),
    "shape": ((zeros(2, 5), zeros(2, 2)), {}, ValueError, r"'image' must have the shape \(batch, 4\) .*, got \(2, 5\)"),
    "empty": ((zeros(0, 4), zeros(0, 2)), {}, ValueError, r"at least one entry, got \(0, 4\)"),
    "batches": ((zeros(2, 4), zeros(3, 2)), {}, ValueError, "'table' and 'image' must agree in batch, got 3 and 2"),
}


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "two.onnx"
    export_onnx(
        bayesify(TwoInputs()), path, (torch.randn(1, 4), torch.randn(1, 2)), outputs="uncertainty", num_samples=2
    )
    return UncertaintySession(path)


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_inputs_are_refused(case, two_inputs):
    arrays, named, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        two_inputs(*arrays, **named)


def test_files_that_cannot_be_read_are_refused(calibrated, tmp_path):
    data = calibrated[1].read_bytes()
    with pytest.raises(FileNotFoundError, match=r"UncertaintySession: there is no file '.*none.onnx'; check the path"):
        UncertaintySession(tmp_path / "none.onnx")
    for name, content in (("cut", data[: len(data) // 2]), ("text", b"probs: 0.3"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UncertaintyFileError, match=f"'.*{name}' cannot be loaded as ONNX, it is damaged or someth"):
            UncertaintySession(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is ONNX without bensemble's metadata; write it with"),
        ({"bensemble.schema": "99"}, "must be of schema 1 or older, got '99'; update"),
        ({"bensemble.outputs": "mean"}, "must hold uncertainty, got a file of outputs='mean'; write it with"),
    ],
)
def test_files_with_other_metadata_are_refused(change, message, calibrated, tmp_path):
    proto = onnx.load(calibrated[1])
    stored = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {} if change is None else {**stored, **change})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UncertaintyFileError, match=message):
        UncertaintySession(tmp_path / "m.onnx")


def answers(values) -> Answer:
    return Answer({"entropy": np.asarray(values), "mutual_information": np.asarray(values) ** 2})


def reference(values: np.ndarray) -> SimpleNamespace:
    """What a monitor reads of a session: the quantiles of calibration data."""
    quantiles = {name: tuple(np.quantile(values**power, np.linspace(0, 1, 101))) for name, power in POWERS.items()}
    counts = dict.fromkeys(quantiles, len(values))
    return SimpleNamespace(path="sure.onnx", reference=quantiles, outputs=tuple(quantiles), counts=counts)


POWERS = {"entropy": 1, "mutual_information": 2}


@pytest.mark.slow
def test_false_alarms_stay_within_the_promise_however_often_one_looks():
    """A new calibration set and a new stream each time, a look after every 20 examples, short windows."""
    rng, streams, rate = np.random.default_rng(0), 300, 0.1
    false = 0
    for _ in range(streams):
        monitor = Monitor(reference(rng.gamma(2.0, size=60)), false_alarm_rate=rate, window=100)
        for _ in range(25):
            monitor.update(answers(rng.gamma(2.0, size=20)))
            if monitor.verdict().drifted:
                false += 1
                break
    assert false / streams <= rate + 3 * (rate * (1 - rate) / streams) ** 0.5


def test_a_finite_calibration_set_is_no_drift():
    """A stream a thousand times as long tells the quantiles of 50 examples from the truth, and must not say so."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(40):
        monitor = Monitor(reference(rng.random(50)), false_alarm_rate=0.05, window=10**6)
        monitor.update(answers(rng.random(50_000)))
        false += monitor.verdict().drifted
    assert false <= 2 + 3 * 2**0.5


def test_a_value_that_occurs_often_is_no_drift():
    """A third of the values are exactly 0: no quantile of theirs says how large their share is."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(20):
        draw = lambda n: np.maximum(rng.random(n) - 1 / 3, 0)  # noqa: E731
        monitor = Monitor(reference(draw(2000)), false_alarm_rate=0.05, window=10**6)
        monitor.update(answers(draw(50_000)))
        false += monitor.verdict().drifted
    assert false <= 1 + 3


@pytest.mark.parametrize("direction", ["more", "less"])
def test_drift_is_seen_within_a_few_dozen_examples(direction):
    rng = np.random.default_rng(0)
    drifted = (lambda: rng.beta(4, 1, 1)) if direction == "more" else (lambda: rng.beta(1, 4, 1))
    for _ in range(10):
        monitor = Monitor(reference(rng.random(1000)))
        monitor.update(answers(rng.random(20)))
        needed = 0
        while not monitor.verdict().drifted:
            monitor.update(answers(drifted()))
            needed += 1
            assert needed < 100
        assert needed > 2


def test_late_drift_is_seen_and_dated():
    rng = np.random.default_rng(0)
    monitor = Monitor(reference(rng.random(1000)), window=500)
    monitor.update(answers(rng.random(5000)))
    assert not monitor.verdict().drifted
    monitor.update(answers(rng.beta(3, 1, 200)))
    verdict = monitor.verdict()
    assert verdict.drifted
    assert verdict.since == 5000
    assert verdict.seen == 5200
    assert verdict.share_high > 0.2 > verdict.expected_high
    assert str(verdict).startswith(f"drift in {verdict.measure} since example 5000, 5200 examples seen: evidence")
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.drifted = False


def test_counts_of_workers_add_up():
    rng = np.random.default_rng(0)
    source, values = reference(rng.random(500)), rng.random(5300) ** 1.1
    workers = [Monitor(source, window=1000) for _ in range(3)]
    for worker, part in zip(workers, np.split(values, [2500, 4000]), strict=True):
        for batch in np.array_split(part, 7):
            worker.update(answers(batch))
    merged = workers[0].merge(workers[1]).merge(workers[2])
    swapped = workers[2].merge(workers[0].merge(workers[1]))
    assert merged.seen == swapped.seen == 5300
    assert merged.verdict() == swapped.verdict()
    assert merged.to_json() == swapped.to_json()
    assert workers[0].seen == 2500  # untouched
    counts = np.array(json.loads(merged.to_json())["counts"])
    edges = [np.quantile(source.reference["entropy"], level) for level in EDGES]
    whole = np.bincount(np.searchsorted(edges, values), minlength=len(EDGES) + 1)
    assert np.array_equal(counts[:, 0].sum(0), whole)


def test_a_monitor_goes_on_after_json():
    rng = np.random.default_rng(0)
    one = Monitor(reference(rng.random(500)), window=300)
    one.update(answers(rng.random(450)))
    two = Monitor.from_json(one.to_json())
    more = answers(rng.random(1000) ** 0.9)
    one.update(more)
    two.update([more])
    assert one.to_json() == two.to_json()
    assert one.verdict() == two.verdict()


def test_an_empty_monitor_has_no_evidence():
    verdict = Monitor(reference(np.random.default_rng(0).random(100))).verdict()
    assert not verdict.drifted
    assert verdict.seen == verdict.since == 0
    assert verdict.evidence < 0


def test_one_term_of_each_example_counts():
    source = reference(np.random.default_rng(0).random(100))
    monitor = Monitor(source)
    monitor.update(answers(np.random.default_rng(1).random((8, 5, 5))))
    assert monitor.seen == 8


def test_monitors_refuse_what_cannot_be_compared():
    rng = np.random.default_rng(0)
    source = reference(rng.random(100))
    with pytest.raises(ValueError, match="Monitor: false_alarm_rate must be between 0 and 1, got 1"):
        Monitor(source, false_alarm_rate=1)
    with pytest.raises(ValueError, match="Monitor: window must be a whole number of at least 1, got 0"):
        Monitor(source, window=0)
    with pytest.raises(ValueError, match="the reference of entropy and mutual_information must vary, got one value"):
        Monitor(reference(np.zeros(100)))
    for wrong in (None, 7, np.zeros(3)):
        with pytest.raises(
            TypeError, match=r"Monitor: session must be an UncertaintySession or the path of a file, got"
        ):
            Monitor(wrong)
    with pytest.raises(ValueError, match=r"false_alarm_rate must be between 0 and 1, got '0\.1'"):
        Monitor(source, false_alarm_rate="0.1")
    with pytest.raises(FileNotFoundError, match=r"there is no file 'u\.onnx'"):
        Monitor("u.onnx")
    monitor = Monitor(source)
    for wrong in (None, 7, "a", rng.random(3), [rng.random(3)], torch.zeros(3)):
        with pytest.raises(TypeError, match=r"update: answers must be what the session returns, .*; call monitor"):
            monitor.update(wrong)
    with pytest.raises(TypeError, match="update: 'entropy' must be an array of numbers, got could not convert string"):
        monitor.update({"entropy": ["high"], "mutual_information": [0.1]})
    with pytest.raises(ValueError, match=r"an answer must have entropy and mutual_information for each .*, got 3, 2"):
        monitor.update({"entropy": rng.random(3), "mutual_information": rng.random(2)})
    with pytest.raises(ValueError, match="update: an answer must have 'mutual_information', got entropy"):
        monitor.update(Answer({"entropy": rng.random(3)}))
    with pytest.raises(ValueError, match="update: 'entropy' must be finite, got 1 of 3 values that are not"):
        monitor.update(answers([0.1, np.nan, 0.2]))
    assert monitor.seen == 0
    for other in (Monitor(source, window=7), Monitor(reference(rng.random(90))), source):
        with pytest.raises(ValueError, match="merge: other must be a Monitor of the same file"):
            monitor.merge(other)
    with pytest.raises(ValueError, match=r"from_json: text must be what Monitor\.to_json wrote, got 'no json'"):
        Monitor.from_json("no json")
    with pytest.raises(ValueError, match=r"from_json: text must be what Monitor\.to_json wrote, got 'None'"):
        Monitor.from_json(None)
    with pytest.raises(ValueError, match="from_json: version must be 1, got 2; update bensemble"):
        Monitor.from_json(monitor.to_json().replace('"version": 1', '"version": 2'))


def test_a_stream_from_the_calibrated_world_and_one_from_another(calibrated):
    session, rng = UncertaintySession(calibrated[1]), np.random.default_rng(0)
    same, other = Monitor(session), Monitor(session)
    same.update(session(rng.normal(size=(3000, 4)).astype("float32")))
    assert not same.verdict().drifted
    other.update(session(0.1 * rng.normal(size=(60, 4)).astype("float32")))
    assert other.verdict().drifted


def test_a_regression_is_watched_by_its_deviation(tmp_path):
    bnn, x = model(1.0), torch.randn(300, 4)
    held_out = bensemble.predict(bnn, x, 4, likelihood=Gaussian(0.1), generator=torch.Generator().manual_seed(0))
    calibration = bensemble.calibrate(held_out, held_out.mean + 0.1 * torch.randn(300, 3))
    options = {"num_samples": 4, "likelihood": Gaussian(0.1), "calibration": calibration}
    export_onnx(bnn, tmp_path / "m.onnx", x[:1], outputs="uncertainty", **options)
    session = UncertaintySession(tmp_path / "m.onnx")
    assert session.num_data == 300  # three terms of each
    monitor = Monitor(session)
    monitor.update(session(5 * np.random.default_rng(0).normal(size=(50, 4)).astype("float32")))
    assert monitor.verdict().measure == "std"
    assert monitor.verdict().drifted


def test_no_torch_is_needed(calibrated):
    code = f"""
import sys
for name in ("torch", "onnx", "bensemble"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
from convert.runtime import Monitor, UncertaintySession
session = UncertaintySession({str(calibrated[1])!r})
answer = session(np.zeros((3, 4), "float32"))
monitor = Monitor(session)
monitor.update(answer)
print(monitor.verdict().seen, answer.labels()[0], sorted(set(sys.modules) & {{"torch", "onnx", "bensemble"}}))
print(sorted(name for name in sys.modules if name.startswith("convert")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[0] == "3"
    assert done.stdout.splitlines()[1] == "['convert', 'convert.runtime']"

"""The torch-free runtime: what it answers."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from drawn_networks import drawn_networks, for_anyone
from torch import nn
from uncertainty_files import CLASSES, model

import bensemble
from bensemble.likelihoods import Categorical
from convert import bayesify
from convert.onnx import export_onnx
from convert.runtime import Monitor, UncertaintySession

pytestmark = pytest.mark.xdist_group("uncertainty file")  # its fixtures are made once


def test_an_answer_has_the_files_outputs_as_fields(calibrated):
    bnn, path, calibration = calibrated
    session, x = UncertaintySession(path, threads=1), torch.randn(7, 4)
    answer = session(x.numpy())
    calibration = for_anyone(calibration)
    expected = calibration.apply(bensemble.predict(drawn_networks(bnn, path), x, likelihood="categorical"))
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
    assert session.reference == {"entropy": calibration.reference["entropy"], "class": calibration.predicted}
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


@pytest.mark.slow
def test_files_without_classes_answer_with_numbers_and_without_a_threshold_with_no_sets(tmp_path):
    export_onnx(
        model(), tmp_path / "m.onnx", torch.randn(1, 4), outputs="uncertainty", num_samples=2, likelihood="categorical"
    )
    session = UncertaintySession(tmp_path / "m.onnx")
    answer = session(np.zeros((2, 4), "float32"))
    assert answer.labels().dtype == np.int64
    with pytest.raises(ValueError, match="sets: the file holds no conformal threshold; export it with calib"):
        answer.sets()
    with pytest.raises(ValueError, match=r"Monitor: '.*m.onnx' must hold a reference distribution, got none; pass"):
        Monitor(session)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_regressions_have_no_labels(tmp_path):
    export_onnx(model(), tmp_path / "m.onnx", torch.randn(1, 4), outputs="uncertainty", num_samples=2)
    answer = UncertaintySession(tmp_path / "m.onnx")(np.zeros((2, 4), "float32"))
    assert tuple(answer) == ("mean", "std")
    with pytest.raises(ValueError, match="labels: an answer with mean, std chooses no class; only classifiers do"):
        answer.labels()


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
print(sorted(name for name in sys.modules if name.startswith("convert") and name.count(".") < 2))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[0] == "3"
    assert done.stdout.splitlines()[1] == "['convert', 'convert.runtime']"

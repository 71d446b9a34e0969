"""What an answer says: labels, scores, sets, rejections, one example, JSON."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from uncertainty_files import model

import bensemble
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Gaussian
from convert import bayesify
from convert.onnx import export_onnx
from convert.runtime import Answer, UncertaintySession

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5], [np.nan] * 3], "float32")


def classified(thresholds=None, **more) -> Answer:
    arrays = {"probs": PROBS, "entropy": np.array([0.8, 0.9, np.nan], "float32"), "prediction_set": PROBS > 0.15}
    return Answer({**arrays, **more}, ("cat", "dog", "eel"), 1, thresholds)


def test_an_answer_is_ready_for_json():
    answer = classified({"entropy": 0.85})
    told = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert told["label"] == ["cat", "eel", None]
    assert told["set"] == [["cat", "dog"], ["dog", "eel"], []]
    assert told["score"] == [np.float32(0.7), 0.5, None]
    assert told["probs"][2] == [None] * 3
    assert told["rejected"] == [False, True, True]
    assert "prediction_set" not in told
    regression = Answer({"mean": np.zeros((2, 1)), "std": np.array([[np.inf], [1.0]]), "lower": np.ones((2, 1))})
    assert regression.to_dict() == {"mean": [[0], [0]], "std": [[None], [1.0]], "lower": [[1.0], [1.0]]}
    empty = classified()[:0].to_dict()
    assert empty["label"] == empty["score"] == empty["set"] == empty["entropy"] == []


def test_bernoulli_has_sets_and_no_label():
    answer = Answer({"probs": np.array([[0.9, 0.2]]), "prediction_set": np.ones((1, 2, 2), bool)}, (), 2)
    assert answer.to_dict() == {"probs": [[0.9, 0.2]], "set": [[[0, 1], [0, 1]]]}
    assert answer[0].to_dict() == {"probs": [0.9, 0.2], "set": [[0, 1], [0, 1]]}


def test_a_regression_has_intervals_and_no_sets():
    answer = Answer({"mean": np.zeros((2, 1)), "lower": -np.ones((2, 1)), "upper": np.ones((2, 1))})
    assert [end.tolist() for end in answer.interval()] == [[[-1.0], [-1.0]], [[1.0], [1.0]]]
    with pytest.raises(ValueError, match=r"sets: the file is of a regression, which has intervals; call interval\(\)"):
        answer.sets()


def test_one_example_of_an_answer():
    answer = classified({"entropy": 0.85})
    for one in (answer[1], answer[-2], answer[np.int64(1)], pickle.loads(pickle.dumps(answer[1]))):
        assert (one.labels(), one.scores(), one.sets(), bool(one.reject())) == ("eel", 0.5, ["dog", "eel"], True)
        assert one.probs.shape == (3,)
        assert one.to_dict()["label"] == "eel"
    assert answer[2].labels() is None
    assert answer[2].to_dict()["score"] is None
    assert [*answer[1:].labels()] == ["eel", None]
    assert repr(answer[0]).startswith("Answer: one example")
    assert 1 not in answer
    for wrong, error, message in (
        (3, IndexError, "answer: has 3 examples, got number 3"),
        (1.5, TypeError, "answer: takes the name of an output, a number or a slice, got float"),
        ("std", KeyError, "std"),
    ):
        with pytest.raises(error, match=message):
            answer[wrong]
    with pytest.raises(TypeError, match="answer: of one example it has no others"):
        answer[0][0]


def test_what_is_rejected_is_above_a_threshold_or_has_a_small_p_value():
    pvalues = np.array([0.01, 0.5, 0.5])
    assert [*classified({"novelty_pvalue": 0.01}, novelty_pvalue=pvalues).reject()] == [True, False, False]
    both = {"novelty_pvalue": 0.01, "entropy": 0.85}
    assert [*classified(both, novelty_pvalue=pvalues).reject()] == [True, True, True]
    std = np.array([[0.1, 9.0], [0.1, 0.1]])
    assert Answer({"std": std}, thresholds={"std": 1}).reject().tolist() == [[False, True], [False, False]]
    mixed = Answer({"std": std, "novelty": np.zeros(2)}, thresholds={"std": 1, "novelty": 1})
    assert mixed.reject().tolist() == [True, False]
    assert bool(mixed[0].reject())
    with pytest.raises(ValueError, match=r"reject: the file holds no thresholds; export it with reject=\{'novelty_pv"):
        classified().reject()


def options(**more):
    return {"outputs": "uncertainty", "num_samples": 2, "likelihood": "categorical", **more}


@pytest.mark.slow
def test_the_thresholds_travel_in_the_file(tmp_path):
    bnn, x = model(), torch.randn(200, 4)
    y = torch.arange(200) % 3
    novelty = bensemble.fit_novelty(bnn, [(x, y)], [(x[:99] + 0.1, y[:99])], likelihood="categorical")
    thresholds = {"novelty_pvalue": 0.02, "entropy": 0.9}
    export_onnx(bnn, tmp_path / "m.onnx", x[:1], **options(novelty=novelty, reject=thresholds))
    session = UncertaintySession(tmp_path / "m.onnx")
    assert session.thresholds == thresholds
    answer = session(torch.cat([x, 50 * x]).numpy())
    expected = (answer.entropy > 0.9) | (answer.novelty_pvalue <= 0.02)
    assert np.array_equal(answer.reject(), expected)
    assert expected[200:].sum() > expected[:200].sum() > 0
    with pytest.warns(UserWarning, match=r"no p-value is below 0.01 = .* so reject=\{'novelty_pvalue': 0.001\} re"):
        export_onnx(bnn, tmp_path / "m.onnx", x[:1], **options(novelty=novelty, reject={"novelty_pvalue": 0.001}))


@pytest.mark.parametrize(
    ("reject", "error", "message"),
    [
        (0.5, InvalidTypeError, "reject must be a mapping such as .*, got float"),
        (
            {},
            InvalidValueError,
            r"must name uncertainties of the file \(entropy, mutual_information\), got none",
        ),
        ({"std": 1.0}, InvalidValueError, "got 'std'; novelty needs novelty=fit_novelty"),
        ({"novelty_pvalue": 0.1}, InvalidValueError, "got 'novelty_pvalue'; novelty needs novelty=fit_novelty"),
        ({"entropy": -1.0}, InvalidValueError, r"reject\['entropy'\] must be finite and at least 0, got -1.0"),
        ({"entropy": float("nan")}, InvalidValueError, r"reject\['entropy'\] must be finite and at least 0, got nan"),
        ({"entropy": "0.5"}, InvalidTypeError, r"reject\['entropy'\] must be a number, got '0.5'"),
    ],
)
def test_thresholds_that_cannot_work_are_refused_before_the_export(reject, error, message, tmp_path):
    with pytest.raises(error, match=f"export_onnx: .*{message}"):
        export_onnx(model(), tmp_path / "m.onnx", "no inputs", **options(reject=reject))
    assert not list(tmp_path.iterdir())


def test_a_file_of_means_takes_no_thresholds(tmp_path):
    with pytest.raises(InvalidValueError, match="export_onnx: reject must come with outputs='uncertainty', got outp"):
        export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", torch.zeros(1, 4), reject={"entropy": 1.0})


def test_a_regression_rejects_by_its_deviations(tmp_path):
    bnn, reject = bayesify(nn.Linear(4, 2), init_sigma=0.3), {"std": 0.5, "noise_std": 1.0}
    export_onnx(
        bnn, tmp_path / "m.onnx", torch.randn(1, 4), outputs="uncertainty", likelihood=Gaussian(0.1), reject=reject
    )
    answer = UncertaintySession(tmp_path / "m.onnx")(np.array([[0.0] * 4, [9.0] * 4], "float32"))
    assert answer.reject().tolist() == [[False, False], [True, True]]

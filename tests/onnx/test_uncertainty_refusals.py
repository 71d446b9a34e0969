"""What cannot be an uncertainty file is refused before anything is written."""

import os

import pytest
import torch
from onnx_models import TwoInputs, mlp
from torch import nn

import bensemble
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Gaussian
from convert import bayesify
from convert.onnx import export_onnx

X = torch.zeros(2, 4)
LEVELS = tuple(k / 100 for k in range(101))
OF_CLASSES = bensemble.Calibration(1.0, 0.9, 0.1, 50, {"entropy": LEVELS, "mutual_information": LEVELS})
OF_NUMBERS = bensemble.Calibration(1.0, 0.9, 0.1, 50, {"total_std": LEVELS, "epistemic_std": LEVELS})


class Unread(nn.Module):
    """A layer whose output is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unread = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        self.unread(x)
        return self.used(x)


REFUSED = {
    "plain model": ({}, ExportError, "needs a Bayesian model, got Sequential without a posterior; bayesify it and fit"),
    "method": ({"method": "moments"}, InvalidValueError, "method must be 'closed', 'samples' or None, got 'moments'"),
    "names": (
        {"output_names": ["a", "b"]},
        InvalidValueError,
        r"output_names: must be left out with outputs='uncertainty', got \['a', 'b'\]",
    ),
    "one draw": ({"num_samples": 1}, InvalidValueError, "num_samples must be at least 2, got 1"),
    "draws type": ({"num_samples": 4.0}, InvalidTypeError, "num_samples must be a whole number, got 4.0"),
    "likelihood": ({"likelihood": "poisson"}, InvalidValueError, "'poisson'"),
    "generator": ({"generator": 3}, InvalidTypeError, "generator must be a torch.Generator, got 3"),
    "calibration type": (
        {"calibration": {}},
        InvalidTypeError,
        "calibration must be what bensemble.calibrate returned",
    ),
    "calibration without likelihood": ({"calibration": OF_CLASSES}, InvalidValueError, "for likelihood=None"),
    "calibration of classes": (
        {"calibration": OF_CLASSES, "likelihood": Gaussian(1.0)},
        InvalidValueError,
        "by the same likelihood, got one with a reference of entropy and mutual_information for likelihood=Gaussian",
    ),
    "calibration of numbers": (
        {"calibration": OF_NUMBERS, "likelihood": "categorical"},
        InvalidValueError,
        "reference of total_std and epistemic_std for likelihood=Categorical",
    ),
    "too many draws": (
        {"num_samples": 10_000_000},
        InvalidValueError,
        r"2 GiB, got 10000000 draws of Sequential with 2.5\d GiB; num_samples=\d+ fits",
    ),
    "classes": (
        {"likelihood": "categorical", "metadata": {"classes": "cat,dog"}},
        InvalidValueError,
        r"metadata\['classes'\] must name 3 classes, got 2: cat, dog",
    ),
    "class axis": ({"likelihood": "categorical"}, InvalidValueError, "dim must be given for outputs of 3 axes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    options, error, message = REFUSED[case]
    model = mlp() if case == "plain model" else bayesify(mlp())
    x = torch.zeros(2, 5, 4) if case == "class axis" else X
    with pytest.raises(error, match=message):
        export_onnx(model, tmp_path / "m.onnx", x, outputs="uncertainty", **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"likelihood": "categorical"}, {"calibration": OF_CLASSES, "likelihood": "x"}])
def test_the_mean_has_no_use_for_them(options, tmp_path):
    names = ", ".join(name for name in ("likelihood", "calibration") if name in options)
    with pytest.raises(InvalidValueError, match=f"{names} must come with outputs='uncertainty', got outputs='mean'"):
        export_onnx(mlp(), tmp_path / "m.onnx", X, **options)


def test_what_fits_is_said_where_not_even_two_draws_do(tmp_path, monkeypatch):
    monkeypatch.setattr("convert.onnx.uncertainty.options.MOST_BYTES", 300)
    with pytest.raises(InvalidValueError, match="no two draws fit, and so does a posterior on fewer layers"):
        export_onnx(bayesify(mlp()), tmp_path / "m.onnx", X, outputs="uncertainty")


def test_a_posterior_behind_nothing_is_refused(tmp_path):
    bnn = bayesify(Unread(), include="unread")
    with pytest.raises(ExportError, match="needs a posterior that reaches the output, got an output that depends on n"):
        export_onnx(bnn, tmp_path / "m.onnx", X, outputs="uncertainty", num_samples=2)
    assert os.listdir(tmp_path) == []


def test_several_outputs_need_a_choice(tmp_path):
    class Two(TwoInputs):
        def forward(self, image, table):
            return self.image(image), self.table(table)

    with pytest.raises(InvalidValueError, match="output"):
        export_onnx(bayesify(Two()), tmp_path / "m.onnx", (X, X[:, :2]), outputs="uncertainty", num_samples=2)


def test_an_ensemble_is_one_kind_of_model_and_has_no_mean(tmp_path):
    with pytest.raises(InvalidValueError, match="an ensemble must be all Bayesian or all deterministic, got both"):
        export_onnx([mlp(), bayesify(mlp())], tmp_path / "m.onnx", X, outputs="uncertainty")
    with pytest.raises(InvalidTypeError, match="got list; an ensemble is a sequence of them, with outputs='uncert"):
        export_onnx([mlp(), mlp()], tmp_path / "m.onnx", X)
    with pytest.raises(InvalidTypeError, match="got list"):
        export_onnx([], tmp_path / "m.onnx", X, outputs="uncertainty")

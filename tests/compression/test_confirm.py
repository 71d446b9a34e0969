"""What is confirmed on data that the search does not see, and what is not shipped."""

from __future__ import annotations

import math

import pytest
import torch

from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from convert import UnmetConstraintsError, compress

from .in_memory import closeness, mlp


def _searched(tmp_path, confirm, **options):
    model, x = mlp()
    options = {"max_drop": 3.0, "granularities": ["channel"], "scores": "snr"} | options
    return compress(model, closeness(model, x), x, tmp_path / "small.onnx", confirm=confirm, **options)


@pytest.mark.usefixtures("in_memory")
def test_a_file_is_confirmed_on_paired_examples_that_the_search_did_not_see(tmp_path):
    model, _ = mlp()
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
    model, _ = mlp()
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

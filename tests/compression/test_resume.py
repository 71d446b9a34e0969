"""A search in a folder of the user's goes on after a break, and takes nothing over from another search."""

import json

import pytest
import torch

from bensemble.errors import InvalidValueError
from convert import compress
from convert.compression.record import candidate_of

from .in_memory import closeness, mlp


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after some points."""


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(tmp_path):
    model, x = mlp(8)
    options = {"max_drop": 3.0, "granularities": ["channel"], "scores": "snr", "folder": tmp_path / "search"}
    close = closeness(model, x)
    whole = compress(model, close, x, tmp_path / "whole.onnx", **options | {"folder": None})

    measured = []

    def stop(point):
        measured.append(candidate_of(point))
        if len(measured) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        compress(model, close, x, tmp_path / "small.onnx", progress=stop, **options)
    assert len(json.loads((tmp_path / "search" / "search.json").read_text())["points"]) == 4
    assert not (tmp_path / "small.onnx").exists()

    scored = []

    def counting(network):
        scored.append(network)
        return close(network)

    resumed = compress(model, counting, x, tmp_path / "small.onnx", **options)
    assert [candidate_of(p) for p in resumed.points] == [candidate_of(p) for p in whole.points]
    assert [p.metric for p in resumed.points] == pytest.approx([p.metric for p in whole.points], abs=1e-6)
    asked_of_chance = 4
    assert len(scored) == len(whole.points) - 3 + asked_of_chance  # the mean is scored again, three are not
    assert (tmp_path / "small.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.usefixtures("in_memory")
def test_a_folder_of_another_search_is_refused(tmp_path):
    model, x = mlp(8)
    options = {"max_drop": 3.0, "granularities": ["channel"], "scores": "snr", "folder": tmp_path / "search"}
    compress(model, closeness(model, x), x, tmp_path / "a.onnx", **options)
    with pytest.raises(InvalidValueError, match=r"must be of this evaluate, got -?0 there and 1 now"):
        compress(model, lambda network: 1 + closeness(model, x)(network), x, tmp_path / "b.onnx", **options)
    with pytest.raises(InvalidValueError, match=r"of a search with repair=, got one without; choose"):
        compress(model, closeness(model, x), x, tmp_path / "b.onnx", repair=[x], **options)
    with pytest.raises(InvalidValueError, match=r"of a search without sparse=, got one with; choose"):
        compress(model, closeness(model, x), x, tmp_path / "b.onnx", sparse=False, **options)
    with torch.no_grad():
        model[0].w_rho.add_(0.1)
    with pytest.raises(InvalidValueError, match="got the search of another posterior; choose"):
        compress(model, closeness(model, x), x, tmp_path / "b.onnx", **options)
    (tmp_path / "search" / "search.json").write_text("{}")
    with pytest.raises(InvalidValueError, match="is not the record of a search"):
        compress(model, closeness(model, x), x, tmp_path / "b.onnx", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidValueError, match="cannot be made"):
        compress(model, closeness(model, x), x, tmp_path / "b.onnx", **options | {"folder": tmp_path / "file"})
    assert not (tmp_path / "b.onnx").exists()

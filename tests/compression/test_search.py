"""One search on a real, small classifier, with files that ONNX Runtime runs."""

from __future__ import annotations

import math

import pytest

from convert import OnnxModel, compress

from .digits import accuracy, data, posterior

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
        refine=0,
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
    (line,) = axes.lines
    assert list(line.get_xdata()) == sorted(line.get_xdata())
    assert list(line.get_ydata()) == sorted(line.get_ydata())
    kinds = {point.quantize or "float32" for point in found.points}
    shown = set() if axes.get_legend() is None else {entry.get_text() for entry in axes.get_legend().get_texts()}
    assert shown == (kinds if len(kinds) > 1 else set())
    assert sum(len(part.get_offsets()) for part in axes.collections) == len(found.points) + 1

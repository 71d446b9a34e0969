"""Repair within a search, by a function and by a loader."""

from __future__ import annotations

import pytest
import torch

from convert import compress

from .in_memory import closeness, mlp


@pytest.mark.usefixtures("in_memory")
def test_repair_trains_the_pruned_network_and_its_zeros_stay(tmp_path):
    model, x = mlp()
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
    model, x = mlp()
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
    model, x = mlp()
    calls = []

    def repair(network):  # another network each time, which only the file of the same call can show
        calls.append(network)
        network[2].bias.data.fill_(100.0 * len(calls))

    found = compress(
        model,
        lambda network: float(network(x).abs().mean()),
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
